/* panels.h - products of two sets of rows that both come in panels, for kernels that look at every product once and
 * keep few of them: include it inside #ifdef REAL, after K and real and knn.h.
 *
 * A panel holds some rows column by column, so that a step of the product reads neighbours. A product is one running
 * sum over k, one multiply-add a step: it does not depend on where its rows stand, on what stands beside them, or on
 * the number of threads, and x.y has the bits of y.x. BLAS promises none of that.
 *
 * The kernel comes in three widths, chosen when it is asked for: two vectors of columns against as many rows as the
 * registers hold. Both divide PG_UNIT. */
typedef struct K(panel_kernel) {
  int rows, columns; /* of a's panel and of b's */
  /* c (rows, columns) = start of its column + sum over k of a b */
  void (*run)(int64_t d, const real *a, const real *b, const real *start, real *c);
} K(panel_kernel);

#define PANEL_KERNEL(name, target, BYTES, ROWS)                                                                        \
  target static void name(int64_t d, const real *a, const real *b, const real *start, real *c) {                       \
    typedef real lanes __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));                          \
    enum { WIDTH = BYTES / sizeof(real) };                                                                             \
    lanes sum[ROWS][2], x0, x1;                                                                                        \
    _Pragma("GCC unroll 16") for (int i = 0; i < ROWS; i++) {                                                          \
      sum[i][0] = *(const lanes *)start, sum[i][1] = *(const lanes *)(start + WIDTH);                                  \
    }                                                                                                                  \
    for (; d > 0; d--, a += ROWS, b += 2 * WIDTH) {                                                                    \
      x0 = *(const lanes *)b, x1 = *(const lanes *)(b + WIDTH);                                                        \
      _Pragma("GCC unroll 16") for (int i = 0; i < ROWS; i++) { sum[i][0] += a[i] * x0, sum[i][1] += a[i] * x1; }      \
    }                                                                                                                  \
    _Pragma("GCC unroll 16") for (int i = 0; i < ROWS; i++) {                                                          \
      *(lanes *)(c + i * PG_UNIT) = sum[i][0], *(lanes *)(c + i * PG_UNIT + WIDTH) = sum[i][1];                        \
    }                                                                                                                  \
  }

PANEL_KERNEL(K(panels_16), , 16, 6)
#ifdef PG_X86
PANEL_KERNEL(K(panels_32), __attribute__((target("arch=x86-64-v3"))), 32, 6)
PANEL_KERNEL(K(panels_64), __attribute__((target("arch=x86-64-v4"))), 64, 12)
#endif
#undef PANEL_KERNEL

static K(panel_kernel) K(choose_panels)(void) {
#ifdef PG_X86
  if (pg_has_avx512()) return (K(panel_kernel)){12, 2 * 64 / sizeof(real), K(panels_64)};
  if (pg_has_avx2()) return (K(panel_kernel)){6, 2 * 32 / sizeof(real), K(panels_32)};
#endif
  return (K(panel_kernel)){6, 2 * 16 / sizeof(real), K(panels_16)};
}

/* scale x, `count` rows of d, in panels of `width` rows, the last one filled up with zeros. */
static void K(to_panels)(int64_t count, int64_t d, real scale, const real *x, int width, real *out) {
  enum { DEEP = 16 }; /* a line of the cache of every row of the panel */
  for (int64_t i0 = 0; i0 < count; i0 += width, out += width * d)
    for (int64_t k0 = 0; k0 < d; k0 += DEEP)
      for (int64_t i = 0; i < width; i++)
        for (int64_t k = k0; k < PG_MIN(k0 + DEEP, d); k++)
          out[k * width + i] = i0 + i < count ? scale * x[(i0 + i) * d + k] : 0;
}
