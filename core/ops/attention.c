/* attention.c - softmax(scale q k^T + mask) v, fused; of q, k and v, and of one packed projection, where every head is
 * read and its gradient written in place.
 *
 * Every (batch, head) pair is one task for one thread. A task works through tiles of query rows with scratch for one
 * (tile, S) strip, so that no (B, H, T, S) tensor ever exists; backward recomputes the strip from q, k and the
 * saved log-sum-exp. With P the weights and D_t = sum_d dy_td y_td: dv = P^T dy,   dS = P * (dy v^T - D),   dq = scale
 * dS k,   dk = scale dS^T q. A row whose keys are all masked gives zeros and no gradient. */
#ifdef REAL

/* Weights of rows t0..t0+rows from scores (rows, S): adds the mask, cuts the future off; sums by row. */
PG_SIMD static void K(weigh)(int64_t n, real *restrict p, const real *mask, int64_t visible, real *lse, int known) {
  if (mask)
    for (int64_t j = 0; j < n; j++) p[j] += mask[j];
  real top = -INFINITY, sum = 0;
  if (!known) {
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < visible; j++) top = p[j] > top ? p[j] : top;
    real base = top > -INFINITY ? top : 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < visible; j++) {
      p[j] = K(v_decay)(p[j] - base, 0);
      sum += p[j];
    }
    real inverse = sum > 0 ? 1 / sum : 0;
    for (int64_t j = 0; j < visible; j++) p[j] *= inverse;
    *lse = sum > 0 ? base + R(log)(sum) : sum == 0 ? INFINITY : sum; /* +infinity: backward finds weights of zero */
  } else {
    for (int64_t j = 0; j < visible; j++) p[j] = K(v_decay)(p[j] - *lse, 0);
  }
  for (int64_t j = visible; j < n; j++) p[j] = 0;
}

PG_SIMD static void K(score_grads)(int64_t n, const real *restrict p, real *restrict dp, int64_t e,
                                   const real *restrict dy, const real *restrict y) {
  real row = 0;
#pragma omp simd reduction(+ : row)
  for (int64_t i = 0; i < e; i++) row += dy[i] * y[i];
  for (int64_t j = 0; j < n; j++) dp[j] = p[j] * (dp[j] - row);
}

/* (B, H, rows, width) in memory, neighbours in a row next to each other; first NULL: not wanted. */
typedef struct K(matrices) {
  real *first;
  int64_t batch, head, row;
} K(matrices);

typedef struct K(problem) {
  K(matrices) q, k, v, y, dy, dq, dk, dv; /* the last four in backward */
  const real *mask;
  real *lse;
} K(problem);

static K(matrices) K(matrices_of)(const pg_tensor *t) {
  if (!t) return (K(matrices)){0};
  return (K(matrices)){PG_AT(real, t), t->stride[0], t->stride[1], PG_MAX(t->stride[2], t->shape[3])};
}

/* One pair of batch and head; p and dp have room for (tile, S) each. */
static void K(attend)(const sizes *z, const K(problem) * x, int64_t task, int64_t tile, real *p, bool backward) {
  int64_t b = task / z->h, h = task % z->h, t_first = task * z->t;
  real scale = (real)z->scale, *dp = p + tile * z->s;
#define AT(m) (x->m.first + b * x->m.batch + h * x->m.head)
  for (int64_t t0 = 0; t0 < z->t && !pg_stopping(); t0 += tile) {
    int64_t rows = PG_MIN(tile, z->t - t0);
    K(pg_gemm)(0, 1, rows, z->s, z->d, scale, AT(q) + t0 * x->q.row, x->q.row, AT(k), x->k.row, 0, p, z->s);
    for (int64_t t = 0; t < rows; t++) {
      const real *m = x->mask ? x->mask + b * z->mask_b + h * z->mask_h + (t0 + t) * z->s : NULL;
      int64_t visible = z->causal ? PG_MAX(0, PG_MIN(z->s, t0 + t + 1 + z->s - z->t)) : z->s;
      K(weigh)(z->s, p + t * z->s, m, visible, x->lse + t_first + t0 + t, backward);
    }
    real *y = AT(y) + t0 * x->y.row, *dy = backward ? AT(dy) + t0 * x->dy.row : NULL;
    if (!backward) {
      K(pg_gemm)(0, 0, rows, z->e, z->s, 1, p, z->s, AT(v), x->v.row, 0, y, x->y.row);
      continue;
    }
    if (x->dv.first) K(pg_gemm)(1, 0, z->s, z->e, rows, 1, p, z->s, dy, x->dy.row, t0 > 0, AT(dv), x->dv.row);
    K(pg_gemm)(0, 1, rows, z->s, z->e, 1, dy, x->dy.row, AT(v), x->v.row, 0, dp, z->s);
    for (int64_t t = 0; t < rows; t++)
      K(score_grads)(z->s, p + t * z->s, dp + t * z->s, z->e, dy + t * x->dy.row, y + t * x->y.row);
    if (x->dq.first) K(pg_gemm)
    (0, 0, rows, z->d, z->s, scale, dp, z->s, AT(k), x->k.row, 0, AT(dq) + t0 * x->dq.row, x->dq.row);
    if (x->dk.first) K(pg_gemm)
    (1, 0, z->s, z->d, rows, scale, dp, z->s, AT(q) + t0 * x->q.row, x->q.row, t0 > 0, AT(dk), x->dk.row);
  }
#undef AT
}

static int K(attend_all)(const sizes *z, const K(problem) * x, bool backward) {
  int64_t tile = z->t <= 2 * TILE ? z->t : TILE; /* one row too many should not cost a pass over the keys */
  size_t strip = sizeof(real) * (size_t)(PG_MAX(tile, 1) * PG_MAX(z->s, 1)), tasks = (size_t)(z->b * z->h);
  int threads = (int)PG_MIN((int64_t)pg_threads(), PG_MAX((int64_t)tasks, 1));
  PG_TRY(pg_blas_fits(6, (int64_t[]){z->s, z->d, z->e, x->q.row, x->k.row, x->v.row}));
  real *scratch = pg_scratch_alloc(strip * 2 * (size_t)threads);
  if (!scratch) return pg_fail(PG_ERR_MEMORY, "attention: out of memory");
  double work = (double)tasks * (double)z->t * (double)z->s * (double)(z->d + z->e);
#pragma omp parallel for schedule(static) num_threads(threads) if (work > 1e6)
  for (int64_t task = 0; task < z->b * z->h; task++)
    K(attend)(z, x, task, tile, scratch + (size_t)thread_number() * 2 * (size_t)(tile * z->s), backward);
  pg_scratch_free(scratch, strip * 2 * (size_t)threads);
  return PG_OK;
}

static int K(attention_any)(pg_call *c, bool backward) {
  sizes z = sizes_of(c);
  pg_tensor *held[3] = {0};
  int status = PG_OK;
  for (int i = 0; i < 3 && !status; i++) /* views of one packed projection are read where they stand */
    status = rows_apart(c->in[i]) ? (held[i] = pg_retain(c->in[i]), PG_OK) : pg_contiguous(c->in[i], &held[i]);
  if (!status) {
    K(problem) x = {.q = K(matrices_of)(held[0]), .k = K(matrices_of)(held[1]), .v = K(matrices_of)(held[2])};
    x.y = K(matrices_of)(c->out[0]), x.lse = PG_AT(real, c->out[1]);
    if (c->in[3]) x.mask = PG_AT(real, c->in[3]);
    if (backward) {
      x.dy = K(matrices_of)(c->grad_out[0]), x.dq = K(matrices_of)(c->grad_in[0]);
      x.dk = K(matrices_of)(c->grad_in[1]), x.dv = K(matrices_of)(c->grad_in[2]);
      for (int i = 1; i < 3 && !z.t; i++) /* no query reads them */
        if (c->grad_in[i]) memset(PG_AT(real, c->grad_in[i]), 0, sizeof(real) * (size_t)pg_numel(c->grad_in[i]));
    }
    status = K(attend_all)(&z, &x, backward);
  }
  for (int i = 0; i < 3; i++) pg_release(held[i]);
  return status;
}

static int K(attention_forward)(pg_call *c) { return K(attention_any)(c, false); }
static int K(attention_backward)(pg_call *c) { return K(attention_any)(c, true); }

/* Part `at` of (B, T, parts W), W all heads next to each other. */
static K(matrices) K(packed)(const pg_tensor *t, int parts, int at, const sizes *z) {
  int64_t row = parts * z->h * z->d;
  return (K(matrices)){PG_AT(real, t) + at * z->h * z->d, z->t * row, z->d, row};
}

static int K(self_attention_any)(pg_call *c, bool backward) {
  sizes z = packed_sizes_of(c);
  const pg_tensor *qkv = c->in[0];
  K(problem) x = {.y = K(packed)(c->out[0], 1, 0, &z), .lse = PG_AT(real, c->out[1])};
  x.q = K(packed)(qkv, 3, 0, &z), x.k = K(packed)(qkv, 3, 1, &z), x.v = K(packed)(qkv, 3, 2, &z);
  if (c->in[1]) x.mask = PG_AT(real, c->in[1]);
  if (backward) {
    const pg_tensor *d = c->grad_in[0];
    x.dy = K(packed)(c->grad_out[0], 1, 0, &z);
    x.dq = K(packed)(d, 3, 0, &z), x.dk = K(packed)(d, 3, 1, &z), x.dv = K(packed)(d, 3, 2, &z);
  }
  return K(attend_all)(&z, &x, backward);
}

static int K(self_attention_forward)(pg_call *c) { return K(self_attention_any)(c, false); }
static int K(self_attention_backward)(pg_call *c) { return K(self_attention_any)(c, true); }

#else
#include "../op.h"
#include "../vmath.h"
#include <omp.h>

enum { TILE = 64 };
static int thread_number(void) { return omp_get_thread_num(); }

typedef struct sizes {
  int64_t b, h, t, s, d, e; /* batch, heads, queries, keys, width of q and k, width of v */
  int64_t mask_b, mask_h;   /* strides of the mask over batch and heads; 0 where it is shared */
  double scale;
  bool causal;
} sizes;

static void add_mask(sizes *z, const pg_tensor *mask) {
  if (z->scale == 0) z->scale = 1 / sqrt((double)PG_MAX(z->d, 1));
  if (!mask || mask->ndim == 2) return;
  z->mask_h = mask->shape[1] == 1 ? 0 : z->t * z->s;
  z->mask_b = mask->shape[0] == 1 ? 0 : mask->shape[1] * z->t * z->s;
}

static sizes sizes_of(const pg_call *c) {
  const pg_tensor *q = c->in[0], *k = c->in[1], *v = c->in[2];
  sizes z = {.b = q->shape[0],
             .h = q->shape[1],
             .t = q->shape[2],
             .s = k->shape[2],
             .d = q->shape[3],
             .e = v->shape[3],
             .causal = c->p[0].ints[0],
             .scale = c->p[1].num};
  return add_mask(&z, c->in[3]), z;
}

static sizes packed_sizes_of(const pg_call *c) {
  const int64_t *shape = c->in[0]->shape, heads = c->p[0].ints[0], width = shape[2] / 3 / heads;
  sizes z = {.b = shape[0],
             .h = heads,
             .t = shape[1],
             .s = shape[1],
             .d = width,
             .e = width,
             .causal = c->p[1].ints[0],
             .scale = c->p[2].num};
  return add_mask(&z, c->in[1]), z;
}

/* Whether GEMM can read the rows where they stand: not those of an expanded tensor, which are all one. */
static bool rows_apart(const pg_tensor *t) {
  return t->stride[3] == 1 && (t->shape[2] == 1 || t->stride[2] >= t->shape[3]);
}

#define REALS_FILE "ops/attention.c"
#include "../reals.h"

static bool mask_fits(const pg_tensor *mask, int64_t b, int64_t h, int64_t t, int64_t s) {
  if (!mask) return true;
  bool fits = mask->ndim == 2 || (mask->ndim == 4 && (mask->shape[0] == 1 || mask->shape[0] == b) &&
                                  (mask->shape[1] == 1 || mask->shape[1] == h));
  return fits && mask->shape[mask->ndim - 2] == t && mask->shape[mask->ndim - 1] == s;
}

static int attention_shape(pg_call *c) {
  const pg_tensor *q = c->in[0], *k = c->in[1], *v = c->in[2], *mask = c->in[3];
  if (q->ndim != 4 || k->ndim != 4 || v->ndim != 4)
    return pg_op_fail(c, "takes (B, H, T, D), (B, H, S, D), (B, H, S, E)");
  if (q->shape[3] != k->shape[3] || k->shape[2] != v->shape[2])
    return pg_op_fail(c, "widths of q and k, or lengths of k and v, differ");
  for (int i = 0; i < 2; i++)
    if (q->shape[i] != k->shape[i] || q->shape[i] != v->shape[i]) return pg_op_fail(c, "batches or heads differ");
  if (!mask_fits(mask, q->shape[0], q->shape[1], q->shape[2], k->shape[2]))
    return pg_op_fail(c, "the mask is (T, S), or (B or 1, H or 1, T, S)");
  int64_t shape[4] = {q->shape[0], q->shape[1], q->shape[2], v->shape[3]};
  PG_TRY(pg_out(c, 0, q->dtype, 4, shape));
  return pg_out(c, 1, q->dtype, 3, shape);
}

/* At most a sixteenth of the projections around it: 2 S W multiply-adds a query against their 4 W W, W all heads'. */
static bool attention_is_short(const pg_call *c) {
  return c->in[1]->shape[2] * 8 <= c->in[0]->shape[1] * c->in[0]->shape[3];
}

const pg_op pg_op_attention = {
    .info =
        {.name = "attention",
         .doc = "softmax(scale q k^T + mask) v, without a (B, H, T, S) tensor",
         .source = "Vaswani et al., arXiv 1706.03762; recomputation as in Dao et al., arXiv 2205.14135",
         .inputs =
             PG_ARGS({"q", PG_STRIDED, "(B, H, T, D) float"}, {"k", PG_STRIDED, "(B, H, S, D)"},
                     {"v", PG_STRIDED, "(B, H, S, E)"},
                     {"mask", PG_OPTIONAL | PG_NO_GRAD, "(T, S) or (B|1, H|1, T, S), added to the scores; -inf hides"}),
         .outputs = PG_ARGS({"y", 0, "(B, H, T, E)"}, {"lse", PG_HIDDEN, "(B, H, T)"}),
         .params = PG_PARAMS(PG_FLAG("causal", 0, "a query sees no later key; the last query sees all"),
                             PG_NUM("scale", 0, 0, 0, "factor of the scores; 0 is 1 / sqrt(D)")),
         .samples = PG_SAMPLES(
             "{q = randn(2, 2, 5, 4), k = randn(2, 2, 5, 4), v = randn(2, 2, 5, 4)}",
             "{q = randn(1, 2, 5, 4), k = randn(1, 2, 5, 4), v = randn(1, 2, 5, 3), causal = true}",
             "{q = randn(2, 1, 3, 4), k = randn(2, 1, 6, 4), v = randn(2, 1, 6, 4), mask = randn(3, 6), scale = 0.7}")},
    .shape = attention_shape,
    .needs = PG_NEED_IN(0) | PG_NEED_IN(1) | PG_NEED_IN(2) | PG_NEED_IN(3) | PG_NEED_OUT(0) | PG_NEED_OUT(1),
    .cheap = attention_is_short,
    .again = PG_NEED_OUT(0), /* the projection behind it asks for the same */
    .forward = PG_REALS(attention_forward),
    .backward = PG_REALS(attention_backward)};

static int self_attention_shape(pg_call *c) {
  const pg_tensor *qkv = c->in[0];
  int64_t heads = c->p[0].ints[0];
  if (qkv->ndim != 3) return pg_op_fail(c, "takes (B, T, 3 W)");
  int64_t b = qkv->shape[0], t = qkv->shape[1], width = qkv->shape[2];
  if (width % (3 * heads))
    return pg_op_fail(c, "a last size of %lld is not 3 times %lld heads of one width", (long long)width,
                      (long long)heads);
  if (!mask_fits(c->in[1], b, heads, t, t)) return pg_op_fail(c, "the mask is (T, T), or (B or 1, H or 1, T, T)");
  PG_TRY(pg_out(c, 0, qkv->dtype, 3, (int64_t[]){b, t, width / 3}));
  return pg_out(c, 1, qkv->dtype, 3, (int64_t[]){b, heads, t});
}

static bool self_attention_is_short(const pg_call *c) { return c->in[0]->shape[1] * 8 <= c->in[0]->shape[2] / 3; }

const pg_op pg_op_self_attention = {
    .info = {.name = "self_attention",
             .doc =
                 "attention of every head over a packed projection: queries, keys and values of all heads side by side",
             .source = "Vaswani et al., arXiv 1706.03762, section 3.2.2",
             .inputs = PG_ARGS(
                 {"qkv", 0, "(B, T, 3 W) float: W of queries, of keys, of values, head by head"},
                 {"mask", PG_OPTIONAL | PG_NO_GRAD, "(T, T) or (B|1, H|1, T, T), added to the scores; -inf hides"}),
             .outputs = PG_ARGS({"y", 0, "(B, T, W)"}, {"lse", PG_HIDDEN, "(B, H, T)"}),
             .params = PG_PARAMS(PG_INT("heads", NAN, 1, 65536, "H, which divides W"),
                                 PG_FLAG("causal", 0, "a token sees no later one"),
                                 PG_NUM("scale", 0, 0, 0, "factor of the scores; 0 is 1 / sqrt(W / H)")),
             .samples =
                 PG_SAMPLES("{qkv = randn(2, 5, 24), heads = 2}", "{qkv = randn(2, 4, 9), heads = 1, causal = true}",
                            "{qkv = randn(2, 3, 12), mask = randn(2, 1, 3, 3), heads = 2, scale = 0.7}")},
    .shape = self_attention_shape,
    .needs = PG_NEED_IN(0) | PG_NEED_IN(1) | PG_NEED_OUT(0) | PG_NEED_OUT(1),
    .cheap = self_attention_is_short,
    .again = PG_NEED_OUT(0),
    .forward = PG_REALS(self_attention_forward),
    .backward = PG_REALS(self_attention_backward)};
#endif
