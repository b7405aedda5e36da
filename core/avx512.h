/* avx512.h - what the kernels for AVX-512 share; for files whose functions have it as their target (PG_X86 alone). */
#ifndef PG_AVX512_H
#define PG_AVX512_H
#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#define PG_AVX512_INLINE __attribute__((target("avx512f"), always_inline)) static inline

/* The first n of sixteen lanes; none for n <= 0, all for n >= 16. */
PG_AVX512_INLINE __mmask16 pg_first_lanes(int64_t n) {
  return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
}

/* What is packed goes to memory at 64 bytes; `past` the caches where all threads read it: lines that other cores have
 * read must be taken from each of their caches before they are written, which costs more than the way through memory.
 * Who packs for itself alone keeps it near. */
PG_AVX512_INLINE void pg_put(void *to, __m512i values, bool past) {
  if (past)
    _mm512_stream_si512(to, values);
  else
    _mm512_store_si512(to, values);
}

/* Sixteen rows of sixteen numbers of 32 bits become columns. */
PG_AVX512_INLINE void pg_transpose_16(__m512i r[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2)
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]), r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]), r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88), r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

#endif
