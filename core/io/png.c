/* png.c - PNG files to and from (H, W, 3) bytes.
 *
 * Every kind of PNG is expanded to 8-bit RGBA by libpng and composited on white, v = (c a + 255 (255 - a)) / 255, row
 * by row. A row goes to a sink: the whole picture, or sums over k x k blocks. The second serves pictures of any size:
 * with k = floor(longer / 2 size) the block means are 2 to 4 times the size asked for, and resampling does the rest. */
#include "io.h"
#include <png.h>
#include <setjmp.h>

typedef struct reader {
  const char *path;
  FILE *file;
  png_structp png;
  png_infop info;
  char reason[160];
  int64_t h, w, block; /* block: side k of what one pixel of the picture averages */
  int64_t size;        /* 0: the whole picture */
  uint8_t *rgba;       /* a row, or the whole interlaced picture */
  uint64_t *sums;      /* of the current row of blocks */
  pg_tensor *picture;
} reader;

static void on_error(png_structp png, png_const_charp message) {
  reader *r = png_get_error_ptr(png);
  snprintf(r->reason, sizeof r->reason, "%s", message);
  png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp message) { (void)png, (void)message; }

static int64_t blocks(int64_t n, int64_t k) { return (n + k - 1) / k; }

static void take_row(reader *r, int64_t y, uint8_t *rgba) {
  for (int64_t x = 0; x < r->w; x++) { /* in place: RGBA to RGB on white */
    unsigned alpha = rgba[4 * x + 3];
    for (int c = 0; c < 3; c++) rgba[3 * x + c] = pg_over_white(rgba[4 * x + c], alpha);
  }
  int64_t k = r->block, width = blocks(r->w, k);
  uint8_t *row = PG_AT(uint8_t, r->picture) + y / k * width * 3;
  if (k == 1) {
    memcpy(row, rgba, (size_t)r->w * 3);
    return;
  }
  if (y % k == 0) memset(r->sums, 0, sizeof *r->sums * 3 * width);
  for (int64_t x = 0; x < r->w; x++)
    for (int c = 0; c < 3; c++) r->sums[x / k * 3 + c] += rgba[3 * x + c];
  if (y % k < k - 1 && y < r->h - 1) return;
  for (int64_t b = 0; b < width; b++) { /* the last block of a row or column may be smaller */
    uint64_t count = (uint64_t)(PG_MIN(k, r->w - b * k) * (y % k + 1));
    for (int c = 0; c < 3; c++) row[3 * b + c] = (uint8_t)((r->sums[3 * b + c] + count / 2) / count);
  }
}

/* What libpng does on an error jumps to the setjmp below; all that is allocated hangs on r, which the caller cleans. */
static int decode(reader *r) {
  if (setjmp(png_jmpbuf(r->png))) return pg_fail(PG_ERR_FILE, "%s: damaged PNG: %s", r->path, r->reason);
  png_init_io(r->png, r->file);
  png_set_user_limits(r->png, PG_PNG_MOST_SIDE, PG_PNG_MOST_SIDE);
  png_set_chunk_malloc_max(r->png, 8000000);
  /* What is not needed for the pixels is skipped: libpng fills as many bytes as a text chunk claims to have, 2 GB. */
  png_set_keep_unknown_chunks(r->png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION /* a fuzzer cannot guess checksums */
  png_set_crc_action(r->png, PNG_CRC_QUIET_USE, PNG_CRC_QUIET_USE);
#endif
  png_read_info(r->png, r->info);
  r->w = png_get_image_width(r->png, r->info);
  r->h = png_get_image_height(r->png, r->info);
  png_set_expand(r->png);
  png_set_scale_16(r->png);
  png_set_gray_to_rgb(r->png);
  png_set_add_alpha(r->png, 255, PNG_FILLER_AFTER);
  int passes = png_set_interlace_handling(r->png);
  png_read_update_info(r->png, r->info);
  if (png_get_rowbytes(r->png, r->info) != (size_t)r->w * 4)
    return pg_fail(PG_ERR_FILE, "%s: damaged PNG: rows are not RGBA", r->path);

  r->block = r->size ? PG_MAX(PG_MAX(r->w, r->h) / (2 * r->size), 1) : 1;
  int64_t shape[3] = {blocks(r->h, r->block), blocks(r->w, r->block), 3};
  if (shape[0] * shape[1] * 3 > PG_PNG_MOST_BYTES)
    return pg_fail(PG_ERR_FILE, "%s: %lld x %lld pixels are more than 64 MB; load it reduced (thumbnail)", r->path,
                   (long long)r->w, (long long)r->h);
  int64_t rows = passes > 1 ? r->h : 1;
  if (passes > 1 && r->w * r->h * 4 > PG_PNG_MOST_BYTES)
    return pg_fail(PG_ERR_FILE,
                   "%s: an interlaced PNG of %lld x %lld pixels needs more than 64 MB; save it without interlacing",
                   r->path, (long long)r->w, (long long)r->h);
  r->rgba = malloc((size_t)(r->w * 4 * rows));
  if (r->block > 1) r->sums = malloc(sizeof *r->sums * 3 * (size_t)shape[1]);
  if (!r->rgba || (r->block > 1 && !r->sums)) return pg_fail(PG_ERR_MEMORY, "%s: out of memory", r->path);
  PG_TRY(pg_new(PG_UINT8, PG_CPU, 3, shape, &r->picture));
  if (passes == 1) {
    for (int64_t y = 0; y < r->h; y++) {
      png_read_row(r->png, r->rgba, NULL);
      take_row(r, y, r->rgba);
    }
    return PG_OK;
  }
  memset(r->rgba, 0, (size_t)(r->w * 4 * rows));
  for (int pass = 0; pass < passes; pass++)
    for (int64_t y = 0; y < r->h; y++) png_read_row(r->png, r->rgba + y * r->w * 4, NULL);
  for (int64_t y = 0; y < r->h; y++) take_row(r, y, r->rgba + y * r->w * 4);
  return PG_OK;
}

/* The whole file in memory and through the quick reader, where it takes it and a whole picture is wanted. */
static bool load_quickly(reader *r, int64_t bytes) {
  if (bytes > PG_PNG_MOST_BYTES / 2) return false;
  uint8_t *file = pg_scratch_alloc((size_t)PG_MAX(bytes, 1));
  size_t got = file ? fread(file, 1, (size_t)bytes, r->file) : 0;
  bool taken = pg_png_quick(file, (int64_t)got, r->size ? 4 * r->size - 1 : PG_PNG_MOST_SIDE, &r->picture);
  pg_scratch_free(file, (size_t)PG_MAX(bytes, 1));
  if (taken) r->h = r->picture->shape[0], r->w = r->picture->shape[1], r->block = 1;
  rewind(r->file);
  return taken;
}

static int load(reader *r, bool quick) {
  int64_t bytes;
  uint8_t signature[8];
  r->file = pg_file_open(r->path, &bytes);
  if (!r->file) return PG_ERR_FILE;
  int status = PG_OK;
  if (quick && load_quickly(r, bytes)) return fclose(r->file), PG_OK;
  bool whole = fread(signature, 1, 8, r->file) == 8;
  if (whole && signature[0] == 'P' && signature[1] == '6') {
    fclose(r->file);
    PG_TRY(pg_ppm_load(r->path, &r->picture));
    return r->h = r->picture->shape[0], r->w = r->picture->shape[1], r->block = 1, PG_OK;
  }
  if (!whole || png_sig_cmp(signature, 0, 8)) {
    status = pg_fail(PG_ERR_FILE, "%s: not a PNG file", r->path);
  } else {
    rewind(r->file);
    r->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, r, on_error, on_warning);
    r->info = r->png ? png_create_info_struct(r->png) : NULL;
    status = r->info ? decode(r) : pg_fail(PG_ERR_MEMORY, "%s: out of memory", r->path);
    png_destroy_read_struct(&r->png, &r->info, NULL);
  }
  fclose(r->file);
  free(r->rgba);
  free(r->sums);
  if (status && r->picture) pg_release(r->picture);
  return status;
}

int pg_png_load(const char *path, bool quick, pg_tensor **out) {
  reader r = {.path = path};
  PG_TRY(load(&r, quick));
  return *out = r.picture, PG_OK;
}

int pg_image_load(const char *path, pg_tensor **out) { return pg_png_load(path, true, out); }

int pg_image_load_reduced(const char *path, int64_t size, pg_tensor **out) {
  if (size < 1 || size > PG_PNG_MOST_REDUCED)
    return pg_fail(PG_ERR_ARGUMENT, "%s: the reduced size must be within 1..%d, got %lld", path, PG_PNG_MOST_REDUCED,
                   (long long)size);
  reader r = {.path = path, .size = size};
  PG_TRY(load(&r, true));
  pg_tensor *t = NULL;
  int status = pg_new(PG_UINT8, PG_CPU, 3, (int64_t[]){size, size, 3}, &t);
  if (!status) {
    double longer = (double)PG_MAX(r.h, r.w);
    int64_t h = PG_MAX((int64_t)llround(size * (r.h / longer)), 1),
            w = PG_MAX((int64_t)llround(size * (r.w / longer)), 1);
    memset(PG_AT(uint8_t, t), 255, (size_t)(size * size * 3));
    pg_resampling whole = {.h = r.picture->shape[0],
                           .w = r.picture->shape[1],
                           .channels = 3,
                           .cubic = true,
                           .stride = r.picture->shape[1] * 3,
                           .extent_h = (double)r.h / r.block,
                           .extent_w = (double)r.w / r.block,
                           .out_h = h,
                           .out_w = w,
                           .rows = h,
                           .columns = w};
    status = pg_resample(PG_AT(uint8_t, r.picture), &whole,
                         PG_AT(uint8_t, t) + ((size - h) / 2 * size + (size - w) / 2) * 3, size * 3);
  }
  pg_release(r.picture);
  if (status && t) pg_release(t);
  return status ? status : (*out = t, PG_OK);
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

int pg_image_save(const char *path, pg_tensor *t) {
  char text[128];
  PG_TRY(pg_check_live(t, "image.save"));
  bool grey = t->ndim == 2;
  if (t->dtype != PG_UINT8 || t->device != PG_CPU || !(grey || (t->ndim == 3 && t->shape[2] == 3)) || !pg_numel(t))
    return pg_fail(PG_ERR_SHAPE, "%s: image.save takes uint8 (H, W, 3) or (H, W) on the CPU, got %s %s", path,
                   pg_dtype_name(t->dtype), pg_shape_text(t, text));
  if (t->shape[0] > PG_PNG_MOST_SIDE || t->shape[1] > PG_PNG_MOST_SIDE)
    return pg_fail(PG_ERR_SHAPE, "%s: a picture side is at most %d pixels", path, PG_PNG_MOST_SIDE);
  pg_tensor *src;
  PG_TRY(pg_contiguous(t, &src));
  png_image image = {.version = PNG_IMAGE_VERSION,
                     .width = (png_uint_32)t->shape[1],
                     .height = (png_uint_32)t->shape[0],
                     .format = grey ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB};
  png_alloc_size_t bytes = PNG_IMAGE_PNG_SIZE_MAX(image);
  uint8_t *encoded = malloc(bytes);
  int status;
  if (!encoded)
    status = pg_fail(PG_ERR_MEMORY, "%s: out of memory", path);
  else if (!png_image_write_to_memory(&image, encoded, &bytes, 0, PG_AT(uint8_t, src), 0, NULL))
    status = pg_fail(PG_ERR_FILE, "%s: cannot encode: %s", path, image.message);
  else
    status = pg_file_write(path, 1, (const void *[]){encoded}, (int64_t[]){(int64_t)bytes});
  png_image_free(&image);
  free(encoded);
  pg_release(src);
  return status;
}
