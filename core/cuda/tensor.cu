/* tensor.cu - what tensor.c, rng.c and broadcast.c do on the host, on the device: moving values between layouts and
 * dtypes, filling, adding, counting what is not finite, drawing random numbers, and undoing broadcasting. */
#include "cuda.h"

/* ---- strides ------------------------------------------------------------------------------------------------------------ */

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

/* ---- assign --------------------------------------------------------------------------------------------------------------- */

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

template <class To, class From>
static __global__ void assign_kernel(int64_t n, To *dst, pg_strided to, const From *src, pg_strided from) {
  int64_t i = pg_thread();
  if (i < n) dst[pg_place(to, i)] = converted<To, From>(src[pg_place(from, i)]);
}

template <class To, class From> static int assign_as(pg_tensor *dst, const pg_tensor *src) {
  int64_t n = pg_numel(dst);
  if (!n) return PG_OK;
  PG_LAUNCH(NULL, (assign_kernel<To, From>), pg_blocks(n), PG_BLOCK, n, PG_AT(To, dst),
            pg_strided_as(dst, dst->ndim, dst->shape), PG_AT(const From, src),
            pg_strided_as(src, dst->ndim, dst->shape));
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

/* ---- fill ------------------------------------------------------------------------------------------------------------------ */

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

/* ---- add --------------------------------------------------------------------------------------------------------------------- */

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

/* ---- count what is not finite ------------------------------------------------------------------------------------------------- */

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
    PG_LAUNCH(NULL, nonfinite_kernel<float>, blocks, PG_BLOCK, n, PG_AT(const float, t), count.at<unsigned long long>());
  else
    PG_LAUNCH(NULL, nonfinite_kernel<double>, blocks, PG_BLOCK, n, PG_AT(const double, t),
              count.at<unsigned long long>());
  return pg_device_get(PG_CUDA)->to_host(out, count.at<char>(), 8);
}

/* ---- random numbers ------------------------------------------------------------------------------------------------------------- */

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

/* ---- undoing broadcasting: small = wide summed over what was stretched, in double and in the order of positions ------------ */

/* A block sums 32 neighbouring results; its 8 rows of threads share the stretched positions, and a tree joins them. */
template <class T>
static __global__ void sum_to_kernel(int64_t kept, int64_t folded, const T *wide, pg_strided at, pg_strided over, T *small) {
  PG_SHARED(double, part, [8][33]);
  int x = threadIdx.x % 32, y = threadIdx.x / 32;
  int64_t out = (int64_t)blockIdx.x * 32 + x;
  double sum = 0;
  if (out < kept) {
    const T *first = wide + pg_place(at, out);
    for (int64_t s = y; s < folded; s += 8) sum += (double)first[pg_place(over, s)];
  }
  part[y][x] = sum;
  for (int half = 4; half > 0; half /= 2) {
    __syncthreads();
    if (y < half) part[y][x] += part[y + half][x];
  }
  if (y == 0 && out < kept) small[out] = (T)part[0][x];
}

/* The same where few results are left: a block each. */
template <class T>
static __global__ void sum_to_few_kernel(int64_t folded, const T *wide, pg_strided at, pg_strided over, T *small) {
  const T *first = wide + pg_place(at, blockIdx.x);
  double sum = 0;
  for (int64_t s = threadIdx.x; s < folded; s += blockDim.x) sum += (double)first[pg_place(over, s)];
  sum = pg_block_sum(sum);
  if (threadIdx.x == 0) small[blockIdx.x] = (T)sum;
}

template <class T> static int sum_to_as(const pg_tensor *wide, pg_tensor *small) {
  pg_strided kept = {}, folded = {};
  int64_t n_kept = 1, n_folded = 1, step = pg_numel(wide);
  for (int32_t i = 0; i < wide->ndim; i++) {
    int32_t own = i - (wide->ndim - small->ndim);
    int64_t n = wide->shape[i];
    bool stays = own >= 0 && small->shape[own] != 1;
    step /= n;
    if (n == 1) continue;
    pg_strided *s = stays ? &kept : &folded;
    (stays ? n_kept : n_folded) *= n;
    if (s->ndim && s->stride[s->ndim - 1] == step * n)
      s->shape[s->ndim - 1] *= n, s->stride[s->ndim - 1] = step;
    else
      s->shape[s->ndim] = n, s->stride[s->ndim] = step, s->ndim++;
  }
  if (n_kept < 256)
    PG_LAUNCH(NULL, sum_to_few_kernel<T>, (unsigned)n_kept, PG_BLOCK, n_folded, PG_AT(const T, wide), kept, folded,
              PG_AT(T, small));
  else
    PG_LAUNCH(NULL, sum_to_kernel<T>, pg_blocks(n_kept, 32), PG_BLOCK, n_kept, n_folded, PG_AT(const T, wide), kept,
              folded, PG_AT(T, small));
  return PG_OK;
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
