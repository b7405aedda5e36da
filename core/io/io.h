/* io.h - what the readers and writers of files share. */
#ifndef PG_IO_H
#define PG_IO_H
#include "../core.h"
#include <errno.h>
#include <sys/stat.h>

/* Opens a regular file for reading and gives its size; NULL and an error that names the path otherwise. */
FILE *pg_file_open(const char *path, int64_t *bytes);

/* Resamples packed pixels as Pillow does: a separable filter, widened by the scale when shrinking, so that every source
 * pixel counts. (extent_h, extent_w) is the part of src, in its pixels from the top left, that fills dst; it may be
 * fractional. cubic: Keys' kernel with a = -1/2; otherwise the triangle. */
int pg_resample(const uint8_t *src, int64_t h, int64_t w, int64_t channels, double extent_h, double extent_w,
                bool cubic, uint8_t *dst, int64_t out_h, int64_t out_w, int64_t dst_stride);

#endif
