/* gemm_f32.c - matrix products of float32 where the CPU has AVX-512. BLAS is as fast on large square ones; this is for
 * what transformers multiply: thousands of tokens by a few hundred channels, where packing and clearing C weigh.
 *
 * Columns of op(B) are packed into panels of 48, in the order in which they are read; op(A) is read where it stands
 * when its rows are runs of memory. A tile of 8 rows by 48 columns stays in 24 registers through a stretch of the inner
 * dimension, so that C is neither cleared first nor read when beta is 0. Every element is one sum in one order, which
 * depends neither on the number of threads nor on where in C it stands. */
#include "core.h"
#include "share.h"
#include <omp.h>
#ifdef PG_X86
#include "avx512.h"

enum { ROWS = 8, LANES = 16, PANEL = 3 * LANES, AHEAD = 8 };
/* In numbers: the longest stretch of the inner dimension, which is one running sum and must not be too long for
 * float32, in a large product and in a small one; a block of op(A), a quarter of a second-level cache of 1 MiB; what of
 * op(B) is packed at once; and the most that is small. */
enum { STRETCH = 800, SMALL_STRETCH = 96, BLOCK = 1 << 16, PACKED = 1 << 20, SMALL = 1 << 14 };
static const double ALONE_BELOW = 4e6; /* multiply-adds for which waking a second core does not pay */
#define AVX512 __attribute__((target("avx512f,fma")))
#define AVX512_INLINE AVX512 static inline __attribute__((always_inline))

typedef struct product {
  const float *a, *b; /* op(A) (i, p) is a[i * a_row + p * a_inner]; op(B) (p, j) is b[p * b_inner + j * b_column] */
  int64_t a_row, a_inner, b_inner, b_column;
  int64_t m, n, k;
  float alpha, beta;
  const float *start; /* what beta multiplies: C itself, or with rows 0 apart a bias */
  int64_t start_row;
  float *c;
  int64_t ldc;
  float *sums; /* of op(A)'s rows, made while they are packed; or NULL */
} product;

/* ---- packing ---------------------------------------------------------------------------------------------------- */

/* Lines become columns: line l at position p, x[l * line + p * inner] with one of the two steps 1, goes to column
 * l % width, row p of panel l / width. Panels have k rows of `width`, the last one of as many as its lines need, to the
 * next multiple of 16; missing lines are zeros. Positions from..to - 1. */
AVX512 static void pack(const float *x, int64_t line, int64_t inner, int64_t lines, int64_t k, int64_t from, int64_t to,
                        int64_t width, float *out, bool past) {
  if (inner != 1) { /* rows of memory: read one after the other */
    for (int64_t p = from; p < to; p++)
      for (int64_t l = 0; l < lines; l += width) {
        int64_t wide = PG_MIN(width, (lines - l + LANES - 1) / LANES * LANES);
        const float *source = x + p * inner + l;
        float *row = out + l * k + p * wide;
        for (int64_t i = 0; i < wide; i += LANES) {
          _mm_prefetch(source + i + AHEAD * inner, _MM_HINT_T0);
          pg_put(row + i, _mm512_maskz_loadu_epi32(pg_first_lanes(lines - l - i), source + i), past);
        }
      }
    return;
  }
  for (int64_t l = 0; l < lines; l += LANES) {
    int64_t panel = l / width * width, wide = PG_MIN(width, (lines - panel + LANES - 1) / LANES * LANES);
    float *column = out + panel * k + l - panel;
    for (int64_t p = from; p < to; p += LANES) {
      __m512i r[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) {
        bool there = l + i < lines;
        r[i] = _mm512_maskz_loadu_epi32(there ? pg_first_lanes(to - p) : 0, x + (there ? l + i : l) * line + p);
      }
      pg_transpose_16(r);
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++)
        if (p + i < to) pg_put(column + (p + i) * wide, r[i], past);
    }
  }
}

/* Adds up a panel of op(A), k of each of `rows` rows, and what is there already where `again`. */
AVX512 static void sum_panel(const float *panel, int64_t k, int64_t rows, bool again, float *sums) {
  __mmask16 lanes = pg_first_lanes(rows);
  __m512 sum[4] = {again ? _mm512_maskz_loadu_ps(lanes, sums) : _mm512_setzero_ps()};
  for (int i = 1; i < 4; i++) sum[i] = _mm512_setzero_ps();
  for (int64_t p = 0; p < k; p++) sum[p % 4] = _mm512_add_ps(sum[p % 4], _mm512_loadu_ps(panel + p * LANES));
  _mm512_mask_storeu_ps(sums, lanes, _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
}

/* ---- a tile ----------------------------------------------------------------------------------------------------- */

/* C (rows, 16 (n - 1) + those of `last`) = alpha a b + beta start; a's rows are `row` apart, its columns `inner`. */
AVX512_INLINE void tile(int rows, int n, int64_t k, const float *a, int64_t row, int64_t inner, const float *b,
                        float alpha, float beta, const float *start, int64_t start_row, float *c, int64_t ldc,
                        __mmask16 last) {
  __m512 sum[ROWS][3], right[3];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
    for (int j = 0; j < n; j++) {
      sum[i][j] = _mm512_setzero_ps();
      __builtin_prefetch(c + i * ldc + j * LANES, 1); /* C arrives while the sums are made */
    }
  for (int64_t p = 0; p < k; p++, a += inner, b += n * LANES) {
#pragma GCC unroll 3
    for (int j = 0; j < n; j++) right[j] = _mm512_loadu_ps(b + j * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      __m512 left = _mm512_set1_ps(a[i * row]);
#pragma GCC unroll 3
      for (int j = 0; j < n; j++) sum[i][j] = _mm512_fmadd_ps(left, right[j], sum[i][j]);
    }
  }
  __m512 scale = _mm512_set1_ps(alpha), keep = _mm512_set1_ps(beta);
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
    for (int j = 0; j < n; j++) {
      float *at = c + i * ldc + j * LANES;
      __mmask16 mask = j == n - 1 ? last : 0xffff;
      __m512 value = _mm512_mul_ps(scale, sum[i][j]);
      if (beta != 0)
        value = _mm512_fmadd_ps(keep, _mm512_maskz_loadu_ps(mask, start + i * start_row + j * LANES), value);
      _mm512_mask_storeu_ps(at, mask, value);
    }
}

typedef void (*tile_kernel)(int64_t k, const float *a, int64_t row, int64_t inner, const float *b, float alpha,
                            float beta, const float *start, int64_t start_row, float *c, int64_t ldc, __mmask16 last);

#define TILE(rows, n)                                                                                                  \
  AVX512 static void tile_##rows##_##n(int64_t k, const float *a, int64_t row, int64_t inner, const float *b,          \
                                       float alpha, float beta, const float *start, int64_t start_row, float *c,       \
                                       int64_t ldc, __mmask16 last) {                                                  \
    tile(rows, n, k, a, row, inner, b, alpha, beta, start, start_row, c, ldc, last);                                   \
  }
#define TILES(rows) TILE(rows, 1) TILE(rows, 2) TILE(rows, 3)
/* clang-format off */
TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6) TILES(7) TILES(8)
#define OF(rows) {tile_##rows##_1, tile_##rows##_2, tile_##rows##_3}
static const tile_kernel tiles[ROWS][3] = {OF(1), OF(2), OF(3), OF(4), OF(5), OF(6), OF(7), OF(8)};
/* clang-format on */

/* ---- the product ------------------------------------------------------------------------------------------------ */

/* op(A)'s rows for some tiles: packed into panels of 16, or where they stand. */
typedef struct left {
  const float *x;
  int64_t row, inner;
  bool packed;
} left;

/* Rows i0.. by columns j0.. of C, through k of the inner dimension; b: these columns, packed. `again`: what was made of
 * an earlier stretch stands in C. */
AVX512 static void block(const product *s, const left *a, const float *b, int64_t k, bool again, int64_t i0,
                         int64_t rows, int64_t j0, int64_t columns) {
  const float *start = again ? s->c + i0 * s->ldc + j0 : s->start + i0 * s->start_row + j0;
  float *c = s->c + i0 * s->ldc + j0, beta = again ? 1 : s->beta;
  int64_t start_row = again ? s->ldc : s->start_row;
  for (int64_t j = 0; j < columns; j += PANEL, b += k * PANEL) {
    int64_t wide = PG_MIN(PANEL, columns - j), n = (wide + LANES - 1) / LANES;
    __mmask16 last = pg_first_lanes(wide - (n - 1) * LANES);
    for (int64_t i = 0; i < rows; i += ROWS) {
      const float *x = a->x + (a->packed ? i / LANES * LANES * k + i % LANES : i * a->row);
      tiles[PG_MIN(ROWS, rows - i) - 1][n - 1](k, x, a->row, a->inner, b, s->alpha, beta, start + i * start_row + j,
                                               start_row, c + i * s->ldc + j, s->ldc, last);
    }
  }
}

static int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/* How a product is divided, and memory for what is packed. */
typedef struct plan {
  int threads;
  int64_t high, wide; /* a task's rows and columns of C */
  bool pack_a;
  pg_share *shares; /* of the tasks */
  float *b, *room;  /* of op(B), for all; of op(A), for each thread */
} plan;

/* Packs columns j0..j0 + columns of op(B), stretch p0..p0 + k, all threads together. */
static void pack_right(const product *s, const plan *d, int64_t p0, int64_t k, int64_t j0, int64_t columns) {
  const float *from = s->b + p0 * s->b_inner + j0 * s->b_column;
  bool past = d->threads > 1;
  if (s->b_inner != 1) {
#pragma omp for schedule(static) nowait
    for (int64_t p = 0; p < k; p += LANES)
      pack(from, s->b_column, s->b_inner, columns, k, p, PG_MIN(p + LANES, k), PANEL, d->b, past);
  } else {
#pragma omp for schedule(static) nowait
    for (int64_t j = 0; j < columns; j += PANEL)
      pack(from + j * s->b_column, s->b_column, 1, PG_MIN(PANEL, columns - j), k, 0, k, PANEL, d->b + j * k, past);
  }
  _mm_sfence(); /* what went past the caches is there */
#pragma omp barrier
}

/* These columns meet all of op(A), a block of rows at a time, which stays in the second-level cache meanwhile. */
static void chunk(const product *s, const plan *d, int64_t p0, int64_t k, int64_t j0, int64_t columns) {
  int64_t across = (columns + d->wide - 1) / d->wide, tasks = (s->m + d->high - 1) / d->high * across;
  pg_share_out(d->shares, d->threads);
#pragma omp parallel num_threads(d->threads)
  {
    pack_right(s, d, p0, k, j0, columns);
    int me = omp_get_thread_num();
    float *own = d->room + me * up(d->high, LANES) * k;
    for (int64_t t; (t = pg_share_next(d->shares, d->threads, me, tasks)) >= 0;) {
      if (pg_stopping()) continue;
      int64_t i = t / across * d->high, j = t % across * d->wide, rows = PG_MIN(d->high, s->m - i);
      left a = {s->a + i * s->a_row + p0 * s->a_inner, s->a_row, s->a_inner, d->pack_a};
      if (d->pack_a) {
        pack(a.x, s->a_row, s->a_inner, rows, k, 0, k, LANES, own, false);
        a.x = own, a.row = 1, a.inner = LANES;
        for (int64_t l = 0; s->sums && j0 + j == 0 && l < rows; l += LANES)
          sum_panel(own + l * k, k, rows - l, p0 > 0, s->sums + i + l);
      }
      block(s, &a, d->b + j * k, k, p0 > 0, i, rows, j0 + j, PG_MIN(d->wide, columns - j));
    }
  }
}

static bool multiply(const product *s) {
  int64_t stretches = PG_MAX(1, (s->k + STRETCH - 1) / STRETCH), k = PG_MAX(1, (s->k + stretches - 1) / stretches);
  bool alone = omp_in_parallel() || (double)s->m * (double)s->n * (double)s->k < ALONE_BELOW;
  plan d = {.threads = alone ? 1 : omp_get_max_threads(), .pack_a = s->a_inner != 1};
  int64_t most = PG_MAX(PANEL, PACKED / k / PANEL * PANEL), columns = PG_MIN(s->n, most);
  /* Blocks of one height, as many as divide among the threads; where rows are few, columns are divided too. */
  int64_t blocks = up(PG_MAX(1, (s->m * k + BLOCK - 1) / BLOCK), d.threads);
  d.high = PG_MAX(up((s->m + blocks - 1) / blocks, d.pack_a ? LANES : ROWS), 3 * LANES);
  int64_t across = (d.threads + (s->m + d.high - 1) / d.high - 1) / ((s->m + d.high - 1) / d.high);
  d.wide = up((columns + across - 1) / across, PANEL);
  int64_t of_a = d.pack_a ? up(d.high, LANES) * k * d.threads : 0, of_b = up(columns, LANES) * k;
  size_t bytes = sizeof(pg_share) * (size_t)d.threads + sizeof(float) * (size_t)(of_a + of_b);
  if (!(d.shares = pg_scratch_alloc(bytes))) return false;
  d.b = (float *)(d.shares + d.threads), d.room = d.b + of_b;
  for (int64_t j = 0; j < s->n; j += columns)
    for (int64_t p = 0; p < s->k && !pg_stopping(); p += k)
      chunk(s, &d, p, PG_MIN(k, s->k - p), j, PG_MIN(columns, s->n - j));
  pg_scratch_free(d.shares, bytes);
  return true;
}

/* What fits in the first cache or nearly, by the calling thread: only op(B) is packed. */
static void multiply_small(const product *s) {
  _Alignas(64) float b[SMALL];
  int64_t stretches = (s->k + SMALL_STRETCH - 1) / SMALL_STRETCH, most = up((s->k + stretches - 1) / stretches, LANES);
  for (int64_t p = 0; p < s->k; p += most) {
    int64_t k = PG_MIN(most, s->k - p);
    left a = {s->a + p * s->a_inner, s->a_row, s->a_inner, false};
    pack(s->b + p * s->b_inner, s->b_column, s->b_inner, s->n, k, 0, k, PANEL, b, false);
    block(s, &a, b, k, p > 0, 0, s->m, 0, s->n);
  }
}

static bool is_small(const product *s) { return up(s->n, LANES) * s->k <= SMALL && s->m * s->k <= 4 * SMALL; }

static bool run(const product *s) {
  if (!s->k || !pg_has_avx512()) return false;
  if (!s->m || !s->n) return true;
  if (is_small(s)) return multiply_small(s), true;
  return multiply(s);
}

bool pg_gemm_avx512(int ta, int tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                    const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
  product s = {a,   b, ta ? 1 : lda, ta ? lda : 1, tb ? 1 : ldb, tb ? ldb : 1, m, n, k, alpha, beta, c,
               ldc, c, ldc,          NULL};
  return run(&s);
}

bool pg_outer_avx512(int64_t rows, int64_t out, int64_t in, const float *dy, const float *x, float *dw, float *db) {
  product s = {dy, x, 1, out, in, 1, out, in, rows, 1, 0, dw, in, dw, in, db};
  return in > 0 && out > 1 && !is_small(&s) && run(&s); /* what is not packed is not summed */
}

bool pg_affine_avx512(int64_t rows, int64_t out, int64_t in, const float *x, const float *w, const float *bias,
                      float *y) {
  product s = {x, w, in, 1, 1, in, rows, out, in, 1, bias ? 1 : 0, bias, 0, y, out, NULL};
  return run(&s);
}

#else
bool pg_gemm_avx512(int ta, int tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                    const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
  return false;
}

bool pg_outer_avx512(int64_t rows, int64_t out, int64_t in, const float *dy, const float *x, float *dw, float *db) {
  return false;
}

bool pg_affine_avx512(int64_t rows, int64_t out, int64_t in, const float *x, const float *w, const float *bias,
                      float *y) {
  return false;
}
#endif
