/* gemm.c - matrix products through BLAS. Inside a parallel region OpenBLAS's OpenMP flavour runs on the calling thread.
 */
#include "core.h"
#include <cblas.h>

#define TRANS(t) ((t) ? CblasTrans : CblasNoTrans)

void pg_gemm_f32(int ta, int tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                 const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
  if (m && n)
    cblas_sgemm(CblasRowMajor, TRANS(ta), TRANS(tb), (int)m, (int)n, (int)k, alpha, a, (int)PG_MAX(lda, 1), b,
                (int)PG_MAX(ldb, 1), beta, c, (int)ldc);
}

void pg_gemm_f64(int ta, int tb, int64_t m, int64_t n, int64_t k, double alpha, const double *a, int64_t lda,
                 const double *b, int64_t ldb, double beta, double *c, int64_t ldc) {
  if (m && n)
    cblas_dgemm(CblasRowMajor, TRANS(ta), TRANS(tb), (int)m, (int)n, (int)k, alpha, a, (int)PG_MAX(lda, 1), b,
                (int)PG_MAX(ldb, 1), beta, c, (int)ldc);
}

/* BLAS fills the lower half; the upper is mirrored in blocks that fit the first-level cache. */
#define MIRROR(type)                                                                                                   \
  enum { SIDE = 32 };                                                                                                  \
  _Pragma(                                                                                                             \
      "omp parallel for schedule(dynamic) if (n > 256)") for (int64_t i0 = 0; i0 < n;                                  \
                                                              i0 +=                                                    \
                                                              SIDE) for (int64_t j0 = 0; j0 <= i0;                     \
                                                                         j0 +=                                         \
                                                                         SIDE) for (int64_t i = i0;                    \
                                                                                    i < PG_MIN(i0 + SIDE, n);          \
                                                                                    i++) for (int64_t j = j0;          \
                                                                                              j <                      \
                                                                                              PG_MIN(j0 + SIDE, i);    \
                                                                                              j++) c[j * ldc + i] =    \
      c[i * ldc + j];

void pg_syrk_f32(int64_t n, int64_t k, const float *a, int64_t lda, float *c, int64_t ldc) {
  if (!n) return;
  cblas_ssyrk(CblasRowMajor, CblasLower, CblasNoTrans, (int)n, (int)k, 1, a, (int)lda, 0, c, (int)ldc);
  MIRROR(float)
}

void pg_syrk_f64(int64_t n, int64_t k, const double *a, int64_t lda, double *c, int64_t ldc) {
  if (!n) return;
  cblas_dsyrk(CblasRowMajor, CblasLower, CblasNoTrans, (int)n, (int)k, 1, a, (int)lda, 0, c, (int)ldc);
  MIRROR(double)
}
