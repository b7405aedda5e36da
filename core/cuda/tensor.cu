/* tensor.cu - what tensor.c, rng.c and broadcast.c do on the host, on the device: moving values between layouts and
 * dtypes, filling, adding, counting what is not finite, drawing random numbers, and undoing broadcasting. */
#include "cuda.h"

/* ---- strides ----------------------------------------------------------------------------------------------------- */

pg_strided pg_strided_as(const pg_tensor *t, int32_t ndim, const int64_t *shape) {
  pg_strided s = {};
  for (int32_t i = 0; i < ndim; i++) {
    int32_t own = i - (ndim - t->ndim);
    int64_t stride = own < 0 || t->shape[own] == 1 ? 0 : t->stride[own];
    if (shape[i] == 1) continue;
    if (s.ndim && s.stride[s.ndim - 1] == stride * shape[i]) {
      s.shape[s.ndim - 1] *= shape[i], s.stride[s.ndim - 1] = stride;
    } else {
      s.shape[s.ndim] = shape[i], s.stride[s.ndim] = stride, s.ndim++;
    }
  }
  return s;
}

/* ---- assign ------------------------------------------------------------------------------------------------------ */

/* As tensor.c converts: out-of-range values saturate and NaN becomes 0. */
template <class To, class From> static __device__ __forceinline__ To converted(From v) { return (To)v; }
#define FROM_REAL(From)                                                                                                \
  template <> __device__ __forceinline__ int32_t converted<int32_t, From>(From v) {                                    \
    return v != v ? 0 : v <= (From)-2147483648.0 ? INT32_MIN : v >= (From)2147483648.0 ? INT32_MAX : (int32_t)v;       \
  }                                                                                                                    \
  template <> __device__ __forceinline__ uint8_t converted<uint8_t, From>(From v) {                                    \
    return v != v || v <= 0 ? 0 : v >= 255 ? 255 : (uint8_t)v;                                                         \
  }
FROM_REAL(float)
FROM_REAL(double)
template <> __device__ __forceinline__ uint8_t converted<uint8_t, int32_t>(int32_t v) {
  return v < 0 ? 0 : v > 255 ? 255 : (uint8_t)v;
}

/* W neighbours a thread where both run on in memory (cat, heads taken apart, casts), else one. */
template <class To, class From, int W>
static __global__ void assign_kernel(int64_t n, pg_walk w, To *dst, const From *src) {
  int64_t i = pg_thread() * W, at[2];
  if (i >= n) return;
  pg_walk_places(w, i, at);
  pg_pack<From, W> x = pg_take<W>(src + at[1], w.step[1], n - i);
  pg_pack<To, W> y;
#pragma unroll
  for (int k = 0; k < W; k++) y.v[k] = converted<To, From>(x.v[k]);
  pg_put(dst + at[0], y, n - i);
}

enum { TILE = 32 };

/* dst runs along p and src along q: a block reads a tile along q and writes it along p. */
typedef struct crossing {
  int64_t p, q, dst_q, src_p, tiles_p, tiles_q; /* sizes; dst's stride along q, src's along p */
  pg_walk rest;                                 /* the other dimensions */
} crossing;

template <class To, class From> static __global__ void transpose_kernel(crossing k, To *dst, const From *src) {
  PG_SHARED(To, tile, [TILE][TILE + 1]);
  int x = threadIdx.x % TILE, y = threadIdx.x / TILE;
  int64_t block = blockIdx.x, up = block / k.tiles_p, p0 = (block - up * k.tiles_p) * TILE, at[2];
  int64_t q0 = up % k.tiles_q * TILE;
  pg_walk_places(k.rest, up / k.tiles_q, at);
  for (int j = y; j < TILE; j += PG_BLOCK / TILE)
    if (p0 + j < k.p && q0 + x < k.q) tile[j][x] = converted<To, From>(src[at[1] + (p0 + j) * k.src_p + q0 + x]);
  __syncthreads();
  for (int j = y; j < TILE; j += PG_BLOCK / TILE)
    if (q0 + j < k.q && p0 + x < k.p) dst[at[0] + (q0 + j) * k.dst_q + p0 + x] = tile[x][j];
}

/* Whether w's operands run along different dimensions, both long enough for tiles to pay. */
static bool crosses(const pg_walk &w, crossing *k) {
  *k = {};
  for (int32_t d = 0; d < w.ndim; d++) {
    if (w.step[0] == 1 && w.stride[1][d] == 1)
      k->p = w.length, k->src_p = w.step[1], k->q = w.shape[d], k->dst_q = w.stride[0][d];
    else if (w.step[1] == 1 && w.stride[0][d] == 1)
      k->p = w.shape[d], k->src_p = w.stride[1][d], k->q = w.length, k->dst_q = w.step[0];
    else
      continue;
    k->tiles_p = (k->p + TILE - 1) / TILE, k->tiles_q = (k->q + TILE - 1) / TILE;
    k->rest = w, k->rest.ndim = 0, k->rest.length = 1;
    for (int32_t i = 0; i < w.ndim; i++) {
      if (i == d) continue;
      k->rest.shape[k->rest.ndim] = w.shape[i];
      for (int o = 0; o < 2; o++) k->rest.stride[o][k->rest.ndim] = w.stride[o][i];
      k->rest.ndim++;
    }
    return k->p >= TILE / 4 && k->q >= TILE / 4;
  }
  return false;
}

template <class To, class From> static int assign_as(pg_tensor *dst, const pg_tensor *src) {
  enum { W = 16 / PG_MAX(sizeof(To), sizeof(From)) };
  int64_t n = pg_numel(dst);
  if (!n) return PG_OK;
  const pg_tensor *both[2] = {dst, src};
  pg_walk w = pg_walk_over(dst, 2, both);
  To *to = PG_AT(To, dst);
  const From *from = PG_AT(const From, src);
  crossing k;
  if (w.ndim && crosses(w, &k))
    PG_LAUNCH(NULL, (transpose_kernel<To, From>), pg_blocks(n / (k.p * k.q) * k.tiles_p * k.tiles_q, 1), PG_BLOCK, k,
              to, from);
  else if (w.step[0] == 1 && pg_walk_packable<W>(w, 0, to) && pg_walk_packable<W>(w, 1, from))
    PG_LAUNCH(NULL, (assign_kernel<To, From, W>), pg_blocks(n, PG_BLOCK * W), PG_BLOCK, n, w, to, from);
  else
    PG_LAUNCH(NULL, (assign_kernel<To, From, 1>), pg_blocks(n), PG_BLOCK, n, w, to, from);
  return PG_OK;
}

template <class To> static int assign_to(pg_tensor *dst, const pg_tensor *src) {
  switch (src->dtype) {
  case PG_FLOAT32: return assign_as<To, float>(dst, src);
  case PG_FLOAT64: return assign_as<To, double>(dst, src);
  case PG_INT32: return assign_as<To, int32_t>(dst, src);
  default: return assign_as<To, uint8_t>(dst, src);
  }
}

int pg_cuda_assign(pg_tensor *dst, const pg_tensor *src) {
  switch (dst->dtype) {
  case PG_FLOAT32: return assign_to<float>(dst, src);
  case PG_FLOAT64: return assign_to<double>(dst, src);
  case PG_INT32: return assign_to<int32_t>(dst, src);
  default: return assign_to<uint8_t>(dst, src);
  }
}

/* ---- fill -------------------------------------------------------------------------------------------------------- */

template <class T> static __global__ void fill_kernel(int64_t n, T *dst, pg_strided to, double value) {
  int64_t i = pg_thread();
  if (i < n) dst[pg_place(to, i)] = converted<T, double>(value);
}

template <class T> static int fill_as(pg_tensor *t, double value) {
  int64_t n = pg_numel(t);
  PG_LAUNCH(NULL, fill_kernel<T>, pg_blocks(n), PG_BLOCK, n, PG_AT(T, t), pg_strided_as(t, t->ndim, t->shape), value);
  return PG_OK;
}

int pg_cuda_fill(pg_tensor *t, double value) {
  switch (t->dtype) {
  case PG_FLOAT32: return fill_as<float>(t, value);
  case PG_FLOAT64: return fill_as<double>(t, value);
  case PG_INT32: return fill_as<int32_t>(t, value);
  default: return fill_as<uint8_t>(t, value);
  }
}

/* ---- add --------------------------------------------------------------------------------------------------------- */

template <class T> static __global__ void add_kernel(int64_t packs, T *sum, const T *x) {
  int64_t i = pg_thread() * pg_pack<T>::N;
  if (pg_thread() >= packs) return;
  pg_pack<T> a = pg_load(sum + i), b = pg_load(x + i);
#pragma unroll
  for (int k = 0; k < pg_pack<T>::N; k++) a.v[k] += b.v[k];
  pg_store(sum + i, a);
}

template <class T> static __global__ void add_rest_kernel(int64_t from, int64_t n, T *sum, const T *x) {
  int64_t i = from + pg_thread();
  if (i < n) sum[i] += x[i];
}

template <class T> static int add_as(pg_tensor *sum, const pg_tensor *t) {
  int64_t n = pg_numel(sum), packs = pg_packable<T>(0, PG_AT(T, sum), PG_AT(T, t)) ? n / pg_pack<T>::N : 0;
  int64_t from = packs * pg_pack<T>::N;
  if (packs) PG_LAUNCH(NULL, add_kernel<T>, pg_blocks(packs), PG_BLOCK, packs, PG_AT(T, sum), PG_AT(const T, t));
  if (from < n)
    PG_LAUNCH(NULL, add_rest_kernel<T>, pg_blocks(n - from), PG_BLOCK, from, n, PG_AT(T, sum), PG_AT(const T, t));
  return PG_OK;
}

int pg_cuda_add(pg_tensor *sum, const pg_tensor *t) {
  return sum->dtype == PG_FLOAT32 ? add_as<float>(sum, t) : add_as<double>(sum, t);
}

/* ---- count what is not finite ------------------------------------------------------------------------------------ */

template <class T> static __global__ void nonfinite_kernel(int64_t n, const T *x, unsigned long long *count) {
  int bad = 0;
  for (int64_t i = pg_thread(); i < n; i += (int64_t)gridDim.x * blockDim.x) bad += !isfinite(x[i]);
  bad = pg_block_sum(bad);
  if (threadIdx.x == 0 && bad) atomicAdd(count, (unsigned long long)bad); /* whole numbers: any order is the same */
}

int pg_cuda_count_nonfinite(const pg_tensor *t, int64_t *out) {
  int64_t n = pg_numel(t);
  pg_scratch count(sizeof(unsigned long long));
  if (count.status) return count.status;
  unsigned blocks = PG_MIN(pg_blocks(n), 1024u);
  PG_TRY(pg_cuda_status(cudaMemsetAsync(count.at<char>(), 0, 8, pg_cuda_stream()), "is_finite"));
  if (t->dtype == PG_FLOAT32)
    PG_LAUNCH(NULL, nonfinite_kernel<float>, blocks, PG_BLOCK, n, PG_AT(const float, t),
              count.at<unsigned long long>());
  else
    PG_LAUNCH(NULL, nonfinite_kernel<double>, blocks, PG_BLOCK, n, PG_AT(const double, t),
              count.at<unsigned long long>());
  return pg_device_get(PG_CUDA)->to_host(out, count.at<char>(), 8);
}

/* ---- random numbers ---------------------------------------------------------------------------------------------- */

/* Box-Muller as in rng.c, in double precision, so that the values are the host's. */
static __device__ float normal(uint64_t seed, uint64_t index) {
  uint64_t pair = index & ~(uint64_t)1;
  double u = ((pg_cuda_bits(seed, pair) >> 8) + 1) * 0x1p-24, v = (pg_cuda_bits(seed, pair + 1) >> 8) * 0x1p-24;
  double r = sqrt(-2 * log(u)), angle = 6.283185307179586 * v;
  return (float)(r * (index & 1 ? sin(angle) : cos(angle)));
}

template <class T>
static __global__ void random_kernel(int64_t n, T *x, uint64_t seed, uint64_t offset, int32_t is_normal) {
  int64_t i = pg_thread();
  if (i >= n) return;
  uint64_t index = offset + (uint64_t)i;
  x[i] = is_normal ? normal(seed, index) : pg_cuda_uniform(seed, index);
}

int pg_cuda_random(pg_tensor *t, uint64_t seed, uint64_t offset, int32_t is_normal) {
  int64_t n = pg_numel(t);
  if (t->dtype == PG_FLOAT32)
    PG_LAUNCH(NULL, random_kernel<float>, pg_blocks(n), PG_BLOCK, n, PG_AT(float, t), seed, offset, is_normal);
  else
    PG_LAUNCH(NULL, random_kernel<double>, pg_blocks(n), PG_BLOCK, n, PG_AT(double, t), seed, offset, is_normal);
  return PG_OK;
}

/* ---- undoing broadcasting: sums over what was stretched, in double, in an order that the shapes set ------------- */

/* What is left of a wide tensor, and what is summed. Where few results are left, `parts` blocks share the sum of each:
 * a part takes `chunk` stretched positions, and a second pass adds the parts. */
typedef struct fold {
  int64_t kept, folded, chunk;
  pg_strided at, over; /* the kept dimensions, the stretched ones */
} fold;

/* A block sums 32 neighbouring results; its 8 rows of threads share the stretched positions, and a tree joins them. */
template <class From, class To>
static __global__ void sum_columns_kernel(fold f, int64_t blocks, const From *wide, To *small) {
  PG_SHARED(double, sums, [8][33]);
  int x = threadIdx.x % 32, y = threadIdx.x / 32;
  int64_t part = blockIdx.x / blocks, out = (blockIdx.x - part * blocks) * 32 + x;
  int64_t begin = part * f.chunk, end = PG_MIN(begin + f.chunk, f.folded);
  double sum = 0;
  if (out < f.kept) {
    const From *first = wide + pg_place(f.at, out);
    for (int64_t s = begin + y; s < end; s += 8) sum += (double)first[pg_place(f.over, s)];
  }
  sums[y][x] = sum;
  for (int half = 4; half > 0; half /= 2) {
    __syncthreads();
    if (y < half) sums[y][x] += sums[y + half][x];
  }
  if (y == 0 && out < f.kept) small[part * f.kept + out] = (To)sums[0][x];
}

/* A block sums one result: where the stretched positions are neighbours in memory, or hardly any results are left. */
template <class From, class To> static __global__ void sum_row_kernel(fold f, const From *wide, To *small) {
  int64_t part = blockIdx.x / f.kept, out = blockIdx.x - part * f.kept;
  int64_t begin = part * f.chunk, end = PG_MIN(begin + f.chunk, f.folded);
  const From *first = wide + pg_place(f.at, out);
  double sum = 0;
  for (int64_t s = begin + threadIdx.x; s < end; s += blockDim.x) sum += (double)first[pg_place(f.over, s)];
  sum = pg_block_sum(sum);
  if (threadIdx.x == 0) small[part * f.kept + out] = (To)sum;
}

/* One pass: `parts` sums for each result, laid one after another. */
template <class From, class To> static int sum_pass(fold f, bool rows, int64_t parts, const From *wide, To *small) {
  int64_t blocks = (f.kept + 31) / 32;
  f.chunk = (f.folded + parts - 1) / parts;
  unsigned threads = f.chunk < PG_BLOCK ? PG_WARP : PG_BLOCK;
  if (rows)
    PG_LAUNCH(NULL, (sum_row_kernel<From, To>), pg_blocks(f.kept * parts, 1), threads, f, wide, small);
  else
    PG_LAUNCH(NULL, (sum_columns_kernel<From, To>), pg_blocks(blocks * parts, 1), PG_BLOCK, f, blocks, wide, small);
  return PG_OK;
}

template <class T> static int sum_to_as(const pg_tensor *wide, pg_tensor *small) {
  enum {
    ENOUGH = 1024,
    LEAST = 512
  }; /* blocks that fill a GPU; stretched positions that are worth a block of their own */
  fold f = {};
  int64_t step = pg_numel(wide);
  f.kept = f.folded = 1;
  for (int32_t i = 0; i < wide->ndim; i++) {
    int32_t own = i - (wide->ndim - small->ndim);
    int64_t n = wide->shape[i];
    bool stays = own >= 0 && small->shape[own] != 1;
    step /= n;
    if (n == 1) continue;
    pg_strided *s = stays ? &f.at : &f.over;
    (stays ? f.kept : f.folded) *= n;
    if (s->ndim && s->stride[s->ndim - 1] == step * n)
      s->shape[s->ndim - 1] *= n, s->stride[s->ndim - 1] = step;
    else
      s->shape[s->ndim] = n, s->stride[s->ndim] = step, s->ndim++;
  }
  bool runs = f.over.ndim && f.over.stride[f.over.ndim - 1] == 1 && f.over.shape[f.over.ndim - 1] >= 16;
  bool rows = runs || f.kept < 16;
  int64_t blocks = rows ? f.kept : (f.kept + 31) / 32;
  int64_t parts = PG_MAX(1, PG_MIN((ENOUGH + blocks - 1) / blocks, f.folded / LEAST));
  if (parts == 1) return sum_pass(f, rows, 1, PG_AT(const T, wide), PG_AT(T, small));
  pg_scratch sums(sizeof(double) * (size_t)(parts * f.kept));
  if (sums.status) return sums.status;
  PG_TRY(sum_pass(f, rows, parts, PG_AT(const T, wide), sums.at<double>()));
  fold last = {f.kept, parts, 0, {1, {f.kept}, {1}}, {1, {parts}, {f.kept}}};
  return sum_pass(last, f.kept < 16, 1, sums.at<const double>(), PG_AT(T, small));
}

int pg_cuda_sum_to(const pg_tensor *wide, pg_tensor *small) {
  if (!pg_numel(small)) return PG_OK;
  if (!pg_numel(wide)) return pg_fill(small, 0);
  return wide->dtype == PG_FLOAT32 ? sum_to_as<float>(wide, small) : sum_to_as<double>(wide, small);
}

int pg_cuda_grads(pg_call *c, pg_tensor *const to[2], int (*write)(pg_call *c, pg_tensor *da, pg_tensor *db)) {
  pg_tensor *wide[2] = {to[0], to[1]};
  int status = PG_OK;
  for (int side = 0; side < 2; side++)
    if (to[side] && !pg_same_shape(to[side], c->grad_out[0])) {
      wide[side] = NULL;
      if (!status) status = pg_new_like(c->grad_out[0], &wide[side]);
    }
  if (!status) status = write(c, wide[0], wide[1]);
  for (int side = 0; side < 2; side++)
    if (wide[side] && wide[side] != to[side]) {
      if (!status) status = pg_cuda_sum_to(wide[side], to[side]);
      pg_release(wide[side]);
    }
  return status;
}
