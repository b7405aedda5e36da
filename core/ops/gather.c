/* gather.c - elements picked, or added to, by position along a dimension. For x (outer, n, inner) and index
 * (outer, m, inner):
 *
 *   gather       y[o, i, k] = x[o, index[o, i, k], k]
 *   scatter_add  y = x, then y[o, index[o, i, k], k] += src[o, i, k]
 *
 * Each is the other's backward. Sums run in the order of i; threads share `outer` and blocks of `inner`, which no sum
 * crosses, so that a position named twice gets its terms in a fixed order. */
#ifdef REAL

static void K(add_at)(const plan *p, const int32_t *index, const real *from, real *to) {
  int64_t columns = pg_columns(p->outer, p->inner), blocks = (p->inner + columns - 1) / columns,
          tasks = p->outer * blocks;
#pragma omp parallel for schedule(static) if (tasks > 1 && p->outer * p->m * p->inner > 32768)
  for (int64_t t = 0; t < tasks; t++) {
    if (pg_stopping()) continue;
    int64_t o = t / blocks, begin = t % blocks * columns, end = PG_MIN(begin + columns, p->inner);
    for (int64_t i = 0; i < p->m; i++)
      for (int64_t k = begin; k < end; k++) {
        int64_t at = (o * p->m + i) * p->inner + k;
        to[(o * p->n + index[at]) * p->inner + k] += from[at];
      }
  }
}

static int K(gather_backward)(pg_call *c) {
  plan p;
  PG_TRY(make_plan(c, &p));
  PG_TRY(pg_fill_new(c->grad_in[0], 0));
  K(add_at)(&p, PG_AT(int32_t, c->in[1]), PG_AT(real, c->grad_out[0]), PG_AT(real, c->grad_in[0]));
  return PG_OK;
}

static int K(scatter_add_forward)(pg_call *c) {
  plan p;
  PG_TRY(make_plan(c, &p));
  PG_TRY(pg_copy_new(c->out[0], c->in[0]));
  K(add_at)(&p, PG_AT(int32_t, c->in[1]), PG_AT(real, c->in[2]), PG_AT(real, c->out[0]));
  return PG_OK;
}

#else
#include "gather.h"

#define REALS_FILE "ops/gather.c"
#include "../reals.h"

#define PICK(type)                                                                                                     \
  _Pragma(                                                                                                             \
      "omp parallel for collapse(2) schedule(static) if (p.outer * p.m * p.inner > 32768)") for (int64_t o = 0;        \
                                                                                                 o < p.outer;          \
                                                                                                 o++) for (int64_t i = \
                                                                                                               0;      \
                                                                                                           i < p.m;    \
                                                                                                           i++) {      \
    if (pg_stopping()) continue;                                                                                       \
    for (int64_t k = 0; k < p.inner; k++) {                                                                            \
      int64_t at = (o * p.m + i) * p.inner + k;                                                                        \
      PG_AT(type, to)[at] = PG_AT(type, x)[(o * p.n + index[at]) * p.inner + k];                                       \
    }                                                                                                                  \
  }                                                                                                                    \
  break;

static int pick(pg_call *c, const pg_tensor *x, pg_tensor *to) {
  plan p;
  PG_TRY(make_plan(c, &p));
  const int32_t *index = PG_AT(int32_t, c->in[1]);
  switch (x->dtype) {
  case PG_FLOAT32: PICK(float)
  case PG_FLOAT64: PICK(double)
  case PG_INT32: PICK(int32_t)
  default: PICK(uint8_t)
  }
  return PG_OK;
}

static int gather_forward(pg_call *c) { return pick(c, c->in[0], c->out[0]); }

static int scatter_add_backward(pg_call *c) {
  if (c->grad_in[0]) PG_TRY(pg_copy_new(c->grad_in[0], c->grad_out[0]));
  return c->grad_in[2] ? pick(c, c->grad_out[0], c->grad_in[2]) : PG_OK;
}

static int check_index(const pg_call *c) {
  const pg_tensor *x = c->in[0], *index = c->in[1];
  int32_t dim;
  PG_TRY(pg_dim(c, x, c->p[0].ints[0], &dim));
  if (!x->ndim || index->ndim != x->ndim)
    return pg_op_fail(c, "x and index need equally many dimensions, at least one");
  for (int32_t d = 0; d < x->ndim; d++)
    if (d != dim && index->shape[d] != x->shape[d])
      return pg_op_fail(c, "x is %lld wide in dimension %lld, index is %lld; only dimension %lld may differ",
                        (long long)x->shape[d], (long long)pg_shown(d), (long long)index->shape[d],
                        (long long)pg_shown(dim));
  return pg_check_indices(c, index, x->shape[dim], "index");
}

static int gather_shape(pg_call *c) {
  PG_TRY(check_index(c));
  return pg_out(c, 0, c->in[0]->dtype, c->in[1]->ndim, c->in[1]->shape);
}

static int scatter_add_shape(pg_call *c) {
  if (c->in[2]->dtype != c->in[0]->dtype)
    return pg_fail(PG_ERR_DTYPE, "scatter_add: dtypes differ: x is %s, src is %s", pg_dtype_name(c->in[0]->dtype),
                   pg_dtype_name(c->in[2]->dtype));
  if (!pg_same_shape(c->in[1], c->in[2])) return pg_op_fail(c, "index and src need one shape");
  PG_TRY(check_index(c));
  return pg_out_like(c, 0, c->in[0]);
}

const pg_op pg_op_gather = {
    .info = {.name = "gather",
             .doc = "y[.., i, ..] = x[.., index[.., i, ..], ..] along a dimension, element by element",
             .inputs = PG_ARGS({"x", 0, "any shape and dtype"},
                               {"index", PG_INDEX, "int32, the shape of x but for the dimension"}),
             .outputs = PG_ARGS({"y", 0, "the shape of index"}),
             .params = PG_PARAMS(PG_ONE_DIM("dim", -1, "the dimension")),
             .samples = PG_SAMPLES("{x = randn(3, 4), index = ints(4, 3, 6)}",
                                   "{x = randn(2, 4, 3), index = ints(4, 2, 2, 3), dim = 2}"),
             .method = 1},
    .shape = gather_shape,
    .needs = PG_NEED_IN(1),
    .forward = PG_ANY(gather_forward),
    .backward = PG_REALS(gather_backward)};

const pg_op pg_op_scatter_add = {
    .info = {.name = "scatter_add",
             .doc = "a copy of x with y[.., index[.., i, ..], ..] += src[.., i, ..] along a dimension",
             .inputs = PG_ARGS({"x", 0, "any shape, float"},
                               {"index", PG_INDEX, "int32, the shape of x but for the dimension"},
                               {"src", 0, "the shape of index, the dtype of x"}),
             .outputs = PG_ARGS({"y", 0, "the shape of x"}),
             .params = PG_PARAMS(PG_ONE_DIM("dim", -1, "the dimension")),
             .samples = PG_SAMPLES("{x = randn(3, 4), index = ints(4, 3, 6), src = randn(3, 6)}",
                                   "{x = randn(4, 3), index = ints(4, 5, 3), src = randn(5, 3), dim = 1}"),
             .method = 1},
    .shape = scatter_add_shape,
    .needs = PG_NEED_IN(1),
    .forward = PG_REALS(scatter_add_forward),
    .backward = PG_ANY_REAL(scatter_add_backward)};
#endif
