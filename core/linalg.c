/* linalg.c - the two decompositions that comparing Gaussians needs, by the LAPACK that comes with OpenBLAS. float64 on
 * the CPU, without gradients.
 *
 *   eigh            A = V diag(w) V^T of a symmetric matrix (as dsyevd)
 *   nuclear_norms   |F_i F_j^T|_*, the sum of singular values, for all pairs of a list of matrices (as dgesdd)
 *
 * With centred samples as rows, F^T F is a covariance S, and tr((S^1/2 S' S^1/2)^1/2) = |F F'^T|_*: singular values of
 * a small matrix, no square root of a large one, and nothing to clamp where S has no full rank. A factor of more rows
 * than columns is replaced by the R of its QR decomposition first, which has the same F^T F.
 *
 * A call of dsyevd or dgesdd cannot be stopped, so that what they do is done here in their steps: a large matrix is
 * brought to two diagonals panel by panel, and vectors are carried back in strips. What remains in one piece is dstedc,
 * a quarter of the whole of eigh: it runs in a thread of its own, which who waits for it may leave behind. */
#include "core.h"
#include <cblas.h>
#include <omp.h>
#include <pthread.h>
#include <time.h>

void dlatrd_(const char *half, const int *n, const int *nb, double *a, const int *lda, double *e, double *tau,
             double *w, const int *ldw);
void dsytrd_(const char *half, const int *n, double *a, const int *lda, double *d, double *e, double *tau, double *work,
             const int *lwork, int *info);
void dstedc_(const char *job, const int *n, double *d, double *e, double *z, const int *ldz, double *work,
             const int *lwork, int *iwork, const int *liwork, int *info);
void dormtr_(const char *side, const char *half, const char *trans, const int *m, const int *n, double *a,
             const int *lda, double *tau, double *c, const int *ldc, double *work, const int *lwork, int *info);
void dlabrd_(const int *m, const int *n, const int *nb, double *a, const int *lda, double *d, double *e, double *tauq,
             double *taup, double *x, const int *ldx, double *y, const int *ldy);
void dgebrd_(const int *m, const int *n, double *a, const int *lda, double *d, double *e, double *tauq, double *taup,
             double *work, const int *lwork, int *info);
void dbdsdc_(const char *half, const char *job, const int *n, double *d, double *e, double *u, const int *ldu,
             double *vt, const int *ldvt, double *q, int *iq, double *work, int *iwork, int *info);
void dgeqrf_(const int *m, const int *n, double *a, const int *lda, double *tau, double *work, const int *lwork,
             int *info);
void dormqr_(const char *side, const char *trans, const int *m, const int *n, const int *k, double *a, const int *lda,
             double *tau, double *c, const int *ldc, double *work, const int *lwork, int *info);

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

enum { PANEL = 64, WHOLE = 512 }; /* columns reduced at once; fewer than WHOLE are left to one call */

/* LAPACK squares what it gets: values near the ends of the range are brought to its middle, without rounding. Returns
 * the power of two that was taken out. */
static int centre(size_t n, double *a) {
  enum { NEAR = 400 };
  double most = 0;
  int power = 0;
  for (size_t i = 0; i < n; i++) most = PG_MAX(most, fabs(a[i]));
  frexp(most, &power);
  if (abs(power) < NEAR) return 0;
  for (size_t i = 0; i < n; i++) a[i] = ldexp(a[i], -power);
  return power;
}

/* ---- eigenvalues ------------------------------------------------------------------------------------------------ */

/* dsytrd: Q^T A Q has the diagonals d and e; Q stays in a and tau. `panel` has room for (n, PANEL). */
static void to_tridiagonal(int n, double *a, double *d, double *e, double *tau, double *panel, double *work,
                           int lwork) {
  int left = n, width = PANEL, info;
  while (left > WHOLE && !pg_stopping()) {
    dlatrd_("U", &left, &width, a, &n, e, tau, panel, &n);
    left -= width;
    cblas_dsyr2k(CblasColMajor, CblasUpper, CblasNoTrans, left, width, -1, a + (size_t)left * (size_t)n, n, panel, n, 1,
                 a, n);
    for (int j = left; j < left + width; j++) d[j] = a[(size_t)j * (size_t)(n + 1)];
  }
  if (left <= WHOLE) dsytrd_("U", &left, a, &n, d, e, tau, work, &lwork, &info); /* else it was stopped */
}

/* dstedc of (d, e): what it reads and writes is its own while it runs, and it lets go of it when it was left behind. */
typedef struct tridiagonal {
  pg_tensor *values, *vectors;
  double *e, *work; /* `work` begins a scratch of so many bytes, in which the others are */
  int *iwork, n, lwork, liwork, info, threads;
  size_t bytes;
  bool done, left;
  pthread_mutex_t lock;
  pthread_cond_t changed;
} tridiagonal;

static atomic_int behind; /* of these, how many nobody waits for */

static void solve(tridiagonal *t) {
  dstedc_("I", &t->n, PG_AT(double, t->values), t->e, PG_AT(double, t->vectors), &t->n, t->work, &t->lwork, t->iwork,
          &t->liwork, &t->info);
}

static void *solve_aside(void *given) {
  tridiagonal *t = given;
  omp_set_num_threads(t->threads);
  solve(t);
  pthread_mutex_lock(&t->lock);
  t->done = true;
  bool left = t->left;
  pthread_cond_signal(&t->changed);
  pthread_mutex_unlock(&t->lock);
  if (!left) return NULL; /* from here on t is the other's */
  pg_scratch_free(t->work, t->bytes);
  pg_release(t->values), pg_release(t->vectors);
  free(t);
  atomic_fetch_sub(&behind, 1);
  return NULL;
}

/* OpenBLAS's buffers belong to one caller at a time when the number of its threads changes; and whoever is left behind
 * computes with libraries that the end of the process takes away. */
__attribute__((destructor)) void pg_blas_wait(void) {
  while (atomic_load(&behind)) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* Runs it to its end and returns true with t->info, or false when it is to stop: then `work` is no longer the caller's.
 */
static bool solve_or_leave(tridiagonal *t) {
  pthread_t thread;
  tridiagonal *own = t->n > WHOLE ? malloc(sizeof *own) : NULL;
  if (own) *own = *t, pthread_mutex_init(&own->lock, NULL), pthread_cond_init(&own->changed, NULL);
  if (!own || pthread_create(&thread, NULL, solve_aside, own)) return free(own), solve(t), true;
  pthread_detach(thread);
  pthread_mutex_lock(&own->lock);
  while (!own->done && !pg_stopping()) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 20000000;
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    pthread_cond_timedwait(&own->changed, &own->lock, &until);
  }
  bool done = own->done;
  if (!done) {
    own->left = true;
    pg_retain(own->values), pg_retain(own->vectors);
    atomic_fetch_add(&behind, 1);
  }
  pthread_mutex_unlock(&own->lock);
  if (done) t->info = own->info, free(own);
  return done;
}

/* a is used up; the vectors become the columns that LAPACK sees, the rows of ours. */
static int eigh(int n, double *a, pg_tensor *w, pg_tensor *v) {
  double *values = PG_AT(double, w), *vectors = PG_AT(double, v);
  int info = 0, ask = -1, lwork, liwork, count;
  double size, most, none;
  dstedc_("I", &n, values, &none, vectors, &n, &size, &ask, &liwork, &ask, &info);
  most = PG_MAX(size, 2.0 * WHOLE * PANEL);
  dormtr_("L", "U", "N", &n, &n, a, &n, &none, vectors, &n, &size, &ask, &info);
  most = PG_MAX(most, size);
  if (most > INT32_MAX) return pg_fail(PG_ERR_SHAPE, "eigh: LAPACK cannot count the work space of %d rows", n);
  lwork = (int)most;
  size_t rows = (size_t)n, bytes = sizeof(double) * ((size_t)lwork + (PANEL + 2) * rows) + sizeof(int) * (size_t)liwork;
  double *work = pg_scratch_alloc(bytes);
  if (!work) return pg_fail(PG_ERR_MEMORY, "eigh: out of memory");
  double *e = work + lwork, *tau = e + n, *panel = tau + n;
  int power = centre(rows * rows, a);
  to_tridiagonal(n, a, values, e, tau, panel, work, lwork);
  tridiagonal middle = {.values = w,
                        .vectors = v,
                        .e = e,
                        .work = work,
                        .iwork = (int *)(panel + PANEL * rows),
                        .n = n,
                        .lwork = lwork,
                        .liwork = liwork,
                        .threads = omp_get_max_threads(),
                        .bytes = bytes};
  if (!pg_stopping() && !solve_or_leave(&middle)) return pg_unless_stopped(PG_OK);
  info = middle.info;
  int strip = PG_MAX(PANEL, (int)(6e9 / ((double)n * n)));
  for (int j = 0; j < n && !info && !pg_stopping(); j += strip) {
    count = PG_MIN(strip, n - j);
    dormtr_("L", "U", "N", &n, &count, a, &n, tau, vectors + (size_t)j * rows, &n, work, &lwork, &ask);
  }
  for (int i = 0; power && i < n; i++) values[i] = ldexp(values[i], power);
  pg_scratch_free(work, bytes);
  return pg_unless_stopped(info ? pg_fail(PG_ERR_STATE, "eigh: %d eigenvalues did not converge", info) : PG_OK);
}

int pg_eigh(pg_tensor *x, pg_tensor **values, pg_tensor **vectors) {
  pg_tensor *w = NULL, *v = NULL, *a = NULL;
  PG_TRY(check("eigh", x, "a square matrix (N, N)", x->ndim == 2 && x->shape[0] == x->shape[1]));
  pg_blas_wait();
  const int64_t n = x->shape[0];
  int status = pg_new(PG_FLOAT64, PG_CPU, 1, &n, &w);
  if (!status) status = pg_new(PG_FLOAT64, PG_CPU, 2, x->shape, &v);
  if (!status) status = pg_new(PG_FLOAT64, PG_CPU, 2, x->shape, &a);
  if (!status) status = pg_copy_new(a, x);
  if (!status && n) status = eigh((int)n, PG_AT(double, a), w, v);
  pg_release(a);
  if (status) return pg_release(w), pg_release(v), status;
  return *values = w, *vectors = v, PG_OK;
}

/* ---- nuclear norms ---------------------------------------------------------------------------------------------- */

typedef struct factor { /* (rows, d) */
  int rows;
  double *at;
} factor;

/* The R of a QR decomposition of a (m, n), by columns, m >= n, panel by panel; what is below it is not cleared. */
static int to_triangle(int m, int n, double *a, double *tau, double *work, int lwork) {
  int info = 0;
  for (int j = 0; j < n && !info && !pg_stopping(); j += WHOLE) {
    int rows = m - j, width = PG_MIN(WHOLE, n - j), right = n - j - width;
    double *panel = a + (size_t)j * (size_t)(m + 1);
    dgeqrf_(&rows, &width, panel, &m, tau, work, &lwork, &info);
    if (right && !info && !pg_stopping())
      dormqr_("L", "T", &rows, &right, &width, panel, &m, tau, panel + (size_t)width * (size_t)m, &m, work, &lwork,
              &info);
  }
  return info ? PG_ERR_STATE : PG_OK;
}

/* Rows beyond d are folded into R, some at a time: [R; more rows] has an R of its own. */
static int fold(factor *f, int d) {
  const int most = PG_MIN(f->rows, 4 * d), lwork = (PG_MAX(d, WHOLE) + PANEL + 1) * PANEL;
  if (f->rows <= d) return PG_OK;
  size_t bytes = sizeof(double) * ((size_t)most * (size_t)d + (size_t)d + (size_t)lwork);
  double *columns = pg_scratch_alloc(bytes), *tau = columns + (size_t)most * (size_t)d;
  int status = columns ? PG_OK : PG_ERR_MEMORY;
  while (!status && f->rows > d && !pg_stopping()) { /* the last `m` rows become the d that stand in their place */
    int m = PG_MIN(f->rows, most);
    double *from = f->at + (size_t)(f->rows - m) * (size_t)d;
    for (int i = 0; i < m; i++)
      for (int k = 0; k < d; k++) columns[(size_t)k * (size_t)m + (size_t)i] = from[(size_t)i * (size_t)d + (size_t)k];
    status = to_triangle(m, d, columns, tau, tau + d, lwork);
    for (int i = 0; i < d; i++)
      for (int k = 0; k < d; k++)
        from[(size_t)i * (size_t)d + (size_t)k] = i <= k ? columns[(size_t)k * (size_t)m + (size_t)i] : 0;
    f->rows += d - m;
  }
  pg_scratch_free(columns, bytes);
  return status;
}

/* dgebrd: Q^T A P, of a (m, n) with m >= n, has the diagonals d and e. x and y have room for (m, PANEL) and (n, PANEL).
 */
static void to_bidiagonal(int m, int n, double *a, double *d, double *e, double *tau, double *x, double *y,
                          double *work, int lwork) {
  int rows = m, columns = n, width = PANEL, info;
  while (columns > WHOLE && !pg_stopping()) {
    dlabrd_(&rows, &columns, &width, a, &m, d, e, tau, tau + n, x, &m, y, &n);
    rows -= width, columns -= width, d += width, e += width;
    double *below = a + width, *right = a + (size_t)width * (size_t)m;
    a = right + width;
    cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, rows, columns, width, -1, below, m, y + width, n, 1, a, m);
    cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, rows, columns, width, -1, x + width, m, right, m, 1, a, m);
  }
  if (columns <= WHOLE) dgebrd_(&rows, &columns, a, &m, d, e, tau, tau + n, work, &lwork, &info);
}

/* |F G^T|_*, which is |G F^T|_*: the one of more rows has the product's longer side. */
static int nuclear_norm(const factor *f, const factor *g, int d, double *out) {
  if (f->rows > g->rows) return nuclear_norm(g, f, d, out);
  const int m = g->rows, n = f->rows, one = 1, lwork = (m + n) * PANEL;
  int info = 0;
  double sum = 0;
  if (!n || !d) return *out = 0, PG_OK;
  size_t rows = (size_t)m, columns = (size_t)n;
  size_t doubles = rows * columns + (rows + columns) * PANEL + 4 * columns + (size_t)PG_MAX(lwork, 8 * n);
  size_t bytes = sizeof(double) * doubles + sizeof(int) * 8 * columns;
  double *product = pg_scratch_alloc(bytes);
  if (!product) return PG_ERR_MEMORY;
  double *x = product + rows * columns, *y = x + rows * PANEL, *values = y + columns * PANEL, *e = values + n;
  double *tau = e + n, *work = tau + 2 * n;
  int status = pg_gemm_f64(0, 1, n, m, d, 1, f->at, d, g->at, d, 0, product, m);
  if (!status && !pg_stopping()) {
    int power = centre(rows * columns, product);
    to_bidiagonal(m, n, product, values, e, tau, x, y, work, lwork);
    if (!pg_stopping())
      dbdsdc_("U", "N", &n, values, e, NULL, &one, NULL, &one, NULL, NULL, work, (int *)(product + doubles), &info);
    for (int k = 0; k < n; k++) sum += values[k];
    *out = ldexp(sum, power), status = info ? PG_ERR_STATE : PG_OK;
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
  pg_blas_wait();
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
  if (worst)
    pg_fail(worst, worst == PG_ERR_MEMORY ? "nuclear_norms: out of memory"
                                          : "nuclear_norms: singular values did not converge");
  worst = pg_unless_stopped(worst);
  if (worst) return pg_release(norms), worst;
  return *out = norms, PG_OK;
}
