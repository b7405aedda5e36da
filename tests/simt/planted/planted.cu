/* planted.cu - one kernel for each fault that the simulated device must catch, and the sound kernel beside each.
 *
 *     planted NAME        runs that one, under five seeds, and says "sound", or what was found; exit status 0 or 1
 *     planted             lists the names
 *
 * A wrong answer is a finding too: that is how a missing barrier and an unwritten output show. AddressSanitizer ends
 * the process at the access itself. */
#include "../../../core/cuda/cuda.h"
#include "../simt.h"

extern "C" void simt_seed(uint64_t seed);

/* What the macros of cuda.h ask of the plug-in's runtime, without the core behind it. */
static cudaStream_t stream;
cudaStream_t pg_cuda_stream(void) { return stream; }
int pg_cuda_launched(const pg_call *, const char *what) {
  cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) printf("%s: %s\n", what, cudaGetErrorString(error));
  return error != cudaSuccess;
}

enum { N = 64 };

struct operands { /* by value, as a fused optimiser step passes its lists */
  const float *x;
  float *y;
};

/* ---- kernels: y = x, reversed in each block, by ways that go wrong when BAD ------------------------------------- */

template <bool BAD> static __global__ void global_read(const float *x, float *y) {
  int i = (int)pg_thread();
  y[i] = x[i + (BAD && i == N - 1 ? 1 : 0)];
}
template <bool BAD> static __global__ void global_write(const float *x, float *y) {
  int i = (int)pg_thread();
  y[BAD && i == 0 ? -1 : i] = x[i];
}
template <bool BAD> static __global__ void shared_bounds(const float *x, float *y) {
  PG_SHARED(float, tile, [N]);
  int i = threadIdx.x;
  tile[BAD && i == 5 ? N : i] = x[i];
  __syncthreads();
  y[i] = tile[i];
}
template <bool BAD> static __global__ void missing_barrier(const float *x, float *y) {
  PG_SHARED(float, tile, [N]);
  int i = threadIdx.x;
  tile[N - 1 - i] = x[i];
  if (!BAD) __syncthreads();
  y[N - 1 - i] = tile[i] + tile[N - 1 - i] - x[i];
}
template <bool BAD> static __global__ void divergent_barrier(const float *x, float *y) {
  int i = threadIdx.x;
  y[i] = x[i];
  if (BAD && i < 3) {
    __syncthreads();
    y[i] += 0;
  } else {
    __syncthreads();
  }
}
template <bool BAD> static __global__ void left_barrier(const float *x, float *y) {
  int i = threadIdx.x;
  y[i] = x[i];
  if (BAD && i == 7) return;
  __syncthreads();
}
template <bool BAD> static __global__ void unwritten(const float *x, float *y) {
  int i = threadIdx.x;
  if (!BAD || i != 9) y[i] = x[i];
}
template <bool BAD> static __global__ void shuffle_mask(const float *x, float *y) {
  int i = threadIdx.x;
  float other = __shfl_xor_sync(BAD ? 0x0000ffffu : PG_FULL_MASK, x[i], 1);
  y[i] = other - other + x[i];
}
template <bool BAD> static __global__ void absent_lane(const float *x, float *y) {
  int i = threadIdx.x;
  y[i] = x[i];
  if (BAD && i == 31) return;
  y[i] += 0 * pg_warp_sum(x[i]);
}
template <bool BAD> static __global__ void plain(const float *x, float *y) { y[threadIdx.x] = x[threadIdx.x]; }
static __global__ void by_value(operands o) { o.y[threadIdx.x] = o.x[threadIdx.x]; }

/* ---- running one ------------------------------------------------------------------------------------------------ */

static float *x, *y, on_host[N];

template <class K> static int launch(K kernel, const float *from) {
  PG_LAUNCH(NULL, kernel, 1, N, from, y);
  return 0;
}

static int run(const char *name, bool bad) {
#define CASE(kernel)                                                                                                   \
  if (!strcmp(name, #kernel)) return bad ? launch(kernel<true>, x) : launch(kernel<false>, x)
  CASE(global_read);
  CASE(global_write);
  CASE(shared_bounds);
  CASE(missing_barrier);
  CASE(divergent_barrier);
  CASE(left_barrier);
  CASE(unwritten);
  CASE(shuffle_mask);
  CASE(absent_lane);
  if (!strcmp(name, "host_pointer")) return launch(plain<false>, bad ? on_host : x);
  if (!strcmp(name, "host_pointer_in_struct")) {
    PG_LAUNCH(NULL, by_value, 1, N, operands{bad ? on_host : x, y});
    return 0;
  }
  if (!strcmp(name, "host_read")) {
    launch(plain<false>, x);
    cudaStreamSynchronize(stream);
    if (bad) printf("read %g\n", (double)((volatile float *)y)[3]);
    return 0;
  }
  if (!strcmp(name, "copy_too_long"))
    return launch(plain<false>, x) ||
           cudaMemcpyAsync(y, x, sizeof(float) * (N + bad), cudaMemcpyDeviceToDevice, stream);
  if (!strcmp(name, "block_too_large")) {
    launch(plain<false>, x);
    if (bad) PG_LAUNCH(NULL, plain<false>, 1, 1025, x, y);
    return 0;
  }
  return printf("there is no '%s'\n", name), 2;
}

/* Fresh memory, one run, and what came out. */
static int trial(const char *name, bool bad, uint64_t seed) {
  simt_seed(seed);
  cudaMalloc((void **)&x, sizeof on_host), cudaMalloc((void **)&y, sizeof on_host);
  cudaMemcpyAsync(x, on_host, sizeof on_host, cudaMemcpyHostToDevice, stream);
  if (int status = run(name, bad)) return status;
  float out[N];
  cudaMemcpyAsync(out, y, sizeof out, cudaMemcpyDeviceToHost, stream);
  cudaError_t error = cudaStreamSynchronize(stream);
  if (error != cudaSuccess) return printf("%s\n", cudaGetErrorString(error)), 1;
  for (int i = 0; i < N; i++)
    if (out[i] != on_host[i])
      return printf("seed %d: element %d is %g, not %g\n", (int)seed, i, (double)out[i], (double)on_host[i]), 1;
  cudaFree(x), cudaFree(y);
  return 0;
}

int main(int argc, char **argv) {
  static const char *const names[] = {"global_read",   "global_write",   "shared_bounds",          "missing_barrier",
                                      "left_barrier",  "unwritten",      "divergent_barrier",      "shuffle_mask",
                                      "absent_lane",   "host_pointer",   "host_pointer_in_struct", "host_read",
                                      "copy_too_long", "block_too_large"};
  if (argc < 2) {
    for (const char *name : names) printf("%s\n", name);
    return 0;
  }
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  for (int i = 0; i < N; i++) on_host[i] = (float)i;
  bool bad = argc < 3 || strcmp(argv[2], "sound");
  for (uint64_t seed = 1; seed <= 5; seed++)
    if (int status = trial(argv[1], bad, seed)) return status;
  return puts("sound"), 0;
}
