/* matmul.c - C = A B for matrices and batches of them, leading dimensions broadcast.
 *
 * Backward: dA = dC B^T, dB = A^T dC, summed over the batch dimensions along which an operand was stretched. A
 * transposed operand goes to GEMM as it is; any other layout is copied first. */
#ifdef REAL

/* One operand's matrix: where it is and how GEMM reads it. */
static int K(product)(const plan *s, const pg_tensor *a, const pg_tensor *b, real *c, bool ta, bool tb, int64_t m,
                      int64_t n, int64_t k, const int64_t *pick_a, const int64_t *pick_b, const int64_t *pick_c) {
  lay la = lay_of(a), lb = lay_of(b);
  double work = (double)m * (double)n * (double)k;
  PG_TRY(pg_blas_fits(5, (int64_t[]){m, n, k, la.ld, lb.ld}));
#pragma omp parallel for schedule(static) if (!pick_c && s->batch > 1 && work < 2e6 && work * (double)s->batch > 1e6)
  for (int64_t i = 0; i < s->batch; i++) {
    if (i && pg_stopping()) continue;
    K(pg_gemm)
    (ta != la.transposed, tb != lb.transposed, m, n, k, 1, PG_AT(real, a) + pick_a[i], la.ld,
     PG_AT(real, b) + pick_b[i], lb.ld, pick_c ? 1 : 0, c + (pick_c ? pick_c[i] : i * m * n), n);
  }
  return PG_OK;
}

static int K(matmul_forward)(pg_call *c) {
  plan s;
  PG_TRY(plan_of(c, &s));
  int status = K(product)(&s, s.a, s.b, PG_AT(real, c->out[0]), false, false, s.m, s.n, s.k, s.at_a, s.at_b, NULL);
  return plan_free(&s), status;
}

static int K(matmul_backward)(pg_call *c) {
  plan s;
  PG_TRY(plan_of(c, &s));
  pg_tensor *g = c->grad_out[0];
  int64_t shape[3] = {s.batch, s.m, s.n}, stride[3] = {s.m * s.n, s.n, 1};
  pg_tensor *flat;
  int status = pg_view(g, 3, shape, stride, g->offset, &flat);
  if (status) return plan_free(&s), status;
  int64_t *at_g = s.at_g;
  if (c->grad_in[0] && !(status = pg_fill_new(c->grad_in[0], 0)))
    status = K(product)(&s, flat, s.b, PG_AT(real, c->grad_in[0]), false, true, s.m, s.k, s.n, at_g, s.at_b, s.to_a);
  if (c->grad_in[1] && !status && !(status = pg_fill_new(c->grad_in[1], 0)))
    status = K(product)(&s, s.a, flat, PG_AT(real, c->grad_in[1]), true, false, s.k, s.n, s.m, s.at_a, at_g, s.to_b);
  pg_release(flat);
  return plan_free(&s), status;
}

#else
#include "../op.h"

typedef struct lay { /* how GEMM reads the last two dimensions */
  bool transposed;
  int64_t ld;
} lay;

typedef struct plan {
  int64_t batch, m, n, k;
  pg_tensor *a, *b;            /* the operands, copied where GEMM could not read them */
  int64_t *at_a, *at_b, *at_g; /* where each batch's matrices start, from the tensor's first element */
  int64_t *to_a, *to_b;        /* where their gradients start, in contiguous tensors of the operands' shapes */
} plan;

static bool readable(const pg_tensor *t, lay *l) {
  int64_t rows = t->shape[t->ndim - 2], cols = t->shape[t->ndim - 1], sr = t->stride[t->ndim - 2],
          sc = t->stride[t->ndim - 1];
  if ((sc == 1 || cols == 1) && (sr >= cols || rows == 1))
    return *l = (lay){false, PG_MAX(rows == 1 ? cols : sr, 1)}, true;
  if ((sr == 1 || rows == 1) && (sc >= rows || cols == 1))
    return *l = (lay){true, PG_MAX(cols == 1 ? rows : sc, 1)}, true;
  return false;
}

static lay lay_of(const pg_tensor *t) {
  lay l = {false, 1};
  readable(t, &l);
  return l;
}

static void plan_free(plan *s) {
  pg_release(s->a), pg_release(s->b);
  free(s->at_a);
}

static int plan_of(const pg_call *c, plan *s) {
  const pg_tensor *a = c->in[0], *b = c->in[1];
  int64_t shape[PG_MAX_DIMS];
  int32_t ndim = PG_MAX(a->ndim, b->ndim) - 2;
  lay l;
  *s = (plan){.batch = 1, .m = a->shape[a->ndim - 2], .k = a->shape[a->ndim - 1], .n = b->shape[b->ndim - 1]};
  for (int32_t i = 0; i < ndim; i++) {
    int32_t ia = i - (ndim + 2 - a->ndim), ib = i - (ndim + 2 - b->ndim);
    int64_t x = ia < 0 ? 1 : a->shape[ia], y = ib < 0 ? 1 : b->shape[ib];
    shape[i] = x == 1 ? y : x;
    s->batch *= shape[i];
  }
  int status = readable(a, &l) ? (s->a = pg_retain((pg_tensor *)a), PG_OK) : pg_contiguous((pg_tensor *)a, &s->a);
  if (!status)
    status = readable(b, &l) ? (s->b = pg_retain((pg_tensor *)b), PG_OK) : pg_contiguous((pg_tensor *)b, &s->b);
  int64_t count = PG_MAX(s->batch, 1);
  if (!status && !(s->at_a = calloc((size_t)count * 5, sizeof *s->at_a)))
    status = pg_fail(PG_ERR_MEMORY, "matmul: out of memory");
  if (status) return plan_free(s), status;
  s->at_b = s->at_a + count, s->at_g = s->at_b + count, s->to_a = s->at_g + count, s->to_b = s->to_a + count;
  for (int64_t r = 0; r < s->batch; r++) {
    int64_t rest = r, step_a = s->m * s->k, step_b = s->k * s->n;
    s->at_g[r] = r * s->m * s->n;
    for (int32_t i = ndim - 1; i >= 0; i--) {
      int64_t at = rest % shape[i];
      int32_t ia = i - (ndim + 2 - a->ndim), ib = i - (ndim + 2 - b->ndim);
      rest /= shape[i];
      if (ia >= 0 && a->shape[ia] > 1) s->at_a[r] += at * s->a->stride[ia], s->to_a[r] += at * step_a;
      if (ib >= 0 && b->shape[ib] > 1) s->at_b[r] += at * s->b->stride[ib], s->to_b[r] += at * step_b;
      if (ia >= 0) step_a *= a->shape[ia];
      if (ib >= 0) step_b *= b->shape[ib];
    }
  }
  return PG_OK;
}

#define REALS_FILE "ops/matmul.c"
#include "../reals.h"

static int matmul_shape(pg_call *c) {
  const pg_tensor *a = c->in[0], *b = c->in[1];
  if (a->ndim < 2 || b->ndim < 2) return pg_op_fail(c, "takes matrices, or batches of them");
  if (a->shape[a->ndim - 1] != b->shape[b->ndim - 2]) return pg_op_fail(c, "inner sizes differ");
  int32_t ndim = PG_MAX(a->ndim, b->ndim);
  int64_t shape[PG_MAX_DIMS];
  for (int32_t i = 0; i < ndim - 2; i++) {
    int32_t ia = i - (ndim - a->ndim), ib = i - (ndim - b->ndim);
    int64_t x = ia < 0 ? 1 : a->shape[ia], y = ib < 0 ? 1 : b->shape[ib];
    if (x != y && x != 1 && y != 1) return pg_op_fail(c, "batch sizes do not broadcast");
    shape[i] = x == 1 ? y : x;
  }
  shape[ndim - 2] = a->shape[a->ndim - 2], shape[ndim - 1] = b->shape[b->ndim - 1];
  return pg_out(c, 0, a->dtype, ndim, shape);
}

const pg_op pg_op_matmul = {
    .info = {.name = "matmul",
             .doc = "matrix product, batched over leading dimensions, which broadcast",
             .inputs = PG_ARGS({"a", PG_STRIDED, "(..., M, K) float"}, {"b", PG_STRIDED, "(..., K, N) float"}),
             .outputs = PG_ARGS({"c", 0, "(..., M, N)"}),
             .samples =
                 PG_SAMPLES("{a = randn(3, 4), b = randn(4, 5)}", "{a = randn(2, 3, 4), b = randn(2, 4, 5)}",
                            "{a = randn(2, 3, 4), b = randn(4, 2)}", "{a = randn(2, 1, 3, 4), b = randn(3, 4, 2)}"),
             .method = 1},
    .shape = matmul_shape,
    .needs = PG_NEED_IN(0) | PG_NEED_IN(1),
    .again = PG_NEED_IN(0) | PG_NEED_IN(1),
    .forward = PG_REALS(matmul_forward),
    .backward = PG_REALS(matmul_backward)};
#endif
