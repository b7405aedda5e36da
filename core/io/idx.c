/* idx.c - the IDX files of MNIST and its kin, plain or gzipped: two zero bytes, a dtype byte (8: unsigned byte), the
 * number of dimensions, each size as a big-endian 32-bit number, then the values, row-major.
 * http://yann.lecun.com/exdb/mnist/ */
#include "io.h"
#include <zlib.h>

/* Deflate cannot expand more than 1032 times, so a header that promises more than that lies. */
static const int64_t MOST_EXPANSION = 1032;

static bool read_exactly(gzFile f, uint8_t *dst, int64_t bytes) {
  while (bytes > 0) {
    if (pg_stopping()) return false;
    int got = gzread(f, dst, (unsigned)PG_MIN(bytes, (int64_t)1 << 20));
    if (got <= 0) return false;
    dst += got;
    bytes -= got;
  }
  return true;
}

static int idx_read(gzFile f, const char *path, int64_t file_bytes, pg_tensor **out) {
  uint8_t head[4], size[4 * PG_MAX_DIMS];
  if (!read_exactly(f, head, 4) || head[0] || head[1])
    return pg_fail(PG_ERR_FILE, "%s: not an IDX file: it must start with two zero bytes", path);
  if (head[2] != 8)
    return pg_fail(PG_ERR_FILE, "%s: IDX dtype 0x%02x; only unsigned bytes (0x08) are read", path, head[2]);
  if (head[3] < 1 || head[3] > PG_MAX_DIMS)
    return pg_fail(PG_ERR_FILE, "%s: %d dimensions; an IDX file here has 1 to %d", path, head[3], PG_MAX_DIMS);
  if (!read_exactly(f, size, 4 * head[3])) return pg_fail(PG_ERR_FILE, "%s: truncated within its IDX header", path);

  int64_t shape[PG_MAX_DIMS], bytes = 1;
  int64_t most = gzdirect(f) ? file_bytes : file_bytes * MOST_EXPANSION;
  for (int i = 0; i < head[3]; i++) {
    const uint8_t *s = size + 4 * i;
    shape[i] = (int64_t)s[0] << 24 | s[1] << 16 | s[2] << 8 | s[3];
    if (!shape[i]) return pg_fail(PG_ERR_FILE, "%s: dimension %lld is empty", path, (long long)pg_shown(i));
    if (shape[i] > most / bytes)
      return pg_fail(PG_ERR_FILE, "%s: truncated: its IDX header promises more values than its %lld bytes can hold",
                     path, (long long)file_bytes);
    bytes *= shape[i];
  }
  pg_tensor *t;
  PG_TRY(pg_new(PG_UINT8, PG_CPU, head[3], shape, &t));
  uint8_t extra;
  if (!read_exactly(f, PG_AT(uint8_t, t), bytes)) {
    pg_release(t);
    return pg_fail(PG_ERR_FILE, "%s: truncated or damaged: its IDX header promises %lld values", path,
                   (long long)bytes);
  }
  if (gzread(f, &extra, 1) != 0) { /* also checks gzip's own checksum */
    pg_release(t);
    return pg_fail(PG_ERR_FILE, "%s: damaged: it does not end after the %lld values of its IDX header", path,
                   (long long)bytes);
  }
  return *out = t, PG_OK;
}

int pg_idx_load(const char *path, pg_tensor **out) {
  int64_t bytes;
  FILE *plain = pg_file_open(path, &bytes); /* says whether and how large it is */
  if (!plain) return PG_ERR_FILE;
  fclose(plain);
  gzFile f = gzopen(path, "rb");
  if (!f) return pg_fail(PG_ERR_FILE, "cannot read %s: %s", path, strerror(errno));
  int status = pg_unless_stopped(idx_read(f, path, bytes, out));
  bool cut = gzclose(f) == Z_BUF_ERROR; /* gzip's trailer is missing */
  if (status || !cut) return status;
  pg_release(*out);
  *out = NULL;
  return pg_fail(PG_ERR_FILE, "%s: truncated: its gzip stream does not end", path);
}
