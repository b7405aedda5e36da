/* embedding.c - one row of a table for each label: y[.., :] = weight[index[..], :].
 *
 * Backward adds each label's gradient to its row, in the order of the index; threads share blocks of columns, so that a
 * label met twice gets both terms in a fixed order. */
#ifdef REAL

static int K(embedding_backward)(pg_call *c) {
  pg_tensor *dw = c->grad_in[0];
  int64_t count = pg_numel(c->in[1]), width = dw->shape[1], columns = pg_columns(1, width);
  const int32_t *at = PG_AT(int32_t, c->in[1]);
  const real *g = PG_AT(real, c->grad_out[0]);
  PG_TRY(pg_fill_new(dw, 0));
#pragma omp parallel for schedule(static) if (width > columns && count * width > 32768)
  for (int64_t begin = 0; begin < width; begin += columns) {
    int64_t end = PG_MIN(begin + columns, width);
    for (int64_t i = 0; i < count; i++) {
      real *row = PG_AT(real, dw) + at[i] * width;
      for (int64_t k = begin; k < end; k++) row[k] += g[i * width + k];
    }
  }
  return PG_OK;
}

#else
#include "../op.h"
#define REALS_FILE "ops/embedding.c"
#include "../reals.h"

static int embedding_forward(pg_call *c) {
  int64_t count = pg_numel(c->in[1]);
  size_t bytes = pg_dtype_bytes[c->in[0]->dtype] * (size_t)c->in[0]->shape[1];
  const char *weight = pg_data(c->in[0]);
  char *y = pg_data(c->out[0]);
  const int32_t *at = PG_AT(int32_t, c->in[1]);
#pragma omp parallel for schedule(static) if (count * (int64_t)bytes > 65536)
  for (int64_t i = 0; i < count; i++)
    if (!pg_stopping()) memcpy(y + (size_t)i * bytes, weight + (size_t)at[i] * bytes, bytes);
  return PG_OK;
}

static int embedding_shape(pg_call *c) {
  const pg_tensor *weight = c->in[0], *index = c->in[1];
  int64_t shape[PG_MAX_DIMS];
  if (weight->ndim != 2) return pg_op_fail(c, "weight must be (V, D), one row a label");
  if (index->ndim == PG_MAX_DIMS) return pg_op_fail(c, "more than %d dimensions", PG_MAX_DIMS);
  PG_TRY(pg_check_indices(c, index, weight->shape[0], "index"));
  memcpy(shape, index->shape, sizeof shape);
  shape[index->ndim] = weight->shape[1];
  return pg_out(c, 0, weight->dtype, index->ndim + 1, shape);
}

const pg_op pg_op_embedding = {
    .info = {.name = "embedding",
             .doc = "the row of weight that each label names",
             .inputs = PG_ARGS({"weight", 0, "(V, D) float"}, {"index", PG_INDEX, "(...) int32 labels, at most V"}),
             .outputs = PG_ARGS({"y", 0, "(..., D)"}),
             .samples = PG_SAMPLES("{weight = randn(5, 3), index = ints(5, 7)}",
                                   "{weight = randn(4, 2), index = ints(4, 2, 3)}")},
    .shape = embedding_shape,
    .needs = PG_NEED_IN(1),
    .forward = PG_ANY_REAL(embedding_forward),
    .backward = PG_REALS(embedding_backward)};
#endif
