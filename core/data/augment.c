/* augment.c - crop, resize, shift, flip, colour jitter and normalisation of one picture, in that order.
 *
 * Every draw comes from a Philox block of its own, counter {block, sample, 0x10ade} under the stream's seed: a picture
 * depends on (picture, seed, sample) alone, whichever thread makes it, and switching one augmentation on leaves the
 * draws of the others as they were.
 *
 *   crop     random resized crop (Szegedy et al. 2015; torchvision's RandomResizedCrop): area U(min, max) of the
 *            picture, log aspect ratio U(ln 3/4, ln 4/3), the first of ten tries that fits, otherwise the largest
 *            centred window whose ratio is within those bounds
 *   no crop  shorter side to S, longer to floor(S longer / shorter), then the centre S x S, halves to even
 *   shift    by U{-pad..pad} rows and columns; zeros or the repeated edge come in
 *   jitter   on floats within 0..255, clamped after each: brightness f v; contrast f v + (1 - f) mean(grey);
 *            saturation f v + (1 - f) grey; f ~ U(max(0, 1 - a), 1 + a), grey = 0.299 R + 0.587 G + 0.114 B */
#include "augment.h"
#include "../io/io.h"

enum { MOST_SIZE = 1024, TRIES = 10, BLOCK_PLACE = 16, BLOCK_COLOR = 17 };

typedef struct window { /* a part of a picture */
  int64_t top, left, h, w;
} window;

static void draw(uint64_t seed, uint64_t sample, uint32_t block, uint32_t out[4]) {
  uint32_t counter[4] = {block, (uint32_t)sample, (uint32_t)(sample >> 32), 0x10ade};
  pg_philox(counter, (uint32_t[2]){(uint32_t)seed, (uint32_t)(seed >> 32)}, out);
}

static double uniform(uint32_t word, double lo, double hi) { return lo + (hi - lo) * (word >> 8) * 0x1p-24; }

static int64_t below(uint32_t word, int64_t n) { return (int64_t)(((uint64_t)word * (uint64_t)n) >> 32); }

/* ---- options ---------------------------------------------------------------------------------------------------- */

static int out_of_range(const char *name, double value, const char *range) {
  return pg_fail(PG_ERR_ARGUMENT, "loader: %s must be %s, got %g", name, range, value);
}

int pg_augment_init(pg_augment *a, const pg_loader_options *o) {
  static const char *const jitter_name[3] = {"brightness", "contrast", "saturation"};
  if (o->size < 1 || o->size > MOST_SIZE) return out_of_range("size", o->size, "within 1..1024");
  if (o->crop_max != 0 && !(o->crop_min > 0 && o->crop_min <= o->crop_max && o->crop_max <= 1))
    return pg_fail(PG_ERR_ARGUMENT, "loader: crop must be 0 < least area <= most area <= 1, got %g and %g", o->crop_min,
                   o->crop_max);
  if (!(o->flip >= 0 && o->flip <= 1)) return out_of_range("flip", o->flip, "a probability");
  if (o->pad < 0 || o->pad >= o->size) return out_of_range("pad", o->pad, "0 or more pixels, less than size");
  *a = (pg_augment){.o = *o};
  for (int c = 0; c < 3; c++) {
    if (!(o->jitter[c] >= 0 && o->jitter[c] < 1e6)) return out_of_range(jitter_name[c], o->jitter[c], "0 or more");
    if (!isfinite(o->mean[c])) return out_of_range("mean", o->mean[c], "finite");
    if (!(isfinite(o->std[c]) && o->std[c] > 0)) return out_of_range("std", o->std[c], "above 0");
    a->jitter |= o->jitter[c] > 0;
    a->scale[c] = 1 / (255 * o->std[c]), a->shift[c] = -o->mean[c] / o->std[c]; /* as the op normalize_image has it */
  }
  for (int c = 0; c < 3; c++)
    for (int v = 0; v < 256; v++) a->table[c][v] = a->jitter ? (float)v : (float)v * a->scale[c] + a->shift[c];
  return PG_OK;
}

/* ---- geometry --------------------------------------------------------------------------------------------------- */

static window random_window(const pg_loader_options *o, int64_t h, int64_t w, uint64_t seed, uint64_t sample) {
  const double least = 3.0 / 4, most = 4.0 / 3;
  for (uint32_t i = 0; i < TRIES; i++) {
    uint32_t word[4];
    draw(seed, sample, i, word);
    double area = (double)h * (double)w * uniform(word[0], o->crop_min, o->crop_max);
    double ratio = exp(uniform(word[1], log(least), log(most)));
    int64_t cw = llrint(sqrt(area * ratio)), ch = llrint(sqrt(area / ratio));
    if (cw > 0 && cw <= w && ch > 0 && ch <= h)
      return (window){below(word[2], h - ch + 1), below(word[3], w - cw + 1), ch, cw};
  }
  window all = {0, 0, h, w};
  if ((double)w < least * (double)h)
    all.h = llrint((double)w / least);
  else if ((double)w > most * (double)h)
    all.w = llrint((double)h * most);
  all.h = PG_MAX(PG_MIN(all.h, h), 1), all.w = PG_MAX(PG_MIN(all.w, w), 1);
  all.top = (h - all.h) / 2, all.left = (w - all.w) / 2;
  return all;
}

/* The S x S bytes of a picture before the shift: within src itself where nothing is resampled. */
static int to_square(const pg_augment *a, const uint8_t *src, int64_t h, int64_t w, uint64_t seed, uint64_t sample,
                     uint8_t *scratch, const uint8_t **square, int64_t *stride) {
  int64_t size = a->o.size;
  pg_resampling r = {.h = h, .w = w, .channels = 3, .stride = w * 3, .rows = size, .columns = size};
  r.cubic = !a->o.bilinear, r.out_h = r.out_w = size;
  if (a->o.crop_max > 0) {
    window part = random_window(&a->o, h, w, seed, sample);
    src += part.top * r.stride + part.left * 3, r.h = part.h, r.w = part.w;
  } else {
    if (w <= h)
      r.out_h = size * h / w;
    else
      r.out_w = size * w / h;
    r.top = llrint((double)(r.out_h - size) / 2), r.left = llrint((double)(r.out_w - size) / 2);
  }
  if (r.h == r.out_h && r.w == r.out_w) {
    *square = src + r.top * r.stride + r.left * 3, *stride = r.stride;
    return PG_OK;
  }
  r.extent_h = (double)r.h, r.extent_w = (double)r.w;
  *square = scratch, *stride = size * 3;
  return pg_resample(src, &r, scratch, *stride);
}

/* ---- colour ----------------------------------------------------------------------------------------------------- */

static float grey_of(const float *out, int64_t plane, int64_t i) {
  return 0.299f * out[i] + 0.587f * out[plane + i] + 0.114f * out[2 * plane + i];
}

static float clamp(float v) { return v < 0 ? 0 : v > 255 ? 255 : v; }

static void jitter(const pg_augment *a, uint64_t seed, uint64_t sample, float *out) {
  int64_t plane = (int64_t)a->o.size * a->o.size;
  float factor[3];
  uint32_t word[4];
  draw(seed, sample, BLOCK_COLOR, word);
  for (int i = 0; i < 3; i++)
    factor[i] = (float)uniform(word[i], PG_MAX(0, 1 - (double)a->o.jitter[i]), 1 + (double)a->o.jitter[i]);
  if (a->o.jitter[0] > 0)
    for (int64_t i = 0; i < 3 * plane; i++) out[i] = clamp(factor[0] * out[i]);
  if (a->o.jitter[1] > 0) {
    double sum = 0;
    for (int64_t i = 0; i < plane; i++) sum += grey_of(out, plane, i);
    float rest = (1 - factor[1]) * (float)(sum / (double)plane);
    for (int64_t i = 0; i < 3 * plane; i++) out[i] = clamp(factor[1] * out[i] + rest);
  }
  if (a->o.jitter[2] > 0)
    for (int64_t i = 0; i < plane; i++) {
      float rest = (1 - factor[2]) * grey_of(out, plane, i);
      for (int c = 0; c < 3; c++) out[c * plane + i] = clamp(factor[2] * out[c * plane + i] + rest);
    }
  for (int c = 0; c < 3; c++)
    for (int64_t i = 0; i < plane; i++) out[c * plane + i] = out[c * plane + i] * a->scale[c] + a->shift[c];
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

int pg_augment_image(const pg_augment *a, const uint8_t *src, int64_t h, int64_t w, uint64_t seed, uint64_t sample,
                     uint8_t *scratch, float *out) {
  static const uint8_t black[3] = {0};
  int64_t size = a->o.size, plane = size * size, pad = a->o.pad, stride;
  const uint8_t *square;
  PG_TRY(to_square(a, src, h, w, seed, sample, scratch, &square, &stride));
  uint32_t word[4];
  draw(seed, sample, BLOCK_PLACE, word);
  bool mirrored = uniform(word[0], 0, 1) < (double)a->o.flip;
  int64_t down = below(word[1], 2 * pad + 1) - pad, right = below(word[2], 2 * pad + 1) - pad;
  int32_t column[MOST_SIZE]; /* of the source, in bytes; -1: outside */
  for (int64_t x = 0; x < size; x++) {
    int64_t from = (mirrored ? size - 1 - x : x) + right, near = PG_MIN(PG_MAX(from, 0), size - 1);
    column[x] = (int32_t)(from == near || a->o.pad_edge ? near * 3 : -1);
  }
  for (int64_t y = 0; y < size; y++) {
    int64_t from = y + down, near = PG_MIN(PG_MAX(from, 0), size - 1);
    const uint8_t *row = from == near || a->o.pad_edge ? square + near * stride : NULL;
    float *r = out + y * size, *g = r + plane, *b = g + plane;
    for (int64_t x = 0; x < size; x++) {
      const uint8_t *pixel = row && column[x] >= 0 ? row + column[x] : black;
      r[x] = a->table[0][pixel[0]], g[x] = a->table[1][pixel[1]], b[x] = a->table[2][pixel[2]];
    }
  }
  if (a->jitter) jitter(a, seed, sample, out);
  return PG_OK;
}
