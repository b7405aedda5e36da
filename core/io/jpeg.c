/* jpeg.c - JPEG files to and from (H, W, 3) bytes, by TurboJPEG.
 *
 * What comes out is what Pillow's convert("RGB") gives, to the byte: the accurate transform and the smooth upsampling;
 * grey repeated; four channels taken for Adobe's inverted CMYK, v = (c k) / 255, rounded. EXIF's orientation is then
 * applied, as ImageOps.exif_transpose does. Damage is judged as Pillow judges it: a file that ends before its
 * end-of-image marker is an error wherever it was cut; wrong codes within the data, which TurboJPEG warns of, are not.
 */
#include "io.h"
#include <turbojpeg.h>

enum { SOI = 0xd8, EOI = 0xd9, SOS = 0xda, APP1 = 0xe1, MOST_COEFFICIENTS = 256000000 };

/* What the markers tell, before anything is decoded. */
typedef struct outline {
  int64_t h, w;
  int channels;    /* 0: no frame was found */
  bool in_passes;  /* the picture comes in several scans, and TurboJPEG keeps every coefficient of it */
  bool whole;      /* an end-of-image marker was found */
  int orientation; /* 1..8 */
} outline;

/* ---- EXIF ------------------------------------------------------------------------------------------------------- */

typedef struct tiff { /* numbers of either byte order, within their bytes */
  const uint8_t *data;
  int64_t bytes;
  bool big;
} tiff;

/* The number of 2 or 4 bytes at `at`; -1: outside. */
static int64_t number(const tiff *t, int64_t at, int width) {
  if (at < 0 || at > t->bytes - width) return -1;
  int64_t v = 0;
  for (int i = 0; i < width; i++) v = v << 8 | t->data[at + (t->big ? i : width - 1 - i)];
  return v;
}

/* The orientation in the payload of an APP1 segment; 0: none. One list of tags is read, and no link is followed. */
static int orientation_of(const uint8_t *data, int64_t bytes) {
  enum { HEAD = 6, ENTRY = 12, ORIENTATION = 0x112, SHORT = 3, LONG = 4 };
  if (bytes < HEAD + 8 || memcmp(data, "Exif\0", 5)) return 0;
  tiff t = {.data = data + HEAD, .bytes = bytes - HEAD, .big = data[HEAD] == 'M'};
  if (memcmp(t.data, t.big ? "MM" : "II", 2) || number(&t, 2, 2) != 42) return 0;
  int64_t list = number(&t, 4, 4), count = number(&t, list, 2), found = 0;
  for (int64_t i = 0; i < count; i++) {
    int64_t at = list + 2 + ENTRY * i, type = number(&t, at + 2, 2);
    if (number(&t, at + ENTRY - 4, 4) < 0) break;
    if (number(&t, at, 2) == ORIENTATION && number(&t, at + 4, 4) == 1 && (type == SHORT || type == LONG))
      found = number(&t, at + 8, type == SHORT ? 2 : 4);
  }
  return found >= 1 && found <= 8 ? (int)found : 0;
}

/* ---- markers ---------------------------------------------------------------------------------------------------- */

static bool is_frame(int marker) { /* SOF0..SOF15; among their numbers are DHT, JPG and DAC */
  return marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc;
}

static bool is_alone(int marker) { return marker == 0x01 || (marker >= 0xd0 && marker <= SOI); } /* TEM, RST0..7, SOI */

/* The first marker at or after `at`, as the position of its second byte; `bytes` when there is none. Within coded data
 * 0xff is followed by zero, and restart markers belong to it. */
static int64_t next_marker(const uint8_t *file, int64_t bytes, int64_t at) {
  for (; at + 1 < bytes; at++)
    if (file[at] == 0xff && file[at + 1] && file[at + 1] != 0xff && !is_alone(file[at + 1])) return at + 1;
  return bytes;
}

static void read_frame(outline *o, int marker, const uint8_t *data, int64_t bytes) {
  if (bytes < 6) return;
  o->h = data[1] << 8 | data[2], o->w = data[3] << 8 | data[4], o->channels = data[5];
  o->in_passes = (marker & 3) == 2; /* SOF2, 6, 10 and 14 are progressive */
}

static outline read_outline(const uint8_t *file, int64_t bytes) {
  outline o = {0};
  for (int64_t at = next_marker(file, bytes, 2); at < bytes; at = next_marker(file, bytes, at)) {
    int marker = file[at++];
    if ((o.whole = marker == EOI) || at + 2 > bytes) break;
    int64_t length = file[at] << 8 | file[at + 1];
    if (length < 2 || at + length > bytes) break;
    const uint8_t *data = file + at + 2;
    if (is_frame(marker) && !o.channels) read_frame(&o, marker, data, length - 2);
    if (marker == SOS && length > 2 && data[0] < o.channels) o.in_passes = true;
    if (marker == APP1 && !o.orientation) o.orientation = orientation_of(data, length - 2);
    at += length;
  }
  return o;
}

/* ---- pixels ----------------------------------------------------------------------------------------------------- */

/* Coded pixels, (h, w, channels), and how a picture's rows and columns run through them. */
typedef struct source {
  uint8_t *pixels;
  int64_t h, w;
  int channels;               /* 3: RGB; 4: CMYK, inverted */
  int64_t first, down, right; /* bytes to the picture's first pixel, and from a pixel to those below and beside it */
  int64_t rows, columns;      /* of the picture */
} source;

/* 2, 3, 7, 8 mirror columns; 3, 4, 6, 7 mirror rows; 5 and on then swap them (EXIF 2.3, 4.6.4, tag 274). */
static void orient(source *s, int orientation) {
  int64_t column = s->channels, row = s->w * column;
  bool columns = orientation == 2 || orientation == 3 || orientation >= 7;
  bool rows = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7, swap = orientation >= 5;
  s->first = (columns ? (s->w - 1) * column : 0) + (rows ? (s->h - 1) * row : 0);
  s->down = rows ? -row : row, s->right = columns ? -column : column;
  s->rows = swap ? s->w : s->h, s->columns = swap ? s->h : s->w;
  if (swap) {
    int64_t down = s->down;
    s->down = s->right, s->right = down;
  }
}

static void gather_row(const source *s, int64_t y, uint8_t *rgb) {
  const uint8_t *from = s->pixels + s->first + y * s->down;
  for (int64_t x = 0; x < s->columns; x++, from += s->right)
    for (int c = 0; c < 3; c++)
      rgb[3 * x + c] = s->channels == 3 ? from[c] : (uint8_t)((from[c] * from[3] + 127) / 255);
}

/* All of the file into s->pixels. TurboJPEG says "warning" once it has warned, even if an error followed; what tells
 * them apart is whether the last row was written, whatever stood there before. */
static int decode(const char *path, const uint8_t *file, int64_t bytes, source *s) {
  int64_t row = s->w * s->channels, all = s->h * row;
  uint8_t *last = s->pixels + all - row;
  tjhandle turbo = tjInitDecompress();
  if (!turbo) return pg_fail(PG_ERR_MEMORY, "%s: out of memory", path);
  bool failed = true;
  memset(s->pixels, 0, (size_t)all); /* the header might say less to TurboJPEG than to us: no byte is left unset */
  for (int mark = 0; failed && mark <= 255; mark += 255) {
    memset(last, mark, (size_t)row);
    failed = tjDecompress2(turbo, file, (unsigned long)bytes, s->pixels, (int)s->w, (int)row, (int)s->h,
                           s->channels == 4 ? TJPF_CMYK : TJPF_RGB, TJFLAG_LIMITSCANS) != 0;
    if (failed && tjGetErrorCode(turbo) != TJERR_WARNING) break;
    for (int64_t i = 0; failed && i < row; i++) failed = last[i] == mark;
  }
  int status = failed ? pg_fail(PG_ERR_FILE, "%s: cannot decode this JPEG: %s", path, tjGetErrorStr2(turbo)) : PG_OK;
  tjDestroy(turbo);
  return status;
}

/* Decodes, turns and averages; `fraction` 2, 4 or 8 decodes to that fraction of the sides. */
static int fill(pg_picture *p, const outline *o, int64_t fraction, const uint8_t *file, int64_t bytes) {
  source s = {.h = (o->h + fraction - 1) / fraction, .w = (o->w + fraction - 1) / fraction};
  s.channels = o->channels == 4 ? 4 : 3;
  orient(&s, p->as_stored ? 1 : o->orientation);
  p->shrink = (double)fraction;
  PG_TRY(pg_picture_begin(p, s.rows, s.columns));
  if (p->block == 1 && s.channels == 3 && s.first == 0 && s.right == 3) { /* as it is coded: no copy */
    s.pixels = PG_AT(uint8_t, p->pixels);
    return decode(p->path, file, bytes, &s);
  }
  size_t room = (size_t)(s.h * s.w * s.channels), line = (size_t)s.columns * 3;
  uint8_t *rgb = pg_scratch_alloc(line);
  s.pixels = pg_scratch_alloc(room);
  int status = rgb && s.pixels ? PG_OK : pg_fail(PG_ERR_MEMORY, "%s: out of memory", p->path);
  if (!status) status = decode(p->path, file, bytes, &s);
  for (int64_t y = 0; !status && y < s.rows; y++) {
    gather_row(&s, y, rgb);
    pg_picture_row(p, y, rgb);
  }
  pg_scratch_free(rgb, line);
  pg_scratch_free(s.pixels, room);
  return status;
}

static int read_bytes(pg_picture *p, const uint8_t *file, int64_t bytes) {
  outline o = read_outline(file, bytes);
  if (!o.whole) return pg_fail(PG_ERR_FILE, "%s: truncated JPEG: it ends before its end-of-image marker", p->path);
  if (!o.channels || !o.w || !o.h) return pg_fail(PG_ERR_FILE, "%s: damaged JPEG: it tells no size", p->path);
  bool swap = o.orientation >= 5 && !p->as_stored;
  p->h = swap ? o.w : o.h, p->w = swap ? o.h : o.w;
  int64_t fraction = 1, all = o.h * o.w * (o.channels == 4 ? 4 : 3);
  while (p->size && fraction < 8 && all / (fraction * fraction) > PG_PICTURE_MOST_BYTES) fraction *= 2;
  if (all / (fraction * fraction) > PG_PICTURE_MOST_BYTES) return pg_picture_too_large(p);
  if (o.in_passes && o.h * o.w * o.channels * 2 > MOST_COEFFICIENTS)
    return pg_fail(PG_ERR_FILE,
                   "%s: a progressive JPEG of %lld x %lld pixels needs more than 256 MB; save it as a "
                   "sequential one",
                   p->path, (long long)p->w, (long long)p->h);
  return fill(p, &o, fraction, file, bytes);
}

int pg_jpeg_read(pg_picture *p, FILE *file, int64_t bytes) {
  if (bytes > PG_PICTURE_MOST_BYTES) return pg_fail(PG_ERR_FILE, "%s: a JPEG file of more than 64 MB", p->path);
  uint8_t *data = pg_scratch_alloc((size_t)PG_MAX(bytes, 1));
  if (!data) return pg_fail(PG_ERR_MEMORY, "%s: out of memory", p->path);
  size_t got = fread(data, 1, (size_t)bytes, file);
  int status = read_bytes(p, data, (int64_t)got);
  pg_scratch_free(data, (size_t)PG_MAX(bytes, 1));
  return status;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

int pg_jpeg_save(const char *path, pg_tensor *t, int32_t quality) {
  enum { MOST_SIDE = 65500 }; /* libjpeg's */
  PG_TRY(pg_picture_check(path, t, MOST_SIDE));
  if (quality < 1 || quality > 100)
    return pg_fail(PG_ERR_ARGUMENT, "%s: quality must be within 1..100, got %d", path, quality);
  pg_tensor *src;
  PG_TRY(pg_contiguous(t, &src));
  bool grey = t->ndim == 2;
  unsigned char *encoded = NULL;
  unsigned long bytes = 0;
  tjhandle turbo = tjInitCompress();
  int status;
  if (!turbo)
    status = pg_fail(PG_ERR_MEMORY, "%s: out of memory", path);
  else if (tjCompress2(turbo, PG_AT(uint8_t, src), (int)t->shape[1], 0, (int)t->shape[0], grey ? TJPF_GRAY : TJPF_RGB,
                       &encoded, &bytes, grey ? TJSAMP_GRAY : TJSAMP_420, quality, TJFLAG_ACCURATEDCT))
    status = pg_fail(PG_ERR_FILE, "%s: cannot encode: %s", path, tjGetErrorStr2(turbo));
  else
    status = pg_file_write(path, 1, (const void *[]){encoded}, (int64_t[]){(int64_t)bytes});
  tjFree(encoded);
  if (turbo) tjDestroy(turbo);
  pg_release(src);
  return status;
}
