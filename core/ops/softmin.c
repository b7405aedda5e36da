/* softmin.c - half a step of Sinkhorn's algorithm in the log domain, without the matrix of exponents:
 *
 *   out_i = -eps log sum_j b_j exp((g_j - C_ij) / eps)                 transpose: out_j, the sum over i
 *
 * Backward, with p_ij = b_j exp((g_j - C_ij + out_i) / eps), which sums to one:
 *   dC_ij = dout_i p_ij,   dg_j = -sum_i dout_i p_ij,   d(log b)_j = eps dg_j
 *
 * Everything is in powers of two: t_ij = h_j - scale C_ij, h_j = (log b_j + g_j / eps) log2 e, scale = log2 e / eps. A
 * row stays in the cache between its maximum and its sum. Columns are taken a strip at a time, some rows a tile: the
 * tile's maximum joins the strip's, whose sums are scaled to it, so that memory is read once and C is never copied. */
#ifdef REAL

/* top + log2(sum of 2^(t - top)) */
PG_SIMD static real K(row_log2)(int64_t m, const real *restrict h, const real *restrict cost, real scale) {
  real top = -INFINITY, sum = 0;
#pragma omp simd reduction(max : top)
  for (int64_t j = 0; j < m; j++) {
    real t = h[j] - scale * cost[j];
    top = t > top ? t : top;
  }
  if (top == -INFINITY) top = 0; /* no mass, or NaN alone */
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < m; j++) sum += K(v_power2)(h[j] - scale * cost[j] - top);
  return top + R(log2)(sum);
}

/* The same down a strip of at most STRIP columns, whose rows are `pitch` apart. */
PG_SIMD static void K(strip_log2)(int64_t n, int64_t wide, int64_t pitch, const real *restrict h,
                                  const real *restrict cost, real scale, real *restrict out) {
  _Alignas(64) real top[STRIP], next[STRIP], sum[STRIP];
  for (int64_t j = 0; j < wide; j++) top[j] = -INFINITY, next[j] = sum[j] = 0;
  for (int64_t i0 = 0; i0 < n; i0 += DEEP) {
    int64_t end = PG_MIN(i0 + DEEP, n);
    for (int64_t j = 0; j < wide; j++) next[j] = top[j];
    for (int64_t i = i0; i < end; i++)
      for (int64_t j = 0; j < wide; j++) {
        real t = h[i] - scale * cost[i * pitch + j];
        next[j] = t > next[j] ? t : next[j];
      }
    for (int64_t j = 0; j < wide; j++) {
      real base = next[j] == -INFINITY ? 0 : next[j];
      sum[j] *= K(v_power2)(top[j] - base);
      top[j] = next[j], next[j] = base;
    }
    for (int64_t i = i0; i < end; i++)
      for (int64_t j = 0; j < wide; j++) sum[j] += K(v_power2)(h[i] - scale * cost[i * pitch + j] - next[j]);
  }
  for (int64_t j = 0; j < wide; j++) out[j] = next[j] + R(log2)(sum[j]);
}

/* h, of the side that the sum runs over */
static void K(exponents)(const pg_call *c, int64_t count, real *h) {
  const real *g = PG_AT(real, c->in[1]), *b = c->n_in > 2 && c->in[2] ? PG_AT(real, c->in[2]) : NULL;
  const double scale = LOG2_E / c->p[0].num;
  for (int64_t k = 0; k < count; k++) h[k] = (real)(g[k] * scale + (b ? b[k] * LOG2_E : 0));
}

static int K(softmin_forward)(pg_call *c) {
  int64_t n = c->in[0]->shape[0], m = c->in[0]->shape[1], across = c->p[1].ints[0];
  const real *cost = PG_AT(real, c->in[0]), scale = (real)(LOG2_E / c->p[0].num);
  real *out = PG_AT(real, c->out[0]);
  size_t bytes = sizeof(real) * (size_t)(across ? n : m);
  real *h = pg_scratch_alloc(bytes);
  if (!h) return pg_fail(PG_ERR_MEMORY, "softmin: out of memory");
  K(exponents)(c, across ? n : m, h);
  if (!across) { /* no line's result depends on who computes it */
#pragma omp parallel for schedule(dynamic, 16) if (n > 1 && n * m > 32768)
    for (int64_t i = 0; i < n; i++)
      if (!pg_stopping()) out[i] = K(row_log2)(m, h, cost + i * m, scale);
  } else {
    int64_t strip = PG_MIN(STRIP, pg_columns(1, m));
#pragma omp parallel for schedule(dynamic, 1) if (m > strip && n * m > 32768)
    for (int64_t j = 0; j < m; j += strip)
      if (!pg_stopping()) K(strip_log2)(n, PG_MIN(strip, m - j), m, h, cost + j, scale, out + j);
  }
  for (int64_t k = 0, count = pg_numel(c->out[0]); k < count; k++) out[k] *= (real)(-c->p[0].num / LOG2_E);
  pg_scratch_free(h, bytes);
  return PG_OK;
}

/* to_j = weight_j 2^(shift_j + base - scale C_j), with one number for all where a pointer is NULL; returns their sum */
PG_SIMD static real K(row_slopes)(int64_t m, const real *restrict shift, real base, const real *restrict cost,
                                  real scale, const real *restrict weight, real one, real *restrict to) {
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < m; j++) {
    real t = K(v_power2)(shift[j] + base - scale * cost[j]) * (weight ? weight[j] : one);
    to[j] = t, sum += t;
  }
  return sum;
}

static int K(softmin_backward)(pg_call *c) {
  int64_t n = c->in[0]->shape[0], m = c->in[0]->shape[1], across = c->p[1].ints[0], over = across ? n : m;
  const real *cost = PG_AT(real, c->in[0]), *out = PG_AT(real, c->out[0]), *dy = PG_AT(real, c->grad_out[0]);
  const real eps = (real)c->p[0].num, scale = (real)(LOG2_E / c->p[0].num);
  real *dcost = c->grad_in[0] ? PG_AT(real, c->grad_in[0]) : NULL;
  size_t bytes = sizeof(real) * (size_t)(n + m + over + (dcost ? 0 : n * m));
  real *h = pg_scratch_alloc(bytes), *o = h ? h + over : NULL, *sum = h ? h + n + m : NULL;
  if (!h) return pg_fail(PG_ERR_MEMORY, "softmin: out of memory");
  real *each = dcost ? dcost : sum + over;
  K(exponents)(c, over, h);
  for (int64_t k = 0; k < n + m - over; k++) o[k] = out[k] < INFINITY ? out[k] * scale : 0; /* no mass: all p are 0 */
#pragma omp parallel for schedule(static) if (n > 1 && n * m > 32768)
  for (int64_t i = 0; i < n; i++) {
    if (pg_stopping()) continue;
    real total = K(row_slopes)(m, across ? o : h, across ? h[i] : o[i], cost + i * m, scale, across ? dy : NULL,
                               across ? 0 : dy[i], each + i * m);
    if (across) sum[i] = total;
  }
  if (!across) {
    int64_t strip = pg_columns(1, m);
#pragma omp parallel for schedule(static) if (m > strip && n * m > 32768)
    for (int64_t j0 = 0; j0 < m; j0 += strip) {
      if (pg_stopping()) continue;
      for (int64_t j = j0; j < PG_MIN(j0 + strip, m); j++) sum[j] = 0;
      for (int64_t i = 0; i < n; i++)
        for (int64_t j = j0; j < PG_MIN(j0 + strip, m); j++) sum[j] += each[i * m + j];
    }
  }
  for (int k = 1; k < 3; k++)
    for (int64_t i = 0; k < c->n_in && c->grad_in[k] && i < over; i++)
      PG_AT(real, c->grad_in[k])[i] = -sum[i] * (k == 1 ? 1 : eps);
  pg_scratch_free(h, bytes);
  return PG_OK;
}

#else
#include "../op.h"
#include "../vmath.h"

enum { STRIP = 128, DEEP = 32 }; /* a tile of floats is 16 KiB: half of a first-level cache */
static const double LOG2_E = 1.4426950408889634;
#define REALS_FILE "ops/softmin.c"
#include "../reals.h"

static int softmin_shape(pg_call *c) {
  const pg_tensor *cost = c->in[0];
  if (cost->ndim != 2) return pg_op_fail(c, "takes a cost (N, M)");
  int over = c->p[1].ints[0] ? 0 : 1;
  for (int k = 1; k < 3; k++)
    if (k < c->n_in && c->in[k] && (c->in[k]->ndim != 1 || c->in[k]->shape[0] != cost->shape[over]))
      return pg_op_fail(c, "the sum runs over %s: %s takes %lld values", over ? "columns" : "rows",
                        c->op->info.inputs[k].name, (long long)cost->shape[over]);
  return pg_out(c, 0, cost->dtype, 1, &cost->shape[1 - over]);
}

const pg_op pg_op_softmin = {
    .info = {.name = "softmin",
             .doc =
                 "out_i = -eps log sum_j b_j exp((g_j - C_ij) / eps): half a step of Sinkhorn's algorithm, in the log "
                 "domain",
             .source = "Peyre and Cuturi, Computational Optimal Transport, arXiv 1803.00567, section 4.4",
             .inputs = PG_ARGS({"cost", 0, "C, (N, M) float"}, {"potential", 0, "g, (M); (N) with transpose"},
                               {"log_weights", PG_OPTIONAL, "log b, as g; 0 when absent, -inf: no mass there"}),
             .outputs = PG_ARGS({"out", 0, "(N); (M) with transpose; inf where there is no mass at all"}),
             .params = PG_PARAMS(PG_NUM("eps", NAN, 1e-30, 1e30, "the blur, in units of C"),
                                 PG_FLAG("transpose", 0, "sum over rows instead: C is read as its transpose")),
             .samples = PG_SAMPLES("{cost = uniform(0, 2, 3, 5), potential = randn(5), eps = 0.5}",
                                   "{cost = uniform(0, 2, 4, 3), potential = randn(4), log_weights = randn(4), eps = "
                                   "0.3, transpose = true}",
                                   "{cost = uniform(0, 2, 4, 3), potential = randn(3), log_weights = randn(3), eps = "
                                   "0.3}")},
    .shape = softmin_shape,
    .needs = PG_NEED_ALL_IN | PG_NEED_OUT(0),
    .forward = PG_REALS(softmin_forward),
    .backward = PG_REALS(softmin_backward)};
#endif
