/* softmax.c - along one dimension:  y_i = e^(x_i - max) / sum_j e^(x_j - max),  and its logarithm.
 *
 * Backward from the output alone:  softmax      dx = y * (dy - sum_j dy_j y_j)
 *                                  log_softmax  dx = dy - e^y * sum_j dy_j */
#ifdef REAL

PG_SIMD static void K(softmax_row)(int64_t n, const real *restrict x, real *restrict y, int logarithm) {
  real top = x[0];
  for (int64_t i = 1; i < n; i++) top = x[i] > top ? x[i] : top;
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) {
    real e = K(v_exp)(x[i] - top);
    y[i] = e, sum += e;
  }
  if (logarithm) {
    real shift = top + R(log)(sum);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] - shift;
  } else {
    real scale = 1 / sum;
    for (int64_t i = 0; i < n; i++) y[i] *= scale;
  }
}

PG_SIMD static void K(softmax_row_grad)(int64_t n, const real *restrict y, const real *restrict dy, real *restrict dx,
                                        int logarithm) {
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += logarithm ? dy[i] : dy[i] * y[i];
  if (logarithm)
    for (int64_t i = 0; i < n; i++) dx[i] = dy[i] - K(v_exp)(y[i]) * sum;
  else
    for (int64_t i = 0; i < n; i++) dx[i] = y[i] * (dy[i] - sum);
}

static int K(softmax_all)(pg_call *c, int logarithm, int backward) {
  pg_tensor *a = backward ? c->out[0] : c->in[0], *to = backward ? c->grad_in[0] : c->out[0];
  int32_t dim;
  int64_t outer, n, inner;
  PG_TRY(pg_dim(c, a, c->p[0].ints[0], &dim));
  if (!a->ndim || !pg_numel(a)) return PG_OK;
  pg_around(a, dim, &outer, &n, &inner);
  const real *x = PG_AT(real, a), *dy = backward ? PG_AT(real, c->grad_out[0]) : NULL;
  real *y = PG_AT(real, to);
  if (inner == 1) {
#pragma omp parallel for schedule(static) if (outer * n > 8192)
    for (int64_t r = 0; r < outer; r++) {
      if (backward)
        K(softmax_row_grad)(n, x + r * n, dy + r * n, y + r * n, logarithm);
      else
        K(softmax_row)(n, x + r * n, y + r * n, logarithm);
    }
    return PG_OK;
  }
  real *row = pg_scratch_alloc(sizeof(real) * 3 * (size_t)n); /* a dimension in the middle: one line at a time */
  if (!row) return pg_fail(PG_ERR_MEMORY, "softmax: out of memory");
  for (int64_t r = 0; r < outer * inner; r++) {
    int64_t at = r / inner * n * inner + r % inner;
    for (int64_t i = 0; i < n; i++) row[i] = x[at + i * inner], row[2 * n + i] = backward ? dy[at + i * inner] : 0;
    if (backward)
      K(softmax_row_grad)(n, row, row + 2 * n, row + n, logarithm);
    else
      K(softmax_row)(n, row, row + n, logarithm);
    for (int64_t i = 0; i < n; i++) y[at + i * inner] = row[n + i];
  }
  pg_scratch_free(row, sizeof(real) * 3 * (size_t)n);
  return PG_OK;
}

static int K(softmax_forward)(pg_call *c) { return K(softmax_all)(c, 0, 0); }
static int K(softmax_backward)(pg_call *c) { return K(softmax_all)(c, 0, 1); }
static int K(log_softmax_forward)(pg_call *c) { return K(softmax_all)(c, 1, 0); }
static int K(log_softmax_backward)(pg_call *c) { return K(softmax_all)(c, 1, 1); }

#else
#include "../op.h"
#include "../vmath.h"
#define REALS_FILE "ops/softmax.c"
#include "../reals.h"

static int softmax_shape(pg_call *c) {
  int32_t dim;
  PG_TRY(pg_dim(c, c->in[0], c->p[0].ints[0], &dim));
  if (!c->in[0]->ndim) return pg_op_fail(c, "needs at least one dimension");
  return pg_out_like(c, 0, c->in[0]);
}

#define SOFTMAX_OP(NAME, DOC)                                                                                          \
  const pg_op pg_op_##NAME = {.info = {.name = #NAME,                                                                  \
                                       .doc = DOC,                                                                     \
                                       .inputs = PG_ARGS({"x", 0, "any shape, float"}),                                \
                                       .outputs = PG_ARGS({"y", 0, "the shape of x"}),                                 \
                                       .params = PG_PARAMS(PG_ONE_DIM("dim", -1, "the dimension that sums to one")),   \
                                       .samples = PG_SAMPLES("{x = randn(3, 4)}", "{x = randn(2, 3, 4), dim = 2}"),    \
                                       .method = 1},                                                                   \
                              .shape = softmax_shape,                                                                  \
                              .needs = PG_NEED_OUT(0),                                                                 \
                              .forward = PG_REALS(NAME##_forward),                                                     \
                              .backward = PG_REALS(NAME##_backward)};
SOFTMAX_OP(softmax, "e^x divided by its sum along a dimension")
SOFTMAX_OP(log_softmax, "the logarithm of softmax")
#endif
