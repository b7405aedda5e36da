/* runtime.cu - the CUDA plug-in: one device, one stream, its memory, its errors, GEMM by cuBLAS.
 *
 * Everything happens in order on one stream, so that a block of memory can be handed on while work that uses it is
 * still queued. Bytes from the host go through a ring of pinned pieces: a copy returns as soon as its bytes are staged,
 * and a piece is filled again once the event behind its last copy has passed. Only what gives values to the host waits.
 */
#include "cuda.h"
extern "C" {
#include "../comm.h"
}
#include <cublas_v2.h>
#include <stdarg.h>

enum { PIECES = 4, PIECE_BYTES = 1 << 22, TICKETS = 1024, TICKET_TEXT = 320 };

static struct {
  cudaStream_t stream;
  cublasHandle_t blas;
  cublasMath_t math; /* of its float32 products */
  struct piece {
    char *memory; /* pinned */
    cudaEvent_t passed;
  } piece[PIECES];
  int next_piece;
  int32_t *fault;      /* device: {set, ticket, place, value, limit} */
  int32_t *fault_here; /* pinned, its copy */
  int32_t ticket;
  char call[TICKETS][TICKET_TEXT]; /* what the last calls with indices were, for the message of a fault */
  char about[384];
} gpu;

cudaStream_t pg_cuda_stream(void) { return gpu.stream; }

/* ---- errors ----------------------------------------------------------------------------------------------------- */

int pg_cuda_status(cudaError_t error, const char *what) {
  if (error == cudaSuccess) return PG_OK;
  cudaGetLastError(); /* what can be forgotten is forgotten */
  return pg_fail(error == cudaErrorMemoryAllocation ? PG_ERR_MEMORY : PG_ERR_DEVICE, "%s on cuda: %s", what,
                 cudaGetErrorString(error));
}

static void call_text(const pg_call *c, const char *what, char *text, size_t room) {
  char shape[128];
  int used = snprintf(text, room, "%s on cuda: %s", c->op->info.name, what);
  const pg_arg_info *info = c->op->info.inputs;
  for (int32_t i = 0; i < c->n_in && used < (int)room; i++) {
    if (c->in[i])
      used += snprintf(text + used, room - (size_t)used, "%s %s %s", i ? "," : ":", info->name,
                       pg_shape_text(c->in[i], shape));
    if (!(info->flags & PG_LIST)) info++;
  }
}

int pg_cuda_launched(const pg_call *c, const char *what) {
  cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return PG_OK;
  char text[TICKET_TEXT];
  if (c)
    call_text(c, cudaGetErrorString(error), text, sizeof text);
  else
    snprintf(text, sizeof text, "%s on cuda: %s", what, cudaGetErrorString(error));
  return pg_fail(PG_ERR_DEVICE, "%s", text);
}

pg_fault pg_fault_new(const pg_call *c, const char *what) {
  gpu.ticket++;
  call_text(c, what, gpu.call[gpu.ticket % TICKETS], TICKET_TEXT);
  return pg_fault{gpu.fault, gpu.ticket};
}

/* "op on cuda: index, element 5 = 70 is outside 1..60: weight (60, 4), index (8)", of whichever call found it. */
static int report_fault(void) {
  if (!gpu.fault_here[0]) return PG_OK;
  const int32_t *f = gpu.fault_here;
  const char *call = gpu.ticket - f[1] < TICKETS ? gpu.call[f[1] % TICKETS] : "an op on cuda: index";
  const char *colon = strchr(call, ':'), *shapes = colon ? strchr(colon + 1, ':') : NULL;
  int length = shapes ? (int)(shapes - call) : (int)strlen(call), code;
  if (f[4] < 0) /* pg_refuse */
    code = pg_fail(PG_ERR_ARGUMENT, "%.*s, element %lld is %d%s", length, call, (long long)pg_shown(f[2]), f[3],
                   shapes ? shapes : "");
  else
    code = pg_fail(PG_ERR_ARGUMENT, "%.*s, element %lld = %lld is outside %lld..%lld%s", length, call,
                   (long long)pg_shown(f[2]), (long long)pg_shown(f[3]), (long long)pg_shown(0),
                   (long long)pg_shown(f[4] - 1), shapes ? shapes : "");
  cudaMemsetAsync(gpu.fault, 0, 5 * sizeof(int32_t), gpu.stream);
  return code;
}

/* Waits for the stream, then says what went wrong on it. */
static int wait_for_all(void) {
  int status = pg_cuda_status(
      cudaMemcpyAsync(gpu.fault_here, gpu.fault, 5 * sizeof(int32_t), cudaMemcpyDeviceToHost, gpu.stream), "wait");
  if (!status) status = pg_cuda_status(cudaStreamSynchronize(gpu.stream), "wait");
  return status ? status : report_fault();
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

static int cuda_alloc(size_t bytes, void **out) {
  cudaError_t error = cudaMalloc(out, bytes);
  if (error == cudaErrorMemoryAllocation) { /* blocks given back may wait for queued work: let it end, try again */
    cudaGetLastError();
    cudaStreamSynchronize(gpu.stream);
    error = cudaMalloc(out, bytes);
  }
  if (error == cudaErrorMemoryAllocation) return cudaGetLastError(), PG_ERR_MEMORY;
  return pg_cuda_status(error, "alloc");
}

static void cuda_free(void *p, size_t bytes) {
  (void)bytes;
  cudaStreamSynchronize(gpu.stream);
  cudaFree(p);
}

static int cuda_zero(void *p, size_t bytes) {
  return bytes ? pg_cuda_status(cudaMemsetAsync(p, 0, bytes, gpu.stream), "fill") : PG_OK;
}

static int cuda_from_host(void *dst, const void *src, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    auto *piece = &gpu.piece[gpu.next_piece];
    size_t n = PG_MIN(bytes - done, (size_t)PIECE_BYTES);
    PG_TRY(pg_cuda_status(cudaEventSynchronize(piece->passed), "copy to the device"));
    memcpy(piece->memory, (const char *)src + done, n);
    PG_TRY(pg_cuda_status(cudaMemcpyAsync((char *)dst + done, piece->memory, n, cudaMemcpyHostToDevice, gpu.stream),
                          "copy to the device"));
    PG_TRY(pg_cuda_status(cudaEventRecord(piece->passed, gpu.stream), "copy to the device"));
    gpu.next_piece = (gpu.next_piece + 1) % PIECES;
    done += n;
  }
  return PG_OK;
}

/* Piece k is copied out while the device fills the next ones. */
static int cuda_to_host(void *dst, const void *src, size_t bytes) {
  size_t count = (bytes + PIECE_BYTES - 1) / PIECE_BYTES;
  for (size_t k = 0; k < count + PIECES - 1; k++) {
    if (k < count) {
      auto *piece = &gpu.piece[k % PIECES];
      size_t at = k * PIECE_BYTES, n = PG_MIN(bytes - at, (size_t)PIECE_BYTES);
      PG_TRY(pg_cuda_status(cudaEventSynchronize(piece->passed), "copy to the host"));
      PG_TRY(
          pg_cuda_status(cudaMemcpyAsync(piece->memory, (const char *)src + at, n, cudaMemcpyDeviceToHost, gpu.stream),
                         "copy to the host"));
      PG_TRY(pg_cuda_status(cudaEventRecord(piece->passed, gpu.stream), "copy to the host"));
    }
    if (k + 1 >= PIECES && k + 1 - PIECES < count) {
      size_t ready = k + 1 - PIECES, at = ready * PIECE_BYTES;
      auto *piece = &gpu.piece[ready % PIECES];
      PG_TRY(pg_cuda_status(cudaEventSynchronize(piece->passed), "copy to the host"));
      memcpy((char *)dst + at, piece->memory, PG_MIN(bytes - at, (size_t)PIECE_BYTES));
    }
  }
  return wait_for_all();
}

static int cuda_copy(void *dst, const void *src, size_t bytes) {
  return pg_cuda_status(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, gpu.stream), "copy");
}

static const char *cuda_describe(void) { return gpu.about; }

#ifdef PG_SIMT
static void cuda_mark(void *p, size_t used, size_t capacity) { simt::mark(p, used, capacity, gpu.stream); }
#else
#define cuda_mark NULL
#endif

/* tensor.cu */
int pg_cuda_fill(pg_tensor *t, double value);
int pg_cuda_add(pg_tensor *sum, const pg_tensor *t);
int pg_cuda_count_nonfinite(const pg_tensor *t, int64_t *out);
int pg_cuda_random(pg_tensor *t, uint64_t seed, uint64_t offset, int32_t normal);
int pg_cuda_comm(const struct pg_comm_vtable **out); /* nccl.cu */

static const pg_device_vtable cuda_device = {
    "cuda",       cuda_alloc,     cuda_free,    cuda_zero,   cuda_from_host,          cuda_to_host,
    cuda_copy,    pg_cuda_assign, pg_cuda_fill, pg_cuda_add, pg_cuda_count_nonfinite, pg_cuda_random,
    wait_for_all, cuda_describe,  cuda_mark,    pg_cuda_comm};

/* ---- GEMM: cuBLAS counts columns first, so a row-major product is its transpose with the operands exchanged ----- */

static int blas_status(cublasStatus_t status, const char *what) {
  if (status == CUBLAS_STATUS_SUCCESS) return PG_OK;
  return pg_fail(status == CUBLAS_STATUS_ALLOC_FAILED ? PG_ERR_MEMORY : PG_ERR_DEVICE, "%s on cuda: cuBLAS error %d",
                 what, (int)status);
}

static int gemm_fits(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc) {
  if (PG_MAX(PG_MAX(PG_MAX(m, n), PG_MAX(k, lda)), PG_MAX(ldb, ldc)) <= INT32_MAX) return PG_OK;
  return pg_fail(PG_ERR_SHAPE, "a product of (%lld, %lld) and (%lld, %lld) is more than cuBLAS's int holds",
                 (long long)m, (long long)k, (long long)k, (long long)n);
}

static cublasOperation_t op_of(int trans) { return trans ? CUBLAS_OP_T : CUBLAS_OP_N; }

static cublasStatus_t gemm_batch(int ta, int tb, int m, int n, int k, const float *alpha, const float *a, int lda,
                                 int64_t sa, const float *b, int ldb, int64_t sb, const float *beta, float *c, int ldc,
                                 int64_t sc, int count) {
  return cublasSgemmStridedBatched(gpu.blas, op_of(tb), op_of(ta), n, m, k, alpha, b, ldb, sb, a, lda, sa, beta, c, ldc,
                                   sc, count);
}

static cublasStatus_t gemm_batch(int ta, int tb, int m, int n, int k, const double *alpha, const double *a, int lda,
                                 int64_t sa, const double *b, int ldb, int64_t sb, const double *beta, double *c,
                                 int ldc, int64_t sc, int count) {
  return cublasDgemmStridedBatched(gpu.blas, op_of(tb), op_of(ta), n, m, k, alpha, b, ldb, sb, a, lda, sa, beta, c, ldc,
                                   sc, count);
}

template <class T>
int pg_cuda_gemm_batched(int ta, int tb, int64_t m, int64_t n, int64_t k, T alpha, const T *a, int64_t lda,
                         int64_t stride_a, const T *b, int64_t ldb, int64_t stride_b, T beta, T *c, int64_t ldc,
                         int64_t stride_c, int64_t batch) {
  if (m == 0 || n == 0 || batch == 0) return PG_OK;
  if (k == 0 && beta == 0) { /* an empty sum */
    for (int64_t i = 0; i < batch; i++)
      PG_TRY(pg_cuda_status(
          cudaMemset2DAsync(c + i * stride_c, sizeof(T) * (size_t)ldc, 0, sizeof(T) * (size_t)n, (size_t)m, gpu.stream),
          "matmul"));
    return PG_OK;
  }
  lda = PG_MAX(lda, 1), ldb = PG_MAX(ldb, 1); /* rows of an empty sum have no elements */
  PG_TRY(gemm_fits(m, n, k, lda, ldb, ldc));
  for (int64_t done = 0; done < batch;) { /* cuBLAS launches at most 65,535 layers at once */
    int64_t count = PG_MIN(batch - done, 65535);
    PG_TRY(blas_status(gemm_batch(ta, tb, (int)m, (int)n, (int)k, &alpha, a + done * stride_a, (int)lda, stride_a,
                                  b + done * stride_b, (int)ldb, stride_b, &beta, c + done * stride_c, (int)ldc,
                                  stride_c, (int)count),
                       "matmul"));
    done += count;
  }
  return PG_OK;
}

template <class T>
int pg_cuda_gemm(int ta, int tb, int64_t m, int64_t n, int64_t k, T alpha, const T *a, int64_t lda, const T *b,
                 int64_t ldb, T beta, T *c, int64_t ldc) {
  return pg_cuda_gemm_batched<T>(ta, tb, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, 1);
}

template <class T>
int pg_cuda_gemm_scaled(int ta, int tb, int64_t m, int64_t n, int64_t k, const T *factors, const T *a, int64_t lda,
                        const T *b, int64_t ldb, T *c, int64_t ldc) {
  if (m == 0 || n == 0) return PG_OK;
  PG_TRY(gemm_fits(m, n, k, lda, ldb, ldc));
  PG_TRY(blas_status(cublasSetPointerMode(gpu.blas, CUBLAS_POINTER_MODE_DEVICE), "matmul"));
  cublasStatus_t status = gemm_batch(ta, tb, (int)m, (int)n, (int)k, factors, a, (int)lda, 0, b, (int)ldb, 0,
                                     factors + 1, c, (int)ldc, 0, 1);
  PG_TRY(blas_status(cublasSetPointerMode(gpu.blas, CUBLAS_POINTER_MODE_HOST), "matmul"));
  return blas_status(status, "matmul");
}

/* To nearest, ties to even; denormals count as zero, as on the host. */
static __global__ void round_kernel(int64_t n, const float *x, uint16_t *y) {
  int64_t i = pg_thread();
  if (i >= n) return;
  union {
    float value;
    uint32_t bits;
  } at = {x[i]};
  uint32_t size = at.bits & 0x7fffffff, near = at.bits + 0x7fff + (at.bits >> 16 & 1);
  near = size > 0x7f800000 ? at.bits | 0x400000 : near; /* NaN stays one */
  y[i] = (uint16_t)((size < 0x800000 ? at.bits & 0x80000000 : near) >> 16);
}

int pg_cuda_gemm_bf16(const pg_call *call, int ta, int tb, int64_t m, int64_t n, int64_t k, const float *a,
                      const float *b, float beta, float *c) {
  if (m == 0 || n == 0 || k == 0)
    return pg_cuda_gemm<float>(ta, tb, m, n, k, 1, a, ta ? m : k, b, tb ? k : n, beta, c, n);
  PG_TRY(gemm_fits(m, n, k, ta ? m : k, tb ? k : n, n));
  pg_scratch left(sizeof(uint16_t) * (size_t)(m * k)), right(sizeof(uint16_t) * (size_t)(k * n));
  if (left.status || right.status) return left.status ? left.status : right.status;
  PG_LAUNCH(call, round_kernel, pg_blocks(m * k), PG_BLOCK, m * k, a, left.at<uint16_t>());
  PG_LAUNCH(call, round_kernel, pg_blocks(k * n), PG_BLOCK, k * n, b, right.at<uint16_t>());
  float alpha = 1;
  PG_TRY(blas_status(cublasSetMathMode(gpu.blas, CUBLAS_DEFAULT_MATH), "matmul")); /* pedantic: no tensor cores */
  cublasStatus_t status =
      cublasGemmEx(gpu.blas, op_of(tb), op_of(ta), (int)n, (int)m, (int)k, &alpha, right.at<uint16_t>(), CUDA_R_16BF,
                   (int)(tb ? k : n), left.at<uint16_t>(), CUDA_R_16BF, (int)(ta ? m : k), &beta, c, CUDA_R_32F, (int)n,
                   CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  PG_TRY(blas_status(cublasSetMathMode(gpu.blas, gpu.math), "matmul"));
  return blas_status(status, "matmul in bfloat16");
}

#define GEMM(T)                                                                                                        \
  template int pg_cuda_gemm<T>(int, int, int64_t, int64_t, int64_t, T, const T *, int64_t, const T *, int64_t, T, T *, \
                               int64_t);                                                                               \
  template int pg_cuda_gemm_batched<T>(int, int, int64_t, int64_t, int64_t, T, const T *, int64_t, int64_t, const T *, \
                                       int64_t, int64_t, T, T *, int64_t, int64_t, int64_t);                           \
  template int pg_cuda_gemm_scaled<T>(int, int, int64_t, int64_t, int64_t, const T *, const T *, int64_t, const T *,   \
                                      int64_t, T *, int64_t);
GEMM(float)
GEMM(double)

/* ---- opening ---------------------------------------------------------------------------------------------------- */

/* Every op has a line in ops.def; views have no forward kernel, and what has none at all is absent here. */
#define OP(name) extern "C" __attribute__((weak)) const pg_cuda_op pg_kernels_##name;
#include "../ops.def"
#undef OP
static const pg_cuda_op *const kernels[] = {
#define OP(name) &pg_kernels_##name,
#include "../ops.def"
#undef OP
};

/* The processes of a machine take its GPUs in turn; a launcher may also show each of them one alone. */
static int set_up(int devices) {
  int device = pg_comm()->local_rank % devices;
  PG_TRY(pg_cuda_status(cudaSetDevice(device), "open"));
  PG_TRY(pg_cuda_status(cudaStreamCreateWithFlags(&gpu.stream, cudaStreamNonBlocking), "open"));
  PG_TRY(blas_status(cublasCreate(&gpu.blas), "open"));
  PG_TRY(blas_status(cublasSetStream(gpu.blas, gpu.stream), "open"));
  const char *tf32 = getenv("PERIGEE_TF32"); /* 10 bits of mantissa in products: faster, and off unless asked for */
  bool fast = tf32 && !strcmp(tf32, "1");
  gpu.math = fast ? CUBLAS_TF32_TENSOR_OP_MATH : CUBLAS_PEDANTIC_MATH;
  PG_TRY(blas_status(cublasSetMathMode(gpu.blas, gpu.math), "open"));
  for (int i = 0; i < PIECES; i++) {
    PG_TRY(pg_cuda_status(cudaMallocHost((void **)&gpu.piece[i].memory, PIECE_BYTES), "open"));
    PG_TRY(pg_cuda_status(cudaEventCreateWithFlags(&gpu.piece[i].passed, cudaEventDisableTiming), "open"));
  }
  PG_TRY(pg_cuda_status(cudaMalloc((void **)&gpu.fault, 5 * sizeof(int32_t)), "open"));
  PG_TRY(pg_cuda_status(cudaMallocHost((void **)&gpu.fault_here, 5 * sizeof(int32_t)), "open"));
  PG_TRY(pg_cuda_status(cudaMemsetAsync(gpu.fault, 0, 5 * sizeof(int32_t), gpu.stream), "open"));
  cudaDeviceProp about;
  PG_TRY(pg_cuda_status(cudaGetDeviceProperties(&about, device), "open"));
  snprintf(gpu.about, sizeof gpu.about, "%s, sm_%d%d, %d multiprocessors, %.1f GB%s", about.name, about.major,
           about.minor, about.multiProcessorCount, (double)about.totalGlobalMem / 1e9, fast ? ", TF32 products" : "");
  return PG_OK;
}

/* Called by device_cuda.c with the core's numbers; registers the device and its kernels. */
extern "C" int pg_cuda_open(int32_t abi, int32_t ops) {
  enum { OPS = sizeof kernels / sizeof *kernels };
  if (abi != PG_ABI || ops != OPS)
    return pg_fail(
        PG_ERR_DEVICE,
        "device \"cuda\" is not available: the plug-in speaks ABI %d and knows %d ops, the library ABI %d and "
        "%d; run `make` again",
        PG_ABI, OPS, abi, ops);
  int count = 0, driver = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) {
    cudaDriverGetVersion(&driver);
    return pg_fail(PG_ERR_DEVICE, driver
                                      ? "device \"cuda\" is not available: its driver is too old for this build's CUDA"
                                      : "device \"cuda\" is not available: there is no NVIDIA driver");
  }
  if (error != cudaSuccess || count == 0)
    return pg_fail(PG_ERR_DEVICE, "device \"cuda\" is not available: %s",
                   error != cudaSuccess ? cudaGetErrorString(error) : "the driver finds no GPU");
  PG_TRY(set_up(count));
  static const pg_cuda_op none = {};
  for (int32_t i = 0; i < OPS; i++) {
    const pg_cuda_op *op = kernels[i] ? kernels[i] : &none;
    pg_op_plug(PG_CUDA, i, op->forward, op->backward);
  }
  pg_device_register(PG_CUDA, &cuda_device);
  return PG_OK;
}
