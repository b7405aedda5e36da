"""The same kernels in PyTorch, for the ratios of kernels.lua: prints "name<tab>seconds" lines, medians after warm-up."""
import sys
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(int(sys.argv[1]))


def median(fn, repeats=11):
    times = []
    for i in range(repeats + 2):
        began = time.perf_counter()
        fn()
        times.append(time.perf_counter() - began)
    return sorted(times[2:])[repeats // 2]


def row(name, seconds):
    print(f"{name}\t{seconds}")


for m, k, n in ((3200, 768, 2304), (3200, 768, 3072), (3200, 3072, 768)):
    x, w, b = torch.randn(m, k), torch.randn(n, k) * 0.02, torch.zeros(n)
    g = torch.randn(m, n)
    leaves = [t.requires_grad_() for t in (x, w, b)]

    def step():
        for t in leaves:
            t.grad = None
        F.linear(x, w, b).backward(g)

    row(f"linear {m}x{k}x{n} f+b", median(step))

for rows, width in ((3200, 3072), (16384, 1024)):
    x, g, w, b = torch.randn(rows, width), torch.randn(rows, width), torch.ones(width), torch.zeros(width)
    for name, fn in (
        ("layer_norm", lambda t: F.layer_norm(t, (width,), w, b)),
        ("gelu", F.gelu),
        ("softmax", lambda t: F.softmax(t, -1)),
    ):
        row(f"{name} {rows}x{width} forward", median(lambda: fn(x)))
        leaf, times = x.clone().requires_grad_(), []
        for i in range(13):
            out, leaf.grad = fn(leaf), None
            began = time.perf_counter()
            out.backward(g)
            times.append(time.perf_counter() - began)
        row(f"{name} {rows}x{width} backward", sorted(times[2:])[5])

for size, d, k in ((64, 512, 8), (1024, 768, 32)):
    x = torch.randn(size, d).requires_grad_()
    start = F.normalize(torch.randn(size, d))
    similarity = start @ start.t()
    off = 1 - torch.eye(size)
    nearest = (similarity - 2 * torch.eye(size)).topk(k).indices
    positive = torch.zeros(size, size).scatter_(1, nearest, 1.0)
    weights = (2 * positive - 1) * similarity.clamp(min=0) * off

    def loss_step():
        x.grad = None
        unit = F.normalize(x)
        z = weights * (1.0 - unit @ unit.t() * 10)
        ((F.softplus(z) * off).sum() / (size * (size - 1))).backward()

    row(f"fda_loss B={size} d={d} k={k} f+b", median(loss_step, 301 if size == 64 else 21))
