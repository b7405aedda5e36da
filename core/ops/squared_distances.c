/* squared_distances.c - between the rows of two matrices:  out_ij = |x_i - y_j|^2,  summed from differences, since
 * |x|^2 - 2 x.y + |y|^2 cancels where rows are close.
 *
 * Backward:  dx_i = 2 sum_j g_ij (x_i - y_j),   dy_j = 2 sum_i g_ij (y_j - x_i)
 *
 * Four rows of y meet sixteen of x while they are in the cache. */
#ifdef REAL

PG_SIMD static real K(distance)(int64_t d, const real *restrict x, const real *restrict y) {
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < d; k++) sum += (x[k] - y[k]) * (x[k] - y[k]);
  return sum;
}

PG_SIMD static void K(four_distances)(int64_t d, const real *restrict x, const real *restrict y, real *restrict out) {
  const real *y1 = y + d, *y2 = y + 2 * d, *y3 = y + 3 * d;
  real a = 0, b = 0, e = 0, f = 0;
#pragma omp simd reduction(+ : a, b, e, f)
  for (int64_t k = 0; k < d; k++) {
    real p = x[k] - y[k], q = x[k] - y1[k], r = x[k] - y2[k], s = x[k] - y3[k];
    a += p * p, b += q * q, e += r * r, f += s * s;
  }
  out[0] = a, out[1] = b, out[2] = e, out[3] = f;
}

static int K(squared_distances_forward)(pg_call *c) {
  enum { ROWS = 16 };
  int64_t n = c->in[0]->shape[0], d = c->in[0]->shape[1], m = c->in[1]->shape[0];
  const real *x = PG_AT(real, c->in[0]), *y = PG_AT(real, c->in[1]);
  real *out = PG_AT(real, c->out[0]);
#pragma omp parallel for schedule(dynamic, 1) if (n > ROWS && n * m * d > 32768)
  for (int64_t i0 = 0; i0 < n; i0 += ROWS)
    for (int64_t j = 0; j < m && !pg_stopping(); j += 4)
      for (int64_t i = i0; i < PG_MIN(i0 + ROWS, n); i++) {
        if (j + 4 <= m)
          K(four_distances)(d, x + i * d, y + j * d, out + i * m + j);
        else
          for (int64_t k = j; k < m; k++) out[i * m + k] = K(distance)(d, x + i * d, y + k * d);
      }
  return PG_OK;
}

/* to = 2 sum_k g_k (x - y_k), the g `step` apart */
PG_SIMD static void K(pulled)(int64_t count, int64_t d, const real *restrict x, const real *restrict y,
                              const real *restrict g, int64_t step, real *restrict to) {
  for (int64_t k = 0; k < d; k++) to[k] = 0;
  for (int64_t j = 0; j < count; j++)
    for (int64_t k = 0; k < d; k++) to[k] += 2 * g[j * step] * (x[k] - y[j * d + k]);
}

static int K(squared_distances_backward)(pg_call *c) {
  int64_t n = c->in[0]->shape[0], d = c->in[0]->shape[1], m = c->in[1]->shape[0];
  const real *x = PG_AT(real, c->in[0]), *y = PG_AT(real, c->in[1]), *g = PG_AT(real, c->grad_out[0]);
  real *dx = c->grad_in[0] ? PG_AT(real, c->grad_in[0]) : NULL, *dy = c->grad_in[1] ? PG_AT(real, c->grad_in[1]) : NULL;
#pragma omp parallel for schedule(static) if (n > 1 && n * m * d > 32768)
  for (int64_t i = 0; i < (dx ? n : 0); i++)
    if (!pg_stopping()) K(pulled)(m, d, x + i * d, y, g + i * m, 1, dx + i * d);
#pragma omp parallel for schedule(static) if (m > 1 && n * m * d > 32768)
  for (int64_t j = 0; j < (dy ? m : 0); j++)
    if (!pg_stopping()) K(pulled)(n, d, y + j * d, x, g + j, m, dy + j * d);
  return PG_OK;
}

#else
#include "../op.h"
#define REALS_FILE "ops/squared_distances.c"
#include "../reals.h"

static int squared_distances_shape(pg_call *c) {
  const pg_tensor *x = c->in[0], *y = c->in[1];
  if (x->ndim != 2 || y->ndim != 2 || x->shape[1] != y->shape[1]) return pg_op_fail(c, "takes (N, D) and (M, D)");
  int64_t shape[2] = {x->shape[0], y->shape[0]};
  return pg_out(c, 0, x->dtype, 2, shape);
}

const pg_op pg_op_squared_distances = {
    .info = {.name = "squared_distances",
             .doc = "out_ij = |x_i - y_j|^2 between the rows of two matrices, summed from differences",
             .inputs = PG_ARGS({"x", 0, "(N, D) float"}, {"y", 0, "(M, D)"}),
             .outputs = PG_ARGS({"out", 0, "(N, M)"}),
             .samples = PG_SAMPLES("{x = randn(3, 4), y = randn(5, 4)}", "{x = randn(2, 3), y = randn(9, 3)}")},
    .shape = squared_distances_shape,
    .needs = PG_NEED_ALL_IN,
    .forward = PG_REALS(squared_distances_forward),
    .backward = PG_REALS(squared_distances_backward)};
#endif
