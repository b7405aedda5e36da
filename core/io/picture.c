/* picture.c - pictures of every kind that the core reads, as (H, W, 3) bytes: which reader a file is for, and what the
 * readers share.
 *
 * A reader gives rows of RGB from the top. They become the whole picture, or means over k x k blocks, which serves
 * pictures of any size: with k = floor(longer / 2 size) the means are 2 to 4 times the size asked for, and resampling
 * does the rest. */
#include "io.h"

static int64_t blocks(int64_t n, int64_t k) { return (n + k - 1) / k; }

int pg_picture_too_large(const pg_picture *p) {
  return pg_fail(PG_ERR_FILE, "%s: %lld x %lld pixels are more than 64 MB%s", p->path, (long long)p->w, (long long)p->h,
                 p->size ? "" : "; load it reduced (thumbnail)");
}

int pg_picture_begin(pg_picture *p, int64_t rows, int64_t row) {
  p->rows = rows, p->row = row;
  p->block = p->size ? PG_MAX(PG_MAX(rows, row) / (2 * p->size), 1) : 1;
  p->shrink *= (double)p->block;
  int64_t shape[3] = {blocks(rows, p->block), blocks(row, p->block), 3};
  if (shape[0] * shape[1] * 3 > PG_PICTURE_MOST_BYTES) return pg_picture_too_large(p);
  if (p->block > 1 && !(p->sums = malloc(sizeof *p->sums * 3 * (size_t)shape[1])))
    return pg_fail(PG_ERR_MEMORY, "%s: out of memory", p->path);
  return pg_new(PG_UINT8, PG_CPU, 3, shape, &p->pixels);
}

void pg_picture_row(pg_picture *p, int64_t y, const uint8_t *rgb) {
  int64_t k = p->block, width = p->pixels->shape[1];
  uint8_t *to = PG_AT(uint8_t, p->pixels) + y / k * width * 3;
  if (k == 1) {
    memcpy(to, rgb, (size_t)width * 3);
    return;
  }
  if (y % k == 0) memset(p->sums, 0, sizeof *p->sums * 3 * (size_t)width);
  for (int64_t x = 0; x < p->row; x++)
    for (int c = 0; c < 3; c++) p->sums[x / k * 3 + c] += rgb[3 * x + c];
  if (y % k < k - 1 && y < p->rows - 1) return;
  for (int64_t b = 0; b < width; b++) { /* the last block of a row or column may be smaller */
    uint64_t count = (uint64_t)(PG_MIN(k, p->row - b * k) * (y % k + 1));
    for (int c = 0; c < 3; c++) to[3 * b + c] = (uint8_t)((p->sums[3 * b + c] + count / 2) / count);
  }
}

int pg_picture_load(pg_picture *p) {
  int64_t bytes;
  uint8_t start[8] = {0};
  FILE *file = pg_file_open(p->path, &bytes);
  if (!file) return PG_ERR_FILE;
  size_t got = fread(start, 1, sizeof start, file);
  rewind(file);
  p->shrink = 1;
  int status;
  if (got == sizeof start && !memcmp(start, "\x89PNG\r\n\x1a\n", 8))
    status = pg_png_read(p, file, bytes, true);
  else if (got >= 3 && !memcmp(start, "\xff\xd8\xff", 3))
    status = pg_jpeg_read(p, file, bytes);
  else if (got >= 2 && !memcmp(start, "P6", 2))
    status = pg_ppm_load(p->path, &p->pixels);
  else
    status = pg_fail(PG_ERR_FILE, "%s: not a PNG, JPEG or PPM file", p->path);
  if (!status && !p->h) p->h = p->pixels->shape[0], p->w = p->pixels->shape[1]; /* read whole */
  fclose(file);
  free(p->sums), p->sums = NULL;
  if (status && p->pixels) pg_release(p->pixels), p->pixels = NULL;
  return status;
}

int pg_image_load(const char *path, pg_tensor **out) {
  pg_picture p = {.path = path};
  PG_TRY(pg_picture_load(&p));
  return *out = p.pixels, PG_OK;
}

int pg_picture_reduced(const char *path, int64_t size, pg_tensor **out) {
  if (size < 1 || size > PG_PICTURE_MOST_REDUCED)
    return pg_fail(PG_ERR_ARGUMENT, "%s: the reduced size must be within 1..%d, got %lld", path,
                   PG_PICTURE_MOST_REDUCED, (long long)size);
  pg_picture p = {.path = path, .size = size};
  PG_TRY(pg_picture_load(&p));
  pg_tensor *t = NULL;
  int status = pg_new(PG_UINT8, PG_CPU, 3, (int64_t[]){size, size, 3}, &t);
  if (!status) {
    double longer = (double)PG_MAX(p.h, p.w);
    int64_t h = PG_MAX((int64_t)llround(size * (p.h / longer)), 1),
            w = PG_MAX((int64_t)llround(size * (p.w / longer)), 1);
    memset(PG_AT(uint8_t, t), 255, (size_t)(size * size * 3));
    pg_resampling whole = {.h = p.pixels->shape[0],
                           .w = p.pixels->shape[1],
                           .channels = 3,
                           .cubic = true,
                           .stride = p.pixels->shape[1] * 3,
                           .extent_h = (double)p.h / p.shrink,
                           .extent_w = (double)p.w / p.shrink,
                           .out_h = h,
                           .out_w = w,
                           .rows = h,
                           .columns = w};
    status = pg_resample(PG_AT(uint8_t, p.pixels), &whole,
                         PG_AT(uint8_t, t) + ((size - h) / 2 * size + (size - w) / 2) * 3, size * 3);
  }
  pg_release(p.pixels);
  if (status && t) pg_release(t);
  return status ? status : (*out = t, PG_OK);
}

int pg_image_load_reduced(const char *path, int64_t size, pg_tensor **out) {
  return pg_unless_stopped(pg_picture_reduced(path, size, out));
}

int pg_picture_check(const char *path, const pg_tensor *t, int64_t most_side) {
  char text[128];
  PG_TRY(pg_check_live(t, "image.save"));
  if (t->dtype != PG_UINT8 || t->device != PG_CPU || !(t->ndim == 2 || (t->ndim == 3 && t->shape[2] == 3)) ||
      !pg_numel(t))
    return pg_fail(PG_ERR_SHAPE, "%s: image.save takes uint8 (H, W, 3) or (H, W) on the CPU, got %s %s", path,
                   pg_dtype_name(t->dtype), pg_shape_text(t, text));
  if (t->shape[0] > most_side || t->shape[1] > most_side)
    return pg_fail(PG_ERR_SHAPE, "%s: a side of such a picture is at most %lld pixels", path, (long long)most_side);
  return PG_OK;
}
