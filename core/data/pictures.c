/* pictures.c - many picture files at once, reduced, on all threads. */
#include "../io/io.h"

int pg_images_load_reduced(const char *const *paths, int64_t n, int64_t size, pg_tensor **images, pg_tensor **whole) {
  pg_tensor *out = NULL, *fine = NULL;
  if (size < 1 || size > PG_PICTURE_MOST_REDUCED)
    return pg_fail(PG_ERR_ARGUMENT, "pictures: the reduced size must be within 1..%d, got %lld",
                   PG_PICTURE_MOST_REDUCED, (long long)size);
  PG_TRY(pg_new(PG_UINT8, PG_CPU, 4, (int64_t[]){n, size, size, 3}, &out));
  int status = pg_new(PG_UINT8, PG_CPU, 1, (int64_t[]){n}, &fine);
  if (status) return pg_release(out), status;
  size_t bytes = (size_t)(size * size * 3);
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t i = 0; i < n; i++) { /* a picture may take a thousand times as long as its neighbour */
    if (pg_stopping()) continue;
    pg_tensor *one;
    bool read = pg_picture_reduced(paths[i], size, &one) == PG_OK;
    PG_AT(uint8_t, fine)[i] = read;
    if (!read) continue;
    memcpy(PG_AT(uint8_t, out) + (size_t)i * bytes, PG_AT(uint8_t, one), bytes);
    pg_release(one);
  }
  status = pg_unless_stopped(PG_OK);
  if (status) return pg_release(out), pg_release(fine), status;
  *images = out, *whole = fine;
  return PG_OK;
}
