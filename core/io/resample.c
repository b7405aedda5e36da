/* resample.c - separable resampling of bytes, as Pillow's ImagingResample does it.
 *
 * Output i is centred on c = (i + 1/2) s, s = extent / size; the weight of source pixel j is k((j + 1/2 - c) / max(s,
 * 1)), normalised to sum 1: when shrinking the kernel widens with s, which is what keeps it free of aliasing. Rows
 * first, then columns, with rounding to bytes between the two. */
#include "io.h"

typedef struct filter { /* weights of one axis */
  int64_t taps;         /* room for each output */
  int64_t *first, *count;
  float *weight;
} filter;

static double kernel(bool cubic, double x) {
  x = fabs(x);
  if (!cubic) return x < 1 ? 1 - x : 0;
  const double a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

static void filter_free(filter *f) {
  free(f->first);
  free(f->weight);
}

static bool filter_make(filter *f, bool cubic, double extent, int64_t in, int64_t out) {
  double scale = extent / out, widen = PG_MAX(scale, 1.0), support = (cubic ? 2 : 1) * widen;
  f->taps = (int64_t)ceil(support) * 2 + 1;
  f->first = malloc(sizeof *f->first * 2 * out);
  f->weight = malloc(sizeof *f->weight * f->taps * out);
  if (!f->first || !f->weight) return false;
  f->count = f->first + out;
  for (int64_t i = 0; i < out; i++) {
    double centre = (i + 0.5) * scale, sum = 0;
    int64_t lo = PG_MAX((int64_t)(centre - support + 0.5), 0), hi = PG_MIN((int64_t)(centre + support + 0.5), in);
    lo = PG_MIN(lo, in - 1);
    hi = PG_MAX(PG_MIN(hi, lo + f->taps), lo + 1);
    float *w = f->weight + i * f->taps;
    for (int64_t j = lo; j < hi; j++) sum += w[j - lo] = (float)kernel(cubic, (j + 0.5 - centre) / widen);
    if (sum == 0) w[0] = 1, hi = lo + 1, sum = 1;
    for (int64_t j = lo; j < hi; j++) w[j - lo] /= (float)sum;
    f->first[i] = lo;
    f->count[i] = hi - lo;
  }
  return true;
}

static uint8_t to_byte(float v) { return v <= 0 ? 0 : v >= 255 ? 255 : (uint8_t)(v + 0.5f); }

/* One output line: `step` apart are the source elements that a weight combines. */
static void apply(const filter *f, int64_t i, const uint8_t *src, int64_t step, int64_t width, uint8_t *dst) {
  const float *w = f->weight + i * f->taps;
  src += f->first[i] * step;
  for (int64_t x = 0; x < width; x++) {
    float sum = 0;
    for (int64_t j = 0; j < f->count[i]; j++) sum += w[j] * src[j * step + x];
    dst[x] = to_byte(sum);
  }
}

int pg_resample(const uint8_t *src, int64_t h, int64_t w, int64_t channels, double extent_h, double extent_w,
                bool cubic, uint8_t *dst, int64_t out_h, int64_t out_w, int64_t dst_stride) {
  filter across = {0}, down = {0};
  uint8_t *middle = malloc((size_t)(h * out_w * channels)); /* (h, out_w, channels) */
  bool ok = middle && filter_make(&across, cubic, extent_w, w, out_w) && filter_make(&down, cubic, extent_h, h, out_h);
  if (ok) {
    for (int64_t y = 0; y < h; y++)
      for (int64_t x = 0; x < out_w; x++)
        apply(&across, x, src + y * w * channels, channels, channels, middle + (y * out_w + x) * channels);
    for (int64_t y = 0; y < out_h; y++)
      apply(&down, y, middle, out_w * channels, out_w * channels, dst + y * dst_stride);
  }
  filter_free(&across);
  filter_free(&down);
  free(middle);
  return ok ? PG_OK : pg_fail(PG_ERR_MEMORY, "out of memory while resizing a picture");
}
