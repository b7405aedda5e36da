/* gemm.c - matrix products, through gemm_f32.c where it can and through BLAS otherwise. Inside a parallel region
 * OpenBLAS's OpenMP flavour runs on the calling thread.
 *
 * A small product outside one is kept on the calling thread too: waking a second core costs as much as it saves, and on
 * a busy machine far more. */
#ifdef REAL

int K(pg_gemm)(int ta, int tb, int64_t m, int64_t n, int64_t k, real alpha, const real *a, int64_t lda, const real *b,
               int64_t ldb, real beta, real *c, int64_t ldc) {
  if (!m || !n) return PG_OK;
  lda = PG_MAX(lda, 1), ldb = PG_MAX(ldb, 1);
  PG_TRY(pg_blas_fits(6, (int64_t[]){m, n, k, lda, ldb, ldc}));
  if (K(own_gemm)(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)) return PG_OK;
  int team = stay_alone((double)m * (double)n * (double)k);
  piece size = piece_of(m, n, k, sizeof(real));
  for (int64_t i = 0; i < m; i += size.rows) {
    for (int64_t j = 0; j < n; j += size.columns) {
      if ((i || j) && pg_stopping()) break;
      int rows = (int)PG_MIN(size.rows, m - i), columns = (int)PG_MIN(size.columns, n - j);
      K(blas_gemm)
      (CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, rows, columns, (int)k, alpha,
       a + (ta ? i : i * lda), (int)lda, b + (tb ? j * ldb : j), (int)ldb, beta, c + i * ldc + j, (int)ldc);
    }
  }
  rejoin(team);
  return PG_OK;
}

/* BLAS adds to what stands in y, so that the bias is laid there first. */
int K(pg_affine)(int64_t rows, int64_t out, int64_t in, const real *x, const real *w, const real *bias, real *y) {
  if (K(own_affine)(rows, out, in, x, w, bias, y)) return PG_OK;
  if (bias) {
#pragma omp parallel for schedule(static) if (rows * out > 32768)
    for (int64_t r = 0; r < rows; r++)
      if (!pg_stopping()) memcpy(y + r * out, bias, sizeof(real) * (size_t)out);
  }
  return K(pg_gemm)(0, 1, rows, out, in, 1, x, in, w, in, bias ? 1 : 0, y, out);
}

/* Both halves of A A^T: BLAS fills the lower one; the upper is mirrored in blocks that fit the first-level cache. */
int K(pg_syrk)(int64_t n, int64_t k, const real *a, int64_t lda, real *c, int64_t ldc) {
  enum { SIDE = 32, STRIP = 512 };
  if (!n) return PG_OK;
  lda = PG_MAX(lda, 1); /* BLAS wants that even where there is nothing to read */
  PG_TRY(pg_blas_fits(4, (int64_t[]){n, k, lda, ldc}));
  if (piece_of(n, n, k, sizeof(real)).rows < n) {
    for (int64_t i = 0; i < n && !pg_stopping(); i += STRIP) {
      int64_t rows = PG_MIN(STRIP, n - i);
      PG_TRY(K(pg_gemm)(0, 1, rows, i + rows, k, 1, a + i * lda, lda, a, lda, 0, c + i * ldc, ldc));
    }
  } else {
    int team = stay_alone((double)n * (double)n * (double)k);
    K(blas_syrk)(CblasRowMajor, CblasLower, CblasNoTrans, (int)n, (int)k, 1, a, (int)lda, 0, c, (int)ldc);
    rejoin(team);
  }
#pragma omp parallel for schedule(static, 1) if (n > 256)
  for (int64_t i0 = 0; i0 < n; i0 += SIDE)
    for (int64_t j0 = 0; j0 <= i0; j0 += SIDE)
      for (int64_t i = i0; i < PG_MIN(i0 + SIDE, n); i++)
        for (int64_t j = j0; j < PG_MIN(j0 + SIDE, i); j++) c[j * ldc + i] = c[i * ldc + j];
  return PG_OK;
}

#else
#include "core.h"
#include <cblas.h>
#include <omp.h>

#define blas_gemm_f32 cblas_sgemm
#define blas_gemm_f64 cblas_dgemm
#define blas_syrk_f32 cblas_ssyrk
#define blas_syrk_f64 cblas_dsyrk
#define own_gemm_f32 pg_gemm_avx512
#define own_gemm_f64(...) false
#define own_affine_f32 pg_affine_avx512
#define own_affine_f64(...) false
void openblas_set_num_threads(int n);

int pg_blas_fits(int count, const int64_t *sizes) {
  for (int i = 0; i < count; i++)
    if (sizes[i] > INT32_MAX)
      return pg_fail(PG_ERR_SHAPE, "matrix product: a size or row length is %lld; BLAS takes at most %d",
                     (long long)sizes[i], INT32_MAX);
  return PG_OK;
}

/* Multiply-adds below which one core is quicker, and above which OpenBLAS would take more by itself. */
static const double ALONE_BELOW = 4e6, BLAS_ALONE_BELOW = 262144;

static int stay_alone(double work) {
  pg_blas_wait();
  int team = work > BLAS_ALONE_BELOW && work < ALONE_BELOW && !omp_in_parallel() ? omp_get_max_threads() : 1;
  if (team > 1) openblas_set_num_threads(1);
  return team;
}

static void rejoin(int team) {
  if (team > 1) openblas_set_num_threads(team), omp_set_num_threads(team);
}

/* One call of BLAS cannot be stopped, so that a product of a large part of a second is made in pieces of some tenth of
 * one. The inner dimension stays whole: every element is one sum, whatever the piece. */
typedef struct piece {
  int64_t rows, columns;
} piece;

static piece piece_of(int64_t m, int64_t n, int64_t k, size_t width) {
  const double whole = 6.4e10 / (double)width, most = 1.2e10 / (double)width; /* multiply-adds */
  const int64_t least = 512; /* below that, packing the other operand again costs too much */
  piece size = {m, n};
  if ((double)m * (double)n * (double)k <= whole) return size;
  size.rows = PG_MIN(m, PG_MAX(least, (int64_t)(most / ((double)n * (double)k))));
  size.columns = PG_MIN(n, PG_MAX(least, (int64_t)(most / ((double)size.rows * (double)k))));
  return size;
}

#define REALS_FILE "gemm.c"
#include "reals.h"
#endif
