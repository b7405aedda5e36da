/* index.c - rows picked by position: y[.., i, ..] = x[.., index_i, ..] along a dimension.
 *
 * Backward adds each picked row's gradient to where it came from, in the order of the index; threads share blocks of
 * columns, so that a position picked twice gets both terms in a fixed order. */
#ifdef REAL

static int K(index_backward)(pg_call *c) {
  int32_t dim;
  int64_t outer, n, inner, count = pg_numel(c->in[1]);
  pg_tensor *dx = c->grad_in[0];
  PG_TRY(pg_dim(c, dx, c->p[0].ints[0], &dim));
  PG_TRY(pg_fill_new(dx, 0));
  pg_around(dx, dim, &outer, &n, &inner);
  const int32_t *at = PG_AT(int32_t, c->in[1]);
  const real *g = PG_AT(real, c->grad_out[0]);
  real *to = PG_AT(real, dx);
  int64_t columns = pg_columns(outer, inner), blocks = (inner + columns - 1) / columns, tasks = outer * blocks;
#pragma omp parallel for schedule(static) if (tasks > 1 && outer * count * inner > 32768)
  for (int64_t t = 0; t < tasks; t++) {
    if (pg_stopping()) continue;
    int64_t o = t / blocks, begin = t % blocks * columns, end = PG_MIN(begin + columns, inner);
    for (int64_t i = 0; i < count; i++) {
      real *row = to + (o * n + at[i]) * inner;
      const real *from = g + (o * count + i) * inner;
      for (int64_t k = begin; k < end; k++) row[k] += from[k];
    }
  }
  return PG_OK;
}

#else
#include "../op.h"
#define REALS_FILE "ops/index.c"
#include "../reals.h"

static int index_forward(pg_call *c) {
  int32_t dim;
  int64_t outer, n, inner, count = pg_numel(c->in[1]);
  PG_TRY(pg_dim(c, c->in[0], c->p[0].ints[0], &dim));
  pg_around(c->in[0], dim, &outer, &n, &inner);
  size_t bytes = pg_dtype_bytes[c->in[0]->dtype] * (size_t)inner;
  const char *x = pg_data(c->in[0]);
  char *y = pg_data(c->out[0]);
  const int32_t *at = PG_AT(int32_t, c->in[1]);
#pragma omp parallel for schedule(static) if (outer * count * (int64_t)bytes > 65536)
  for (int64_t r = 0; r < outer * count; r++)
    if (!pg_stopping()) memcpy(y + (size_t)r * bytes, x + (size_t)(r / count * n + at[r % count]) * bytes, bytes);
  return PG_OK;
}

static int index_shape(pg_call *c) {
  int32_t dim;
  int64_t shape[PG_MAX_DIMS];
  PG_TRY(pg_dim(c, c->in[0], c->p[0].ints[0], &dim));
  if (c->in[1]->ndim != 1 || !c->in[0]->ndim) return pg_op_fail(c, "takes a tensor and a list of positions");
  PG_TRY(pg_check_indices(c, c->in[1], c->in[0]->shape[dim], "index"));
  memcpy(shape, c->in[0]->shape, sizeof shape);
  shape[dim] = c->in[1]->shape[0];
  return pg_out(c, 0, c->in[0]->dtype, c->in[0]->ndim, shape);
}

const pg_op pg_op_index = {
    .info = {.name = "index",
             .doc = "the positions `index` of one dimension, in that order",
             .inputs = PG_ARGS({"x", 0, "any shape and dtype"}, {"index", PG_INDEX, "(n) int32"}),
             .outputs = PG_ARGS({"y", 0, "x with n in place of the dimension's size"}),
             .params = PG_PARAMS(PG_ONE_DIM("dim", 0, "the dimension")),
             .samples = PG_SAMPLES("{x = randn(4, 3), index = ints(4, 6)}",
                                   "{x = randn(2, 4, 3), index = ints(4, 5), dim = 2}")},
    .shape = index_shape,
    .needs = PG_NEED_IN(1),
    .forward = PG_ANY(index_forward),
    .backward = PG_REALS(index_backward)};
#endif
