/* knn.c - exact k nearest neighbours, by (similarity, index): the greater similarity first, of equal ones the lower
 * index, and NaN, which values that overflow may give where multiply-adds are not fused, last.
 *
 *   ip      q . x            cosine  q/|q| . x/|x|            l2  -|q - x|^2, returned as the distance |q - x|^2
 *
 * Queries and database meet in tiles of 96 by 96 products (panels.h). A row of products is compared with the k-th
 * similarity that its query has so far, which next to none exceeds after the first few thousand; those go into the
 * query's heap of k, whose order is total, so that the result does not depend on who comes first. A set with itself
 * needs half of the tiles: x.y is y.x, and a tile serves its rows and its columns. Beyond the result, memory is a
 * chunk of the database in panels, a group of queries in panels for each thread, and some numbers a row.
 *
 * Screening. What decides is never an approximation, but an approximation v with |v - s| <= e decides that a pair need
 * not be looked at: v < (k-th so far) - e. Whatever passes is computed exactly.
 *
 * - Squared distances are exact when summed from differences, since |q|^2 - 2 q.x + |x|^2 cancels, and v is that sum
 *   without the |q|^2, from a product.
 * - Where the CPU multiplies bfloat16, at twice the speed, float32 products are screened with it.
 *
 * The bound. y is a query as multiplied (2 q for l2), x a row, ~ what rounding to bfloat16 makes of them, u the unit
 * roundoff of `real`, g = 2 (d + 4) u. Exactly, y.x - ~y.~x = y.(x - ~x) + (y - ~y).~x, so that by Cauchy and Schwarz
 *
 *   |y.x - ~y.~x| <= |y| |x - ~x| + |y - ~y| |~x|,        |~x| <= |x| + |x - ~x|;
 *
 * the norms of what was lost are computed when a row is rounded. A sum of d products in `real`, in whatever order, is
 * within g/2 |y| |x| of the true one; so is one of ~y and ~x, whose products are exact in float32, within g |~y| |~x|
 * even if the CPU cuts off in place of rounding. Numbers below 2^-126 may be taken for zero, twice a product.
 *
 *   ip, cosine   e = |y| |x - ~x| + |y - ~y| |~x| + g (|y| |x| + |~y| |~x|)
 *   l2           e = the same in bfloat16, else 0,  + 2 g (|q| + |x|)^2
 *
 * In l2 the sum starts at -|x|^2 and its parts stay below |x|^2 + 2 |q| |x|: off by d u (|q| + |x|)^2; the distance
 * from differences is off by (d + 2) u of itself, at most (|q| + |x|)^2; the two squares and the comparison are off by
 * 12 u of that, and 2 d + 14 < 4 (d + 4). |x| and |x - ~x| are the greatest of a unit of 96 rows. */
#ifdef REAL

PG_SIMD static real K(length)(int64_t d, const real *x) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < d; i++) sum += (double)x[i] * x[i];
  return (real)sqrt(sum);
}

PG_SIMD static void K(scaled)(int64_t n, real scale, const real *restrict x, real *restrict out) {
  for (int64_t i = 0; i < n; i++) out[i] = scale * x[i];
}

PG_SIMD static real K(squared_distance)(int64_t d, const real *restrict a, const real *restrict b) {
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < d; i++) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

#include "panels.h"

/* ---- a query's k best -------------------------------------------------------------------------------------------- */

/* Whether (s, i) comes before (t, j). */
static inline bool K(ahead)(real s, int32_t i, real t, int32_t j) {
  if (s > t || s < t) return s > t;
  return isnan(s) == isnan(t) ? i < j : isnan(t);
}

/* Puts (s, i) where the first of a heap of n was, which has the last in order on top. */
static void K(sink)(int64_t n, real *best, int32_t *at, real s, int32_t i) {
  int64_t hole = 0;
  for (int64_t child; (child = 2 * hole + 1) < n; hole = child) {
    if (child + 1 < n && K(ahead)(best[child], at[child], best[child + 1], at[child + 1])) child++;
    if (!K(ahead)(s, i, best[child], at[child])) break;
    best[hole] = best[child], at[hole] = at[child];
  }
  best[hole] = s, at[hole] = i;
}

/* The nearest first. */
static void K(unheap)(int64_t n, real *best, int32_t *at) {
  for (int64_t end = n - 1; end > 0; end--) {
    real s = best[end];
    int32_t i = at[end];
    best[end] = best[0], at[end] = at[0];
    K(sink)(end, best, at, s, i);
  }
}

/* ---- rows made ready --------------------------------------------------------------------------------------------- */

typedef struct K(search) {
  int metric;
  bool self, mirrored; /* query i is not to find row i; the two sets are one, and a tile serves both ways */
  int64_t q, n, d, k;
  const real *a, *b, *a_length, *b_length;
  real *value; /* the heaps, of k a query, */
  int32_t *at;
  real *bar;         /* and the least similarity that may still enter each */
  omp_lock_t *locks; /* of a unit of queries, where several threads may reach them; or NULL */
  K(panel_kernel) kernel;
} K(search);

/* Whether what passes is computed again. */
static inline bool K(screens)(const K(search) * s, bool coarse) { return coarse || s->metric == L2; }

/* Of a row, or the greatest of some: |x|, |x - ~x| and |~x|. */
typedef struct K(size) {
  real length, lost, rounded;
} K(size);

/* Rows of one side, from row `first` of it. */
typedef struct K(rows) {
  int64_t first, count;
  bool coarse;   /* panels are of bfloat16 */
  real *panels;  /* a unit has PG_UNIT d numbers of room */
  const real *x; /* what the panels were made of, but for a factor: the rows themselves; */
  real *unit;    /* for cosine these, of length one */
} K(rows);

/* A chunk of the database: start of the sums, and the greatest sizes of each unit. */
typedef struct K(chunk) {
  K(rows) rows;
  real *start;
  K(size) * most;
} K(chunk);

/* What a thread works with: a unit of queries, the chunk's rows, and a strip of their products. */
typedef struct K(work) {
  K(rows) group;
  const K(rows) * rows;
  K(size) size[PG_UNIT]; /* of the queries */
  real *products;
  struct pair *pairs; /* that passed screening and are still to be computed */
  int pending;
  int64_t made, looked_at; /* products, and pairs computed after screening */
} K(work);

/* Makes a unit ready that begins at row `from` of `to`; query: of the queries. */
static void K(make_ready)(const K(search) * s, bool query, K(rows) * to, int64_t from, K(size) * size) {
  const real *length = (query ? s->a_length : s->b_length) + to->first + from;
  const real *x = (query ? s->a : s->b) + (to->first + from) * s->d;
  int64_t count = PG_MIN(PG_UNIT, to->count - from);
  real scale = query && s->metric == L2 ? 2 : 1, lost[PG_UNIT] = {0}, *panels = to->panels + from * s->d;
  if (s->metric == COSINE) {
    real *unit = to->unit + from * s->d;
    for (int64_t i = 0; i < count; i++) K(scaled)(s->d, 1 / (length[i] + (real)1e-30), x + i * s->d, unit + i * s->d);
    x = unit;
  }
  if (!to->coarse) K(to_panels)(count, s->d, scale, x, query ? s->kernel.rows : s->kernel.columns, panels);
#if REAL_IS_FLOAT
  else
    pg_bfloat16_panels(count, s->d, scale, x, query ? PG_BFLOAT16_ROWS : PG_BFLOAT16_COLUMNS, (uint32_t *)panels, lost);
#endif
  if (!K(screens)(s, to->coarse)) return;
  for (int64_t i = 0; i < count; i++) { /* 2^-20: what rounding a length, or dividing by it, may have taken */
    real whole = (s->metric == COSINE ? 1 : scale * length[i]) * (1 + (real)0x1p-20);
    size[i] = (K(size)){whole, lost[i], whole + lost[i]};
  }
}

static void K(make_unit_ready)(const K(search) * s, K(chunk) * c, int64_t from) {
  int64_t count = PG_MIN(PG_UNIT, c->rows.count - from);
  K(size) size[PG_UNIT] = {{0}}, most = {0};
  K(make_ready)(s, false, &c->rows, from, size);
  for (int64_t i = 0; i < count; i++) {
    most.length = PG_MAX(most.length, size[i].length), most.lost = PG_MAX(most.lost, size[i].lost);
    most.rounded = PG_MAX(most.rounded, size[i].rounded);
  }
  c->most[from / PG_UNIT] = most;
  for (int64_t i = 0; i < PG_UNIT; i++) {
    real length = s->metric == L2 && i < count ? s->b_length[c->rows.first + from + i] : 0;
    c->start[from + i] = -(length * length);
  }
}

/* ---- a tile ------------------------------------------------------------------------------------------------------ */

/* e of a query of size y and a row of at most size x. */
static real K(bound)(const K(search) * s, bool coarse, K(size) y, K(size) x) {
  double e = 0, g = 2 * (double)(s->d + 4) * (REAL_IS_FLOAT ? 0x1p-24 : 0x1p-53);
  if (coarse)
    e = (double)y.length * x.lost + (double)y.lost * x.rounded +
        g * ((double)y.length * x.length + (double)y.rounded * x.rounded) + 2 * (double)(s->d + 1) * 0x1p-126;
  double far = y.length / 2.0 + x.length;
  if (s->metric == L2) e += 2 * g * far * far;
  return (real)(e * (1 + 0x1p-20));
}

static inline void K(offer)(const K(search) * s, int64_t query, int64_t row, real similarity) {
  real *best = s->value + query * s->k;
  int32_t *at = s->at + query * s->k;
  if (!K(ahead)(similarity, (int32_t)row, best[0], at[0])) return;
  K(sink)(s->k, best, at, similarity, (int32_t)row);
  s->bar[query] = isnan(best[0]) ? -(real)INFINITY : best[0];
}

/* Which of n products pass either test, !(v < least) and, where there are bars, !(v - shift < bar). NaN passes. */
static int K(passing)(int n, const real *v, real least, real shift, const real *bars, uint8_t *at) {
#if REAL_IS_FLOAT
  if (pg_has_avx512()) return pg_passing(n, v, least, shift, bars, at);
#endif
  int found = 0;
  for (int j = 0; j < n; j++)
    if (!(v[j] < least) || (bars && !(v[j] - shift < bars[j]))) at[found++] = (uint8_t)j;
  return found;
}

/* Offers a similarity to the query's heap and, where the row is a query too, to the row's. */
static void K(offer_pair)(const K(search) * s, struct pair p, real similarity) {
  omp_lock_t *first = s->locks ? s->locks + p.query / PG_UNIT : NULL;
  omp_lock_t *second = p.both ? s->locks + p.row / PG_UNIT : NULL; /* always the later unit: nobody waits in a ring */
  if (first) omp_set_lock(first);
  if (second) omp_set_lock(second);
  K(offer)(s, p.query, p.row, similarity);
  if (p.both) K(offer)(s, p.row, p.query, similarity);
  if (second) omp_unset_lock(second);
  if (first) omp_unset_lock(first);
}

/* The last up to PG_EXACT pairs that passed screening are computed and offered. */
static void K(look_at)(const K(search) * s, K(work) * w) {
  int count = PG_MIN(PG_EXACT, w->pending);
  const struct pair *p = w->pairs + (w->pending -= count);
  real similarity[PG_EXACT];
  w->looked_at += count;
#if REAL_IS_FLOAT
  if (s->metric != L2) {
    const real *a[PG_EXACT], *b[PG_EXACT];
    for (int i = 0; i < PG_EXACT; i++) {
      const struct pair *one = p + PG_MIN(i, count - 1);
      a[i] = w->group.x + (one->query - w->group.first) * s->d;
      b[i] = w->rows->x + (one->row - w->rows->first) * s->d;
    }
    pg_exact_products(s->d, a, b, similarity);
  }
#endif
  if (s->metric == L2)
    for (int i = 0; i < count; i++)
      similarity[i] = -K(squared_distance)(s->d, s->a + p[i].query * s->d, s->b + p[i].row * s->d);
  for (int i = 0; i < count; i++) K(offer_pair)(s, p[i], similarity[i]);
}

/* A strip of products, those of `rows` queries from `i0` of the group with a unit, goes to the heaps. both: it serves
 * the unit's rows as queries too. */
static void K(serve)(const K(search) * s, K(work) * w, const K(chunk) * c, int64_t i0, int rows, int64_t unit,
                     bool both) {
  bool screened = K(screens)(s, c->rows.coarse);
  int64_t query = w->group.first + i0, row = c->rows.first + unit;
  int columns = (int)PG_MIN(PG_UNIT, c->rows.count - unit);
  uint8_t at[PG_UNIT];
  omp_lock_t *first = s->locks ? s->locks + query / PG_UNIT : NULL, *second = both ? s->locks + row / PG_UNIT : NULL;
  if (first) omp_set_lock(first);
  if (second) omp_set_lock(second);
  for (int r = 0; r < rows; r++, query++) {
    const real *v = w->products + r * PG_UNIT;
    real shift = 0;
    if (screened) {
      real length = s->metric == L2 ? s->a_length[query] : 0;
      shift = length * length - K(bound)(s, c->rows.coarse, w->size[i0 + r], c->most[unit / PG_UNIT]);
    }
    int found = K(passing)(columns, v, s->bar[query] + shift, shift, both ? s->bar + row : NULL, at);
    for (int f = 0; f < found; f++) {
      struct pair p = {query, (int32_t)row + at[f], both};
      if (s->self && p.query == p.row) continue;
      if (screened) {
        w->pairs[w->pending++] = p;
        continue;
      }
      K(offer)(s, p.query, p.row, v[at[f]]);
      if (both) K(offer)(s, p.row, p.query, v[at[f]]);
    }
  }
  if (second) omp_unset_lock(second);
  if (first) omp_unset_lock(first);
  while (w->pending >= PG_EXACT) K(look_at)(s, w);
}

static void K(strip)(const K(search) * s, const K(work) * w, const K(chunk) * c, int64_t i0, int64_t unit) {
  int64_t columns = PG_MIN(PG_UNIT, c->rows.count - unit), d = s->d;
  const real *a = w->group.panels, *b = c->rows.panels + unit * d, *start = c->start + unit;
#if REAL_IS_FLOAT
  int64_t words = (d + 1) / 2;
  for (int64_t j = 0; c->rows.coarse && j < columns; j += PG_BFLOAT16_COLUMNS)
    pg_bfloat16_product(d, (const uint32_t *)a + i0 * words, (const uint32_t *)b + j * words, start + j,
                        w->products + j);
#endif
  for (int64_t j = 0; !c->rows.coarse && j < columns; j += s->kernel.columns)
    s->kernel.run(d, a + i0 * d, b + j * d, start + j, w->products + j);
}

/* The group's queries and the units from..to - 1 of the chunk. */
static void K(meet)(const K(search) * s, K(work) * w, K(chunk) * c, int64_t group, int64_t from, int64_t to) {
  w->group.first = group * PG_UNIT, w->group.count = PG_MIN(PG_UNIT, s->q - w->group.first);
  w->group.coarse = c->rows.coarse, w->rows = &c->rows;
  w->group.x = s->metric == COSINE ? w->group.unit : s->a + w->group.first * s->d;
  K(make_ready)(s, true, &w->group, 0, w->size);
  int step = c->rows.coarse ? PG_BFLOAT16_ROWS : s->kernel.rows;
  for (int64_t u = from; u < to && !pg_stopping(); u++) {
    int64_t other = c->rows.first / PG_UNIT + u;
    bool both = s->mirrored && other != group;
    for (int64_t i = 0; i < w->group.count; i += step) {
      K(strip)(s, w, c, i, u * PG_UNIT);
      K(serve)(s, w, c, i, (int)PG_MIN(step, w->group.count - i), u * PG_UNIT, both);
    }
    w->made += w->group.count * PG_MIN(PG_UNIT, c->rows.count - u * PG_UNIT);
  }
  while (w->pending) K(look_at)(s, w);
}

/* ---- the search -------------------------------------------------------------------------------------------------- */

static void K(lengths)(int64_t n, int64_t d, const real *x, real *out) {
#pragma omp parallel for schedule(static) if (n * d > 32768)
  for (int64_t i = 0; i < n; i++) out[i] = K(length)(d, x + i * d);
}

/* One chunk against every query, or, where the sets are one, against the queries up to its end. Returns the share of
 * pairs that screening let through, beyond the few that every list takes to fill. */
static double K(search_chunk)(K(search) s, K(chunk) * c, K(work) * work, int team) {
  int64_t units = (c->rows.count + PG_UNIT - 1) / PG_UNIT, before = c->rows.first / PG_UNIT;
  int64_t groups = s.mirrored ? before + units : (s.q + PG_UNIT - 1) / PG_UNIT;
  int64_t parts = s.mirrored ? 1 : PG_MIN(units, (4 * team + groups - 1) / groups), made = 0, looked_at = 0;
  if (!s.mirrored && parts == 1) s.locks = NULL; /* a unit of queries is with one thread */
#pragma omp parallel num_threads(team) reduction(+ : made, looked_at)
  {
    K(work) *w = work + omp_get_thread_num();
    w->made = w->looked_at = 0;
#pragma omp for schedule(dynamic, 1)
    for (int64_t u = 0; u < units; u++) K(make_unit_ready)(&s, c, u * PG_UNIT);
#pragma omp for schedule(dynamic, 1)
    for (int64_t t = 0; t < groups * parts; t++) {
      int64_t group = t / parts, part = t % parts, first = s.mirrored ? PG_MAX(0, group - before) : 0;
      K(meet)(&s, w, c, group, PG_MAX(first, units * part / parts), units * (part + 1) / parts);
    }
    made = w->made, looked_at = w->looked_at;
  }
  double filling = 4.0 * (double)s.k * (double)(groups * PG_UNIT + (s.mirrored ? 4 * c->rows.count : 0));
  return PG_MAX(0, (double)looked_at - filling) / (double)PG_MAX(1, made);
}

static int K(knn_forward)(pg_call *c) {
  K(search) s = {.metric = (int)c->p[1].ints[0], .self = c->p[2].ints[0], .k = c->p[0].ints[0]};
  s.q = c->in[0]->shape[0], s.n = c->in[1]->shape[0], s.d = c->in[0]->shape[1];
  s.a = PG_AT(real, c->in[0]), s.b = PG_AT(real, c->in[1]);
  s.value = PG_AT(real, c->out[0]), s.at = PG_AT(int32_t, c->out[1]);
  s.mirrored = s.a == s.b && s.q == s.n, s.kernel = K(choose_panels)();
  int64_t q = s.q, n = s.n, d = s.d, k = s.k;
  if (!q) return PG_OK;
  /* Few dimensions save nothing, and of few rows most would be looked at again. */
  bool may_screen = REAL_IS_FLOAT && c->p[3].ints[0] && d >= 64 && n / 256 >= k && pg_has_bfloat16();
  int team = (double)q * (double)n * (double)d < 4e6 || omp_in_parallel() ? 1 : omp_get_max_threads();

  int64_t units = (q + PG_UNIT - 1) / PG_UNIT, whole = (n + PG_UNIT - 1) / PG_UNIT * PG_UNIT;
  int64_t rows = CHUNK / (int64_t)sizeof(real) / PG_MAX(d, 1) / PG_UNIT * PG_UNIT;
  rows = PG_MIN(whole, PG_MAX(rows, PG_UNIT));
  const size_t each[] = {[PANELS] = sizeof(real) * (size_t)(rows * d),
                         [UNIT_LENGTH] = s.metric == COSINE ? sizeof(real) * (size_t)(rows * d) : 0,
                         [START] = sizeof(real) * (size_t)rows,
                         [MOST] = sizeof(K(size)) * (size_t)(rows / PG_UNIT),
                         [LENGTHS] = sizeof(real) * (size_t)(q + n),
                         [BARS] = sizeof(real) * (size_t)q,
                         [LOCKS] = sizeof(omp_lock_t) * (size_t)units,
                         [WORK] = sizeof(K(work)) * (size_t)team,
                         [GROUP] = sizeof(real) * (size_t)(2 * PG_UNIT * d * team),
                         [PRODUCTS] = sizeof(real) * (size_t)(PG_MOST_ROWS * PG_UNIT * team),
                         [PAIRS] = sizeof(struct pair) * (size_t)(MOST_PAIRS * team)};
  size_t bytes = 0, begin[PIECES];
  for (int i = 0; i < PIECES; i++) begin[i] = bytes, bytes += (each[i] + 63) / 64 * 64;
  char *scratch = pg_scratch_alloc(bytes);
  if (!scratch) return pg_fail(PG_ERR_MEMORY, "knn: out of memory");

  K(work) *work = (void *)(scratch + begin[WORK]);
  for (int t = 0; t < team; t++) {
    real *group = (real *)(scratch + begin[GROUP]) + 2 * PG_UNIT * d * t;
    work[t] = (K(work)){.group = {.panels = group, .unit = group + PG_UNIT * d},
                        .products = (real *)(scratch + begin[PRODUCTS]) + PG_MOST_ROWS * PG_UNIT * t,
                        .pairs = (struct pair *)(scratch + begin[PAIRS]) + MOST_PAIRS * t};
  }
  K(chunk)
  chunk = {.rows = {.panels = (real *)(scratch + begin[PANELS]), .unit = (real *)(scratch + begin[UNIT_LENGTH])},
           .start = (real *)(scratch + begin[START]),
           .most = (void *)(scratch + begin[MOST])};
  s.bar = (real *)(scratch + begin[BARS]), s.locks = (omp_lock_t *)(scratch + begin[LOCKS]);
  real *lengths = (real *)(scratch + begin[LENGTHS]);
  s.a_length = lengths, s.b_length = s.a == s.b && q == n ? lengths : lengths + q;
  if (s.metric != IP || may_screen) {
    K(lengths)(q, d, s.a, lengths);
    if (s.b_length != lengths) K(lengths)(n, d, s.b, lengths + q);
  }
  for (int64_t u = 0; u < units; u++) omp_init_lock(s.locks + u);
  for (int64_t i = 0; i < q; i++) s.bar[i] = -(real)INFINITY;
  for (int64_t i = 0; i < q * k; i++) s.value[i] = (real)NAN, s.at[i] = INT32_MAX; /* after every row */

  /* The first few rows fill the heaps, so that screening has something to compare with. */
  for (int64_t first = 0; first < n && !pg_stopping(); first += chunk.rows.count) {
    chunk.rows.first = first, chunk.rows.coarse = may_screen && first;
    chunk.rows.count = PG_MIN(n - first, may_screen && !first ? PG_MIN(rows, SEED) : rows);
    chunk.rows.x = s.metric == COSINE ? chunk.rows.unit : s.b + first * d;
    double looked_at = K(search_chunk)(s, &chunk, work, team);
    if (chunk.rows.coarse && looked_at > 1 / 32.0) may_screen = false; /* it costs more than it saves */
  }
  for (int64_t u = 0; u < units; u++) omp_destroy_lock(s.locks + u);
#pragma omp parallel for schedule(static) num_threads(team)
  for (int64_t i = 0; i < q; i++) {
    K(unheap)(k, s.value + i * k, s.at + i * k);
    for (int64_t j = 0; s.metric == L2 && j < k; j++) s.value[i * k + j] = -s.value[i * k + j];
  }
  pg_scratch_free(scratch, bytes);
  return PG_OK;
}

#else
#include "knn.h"
#include "../op.h"
#include <omp.h>

enum { IP, COSINE, L2 };
enum { CHUNK = 8 << 20, SEED = 10 * PG_UNIT };           /* bytes of panels, which stay in the cache; rows */
enum { MOST_PAIRS = PG_MOST_ROWS * PG_UNIT + PG_EXACT }; /* of a strip, and what was left before it */
enum { PANELS, UNIT_LENGTH, START, MOST, LENGTHS, BARS, LOCKS, WORK, GROUP, PRODUCTS, PAIRS, PIECES };

struct pair {
  int64_t query;
  int32_t row;
  bool both; /* the row is a query too, and the query its row */
};

#define REALS_FILE "ops/knn.c"
#include "../reals.h"

static int knn_shape(pg_call *c) {
  const pg_tensor *a = c->in[0], *b = c->in[1];
  int64_t k = c->p[0].ints[0], bad = 0;
  if (a->ndim != 2 || b->ndim != 2 || a->shape[1] != b->shape[1]) return pg_op_fail(c, "takes (Q, D) and (N, D)");
  if (k > b->shape[0] - (c->p[2].ints[0] != 0))
    return pg_op_fail(c, "k = %lld, but a query has %lld others to choose from", (long long)k,
                      (long long)(b->shape[0] - (c->p[2].ints[0] != 0)));
  if (b->shape[0] >= INT32_MAX)
    return pg_op_fail(c, "an index of int32 does not reach the last of %lld rows", (long long)b->shape[0]);
  for (int i = 0; i < 2; i++) {
    PG_TRY(pg_count_nonfinite(c->in[i], &bad));
    if (bad)
      return pg_fail(PG_ERR_ARGUMENT, "knn: %s holds %lld values that are not finite", c->op->info.inputs[i].name,
                     (long long)bad);
  }
  int64_t shape[2] = {a->shape[0], k};
  PG_TRY(pg_out(c, 0, a->dtype, 2, shape));
  return pg_out(c, 1, PG_INT32, 2, shape);
}

const pg_op pg_op_knn = {
    .info = {.name = "knn",
             .doc = "the k nearest rows of a database for each query, nearest first, ties to the lower index",
             .inputs = PG_ARGS({"queries", 0, "(Q, D) float"}, {"database", 0, "(N, D) float"}),
             .outputs =
                 PG_ARGS({"similarity", 0, "(Q, k); the squared distance for l2"}, {"index", PG_INDEX, "(Q, k) int32"}),
             .params =
                 PG_PARAMS(PG_INT("k", NAN, 1, 1 << 20, "neighbours a query"),
                           PG_WORD("metric", 1, "ip cosine l2", "what near means"),
                           PG_FLAG("exclude_self", 0, "query i is database row i and not its own neighbour"),
                           PG_FLAG("screen", 1,
                                   "float32, where the CPU multiplies bfloat16: find in it which rows to compare; "
                                   "the result is the same")),
             .no_backward = "which rows are nearest is piecewise constant",
             .samples = PG_SAMPLES("{queries = randn(3, 4), database = randn(9, 4), k = 3}",
                                   "{queries = randn(3, 4), database = randn(9, 4), k = 2, metric = \"l2\"}")},
    .shape = knn_shape,
    .forward = PG_REALS(knn_forward)};
#endif
