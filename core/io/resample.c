/* resample.c - separable resampling of bytes, to the bit as Pillow's Image.resize with a box.
 *
 * Along one axis, with scale s = extent / size and f = max(s, 1), output i is centred on c = (i + 1/2) s and weighs
 * source j by k((j + 1/2 - c) / f), normalised to sum 1, over j in [trunc(c - r f + 1/2), trunc(c + r f + 1/2)) within
 * the source, r the kernel's radius: when shrinking the kernel widens, which is what keeps it free of aliasing. Weights
 * are rounded to 22 fractional bits and sums start at a half. Columns first, into bytes, then rows. Serial, and only
 * what the wanted part of the result needs: the loader's threads each resample pictures of their own. */
#include "io.h"

enum { FRACTION = 22 };

typedef struct axis {      /* weights of one axis, for the wanted outputs */
  int64_t in, count, taps; /* taps: room for one output's weights */
  int32_t *weight;         /* (count, taps); NULL: the axis is copied */
  int32_t *first, *used;   /* (count): first source, and how many */
  int64_t from;            /* first wanted output */
  size_t bytes;
} axis;

static double kernel_at(bool cubic, double x) { /* cubic: Keys with a = -1/2; otherwise the triangle */
  x = fabs(x);
  if (!cubic) return x < 1 ? 1 - x : 0;
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

static int axis_make(axis *a, bool cubic, double extent, int64_t in, int64_t out, int64_t from, int64_t count) {
  double scale = extent / (double)out, widen = PG_MAX(scale, 1.0), radius = (cubic ? 2 : 1) * widen;
  *a = (axis){.in = in, .count = count, .from = from, .taps = (int64_t)ceil(radius) * 2 + 1};
  if (extent == (double)out && in == out) return PG_OK;
  size_t exact = sizeof(double) * (size_t)a->taps;
  a->bytes = sizeof(int32_t) * (size_t)(count * (a->taps + 2));
  a->weight = pg_scratch_alloc(a->bytes);
  double *w = a->weight ? pg_scratch_alloc(exact) : NULL;
  if (!w) return pg_fail(PG_ERR_MEMORY, "out of memory while resizing a picture");
  a->first = a->weight + count * a->taps, a->used = a->first + count;
  for (int64_t i = 0; i < count; i++) {
    double centre = ((double)(from + i) + 0.5) * scale, sum = 0;
    int64_t lo = PG_MIN(PG_MAX((int64_t)(centre - radius + 0.5), 0), in - 1);
    int64_t hi = PG_MAX(PG_MIN((int64_t)(centre + radius + 0.5), in), lo + 1);
    for (int64_t j = lo; j < hi; j++) sum += w[j - lo] = kernel_at(cubic, ((double)j - centre + 0.5) * (1 / widen));
    if (sum == 0) w[0] = sum = 1, hi = lo + 1; /* an extent that ends within half a pixel of the source's edge */
    for (int64_t j = 0; j < hi - lo; j++) {
      double v = w[j] / sum * (1 << FRACTION);
      a->weight[i * a->taps + j] = (int32_t)(v + copysign(0.5, v));
    }
    a->first[i] = (int32_t)lo, a->used[i] = (int32_t)(hi - lo);
  }
  pg_scratch_free(w, exact);
  return PG_OK;
}

static inline uint8_t to_byte(int32_t sum) {
  sum >>= FRACTION;
  return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* One row of the source becomes the wanted columns. */
static void across_row(const axis *a, int64_t channels, const uint8_t *restrict x, uint8_t *restrict y) {
  for (int64_t i = 0; i < a->count; i++) {
    const int32_t *w = a->weight + i * a->taps;
    const uint8_t *from = x + a->first[i] * channels;
    if (channels == 3) {
      int32_t r = 1 << (FRACTION - 1), g = r, b = r;
      for (int32_t j = 0; j < a->used[i]; j++, from += 3) r += w[j] * from[0], g += w[j] * from[1], b += w[j] * from[2];
      y[3 * i] = to_byte(r), y[3 * i + 1] = to_byte(g), y[3 * i + 2] = to_byte(b);
      continue;
    }
    for (int64_t k = 0; k < channels; k++) {
      int32_t sum = 1 << (FRACTION - 1);
      for (int32_t j = 0; j < a->used[i]; j++) sum += w[j] * from[j * channels + k];
      y[i * channels + k] = to_byte(sum);
    }
  }
}

/* Wanted row i from rows `stride` bytes apart, of which x is the first that it uses. */
PG_SIMD static void down_row(const axis *a, int64_t i, int64_t width, int64_t stride, const uint8_t *restrict x,
                             uint8_t *restrict y) {
  enum { BLOCK = 256 };
  const int32_t *w = a->weight + i * a->taps;
  int32_t sum[BLOCK];
  for (int64_t k = 0; k < width; k += BLOCK) {
    int64_t n = PG_MIN(BLOCK, width - k);
    for (int64_t q = 0; q < n; q++) sum[q] = 1 << (FRACTION - 1);
    for (int32_t j = 0; j < a->used[i]; j++) {
      const uint8_t *from = x + j * stride + k;
      for (int64_t q = 0; q < n; q++) sum[q] += w[j] * from[q];
    }
    for (int64_t q = 0; q < n; q++) y[k + q] = to_byte(sum[q]);
  }
}

/* The wanted rows from the rows first.. of src, all `width` bytes wide. */
static void down_rows(const axis *a, int64_t width, const uint8_t *src, int64_t stride, int64_t first, uint8_t *dst,
                      int64_t dst_stride) {
  for (int64_t i = 0; i < a->count; i++) {
    if (a->weight)
      down_row(a, i, width, stride, src + (a->first[i] - first) * stride, dst + i * dst_stride);
    else
      memcpy(dst + i * dst_stride, src + (a->from + i - first) * stride, (size_t)width);
  }
}

int pg_resample(const uint8_t *src, const pg_resampling *r, uint8_t *dst, int64_t dst_stride) {
  axis across = {0}, down = {0};
  int status = axis_make(&across, r->cubic, r->extent_w, r->w, r->out_w, r->left, r->columns);
  if (!status) status = axis_make(&down, r->cubic, r->extent_h, r->h, r->out_h, r->top, r->rows);
  int64_t width = r->columns * r->channels;
  if (!status && !across.weight) {
    down_rows(&down, width, src + r->left * r->channels, r->stride, 0, dst, dst_stride);
  } else if (!status) {
    int64_t last = r->rows - 1, first = down.weight ? down.first[0] : r->top;
    int64_t rows = (down.weight ? down.first[last] + down.used[last] : r->top + r->rows) - first;
    uint8_t *middle = pg_scratch_alloc((size_t)(rows * width)); /* (rows, columns, channels) */
    if (!middle) status = pg_fail(PG_ERR_MEMORY, "out of memory while resizing a picture");
    for (int64_t y = 0; middle && y < rows; y++)
      across_row(&across, r->channels, src + (first + y) * r->stride, middle + y * width);
    if (middle) down_rows(&down, width, middle, width, first, dst, dst_stride);
    pg_scratch_free(middle, (size_t)(rows * width));
  }
  pg_scratch_free(across.weight, across.bytes);
  pg_scratch_free(down.weight, down.bytes);
  return status;
}
