"""What tests/bench/otdd.lua measures, by POT, SciPy and PyTorch: the times of 100 Sinkhorn iterations in the log domain on
2,000 x 2,000, and of a whole OTDD with POT's transport and roots of matrices by NumPy's eigenvalues.

    OMP_NUM_THREADS=2 python3 tests/bench/otdd_pot.py [TIMES]         the best of so many (default 3)"""

import sys
import time
import warnings

import numpy as np
import ot
import torch

N, D, CLASSES, TIMES = 2000, 512, 10, int(sys.argv[1]) if len(sys.argv) > 1 else 3
rng = np.random.default_rng(1)
warnings.simplefilter("ignore")  # POT says that 100 iterations did not converge


def best(what, fn):
    times, work = [], []
    for _ in range(TIMES):
        began, clock = time.perf_counter(), time.process_time()
        result = fn()
        times.append(time.perf_counter() - began)
        work.append(time.process_time() - clock)
    print(f"{what:58} {min(times):7.3f} s, {min(work):7.3f} s of CPU", flush=True)
    return result


def dataset(means, shift):
    labels = np.arange(N) % CLASSES
    x = (means + shift * rng.normal(size=means.shape))[labels] + 0.7 * rng.normal(size=(N, D))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def torch_sinkhorn(cost, eps=0.1, steps=100):
    f, g, log = torch.zeros(N), torch.zeros(N), -np.log(N)
    for _ in range(steps):
        g = -eps * torch.logsumexp((f[:, None] - cost) / eps + log, 0)
        f = -eps * torch.logsumexp((g[None] - cost) / eps + log, 1)
    return f.mean() + g.mean()


def distances(sets):
    """W2^2 between all classes"""
    means, covariances, roots = [], [], []
    for x, y in sets:
        for c in range(CLASSES):
            own = x[y == c].astype(np.float64)
            means.append(own.mean(0))
            covariances.append(np.cov(own.T))
            values, vectors = np.linalg.eigh(covariances[-1])
            roots.append(vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T)
    w = np.zeros((2 * CLASSES, 2 * CLASSES))
    for i in range(len(w)):
        for j in range(i):
            inner = np.linalg.eigvalsh(roots[i] @ covariances[j] @ roots[i])
            w[i, j] = w[j, i] = ((means[i] - means[j]) ** 2).sum() + np.trace(covariances[i]) + np.trace(
                covariances[j]) - 2 * np.sqrt(np.clip(inner, 0, None)).sum()
    return w


def otdd(sets, eps=0.1):
    w, value = distances(sets), {}
    a = np.full(N, 1 / N)
    for i, j in ((0, 1), (0, 0), (1, 1)):
        cost = ot.dist(sets[i][0], sets[j][0], "sqeuclidean").astype(np.float64) / 2
        cost += w[np.ix_(sets[i][1] + CLASSES * i, sets[j][1] + CLASSES * j)] / 2
        plan, log = ot.bregman.sinkhorn_log(a, a, cost, eps, stopThr=1e-4, log=True)
        value[i, j] = (plan * cost).sum() + eps * (plan * np.log(np.maximum(plan, 1e-300) * N * N)).sum()
    return value[0, 1] - (value[0, 0] + value[1, 1]) / 2


means = rng.normal(size=(CLASSES, D))
sets = dataset(means, 0), dataset(means, 0.3)
cost = ot.dist(sets[0][0], sets[1][0], "sqeuclidean") / 2
with torch.no_grad():
    best("PyTorch, 100 iterations of Sinkhorn, float32", lambda: torch_sinkhorn(torch.tensor(cost, dtype=torch.float32)))
uniform = np.full(N, 1 / N)
TIMES = 1  # what follows takes long
best("POT sinkhorn_log, 100 iterations, float64",
     lambda: ot.bregman.sinkhorn_log(uniform, uniform, cost.astype(np.float64), 0.1, numItermax=100, stopThr=0))
best("classes by NumPy, 190 pairs at 512 dimensions", lambda: distances(sets))
print("  raw %.6f" % best("otdd by NumPy and POT, whole", lambda: otdd(sets)))
