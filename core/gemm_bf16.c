/* gemm_bf16.c - matrix products of float32 matrices whose elements are first rounded to bfloat16; sums are float32.
 *
 * Rounding is to nearest, ties to even, and denormals count as zero, as the instruction has it. Where the CPU has
 * AVX-512 BF16, vdpbf16ps adds two products at once to each of 16 sums, twice the rate of float32. Elsewhere the
 * rounded operands go through BLAS: as slow as float32 and a little slower, but the same numbers up to the order of the
 * sums.
 *
 * Operands are packed into strips of 16 lines (rows of op(A), columns of op(B)), and within a strip pair by pair along
 * the inner dimension: element (pair p, line l) of a strip is the 32 bits of its two numbers. A tile of 8 rows by 48
 * columns then stays in 24 registers through the whole inner dimension, so that C is written once, and every element is
 * one sum in one order, whatever the number of threads. */
#include "core.h"
#include "share.h"
#include <omp.h>

typedef struct operand { /* line l at inner position p is x[l * line + p * inner]; one of the two steps is 1 */
  const float *x;
  int64_t lines, line, inner;
} operand;

typedef struct product {
  operand a, b;
  int64_t k;
  float alpha, beta, *c;
  int64_t ldc;
  const float *from; /* C = alpha A B + beta from: C itself, or with a step of 0 one row for all */
  int64_t step;
} product;

enum { STRIP = 16, ROWS = 8, COLUMNS = 48 };

/* ---- without the instruction ------------------------------------------------------------------------------------ */

PG_SIMD static void round_run(int64_t n, const uint32_t *restrict x, uint32_t *restrict y) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t size = x[i] & 0x7fffffff, near = x[i] + 0x7fff + (x[i] >> 16 & 1);
    near = size > 0x7f800000 ? x[i] | 0x400000 : near; /* NaN stays one */
    y[i] = size < 0x800000 ? x[i] & 0x80000000 : near & 0xffff0000;
  }
}

/* Rounded and dense: the longer runs of memory stay runs. */
static void round_operand(const operand *o, int64_t k, float *y) {
  int64_t runs = o->inner == 1 ? o->lines : k, length = o->inner == 1 ? k : o->lines;
  int64_t step = o->inner == 1 ? o->line : o->inner;
#pragma omp parallel for schedule(static) if (runs * length > 32768)
  for (int64_t r = 0; r < runs; r++)
    round_run(length, (const uint32_t *)(o->x + r * step), (uint32_t *)(y + r * length));
}

static int emulated(const product *p) {
  size_t a = (size_t)(p->a.lines * p->k), bytes = sizeof(float) * (a + (size_t)(p->b.lines * p->k));
  float *rounded = pg_scratch_alloc(bytes);
  if (!rounded) return pg_fail(PG_ERR_MEMORY, "matrix product in bfloat16: out of memory");
  round_operand(&p->a, p->k, rounded);
  round_operand(&p->b, p->k, rounded + a);
  if (p->step != p->ldc && p->beta != 0)
    for (int64_t i = 0; i < p->a.lines; i++) memcpy(p->c + i * p->ldc, p->from, sizeof(float) * (size_t)p->b.lines);
  bool ta = p->a.inner != 1, tb = p->b.inner == 1;
  int status = pg_gemm_f32(ta, tb, p->a.lines, p->b.lines, p->k, p->alpha, rounded, ta ? p->a.lines : p->k, rounded + a,
                           tb ? p->k : p->b.lines, p->beta, p->c, p->ldc);
  pg_scratch_free(rounded, bytes);
  return status;
}

/* ---- with it ---------------------------------------------------------------------------------------------------- */
#ifdef PG_X86
#include "avx512.h"

#define BF16_CPU __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define BF16_INLINE BF16_CPU static inline __attribute__((always_inline))

BF16_INLINE __m512i pack_two(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

/* Strip s of an operand whose lines are runs of memory. */
BF16_CPU static void pack_runs(const operand *o, int64_t k, int64_t s, uint32_t *out, bool past) {
  int64_t lines = PG_MIN(STRIP, o->lines - s * STRIP);
  const float *x = o->x + s * STRIP * o->line;
  for (int64_t p = 0; p < k; p += 32) {
    __m512i r[16];
    __mmask16 low = pg_first_lanes(k - p), high = pg_first_lanes(k - p - 16);
#pragma GCC unroll 16
    for (int l = 0; l < 16; l++) {
      const float *from = x + (l < lines ? l : 0) * o->line + p;
      r[l] = pack_two(_mm512_maskz_loadu_ps(l < lines ? low : 0, from),
                      _mm512_maskz_loadu_ps(l < lines ? high : 0, from + 16));
    }
    pg_transpose_16(r);
    int64_t pairs = (PG_MIN(k - p, 32) + 1) / 2;
    if (pairs == 16) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) pg_put(out + (p / 2 + i) * STRIP, r[i], past);
    } else {
      __m512i left[16];
      for (int i = 0; i < 16; i++) left[i] = r[i];
      memcpy(out + p / 2 * STRIP, left, sizeof(uint32_t) * STRIP * (size_t)pairs);
    }
  }
}

/* Strips s to last - 1 of an operand whose inner positions are runs of memory. */
BF16_CPU static void pack_across(const operand *o, int64_t k, int64_t s, int64_t last, uint32_t *out, bool past) {
  enum { AHEAD = 4 }; /* pairs */
  const __m512i mix = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                       5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  int64_t pairs = (k + 1) / 2;
  for (int64_t p = 0; p < pairs; p++) {
    const float *x = o->x + 2 * p * o->inner;
    bool second = 2 * p + 1 < k;
    for (int64_t t = s; t < last; t++) { /* rows of another page each: the CPU fetches none of them ahead by itself */
      _mm_prefetch(x + t * STRIP + 2 * AHEAD * o->inner, _MM_HINT_T0);
      _mm_prefetch(x + t * STRIP + (2 * AHEAD + 1) * o->inner, _MM_HINT_T0);
      __mmask16 there = pg_first_lanes(o->lines - t * STRIP);
      __m512 low = _mm512_maskz_loadu_ps(there, x + t * STRIP);
      __m512 high = _mm512_maskz_loadu_ps(second ? there : 0, x + t * STRIP + (second ? o->inner : 0));
      pg_put(out + ((t - s) * pairs + p) * STRIP, _mm512_permutexvar_epi16(mix, pack_two(low, high)), past);
    }
  }
}

/* Strips s to last - 1, one after the other. */
BF16_CPU static void pack(const operand *o, int64_t k, int64_t s, int64_t last, uint32_t *out, bool past) {
  int64_t pairs = (k + 1) / 2;
  if (o->inner != 1)
    pack_across(o, k, s, last, out, past);
  else
    for (; s < last; s++, out += pairs * STRIP) pack_runs(o, k, s, out, past);
}

/* rows (at most 8) by 16 (n - 1) + what `last` says of C, from half a strip of A and n strips of B. */
BF16_INLINE void tile(int n, const product *p, const uint32_t *a, const uint32_t *b, int rows, __mmask16 last, float *c,
                      const float *from) {
  int64_t pairs = (p->k + 1) / 2;
  __m512 sum[ROWS][3];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 3
    for (int j = 0; j < n; j++) {
      sum[i][j] = _mm512_setzero_ps();
      if (i < rows) __builtin_prefetch(c + i * p->ldc + j * 16, 1); /* C arrives while the sums are made */
    }
  for (int64_t q = 0; q < pairs; q++, a += STRIP, b += STRIP) {
    __m512bh right[3];
#pragma GCC unroll 3
    for (int j = 0; j < n; j++) right[j] = (__m512bh)_mm512_loadu_si512(b + j * pairs * STRIP);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
      __m512bh left = (__m512bh)_mm512_set1_epi32((int)a[i]);
#pragma GCC unroll 3
      for (int j = 0; j < n; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
    }
  }
  __m512 scale = _mm512_set1_ps(p->alpha), keep = _mm512_set1_ps(p->beta);
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; i++) {
    if (i >= rows) break;
#pragma GCC unroll 3
    for (int j = 0; j < n; j++) {
      float *at = c + i * p->ldc + j * 16;
      __mmask16 mask = j == n - 1 ? last : 0xffff;
      __m512 value = _mm512_mul_ps(scale, sum[i][j]);
      if (p->beta != 0) value = _mm512_fmadd_ps(keep, _mm512_maskz_loadu_ps(mask, from + i * p->step + j * 16), value);
      _mm512_mask_storeu_ps(at, mask, value);
    }
  }
}

/* C[i0.., j0..] of `rows` by `columns`, from the strips of these rows and all strips of B. */
BF16_CPU static void block(const product *p, const uint32_t *a, const uint32_t *b, int64_t i0, int64_t rows, int64_t j0,
                           int64_t columns) {
  int64_t pairs = (p->k + 1) / 2;
  for (int64_t j = j0; j < j0 + columns && !pg_stopping(); j += COLUMNS) {
    int64_t wide = PG_MIN(COLUMNS, j0 + columns - j), strips = (wide + STRIP - 1) / STRIP;
    __mmask16 last = pg_first_lanes(wide - (strips - 1) * STRIP);
    const uint32_t *right = b + j / STRIP * pairs * STRIP;
    for (int64_t i = i0; i < i0 + rows; i += ROWS) {
      const uint32_t *left = a + (i - i0) / STRIP * pairs * STRIP + i % STRIP;
      int high = (int)PG_MIN(ROWS, i0 + rows - i);
      float *c = p->c + i * p->ldc + j;
      const float *from = p->from + i * p->step + j;
      if (strips == 3)
        tile(3, p, left, right, high, last, c, from);
      else if (strips == 2)
        tile(2, p, left, right, high, last, c, from);
      else
        tile(1, p, left, right, high, last, c, from);
    }
  }
}

static int64_t strips_of(const operand *o) { return (o->lines + STRIP - 1) / STRIP; }

/* How the product is shared out: blocks of `high` strips of A, which packed stay in half of a second-level cache of 1
 * MiB while the columns of B pass by, by groups of `wide` columns where there are fewer blocks than threads. */
typedef struct shares {
  int threads;
  int64_t high, blocks, wide, groups;
} shares;

static shares shares_of(const product *p) {
  int64_t m = p->a.lines, n = p->b.lines, bytes = PG_MAX(1, (p->k + 1) / 2 * 4 * STRIP), strips = strips_of(&p->a);
  bool alone = omp_in_parallel() || (double)m * (double)n * (double)p->k < 4e6;
  shares s = {.threads = alone ? 1 : omp_get_max_threads()};
  int64_t most = PG_MAX(1, (1 << 19) / bytes), rounds = (strips + most * s.threads - 1) / (most * s.threads);
  s.high = (strips + rounds * s.threads - 1) / (rounds * s.threads);
  s.blocks = (strips + s.high - 1) / s.high;
  int64_t panels = (n + COLUMNS - 1) / COLUMNS, groups = PG_MIN(panels, (s.threads + s.blocks - 1) / s.blocks);
  s.wide = (panels + groups - 1) / groups * COLUMNS;
  s.groups = (n + s.wide - 1) / s.wide;
  return s;
}

/* All of B is packed first; of A, each thread packs the block that it is about to use and keeps it in its cache. */
static int by_kernel(const product *p) {
  enum { AT_ONCE = 8 };
  shares s = shares_of(p);
  int64_t step = (p->k + 1) / 2 * STRIP, sa = strips_of(&p->a), sb = strips_of(&p->b), tasks = s.blocks * s.groups;
  size_t bytes = sizeof(pg_share) * (size_t)s.threads + sizeof(uint32_t) * (size_t)((sb + s.threads * s.high) * step);
  pg_share *taken = pg_scratch_alloc(bytes);
  if (!taken) return pg_fail(PG_ERR_MEMORY, "matrix product in bfloat16: out of memory");
  uint32_t *b = (uint32_t *)(taken + s.threads), *blocks = b + sb * step;
  pg_share_out(taken, s.threads);
#pragma omp parallel num_threads(s.threads) if (s.threads > 1)
  {
    int me = s.threads > 1 ? omp_get_thread_num() : 0;
    uint32_t *a = blocks + me * s.high * step;
#pragma omp for schedule(static) nowait
    for (int64_t t = 0; t < sb; t += AT_ONCE)
      pack(&p->b, p->k, t, PG_MIN(t + AT_ONCE, sb), b + t * step, s.threads > 1);
    _mm_sfence(); /* what went past the caches is there */
#pragma omp barrier
    for (int64_t t; (t = pg_share_next(taken, s.threads, me, tasks)) >= 0;) {
      int64_t i = t / s.groups * s.high, j = t % s.groups * s.wide;
      if (pg_stopping()) continue;
      pack(&p->a, p->k, i, PG_MIN(i + s.high, sa), a, false);
      block(p, a, b, i * STRIP, PG_MIN(s.high * STRIP, p->a.lines - i * STRIP), j, PG_MIN(s.wide, p->b.lines - j));
    }
  }
  pg_scratch_free(taken, bytes);
  return PG_OK;
}

#else
static int by_kernel(const product *p) { return emulated(p); }
#endif

/* ---- the choice ------------------------------------------------------------------------------------------------- */

int32_t pg_bf16_native(int32_t want) {
  static int32_t native = -1;
  if (native < 0 || want >= 0) native = want != 0 && pg_has_bfloat16();
  return native;
}

static int multiply(const product *p) {
  if (!p->a.lines || !p->b.lines) return PG_OK;
  return pg_bf16_native(-1) ? by_kernel(p) : emulated(p);
}

int pg_gemm_bf16(int ta, int tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                 const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
  operand left = {a, m, ta ? 1 : lda, ta ? lda : 1}, right = {b, n, tb ? ldb : 1, tb ? 1 : ldb};
  return multiply(&(product){left, right, k, alpha, beta, c, ldc, c, ldc});
}

int pg_affine_bf16(int64_t rows, int64_t out, int64_t in, const float *x, const float *w, const float *bias, float *y) {
  operand left = {x, rows, in, 1}, right = {w, out, in, 1};
  return multiply(&(product){left, right, in, 1, bias != NULL, y, out, bias ? bias : y, 0});
}
