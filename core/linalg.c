/* linalg.c - the two decompositions that comparing Gaussians needs, by the LAPACK that comes with OpenBLAS. float64 on
 * the CPU, without gradients.
 *
 *   eigh            A = V diag(w) V^T of a symmetric matrix (dsyevd)
 *   nuclear_norms   |F_i F_j^T|_*, the sum of singular values, for all pairs of a list of matrices (dgesdd)
 *
 * With centred samples as rows, F^T F is a covariance S, and tr((S^1/2 S' S^1/2)^1/2) = |F F'^T|_*: singular values of
 * a small matrix, no square root of a large one, and nothing to clamp where S has no full rank. A factor of more rows
 * than columns is replaced by the R of its QR decomposition first, which has the same F^T F. */
#include "core.h"
#include <omp.h>

void dsyevd_(const char *job, const char *half, const int *n, double *a, const int *lda, double *w, double *work,
             const int *lwork, int *iwork, const int *liwork, int *info);
void dgesdd_(const char *job, const int *m, const int *n, double *a, const int *lda, double *s, double *u,
             const int *ldu, double *vt, const int *ldvt, double *work, const int *lwork, int *iwork, int *info);
void dgeqrf_(const int *m, const int *n, double *a, const int *lda, double *tau, double *work, const int *lwork,
             int *info);

static int check(const char *what, const pg_tensor *t, const char *wanted, bool fits) {
  char shape[128];
  PG_TRY(pg_check_live(t, what));
  if (!fits || t->dtype != PG_FLOAT64 || t->device != PG_CPU)
    return pg_fail(PG_ERR_ARGUMENT, "%s: takes %s, float64 on the cpu, got %s %s on %s", what, wanted,
                   pg_shape_text(t, shape), pg_dtype_name(t->dtype), pg_device_name(t->device));
  int64_t bad = 0;
  PG_TRY(pg_count_nonfinite(t, &bad));
  if (bad) return pg_fail(PG_ERR_ARGUMENT, "%s: %lld values are not finite", what, (long long)bad);
  return pg_blas_fits(t->ndim, t->shape);
}

/* ---- eigenvalues ------------------------------------------------------------------------------------------------ */

static int eigh(int n, double *a, double *values) { /* a becomes the eigenvectors, a row each */
  int info = 0, lwork = -1, liwork = -1, count;
  double size;
  dsyevd_("V", "U", &n, a, &n, values, &size, &lwork, &count, &liwork, &info);
  lwork = (int)size, liwork = count;
  size_t bytes = sizeof(double) * (size_t)lwork + sizeof(int) * (size_t)liwork;
  double *work = pg_scratch_alloc(bytes);
  if (!work) return pg_fail(PG_ERR_MEMORY, "eigh: out of memory");
  dsyevd_("V", "U", &n, a, &n, values, work, &lwork, (int *)(work + lwork), &liwork, &info);
  pg_scratch_free(work, bytes);
  return info ? pg_fail(PG_ERR_STATE, "eigh: %d eigenvalues did not converge", info) : PG_OK;
}

int pg_eigh(pg_tensor *x, pg_tensor **values, pg_tensor **vectors) {
  pg_tensor *w = NULL, *v = NULL;
  PG_TRY(check("eigh", x, "a square matrix (N, N)", x->ndim == 2 && x->shape[0] == x->shape[1]));
  const int64_t n = x->shape[0];
  int status = pg_new(PG_FLOAT64, PG_CPU, 1, &n, &w);
  if (!status) status = pg_new(PG_FLOAT64, PG_CPU, 2, x->shape, &v);
  if (!status) status = pg_copy(v, x);
  if (!status && n) status = eigh((int)n, PG_AT(double, v), PG_AT(double, w));
  if (status) return pg_release(w), pg_release(v), status;
  return *values = w, *vectors = v, PG_OK;
}

/* ---- nuclear norms ---------------------------------------------------------------------------------------------- */

typedef struct factor { /* (rows, d) */
  int rows;
  double *at;
} factor;

/* Rows beyond d are folded into R. LAPACK counts by columns: QR of F is LQ of what it sees, and R^T its L. */
static int fold(factor *f, int d) {
  int info = 0, lwork = -1, n = f->rows;
  double size, *columns, *tau, *work;
  if (n <= d) return PG_OK;
  dgeqrf_(&n, &d, NULL, &n, NULL, &size, &lwork, &info);
  lwork = (int)size;
  size_t bytes = sizeof(double) * ((size_t)n * (size_t)d + (size_t)d + (size_t)lwork);
  if (!(columns = pg_scratch_alloc(bytes))) return PG_ERR_MEMORY;
  tau = columns + (size_t)n * (size_t)d, work = tau + d;
  for (int i = 0; i < n; i++)
    for (int k = 0; k < d; k++) columns[(size_t)k * (size_t)n + (size_t)i] = f->at[(size_t)i * (size_t)d + (size_t)k];
  dgeqrf_(&n, &d, columns, &n, tau, work, &lwork, &info);
  for (int i = 0; i < d; i++)
    for (int k = 0; k < d; k++)
      f->at[(size_t)i * (size_t)d + (size_t)k] = i <= k ? columns[(size_t)k * (size_t)n + (size_t)i] : 0;
  f->rows = d;
  pg_scratch_free(columns, bytes);
  return info ? PG_ERR_STATE : PG_OK;
}

/* |F G^T|_* */
static int nuclear_norm(const factor *f, const factor *g, int d, double *out) {
  int info = 0, lwork = -1, one = 1, m = g->rows, n = f->rows, least = PG_MIN(m, n);
  double size, sum = 0;
  if (!least || !d) return *out = 0, PG_OK;
  dgesdd_("N", &m, &n, NULL, &m, NULL, NULL, &one, NULL, &one, &size, &lwork, NULL, &info);
  lwork = (int)size;
  size_t bytes =
      sizeof(double) * ((size_t)m * (size_t)n + (size_t)least + (size_t)lwork) + sizeof(int) * 8 * (size_t)least;
  double *product = pg_scratch_alloc(bytes), *values, *work;
  if (!product) return PG_ERR_MEMORY;
  values = product + (size_t)m * (size_t)n, work = values + least;
  int status = pg_gemm_f64(0, 1, n, m, d, 1, f->at, d, g->at, d, 0, product, m);
  if (!status) {
    dgesdd_("N", &m, &n, product, &m, values, NULL, &one, NULL, &one, work, &lwork, (int *)(work + lwork), &info);
    for (int k = 0; k < least; k++) sum += values[k];
    *out = sum, status = info ? PG_ERR_STATE : PG_OK;
  }
  pg_scratch_free(product, bytes);
  return status;
}

/* Copies of the factors, folded; `room` is the memory of all. */
static int fold_all(pg_tensor *const *given, int count, int d, factor *f, double *room) {
  int worst = PG_OK;
  for (int i = 0; i < count; i++) {
    f[i] = (factor){(int)given[i]->shape[0], room};
    room += (size_t)f[i].rows * (size_t)d;
    PG_TRY(pg_download(given[i], f[i].at, (int64_t)sizeof(double) * f[i].rows * d));
  }
#pragma omp parallel for schedule(dynamic) reduction(max : worst)
  for (int i = 0; i < count; i++) worst = PG_MAX(worst, fold(&f[i], d));
  return worst;
}

int pg_nuclear_norms(pg_tensor *const *factors, int32_t count, pg_tensor **out) {
  const int64_t shape[2] = {count, count};
  int64_t rows = 0, d = count ? factors[0]->shape[PG_MAX(factors[0]->ndim - 1, 0)] : 0;
  for (int32_t i = 0; i < count; i++) {
    PG_TRY(check("nuclear_norms", factors[i], "matrices (N, D) of one D",
                 factors[i]->ndim == 2 && factors[i]->shape[1] == d));
    rows += factors[i]->shape[0];
  }
  pg_tensor *norms = NULL;
  size_t bytes = sizeof(factor) * (size_t)count + sizeof(double) * (size_t)rows * (size_t)d + 64;
  factor *f = pg_scratch_alloc(bytes);
  int worst = f ? pg_new(PG_FLOAT64, PG_CPU, 2, shape, &norms) : PG_ERR_MEMORY;
  if (!worst) worst = fold_all(factors, count, (int)d, f, (double *)(f + count));
  if (!worst) {
    double *norm = PG_AT(double, norms);
#pragma omp parallel for schedule(dynamic) reduction(max : worst) /* OpenBLAS stays on the thread that calls it */
    for (int pair = 0; pair < count * count; pair++) {
      int i = pair / count, j = pair % count;
      if (j > i || pg_stopping()) continue;
      worst = PG_MAX(worst, nuclear_norm(&f[i], &f[j], (int)d, &norm[i * count + j]));
      norm[j * count + i] = norm[i * count + j];
    }
  }
  pg_scratch_free(f, bytes);
  worst = pg_unless_stopped(worst);
  if (!worst) return *out = norms, PG_OK;
  pg_release(norms);
  return pg_fail(worst, worst == PG_ERR_MEMORY ? "nuclear_norms: out of memory"
                                               : "nuclear_norms: singular values did not converge");
}
