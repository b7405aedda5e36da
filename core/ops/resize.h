/* resize.h - the weights of one axis, which resize.c makes and resize.cu takes to the device: the same bits there. */
#ifndef PG_RESIZE_H
#define PG_RESIZE_H
#include "../op.h"

enum { PG_FRACTION = 22 }; /* bits of a weight behind the point */
enum { PG_RESIZE_HEIGHT, PG_RESIZE_WIDTH, PG_RESIZE_MODE };

typedef struct pg_axis {
  int64_t in, out, taps;  /* taps: room for one output's weights */
  int32_t *weight;        /* (out, taps); NULL where the axis keeps its size */
  int32_t *first, *count; /* (out), behind the weights in the same memory */
  size_t bytes;           /* of all three */
} pg_axis;

int pg_axis_make(pg_axis *a, int64_t in, int64_t out, int64_t mode); /* freed with pg_scratch_free(weight, bytes) */

#endif
