/* layer_norm.c - y = (x - mean) / sqrt(var + eps) * weight + bias over the last dimension, var biased.
 *
 * With xh = (x - mean) * rstd and g = dy * weight:
 *   dx = rstd * (g - mean(g) - xh * mean(g * xh)),  dweight = sum over rows of dy * xh,  dbias = sum over rows of dy.
 * The sums over rows are taken in fixed blocks, so their bits do not depend on the number of threads. */
#ifdef REAL
#include "../lanes.h"

PG_SIMD static void K(norm_row)(int64_t n, const real *restrict x, const real *restrict w, const real *restrict b,
                                real eps, real *restrict y, real *mean_out, real *rstd_out) {
  real mean = K(power_sum)(n, x, 0, 1) / (real)n;
  real rstd = 1 / R(sqrt)(K(power_sum)(n, x, mean, 2) / (real)n + eps);
  if (w && b)
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * rstd * w[i] + b[i];
  else
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * rstd * (w ? w[i] : 1) + (b ? b[i] : 0);
  *mean_out = mean, *rstd_out = rstd;
}

PG_SIMD static void K(norm_row_grad)(int64_t n, const real *restrict x, const real *restrict w, const real *restrict dy,
                                     real mean, real rstd, real *restrict dx) {
  real sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
  for (int64_t i = 0; i < n; i++) {
    real g = w ? dy[i] * w[i] : dy[i];
    sum += g, along += g * (x[i] - mean) * rstd;
  }
  sum /= (real)n, along /= (real)n;
  for (int64_t i = 0; i < n; i++) dx[i] = rstd * ((w ? dy[i] * w[i] : dy[i]) - sum - (x[i] - mean) * rstd * along);
}

PG_SIMD static void K(norm_row_sums)(int64_t n, const real *restrict x, const real *restrict dy, real mean, real rstd,
                                     real *restrict dw, real *restrict db) {
  for (int64_t i = 0; i < n; i++) dw[i] += dy[i] * (x[i] - mean) * rstd, db[i] += dy[i];
}

static int K(layer_norm_forward)(pg_call *c) {
  int64_t n = c->in[0]->shape[c->in[0]->ndim - 1], rows = pg_numel(c->out[1]);
  const real *x = PG_AT(real, c->in[0]), *w = c->in[1] ? PG_AT(real, c->in[1]) : NULL;
  const real *b = c->in[2] ? PG_AT(real, c->in[2]) : NULL;
  real *y = PG_AT(real, c->out[0]), *mean = PG_AT(real, c->out[1]), *rstd = PG_AT(real, c->out[2]);
#pragma omp parallel for schedule(static) if (rows * n > 16384)
  for (int64_t r = 0; r < rows; r++)
    if (!pg_stopping()) K(norm_row)(n, x + r * n, w, b, (real)c->p[0].num, y + r * n, mean + r, rstd + r);
  return PG_OK;
}

static int K(layer_norm_backward)(pg_call *c) {
  enum { BLOCK = 64 };
  int64_t n = c->in[0]->shape[c->in[0]->ndim - 1], rows = pg_numel(c->out[1]), blocks = (rows + BLOCK - 1) / BLOCK;
  const real *x = PG_AT(real, c->in[0]), *w = c->in[1] ? PG_AT(real, c->in[1]) : NULL,
             *dy = PG_AT(real, c->grad_out[0]);
  const real *mean = PG_AT(real, c->out[1]), *rstd = PG_AT(real, c->out[2]);
  real *dx = c->grad_in[0] ? PG_AT(real, c->grad_in[0]) : NULL;
  real *dw = c->grad_in[1] ? PG_AT(real, c->grad_in[1]) : NULL, *db = c->grad_in[2] ? PG_AT(real, c->grad_in[2]) : NULL;
  size_t bytes = sizeof(real) * 2 * (size_t)(n * PG_MAX(blocks, 1));
  real *part = dw || db ? pg_scratch_alloc(bytes) : NULL;
  if ((dw || db) && !part) return pg_fail(PG_ERR_MEMORY, "layer_norm: out of memory");
#pragma omp parallel for schedule(static) if (rows * n > 16384)
  for (int64_t k = 0; k < blocks; k++) {
    if (pg_stopping()) continue;
    real *sums = part ? part + k * 2 * n : NULL;
    if (sums) memset(sums, 0, sizeof(real) * 2 * (size_t)n);
    for (int64_t r = k * BLOCK; r < PG_MIN((k + 1) * BLOCK, rows); r++) {
      if (dx) K(norm_row_grad)(n, x + r * n, w, dy + r * n, mean[r], rstd[r], dx + r * n);
      if (sums) K(norm_row_sums)(n, x + r * n, dy + r * n, mean[r], rstd[r], sums, sums + n);
    }
  }
  if (dw) memset(dw, 0, sizeof(real) * (size_t)n);
  if (db) memset(db, 0, sizeof(real) * (size_t)n);
  for (int64_t k = 0; part && k < blocks; k++)
    for (int64_t i = 0; i < n; i++) {
      if (dw) dw[i] += part[k * 2 * n + i];
      if (db) db[i] += part[k * 2 * n + n + i];
    }
  pg_scratch_free(part, bytes);
  return PG_OK;
}

#else
#include "../op.h"
#define REALS_FILE "ops/layer_norm.c"
#include "../reals.h"

static int layer_norm_shape(pg_call *c) {
  pg_tensor *x = c->in[0];
  if (!x->ndim || !x->shape[x->ndim - 1]) return pg_op_fail(c, "needs a last dimension of at least 1");
  for (int i = 1; i <= 2; i++)
    if (i < c->n_in && c->in[i] && (c->in[i]->ndim != 1 || c->in[i]->shape[0] != x->shape[x->ndim - 1]))
      return pg_op_fail(c, "weight and bias must have x's last size");
  PG_TRY(pg_out_like(c, 0, x));
  PG_TRY(pg_out(c, 1, x->dtype, x->ndim - 1, x->shape));
  return pg_out(c, 2, x->dtype, x->ndim - 1, x->shape);
}

const pg_op pg_op_layer_norm = {
    .info = {.name = "layer_norm",
             .doc = "(x - mean) / sqrt(var + eps) * weight + bias over the last dimension",
             .source = "Ba, Kiros, Hinton, arXiv 1607.06450",
             .inputs =
                 PG_ARGS({"x", 0, "(..., D) float"}, {"weight", PG_OPTIONAL, "(D)"}, {"bias", PG_OPTIONAL, "(D)"}),
             .outputs = PG_ARGS({"y", 0, "(..., D)"}, {"mean", PG_HIDDEN, "(...)"}, {"rstd", PG_HIDDEN, "(...)"}),
             .params = PG_PARAMS(PG_NUM("eps", 1e-5, 0, 1, "added to the variance")),
             .samples = PG_SAMPLES("{x = randn(3, 5), weight = randn(5), bias = randn(5)}", "{x = randn(2, 3, 4)}"),
             .method = 1},
    .shape = layer_norm_shape,
    .needs = PG_NEED_IN(0) | PG_NEED_IN(1) | PG_NEED_OUT(1) | PG_NEED_OUT(2),
    .cheap = pg_always,
    .forward = PG_REALS(layer_norm_forward),
    .backward = PG_REALS(layer_norm_backward)};
#endif
