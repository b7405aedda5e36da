/* join.c - tensors laid end to end along a dimension. Backward hands each one its own stretch of the gradient. */
#include "../op.h"

/* Runs over the pieces: each is a narrow view of `whole`, copied from or to the list's tensors. */
static int cat_pieces(const pg_call *c, pg_tensor *whole, pg_tensor **parts, bool into_whole) {
  int32_t dim;
  PG_TRY(pg_dim(c, c->in[0], c->p[0].ints[0], &dim));
  int64_t start = 0, shape[PG_MAX_DIMS];
  memcpy(shape, whole->shape, sizeof shape);
  for (int32_t i = 0; i < c->n_in; start += c->in[i]->shape[dim], i++) {
    pg_tensor *view;
    if (!parts[i]) continue;
    shape[dim] = c->in[i]->shape[dim];
    PG_TRY(pg_view(whole, whole->ndim, shape, whole->stride, whole->offset + start * whole->stride[dim], &view));
    int status = into_whole ? pg_copy_new(view, parts[i]) : pg_copy_new(parts[i], view);
    pg_release(view);
    PG_TRY(status);
  }
  return PG_OK;
}

static int cat_forward(pg_call *c) { return cat_pieces(c, c->out[0], c->in, true); }
static int cat_backward(pg_call *c) { return cat_pieces(c, c->grad_out[0], c->grad_in, false); }

static int cat_shape(pg_call *c) {
  int32_t dim;
  int64_t shape[PG_MAX_DIMS];
  PG_TRY(pg_dim(c, c->in[0], c->p[0].ints[0], &dim));
  if (!c->in[0]->ndim) return pg_op_fail(c, "scalars have no dimension to join along");
  memcpy(shape, c->in[0]->shape, sizeof shape);
  for (int32_t i = 1; i < c->n_in; i++) {
    const pg_tensor *t = c->in[i];
    if (t->dtype != c->in[0]->dtype)
      return pg_fail(PG_ERR_DTYPE, "cat: dtypes differ: tensor %lld is %s, tensor %lld is %s", (long long)pg_shown(0),
                     pg_dtype_name(c->in[0]->dtype), (long long)pg_shown(i), pg_dtype_name(t->dtype));
    if (t->ndim != c->in[0]->ndim)
      return pg_op_fail(c, "tensor %lld has %d dimensions, tensor %lld has %d", (long long)pg_shown(0), c->in[0]->ndim,
                        (long long)pg_shown(i), t->ndim);
    for (int32_t d = 0; d < t->ndim; d++)
      if (d != dim && t->shape[d] != shape[d])
        return pg_op_fail(
            c, "tensor %lld is %lld wide in dimension %lld, tensor %lld is %lld; only dimension %lld may differ",
            (long long)pg_shown(0), (long long)shape[d], (long long)pg_shown(d), (long long)pg_shown(i),
            (long long)t->shape[d], (long long)pg_shown(dim));
    shape[dim] += t->shape[dim];
  }
  return pg_out(c, 0, c->in[0]->dtype, c->in[0]->ndim, shape);
}

const pg_op pg_op_cat = {.info = {.name = "cat",
                                  .doc = "tensors joined along a dimension",
                                  .inputs = PG_ARGS({"tensors", PG_LIST | PG_STRIDED,
                                                     "a list of tensors of one dtype, equal outside the dimension"}),
                                  .outputs = PG_ARGS({"y", 0, "the joined tensor"}),
                                  .params = PG_PARAMS(PG_ONE_DIM("dim", 0, "the dimension")),
                                  .samples = PG_SAMPLES("{tensors = {randn(2, 3), randn(1, 3)}}",
                                                        "{tensors = {randn(2, 1), randn(2, 3)}, dim = 2}")},
                         .shape = cat_shape,
                         .forward = PG_ANY(cat_forward),
                         .backward = PG_ANY_REAL(cat_backward)};

/* ---- stack: the same along a dimension that none of them has ---- */

static int stack_dim(const pg_call *c, int32_t *dim) {
  int64_t given = c->p[0].ints[0], n = c->in[0]->ndim + 1;
  if (given < -n || given >= n)
    return pg_op_fail(c, "dimension %lld does not exist in the result", (long long)pg_position(given));
  *dim = (int32_t)(given < 0 ? given + n : given);
  return PG_OK;
}

static int stack_pieces(const pg_call *c, pg_tensor *whole, pg_tensor **parts, bool into_whole) {
  int32_t dim = 0;
  int64_t stride[PG_MAX_DIMS];
  PG_TRY(stack_dim(c, &dim));
  for (int32_t d = 0; d < whole->ndim - 1; d++) stride[d] = whole->stride[d + (d >= dim)];
  for (int32_t i = 0; i < c->n_in; i++) {
    pg_tensor *view;
    if (!parts[i]) continue;
    PG_TRY(pg_view(whole, whole->ndim - 1, parts[i]->shape, stride, whole->offset + i * whole->stride[dim], &view));
    int status = into_whole ? pg_copy_new(view, parts[i]) : pg_copy_new(parts[i], view);
    pg_release(view);
    PG_TRY(status);
  }
  return PG_OK;
}

static int stack_forward(pg_call *c) { return stack_pieces(c, c->out[0], c->in, true); }
static int stack_backward(pg_call *c) { return stack_pieces(c, c->grad_out[0], c->grad_in, false); }

static int stack_shape(pg_call *c) {
  const pg_tensor *first = c->in[0];
  int32_t dim = 0;
  int64_t shape[PG_MAX_DIMS];
  PG_TRY(stack_dim(c, &dim));
  if (first->ndim == PG_MAX_DIMS) return pg_op_fail(c, "the result would have more than %d dimensions", PG_MAX_DIMS);
  for (int32_t i = 1; i < c->n_in; i++) {
    if (c->in[i]->dtype != first->dtype)
      return pg_fail(PG_ERR_DTYPE, "stack: dtypes differ: tensor %lld is %s, tensor %lld is %s", (long long)pg_shown(0),
                     pg_dtype_name(first->dtype), (long long)pg_shown(i), pg_dtype_name(c->in[i]->dtype));
    if (!pg_same_shape(first, c->in[i]))
      return pg_op_fail(c, "tensor %lld has another shape than tensor %lld", (long long)pg_shown(i),
                        (long long)pg_shown(0));
  }
  for (int32_t d = 0; d <= first->ndim; d++) shape[d] = d == dim ? c->n_in : first->shape[d - (d > dim)];
  return pg_out(c, 0, first->dtype, first->ndim + 1, shape);
}

const pg_op pg_op_stack = {
    .info = {.name = "stack",
             .doc = "tensors of one shape laid along a new dimension",
             .inputs = PG_ARGS({"tensors", PG_LIST | PG_STRIDED, "a list of tensors of one shape and dtype"}),
             .outputs = PG_ARGS({"y", 0, "that shape with the list's length inserted"}),
             .params = PG_PARAMS(PG_ONE_DIM("dim", 0, "where the new dimension goes in the result")),
             .samples = PG_SAMPLES("{tensors = {randn(2, 3), randn(2, 3)}}",
                                   "{tensors = {randn(2, 3), randn(2, 3), randn(2, 3)}, dim = -1}",
                                   "{tensors = {randn(3, 2), randn(3, 2)}, dim = 2}")},
    .shape = stack_shape,
    .forward = PG_ANY(stack_forward),
    .backward = PG_ANY_REAL(stack_backward)};
