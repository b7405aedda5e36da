/* augment.h - one picture of bytes to one normalised float picture, as the loader's threads do it. */
#ifndef PG_AUGMENT_H
#define PG_AUGMENT_H
#include "../core.h"

typedef struct pg_augment {
  pg_loader_options o;
  float table[3][256];      /* a byte to its value in the result; to itself when colours are jittered first */
  float scale[3], shift[3]; /* (v / 255 - mean) / std = v scale + shift */
  bool jitter;
} pg_augment;

int pg_augment_init(pg_augment *a, const pg_loader_options *o); /* checks every option */
/* src (h, w, 3) packed -> out (3, S, S), a function of (src, seed, sample) alone. scratch: 3 S S bytes. */
int pg_augment_image(const pg_augment *a, const uint8_t *src, int64_t h, int64_t w, uint64_t seed, uint64_t sample,
                     uint8_t *scratch, float *out);

#endif
