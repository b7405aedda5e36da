/* knn.h - what knn.c asks of knn_avx512.c, all of it in float32. Nothing else is called where pg_has_avx512 says that
 * there is none; what has bfloat16 in its name, and pg_exact_products, only where pg_has_bfloat16 agrees. */
#ifndef PG_KNN_H
#define PG_KNN_H
#include "../core.h"

enum {
  PG_UNIT = 96,      /* rows that are made ready at a time, and the pitch of what a product writes */
  PG_EXACT = 16,     /* pairs of rows that pg_exact_products takes */
  PG_MOST_ROWS = 12, /* of a strip of products */
  PG_BFLOAT16_ROWS = 12,
  PG_BFLOAT16_COLUMNS = 32
};

/* The positions of those of n values that pass either test, !(v < least) or, where there are bars,
 * !(v - shift < bar); returns how many. NaN passes. */
int pg_passing(int n, const float *v, float least, float shift, const float *bars, uint8_t *at);

/* scale x, `count` rows of d, rounded to bfloat16, as panels of `width` rows in which two neighbouring columns stand
 * together, an odd last one beside zero. rest: of each row, at least |scale x - what it was rounded to|. */
void pg_bfloat16_panels(int64_t count, int64_t d, float scale, const float *x, int width, uint32_t *out, float *rest);

/* K(panel_kernel).run for such panels; d still counts columns of x */
void pg_bfloat16_product(int64_t d, const uint32_t *a, const uint32_t *b, const float *start, float *c);

/* out[i] = a[i] . b[i], rows of d: the bits that a product of panels in float32 gives */
void pg_exact_products(int64_t d, const float *const a[PG_EXACT], const float *const b[PG_EXACT], float out[PG_EXACT]);

#endif
