/* png.c - PNG files to and from (H, W, 3) bytes.
 *
 * Every kind of PNG is expanded to 8-bit RGBA by libpng, and composited on white row by row,
 * v = (c a + 255 (255 - a)) / 255, or stripped of its alpha. */
#include "io.h"
#include <png.h>
#include <setjmp.h>

typedef struct reader {
  pg_picture *to;
  FILE *file;
  png_structp png;
  png_infop info;
  char reason[160];
  uint8_t *rgba; /* a row, or the whole interlaced picture */
} reader;

static void on_error(png_structp png, png_const_charp message) {
  reader *r = png_get_error_ptr(png);
  snprintf(r->reason, sizeof r->reason, "%s", message);
  png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp message) { (void)png, (void)message; }

static void take_row(reader *r, int64_t y, uint8_t *rgba) {
  for (int64_t x = 0; x < r->to->w; x++) { /* in place: RGBA to RGB */
    unsigned alpha = r->to->drop_alpha ? 255 : rgba[4 * x + 3];
    for (int c = 0; c < 3; c++) rgba[3 * x + c] = pg_over_white(rgba[4 * x + c], alpha);
  }
  pg_picture_row(r->to, y, rgba);
}

/* What libpng does on an error jumps to the setjmp below; all that is allocated hangs on r, which the caller cleans. */
static int decode(reader *r) {
  pg_picture *p = r->to;
  if (setjmp(png_jmpbuf(r->png))) return pg_fail(PG_ERR_FILE, "%s: damaged PNG: %s", p->path, r->reason);
  png_init_io(r->png, r->file);
  png_set_user_limits(r->png, PG_PICTURE_MOST_SIDE, PG_PICTURE_MOST_SIDE);
  png_set_chunk_malloc_max(r->png, 8000000);
  /* What is not needed for the pixels is skipped: libpng fills as many bytes as a text chunk claims to have, 2 GB. */
  png_set_keep_unknown_chunks(r->png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION /* a fuzzer cannot guess checksums */
  png_set_crc_action(r->png, PNG_CRC_QUIET_USE, PNG_CRC_QUIET_USE);
#endif
  png_read_info(r->png, r->info);
  p->w = png_get_image_width(r->png, r->info);
  p->h = png_get_image_height(r->png, r->info);
  png_set_expand(r->png);
  if (p->drop_alpha)
    png_set_strip_16(r->png);
  else
    png_set_scale_16(r->png);
  png_set_gray_to_rgb(r->png);
  png_set_add_alpha(r->png, 255, PNG_FILLER_AFTER);
  int passes = png_set_interlace_handling(r->png);
  png_read_update_info(r->png, r->info);
  if (png_get_rowbytes(r->png, r->info) != (size_t)p->w * 4)
    return pg_fail(PG_ERR_FILE, "%s: damaged PNG: rows are not RGBA", p->path);

  int64_t rows = passes > 1 ? p->h : 1;
  if (passes > 1 && p->w * p->h * 4 > PG_PICTURE_MOST_BYTES)
    return pg_fail(PG_ERR_FILE,
                   "%s: an interlaced PNG of %lld x %lld pixels needs more than 64 MB; save it without interlacing",
                   p->path, (long long)p->w, (long long)p->h);
  PG_TRY(pg_picture_begin(p, p->h, p->w));
  r->rgba = malloc((size_t)(p->w * 4 * rows));
  if (!r->rgba) return pg_fail(PG_ERR_MEMORY, "%s: out of memory", p->path);
  if (passes == 1) {
    for (int64_t y = 0; y < p->h; y++) {
      /* A whole picture takes a moment, and may be read by a thread whose caller was not stopped. */
      if (p->size && pg_stopping()) return pg_fail(PG_ERR_INTERRUPTED, "interrupted");
      png_read_row(r->png, r->rgba, NULL);
      take_row(r, y, r->rgba);
    }
    return PG_OK;
  }
  memset(r->rgba, 0, (size_t)(p->w * 4 * rows));
  for (int pass = 0; pass < passes; pass++)
    for (int64_t y = 0; y < p->h; y++) png_read_row(r->png, r->rgba + y * p->w * 4, NULL);
  for (int64_t y = 0; y < p->h; y++) take_row(r, y, r->rgba + y * p->w * 4);
  return PG_OK;
}

/* The whole file in memory and through the quick reader, where it takes it and a whole picture is wanted. */
static bool read_quickly(pg_picture *p, FILE *f, int64_t bytes) {
  if (bytes > PG_PICTURE_MOST_BYTES / 2) return false;
  uint8_t *file = pg_scratch_alloc((size_t)PG_MAX(bytes, 1));
  size_t got = file ? fread(file, 1, (size_t)bytes, f) : 0;
  bool taken = pg_png_quick(file, (int64_t)got, p->size ? 4 * p->size - 1 : PG_PICTURE_MOST_SIDE, &p->pixels);
  pg_scratch_free(file, (size_t)PG_MAX(bytes, 1));
  if (taken) p->h = p->pixels->shape[0], p->w = p->pixels->shape[1];
  rewind(f);
  return taken;
}

int pg_png_read(pg_picture *p, FILE *file, int64_t bytes, bool quick) {
  if (quick && !p->drop_alpha && read_quickly(p, file, bytes)) return PG_OK;
  reader r = {.to = p, .file = file};
  r.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &r, on_error, on_warning);
  r.info = r.png ? png_create_info_struct(r.png) : NULL;
  int status = r.info ? decode(&r) : pg_fail(PG_ERR_MEMORY, "%s: out of memory", p->path);
  png_destroy_read_struct(&r.png, &r.info, NULL);
  free(r.rgba);
  return status;
}

int pg_png_load(const char *path, bool quick, pg_tensor **out) {
  pg_picture p = {.path = path, .shrink = 1};
  int64_t bytes;
  FILE *file = pg_file_open(path, &bytes);
  if (!file) return PG_ERR_FILE;
  int status = pg_png_read(&p, file, bytes, quick);
  fclose(file);
  if (status && p.pixels) pg_release(p.pixels);
  return status ? status : (*out = p.pixels, PG_OK);
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

int pg_image_save(const char *path, pg_tensor *t) {
  PG_TRY(pg_picture_check(path, t, PG_PICTURE_MOST_SIDE));
  bool grey = t->ndim == 2;
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
