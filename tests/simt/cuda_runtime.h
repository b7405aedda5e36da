/* cuda_runtime.h - the words of CUDA C++ for the simulated device: what a kernel file that includes "cuda.h" may use.
 *
 * The host's compiler finds this header in place of NVIDIA's. A kernel is then an ordinary function; simt::launch runs
 * it once for every thread of every block (scheduler.cu), on memory that only kernels may touch (memory.cu), in the
 * order of its stream (runtime.cu). What is not here is not supported; add it when a kernel needs it. */
#ifndef PG_SIMT_CUDA_RUNTIME_H
#define PG_SIMT_CUDA_RUNTIME_H
#define PG_SIMT 1
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline double2 make_double2(double x, double y) { return {x, y}; }

/* ---- the runtime ------------------------------------------------------------------------------------------------------ */

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchFailure = 719
};
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1, cudaEventDefault = 0, cudaEventDisableTiming = 2 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
typedef struct simt_stream *cudaStream_t;
typedef struct simt_event *cudaEvent_t;

struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount;
  size_t totalGlobalMem, sharedMemPerBlock;
};

cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaMalloc(void **out, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocHost(void **out, size_t bytes);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemGetInfo(size_t *available, size_t *total);
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemset2DAsync(void *p, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to);
cudaError_t cudaGetLastError(void);
const char *cudaGetErrorString(cudaError_t error);

/* ---- the simulator behind it ------------------------------------------------------------------------------------------- */

namespace simt {

struct place { /* of the thread that runs: what threadIdx and its kin read */
  dim3 thread, block, block_size, grid_size;
};
extern place here;

/* Puts a launch into the stream's queue; an error is kept for cudaGetLastError. `body` runs once a thread. */
void enqueue_launch(const char *name, const void *kernel, dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                    std::function<void()> body);
/* Faults unless p is device memory (or NULL): a kernel's argument `index`. */
void check_pointer(const char *kernel, int index, const void *p);
/* The same for an argument passed by value: words in it that are host addresses. */
void check_words(const char *kernel, int index, const void *value, size_t bytes);

template <class T> void check_argument(const char *kernel, int index, const T &value) {
  if constexpr (std::is_pointer<T>::value)
    check_pointer(kernel, index, (const void *)value);
  else if constexpr (sizeof(T) >= sizeof(void *) && std::is_class<T>::value)
    check_words(kernel, index, &value, sizeof(T));
}

template <class... P, class... A>
void launch(const char *name, dim3 grid, dim3 block, size_t shared, cudaStream_t stream, void (*kernel)(P...),
            A &&...args) {
  std::tuple<P...> values{static_cast<P>(args)...}; /* converted to the kernel's own types now, as a launch does */
  int index = 0;
  std::apply([&](const auto &...value) { (check_argument(name, ++index, value), ...); }, values);
  enqueue_launch(name, (const void *)kernel, grid, block, shared, stream,
                 [kernel, values] { std::apply(kernel, values); });
}

void *shared_array(const void *key, size_t bytes, const char *name); /* this block's array; one a key */
void *shared_dynamic(void);
void mark(void *p, size_t used, size_t capacity, cudaStream_t stream); /* see pg_device_vtable.mark; in its turn */

void barrier(int line);
/* Deposits `value` with the lanes of `mask`, waits for them; what the op gives this lane. */
enum warp_op { SYNC, SHUFFLE, BALLOT };
uint64_t warp(warp_op op, unsigned mask, uint64_t value, int source, int line);
int lane(void);

template <class T> T shuffle(unsigned mask, T x, int source, int line) {
  static_assert(sizeof(T) <= 8, "shuffles move up to 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &x, sizeof x);
  bits = warp(SHUFFLE, mask, bits, source, line);
  memcpy(&x, &bits, sizeof x);
  return x;
}

} // namespace simt

#define threadIdx (simt::here.thread)
#define blockIdx (simt::here.block)
#define blockDim (simt::here.block_size)
#define gridDim (simt::here.grid_size)
enum { warpSize = 32 };

static inline void __syncthreads(int line = __builtin_LINE()) { simt::barrier(line); }
static inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  simt::warp(simt::SYNC, mask, 0, 0, line);
}
template <class T> T __shfl_sync(unsigned mask, T x, int source, int width = 32, int line = __builtin_LINE()) {
  int lane = simt::lane();
  return simt::shuffle(mask, x, lane / width * width + source % width, line);
}
template <class T> T __shfl_xor_sync(unsigned mask, T x, int with, int width = 32, int line = __builtin_LINE()) {
  int lane = simt::lane(), source = lane ^ with;
  return simt::shuffle(mask, x, source / width == lane / width ? source : lane, line);
}
template <class T> T __shfl_down_sync(unsigned mask, T x, int by, int width = 32, int line = __builtin_LINE()) {
  int lane = simt::lane();
  return simt::shuffle(mask, x, lane % width + by < width ? lane + by : lane, line);
}
template <class T> T __shfl_up_sync(unsigned mask, T x, int by, int width = 32, int line = __builtin_LINE()) {
  int lane = simt::lane();
  return simt::shuffle(mask, x, lane % width >= by ? lane - by : lane, line);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return (unsigned)simt::warp(simt::BALLOT, mask, predicate != 0, 0, line);
}
static inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return simt::warp(simt::BALLOT, mask, predicate != 0, 0, line) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return simt::warp(simt::BALLOT, mask, predicate != 0, 0, line) == mask;
}

/* Threads of the simulated device take turns, so that each of these is one indivisible step. */
template <class T> static inline T atomicAdd(T *p, T x) { T old = *p; *p = (T)(old + x); return old; }
template <class T> static inline T atomicMax(T *p, T x) { T old = *p; *p = x > old ? x : old; return old; }
template <class T> static inline T atomicMin(T *p, T x) { T old = *p; *p = x < old ? x : old; return old; }
template <class T> static inline T atomicExch(T *p, T x) { T old = *p; *p = x; return old; }
template <class T> static inline T atomicOr(T *p, T x) { T old = *p; *p = old | x; return old; }
template <class T> static inline T atomicCAS(T *p, T expected, T x) {
  T old = *p;
  if (old == expected) *p = x;
  return old;
}
static inline void __threadfence(void) {}
static inline void __threadfence_block(void) {}

template <class T> static inline T __ldg(const T *p) { return *p; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline double rsqrt(double x) { return 1 / sqrt(x); }
static inline int __float_as_int(float x) { int i; memcpy(&i, &x, sizeof i); return i; }
static inline float __int_as_float(int i) { float x; memcpy(&x, &i, sizeof x); return x; }
static inline unsigned __float_as_uint(float x) { unsigned i; memcpy(&i, &x, sizeof i); return i; }
static inline float __uint_as_float(unsigned i) { float x; memcpy(&x, &i, sizeof x); return x; }
static inline long long __double_as_longlong(double x) { long long i; memcpy(&i, &x, sizeof i); return i; }
static inline double __longlong_as_double(long long i) { double x; memcpy(&x, &i, sizeof x); return x; }
#define PG_SIMT_MINMAX(T)                                                                                              \
  static inline T min(T a, T b) { return b < a ? b : a; }                                                              \
  static inline T max(T a, T b) { return a < b ? b : a; }
PG_SIMT_MINMAX(int)
PG_SIMT_MINMAX(unsigned)
PG_SIMT_MINMAX(long)
PG_SIMT_MINMAX(unsigned long)
PG_SIMT_MINMAX(long long)
PG_SIMT_MINMAX(float)
PG_SIMT_MINMAX(double)
using std::isfinite;
using std::isinf;
using std::isnan;

#endif
