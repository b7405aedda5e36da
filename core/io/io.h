/* io.h - what the readers and writers of files share. */
#ifndef PG_IO_H
#define PG_IO_H
#include "../core.h"
#include <errno.h>
#include <sys/stat.h>

/* Opens a regular file for reading and gives its size; NULL and an error that names the path otherwise. */
FILE *pg_file_open(const char *path, int64_t *bytes);

/* ---- values.c: values as files hold them ------------------------------------------------------------------------- */

enum { PG_SOURCE_ENDS = -1, PG_SOURCE_DAMAGED = -2 };

/* Bytes: a file's, or what a part of a file inflates to. */
typedef struct pg_source {
  int (*read)(struct pg_source *s, int64_t at, void *dst, int64_t bytes); /* 0, PG_SOURCE_..., or errno */
  int fd;
  bool in_order; /* they come once, from the first to the last; otherwise from anywhere, on any thread */
} pg_source;

pg_source pg_source_file(int fd);
const char *pg_kind_name(int32_t kind);
/* Fills t, contiguous and of the kind's dtype, with values from byte `at` on. An error's text lacks a name before it.
 */
int pg_values_from(pg_source *s, int64_t at, int32_t kind, pg_tensor *t);

/* ---- npy.c ------------------------------------------------------------------------------------------------------- */

enum { PG_NPY_HEAD = 512 };

/* A whole .npy of so many bytes. label: what messages begin with. */
int pg_npy_from(pg_source *s, const char *label, int64_t bytes, pg_tensor **out);
int64_t pg_npy_head(const pg_tensor *t, char head[PG_NPY_HEAD]); /* what stands before the values; its length */

/* ---- resample.c -------------------------------------------------------------------------------------------------- */

/* A resampling of packed bytes, to the bit as Pillow does it: a separable filter, widened by the scale when shrinking,
 * so that every source pixel counts. */
typedef struct pg_resampling {
  int64_t h, w, channels;    /* the source */
  int64_t stride;            /* bytes from one of its rows to the next */
  double extent_h, extent_w; /* how much of it, in its pixels from the top left, fills the result; may be fractional */
  int64_t out_h, out_w;      /* the whole result */
  int64_t top, left, rows, columns; /* the part of the result that is wanted */
  bool cubic;                       /* Keys' kernel with a = -1/2; otherwise the triangle */
} pg_resampling;

int pg_resample(const uint8_t *src, const pg_resampling *r, uint8_t *dst, int64_t dst_stride);

/* ---- picture.c: what the readers of pictures share -------------------------------------------------------------- */

enum { PG_PICTURE_MOST_SIDE = 1000000, PG_PICTURE_MOST_BYTES = 64000000, PG_PICTURE_MOST_REDUCED = 1024 };

/* How a picture is wanted, and what came of it. */
typedef struct pg_picture {
  const char *path;
  int64_t size;      /* 0: the whole picture; otherwise means of blocks, 2 to 4 times this many along the longer side */
  bool drop_alpha;   /* alpha is thrown away, not composited on white, and 16 bits are cut to 8, as Pillow does */
  bool as_stored;    /* the orientation that EXIF tells of is left alone */
  int64_t h, w;      /* of the whole picture */
  double shrink;     /* how many of its pixels, along a side, one of the result's stands for */
  int64_t block;     /* of the rows given to pg_picture_row: the side of what one pixel averages */
  int64_t rows, row; /* of what is given to pg_picture_row: how many rows, of how many pixels */
  uint64_t *sums;    /* of the current row of blocks */
  pg_tensor *pixels; /* uint8 (h / shrink, w / shrink, 3), rounded up */
} pg_picture;

/* The file's picture, by its first bytes and not its name. */
int pg_picture_load(pg_picture *p);
/* pg_image_load_reduced on any thread: whether it was stopped is for the caller to ask. */
int pg_picture_reduced(const char *path, int64_t size, pg_tensor **out);
/* The picture has `rows` rows of `row` pixels, which the reader then gives one by one, from the top. */
int pg_picture_begin(pg_picture *p, int64_t rows, int64_t row);
void pg_picture_row(pg_picture *p, int64_t y, const uint8_t *rgb);
int pg_picture_too_large(const pg_picture *p);                                 /* the error */
int pg_picture_check(const char *path, const pg_tensor *t, int64_t most_side); /* that t can be saved */

/* v = (c a + 255 (255 - a)) / 255, rounded */
static inline uint8_t pg_over_white(unsigned color, unsigned alpha) {
  return (uint8_t)((color * alpha + 255 * (255 - alpha) + 127) / 255);
}

/* ---- png.c, png_quick.c, jpeg.c --------------------------------------------------------------------------------- */

/* A common PNG in memory, whose bytes are overwritten; false: not one, or a side is longer than most_side. */
bool pg_png_quick(uint8_t *file, int64_t bytes, int64_t most_side, pg_tensor **out);
/* quick: by pg_png_quick where it takes the file; otherwise, and for the rest, by libpng. The bytes are the same. */
int pg_png_load(const char *path, bool quick, pg_tensor **out);

/* From an open file of `bytes` bytes, at its start. What they leave in p the caller lets go of. */
int pg_png_read(pg_picture *p, FILE *file, int64_t bytes, bool quick);
int pg_jpeg_read(pg_picture *p, FILE *file, int64_t bytes);

/* ---- ppm.c ------------------------------------------------------------------------------------------------------- */

int pg_ppm_load(const char *path, pg_tensor **out); /* binary P6: uint8 (H, W, 3) */

#endif
