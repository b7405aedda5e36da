/* matmul.cu - C = A B for matrices and batches of them, leading dimensions broadcast, by cuBLAS.
 *
 * The batch dimensions of both operands are merged where they run on; the longest that is left is one strided-batched
 * call, the host walks the others. A matrix shared by a whole batch of contiguous ones makes a single larger product:
 * its rows are stacked, or in dB = A^T dC what is summed over. A transposed operand goes to cuBLAS as it is; any other
 * layout is copied first. The gradient of an operand that was stretched sums over the batch in order. */
#include "../cuda/cuda.h"

typedef struct lay { /* how GEMM reads the last two dimensions */
  bool transposed;
  int64_t ld;
} lay;

static bool readable(const pg_tensor *t, lay *l) {
  int64_t rows = t->shape[t->ndim - 2], cols = t->shape[t->ndim - 1], sr = t->stride[t->ndim - 2],
          sc = t->stride[t->ndim - 1];
  if ((sc == 1 || cols == 1) && (sr >= cols || rows == 1))
    return *l = {false, PG_MAX(rows == 1 ? cols : sr, (int64_t)1)}, true;
  if ((sr == 1 || rows == 1) && (sc >= rows || cols == 1))
    return *l = {true, PG_MAX(cols == 1 ? rows : sc, (int64_t)1)}, true;
  return false;
}

static int hold_readable(pg_tensor *t, pg_held *held, lay *l) {
  if (readable(t, l)) return held->t = pg_retain(t), PG_OK;
  PG_TRY(pg_contiguous(t, &held->t));
  readable(held->t, l);
  return PG_OK;
}

/* ---- batches ---------------------------------------------------------------------------------------------------- */

enum { A, B, C }; /* the operands and the result of one product */

typedef struct batches { /* the dimensions that products repeat over: what each tensor advances by, 0 where it is shared
                          */
  int32_t ndim;
  int64_t count, shape[PG_MAX_DIMS], step[3][PG_MAX_DIMS];
} batches;

/* The stride of t along batch dimension i of ndim, 0 where t is stretched. */
static int64_t batch_stride(const pg_tensor *t, int32_t i, int32_t ndim) {
  int32_t own = i - (ndim + 2 - t->ndim);
  return own < 0 || t->shape[own] == 1 ? 0 : t->stride[own];
}

static batches batches_of(int32_t ndim, const int64_t *shape, const pg_tensor *const t[3]) {
  batches s = {};
  s.count = 1;
  for (int32_t i = 0; i < ndim; i++) {
    s.count *= shape[i];
    if (shape[i] == 1) continue;
    int64_t step[3];
    bool runs_on = s.ndim > 0;
    for (int k = 0; k < 3; k++) {
      step[k] = batch_stride(t[k], i, ndim);
      runs_on = runs_on && s.step[k][s.ndim - 1] == step[k] * shape[i];
    }
    int32_t d = runs_on ? s.ndim - 1 : s.ndim++;
    s.shape[d] = runs_on ? s.shape[d] * shape[i] : shape[i];
    for (int k = 0; k < 3; k++) s.step[k][d] = step[k];
  }
  return s;
}

/* ---- products --------------------------------------------------------------------------------------------------- */

typedef struct product { /* C (m, n) = op(A) (m, k) op(B) (k, n), C contiguous */
  lay a, b;
  int64_t m, n, k;
  batches over;
} product;

/* One dimension of the batch that GEMM itself can run through becomes a longer m or k. */
static void fold(product *p) {
  batches *s = &p->over;
  if (s->ndim != 1) return;
  int64_t count = s->shape[0], a = s->step[A][0], b = s->step[B][0], c = s->step[C][0];
  if (!p->a.transposed && b == 0 && a == p->m * p->a.ld && c == p->m * p->n)
    p->m *= count, s->ndim = 0;
  else if (p->a.transposed && !p->b.transposed && c == 0 && a == p->k * p->a.ld && b == p->k * p->b.ld)
    p->k *= count, s->ndim = 0;
}

template <class T> static int multiply(const product *p, const T *a, const T *b, T *c) {
  const batches *s = &p->over;
  int32_t at_once = -1; /* results must not overlap within one call */
  int64_t others = 1, count = 1;
  for (int32_t d = 0; d < s->ndim; d++)
    if (s->step[C][d] && (at_once < 0 || s->shape[d] > s->shape[at_once])) at_once = d;
  if (at_once >= 0) count = s->shape[at_once];
  for (int32_t d = 0; d < s->ndim; d++)
    if (d != at_once) others *= s->shape[d];
  for (int64_t i = 0; i < others; i++) {
    int64_t rest = i, at[3] = {0, 0, 0};
    bool again = false; /* a result that has been written already is added to */
    for (int32_t d = s->ndim - 1; d >= 0; d--) {
      if (d == at_once) continue;
      for (int k = 0; k < 3; k++) at[k] += rest % s->shape[d] * s->step[k][d];
      again = again || (!s->step[C][d] && rest % s->shape[d]);
      rest /= s->shape[d];
    }
    int64_t step[3] = {0, 0, 0};
    for (int k = 0; k < 3 && at_once >= 0; k++) step[k] = s->step[k][at_once];
    PG_TRY(pg_cuda_gemm_batched<T>(p->a.transposed, p->b.transposed, p->m, p->n, p->k, 1, a + at[A], p->a.ld, step[A],
                                   b + at[B], p->b.ld, step[B], again, c + at[C], p->n, step[C], count));
  }
  return PG_OK;
}

enum { FILLS = 1 << 16 }; /* elements of a result from which one product keeps the device busy */

/* t = op(a) op(b) summed over the batch dimensions along which t is shared. */
template <class T>
static int multiply_into(pg_tensor *t, lay la, const pg_tensor *a, lay lb, const pg_tensor *b, int64_t m, int64_t n,
                         int64_t k, int32_t ndim, const int64_t *shape) {
  const pg_tensor *tensors[3] = {a, b, t};
  product p = {la, lb, m, n, k, batches_of(ndim, shape, tensors)};
  if (!pg_numel(t)) return PG_OK;
  if (!p.over.count) return pg_fill(t, 0);
  fold(&p);
  bool shared = false;
  for (int32_t d = 0; d < p.over.ndim; d++) shared = shared || !p.over.step[C][d];
  if (!shared || m * n >= FILLS) return multiply(&p, PG_AT(const T, a), PG_AT(const T, b), PG_AT(T, t));
  /* small matrices, many to a sum: all of them at once, then the sum */
  pg_held wide;
  int64_t full[PG_MAX_DIMS];
  memcpy(full, shape, sizeof(int64_t) * (size_t)ndim);
  full[ndim] = m, full[ndim + 1] = n;
  PG_TRY(pg_new(t->dtype, PG_CUDA, ndim + 2, full, &wide.t));
  PG_TRY(multiply_into<T>(wide.t, la, a, lb, b, m, n, k, ndim, shape));
  return pg_cuda_sum_to(wide.t, t);
}

template <class T> static int forward(pg_call *c) {
  pg_tensor *y = c->out[0];
  pg_held a, b;
  lay la, lb;
  PG_TRY(hold_readable(c->in[0], &a, &la));
  PG_TRY(hold_readable(c->in[1], &b, &lb));
  return multiply_into<T>(y, la, a.t, lb, b.t, y->shape[y->ndim - 2], y->shape[y->ndim - 1], a.t->shape[a.t->ndim - 1],
                          y->ndim - 2, y->shape);
}

template <class T> static int backward(pg_call *c) {
  pg_tensor *g = c->grad_out[0];
  pg_held a, b;
  lay la, lb;
  PG_TRY(hold_readable(c->in[0], &a, &la));
  PG_TRY(hold_readable(c->in[1], &b, &lb));
  int64_t m = g->shape[g->ndim - 2], n = g->shape[g->ndim - 1], k = a.t->shape[a.t->ndim - 1];
  lay lg = {false, PG_MAX(n, (int64_t)1)}, at = {!la.transposed, la.ld}, bt = {!lb.transposed, lb.ld};
  if (c->grad_in[0]) PG_TRY(multiply_into<T>(c->grad_in[0], lg, g, bt, b.t, m, k, n, g->ndim - 2, g->shape));
  if (c->grad_in[1]) PG_TRY(multiply_into<T>(c->grad_in[1], at, a.t, lg, g, k, n, m, g->ndim - 2, g->shape));
  return PG_OK;
}

PG_CUDA_OP(matmul, {forward<float>, forward<double>}, {backward<float>, backward<double>})
