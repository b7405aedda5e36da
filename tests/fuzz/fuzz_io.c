/* fuzz_io.c - one harness for every reader of untrusted bytes: the input becomes a file in memory, and whatever a
 * reader does with it under the sanitizers must be a tensor or one line of error. The environment's FUZZ_READER names
 * what the input is:
 *
 *   png     a PNG file, through the quick reader, libpng, and reduced; what both readers take must give the same bytes
 *   pixels  a few bytes of header, then filtered rows, which are packed into a whole PNG: mutations of a file mostly
 *           break its deflate stream, and would seldom reach what follows it
 *   jpeg    a JPEG file, whole, as it is stored, and reduced; twice, as no byte may be left to chance
 *   idx     an IDX file
 *   idxgz   the same, packed into a gzip stream unless it is one already
 *   npy     a .npy file
 *   npz     a .npz archive, every array of it; wrong checksums pass, so that mutations get behind them
 *   values  a byte that tells the kind, one that tells where, and values of that kind; and floats to be rounded to half
 *           types: what comes out must be what plain arithmetic says
 *   mat     a MATLAB file, asked for its array "y"
 *   matz    the elements of one, packed into the compressed element of a whole file
 *   ppm     a PPM file, as any picture and reduced
 *   bytes   any file, packed into a gzip stream unless it is one already
 *   text    no file: a text, through every function of Unicode
 *
 * libFuzzer drives it (run.sh); replay.c feeds it the committed corpus in `make test`. */
#include "core.h"
#include "io/io.h"
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

enum { MOST_PIXELS = 1 << 14, MOST_JPEG = 1 << 11, MOST_INPUT = 1 << 13, ROOM = 1 << 15, MOST_TEXT = 192 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void broken(const char *promise) {
  fprintf(stderr, "broken promise: %s; the last error is '%s'\n", promise, pg_last_error());
  abort();
}

/* A tensor, or an error of one line. */
static void check(int status, const pg_tensor *t) {
  if (status && (!*pg_last_error() || strchr(pg_last_error(), '\n'))) broken("an error is one line");
  if (!status && !t) broken("success comes with a tensor");
}

/* ---- inputs ----------------------------------------------------------------------------------------------------- */

static uint32_t big(const uint8_t *p) { return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | p[2] << 8 | p[3]; }

static void put(uint8_t *p, uint32_t v) { p[0] = v >> 24, p[1] = v >> 16 & 255, p[2] = v >> 8 & 255, p[3] = v & 255; }

/* A PNG of a few bytes may describe 60 MB, which are filled and thrown away: seconds for nothing. The sides in IHDR are
 * cut to a byte unless they are so large that the reader refuses them, which must stay reachable. */
static void tame(uint8_t *data, size_t bytes) {
  if (bytes < 24) return;
  uint64_t pixels = (uint64_t)big(data + 16) * big(data + 20);
  if (pixels > MOST_PIXELS && pixels < (uint64_t)1 << 26) memset(data + 16, 0, 3), memset(data + 20, 0, 3);
}

/* The same for the sides in whatever may be a JPEG's frame header; those that even the reduced reader refuses stay. */
static void tame_jpeg(uint8_t *data, size_t bytes) {
  memcpy(data, "\xff\xd8\xff", PG_MIN(bytes, 3));
  for (size_t i = 3; i + 9 < bytes; i++) {
    uint64_t pixels = (uint64_t)(data[i + 5] << 8 | data[i + 6]) * (uint64_t)(data[i + 7] << 8 | data[i + 8]);
    if (data[i] == 0xff && data[i + 1] >> 4 == 0xc && pixels > MOST_JPEG && pixels < 1400000000)
      data[i + 5] = data[i + 7] = 0, data[i + 6] &= 63, data[i + 8] &= 31;
  }
}

/* window: 15 for a zlib stream, 31 for gzip */
static size_t pack(const uint8_t *data, size_t bytes, int window, uint8_t *out, size_t most) {
  z_stream z = {.next_in = (uint8_t *)data, .avail_in = (unsigned)bytes, .next_out = out, .avail_out = (unsigned)most};
  if (deflateInit2(&z, 1, Z_DEFLATED, window, 8, Z_DEFAULT_STRATEGY) != Z_OK) return 0;
  deflate(&z, Z_FINISH);
  deflateEnd(&z);
  return most - z.avail_out;
}

/* name and bytes are in place; adds length and checksum, returns what follows. */
static uint8_t *chunk(uint8_t *at, const char *name, size_t bytes) {
  put(at, (uint32_t)bytes);
  memcpy(at + 4, name, 4);
  put(at + 8 + bytes, (uint32_t)crc32(0, at + 4, (unsigned)bytes + 4));
  return at + 12 + bytes;
}

/* Input: depth (its power of two), kind, interlacing and chunks to have, width, height, palette and tRNS sizes; then
 * palette and tRNS; the rest are rows. */
static size_t png_of(const uint8_t *data, size_t bytes, uint8_t *out) {
  enum { HEAD = 7 };
  if (bytes < HEAD) return 0;
  size_t colors = 3 * (size_t)data[5], alpha = data[6];
  uint8_t *at = out;
  memcpy(at, "\x89PNG\r\n\x1a\n", 8), at += 8;
  put(at + 8, data[3]), put(at + 12, data[4]);
  at[16] = (uint8_t)(1 << data[0] % 5), at[17] = data[1] % 7, at[18] = at[19] = 0, at[20] = data[2] & 1;
  at = chunk(at, "IHDR", 13);
  data += HEAD, bytes -= HEAD;
  colors = PG_MIN(colors, bytes);
  if (colors) memcpy(at + 8, data, colors), at = chunk(at, "PLTE", colors);
  data += colors, bytes -= colors;
  alpha = PG_MIN(alpha, bytes);
  if (alpha) memcpy(at + 8, data, alpha), at = chunk(at, "tRNS", alpha);
  data += alpha, bytes -= alpha;
  at = chunk(at, "IDAT", pack(data, bytes, 15, at + 8, (size_t)(out + ROOM - at) - 32));
  return (size_t)(chunk(at, "IEND", 0) - out);
}

/* A MATLAB file of one compressed element, which holds the input. */
static size_t mat_of(const uint8_t *data, size_t bytes, uint8_t *out) {
  enum { HEAD = 128 };
  memset(out, ' ', HEAD);
  memcpy(out + 124, "\0\1IM", 4);
  size_t packed = pack(data, bytes, 15, out + HEAD + 8, ROOM - HEAD - 8);
  memcpy(out + HEAD, (uint32_t[2]){15, (uint32_t)packed}, 8);
  return HEAD + 8 + packed;
}

/* ---- readers ---------------------------------------------------------------------------------------------------- */

/* What the quick reader takes, libpng takes too, and gives the same bytes. */
static void read_png(const char *path, const uint8_t *data, size_t bytes) {
  pg_tensor *quick = NULL, *slow = NULL, *reduced = NULL;
  uint8_t *copy = malloc(bytes ? bytes : 1); /* exactly as long as the file: a byte too far is found */
  memcpy(copy, data, bytes);
  bool taken = pg_png_quick(copy, (int64_t)bytes, PG_PICTURE_MOST_SIDE, &quick);
  free(copy);
  int status = pg_png_load(path, false, &slow);
  check(status, slow);
  if (taken && (status || !pg_same_shape(quick, slow) || memcmp(pg_data(quick), pg_data(slow), (size_t)pg_numel(slow))))
    broken("the quick reader's bytes are libpng's");
  status = pg_image_load_reduced(path, 16, &reduced);
  check(status, reduced);
  pg_release(quick), pg_release(slow), pg_release(reduced);
}

static void read_npz(const char *path) {
  pg_npz *z = NULL;
  if (pg_npz_open(path, &z)) return check(1, NULL);
  for (int64_t i = 0; i < pg_npz_count(z); i++) {
    pg_tensor *t = NULL;
    int status = pg_npz_read(z, i, &t);
    check(status, t);
    pg_release(t);
  }
  pg_npz_close(z);
}

/* v to so many bits after its first, no finer than 2^-least, infinite where that reaches 2^most. */
static double rounded(double v, int fraction, int least, int most) {
  int exponent;
  if (!isfinite(v) || v == 0) return v;
  frexp(v, &exponent);
  int place = PG_MAX(exponent - 1 - fraction, -least);
  double near = ldexp(nearbyint(ldexp(v, -place)), place);
  return fabs(near) >= ldexp(1, most) ? copysign(INFINITY, v) : near;
}

static void pack_values(int32_t dtype, int32_t kind, const uint8_t *data, size_t bytes) {
  int64_t n = (int64_t)(bytes / pg_dtype_bytes[dtype]);
  pg_tensor *t = NULL, *packed = NULL;
  if (pg_new(dtype, PG_CPU, 1, &n, &t)) return;
  memcpy(pg_data(t), data, (size_t)n * pg_dtype_bytes[dtype]);
  if (pg_values_pack(t, kind, &packed)) broken("floats are packed");
  for (int64_t i = 0; i < n; i++) {
    double v = dtype == PG_FLOAT32 ? PG_AT(float, t)[i] : PG_AT(double, t)[i];
    int bits = PG_AT(uint16_t, packed)[i], half = kind == PG_FLOAT16;
    float wide;
    memcpy(&wide, &(uint32_t){(uint32_t)bits << 16}, 4);
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double size = exponent == 31 ? (fraction ? NAN : INFINITY)
                  : exponent     ? ldexp(fraction + 1024, exponent - 25)
                                 : ldexp(fraction, -24);
    double got = half ? (bits >> 15 ? -size : size) : wide;
    double expected = half ? rounded(v, 10, 24, 16) : rounded(v, 7, 133, 128);
    if (isnan(expected) ? !isnan(got) : got != expected || signbit(got) != signbit(expected))
      broken("a half is the nearest");
  }
  pg_release(t), pg_release(packed);
}

static void read_values(int fd, const uint8_t *data, size_t bytes) {
  if (bytes < 2) return;
  int32_t kind = data[0] % PG_KINDS;
  int64_t at = 2 + data[1] % 8, n = PG_MAX((int64_t)bytes - at, 0) / pg_kind_bytes(kind) + data[1] / 250;
  pg_tensor *t = NULL;
  if (pg_new(pg_kind_dtype(kind), PG_CPU, 1, &n, &t)) return;
  check(pg_values_read(fd, at, kind, t), t);
  pg_release(t);
  for (int32_t half = PG_FLOAT16; half <= PG_BFLOAT16; half++)
    for (int32_t dtype = PG_FLOAT32; dtype <= PG_FLOAT64; dtype++) pack_values(dtype, half, data + 2, bytes - 2);
}

static void read_jpeg(const char *path) {
  pg_picture read[3] = {{.path = path}, {.path = path}, {.path = path, .as_stored = true}};
  pg_tensor *reduced = NULL;
  int status[3];
  for (int i = 0; i < 3; i++) {
    status[i] = pg_picture_load(&read[i]);
    check(status[i], read[i].pixels);
  }
  if (status[0] != status[1] || status[0] != status[2]) broken("a file is read or it is not, turned or stored");
  if (!status[0]) {
    size_t all = (size_t)pg_numel(read[0].pixels);
    if ((size_t)pg_numel(read[1].pixels) != all || memcmp(pg_data(read[0].pixels), pg_data(read[1].pixels), all))
      broken("the same file gives the same bytes");
    int64_t sum[2] = {0};
    for (size_t i = 0; i < all; i++)
      sum[0] += PG_AT(uint8_t, read[0].pixels)[i], sum[1] += PG_AT(uint8_t, read[2].pixels)[i];
    if ((size_t)pg_numel(read[2].pixels) != all || sum[0] != sum[1]) broken("turning moves pixels and changes none");
  }
  status[0] = pg_image_load_reduced(path, 16, &reduced);
  check(status[0], reduced);
  for (int i = 0; i < 3; i++) pg_release(read[i].pixels);
  pg_release(reduced);
}

/* A PPM's own reader and the one for all pictures give the same bytes. */
static void read_ppm(const char *path) {
  pg_tensor *own = NULL, *any = NULL, *reduced = NULL;
  int status = pg_ppm_load(path, &own);
  check(status, own);
  if (!status && (pg_image_load(path, &any) || !pg_same_shape(own, any) ||
                  memcmp(pg_data(own), pg_data(any), (size_t)pg_numel(own))))
    broken("a PPM is a picture like another");
  status = pg_image_load_reduced(path, 16, &reduced);
  check(status, reduced);
  pg_release(own), pg_release(any), pg_release(reduced);
}

static int load_y(const char *path, pg_tensor **out) { return pg_mat_load(path, "y", out); }

/* Every form of a text is UTF-8 within the promised room, and a normal form is its own; what there is no room for is an
 * error. */
static void read_text(const uint8_t *data, size_t bytes) {
  bytes = PG_MIN(bytes, MOST_TEXT);
  int64_t valid = 0, length = 0, again = 0, n = (int64_t)bytes;
  char *text = malloc(bytes + 1); /* exactly as long as the text, when it is not empty */
  char *good = malloc(3 * bytes + 1);
  uint8_t *classes = malloc(bytes + 1);
  memcpy(text, data, bytes);
  pg_text_classes(text, n, classes);
  for (int64_t i = 0; i < n; i++)
    if (classes[i] > PG_TEXT_FOLLOWS || (!i && classes[i] == PG_TEXT_FOLLOWS)) broken("every byte has a class");
  if (pg_text_map(text, n, PG_TEXT_VALID, good, 3 * n, &valid)) broken("any bytes can be made valid");
  int64_t fault = pg_text_fault(text, n);
  if (pg_text_fault(good, valid) >= 0) broken("what was made valid is");
  if (fault < 0 && (valid != n || memcmp(good, text, bytes))) broken("what is valid stays");
  for (int32_t form = 0; form < PG_TEXT_FORMS; form++) {
    int64_t room = valid * (form == PG_TEXT_NFKC ? 11 : 3);
    char *out = malloc((size_t)room + 1), *more = malloc(3 * (size_t)room + 1);
    bool normal = form == PG_TEXT_NFC || form == PG_TEXT_NFKC;
    if (normal && fault >= 0 && !pg_text_map(text, n, form, out, room, &length)) broken("only UTF-8 is normalised");
    if (pg_text_map(good, valid, form, out, room, &length)) broken("a form fits its room");
    if (length > room || pg_text_fault(out, length) >= 0) broken("a form is UTF-8");
    if (normal &&
        (pg_text_map(out, length, form, more, 3 * room, &again) || again != length || memcmp(out, more, length)))
      broken("a normal form is its own");
    if (length && !pg_text_map(good, valid, form, more, length - 1, &again)) broken("no room is an error");
    free(out), free(more);
  }
  free(text), free(good), free(classes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
  static int fd = -1;
  static char path[64];
  static uint8_t input[ROOM];
  static const char *kind;
  if (fd < 0) {
    kind = getenv("FUZZ_READER");
    fd = memfd_create("input", 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  }
  if (!kind || fd < 0) return fprintf(stderr, "FUZZ_READER must name a reader\n"), exit(1), 0;
  if (bytes > MOST_INPUT) return 0;
  if (!strcmp(kind, "text")) return read_text(data, bytes), 0;
  bool pixels = !strcmp(kind, "pixels"), png = pixels || !strcmp(kind, "png"), jpeg = !strcmp(kind, "jpeg");
  if (pixels) {
    bytes = png_of(data, bytes, input);
  } else if ((!strcmp(kind, "idxgz") || !strcmp(kind, "bytes")) && (bytes < 2 || data[0] != 0x1f || data[1] != 0x8b)) {
    bytes = pack(data, bytes, 31, input, sizeof input);
  } else if (!strcmp(kind, "matz")) {
    bytes = mat_of(data, bytes, input);
  } else {
    memcpy(input, data, bytes);
    if (png) tame(input, bytes);
    if (jpeg) tame_jpeg(input, bytes);
  }
  if (ftruncate(fd, 0) || pwrite(fd, input, bytes, 0) != (ssize_t)bytes) return 0;
  if (png) return read_png(path, input, bytes), 0;
  if (!strcmp(kind, "npz")) return read_npz(path), 0;
  if (!strcmp(kind, "values")) return read_values(fd, input, bytes), 0;
  if (!strcmp(kind, "ppm")) return read_ppm(path), 0;
  if (jpeg) return read_jpeg(path), 0;
  pg_tensor *t = NULL;
  int status = kind[0] == 'b'   ? pg_bytes_load(path, MOST_INPUT, &t)
               : kind[0] == 'i' ? pg_idx_load(path, &t)
               : kind[0] == 'm' ? load_y(path, &t)
                                : pg_npy_load(path, &t);
  check(status, t);
  pg_release(t);
  return 0;
}
