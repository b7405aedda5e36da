/* normalize.c - lines of length one:  y = x / max(||x||_2, eps)  along one dimension.
 *
 * Backward:  dx = (dy - y (y . dy)) / max(||x||, eps); where the norm is below eps it is a constant, and dx = dy / eps.
 *
 * x is seen as (outer, n, inner). For the last dimension inner is 1 and a line is contiguous; else a thread takes a
 * block of neighbouring lines and walks down n, so that every read is of neighbours too. */
#ifdef REAL

enum { K(LINES) = 64 }; /* in a block */

PG_SIMD static real K(dot)(int64_t n, const real *restrict a, const real *restrict b) {
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

PG_SIMD static void K(normalize_line)(int64_t n, const real *restrict x, real eps, real *restrict y, real *length) {
  real norm = *length = R(sqrt)(K(dot)(n, x, x)), scale = 1 / (norm < eps ? eps : norm);
  for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale;
}

PG_SIMD static void K(normalize_line_back)(int64_t n, const real *restrict y, const real *restrict dy, real length,
                                           real eps, real *restrict dx) {
  bool tiny = length < eps;
  real along = tiny ? 0 : K(dot)(n, y, dy), scale = 1 / (tiny ? eps : length);
  for (int64_t i = 0; i < n; i++) dx[i] = (dy[i] - along * y[i]) * scale;
}

/* The same for `lines` neighbours, `step` elements apart along the dimension. */
PG_SIMD static void K(normalize_block)(int64_t n, int64_t lines, int64_t step, const real *restrict x, real eps,
                                       real *restrict y, real *restrict length) {
  real scale[K(LINES)] = {0};
  for (int64_t i = 0; i < n; i++)
    for (int64_t k = 0; k < lines; k++) scale[k] += x[i * step + k] * x[i * step + k];
  for (int64_t k = 0; k < lines; k++) length[k] = R(sqrt)(scale[k]), scale[k] = 1 / (length[k] < eps ? eps : length[k]);
  for (int64_t i = 0; i < n; i++)
    for (int64_t k = 0; k < lines; k++) y[i * step + k] = x[i * step + k] * scale[k];
}

PG_SIMD static void K(normalize_block_back)(int64_t n, int64_t lines, int64_t step, const real *restrict y,
                                            const real *restrict dy, const real *restrict length, real eps,
                                            real *restrict dx) {
  real along[K(LINES)] = {0}, scale[K(LINES)];
  for (int64_t i = 0; i < n; i++)
    for (int64_t k = 0; k < lines; k++) along[k] += y[i * step + k] * dy[i * step + k];
  for (int64_t k = 0; k < lines; k++) {
    bool tiny = length[k] < eps;
    along[k] = tiny ? 0 : along[k], scale[k] = 1 / (tiny ? eps : length[k]);
  }
  for (int64_t i = 0; i < n; i++)
    for (int64_t k = 0; k < lines; k++) dx[i * step + k] = (dy[i * step + k] - along[k] * y[i * step + k]) * scale[k];
}

static int K(normalize_forward)(pg_call *c) {
  lines l = lines_of(c, K(LINES));
  const real *x = PG_AT(real, c->in[0]), eps = (real)c->p[EPS].num;
  real *y = PG_AT(real, c->out[0]), *length = PG_AT(real, c->out[1]);
#pragma omp parallel for schedule(static) if (l.outer * l.n * l.inner > 16384)
  for (int64_t t = 0; t < l.outer * l.blocks; t++) {
    if (pg_stopping()) continue;
    int64_t o = t / l.blocks, k = t % l.blocks * K(LINES), at = o * l.n * l.inner + k, line = o * l.inner + k;
    if (l.inner == 1)
      K(normalize_line)(l.n, x + at, eps, y + at, length + line);
    else
      K(normalize_block)(l.n, PG_MIN(K(LINES), l.inner - k), l.inner, x + at, eps, y + at, length + line);
  }
  return PG_OK;
}

static int K(normalize_backward)(pg_call *c) {
  lines l = lines_of(c, K(LINES));
  const real *y = PG_AT(real, c->out[0]), *length = PG_AT(real, c->out[1]), *dy = PG_AT(real, c->grad_out[0]);
  real *dx = PG_AT(real, c->grad_in[0]), eps = (real)c->p[EPS].num;
#pragma omp parallel for schedule(static) if (l.outer * l.n * l.inner > 16384)
  for (int64_t t = 0; t < l.outer * l.blocks; t++) {
    if (pg_stopping()) continue;
    int64_t o = t / l.blocks, k = t % l.blocks * K(LINES), at = o * l.n * l.inner + k, line = o * l.inner + k;
    if (l.inner == 1)
      K(normalize_line_back)(l.n, y + at, dy + at, length[line], eps, dx + at);
    else
      K(normalize_block_back)
    (l.n, PG_MIN(K(LINES), l.inner - k), l.inner, y + at, dy + at, length + line, eps, dx + at);
  }
  return PG_OK;
}

#else
#include "../op.h"

enum { DIM, EPS };

typedef struct lines {
  int64_t outer, n, inner, blocks; /* blocks: of neighbouring lines, for each outer */
} lines;

static lines lines_of(const pg_call *c, int64_t block) {
  lines l = {0};
  int32_t dim = (int32_t)c->p[DIM].ints[0];
  pg_around(c->in[0], dim < 0 ? dim + c->in[0]->ndim : dim, &l.outer, &l.n, &l.inner);
  l.blocks = (l.inner + block - 1) / block;
  return l;
}

#define REALS_FILE "ops/normalize.c"
#include "../reals.h"

static int normalize_shape(pg_call *c) {
  const pg_tensor *x = c->in[0];
  int32_t dim;
  int64_t shape[PG_MAX_DIMS];
  if (!x->ndim) return pg_op_fail(c, "needs at least one dimension");
  PG_TRY(pg_dim(c, x, c->p[DIM].ints[0], &dim));
  for (int32_t i = 0, k = 0; i < x->ndim; i++)
    if (i != dim) shape[k++] = x->shape[i];
  PG_TRY(pg_out_like(c, 0, x));
  return pg_out(c, 1, x->dtype, x->ndim - 1, shape);
}

const pg_op pg_op_normalize = {
    .info = {.name = "normalize",
             .doc = "x / max(||x||, eps), with the Euclidean norm along a dimension",
             .inputs = PG_ARGS({"x", 0, "any shape, float"}),
             .outputs = PG_ARGS({"y", 0, "the shape of x"}, {"length", PG_HIDDEN, "x without the dimension"}),
             .params = PG_PARAMS(PG_ONE_DIM("dim", -1, "the dimension"), PG_NUM("eps", 1e-12, 0, 1, "least length")),
             .samples = PG_SAMPLES("{x = randn(3, 4)}", "{x = randn(2, 3, 5)}", "{x = randn(4, 3), dim = 1}",
                                   "{x = randn(2, 3, 70), dim = 2}", "{x = randn(3, 2, 2), dim = -3, eps = 0.9}"),
             .method = 1},
    .shape = normalize_shape,
    .needs = PG_NEED_OUT(0) | PG_NEED_OUT(1),
    .forward = PG_REALS(normalize_forward),
    .backward = PG_REALS(normalize_backward)};
#endif
