/* blas.cu - cuBLAS for the simulated device: the same calls, done by OpenBLAS. Columns first, as both count. */
#include "cublas_v2.h"
#include "simt.h"
#include <cblas.h>
#include <vector>

struct simt_blas {
  cudaStream_t stream;
  cublasPointerMode_t mode; /* of the calls to come */
};

cublasStatus_t cublasCreate(cublasHandle_t *out) { return *out = new simt_blas(), CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasDestroy(cublasHandle_t handle) { return delete handle, CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  return handle->stream = stream, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetPointerMode(cublasHandle_t handle, cublasPointerMode_t mode) {
  return handle->mode = mode, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) { return CUBLAS_STATUS_SUCCESS; }

static void one(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, int m, int n, int k, float alpha, const float *a, int lda,
                const float *b, int ldb, float beta, float *c, int ldc) {
  cblas_sgemm(CblasColMajor, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
static void one(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, int m, int n, int k, double alpha, const double *a, int lda,
                const double *b, int ldb, double beta, double *c, int ldc) {
  cblas_dgemm(CblasColMajor, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

/* Bytes from the first element to the last of a matrix stored by columns. */
template <class T> static size_t span(int rows, int columns, int ld) {
  return rows && columns ? sizeof(T) * ((size_t)ld * (size_t)(columns - 1) + (size_t)rows) : 0;
}

template <class T>
static cublasStatus_t batched(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                              const T *alpha_at, const T *a, int lda, long long sa, const T *b, int ldb, long long sb,
                              const T *beta_at, T *c, int ldc, long long sc, int count) {
  int arows = ta ? k : m, brows = tb ? n : k;
  if (m < 0 || n < 0 || k < 0 || lda < (arows > 1 ? arows : 1) || ldb < (brows > 1 ? brows : 1) ||
      ldc < (m > 1 ? m : 1))
    return CUBLAS_STATUS_INVALID_VALUE;
  if (simt::faulted()) return CUBLAS_STATUS_EXECUTION_FAILED;
  bool later = h->mode == CUBLAS_POINTER_MODE_DEVICE; /* read when the product's turn comes */
  T alpha_now = later ? T(0) : *alpha_at, beta_now = later ? T(0) : *beta_at;
  simt::enqueue(h->stream, [=] {
    if (later) {
      simt::check_range("cuBLAS gemm, alpha", alpha_at, sizeof(T));
      simt::check_range("cuBLAS gemm, beta", beta_at, sizeof(T));
      if (simt::faulted()) return;
    }
    T alpha = later ? *alpha_at : alpha_now, beta = later ? *beta_at : beta_now;
    for (int i = 0; i < count; i++) {
      simt::check_range("cuBLAS gemm, A", a + i * sa, span<T>(arows, ta ? m : k, lda));
      simt::check_range("cuBLAS gemm, B", b + i * sb, span<T>(brows, tb ? k : n, ldb));
      simt::check_range("cuBLAS gemm, C", c + i * sc, span<T>(m, n, ldc));
    }
    for (int i = 0; i < count && !simt::faulted(); i++)
      one(ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, m, n, k, alpha, a + i * sa, lda, b + i * sb,
          ldb, beta, c + i * sc, ldc);
    double size = sizeof(T), a_size = size * m * k * (sa ? count : 1), b_size = size * k * n * (sb ? count : 1),
           c_size = size * m * n * count; /* each operand once */
    simt::count_library("cuBLAS gemm", (uint64_t)(a_size + b_size + (beta != 0 ? c_size : 0)), (uint64_t)c_size,
                        2.0 * m * n * k * count);
  });
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n,
                                         int k, const float *alpha, const float *a, int lda, long long sa,
                                         const float *b, int ldb, long long sb, const float *beta, float *c, int ldc,
                                         long long sc, int count) {
  return batched(h, ta, tb, m, n, k, alpha, a, lda, sa, b, ldb, sb, beta, c, ldc, sc, count);
}

cublasStatus_t cublasDgemmStridedBatched(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n,
                                         int k, const double *alpha, const double *a, int lda, long long sa,
                                         const double *b, int ldb, long long sb, const double *beta, double *c, int ldc,
                                         long long sc, int count) {
  return batched(h, ta, tb, m, n, k, alpha, a, lda, sa, b, ldb, sb, beta, c, ldc, sc, count);
}

/* bfloat16, widened: the upper half of a float32. */
static std::vector<float> widened(const uint16_t *x, int rows, int columns, int ld) {
  std::vector<float> wide((size_t)rows * (size_t)columns);
  for (int j = 0; j < columns; j++)
    for (int i = 0; i < rows; i++) {
      uint32_t bits = (uint32_t)x[(size_t)j * (size_t)ld + (size_t)i] << 16;
      memcpy(&wide[(size_t)j * (size_t)rows + (size_t)i], &bits, sizeof bits);
    }
  return wide;
}

cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                            const void *alpha_at, const void *a_at, cudaDataType_t a_type, int lda, const void *b_at,
                            cudaDataType_t b_type, int ldb, const void *beta_at, void *c_at, cudaDataType_t c_type,
                            int ldc, cublasComputeType_t compute, cublasGemmAlgo_t) {
  int arows = ta ? k : m, acolumns = ta ? m : k, brows = tb ? n : k, bcolumns = tb ? k : n;
  if (m < 1 || n < 1 || k < 1 || lda < arows || ldb < brows || ldc < m || a_type != CUDA_R_16BF ||
      b_type != CUDA_R_16BF || c_type != CUDA_R_32F || compute != CUBLAS_COMPUTE_32F ||
      h->mode != CUBLAS_POINTER_MODE_HOST)
    return CUBLAS_STATUS_INVALID_VALUE;
  if (simt::faulted()) return CUBLAS_STATUS_EXECUTION_FAILED;
  float alpha = *(const float *)alpha_at, beta = *(const float *)beta_at, *c = (float *)c_at;
  const uint16_t *a = (const uint16_t *)a_at, *b = (const uint16_t *)b_at;
  simt::enqueue(h->stream, [=] {
    simt::check_range("cuBLAS gemm, A", a, span<uint16_t>(arows, acolumns, lda));
    simt::check_range("cuBLAS gemm, B", b, span<uint16_t>(brows, bcolumns, ldb));
    simt::check_range("cuBLAS gemm, C", c, span<float>(m, n, ldc));
    if (simt::faulted()) return;
    std::vector<float> left = widened(a, arows, acolumns, lda), right = widened(b, brows, bcolumns, ldb);
    one(ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, m, n, k, alpha, left.data(), arows,
        right.data(), brows, beta, c, ldc);
    double read = 2.0 * m * k + 2.0 * k * n, written = 4.0 * m * n;
    simt::count_library("cuBLAS gemm", (uint64_t)(read + (beta != 0 ? written : 0)), (uint64_t)written,
                        2.0 * m * n * k);
  });
  return CUBLAS_STATUS_SUCCESS;
}
