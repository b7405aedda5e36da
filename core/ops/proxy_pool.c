/* proxy_pool.c - proxies as convex combinations of real features (Proxy-FDA; docs/method.md):
 *
 *   Pi[b,p,:] = softmax over the tokens n with mask[b,n] != 0 of logits[b,n,p],    P[b,p,:] = sum_n Pi[b,p,n] x[n,:]
 *
 * Backward with G = dL/dPi + dP x^T:  dlogits[b,n,p] = Pi[b,p,n] (G[b,p,n] - sum_m Pi[b,p,m] G[b,p,m]),  dx = sum_b
 * Pi[b]^T dP[b]. An anchor with no token allowed gives zeros. */
#ifdef REAL

/* One anchor, one proxy: row (n) becomes the softmax of logits[j * stride] over the tokens that the mask allows. */
PG_SIMD static void K(pool_row)(int64_t n, const real *restrict logits, int64_t stride, const real *restrict mask,
                                real *restrict row) {
  real top = -INFINITY, sum = 0;
  for (int64_t j = 0; j < n; j++) row[j] = mask[j] != 0 ? logits[j * stride] : -INFINITY;
#pragma omp simd reduction(max : top)
  for (int64_t j = 0; j < n; j++) top = row[j] > top ? row[j] : top;
  real base = top > -INFINITY ? top : 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; j++) {
    real e = K(v_decay)(row[j] - base, 0);
    row[j] = e, sum += e;
  }
  real scale = sum == 0 ? 0 : 1 / sum;
  for (int64_t j = 0; j < n; j++) row[j] *= scale;
}

/* grad holds dP x^T and gets upstream, dL/dPi, added. */
PG_SIMD static void K(pool_row_grad)(int64_t n, const real *restrict row, const real *restrict upstream,
                                     real *restrict grad, real *restrict dlogits, int64_t stride) {
  real along = 0;
#pragma omp simd reduction(+ : along)
  for (int64_t j = 0; j < n; j++) {
    real g = grad[j] + upstream[j];
    grad[j] = g, along += row[j] * g;
  }
  for (int64_t j = 0; j < n; j++) dlogits[j * stride] = row[j] * (grad[j] - along);
}

static int K(proxy_pool_forward)(pg_call *c) {
  int64_t b = c->in[0]->shape[0], n = c->in[0]->shape[1], p = c->in[0]->shape[2], d = c->in[2]->shape[1];
  const real *logits = PG_AT(real, c->in[0]), *mask = PG_AT(real, c->in[1]), *x = PG_AT(real, c->in[2]);
  real *pi = PG_AT(real, c->out[1]);
#pragma omp parallel for schedule(static) if (b * n * p > 16384)
  for (int64_t i = 0; i < b; i++)
    for (int64_t k = 0; k < p; k++) K(pool_row)(n, logits + i * n * p + k, p, mask + i * n, pi + (i * p + k) * n);
  return K(pg_gemm)(0, 0, b * p, d, n, 1, pi, n, x, d, 0, PG_AT(real, c->out[0]), d);
}

static int K(proxy_pool_backward)(pg_call *c) {
  int64_t b = c->in[0]->shape[0], n = c->in[0]->shape[1], p = c->in[0]->shape[2], d = c->in[2]->shape[1];
  const real *pi = PG_AT(real, c->out[1]), *dp = PG_AT(real, c->grad_out[0]), *x = PG_AT(real, c->in[2]);
  if (c->grad_in[1]) PG_TRY(pg_fill_new(c->grad_in[1], 0));
  if (c->grad_in[2]) PG_TRY(K(pg_gemm)(1, 0, n, d, b * p, 1, pi, n, dp, d, 0, PG_AT(real, c->grad_in[2]), d));
  if (!c->grad_in[0]) return PG_OK;
  real *dl = PG_AT(real, c->grad_in[0]), *upstream = PG_AT(real, c->grad_out[1]);
  size_t bytes = sizeof(real) * (size_t)PG_MAX(b * p * n, 1);
  real *g = pg_scratch_alloc(bytes);
  if (!g) return pg_fail(PG_ERR_MEMORY, "proxy_pool: out of memory");
  int status = K(pg_gemm)(0, 1, b * p, n, d, 1, dp, d, x, d, 0, g, n);
#pragma omp parallel for schedule(static) if (b * n * p > 16384)
  for (int64_t i = 0; i < b; i++)
    for (int64_t k = 0; k < p; k++) {
      int64_t at = (i * p + k) * n;
      K(pool_row_grad)(n, pi + at, upstream + at, g + at, dl + i * n * p + k, p);
    }
  pg_scratch_free(g, bytes);
  return status;
}

#else
#include "../op.h"
#include "../vmath.h"
#define REALS_FILE "ops/proxy_pool.c"
#include "../reals.h"

static int proxy_pool_shape(pg_call *c) {
  const pg_tensor *l = c->in[0], *mask = c->in[1], *x = c->in[2];
  if (l->ndim != 3 || mask->ndim != 2 || x->ndim != 2 || mask->shape[0] != l->shape[0] ||
      mask->shape[1] != l->shape[1] || x->shape[0] != l->shape[1])
    return pg_op_fail(c, "takes logits (B, N, P), mask (B, N) and features (N, D)");
  int64_t proxies[3] = {l->shape[0], l->shape[2], x->shape[1]}, pooling[3] = {l->shape[0], l->shape[2], l->shape[1]};
  PG_TRY(pg_out(c, 0, x->dtype, 3, proxies));
  return pg_out(c, 1, x->dtype, 3, pooling);
}

const pg_op pg_op_proxy_pool = {
    .info = {.name = "proxy_pool",
             .doc = "each proxy is a softmax-weighted mean of the features that the mask allows",
             .source = "Proxy-FDA, arXiv 2505.24088; docs/method.md",
             .inputs = PG_ARGS({"logits", 0, "(B, N, P) float"}, {"mask", PG_NO_GRAD, "(B, N), 0 excludes"},
                               {"x", 0, "(N, D) features"}),
             .outputs = PG_ARGS({"proxies", 0, "(B, P, D)"}, {"pooling", 0, "(B, P, N), rows sum to one"}),
             .samples = PG_SAMPLES("{logits = randn(2, 5, 3), mask = ones(2, 5), x = randn(5, 4)}")},
    .shape = proxy_pool_shape,
    .needs = PG_NEED_IN(2) | PG_NEED_OUT(1),
    .forward = PG_REALS(proxy_pool_forward),
    .backward = PG_REALS(proxy_pool_backward)};
#endif
