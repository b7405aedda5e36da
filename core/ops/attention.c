/* attention.c - softmax(scale q k^T + mask) v, fused.
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

static int K(attention_all)(pg_call *c, int backward) {
  sizes z = sizes_of(c);
  pg_tensor *held[3] = {0};
  int status = PG_OK;
  for (int i = 0; i < 3 && !status; i++) /* views of one packed projection are read where they stand */
    status = rows_apart(c->in[i]) ? (held[i] = pg_retain(c->in[i]), PG_OK) : pg_contiguous(c->in[i], &held[i]);
  int64_t tile = z.t <= 2 * TILE ? z.t : TILE; /* one row too many should not cost a pass over the keys */
  size_t strip = sizeof(real) * (size_t)(PG_MAX(tile, 1) * PG_MAX(z.s, 1)), tasks = (size_t)(z.b * z.h);
  int threads = (int)PG_MIN((int64_t)pg_threads(), PG_MAX((int64_t)tasks, 1));
  real *scratch = status ? NULL : pg_scratch_alloc(strip * 2 * (size_t)threads);
  if (!status && !scratch) status = pg_fail(PG_ERR_MEMORY, "attention: out of memory");
  if (status) goto done;
  const pg_tensor *q = held[0], *k = held[1], *v = held[2], *mask = c->in[3];
  int64_t ldq = PG_MAX(q->stride[2], z.d), ldk = PG_MAX(k->stride[2], z.d), ldv = PG_MAX(v->stride[2], z.e);
  real scale = (real)z.scale;
  if ((status = pg_blas_fits(6, (int64_t[]){z.s, z.d, z.e, ldq, ldk, ldv}))) goto done;
  for (int i = 1; i < 3 && backward && !z.t; i++) /* no query reads them */
    if (c->grad_in[i]) memset(PG_AT(real, c->grad_in[i]), 0, sizeof(real) * (size_t)pg_numel(c->grad_in[i]));
  double work = (double)tasks * (double)z.t * (double)z.s * (double)(z.d + z.e);
#pragma omp parallel for schedule(static) num_threads(threads) if (work > 1e6)
  for (int64_t task = 0; task < z.b * z.h; task++) {
    int64_t b = task / z.h, h = task % z.h;
    real *p = scratch + (size_t)thread_number() * 2 * (size_t)(tile * z.s), *dp = p + tile * z.s;
    const real *qs = PG_AT(real, q) + b * q->stride[0] + h * q->stride[1],
               *ks = PG_AT(real, k) + b * k->stride[0] + h * k->stride[1];
    const real *vs = PG_AT(real, v) + b * v->stride[0] + h * v->stride[1];
    real *y = PG_AT(real, c->out[0]) + task * z.t * z.e, *lse = PG_AT(real, c->out[1]) + task * z.t;
    for (int64_t t0 = 0; t0 < z.t && !pg_stopping(); t0 += tile) {
      int64_t rows = PG_MIN(tile, z.t - t0);
      K(pg_gemm)(0, 1, rows, z.s, z.d, scale, qs + t0 * ldq, ldq, ks, ldk, 0, p, z.s);
      for (int64_t t = 0; t < rows; t++) {
        const real *m = mask ? PG_AT(real, mask) + b * z.mask_b + h * z.mask_h + (t0 + t) * z.s : NULL;
        int64_t visible = z.causal ? PG_MAX(0, PG_MIN(z.s, t0 + t + 1 + z.s - z.t)) : z.s;
        K(weigh)(z.s, p + t * z.s, m, visible, lse + t0 + t, backward);
      }
      if (!backward) {
        K(pg_gemm)(0, 0, rows, z.e, z.s, 1, p, z.s, vs, ldv, 0, y + t0 * z.e, z.e);
        continue;
      }
      const real *dy = PG_AT(real, c->grad_out[0]) + task * z.t * z.e + t0 * z.e;
      if (c->grad_in[2]) K(pg_gemm)
      (1, 0, z.s, z.e, rows, 1, p, z.s, dy, z.e, t0 > 0, PG_AT(real, c->grad_in[2]) + task * z.s * z.e, z.e);
      K(pg_gemm)(0, 1, rows, z.s, z.e, 1, dy, z.e, vs, ldv, 0, dp, z.s);
      for (int64_t t = 0; t < rows; t++) {
        K(score_grads)(z.s, p + t * z.s, dp + t * z.s, z.e, dy + t * z.e, y + (t0 + t) * z.e);
      }
      if (c->grad_in[0]) K(pg_gemm)
      (0, 0, rows, z.d, z.s, scale, dp, z.s, ks, ldk, 0, PG_AT(real, c->grad_in[0]) + task * z.t * z.d + t0 * z.d, z.d);
      if (c->grad_in[1]) K(pg_gemm)
      (1, 0, z.s, z.d, rows, scale, dp, z.s, qs + t0 * ldq, ldq, t0 > 0, PG_AT(real, c->grad_in[1]) + task * z.s * z.d,
       z.d);
    }
  }
done:
  pg_scratch_free(scratch, strip * 2 * (size_t)threads);
  for (int i = 0; i < 3; i++) pg_release(held[i]);
  return status;
}

static int K(attention_forward)(pg_call *c) { return K(attention_all)(c, 0); }
static int K(attention_backward)(pg_call *c) { return K(attention_all)(c, 1); }

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

static sizes sizes_of(const pg_call *c) {
  const pg_tensor *q = c->in[0], *k = c->in[1], *v = c->in[2], *mask = c->in[3];
  sizes z = {q->shape[0], q->shape[1], q->shape[2], k->shape[2], q->shape[3],
             v->shape[3], 0,           0,           c->p[1].num, c->p[0].ints[0]};
  if (z.scale == 0) z.scale = 1 / sqrt((double)PG_MAX(z.d, 1));
  if (mask && mask->ndim == 4) {
    z.mask_h = mask->shape[1] == 1 ? 0 : z.t * z.s;
    z.mask_b = mask->shape[0] == 1 ? 0 : mask->shape[1] * z.t * z.s;
  }
  return z;
}

/* Whether GEMM can read the rows where they stand: not those of an expanded tensor, which are all one. */
static bool rows_apart(const pg_tensor *t) {
  return t->stride[3] == 1 && (t->shape[2] == 1 || t->stride[2] >= t->shape[3]);
}

#define REALS_FILE "ops/attention.c"
#include "../reals.h"

static int attention_shape(pg_call *c) {
  const pg_tensor *q = c->in[0], *k = c->in[1], *v = c->in[2], *mask = c->in[3];
  if (q->ndim != 4 || k->ndim != 4 || v->ndim != 4)
    return pg_op_fail(c, "takes (B, H, T, D), (B, H, S, D), (B, H, S, E)");
  if (q->shape[3] != k->shape[3] || k->shape[2] != v->shape[2])
    return pg_op_fail(c, "widths of q and k, or lengths of k and v, differ");
  for (int i = 0; i < 2; i++)
    if (q->shape[i] != k->shape[i] || q->shape[i] != v->shape[i]) return pg_op_fail(c, "batches or heads differ");
  if (mask) {
    bool fits = mask->ndim == 2 || (mask->ndim == 4 && (mask->shape[0] == 1 || mask->shape[0] == q->shape[0]) &&
                                    (mask->shape[1] == 1 || mask->shape[1] == q->shape[1]));
    if (!fits || mask->shape[mask->ndim - 2] != q->shape[2] || mask->shape[mask->ndim - 1] != k->shape[2])
      return pg_op_fail(c, "the mask is (T, S), or (B or 1, H or 1, T, S)");
  }
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
#endif
