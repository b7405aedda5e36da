/* normalize.c - rows of length one:  y = x / max(||x||_2, eps)  along the last dimension.
 *
 * Backward:  dx = (dy - y (y . dy)) / max(||x||, eps); where the norm is below eps it is a constant, and dx = dy / eps.
 */
#ifdef REAL

PG_SIMD static real K(dot)(int64_t n, const real *restrict a, const real *restrict b) {
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

static int K(normalize_forward)(pg_call *c) {
  int64_t n = c->in[0]->shape[c->in[0]->ndim - 1], rows = n ? pg_numel(c->in[0]) / n : 0;
  const real *x = PG_AT(real, c->in[0]), eps = (real)c->p[0].num;
  real *y = PG_AT(real, c->out[0]), *length = PG_AT(real, c->out[1]);
#pragma omp parallel for schedule(static) if (rows * n > 16384)
  for (int64_t r = 0; r < rows; r++) {
    real norm = R(sqrt)(K(dot)(n, x + r * n, x + r * n)), scale = 1 / (norm < eps ? eps : norm);
    length[r] = norm;
    for (int64_t i = 0; i < n; i++) y[r * n + i] = x[r * n + i] * scale;
  }
  return PG_OK;
}

static int K(normalize_backward)(pg_call *c) {
  int64_t n = c->in[0]->shape[c->in[0]->ndim - 1], rows = n ? pg_numel(c->in[0]) / n : 0;
  const real *y = PG_AT(real, c->out[0]), *length = PG_AT(real, c->out[1]), *dy = PG_AT(real, c->grad_out[0]);
  real *dx = PG_AT(real, c->grad_in[0]), eps = (real)c->p[0].num;
#pragma omp parallel for schedule(static) if (rows * n > 16384)
  for (int64_t r = 0; r < rows; r++) {
    bool tiny = length[r] < eps;
    real along = tiny ? 0 : K(dot)(n, y + r * n, dy + r * n), scale = 1 / (tiny ? eps : length[r]);
    for (int64_t i = 0; i < n; i++) dx[r * n + i] = (dy[r * n + i] - along * y[r * n + i]) * scale;
  }
  return PG_OK;
}

#else
#include "../op.h"
#define REALS_FILE "ops/normalize.c"
#include "../reals.h"

static int normalize_shape(pg_call *c) {
  if (!c->in[0]->ndim) return pg_op_fail(c, "needs at least one dimension");
  PG_TRY(pg_out_like(c, 0, c->in[0]));
  return pg_out(c, 1, c->in[0]->dtype, c->in[0]->ndim - 1, c->in[0]->shape);
}

const pg_op pg_op_normalize = {.info = {.name = "normalize",
                                        .doc = "x / max(||x||, eps) along the last dimension",
                                        .inputs = PG_ARGS({"x", 0, "(..., D) float"}),
                                        .outputs = PG_ARGS({"y", 0, "(..., D)"}, {"length", PG_HIDDEN, "(...)"}),
                                        .params = PG_PARAMS(PG_NUM("eps", 1e-12, 0, 1, "least length")),
                                        .samples = PG_SAMPLES("{x = randn(3, 4)}", "{x = randn(2, 3, 5)}"),
                                        .method = 1},
                               .shape = normalize_shape,
                               .needs = PG_NEED_OUT(0) | PG_NEED_OUT(1),
                               .forward = PG_REALS(normalize_forward),
                               .backward = PG_REALS(normalize_backward)};
#endif
