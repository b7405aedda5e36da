"""One row of tests/bench/bars.lua, the other side: PyTorch, scikit-learn, POT. See ours.lua for what is read and printed.

    python3 theirs.py ROW ARGUMENTS...
    python3 theirs.py has MODULE        0 where the module can be imported, and what it is"""

import importlib
import os
import resource
import sys
import time

import numpy as np

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
VIT = dict(b32=(224, 32, 768, 12, 12), small=(32, 4, 192, 6, 3))
CLASSES = 100


def timed(fn):
    began = time.perf_counter()
    value = fn()
    return time.perf_counter() - began, value


def vit(name, batch, attention):
    """A training step in PyTorch's own layers. attention: explicit, or sdpa where this PyTorch has it."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(THREADS)
    image, patch, width, depth, heads = VIT[name]
    fused = getattr(F, "scaled_dot_product_attention", None)
    if attention == "sdpa" and not fused:
        return None

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            b, t, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            if attention == "sdpa":
                y = fused(q, k, v)
            else:
                y = torch.softmax(q @ k.transpose(-2, -1) * (width // heads) ** -0.5, -1) @ v
            x = x + self.proj(y.transpose(1, 2).reshape(b, t, width))
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    class Vit(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, width, patch, patch)
            self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
            self.positions = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, width) * 0.02)
            self.blocks = nn.Sequential(*[Block() for _ in range(depth)])
            self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, CLASSES)

        def forward(self, images):
            x = self.patch(images).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
            return self.head(self.norm(self.blocks(x)[:, 0]))

    batch = int(batch)
    model = Vit()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
    images, labels = torch.randn(batch, 3, image, image), torch.arange(batch) % CLASSES

    def step():
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()

    return lambda: (timed(step)[0], None)


def probe(folder):
    """scikit-learn's default solver; the number is the loss that ours minimises."""
    import warnings

    from sklearn.linear_model import LogisticRegression

    warnings.simplefilter("ignore")  # that 100 iterations were not enough
    x, y = np.load(folder + "/bench-features.npy"), np.load(folder + "/bench-labels.npy")

    def work():
        seconds, model = timed(lambda: LogisticRegression(C=1.0).fit(x, y))
        z = x.astype(np.float64) @ model.coef_.T + model.intercept_
        top = z.max(1, keepdims=True)
        own = z[np.arange(len(z)), np.searchsorted(model.classes_, y)]
        loss = np.mean(np.log(np.exp(z - top).sum(1)) + top[:, 0] - own)
        return seconds, loss + (model.coef_**2).sum() / 2 / len(x)

    return work


def sinkhorn(library):
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=(2000, 64)) for _ in range(2))
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    cost, n, eps = 1 - a @ b.T, 2000, 0.1
    if library == "ot":
        import warnings

        import ot

        warnings.simplefilter("ignore")  # that 100 iterations did not converge
        uniform, cost = np.full(n, 1 / n, np.float32), cost.astype(np.float32)
        options = dict(numItermax=100, stopThr=0)
        return lambda: (timed(lambda: ot.bregman.sinkhorn_log(uniform, uniform, cost, eps, **options))[0], 100)
    import torch

    torch.set_num_threads(THREADS)
    cost, log = torch.tensor(cost, dtype=torch.float32), -float(np.log(n))

    @torch.no_grad()
    def work():
        f, g = torch.zeros(n), torch.zeros(n)
        for _ in range(100):
            g = -eps * torch.logsumexp((f[:, None] - cost) / eps + log, 0)
            f = -eps * torch.logsumexp((g[None] - cost) / eps + log, 1)
        return f, g

    return lambda: (timed(work)[0], 100)


if sys.argv[1] == "has":
    try:
        print(sys.argv[2], importlib.import_module(sys.argv[2]).__version__)
    except ImportError:
        sys.exit(1)
    sys.exit(0)
row = {"vit": vit, "probe": probe, "sinkhorn": sinkhorn}[sys.argv[1]](*sys.argv[2:])
if row is None:
    print("absent", flush=True)
    sys.exit(0)
print("ready", flush=True)
for line in sys.stdin:
    if line == "end\n":
        break
    took, number = row()
    print(took, "" if number is None else number, flush=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)
