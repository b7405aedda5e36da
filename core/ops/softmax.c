/* softmax.c - along one dimension:  y_i = e^(x_i - max) / sum_j e^(x_j - max),  and its logarithm.
 *
 * Backward from the output alone:  softmax      dx = y * (dy - sum_j dy_j y_j)
 *                                  log_softmax  dx = dy - e^y * sum_j dy_j */
#ifdef REAL

static inline __attribute__((always_inline)) real K(greatest)(int64_t n, const real *restrict x) {
  real top = x[0];
#pragma omp simd reduction(max : top)
  for (int64_t i = 1; i < n; i++) top = x[i] > top ? x[i] : top;
  return top;
}

PG_SIMD static void K(softmax_row)(int64_t n, const real *restrict x, const real *restrict none, real *restrict y) {
  (void)none;
  real top = K(greatest)(n, x), sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) {
    real e = K(v_decay)(x[i] - top, 0);
    y[i] = e, sum += e;
  }
  real scale = 1 / sum;
  for (int64_t i = 0; i < n; i++) y[i] *= scale;
}

PG_SIMD static void K(log_softmax_row)(int64_t n, const real *restrict x, const real *restrict none, real *restrict y) {
  (void)none;
  real top = K(greatest)(n, x), sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += K(v_decay)(x[i] - top, 0);
  real shift = top + R(log)(sum);
  for (int64_t i = 0; i < n; i++) y[i] = x[i] - shift;
}

PG_SIMD static void K(softmax_row_grad)(int64_t n, const real *restrict y, const real *restrict dy, real *restrict dx) {
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += dy[i] * y[i];
  for (int64_t i = 0; i < n; i++) dx[i] = y[i] * (dy[i] - sum);
}

PG_SIMD static void K(log_softmax_row_grad)(int64_t n, const real *restrict y, const real *restrict dy,
                                            real *restrict dx) {
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += dy[i];
  for (int64_t i = 0; i < n; i++) dx[i] = dy[i] - K(v_exp)(y[i]) * sum;
}

/* Every line of a along dimension p[0]; forward has no dy. */
static int K(each_line)(pg_call *c, const pg_tensor *a, const pg_tensor *upstream, pg_tensor *to,
                        void (*line)(int64_t n, const real *, const real *, real *)) {
  int32_t dim;
  int64_t outer, n, inner;
  PG_TRY(pg_dim(c, a, c->p[0].ints[0], &dim));
  if (!a->ndim || !pg_numel(a)) return PG_OK;
  pg_around(a, dim, &outer, &n, &inner);
  const real *x = PG_AT(real, a), *dy = upstream ? PG_AT(real, upstream) : NULL;
  real *y = PG_AT(real, to);
  if (inner == 1) {
#pragma omp parallel for schedule(static) if (outer > 1 && outer * n > 32768)
    for (int64_t r = 0; r < outer; r++)
      if (!pg_stopping()) line(n, x + r * n, dy ? dy + r * n : NULL, y + r * n);
    return PG_OK;
  }
  /* a dimension in the middle: one line at a time, gathered into a thread's own three rows */
  size_t bytes = sizeof(real) * 3 * (size_t)n * (size_t)pg_threads();
  real *scratch = pg_scratch_alloc(bytes);
  if (!scratch) return pg_fail(PG_ERR_MEMORY, "softmax: out of memory");
#pragma omp parallel for schedule(static) if (outer * inner > 1 && outer * inner * n > 32768)
  for (int64_t r = 0; r < outer * inner; r++) {
    if (pg_stopping()) continue;
    real *row = scratch + (int64_t)omp_get_thread_num() * 3 * n;
    int64_t at = r / inner * n * inner + r % inner;
    for (int64_t i = 0; i < n; i++) row[i] = x[at + i * inner], row[2 * n + i] = dy ? dy[at + i * inner] : 0;
    line(n, row, row + 2 * n, row + n);
    for (int64_t i = 0; i < n; i++) y[at + i * inner] = row[n + i];
  }
  pg_scratch_free(scratch, bytes);
  return PG_OK;
}

static int K(softmax_forward)(pg_call *c) { return K(each_line)(c, c->in[0], NULL, c->out[0], K(softmax_row)); }
static int K(softmax_backward)(pg_call *c) {
  return K(each_line)(c, c->out[0], c->grad_out[0], c->grad_in[0], K(softmax_row_grad));
}
static int K(log_softmax_forward)(pg_call *c) { return K(each_line)(c, c->in[0], NULL, c->out[0], K(log_softmax_row)); }
static int K(log_softmax_backward)(pg_call *c) {
  return K(each_line)(c, c->out[0], c->grad_out[0], c->grad_in[0], K(log_softmax_row_grad));
}

#else
#include "../op.h"
#include "../vmath.h"
#include <omp.h>
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
