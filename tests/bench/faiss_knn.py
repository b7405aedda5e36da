"""FAISS's side of knn.lua: for each line "query" or "self" of the input it searches once and prints the seconds. Debian's
FAISS finds the OpenBLAS that is first in the system's alternatives; libopenblas-openmp shares one pool with it."""

import sys
import time

import faiss
import numpy as np

faiss.omp_set_num_threads(int(sys.argv[1]))
rng = np.random.default_rng(1)
sets = {}
for what, q, n, d in (("query", 10000, 100000, 512), ("self", 20000, 20000, 768)):
    base = rng.standard_normal((n, d), dtype=np.float32)
    index = faiss.IndexFlatIP(d)
    index.add(base)
    sets[what] = index, base if what == "self" else rng.standard_normal((q, d), dtype=np.float32)

print(faiss.__version__, flush=True)
for line in sys.stdin:
    index, queries = sets[line.strip()]
    began = time.perf_counter()
    index.search(queries, 32)
    print(time.perf_counter() - began, flush=True)
