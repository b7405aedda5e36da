/* knn.c - exact k nearest neighbours, by (similarity, index): the greater similarity first, of equal ones the lower
 * index.
 *
 *   ip      q . x            cosine  q . x / (|q| |x|)            l2  -|q - x|^2, returned as the distance |q - x|^2
 *
 * Queries are taken in blocks: one GEMM gives a block's inner products with the whole database, and each row keeps its
 * k best in a small sorted list, so the (Q, N) matrix is never written. Squared distances are summed from differences,
 * not expanded, since |q|^2 - 2 q.x + |x|^2 cancels. */
#ifdef REAL

static real K(length)(int64_t d, const real *x) {
  double sum = 0;
  for (int64_t i = 0; i < d; i++) sum += (double)x[i] * x[i];
  return (real)sqrt(sum);
}

PG_SIMD static real K(squared_distance)(int64_t d, const real *restrict a, const real *restrict b) {
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < d; i++) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

/* Keeps (s, j) among the k best of a sorted list; candidates come with rising j, so a tie goes behind. */
static inline void K(keep)(real s, int32_t j, int64_t k, real *best, int32_t *at, int64_t *count) {
  if (*count == k && !(s > best[k - 1])) return;
  int64_t i = *count < k ? (*count)++ : k - 1;
  for (; i > 0 && s > best[i - 1]; i--) best[i] = best[i - 1], at[i] = at[i - 1];
  best[i] = s, at[i] = j;
}

static int K(knn_forward)(pg_call *c) {
  enum { BLOCK = 128 };
  int64_t q = c->in[0]->shape[0], n = c->in[1]->shape[0], d = c->in[0]->shape[1], k = c->p[0].ints[0];
  int metric = (int)c->p[1].ints[0];
  bool self = c->p[2].ints[0];
  const real *a = PG_AT(real, c->in[0]), *b = PG_AT(real, c->in[1]);
  real *value = PG_AT(real, c->out[0]);
  int32_t *at = PG_AT(int32_t, c->out[1]);
  PG_TRY(pg_blas_fits(2, (int64_t[]){n, d}));
  size_t bytes = sizeof(real) * (size_t)(n + (metric == L2 ? 0 : BLOCK * n));
  real *inverse = pg_scratch_alloc(bytes), *products = inverse ? inverse + n : NULL;
  if (!inverse) return pg_fail(PG_ERR_MEMORY, "knn: out of memory");
#pragma omp parallel for schedule(static)
  for (int64_t j = 0; j < n; j++) inverse[j] = metric == COSINE ? 1 / (K(length)(d, b + j * d) + (real)1e-30) : 1;
  for (int64_t from = 0; from < q && !pg_stopping(); from += BLOCK) {
    int64_t rows = PG_MIN(BLOCK, q - from);
    if (metric != L2) K(pg_gemm)(0, 1, rows, n, d, 1, a + from * d, d, b, d, 0, products, n);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
      if (pg_stopping()) continue;
      int64_t i = from + r, count = 0;
      real scale = metric == COSINE ? 1 / (K(length)(d, a + i * d) + (real)1e-30) : 1;
      for (int64_t j = 0; j < n; j++) {
        if (self && j == i) continue;
        real s =
            metric == L2 ? -K(squared_distance)(d, a + i * d, b + j * d) : products[r * n + j] * scale * inverse[j];
        K(keep)(s, (int32_t)j, k, value + i * k, at + i * k, &count);
      }
      if (metric == L2)
        for (int64_t j = 0; j < k; j++) value[i * k + j] = -value[i * k + j];
    }
  }
  pg_scratch_free(inverse, bytes);
  return PG_OK;
}

#else
#include "../op.h"

enum { IP, COSINE, L2 };
#define REALS_FILE "ops/knn.c"
#include "../reals.h"

static int knn_shape(pg_call *c) {
  const pg_tensor *a = c->in[0], *b = c->in[1];
  int64_t k = c->p[0].ints[0], bad = 0;
  if (a->ndim != 2 || b->ndim != 2 || a->shape[1] != b->shape[1]) return pg_op_fail(c, "takes (Q, D) and (N, D)");
  if (k > b->shape[0] - (c->p[2].ints[0] != 0))
    return pg_op_fail(c, "k = %lld, but a query has %lld others to choose from", (long long)k,
                      (long long)(b->shape[0] - (c->p[2].ints[0] != 0)));
  for (int i = 0; i < 2; i++) {
    PG_TRY(pg_count_nonfinite(c->in[i], &bad));
    if (bad)
      return pg_fail(PG_ERR_ARGUMENT, "knn: %s holds %lld values that are not finite", c->op->info.inputs[i].name,
                     (long long)bad);
  }
  int64_t shape[2] = {a->shape[0], k};
  PG_TRY(pg_out(c, 0, a->dtype, 2, shape));
  return pg_out(c, 1, PG_INT32, 2, shape);
}

const pg_op pg_op_knn = {
    .info = {.name = "knn",
             .doc = "the k nearest rows of a database for each query, nearest first, ties to the lower index",
             .inputs = PG_ARGS({"queries", 0, "(Q, D) float"}, {"database", 0, "(N, D) float"}),
             .outputs =
                 PG_ARGS({"similarity", 0, "(Q, k); the squared distance for l2"}, {"index", PG_INDEX, "(Q, k) int32"}),
             .params = PG_PARAMS(PG_INT("k", NAN, 1, 1 << 20, "neighbours a query"),
                                 PG_WORD("metric", 1, "ip cosine l2", "what near means"),
                                 PG_FLAG("exclude_self", 0, "query i is database row i and not its own neighbour")),
             .no_backward = "which rows are nearest is piecewise constant",
             .samples = PG_SAMPLES("{queries = randn(3, 4), database = randn(9, 4), k = 3}",
                                   "{queries = randn(3, 4), database = randn(9, 4), k = 2, metric = \"l2\"}")},
    .shape = knn_shape,
    .forward = PG_REALS(knn_forward)};
#endif
