/* bytes.c - a whole file in memory, unpacked where it is a gzip stream. */
#include "io.h"
#include <zlib.h>

static int read_all(gzFile f, const char *path, int64_t most, pg_tensor **out) {
  enum { PIECE = 1 << 16 };
  uint8_t *data = NULL;
  int64_t bytes = 0, room = 0;
  int got = 0, status = PG_OK;
  do {
    if (room - bytes < PIECE) {
      uint8_t *grown = realloc(data, (size_t)(room = 2 * room + PIECE));
      if (!grown) {
        free(data);
        return pg_fail(PG_ERR_MEMORY, "%s: no memory for %lld bytes", path, (long long)room);
      }
      data = grown;
    }
    got = gzread(f, data + bytes, PIECE);
    if (got > 0) bytes += got;
  } while (got > 0 && bytes <= most && !pg_stopping());
  if ((status = pg_unless_stopped(PG_OK))) {
    free(data);
    return status;
  }
  if (got < 0)
    status = pg_fail(PG_ERR_FILE, "%s: truncated or damaged: its gzip stream cannot be unpacked", path);
  else if (bytes > most)
    status =
        pg_fail(PG_ERR_FILE, "%s: holds more than the %lld bytes that are read of such a file", path, (long long)most);
  else
    status = pg_new(PG_UINT8, PG_CPU, 1, &bytes, out);
  if (!status && bytes) memcpy(PG_AT(uint8_t, *out), data, (size_t)bytes);
  free(data);
  return status;
}

int pg_bytes_load(const char *path, int64_t most, pg_tensor **out) {
  int64_t bytes;
  FILE *plain = pg_file_open(path, &bytes); /* says whether it is there */
  if (!plain) return PG_ERR_FILE;
  fclose(plain);
  gzFile f = gzopen(path, "rb");
  if (!f) return pg_fail(PG_ERR_FILE, "cannot read %s: %s", path, strerror(errno));
  int status = read_all(f, path, most, out);
  bool cut = gzclose(f) == Z_BUF_ERROR; /* gzip's trailer is missing */
  if (status || !cut) return status;
  pg_release(*out);
  *out = NULL;
  return pg_fail(PG_ERR_FILE, "%s: truncated: its gzip stream does not end", path);
}
