/* conv2d.c - y[n,o,p,q] = bias[o] + sum over c,i,j of weight[o,c,i,j] x[n, c, p s - pad + i d, q s - pad + j d], zeros
 * outside x (cross-correlation, as the field's convolutions are).
 *
 * Image by image, the patches become the columns of a matrix (C kh kw, OH OW), so that y = W cols; a group has its own
 * rows of W, cols and y. Backward: dW = dy cols^T summed over images in order, dcols = W^T dy and dx is the sum of
 * dcols at the places they were read from, dbias = sum of dy. Each thread owns whole channels, so the order of every
 * sum is fixed. */
#ifdef REAL

/* One row of the matrix: channel plane x shifted by tap (i, j), at each output place. */
static void K(patches_row)(const conv *g, const real *x, int64_t i, int64_t j, real *row) {
  int64_t from, to;
  conv_inside(g, 1, j, &from, &to);
  for (int64_t p = 0; p < g->out[0]; p++, row += g->out[1]) {
    int64_t at = p * g->stride[0] - g->pad[0] + i * g->dilation[0];
    bool inside = at >= 0 && at < g->in[0] && from < to;
    int64_t lo = inside ? from : g->out[1], hi = inside ? to : g->out[1];
    const real *source = x + (inside ? at * g->in[1] + lo * g->stride[1] - g->pad[1] + j * g->dilation[1] : 0);
    for (int64_t q = 0; q < lo; q++) row[q] = 0;
    for (int64_t q = lo; q < hi; q++) row[q] = source[(q - lo) * g->stride[1]];
    for (int64_t q = hi; q < g->out[1]; q++) row[q] = 0;
  }
}

/* Its transpose: adds the row back to the plane it was read from. */
static void K(patches_row_add)(const conv *g, const real *row, int64_t i, int64_t j, real *dx) {
  int64_t from, to;
  conv_inside(g, 1, j, &from, &to);
  for (int64_t p = 0; p < g->out[0]; p++, row += g->out[1]) {
    int64_t at = p * g->stride[0] - g->pad[0] + i * g->dilation[0];
    if (at < 0 || at >= g->in[0] || from >= to) continue;
    real *target = dx + at * g->in[1] + from * g->stride[1] - g->pad[1] + j * g->dilation[1];
    for (int64_t q = from; q < to; q++) target[(q - from) * g->stride[1]] += row[q];
  }
}

static void K(patches)(const conv *g, const real *x, real *cols) {
  int64_t taps = g->kernel[0] * g->kernel[1], rows = g->channels * taps;
#pragma omp parallel for schedule(static) if (rows * g->places > 16384)
  for (int64_t r = 0; r < rows; r++) K(patches_row)
  (g, x + r / taps * g->in[0] * g->in[1], r % taps / g->kernel[1], r % g->kernel[1], cols + r * g->places);
}

static void K(patches_add)(const conv *g, const real *cols, real *dx) {
  int64_t taps = g->kernel[0] * g->kernel[1], plane = g->in[0] * g->in[1];
  memset(dx, 0, sizeof(real) * (size_t)(g->channels * plane));
#pragma omp parallel for schedule(static) if (g->channels * taps * g->places > 16384)
  for (int64_t k = 0; k < g->channels; k++)
    for (int64_t t = 0; t < taps; t++)
      K(patches_row_add)(g, cols + (k * taps + t) * g->places, t / g->kernel[1], t % g->kernel[1], dx + k * plane);
}

static int K(conv2d_forward)(pg_call *c) {
  conv g;
  PG_TRY(conv_read(c, &g));
  const real *x = PG_AT(real, c->in[0]), *w = PG_AT(real, c->in[1]), *b = c->in[2] ? PG_AT(real, c->in[2]) : NULL;
  real *y = PG_AT(real, c->out[0]);
  int64_t depth = g.depth, part = g.outputs / g.groups, places = g.places;
  size_t bytes = sizeof(real) * (size_t)(depth * g.groups * places);
  real *cols = pg_scratch_alloc(bytes);
  if (!cols) return pg_fail(PG_ERR_MEMORY, "conv2d: out of memory");
  for (int64_t n = 0; n < g.images && !pg_stopping();
       n++, x += g.channels * g.in[0] * g.in[1], y += g.outputs * places) {
    K(patches)(&g, x, cols);
    for (int64_t o = 0; b && o < g.outputs; o++)
      for (int64_t p = 0; p < places; p++) y[o * places + p] = b[o];
    for (int64_t k = 0; k < g.groups; k++) K(pg_gemm)
    (0, 0, part, places, depth, 1, w + k * part * depth, depth, cols + k * depth * places, places, b ? 1 : 0,
     y + k * part * places, places);
  }
  pg_scratch_free(cols, bytes);
  return PG_OK;
}

static int K(conv2d_backward)(pg_call *c) {
  conv g;
  PG_TRY(conv_read(c, &g));
  const real *x = PG_AT(real, c->in[0]), *w = PG_AT(real, c->in[1]), *dy = PG_AT(real, c->grad_out[0]);
  real *dx = c->grad_in[0] ? PG_AT(real, c->grad_in[0]) : NULL, *dw = c->grad_in[1] ? PG_AT(real, c->grad_in[1]) : NULL;
  real *db = c->in[2] && c->grad_in[2] ? PG_AT(real, c->grad_in[2]) : NULL;
  int64_t depth = g.depth, part = g.outputs / g.groups, places = g.places, image = g.channels * g.in[0] * g.in[1];
  size_t bytes = sizeof(real) * (size_t)(depth * g.groups * places);
  real *cols = dx || dw ? pg_scratch_alloc(bytes) : NULL;
  if ((dx || dw) && !cols) return pg_fail(PG_ERR_MEMORY, "conv2d: out of memory");
  if (dw) memset(dw, 0, sizeof(real) * (size_t)(g.outputs * depth));
  if (db) memset(db, 0, sizeof(real) * (size_t)g.outputs);
  for (int64_t n = 0; n < g.images && !pg_stopping(); n++, dy += g.outputs * places) {
    if (dw) {
      K(patches)(&g, x + n * image, cols);
      for (int64_t k = 0; k < g.groups; k++) K(pg_gemm)
      (0, 1, part, depth, places, 1, dy + k * part * places, places, cols + k * depth * places, places, 1,
       dw + k * part * depth, depth);
    }
    if (dx) {
      for (int64_t k = 0; k < g.groups; k++) K(pg_gemm)
      (1, 0, depth, places, part, 1, w + k * part * depth, depth, dy + k * part * places, places, 0,
       cols + k * depth * places, places);
      K(patches_add)(&g, cols, dx + n * image);
    }
    for (int64_t o = 0; db && o < g.outputs; o++)
      for (int64_t p = 0; p < places; p++) db[o] += dy[o * places + p];
  }
  pg_scratch_free(cols, bytes);
  return PG_OK;
}

#else
#include "../op.h"

typedef struct conv { /* of each pair, rows come first */
  int64_t images, channels, outputs, groups, in[2], kernel[2], out[2], stride[2], pad[2], dilation[2];
  int64_t depth;  /* C / groups * kh * kw: what one output sums over */
  int64_t places; /* OH * OW */
} conv;

enum { CONV_STRIDE, CONV_PADDING, CONV_DILATION, CONV_GROUPS };

static int conv_pair(const pg_call *c, int which, int64_t def, int64_t lo, int64_t pair[2]) {
  const pg_value *v = &c->p[which];
  const char *name = c->op->info.params[which].name;
  if (v->len > 2) return pg_fail(PG_ERR_ARGUMENT, "conv2d: %s has %d values, at most 2", name, v->len);
  for (int i = 0; i < 2; i++) {
    pair[i] = v->len ? v->ints[PG_MIN(i, v->len - 1)] : def;
    if (pair[i] < lo || pair[i] > 65536)
      return pg_fail(PG_ERR_ARGUMENT, "conv2d: %s is %lld, must be within %lld..65536", name, (long long)pair[i],
                     (long long)lo);
  }
  return PG_OK;
}

static int conv_read(const pg_call *c, conv *g) {
  const pg_tensor *x = c->in[0], *w = c->in[1];
  *g = (conv){
      .images = x->shape[0], .channels = x->shape[1], .outputs = w->shape[0], .groups = c->p[CONV_GROUPS].ints[0]};
  PG_TRY(conv_pair(c, CONV_STRIDE, 1, 1, g->stride));
  PG_TRY(conv_pair(c, CONV_PADDING, 0, 0, g->pad));
  PG_TRY(conv_pair(c, CONV_DILATION, 1, 1, g->dilation));
  for (int i = 0; i < 2; i++) {
    g->in[i] = x->shape[2 + i], g->kernel[i] = w->shape[2 + i];
    int64_t room = g->in[i] + 2 * g->pad[i] - g->dilation[i] * (g->kernel[i] - 1) - 1;
    if (!g->kernel[i] || room < 0)
      return pg_op_fail(c, "the dilated kernel must have 1 to H + 2 padding rows, and so for columns");
    g->out[i] = room / g->stride[i] + 1;
  }
  g->depth = w->shape[1] * g->kernel[0] * g->kernel[1], g->places = g->out[0] * g->out[1];
  if (g->places > INT32_MAX || g->depth > INT32_MAX)
    return pg_op_fail(c, "the output or the kernel has over 2^31 - 1 places");
  return PG_OK;
}

/* The outputs from..to-1 along `axis` for which tap j falls inside the image. */
static void conv_inside(const conv *g, int axis, int64_t j, int64_t *from, int64_t *to) {
  int64_t first = g->pad[axis] - j * g->dilation[axis], end = first + g->in[axis], s = g->stride[axis];
  *from = first > 0 ? (first + s - 1) / s : 0;
  *to = end > 0 ? PG_MIN((end + s - 1) / s, g->out[axis]) : 0;
}

#define REALS_FILE "ops/conv2d.c"
#include "../reals.h"

static int conv2d_shape(pg_call *c) {
  const pg_tensor *x = c->in[0], *w = c->in[1], *b = c->n_in > 2 ? c->in[2] : NULL;
  int64_t groups = c->p[CONV_GROUPS].ints[0];
  conv g;
  if (x->ndim != 4 || w->ndim != 4) return pg_op_fail(c, "takes x (N, C, H, W) and weight (O, C / groups, kh, kw)");
  if (!x->shape[1] || x->shape[1] % groups || w->shape[0] % groups || w->shape[1] != x->shape[1] / groups)
    return pg_op_fail(c, "weight must be (O, C / groups, kh, kw), with C and O multiples of groups = %lld",
                      (long long)groups);
  if (b && (b->ndim != 1 || b->shape[0] != w->shape[0])) return pg_op_fail(c, "bias must have weight's first size");
  PG_TRY(conv_read(c, &g));
  return pg_out(c, 0, x->dtype, 4, (int64_t[]){g.images, g.outputs, g.out[0], g.out[1]});
}

const pg_op pg_op_conv2d = {
    .info = {.name = "conv2d",
             .doc = "y[n,o,p,q] = bias[o] + sum over c,i,j of weight[o,c,i,j] x[n, c, p stride - padding + i dilation, "
                    "q stride - padding + j dilation], x zero outside",
             .inputs = PG_ARGS({"x", 0, "(N, C, H, W) float"}, {"weight", 0, "(O, C / groups, kh, kw)"},
                               {"bias", PG_OPTIONAL, "(O)"}),
             .outputs =
                 PG_ARGS({"y", 0, "(N, O, OH, OW), OH = floor((H + 2 padding - dilation (kh - 1) - 1) / stride) + 1"}),
             .params = PG_PARAMS(PG_INT_LIST("stride", "one value, or {rows, columns}; {}: 1"),
                                 PG_INT_LIST("padding", "zeros on each side: one value, or {rows, columns}; {}: 0"),
                                 PG_INT_LIST("dilation", "step between taps: one value, or {rows, columns}; {}: 1"),
                                 PG_INT("groups", 1, 1, 65536, "blocks of channels that do not mix")),
             .samples =
                 PG_SAMPLES("{x = randn(2, 3, 5, 4), weight = randn(2, 3, 3, 2), bias = randn(2)}",
                            "{x = randn(2, 4, 5, 6), weight = randn(6, 2, 3, 3), bias = randn(6), stride = {2, 1}, "
                            "padding = {1, 2}, dilation = {1, 2}, groups = 2}",
                            "{x = randn(1, 2, 4, 4), weight = randn(3, 2, 2, 2), stride = {2}}",
                            "{x = randn(1, 1, 2, 2), weight = randn(1, 1, 3, 3), padding = {4}, stride = {3}}")},
    .shape = conv2d_shape,
    .needs = PG_NEED_IN(0) | PG_NEED_IN(1),
    .again = PG_NEED_IN(0),
    .forward = PG_REALS(conv2d_forward),
    .backward = PG_REALS(conv2d_backward)};
#endif
