/* knn_avx512.c - the parts of knn in float32 that need instructions which vectors of gcc do not reach: masks, and
 * products of bfloat16. */
#include "knn.h"

#ifdef PG_X86
#include "../avx512.h"
#define AVX512 __attribute__((target("arch=x86-64-v4")))
#define BFLOAT16 __attribute__((target("arch=x86-64-v4,avx512bf16")))

AVX512 int pg_passing(int n, const float *v, float least, float shift, const float *bars, uint8_t *at) {
  int found = 0;
  __m512 rows = _mm512_set1_ps(least), back = _mm512_set1_ps(shift);
  for (int j = 0; j < n; j += 16) {
    __mmask16 in = pg_first_lanes(n - j);
    __m512 x = _mm512_maskz_loadu_ps(in, v + j);
    __mmask16 pass = _mm512_mask_cmp_ps_mask(in, x, rows, _CMP_NLT_UQ);
    if (bars)
      pass |= _mm512_mask_cmp_ps_mask(in, _mm512_sub_ps(x, back), _mm512_maskz_loadu_ps(in, bars + j), _CMP_NLT_UQ);
    for (uint32_t left = pass; left; left &= left - 1) at[found++] = (uint8_t)(j + __builtin_ctz(left));
  }
  return found;
}

static inline int64_t pairs(int64_t d) { return (d + 1) / 2; }

/* Half of a row's 32 columns as they were rounded, in float32. */
AVX512 static inline __m512 widen(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

BFLOAT16 void pg_bfloat16_panels(int64_t count, int64_t d, float scale, const float *x, int width, uint32_t *out,
                                 float *rest) {
  __m512 by = _mm512_set1_ps(scale);
  for (int64_t i0 = 0; i0 < count; i0 += width, out += width * pairs(d))
    for (int from = 0; from < width; from += 16) { /* sixteen rows of the panel, or what is left of it */
      __mmask16 lanes = pg_first_lanes(width - from);
      __m512 lost[16];
      for (int i = 0; i < 16; i++) lost[i] = _mm512_setzero_ps();
      for (int64_t k = 0; k < d; k += 32) {
        __m512i r[16];
        __mmask16 low = pg_first_lanes(d - k), high = pg_first_lanes(d - k - 16);
        for (int i = 0; i < 16; i++) {
          const float *row = x + (i0 + from + i) * d + k;
          bool there = from + i < width && i0 + from + i < count;
          __m512 a = _mm512_mul_ps(by, _mm512_maskz_loadu_ps(there ? low : 0, there ? row : x));
          __m512 b = _mm512_mul_ps(by, _mm512_maskz_loadu_ps(there ? high : 0, there ? row + 16 : x));
          r[i] = (__m512i)_mm512_cvtne2ps_pbh(b, a);
          a = _mm512_sub_ps(a, widen(_mm512_castsi512_si256(r[i])));
          b = _mm512_sub_ps(b, widen(_mm512_extracti64x4_epi64(r[i], 1)));
          lost[i] = _mm512_fmadd_ps(a, a, _mm512_fmadd_ps(b, b, lost[i]));
        }
        pg_transpose_16(r);
        for (int t = 0; t < PG_MIN(16, pairs(d - k)); t++)
          _mm512_mask_storeu_epi32(out + (k / 2 + t) * width + from, lanes, r[t]);
      }
      /* A sum of squares is off by (d + 8) 2^-24 of itself, and by what underflows, at most 2^-149 a square. */
      for (int i = 0; i < 16 && from + i < width && i0 + from + i < count; i++)
        rest[i0 + from + i] = (float)(sqrt((double)_mm512_reduce_add_ps(lost[i]) * (1 + (double)(d + 8) * 0x1p-23)) +
                                      sqrt((double)d) * 0x1p-74);
    }
}

BFLOAT16 void pg_bfloat16_product(int64_t d, const uint32_t *a, const uint32_t *b, const float *start, float *c) {
  enum { ROWS = PG_BFLOAT16_ROWS, COLUMNS = PG_BFLOAT16_COLUMNS };
  __m512 sum[ROWS][2];
#pragma GCC unroll 12
  for (int i = 0; i < ROWS; i++) sum[i][0] = _mm512_loadu_ps(start), sum[i][1] = _mm512_loadu_ps(start + 16);
  for (int64_t k = pairs(d); k > 0; k--, a += ROWS, b += COLUMNS) {
    __m512bh x0 = (__m512bh)_mm512_loadu_si512(b), x1 = (__m512bh)_mm512_loadu_si512(b + 16);
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; i++) {
      __m512bh y = (__m512bh)_mm512_set1_epi32((int)a[i]);
      sum[i][0] = _mm512_dpbf16_ps(sum[i][0], y, x0), sum[i][1] = _mm512_dpbf16_ps(sum[i][1], y, x1);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < ROWS; i++)
    _mm512_storeu_ps(c + i * PG_UNIT, sum[i][0]), _mm512_storeu_ps(c + i * PG_UNIT + 16, sum[i][1]);
}

/* sum + the products of `steps` columns, at most 16 */
AVX512 static inline __attribute__((always_inline)) __m512 go_on(__m512 sum, int64_t k, int steps,
                                                                 const float *const *a, const float *const *b) {
  __m512i p[16], q[16];
  __mmask16 in = pg_first_lanes(steps);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) p[i] = _mm512_maskz_loadu_epi32(in, a[i] + k);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) q[i] = _mm512_maskz_loadu_epi32(in, b[i] + k);
  pg_transpose_16(p), pg_transpose_16(q);
#pragma GCC unroll 16
  for (int t = 0; t < steps; t++) sum = _mm512_fmadd_ps(_mm512_castsi512_ps(p[t]), _mm512_castsi512_ps(q[t]), sum);
  return sum;
}

AVX512 void pg_exact_products(int64_t d, const float *const a[PG_EXACT], const float *const b[PG_EXACT],
                              float out[PG_EXACT]) {
  __m512 sum = _mm512_setzero_ps();
  int64_t k = 0;
  for (; k + 16 <= d; k += 16) sum = go_on(sum, k, 16, a, b);
  if (k < d) sum = go_on(sum, k, (int)(d - k), a, b);
  _mm512_storeu_ps(out, sum);
}

#else /* never called, but a compiler may not see that */
int pg_passing(int n, const float *v, float least, float shift, const float *bars, uint8_t *at) { return 0; }
void pg_bfloat16_panels(int64_t count, int64_t d, float scale, const float *x, int width, uint32_t *out, float *rest) {}
void pg_bfloat16_product(int64_t d, const uint32_t *a, const uint32_t *b, const float *start, float *c) {}
void pg_exact_products(int64_t d, const float *const a[PG_EXACT], const float *const b[PG_EXACT], float out[PG_EXACT]) {
}
#endif
