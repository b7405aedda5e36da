/* ppm.c - Netpbm's binary P6: "P6", width, height and the largest value in decimal, parted by blanks and # comments,
 * one blank, then RGB rows of bytes, or of big-endian pairs where the largest value is above 255.
 * https://netpbm.sourceforge.net/doc/ppm.html */
#include "io.h"

/* The next decimal number of the header, or -1; the character after it is taken too. */
static int64_t number(FILE *f) {
  int c = getc(f);
  while (c == ' ' || (c >= '\t' && c <= '\r') || c == '#') {
    if (c == '#')
      while (c != '\n' && c != EOF) c = getc(f);
    else
      c = getc(f);
  }
  if (c < '0' || c > '9') return -1;
  int64_t value = 0;
  for (; c >= '0' && c <= '9'; c = getc(f))
    if ((value = value * 10 + c - '0') > INT32_MAX) return -1;
  return c == ' ' || (c >= '\t' && c <= '\r') ? value : -1;
}

static int read_pixels(FILE *f, const char *path, int64_t largest, pg_tensor *t) {
  uint8_t *dst = PG_AT(uint8_t, t), pairs[6 * 256];
  int64_t values = pg_numel(t);
  if (largest <= 255) {
    if ((int64_t)fread(dst, 1, (size_t)values, f) < values) return pg_fail(PG_ERR_FILE, "%s: cannot read it", path);
    for (int64_t i = 0; largest < 255 && i < values; i++)
      dst[i] = (uint8_t)((PG_MIN(dst[i], largest) * 255 + largest / 2) / largest);
    return PG_OK;
  }
  for (int64_t at = 0; at < values;) {
    int64_t n = PG_MIN(values - at, (int64_t)sizeof pairs / 2);
    if ((int64_t)fread(pairs, 2, (size_t)n, f) < n) return pg_fail(PG_ERR_FILE, "%s: cannot read it", path);
    for (int64_t i = 0; i < n; i++) {
      int64_t v = PG_MIN((int64_t)pairs[2 * i] << 8 | pairs[2 * i + 1], largest);
      dst[at++] = (uint8_t)((v * 255 + largest / 2) / largest);
    }
  }
  return PG_OK;
}

static int ppm_read(FILE *f, const char *path, int64_t bytes, pg_tensor **out) {
  if (getc(f) != 'P' || getc(f) != '6') return pg_fail(PG_ERR_FILE, "%s: not a binary PPM file (P6)", path);
  int64_t w = number(f), h = w < 0 ? -1 : number(f), largest = h < 0 ? -1 : number(f);
  if (w < 1 || h < 1 || largest < 1 || largest > 65535)
    return pg_fail(PG_ERR_FILE, "%s: damaged PPM: its header must have width, height and a largest value of 1..65535",
                   path);
  if (w > PG_PICTURE_MOST_SIDE || h > PG_PICTURE_MOST_SIDE || w * h * 3 > PG_PICTURE_MOST_BYTES)
    return pg_fail(PG_ERR_FILE, "%s: %lld x %lld pixels are more than 64 MB", path, (long long)w, (long long)h);
  int64_t wanted = w * h * (largest > 255 ? 6 : 3), left = bytes - ftell(f);
  if (left < wanted)
    return pg_fail(PG_ERR_FILE, "%s: truncated: %lld bytes of pixels, and its PPM header promises %lld", path,
                   (long long)left, (long long)wanted);
  pg_tensor *t;
  PG_TRY(pg_new(PG_UINT8, PG_CPU, 3, (int64_t[]){h, w, 3}, &t));
  int status = read_pixels(f, path, largest, t);
  if (status) return pg_release(t), status;
  return *out = t, PG_OK;
}

int pg_ppm_load(const char *path, pg_tensor **out) {
  int64_t bytes;
  FILE *f = pg_file_open(path, &bytes);
  if (!f) return PG_ERR_FILE;
  int status = ppm_read(f, path, bytes, out);
  fclose(f);
  return status;
}
