/* png_quick.c - the common PNG, inflated in one call: 8 bits, grey, RGB, palette, with alpha or not, not interlaced.
 *
 * Files are mostly inflated bytes, and libdeflate needs about half of zlib's time for them, as it may see the whole
 * input and output at once. Whatever is unusual here (another kind of PNG, a chunk out of place, a wrong checksum, more
 * or fewer bytes than the header says, 64 MB for file, rows and pixels together) is no error but libpng's: this reader
 * takes a file, or leaves it untouched. So errors have one source, and what is taken gives libpng's very bytes.
 *
 * A row is stored as a filter and the differences from a prediction, of the pixel at the left a, above b, and above the
 * left c: 0 nothing, 1 a, 2 b, 3 floor((a + b) / 2), 4 whichever of a, b, c is nearest to a + b - c (PNG, 9.2). */
#include "io.h"
#include <libdeflate.h>

enum { GREY = 0, RGB = 2, PALETTE = 3, GREY_ALPHA = 4, RGB_ALPHA = 6, MOST_CHUNK = 8000000, SLACK = 8 };

typedef struct header {
  int64_t w, h;
  int kind, channels;      /* channels: bytes a pixel */
  uint8_t palette[256][3]; /* composited on white */
  int colors;
  uint8_t *stream; /* the IDAT chunks joined, within the file's bytes */
  int64_t stream_bytes;
} header;

static uint32_t big(const uint8_t *p) {
  return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* ---- chunks ----------------------------------------------------------------------------------------------------- */

typedef struct chunk {
  uint8_t *data;
  int64_t bytes;
  const uint8_t *name;
} chunk;

static bool is_named(const chunk *c, const char *name) { return !memcmp(c->name, name, 4); }

static bool sound(const chunk *c) {
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION /* a fuzzer cannot guess checksums */
  return true;
#endif
  return libdeflate_crc32(0, c->name, (size_t)c->bytes + 4) == big(c->data + c->bytes);
}

/* The chunk at *at, within the file; *at moves behind it. */
static bool next_chunk(uint8_t *file, int64_t bytes, int64_t *at, chunk *c) {
  if (bytes - *at < 12) return false;
  c->bytes = big(file + *at), c->name = file + *at + 4, c->data = file + *at + 8;
  if (c->bytes > MOST_CHUNK || c->bytes > bytes - *at - 12) return false;
  for (int i = 0; i < 4; i++)
    if ((c->name[i] | 32) < 'a' || (c->name[i] | 32) > 'z') return false;
  *at += 12 + c->bytes;
  return true;
}

static bool read_header(header *p, const chunk *c) {
  static const int channels[7] = {[GREY] = 1, [RGB] = 3, [PALETTE] = 1, [GREY_ALPHA] = 2, [RGB_ALPHA] = 4};
  if (!is_named(c, "IHDR") || c->bytes != 13 || !sound(c)) return false;
  p->w = big(c->data), p->h = big(c->data + 4), p->kind = c->data[9];
  if (p->w < 1 || p->h < 1 || p->w > PG_PICTURE_MOST_SIDE || p->h > PG_PICTURE_MOST_SIDE || p->kind > RGB_ALPHA)
    return false;
  p->channels = channels[p->kind];
  return p->channels && c->data[8] == 8 && !c->data[10] && !c->data[11] && !c->data[12]; /* 8 bits, not interlaced */
}

static bool read_palette(header *p, const chunk *c) {
  p->colors = (int)(c->bytes / 3);
  if (c->bytes % 3 || c->bytes < 3 || c->bytes > 768 || !sound(c)) return false;
  memcpy(p->palette, c->data, (size_t)c->bytes);
  return true;
}

static bool read_alpha(header *p, const chunk *c) {
  if (p->kind != PALETTE || !p->colors || c->bytes < 1 || c->bytes > p->colors || !sound(c)) return false;
  for (int64_t i = 0; i < c->bytes; i++)
    for (int k = 0; k < 3; k++) p->palette[i][k] = pg_over_white(p->palette[i][k], c->data[i]);
  return true;
}

/* What precedes the pixels, and the IDAT chunks moved together. */
static bool read_chunks(header *p, uint8_t *file, int64_t bytes) {
  static const uint8_t signature[8] = {137, 'P', 'N', 'G', '\r', '\n', 26, '\n'};
  int64_t at = 8;
  bool alpha = false, found;
  chunk c;
  if (bytes < 8 || memcmp(file, signature, 8) || !next_chunk(file, bytes, &at, &c) || !read_header(p, &c)) return false;
  while ((found = next_chunk(file, bytes, &at, &c)) && !is_named(&c, "IDAT")) {
    if (is_named(&c, "PLTE")) {
      if (p->colors || alpha || p->kind == GREY || p->kind == GREY_ALPHA || !read_palette(p, &c)) return false;
    } else if (is_named(&c, "tRNS")) {
      if (alpha || !read_alpha(p, &c)) return false;
      alpha = true;
    } else if (!(c.name[0] & 32)) /* critical, and not known here */
      return false;
  }
  if (!found || (p->kind == PALETTE && !p->colors)) return false;
  p->stream = c.data;
  do {
    if (!sound(&c)) return false;
    memmove(p->stream + p->stream_bytes, c.data, (size_t)c.bytes);
    p->stream_bytes += c.bytes;
  } while (next_chunk(file, bytes, &at, &c) && is_named(&c, "IDAT"));
  return true;
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */

typedef int16_t pixel __attribute__((vector_size(8))); /* up to four channels, so that each step is one for all */
typedef uint8_t packed __attribute__((vector_size(4)));

static inline pixel load_pixel(const uint8_t *p) { /* reads four bytes: rows have SLACK behind them */
  packed bytes;
  memcpy(&bytes, p, 4);
  return __builtin_convertvector(bytes, pixel);
}

static inline void store_pixel(uint8_t *p, pixel v, int channels) {
  packed bytes = __builtin_convertvector(v & 255, packed);
  memcpy(p, &bytes, (size_t)channels);
}

static inline pixel choose(pixel mask, pixel yes, pixel no) { return (mask & yes) | (~mask & no); }

static inline pixel magnitude(pixel v) {
  pixel sign = v >> 15;
  return (v ^ sign) - sign;
}

static inline pixel nearest(pixel a, pixel b, pixel c) {
  pixel da = magnitude(b - c), db = magnitude(a - c), dc = magnitude(a + b - c - c);
  return choose((da <= db) & (da <= dc), a, choose(db <= dc, b, c));
}

/* Three or four channels, where a pixel waits for the one before it. x may be y. */
static inline void unfilter_pixels(int filter, int channels, int64_t n, const uint8_t *x, const uint8_t *above,
                                   uint8_t *y) {
  pixel a = {0}, c = {0};
  for (int64_t i = 0; i < n; i += channels) {
    pixel b = load_pixel(above + i), v = load_pixel(x + i);
    v += filter == 1 ? a : filter == 3 ? (a + b) >> 1 : nearest(a, b, c);
    a = v & 255, c = b;
    store_pixel(y + i, a, channels);
  }
}

static uint8_t nearest_byte(int a, int b, int c) {
  int da = abs(b - c), db = abs(a - c), dc = abs(a + b - c - c);
  return (uint8_t)(da <= db && da <= dc ? a : db <= dc ? b : c);
}

static void unfilter_bytes(int filter, int channels, int64_t n, const uint8_t *x, const uint8_t *above, uint8_t *y) {
  for (int64_t i = 0; i < n; i++) {
    int a = i < channels ? 0 : y[i - channels], b = above[i], c = i < channels ? 0 : above[i - channels];
    y[i] = (uint8_t)(x[i] + (filter == 1 ? a : filter == 3 ? (a + b) / 2 : nearest_byte(a, b, c)));
  }
}

PG_SIMD static bool unfilter(int filter, int channels, int64_t n, const uint8_t *x, const uint8_t *above, uint8_t *y) {
  if (filter > 4) return false;
  if (filter == 0 && x != y) memcpy(y, x, (size_t)n);
  if (filter == 2)
    for (int64_t i = 0; i < n; i++) y[i] = (uint8_t)(x[i] + above[i]);
  if (filter == 0 || filter == 2) return true;
  /* constants, so that the compiler makes a loop of each */
  if (channels == 3 && filter == 1) unfilter_pixels(1, 3, n, x, above, y);
  if (channels == 3 && filter == 3) unfilter_pixels(3, 3, n, x, above, y);
  if (channels == 3 && filter == 4) unfilter_pixels(4, 3, n, x, above, y);
  if (channels == 4 && filter == 1) unfilter_pixels(1, 4, n, x, above, y);
  if (channels == 4 && filter == 3) unfilter_pixels(3, 4, n, x, above, y);
  if (channels == 4 && filter == 4) unfilter_pixels(4, 4, n, x, above, y);
  if (channels < 3) unfilter_bytes(filter, channels, n, x, above, y);
  return true;
}

/* A row of anything but RGB as RGB on white; false when a pixel is outside the palette. */
static bool to_rgb(const header *p, const uint8_t *x, uint8_t *rgb) {
  for (int64_t i = 0; i < p->w; i++, rgb += 3) {
    if (p->kind == PALETTE) {
      if (x[i] >= p->colors) return false;
      memcpy(rgb, p->palette[x[i]], 3);
    } else if (p->kind == RGB_ALPHA)
      for (int k = 0; k < 3; k++) rgb[k] = pg_over_white(x[4 * i + k], x[4 * i + 3]);
    else
      rgb[0] = rgb[1] = rgb[2] = p->kind == GREY ? x[i] : pg_over_white(x[2 * i], x[2 * i + 1]);
  }
  return true;
}

/* rows: h times a filter and a row; RGB is unfiltered into the picture, others in place. */
static bool fill(const header *p, uint8_t *rows, const uint8_t *zeros, uint8_t *picture) {
  int64_t n = p->w * p->channels;
  const uint8_t *above = zeros;
  for (int64_t y = 0; y < p->h; y++) {
    uint8_t *row = rows + y * (n + 1), *rgb = picture + y * p->w * 3, *target = p->kind == RGB ? rgb : row + 1;
    if (!unfilter(row[0], p->channels, n, row + 1, above, target)) return false;
    if (p->kind != RGB && !to_rgb(p, target, rgb)) return false;
    above = target;
  }
  return true;
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

static bool inflate_rows(const header *p, uint8_t *rows, size_t bytes) {
  const uint8_t *z = p->stream;
  /* a window smaller than zlib's largest may be too small for the stream: libdeflate would not look */
  if (p->stream_bytes < 2 || (z[0] >> 4 != 7 && ((size_t)256 << (z[0] >> 4)) < bytes)) return false;
  struct libdeflate_decompressor *d = libdeflate_alloc_decompressor();
  size_t used = 0;
  bool good =
      d && libdeflate_zlib_decompress_ex(d, z, (size_t)p->stream_bytes, rows, bytes, &used, NULL) == LIBDEFLATE_SUCCESS;
  libdeflate_free_decompressor(d);
  return good && used == (size_t)p->stream_bytes;
}

bool pg_png_quick(uint8_t *file, int64_t bytes, int64_t most_side, pg_tensor **out) {
  header p = {0};
  if (!read_chunks(&p, file, bytes) || p.w > most_side || p.h > most_side) return false;
  int64_t n = p.w * p.channels, all = p.h * (n + 1), room = all + n + 2 * SLACK;
  if (bytes + room + p.h * p.w * 3 > PG_PICTURE_MOST_BYTES) return false;
  uint8_t *rows = pg_scratch_alloc((size_t)room), *zeros = rows + all + SLACK; /* zeros: what is above the first row */
  pg_tensor *picture = NULL;
  bool good = rows && !pg_new(PG_UINT8, PG_CPU, 3, (int64_t[]){p.h, p.w, 3}, &picture);
  if (good) memset(rows + all, 0, (size_t)(n + 2 * SLACK));
  good = good && inflate_rows(&p, rows, (size_t)all) && fill(&p, rows, zeros, PG_AT(uint8_t, picture));
  pg_scratch_free(rows, (size_t)room);
  if (!good && picture) pg_release(picture);
  return good && (*out = picture, true);
}
