/* optim.cu - optimiser steps over a whole parameter list at once, in place, and gradient-norm clipping.
 *
 * A list of any length is one launch: the host lays a table of its tensors into device memory, and each block looks up
 * which CHUNK elements of which tensor are its own. Every element is read once and written once, 16 bytes at a time.
 * Formulas are optim.c's. */
#include "../cuda/cuda.h"

enum { CHUNK = 16384, LISTS = 4 };

template <class T> struct member { /* a tensor of the list with its partners in the other lists */
  T *t[LISTS];
  int64_t n, first; /* elements; the first chunk's number */
  int32_t packed;   /* all of them begin at 16 bytes */
};

template <class T> struct piece { /* what one block works on */
  T *t[LISTS];
  int64_t packed, n; /* elements that go in packs, and in all */
};

/* The chunk `number`: tensors without elements have none. */
template <class T>
static __device__ __forceinline__ piece<T> piece_of(const member<T> *table, int32_t members, int64_t number) {
  int32_t low = 0, high = members - 1; /* the last member whose first chunk is not behind */
  while (low < high) {
    int32_t middle = (low + high + 1) / 2;
    if (table[middle].first <= number)
      low = middle;
    else
      high = middle - 1;
  }
  const member<T> *m = table + low;
  int64_t begin = (number - m->first) * CHUNK, rest = m->n - begin;
  piece<T> p;
#pragma unroll
  for (int k = 0; k < LISTS; k++) p.t[k] = m->t[k] + begin;
  p.n = rest < CHUNK ? rest : (int64_t)CHUNK;
  p.packed = m->packed ? p.n / pg_pack<T>::N * pg_pack<T>::N : 0;
  return p;
}

/* The table of c's inputs, `lists` lists of one length; members without elements are left out. */
template <class T> struct table {
  pg_scratch memory;
  int status;
  int32_t members = 0;
  int64_t chunks = 0;
  table(const pg_call *c, int lists) : memory(sizeof(member<T>) * (size_t)PG_MAX(c->n_in / lists, 1)) {
    int32_t n = c->n_in / lists;
    if ((status = memory.status)) return;
    member<T> *rows = (member<T> *)malloc(sizeof(member<T>) * (size_t)PG_MAX(n, 1));
    if (!rows) {
      status = pg_fail(PG_ERR_MEMORY, "%s: out of memory", c->op->info.name);
      return;
    }
    for (int32_t i = 0; i < n; i++) {
      member<T> m = {};
      uintptr_t bits = 0;
      if (!(m.n = pg_numel(c->in[i]))) continue;
      for (int k = 0; k < LISTS; k++) {
        m.t[k] = PG_AT(T, c->in[(k < lists ? k : 0) * n + i]);
        bits |= (uintptr_t)m.t[k];
      }
      m.packed = bits % 16 == 0;
      m.first = chunks;
      chunks += (m.n + CHUNK - 1) / CHUNK;
      rows[members++] = m;
    }
    if (members)
      status = pg_device_get(PG_CUDA)->from_host(memory.at<char>(), rows, sizeof(member<T>) * (size_t)members);
    free(rows);
  }
};

/* ---- AdamW ------------------------------------------------------------------------------------------------------ */

template <class T> struct adam { /* one step's constants */
  T decay, beta1, beta2, eps, step, fix;
  __device__ __forceinline__ void update(T &p, T g, T &m, T &v) const {
    m = beta1 * m + (1 - beta1) * g;
    v = beta2 * v + (1 - beta2) * g * g;
    p = p * decay - step * m / (pg_sqrt(v) * fix + eps);
  }
};

template <class T>
static __global__ void __launch_bounds__(PG_BLOCK) adamw_kernel(const member<T> *table, int32_t members, adam<T> a) {
  enum { N = pg_pack<T>::N };
  piece<T> w = piece_of(table, members, (int64_t)blockIdx.x);
  for (int64_t i = threadIdx.x * N; i < w.packed; i += PG_BLOCK * N) {
    pg_pack<T> p = pg_load(w.t[0] + i), g = pg_load(w.t[1] + i), m = pg_load(w.t[2] + i), v = pg_load(w.t[3] + i);
#pragma unroll
    for (int k = 0; k < N; k++) a.update(p.v[k], g.v[k], m.v[k], v.v[k]);
    pg_store(w.t[0] + i, p), pg_store(w.t[2] + i, m), pg_store(w.t[3] + i, v);
  }
  for (int64_t i = w.packed + threadIdx.x; i < w.n; i += PG_BLOCK) a.update(w.t[0][i], w.t[1][i], w.t[2][i], w.t[3][i]);
}

template <class T> static int adamw(pg_call *c) {
  double lr = c->p[0].num, t = c->p[5].num;
  adam<T> a = {(T)(1 - lr * c->p[4].num),
               (T)c->p[1].num,
               (T)c->p[2].num,
               (T)c->p[3].num,
               (T)(lr / (1 - pow(c->p[1].num, t))),
               (T)(1 / sqrt(1 - pow(c->p[2].num, t)))};
  table<T> list(c, 4);
  if (list.status) return list.status;
  if (list.chunks)
    PG_LAUNCH(c, adamw_kernel<T>, (unsigned)list.chunks, PG_BLOCK, list.memory.template at<const member<T>>(),
              list.members, a);
  return PG_OK;
}

/* ---- SGD -------------------------------------------------------------------------------------------------------- */

template <class T> struct descent {
  T lr, momentum, decay;
  __device__ __forceinline__ void update(T &p, T g, T &u) const {
    T step = g + decay * p;
    u = momentum ? momentum * u + step : step; /* a new buffer holds anything, even NaN */
    p -= lr * u;
  }
};

template <class T>
static __global__ void __launch_bounds__(PG_BLOCK) sgd_kernel(const member<T> *table, int32_t members, descent<T> d) {
  enum { N = pg_pack<T>::N };
  piece<T> w = piece_of(table, members, (int64_t)blockIdx.x);
  for (int64_t i = threadIdx.x * N; i < w.packed; i += PG_BLOCK * N) {
    pg_pack<T> p = pg_load(w.t[0] + i), g = pg_load(w.t[1] + i), u = d.momentum ? pg_load(w.t[2] + i) : g;
#pragma unroll
    for (int k = 0; k < N; k++) d.update(p.v[k], g.v[k], u.v[k]);
    pg_store(w.t[0] + i, p), pg_store(w.t[2] + i, u);
  }
  for (int64_t i = w.packed + threadIdx.x; i < w.n; i += PG_BLOCK) d.update(w.t[0][i], w.t[1][i], w.t[2][i]);
}

template <class T> static int sgd(pg_call *c) {
  descent<T> d = {(T)c->p[0].num, c->p[3].ints[0] ? (T)0 : (T)c->p[1].num, (T)c->p[2].num};
  table<T> list(c, 3);
  if (list.status) return list.status;
  if (list.chunks)
    PG_LAUNCH(c, sgd_kernel<T>, (unsigned)list.chunks, PG_BLOCK, list.memory.template at<const member<T>>(),
              list.members, d);
  return PG_OK;
}

/* ---- clipping ------------------------------------------------------------------------------------------------- */

/* A block sums the squares of a chunk, one block the chunks; the scale that follows is known to the device alone. */

/* In double, as on the host: the square of a float overflows from 2e19 on. */
template <class T>
static __global__ void __launch_bounds__(PG_BLOCK)
    squares_kernel(const member<T> *table, int32_t members, double *part) {
  enum { N = pg_pack<T>::N };
  piece<T> w = piece_of(table, members, (int64_t)blockIdx.x);
  double sum = 0;
  for (int64_t i = threadIdx.x * N; i < w.packed; i += PG_BLOCK * N) {
    pg_pack<T> g = pg_load(w.t[0] + i);
#pragma unroll
    for (int k = 0; k < N; k++) sum += (double)g.v[k] * (double)g.v[k];
  }
  for (int64_t i = w.packed + threadIdx.x; i < w.n; i += PG_BLOCK) sum += (double)w.t[0][i] * (double)w.t[0][i];
  sum = pg_block_sum(sum);
  if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

/* scale: 1 where nothing is to be clipped, which a norm that is not finite asks for too. */
template <class T>
static __global__ void norm_kernel(int64_t parts, const double *part, double most, T *norm, double *scale) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < parts; i += PG_BLOCK) sum += part[i];
  sum = pg_block_sum(sum);
  if (threadIdx.x) return;
  double root = sqrt(sum), by = most / (root + 1e-6);
  *norm = (T)root;
  *scale = isfinite(root) && by < 1 ? by : 1;
}

template <class T>
static __global__ void __launch_bounds__(PG_BLOCK)
    scale_kernel(const member<T> *table, int32_t members, const double *scale) {
  enum { N = pg_pack<T>::N };
  if (*scale == 1) return;
  T by = (T)*scale;
  piece<T> w = piece_of(table, members, (int64_t)blockIdx.x);
  for (int64_t i = threadIdx.x * N; i < w.packed; i += PG_BLOCK * N) {
    pg_pack<T> g = pg_load(w.t[0] + i);
#pragma unroll
    for (int k = 0; k < N; k++) g.v[k] *= by;
    pg_store(w.t[0] + i, g);
  }
  for (int64_t i = w.packed + threadIdx.x; i < w.n; i += PG_BLOCK) w.t[0][i] *= by;
}

template <class T> static int clip_grad_norm(pg_call *c) {
  table<T> list(c, 1);
  if (list.status) return list.status;
  pg_scratch sums(sizeof(double) * (size_t)(1 + list.chunks)); /* the scale, then the chunks' sums */
  if (sums.status) return sums.status;
  double *scale = sums.at<double>(), *part = scale + 1;
  const member<T> *members = list.memory.template at<const member<T>>();
  if (list.chunks) PG_LAUNCH(c, squares_kernel<T>, (unsigned)list.chunks, PG_BLOCK, members, list.members, part);
  PG_LAUNCH(c, norm_kernel<T>, 1, PG_BLOCK, list.chunks, (const double *)part, c->p[0].num, PG_AT(T, c->out[0]), scale);
  if (list.chunks)
    PG_LAUNCH(c, scale_kernel<T>, (unsigned)list.chunks, PG_BLOCK, members, list.members, (const double *)scale);
  return PG_OK;
}

PG_CUDA_OP(adamw_, {adamw<float>, adamw<double>})
PG_CUDA_OP(sgd_, {sgd<float>, sgd<double>})
PG_CUDA_OP(clip_grad_norm_, {clip_grad_norm<float>, clip_grad_norm<double>})
