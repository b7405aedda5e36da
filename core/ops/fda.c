/* fda.c - feature distribution alignment, the loss of Proxy-FDA (arXiv 2505.24088; docs/method.md).
 *
 *   L = mean_i 1/Z sum_{j != i} softplus(w_ij (b - scale * c_ij)),   c_ij = cos(x_i, x_j),  scale = 1/tau,  Z = B - 1
 *
 * w_ij is positive for neighbours of the pre-trained features and negative for the others. With s = sigmoid(w (b -
 * scale c)): dL/dc_ij = -scale w_ij s_ij / (B Z) = S_ij,   dL/db = sum w s / (B Z),   dL/dscale = -sum w s c / (B Z)
 *   dL/dx^   = (S + S^T) x^,  then through the normalisation:  dx_i = (g_i - x^_i (x^_i . g_i)) / |x_i|
 *
 * The forward pass writes S over the cosines, so that backward is one product. `fda_pairs` is the same sum over each
 * anchor's own list of vectors (its proxies) with Z = normalizer. */
#ifdef REAL

PG_SIMD static real K(unit_row)(int64_t d, const real *restrict x, real *restrict y) {
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < d; i++) sum += x[i] * x[i];
  real norm = R(sqrt)(sum), scale = norm > (real)1e-12 ? 1 / norm : (real)1e12;
  for (int64_t i = 0; i < d; i++) y[i] = x[i] * scale;
  return norm;
}

PG_SIMD static real K(inner)(int64_t d, const real *restrict a, const real *restrict b) {
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < d; i++) sum += a[i] * b[i];
  return sum;
}

/* One row of cosines c becomes S (without 1/(B Z)); sums of the loss, of w s and of w s c are returned in sums. */
PG_SIMD static void K(fda_row)(int64_t n, const real *restrict w, real *restrict c, real scale, real bias,
                               double *sums) {
  real loss = 0, ws = 0, wsc = 0;
#pragma omp simd reduction(+ : loss, ws, wsc)
  for (int64_t j = 0; j < n; j++) {
    real z = w[j] * (bias - scale * c[j]), e = K(v_exp)(-R(fabs)(z));
    real s = (z >= 0 ? 1 : e) / (1 + e);
    loss += (z > 0 ? z : z != z ? z : 0) + K(v_log1p)(e);
    ws += w[j] * s, wsc += w[j] * s * c[j];
    c[j] = -scale * w[j] * s;
  }
  sums[0] += loss, sums[1] += ws, sums[2] += wsc;
}

/* dx = (g - x^ (x^ . g)) / |x| */
PG_SIMD static void K(through_norm)(int64_t d, const real *restrict unit, const real *restrict g, real norm,
                                    real *restrict dx) {
  real along = 0;
#pragma omp simd reduction(+ : along)
  for (int64_t i = 0; i < d; i++) along += unit[i] * g[i];
  real scale = norm > (real)1e-12 ? 1 / norm : 0;
  for (int64_t i = 0; i < d; i++) dx[i] = (g[i] - along * unit[i]) * scale;
}

static void K(settings)(const pg_call *c, int at, real *scale, real *bias) { /* tensors, when given, win over numbers */
  *scale = c->in[at] ? *PG_AT(real, c->in[at]) : (real)(1 / c->p[0].num);
  *bias = c->in[at + 1] ? *PG_AT(real, c->in[at + 1]) : (real)c->p[1].num;
}

static int K(fda_finish)(pg_call *c, const double *rows, int64_t n, double z) { /* rows: n triples, added in order */
  double sums[3] = {0};
  for (int64_t i = 0; i < n; i++)
    for (int k = 0; k < 3; k++) sums[k] += rows[3 * i + k];
  *PG_AT(real, c->out[0]) = (real)(sums[0] * z);
  real *extra = PG_AT(real, c->out[1]);
  extra[0] = (real)(-sums[2] * z), extra[1] = (real)(sums[1] * z); /* dL/dscale, dL/dbias */
  return PG_OK;
}

static void K(setting_grads)(pg_call *c, int at) {
  real g = *PG_AT(real, c->grad_out[0]);
  for (int i = 0; i < 2; i++)
    if (c->grad_in[at + i]) *PG_AT(real, c->grad_in[at + i]) = g * PG_AT(real, c->out[1])[i];
}

/* ---- all pairs of a batch ---- */

static int K(fda_loss_forward)(pg_call *c) {
  int64_t b = c->in[0]->shape[0], d = c->in[0]->shape[1];
  const real *x = PG_AT(real, c->in[0]), *w = PG_AT(real, c->in[1]);
  real *unit = PG_AT(real, c->out[2]), *norm = PG_AT(real, c->out[3]), *cosine = unit + b * d, scale, bias;
  double *rows = pg_scratch_alloc(sizeof(double) * 3 * (size_t)b);
  if (!rows) return pg_fail(PG_ERR_MEMORY, "fda_loss: out of memory");
  K(settings)(c, 2, &scale, &bias);
  for (int64_t i = 0; i < b; i++) norm[i] = K(unit_row)(d, x + i * d, unit + i * d);
  int status = K(pg_syrk)(b, d, unit, d, cosine, b);
  if (status) return pg_scratch_free(rows, sizeof(double) * 3 * (size_t)b), status;
#pragma omp parallel for schedule(static) if (b > 96)
  for (int64_t i = 0; i < b; i++) {
    real *row = cosine + i * b;
    rows[3 * i] = rows[3 * i + 1] = rows[3 * i + 2] = 0;
    K(fda_row)(i, w + i * b, row, scale, bias, rows + 3 * i);
    K(fda_row)(b - i - 1, w + i * b + i + 1, row + i + 1, scale, bias, rows + 3 * i);
    row[i] = 0;
  }
  K(fda_finish)(c, rows, b, 1.0 / ((double)b * (double)(b - 1)));
  pg_scratch_free(rows, sizeof(double) * 3 * (size_t)b);
  return PG_OK;
}

static int K(fda_loss_backward)(pg_call *c) {
  int64_t b = c->in[0]->shape[0], d = c->in[0]->shape[1];
  const real *unit = PG_AT(real, c->out[2]), *norm = PG_AT(real, c->out[3]), *s = unit + b * d;
  K(setting_grads)(c, 2);
  if (!c->grad_in[0]) return PG_OK;
  real *dx = PG_AT(real, c->grad_in[0]), z = *PG_AT(real, c->grad_out[0]) / (real)((double)b * (double)(b - 1));
  int64_t most = PG_MIN(b, STRIP);
  size_t bytes = sizeof(real) * (size_t)(most * (b + d));
  real *both = pg_scratch_alloc(bytes), *g = both ? both + most * b : NULL;
  if (!both) return pg_fail(PG_ERR_MEMORY, "fda_loss: out of memory");
  int status = PG_OK;
  for (int64_t from = 0; from < b && !status; from += most) {
    int64_t to = PG_MIN(from + most, b);
#pragma omp parallel for collapse(2) schedule(static) if (b > 96)
    for (int64_t i0 = from; i0 < to; i0 += 32) /* S + S^T in tiles, for the cache */
      for (int64_t j0 = 0; j0 < b; j0 += 32)
        for (int64_t i = i0; i < PG_MIN(i0 + 32, to); i++)
          for (int64_t j = j0; j < PG_MIN(j0 + 32, b); j++) both[(i - from) * b + j] = s[i * b + j] + s[j * b + i];
    status = K(pg_gemm)(0, 0, to - from, d, b, z, both, b, unit, d, 0, g, d);
#pragma omp parallel for schedule(static) if (b > 96)
    for (int64_t i = from; i < to; i++) K(through_norm)(d, unit + i * d, g + (i - from) * d, norm[i], dx + i * d);
  }
  pg_scratch_free(both, bytes);
  return status;
}

/* ---- each anchor with its own list ---- */

static int K(fda_pairs_forward)(pg_call *c) {
  int64_t b = c->in[1]->shape[0], m = c->in[1]->shape[1], d = c->in[1]->shape[2];
  const real *x = PG_AT(real, c->in[0]), *y = PG_AT(real, c->in[1]), *w = PG_AT(real, c->in[2]);
  real *s = PG_AT(real, c->out[2]), scale, bias;
  size_t bytes = (sizeof(double) * 3 + sizeof(real) * (size_t)d) * (size_t)PG_MAX(b, 1);
  double *rows = pg_scratch_alloc(bytes);
  if (!rows) return pg_fail(PG_ERR_MEMORY, "fda_pairs: out of memory");
  K(settings)(c, 3, &scale, &bias);
#pragma omp parallel for schedule(static) if (b * m * d > 32768)
  for (int64_t i = 0; i < b; i++) {
    real *anchor = (real *)(rows + 3 * b) + i * d;
    rows[3 * i] = rows[3 * i + 1] = rows[3 * i + 2] = 0;
    K(unit_row)(d, x + i * d, anchor);
    for (int64_t j = 0; j < m; j++) {
      const real *other = y + (i * m + j) * d;
      real norm = R(sqrt)(K(inner)(d, other, other));
      s[i * m + j] = K(inner)(d, anchor, other) / (norm > (real)1e-12 ? norm : (real)1e-12);
    }
    memcpy(s + (b + i) * m, s + i * m, sizeof(real) * (size_t)m); /* the cosines stay beside S */
    K(fda_row)(m, w + i * m, s + i * m, scale, bias, rows + 3 * i);
  }
  K(fda_finish)(c, rows, b, 1.0 / ((double)b * c->p[2].num));
  pg_scratch_free(rows, bytes);
  return PG_OK;
}

static int K(fda_pairs_backward)(pg_call *c) {
  int64_t b = c->in[1]->shape[0], m = c->in[1]->shape[1], d = c->in[1]->shape[2];
  const real *x = PG_AT(real, c->in[0]), *y = PG_AT(real, c->in[1]), *s = PG_AT(real, c->out[2]);
  real *dx = c->grad_in[0] ? PG_AT(real, c->grad_in[0]) : NULL, *dy = c->grad_in[1] ? PG_AT(real, c->grad_in[1]) : NULL;
  real z = *PG_AT(real, c->grad_out[0]) / (real)((double)b * c->p[2].num);
  K(setting_grads)(c, 3);
#pragma omp parallel for schedule(static) if (b * m * d > 32768)
  for (int64_t i = 0; i < b; i++) {
    const real *anchor = x + i * d, *cosine = s + (b + i) * m;
    real length = R(sqrt)(K(inner)(d, anchor, anchor));
    length = length > (real)1e-12 ? length : (real)1e-12;
    if (dx) memset(dx + i * d, 0, sizeof(real) * (size_t)d);
    for (int64_t j = 0; j < m; j++) { /* d cos(a, y) / da = (y^ - c a^) / |a|, and the same with a and y exchanged */
      const real *other = y + (i * m + j) * d;
      real norm = R(sqrt)(K(inner)(d, other, other)), g = z * s[i * m + j];
      norm = norm > (real)1e-12 ? norm : (real)1e-12;
      for (int64_t k = 0; k < d; k++) {
        real a = anchor[k] / length, o = other[k] / norm;
        if (dx) dx[i * d + k] += g * (o - cosine[j] * a) / length;
        if (dy) dy[(i * m + j) * d + k] = g * (a - cosine[j] * o) / norm;
      }
    }
  }
  return PG_OK;
}

#else
#include "../op.h"
#include "../vmath.h"

enum { STRIP = 512 }; /* rows of S + S^T at a time, so that there is no second (B, B) matrix */

#define REALS_FILE "ops/fda.c"
#include "../reals.h"

static int check_settings(pg_call *c, int at) {
  for (int i = at; i < at + 2 && i < c->n_in; i++)
    if (c->in[i] && pg_numel(c->in[i]) != 1) return pg_op_fail(c, "scale and bias have one element each");
  return PG_OK;
}

static int fda_loss_shape(pg_call *c) {
  const pg_tensor *x = c->in[0], *w = c->in[1];
  PG_TRY(check_settings(c, 2));
  if (x->ndim != 2 || w->ndim != 2 || w->shape[0] != x->shape[0] || w->shape[1] != x->shape[0] || x->shape[0] < 2)
    return pg_op_fail(c, "takes features (B, D) and weights (B, B), B at least 2");
  int64_t two = 2, saved = x->shape[0] * (x->shape[0] + x->shape[1]);
  PG_TRY(pg_out(c, 0, x->dtype, 0, NULL));
  PG_TRY(pg_out(c, 1, x->dtype, 1, &two));
  PG_TRY(pg_out(c, 2, x->dtype, 1, &saved));
  return pg_out(c, 3, x->dtype, 1, x->shape);
}

static int fda_pairs_shape(pg_call *c) {
  const pg_tensor *x = c->in[0], *y = c->in[1], *w = c->in[2];
  PG_TRY(check_settings(c, 3));
  if (x->ndim != 2 || y->ndim != 3 || w->ndim != 2 || y->shape[0] != x->shape[0] || y->shape[2] != x->shape[1] ||
      w->shape[0] != x->shape[0] || w->shape[1] != y->shape[1])
    return pg_op_fail(c, "takes anchors (B, D), their vectors (B, M, D) and weights (B, M)");
  int64_t two = 2, saved[2] = {2 * x->shape[0], y->shape[1]};
  PG_TRY(pg_out(c, 0, x->dtype, 0, NULL));
  PG_TRY(pg_out(c, 1, x->dtype, 1, &two));
  return pg_out(c, 2, x->dtype, 2, saved);
}

#define SOURCE "Proxy-FDA, arXiv 2505.24088, section 3; docs/method.md"
#define SETTINGS                                                                                                       \
  {"scale", PG_OPTIONAL, "one element, 1 / tau; wins over tau"}, {                                                     \
    "bias", PG_OPTIONAL, "one element; wins over bias_value"                                                           \
  }
#define NUMBERS PG_NUM("tau", 0.1, 1e-6, 1e6, "temperature"), PG_NUM("bias_value", 0, 0, 0, "b")

const pg_op pg_op_fda_loss = {
    .info = {.name = "fda_loss",
             .doc = "mean_i 1/(B-1) sum_{j != i} softplus(w_ij (b - cos(x_i, x_j) / tau))",
             .source = SOURCE,
             .inputs = PG_ARGS({"x", 0, "(B, D) features"},
                               {"weights", PG_NO_GRAD, "(B, B) signed; the diagonal is not read"}, SETTINGS),
             .outputs = PG_ARGS({"loss", 0, "scalar"}, {"settings", PG_HIDDEN, "(2)"}, {"saved", PG_HIDDEN, "x^ and S"},
                                {"norm", PG_HIDDEN, "(B)"}),
             .params = PG_PARAMS(NUMBERS),
             .samples =
                 PG_SAMPLES("{x = randn(5, 4), weights = randn(5, 5), tau = 0.5, bias_value = 0.3}",
                            "{x = randn(4, 6), weights = randn(4, 4), scale = uniform(1, 2, 1), bias = randn(1)}")},
    .shape = fda_loss_shape,
    .needs = PG_NEED_OUT(1) | PG_NEED_OUT(2) | PG_NEED_OUT(3),
    .forward = PG_REALS(fda_loss_forward),
    .backward = PG_REALS(fda_loss_backward)};

const pg_op pg_op_fda_pairs = {
    .info = {.name = "fda_pairs",
             .doc = "mean_i 1/normalizer sum_m softplus(w_im (b - cos(x_i, y_im) / tau))",
             .source = SOURCE,
             .inputs = PG_ARGS({"x", 0, "(B, D) anchors"}, {"y", 0, "(B, M, D) each anchor's vectors"},
                               {"weights", PG_NO_GRAD, "(B, M) signed"}, SETTINGS),
             .outputs = PG_ARGS({"loss", 0, "scalar"}, {"settings", PG_HIDDEN, "(2)"},
                                {"saved", PG_HIDDEN, "S and the cosines"}),
             .params = PG_PARAMS(NUMBERS, PG_NUM("normalizer", NAN, 1e-6, 1e12, "Z")),
             .samples = PG_SAMPLES("{x = randn(3, 4), y = randn(3, 5, 4), weights = randn(3, 5), tau = 0.5, bias_value "
                                   "= 0.3, normalizer = 5}",
                                   "{x = randn(3, 4), y = randn(3, 2, 4), weights = randn(3, 2), scale = uniform(1, 2, "
                                   "1), bias = randn(1), normalizer = 4}")},
    .shape = fda_pairs_shape,
    .needs = PG_NEED_IN(0) | PG_NEED_IN(1) | PG_NEED_OUT(1) | PG_NEED_OUT(2),
    .forward = PG_REALS(fda_pairs_forward),
    .backward = PG_REALS(fda_pairs_backward)};
#endif
