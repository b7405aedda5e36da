/* pad.c - x set into a larger tensor that is `value` elsewhere. Backward takes x's part of the gradient out again. */
#include "../op.h"

/* The part of `whole` where x lies, as a view. */
static int inner_part(const pg_call *c, pg_tensor *whole, const pg_tensor *x, pg_tensor **view) {
  int64_t offset = whole->offset;
  for (int32_t d = 0; 2 * d < c->p[0].len; d++) offset += c->p[0].ints[2 * d] * whole->stride[d];
  return pg_view(whole, x->ndim, x->shape, whole->stride, offset, view);
}

static int pad_forward(pg_call *c) {
  pg_tensor *view;
  PG_TRY(pg_fill_new(c->out[0], c->p[1].num));
  PG_TRY(inner_part(c, c->out[0], c->in[0], &view));
  int status = pg_copy_new(view, c->in[0]);
  pg_release(view);
  return status;
}

static int pad_backward(pg_call *c) {
  pg_tensor *view;
  PG_TRY(inner_part(c, c->grad_out[0], c->grad_in[0], &view));
  int status = pg_copy_new(c->grad_in[0], view);
  pg_release(view);
  return status;
}

static int pad_shape(pg_call *c) {
  const pg_tensor *x = c->in[0];
  const pg_value *pads = &c->p[0];
  int64_t shape[PG_MAX_DIMS];
  if (pads->len % 2) return pg_op_fail(c, "pads come in pairs {before, after}, got %d numbers", pads->len);
  if (pads->len > 2 * x->ndim) return pg_op_fail(c, "pads for %d dimensions, x has %d", pads->len / 2, x->ndim);
  PG_TRY(pg_check_value(c, x, c->p[1].num));
  memcpy(shape, x->shape, sizeof shape);
  for (int32_t i = 0; i < pads->len; i++) {
    if (pads->ints[i] < 0 || pads->ints[i] > INT32_MAX)
      return pg_op_fail(c, "a pad of %lld is outside 0..%d", (long long)pads->ints[i], INT32_MAX);
    shape[i / 2] += pads->ints[i];
  }
  return pg_out(c, 0, x->dtype, x->ndim, shape);
}

const pg_op pg_op_pad = {
    .info = {.name = "pad",
             .doc = "x with a margin of one value around its first dimensions",
             .inputs = PG_ARGS({"x", PG_STRIDED, "any shape and dtype"}),
             .outputs = PG_ARGS({"y", 0, "x with before + after added to each padded dimension"}),
             .params =
                 PG_PARAMS(PG_INT_LIST("pads", "{before, after} of each dimension from the first; the rest get none"),
                           PG_NUM("value", 0, 0, 0, "what the margin is filled with")),
             .samples = PG_SAMPLES(
                 "{x = randn(2, 3), pads = {1, 0, 2, 1}}", "{x = randn(2, 3, 2), pads = {0, 0, 1, 1}, value = -2}",
                 "{x = randn(4), pads = {0, 3}}", "{x = randn(1, 2, 1, 2, 2), pads = {1, 0, 0, 1, 1, 1, 0, 0, 0, 2}}"),
             .method = 1},
    .shape = pad_shape,
    .forward = PG_ANY(pad_forward),
    .backward = PG_ANY_REAL(pad_backward)};
