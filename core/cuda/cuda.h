/* cuda.h - what every kernel file core/ops/NAME.cu includes.
 *
 * A kernel file is the sibling of NAME.c: it has the same functions, with the same signatures (a pg_call in, a status
 * out), and hands them over with one PG_CUDA_OP line an op. Shapes were inferred and outputs allocated before by the
 * descriptor in NAME.c; nothing of that is repeated here.
 *
 * The same source is compiled twice: by nvcc for the GPU, and by the host's C++ compiler against tests/simt/, a small
 * simulated device. What the two spell differently is a macro here:
 *
 *     PG_LAUNCH(c, kernel<T>, blocks, threads, arguments...);           on the plug-in's stream; returns on failure
 *     PG_LAUNCH_SHARED(c, kernel<T>, blocks, threads, bytes, arguments...);      with dynamic shared memory
 *     PG_SHARED(float, tile, [32][33]);                                 a static array in shared memory
 *     PG_SHARED_DYNAMIC(float, buffer);                                 the launch's dynamic shared memory
 *
 * Rules that the simulated device enforces: every access inside its array; the same barrier for every thread of a
 * block; shuffle masks that name the lanes that are there; only device pointers as kernel arguments; no host code that
 * looks at device memory; no output left unwritten. Rules that only the reader enforces: no float atomics, because
 * results must be the same bits in every run; sums in a fixed order; neighbouring threads at neighbouring addresses. */
#ifndef PG_CUDA_H
#define PG_CUDA_H
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" { /* the core is C */
#include "../op.h"
}

/* ---- the two spellings ------------------------------------------------------------------------------------------ */

#ifdef PG_SIMT
#define PG_LAUNCH_SHARED(c, kernel, blocks, threads, bytes, ...)                                                       \
  do {                                                                                                                 \
    simt::launch(#kernel, dim3(blocks), dim3(threads), bytes, pg_cuda_stream(), kernel, __VA_ARGS__);                  \
    if (int status_ = pg_cuda_launched(c, #kernel)) return status_;                                                    \
  } while (0)
#define PG_SHARED(type, name, dims)                                                                                    \
  typedef type name##_type dims;                                                                                       \
  static char name##_key;                                                                                              \
  name##_type &name = *(name##_type *)simt::shared_array(&name##_key, sizeof(name##_type), #name)
#define PG_SHARED_DYNAMIC(type, name) type *name = (type *)simt::shared_dynamic()
#else
#define PG_LAUNCH_SHARED(c, kernel, blocks, threads, bytes, ...)                                                       \
  do {                                                                                                                 \
    if ((bytes) > 48 * 1024) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes));  \
    kernel<<<blocks, threads, bytes, pg_cuda_stream()>>>(__VA_ARGS__);                                                 \
    if (int status_ = pg_cuda_launched(c, #kernel)) return status_;                                                    \
  } while (0)
#define PG_SHARED(type, name, dims) __shared__ type name dims
#define PG_SHARED_DYNAMIC(type, name)                                                                                  \
  extern __shared__ __align__(16) unsigned char pg_dynamic_shared[];                                                   \
  type *name = (type *)pg_dynamic_shared
#endif
#define PG_LAUNCH(c, kernel, blocks, threads, ...) PG_LAUNCH_SHARED(c, kernel, blocks, threads, 0, __VA_ARGS__)
/* A template with several arguments holds commas: write PG_LAUNCH(c, (kernel<T, 4>), ...). */

/* ---- the table: which kernels an op has on the device ----------------------------------------------------------- */

/* By dtype in the order float32, float64, int32, uint8; what is left out is not supported. */
typedef struct pg_cuda_op {
  pg_kernel forward[PG_DTYPES], backward[PG_DTYPES];
} pg_cuda_op;

/* PG_CUDA_OP(relu, {relu_forward<float>, relu_forward<double>}, {relu_backward<float>, relu_backward<double>}) */
#define PG_CUDA_OP(name, ...)                                                                                          \
  extern "C" {                                                                                                         \
  extern const pg_cuda_op pg_kernels_##name;                                                                           \
  const pg_cuda_op pg_kernels_##name = {__VA_ARGS__};                                                                  \
  }

/* ---- runtime.cu ------------------------------------------------------------------------------------------------- */

cudaStream_t pg_cuda_stream(void);                        /* the one stream on which everything happens in order */
int pg_cuda_launched(const pg_call *c, const char *what); /* status of the launch just made, with op and shapes */
int pg_cuda_status(cudaError_t error, const char *what);  /* PG_OK, or PG_ERR_DEVICE with the runtime's own words */

/* Device memory for the length of a C++ scope, from the caching allocator. Work on the stream that still uses it when
 * the scope ends is safe: whoever gets the block next is behind it on the same stream. */
struct pg_scratch {
  pg_storage *storage = NULL;
  int status;
  explicit pg_scratch(size_t bytes) { status = pg_storage_new(PG_CUDA, bytes, &storage); }
  ~pg_scratch() { pg_storage_release(storage); }
  template <class T> T *at(size_t byte = 0) const { return (T *)((char *)storage->data + byte); }
  pg_scratch(const pg_scratch &) = delete;
  pg_scratch &operator=(const pg_scratch &) = delete;
};

/* A reference to a tensor for the length of a C++ scope. */
struct pg_held {
  pg_tensor *t = NULL;
  pg_held() {}
  ~pg_held() { pg_release(t); }
  pg_held(const pg_held &) = delete;
  pg_held &operator=(const pg_held &) = delete;
};

/* C (m, n) = alpha op(A) (m, k) op(B) (k, n) + beta C, row-major as pg_gemm_f32. The batched form strides from matrix
 * to matrix by so many elements; a stride of 0 uses one matrix for all. T is float or double. */
template <class T>
int pg_cuda_gemm(int ta, int tb, int64_t m, int64_t n, int64_t k, T alpha, const T *a, int64_t lda, const T *b,
                 int64_t ldb, T beta, T *c, int64_t ldc);
template <class T>
int pg_cuda_gemm_batched(int ta, int tb, int64_t m, int64_t n, int64_t k, T alpha, const T *a, int64_t lda,
                         int64_t stride_a, const T *b, int64_t ldb, int64_t stride_b, T beta, T *c, int64_t ldc,
                         int64_t stride_c, int64_t batch);
/* The same with alpha and beta in device memory, factors[0] and [1]: where another kernel makes them. */
template <class T>
int pg_cuda_gemm_scaled(int ta, int tb, int64_t m, int64_t n, int64_t k, const T *factors, const T *a, int64_t lda,
                        const T *b, int64_t ldb, T *c, int64_t ldc);
/* pg_cuda_gemm of dense operands that are first rounded to bfloat16, with alpha 1. The call is named in errors. */
int pg_cuda_gemm_bf16(const pg_call *call, int ta, int tb, int64_t m, int64_t n, int64_t k, const float *a,
                      const float *b, float beta, float *c);

/* A position or label outside its range is found by the kernel that reads it, and becomes an error of the next call
 * that waits for the device. `pg_fault_new` remembers the call's name and shapes, `what` is the argument's name. */
typedef struct pg_fault {
  int32_t *record; /* device memory: {set, ticket, place, value, limit}; the first fault is kept */
  int32_t ticket;
} pg_fault;
pg_fault pg_fault_new(const pg_call *c, const char *what);

/* Whether value lies in 0..limit-1; records the fault otherwise. place: which element of the index tensor it is. */
static __device__ __forceinline__ bool pg_in_range(pg_fault f, int64_t place, int64_t value, int64_t limit) {
  if (value >= 0 && value < limit) return true;
  if (atomicCAS(f.record, 0, 1) == 0) {
    f.record[1] = f.ticket, f.record[2] = (int32_t)place, f.record[3] = (int32_t)value, f.record[4] = (int32_t)limit;
  }
  return false;
}

/* Records a value that the op does not take, where no range of positions says so; pg_fault_new's `what` says what does.
 */
static __device__ __forceinline__ void pg_refuse(pg_fault f, int64_t place, int64_t value) {
  pg_in_range(f, place, value, -1);
}

/* tensor.cu: moves values on the device for the core, and for kernels that need one layout made from another. */
int pg_cuda_assign(pg_tensor *dst, const pg_tensor *src);    /* one shape, any strides, any dtypes */
int pg_cuda_sum_to(const pg_tensor *wide, pg_tensor *small); /* pg_sum_to's sibling: undoes broadcasting */
/* The gradients `to` of two broadcast operands: `write` fills tensors of the output's shape (NULL: not wanted), which
 * are the gradients themselves where nothing was stretched, and are summed to them where something was. */
int pg_cuda_grads(pg_call *c, pg_tensor *const to[2], int (*write)(pg_call *c, pg_tensor *da, pg_tensor *db));

/* rows.cu, for positions along a dimension that a tensor holds; each is checked, and a wrong one is recorded in
 * `fault`. Sums take their terms in the order of the index. T is float or double.
 *
 *     pick_rows    y[o, i, :] = x[o, index[i], :]          x (outer, n, row), index (count); a row so many bytes
 *     add_rows     to[o, index[i], :] += from[o, i, :]     to (outer, n, width), from (outer, count, width)
 *     add_at       to[o, index[o, i, k], k] += from[o, i, k]     to (outer, n, inner), index and from (outer, m, inner)
 */
int pg_cuda_pick_rows(const pg_call *c, pg_fault fault, int64_t outer, int64_t n, int64_t count, int64_t bytes,
                      const int32_t *index, const void *x, void *y);
template <class T>
int pg_cuda_add_rows(const pg_call *c, pg_fault fault, int64_t outer, int64_t n, int64_t count, int64_t width,
                     const int32_t *index, const T *from, T *to);
template <class T>
int pg_cuda_add_at(const pg_call *c, pg_fault fault, int64_t outer, int64_t n, int64_t m, int64_t inner,
                   const int32_t *index, const T *from, T *to);

/* ---- launch shapes ---------------------------------------------------------------------------------------------- */

enum { PG_BLOCK = 256, PG_WARP = 32, PG_GRID_MOST = 2147483647 };
#define PG_FULL_MASK 0xffffffffu

/* Blocks for n threads of work, at least one; n up to 2^31 * threads. */
static inline unsigned pg_blocks(int64_t n, int64_t threads = PG_BLOCK) {
  int64_t blocks = (n + threads - 1) / threads;
  return (unsigned)PG_MAX(1, PG_MIN(blocks, (int64_t)PG_GRID_MOST));
}

static __device__ __forceinline__ int64_t pg_thread(void) { return (int64_t)blockIdx.x * blockDim.x + threadIdx.x; }

/* ---- 16 bytes at a time ----------------------------------------------------------------------------------------- */

/* As many elements as one 16-byte access moves, or W of them where a kernel reads narrower elements beside wider ones.
 */
template <class T, int W = 16 / (int)sizeof(T)> struct alignas(W * sizeof(T)) pg_pack {
  enum { N = W };
  T v[W];
};

/* Whether rows of n elements that begin at these addresses can be read and written in packs. */
template <class T>
static inline bool pg_packable(int64_t n, const void *a, const void *b = NULL, const void *c = NULL,
                               const void *d = NULL) {
  return n % pg_pack<T>::N == 0 && (((uintptr_t)a | (uintptr_t)b | (uintptr_t)c | (uintptr_t)d) & 15) == 0;
}

template <class T> static __device__ __forceinline__ pg_pack<T> pg_load(const T *p) { return *(const pg_pack<T> *)p; }
template <class T> static __device__ __forceinline__ void pg_store(T *p, const pg_pack<T> &x) { *(pg_pack<T> *)p = x; }

/* ---- sums and maxima over a warp and a block: the order depends on the shape alone ------------------------------ */

struct pg_plus {
  template <class T> __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};
struct pg_larger { /* NaN wins, as in the CPU's reductions */
  template <class T> __device__ __forceinline__ T operator()(T a, T b) const { return a > b || a != a ? a : b; }
};

/* Every lane receives the result; all 32 lanes must call it. */
template <class T, class Op> static __device__ __forceinline__ T pg_warp_all(T x, Op op) {
  for (int offset = PG_WARP / 2; offset > 0; offset /= 2) x = op(x, __shfl_xor_sync(PG_FULL_MASK, x, offset));
  return x;
}
template <class T> static __device__ __forceinline__ T pg_warp_sum(T x) { return pg_warp_all(x, pg_plus()); }

/* Every thread of the block receives the result; blockDim.x a multiple of 32, at most 1024, blockDim.y = z = 1. */
template <class T, class Op> static __device__ __forceinline__ T pg_block_all(T x, T neutral, Op op) {
  PG_SHARED(T, partial, [PG_WARP]);
  int lane = threadIdx.x % PG_WARP, warp = threadIdx.x / PG_WARP;
  x = pg_warp_all(x, op);
  __syncthreads(); /* the array may still be read by the call before */
  if (lane == 0) partial[warp] = x;
  __syncthreads();
  x = lane < (int)(blockDim.x / PG_WARP) ? partial[lane] : neutral;
  return pg_warp_all(x, op);
}
template <class T> static __device__ __forceinline__ T pg_block_sum(T x) { return pg_block_all(x, T(0), pg_plus()); }

/* ---- functions by type ------------------------------------------------------------------------------------------ */

static __device__ __forceinline__ float pg_exp(float x) { return expf(x); }
static __device__ __forceinline__ double pg_exp(double x) { return exp(x); }
static __device__ __forceinline__ float pg_log(float x) { return logf(x); }
static __device__ __forceinline__ double pg_log(double x) { return log(x); }
static __device__ __forceinline__ float pg_log1p(float x) { return log1pf(x); }
static __device__ __forceinline__ double pg_log1p(double x) { return log1p(x); }
static __device__ __forceinline__ float pg_sqrt(float x) { return sqrtf(x); }
static __device__ __forceinline__ double pg_sqrt(double x) { return sqrt(x); }
static __device__ __forceinline__ float pg_tanh(float x) { return tanhf(x); }
static __device__ __forceinline__ double pg_tanh(double x) { return tanh(x); }
static __device__ __forceinline__ float pg_erf(float x) { return erff(x); }
static __device__ __forceinline__ double pg_erf(double x) { return erf(x); }
static __device__ __forceinline__ float pg_erfc(float x) { return erfcf(x); }
static __device__ __forceinline__ double pg_erfc(double x) { return erfc(x); }
static __device__ __forceinline__ float pg_pow(float x, float y) { return powf(x, y); }
static __device__ __forceinline__ double pg_pow(double x, double y) { return pow(x, y); }
static __device__ __forceinline__ float pg_abs(float x) { return fabsf(x); }
static __device__ __forceinline__ double pg_abs(double x) { return fabs(x); }
template <class T> static __device__ __forceinline__ T pg_sigmoid(T x) { /* no overflow on either side */
  T e = pg_exp(-pg_abs(x));
  return (x >= 0 ? T(1) : e) / (1 + e);
}
template <class T> static __device__ __forceinline__ T pg_softplus(T x) { /* log(1 + e^x) */
  return (x > 0 ? x : x != x ? x : T(0)) + pg_log1p(pg_exp(-pg_abs(x)));
}

/* ---- a strided tensor as a kernel sees it ----------------------------------------------------------------------- */

typedef struct pg_strided { /* passed by value; dimensions of size 1 dropped, those that run on merged */
  int32_t ndim;
  int64_t shape[PG_MAX_DIMS], stride[PG_MAX_DIMS];
} pg_strided;

/* Where row-major element i of the shape stands, in elements from the tensor's first. */
static __device__ __forceinline__ int64_t pg_place(const pg_strided &s, int64_t i) {
  int64_t at = 0;
  for (int32_t d = s.ndim - 1; d > 0; d--) at += i % s.shape[d] * s.stride[d], i /= s.shape[d];
  return at + i * s.stride[0]; /* no division where one dimension is left; without any, i is 0 */
}

/* t as one operand of an output of `shape`, to which it broadcasts (stride 0 where it is repeated). */
pg_strided pg_strided_as(const pg_tensor *t, int32_t ndim, const int64_t *shape);

/* ---- operands of different shapes, W elements a thread (pg_walk_over of op.h, passed to the kernel by value) ---- */

/* Whether operand k, which begins at `first`, can be taken W elements at a time along with the output. */
template <int W, class T> static inline bool pg_walk_packable(const pg_walk &w, int k, const T *first) {
  bool whole = !w.ndim || w.length % W == 0; /* a pack lies within one run */
  if (w.step[k] != 1) return whole;          /* and is gathered element by element, or repeats one */
  for (int32_t d = 0; d < w.ndim; d++) whole = whole && w.stride[k][d] % W == 0;
  return whole && (uintptr_t)first % (W * sizeof(T)) == 0;
}

/* Where the operands have what belongs to element i of the output, in elements from their first. */
template <int K> static __device__ __forceinline__ void pg_walk_places(const pg_walk &w, int64_t i, int64_t (&at)[K]) {
  int64_t run = w.ndim ? i / w.length : 0, column = i - run * w.length;
  if (!w.ndim) column = i; /* one run; its length is the host's share of it */
#pragma unroll
  for (int k = 0; k < K; k++) at[k] = column * w.step[k];
  for (int32_t d = w.ndim - 1; d >= 0; d--) {
    int64_t rest = d ? run / w.shape[d] : 0, digit = run - rest * w.shape[d];
#pragma unroll
    for (int k = 0; k < K; k++) at[k] += digit * w.stride[k][d];
    run = rest;
  }
}

/* W elements from p on, `step` apart; of the last pack of all only `left` are there, and the rest repeats the first. */
template <int W, class T>
static __device__ __forceinline__ pg_pack<T, W> pg_take(const T *p, int64_t step, int64_t left) {
  if (step == 1 && left >= W) return *(const pg_pack<T, W> *)p;
  pg_pack<T, W> x;
  T first = *p;
#pragma unroll
  for (int k = 0; k < W; k++) x.v[k] = k > 0 && k < left && step ? p[k * step] : first;
  return x;
}

template <int W, class T> static __device__ __forceinline__ void pg_put(T *p, const pg_pack<T, W> &x, int64_t left) {
  if (left >= W) {
    *(pg_pack<T, W> *)p = x;
  } else {
#pragma unroll
    for (int k = 0; k < W; k++)
      if (k < left) p[k] = x.v[k];
  }
}

/* ---- the generator: Philox 4x32-10, the CPU's stream (rng.c) ---------------------------------------------------- */

/* Numbers 4 block .. 4 block + 3 at the price of one. */
static __device__ __forceinline__ void pg_cuda_four_bits(uint64_t seed, uint64_t block, uint32_t bits[4]) {
  uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(b >> 32) ^ c1 ^ k0, c2 = (uint32_t)(a >> 32) ^ c3 ^ k1, c1 = (uint32_t)b, c3 = (uint32_t)a;
  }
  bits[0] = c0, bits[1] = c1, bits[2] = c2, bits[3] = c3;
}
static __device__ __forceinline__ uint32_t pg_cuda_bits(uint64_t seed, uint64_t index) {
  uint32_t bits[4], which = index & 3;
  pg_cuda_four_bits(seed, index >> 2, bits);
  return which == 0 ? bits[0] : which == 1 ? bits[1] : which == 2 ? bits[2] : bits[3];
}
static __device__ __forceinline__ float pg_cuda_uniform(uint64_t seed, uint64_t index) {
  return (pg_cuda_bits(seed, index) >> 8) * 0x1p-24f;
}

#endif
