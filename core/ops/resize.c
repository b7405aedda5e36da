/* resize.c - geometry of pictures: resize (bytes, to the bit as Pillow), crop and flip (any dtype).
 *
 * Resize, along one axis with scale s = in / out and f = max(s, 1): output i is centred on c = (i + 1/2) s and weighs
 * source j by k((j + 1/2 - c) / f), normalised to sum 1, over j in [trunc(c - r f + 1/2), trunc(c + r f + 1/2)) within
 * the picture, r the kernel's radius; so shrinking widens the kernel and is antialiased. Weights are rounded to 22
 * fractional bits, sums start at a half. Columns are resampled first, into bytes, then rows; an axis that keeps its
 * size is left as it is. */
#include "resize.h"

/* ---- resize ---- */

enum { BICUBIC, BILINEAR };

static double kernel_at(int64_t mode, double x) { /* bicubic: Keys with a = -1/2 */
  x = fabs(x);
  if (mode == BILINEAR) return x < 1 ? 1 - x : 0;
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

int pg_axis_make(pg_axis *a, int64_t in, int64_t out, int64_t mode) {
  double scale = (double)in / (double)out, widen = PG_MAX(scale, 1.0), radius = (mode == BILINEAR ? 1 : 2) * widen;
  *a = (pg_axis){.in = in, .out = out, .taps = (int64_t)ceil(radius) * 2 + 1};
  if (in == out) return PG_OK;
  size_t exact = sizeof(double) * (size_t)a->taps;
  a->bytes = sizeof(int32_t) * (size_t)(out * (a->taps + 2));
  a->weight = pg_scratch_alloc(a->bytes);
  double *w = a->weight ? pg_scratch_alloc(exact) : NULL;
  if (!w) return pg_fail(PG_ERR_MEMORY, "resize: out of memory");
  a->first = a->weight + out * a->taps, a->count = a->first + out;
  for (int64_t i = 0; i < out; i++) {
    double centre = ((double)i + 0.5) * scale, sum = 0;
    int64_t from = PG_MAX((int64_t)(centre - radius + 0.5), 0), to = PG_MIN((int64_t)(centre + radius + 0.5), in);
    for (int64_t j = from; j < to; j++) sum += w[j - from] = kernel_at(mode, ((double)j - centre + 0.5) * (1 / widen));
    for (int64_t j = 0; j < to - from; j++) {
      double v = w[j] / sum * (1 << PG_FRACTION);
      a->weight[i * a->taps + j] = (int32_t)(v + copysign(0.5, v));
    }
    a->first[i] = (int32_t)from, a->count[i] = (int32_t)(to - from);
  }
  pg_scratch_free(w, exact);
  return PG_OK;
}

static inline uint8_t to_byte(int32_t sum) {
  sum >>= PG_FRACTION;
  return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

static void resize_row(const pg_axis *a, int64_t channels, const uint8_t *restrict x, uint8_t *restrict y) {
  for (int64_t i = 0; i < a->out; i++) {
    const int32_t *w = a->weight + i * a->taps;
    const uint8_t *from = x + a->first[i] * channels;
    for (int64_t k = 0; k < channels; k++) {
      int32_t sum = 1 << (PG_FRACTION - 1);
      for (int32_t j = 0; j < a->count[i]; j++) sum += w[j] * from[j * channels + k];
      y[i * channels + k] = to_byte(sum);
    }
  }
}

/* Output row i from the rows of x, `width` bytes each. */
PG_SIMD static void resize_down(const pg_axis *a, int64_t i, int64_t width, const uint8_t *restrict x,
                                uint8_t *restrict y) {
  enum { BLOCK = 256 };
  const int32_t *w = a->weight + i * a->taps;
  int32_t sum[BLOCK];
  for (int64_t k = 0; k < width; k += BLOCK) {
    int64_t n = PG_MIN(BLOCK, width - k);
    for (int64_t q = 0; q < n; q++) sum[q] = 1 << (PG_FRACTION - 1);
    for (int32_t j = 0; j < a->count[i]; j++) {
      const uint8_t *from = x + (a->first[i] + j) * width + k;
      for (int64_t q = 0; q < n; q++) sum[q] += w[j] * from[q];
    }
    for (int64_t q = 0; q < n; q++) y[k + q] = to_byte(sum[q]);
  }
}

static int resize_shape(pg_call *c) {
  const pg_tensor *x = c->in[0];
  int64_t shape[PG_MAX_DIMS];
  int32_t h = x->ndim - 3;
  if (x->ndim != 3 && x->ndim != 4) return pg_op_fail(c, "takes pictures (H, W, C) or (N, H, W, C)");
  if (!x->shape[h] || !x->shape[h + 1]) return pg_op_fail(c, "the pictures are empty");
  if (x->shape[h] > 1 << 24 || x->shape[h + 1] > 1 << 24) return pg_op_fail(c, "a side is over 2^24 pixels");
  memcpy(shape, x->shape, sizeof shape);
  shape[h] = c->p[PG_RESIZE_HEIGHT].ints[0], shape[h + 1] = c->p[PG_RESIZE_WIDTH].ints[0];
  return pg_out(c, 0, PG_UINT8, x->ndim, shape);
}

static int resize_forward(pg_call *c) {
  const pg_tensor *x = c->in[0];
  int32_t at = x->ndim - 3;
  int64_t images = at ? x->shape[0] : 1, channels = x->shape[at + 2], mode = c->p[PG_RESIZE_MODE].ints[0];
  pg_axis down, across = {0};
  int status = pg_axis_make(&down, x->shape[at], c->p[PG_RESIZE_HEIGHT].ints[0], mode);
  if (!status) status = pg_axis_make(&across, x->shape[at + 1], c->p[PG_RESIZE_WIDTH].ints[0], mode);
  int64_t wide = across.in * channels, narrow = across.out * channels;
  bool two = !status && across.weight && down.weight;
  size_t bytes = (size_t)PG_MAX(down.in * narrow, 1);
  uint8_t *middle = two ? pg_scratch_alloc(bytes) : NULL; /* (H, new W, C) of one picture */
  if (two && !middle) status = pg_fail(PG_ERR_MEMORY, "resize: out of memory");
  for (int64_t n = 0; !status && n < images && !pg_stopping(); n++) {
    const uint8_t *source = PG_AT(uint8_t, x) + n * down.in * wide;
    uint8_t *y = PG_AT(uint8_t, c->out[0]) + n * down.out * narrow, *rows = two ? middle : y;
    if (across.weight) {
#pragma omp parallel for schedule(static) if (down.in * narrow > 16384)
      for (int64_t r = 0; r < down.in; r++) resize_row(&across, channels, source + r * wide, rows + r * narrow);
      source = rows;
    }
    if (down.weight) {
#pragma omp parallel for schedule(static) if (down.out * narrow > 16384)
      for (int64_t r = 0; r < down.out; r++) resize_down(&down, r, narrow, source, y + r * narrow);
    } else if (!across.weight)
      memcpy(y, source, (size_t)(down.in * wide));
  }
  pg_scratch_free(middle, bytes);
  pg_scratch_free(across.weight, across.bytes);
  pg_scratch_free(down.weight, down.bytes);
  return status;
}

const pg_op pg_op_resize = {
    .info = {.name = "resize",
             .doc = "byte pictures at another size, antialiased when shrinking; the same bytes as Pillow",
             .source = "Keys, IEEE ASSP 29(6), 1981 (bicubic, a = -1/2); Pillow's Image.resize",
             .inputs = PG_ARGS({"x", 0, "(H, W, C) or (N, H, W, C) uint8"}),
             .outputs = PG_ARGS({"y", 0, "(..., height, width, C) uint8"}),
             .params = PG_PARAMS(PG_INT("height", NAN, 1, 65536, "new H"), PG_INT("width", NAN, 1, 65536, "new W"),
                                 PG_WORD("mode", BICUBIC, "bicubic bilinear", "the kernel")),
             .no_backward = "its input is bytes",
             .samples = PG_SAMPLES("{x = bytes(256, 2, 9, 7, 3), height = 4, width = 5}",
                                   "{x = bytes(256, 5, 6, 1), height = 5, width = 11, mode = \"bilinear\"}"),
             .method = 1},
    .shape = resize_shape,
    .forward = {[PG_UINT8] = resize_forward}};

/* ---- crop: a view ---- */

static int crop_view(pg_call *c) {
  static const char *const side[2] = {"rows", "columns"};
  pg_tensor *x = c->in[0];
  int64_t shape[PG_MAX_DIMS], offset = x->offset;
  int32_t h = x->ndim - 3;
  if (x->ndim != 3 && x->ndim != 4) return pg_op_fail(c, "takes pictures (H, W, C) or (N, H, W, C)");
  memcpy(shape, x->shape, sizeof shape);
  for (int i = 0; i < 2; i++) {
    int64_t start = c->p[i].ints[0], length = c->p[2 + i].ints[0], size = x->shape[h + i];
    if (start < 0) start += size;
    if (start < 0 || length < 0 || length > size - start)
      return pg_op_fail(c, "%lld %s from position %lld are not all within %lld", (long long)length, side[i],
                        (long long)pg_position(c->p[i].ints[0]), (long long)size);
    shape[h + i] = length, offset += start * x->stride[h + i];
  }
  return pg_view(x, x->ndim, shape, x->stride, offset, &c->out[0]);
}

static int crop_backward(pg_call *c) { /* grad_out, in a frame of zeros */
  pg_tensor *source[1] = {c->grad_in[0]};
  pg_call again = {.op = c->op, .n_in = 1, .in = source, .p = c->p, .n_out = 1};
  PG_TRY(pg_fill_new(c->grad_in[0], 0));
  PG_TRY(crop_view(&again));
  int status = pg_copy_new(again.out[0], c->grad_out[0]);
  pg_release(again.out[0]);
  return status;
}

const pg_op pg_op_crop = {
    .info = {.name = "crop",
             .doc = "`height` x `width` pixels of each picture, from row `top` and column `left`",
             .inputs = PG_ARGS({"x", PG_STRIDED, "(H, W, C) or (N, H, W, C), any dtype"}),
             .outputs = PG_ARGS({"y", 0, "(..., height, width, C), a view of x"}),
             .params = PG_PARAMS(PG_POSITION("top", "first row"), PG_POSITION("left", "first column"),
                                 PG_INT("height", NAN, 0, 0, "rows"), PG_INT("width", NAN, 0, 0, "columns")),
             .samples = PG_SAMPLES("{x = randn(2, 5, 4, 3), top = 2, left = 1, height = 3, width = 2}",
                                   "{x = randn(5, 4, 1), top = 1, left = -2, height = 5, width = 2}"),
             .method = 1},
    .flags = PG_F_VIEW,
    .view = crop_view,
    .backward = PG_ANY_REAL(crop_backward)};

/* ---- flip ---- */

static int flip_mask(const pg_call *c, const pg_tensor *x, uint32_t *mask) { /* bit d: dimension d is reversed */
  *mask = c->p[0].len ? 0 : (1u << x->ndim) - 1;
  for (int32_t i = 0, dim; i < c->p[0].len; i++) {
    if (!x->ndim) return pg_op_fail(c, "a scalar has no dimension");
    PG_TRY(pg_dim(c, x, c->p[0].ints[i], &dim));
    if (*mask & (1u << dim)) return pg_op_fail(c, "dimension %lld is named twice", (long long)pg_shown(dim));
    *mask |= 1u << dim;
  }
  return PG_OK;
}

static int flip_shape(pg_call *c) {
  uint32_t mask;
  PG_TRY(flip_mask(c, c->in[0], &mask));
  return pg_out_like(c, 0, c->in[0]);
}

/* The last reversed dimension is seen as n blocks of bytes; what precedes it says which n blocks they are. */
static int flip_copy(pg_call *c, const pg_tensor *x, pg_tensor *y) {
  uint32_t mask;
  PG_TRY(flip_mask(c, x, &mask));
  int32_t last = x->ndim - 1;
  while (last > 0 && !(mask & (1u << last))) last--;
  int64_t outer = 1, n = 1, inner = 1;
  if (x->ndim) pg_around(x, last, &outer, &n, &inner);
  size_t block = (size_t)inner * pg_dtype_bytes[x->dtype];
  const char *from = (const char *)x->storage->data + (size_t)x->offset * pg_dtype_bytes[x->dtype];
  char *to = (char *)y->storage->data + (size_t)y->offset * pg_dtype_bytes[y->dtype];
  if (!mask || !pg_numel(x)) {
    memcpy(to, from, block * (size_t)(outer * n));
    return PG_OK;
  }
#pragma omp parallel for schedule(static) if (outer > 1 && outer * n * inner > 32768)
  for (int64_t o = 0; o < outer; o++) {
    if (pg_stopping()) continue;
    int64_t source = 0, rest = o, step = 1;
    for (int32_t d = last - 1; d >= 0; step *= x->shape[d--]) {
      int64_t i = rest % x->shape[d];
      source += (mask & (1u << d) ? x->shape[d] - 1 - i : i) * step, rest /= x->shape[d];
    }
    for (int64_t i = 0; i < n; i++)
      memcpy(to + (size_t)(o * n + i) * block, from + (size_t)(source * n + n - 1 - i) * block, block);
  }
  return PG_OK;
}

static int flip_forward(pg_call *c) { return flip_copy(c, c->in[0], c->out[0]); }
static int flip_backward(pg_call *c) { return flip_copy(c, c->grad_out[0], c->grad_in[0]); }

const pg_op pg_op_flip = {
    .info = {.name = "flip",
             .doc = "reverses the order along each of `dims`",
             .inputs = PG_ARGS({"x", 0, "any shape and dtype"}),
             .outputs = PG_ARGS({"y", 0, "x's shape and dtype"}),
             .params = PG_PARAMS(PG_DIM_LIST("dims", "the dimensions to reverse; {}: all of them")),
             .samples = PG_SAMPLES("{x = randn(2, 3, 4), dims = {2}}", "{x = randn(2, 3, 4), dims = {-1, 1}}",
                                   "{x = randn(3, 2)}"),
             .method = 1},
    .shape = flip_shape,
    .forward = PG_ANY(flip_forward),
    .backward = PG_ANY_REAL(flip_backward)};
