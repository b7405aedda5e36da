/* linear.c - y = x W^T + b over the last dimension; W is (out, in), as the field stores it.
 *
 * Backward: dx = dy W, dW = dy^T x, db = sum over rows of dy. Under autocast the operands of all
 * three products are rounded to bfloat16 (gemm_bf16.c); db is summed from dy as it is. */
#ifdef REAL

static int K(linear_forward)(pg_call *c) {
  int64_t in = c->in[1]->shape[1], out = c->in[1]->shape[0], rows = rows_of(c->in[0]);
  return K(affine)(rows, out, in, PG_AT(real, c->in[0]), PG_AT(real, c->in[1]), c->in[2] ? PG_AT(real, c->in[2]) : NULL,
                   PG_AT(real, c->out[0]));
}

PG_SIMD static void K(add_row)(int64_t n, const real *restrict x, real *restrict sum) {
  for (int64_t i = 0; i < n; i++) sum[i] += x[i];
}

/* db, where nobody made it on the way: each thread has its own columns, so that the order of the sums is fixed. */
static void K(sum_rows)(int64_t rows, int64_t out, const real *dy, real *db) {
  enum { BLOCK = 128 };
  memset(db, 0, sizeof(real) * (size_t)out);
#pragma omp parallel for schedule(static) if (rows * out > 32768)
  for (int64_t from = 0; from < out; from += BLOCK)
    for (int64_t r = 0; r < rows && !pg_stopping(); r++)
      K(add_row)(PG_MIN(BLOCK, out - from), dy + r * out + from, db + from);
}

static int K(linear_backward)(pg_call *c) {
  int64_t in = c->in[1]->shape[1], out = c->in[1]->shape[0], rows = rows_of(c->in[0]);
  const real *dy = PG_AT(real, c->grad_out[0]);
  real *dw = c->grad_in[1] ? PG_AT(real, c->grad_in[1]) : NULL;
  real *db = c->in[2] && c->grad_in[2] ? PG_AT(real, c->grad_in[2]) : NULL;
  if (c->grad_in[0])
    PG_TRY(K(product)(0, 0, rows, in, out, 1, dy, out, PG_AT(real, c->in[1]), in, 0, PG_AT(real, c->grad_in[0]), in));
  if (dw && db && K(both)(rows, out, in, dy, PG_AT(real, c->in[0]), dw, db)) return PG_OK;
  if (dw) PG_TRY(K(product)(1, 0, out, in, rows, 1, dy, out, PG_AT(real, c->in[0]), in, 0, dw, in));
  if (db) K(sum_rows)(rows, out, dy, db);
  return PG_OK;
}

#else
#include "../op.h"

static int64_t rows_of(const pg_tensor *x) {
  int64_t rows = 1;
  for (int32_t i = 0; i < x->ndim - 1; i++) rows *= x->shape[i];
  return rows;
}

/* The products of call c; `both`: dW and db at once, where that can be. */
#define product_f32 (c->bf16 ? pg_gemm_bf16 : pg_gemm_f32)
#define product_f64 pg_gemm_f64
#define affine_f32 (c->bf16 ? pg_affine_bf16 : pg_affine_f32)
#define affine_f64 pg_affine_f64
#define both_f32(...) (!c->bf16 && pg_outer_avx512(__VA_ARGS__))
#define both_f64(...) false

#define REALS_FILE "ops/linear.c"
#include "../reals.h"

static int linear_shape(pg_call *c) {
  const pg_tensor *x = c->in[0], *w = c->in[1], *b = c->n_in > 2 ? c->in[2] : NULL;
  if (!x->ndim || w->ndim != 2 || x->shape[x->ndim - 1] != w->shape[1])
    return pg_op_fail(c, "x's last size must be weight's second");
  if (b && (b->ndim != 1 || b->shape[0] != w->shape[0])) return pg_op_fail(c, "bias must have weight's first size");
  int64_t shape[PG_MAX_DIMS];
  memcpy(shape, x->shape, sizeof shape);
  shape[x->ndim - 1] = w->shape[0];
  return pg_out(c, 0, x->dtype, x->ndim, shape);
}

const pg_op pg_op_linear = {
    .info = {.name = "linear",
             .doc = "x W^T + b over the last dimension",
             .inputs = PG_ARGS({"x", 0, "(..., in) float"}, {"weight", 0, "(out, in)"}, {"bias", PG_OPTIONAL, "(out)"}),
             .outputs = PG_ARGS({"y", 0, "(..., out)"}),
             .samples = PG_SAMPLES("{x = randn(3, 4), weight = randn(5, 4), bias = randn(5)}",
                                   "{x = randn(2, 3, 4), weight = randn(2, 4)}"),
             .method = 1},
    .shape = linear_shape,
    .needs = PG_NEED_IN(0) | PG_NEED_IN(1),
    .again = PG_NEED_IN(0), /* an activation or LayerNorm before it is not kept twice */
    .forward = PG_REALS(linear_forward),
    .backward = PG_REALS(linear_backward)};
#endif
