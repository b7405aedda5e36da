/* view.c - ops that move no number: they give out[0] another shape, stride or offset over the same storage.
 *
 * Backward writes the gradient through the same view: grad_in starts at zero (or is covered whole), and the view of it
 * that the forward took receives grad_out. `expand` alone reads one place many times, so its gradient is a sum. */
#include "../op.h"

/* grad_in's own view, made by the forward's rule, gets grad_out; the rest, if there is any, is zero. */
static int view_backward(pg_call *c) {
  pg_tensor *source[1] = {c->grad_in[0]};
  pg_call again = {.op = c->op, .n_in = 1, .in = source, .p = c->p, .n_out = 1};
  if (pg_numel(c->grad_out[0]) < pg_numel(c->grad_in[0])) PG_TRY(pg_fill_new(c->grad_in[0], 0));
  PG_TRY(c->op->view(&again));
  int status = pg_copy_new(again.out[0], c->grad_out[0]);
  pg_release(again.out[0]);
  return status;
}

/* ---- reshape ---- */

static char *sizes_text(const pg_value *sizes, char buffer[128]) { /* "(2, -1)", as the caller wrote it */
  int used = snprintf(buffer, 128, "(");
  for (int32_t i = 0; i < sizes->len && used < 100; i++)
    used += snprintf(buffer + used, (size_t)(128 - used), i ? ", %lld" : "%lld", (long long)sizes->ints[i]);
  snprintf(buffer + used, (size_t)(128 - used), ")");
  return buffer;
}

static int reshape_view(pg_call *c) {
  pg_tensor *x = c->in[0], *flat;
  int64_t shape[PG_MAX_DIMS], stride[PG_MAX_DIMS], known = 1, n = pg_numel(x);
  int32_t ndim = c->p[0].len, open = -1;
  bool fits = true;
  char asked[128];
  if (ndim > PG_MAX_DIMS) return pg_op_fail(c, "%d sizes, at most %d", ndim, PG_MAX_DIMS);
  for (int32_t i = 0; i < ndim; i++) {
    shape[i] = c->p[0].ints[i];
    if (shape[i] == -1 && open < 0)
      open = i;
    else if (shape[i] < 0)
      return pg_op_fail(c, "size %lld; one size may be -1, the others are 0 or more", (long long)shape[i]);
    else
      fits = !__builtin_mul_overflow(known, shape[i], &known) && fits;
  }
  if (!fits || (open < 0 ? known != n : known ? n % known : n))
    return pg_op_fail(c, "%lld elements do not fill %s", (long long)n, sizes_text(&c->p[0], asked));
  if (open >= 0) shape[open] = known ? n / known : 0;
  pg_contiguous_strides(ndim, shape, stride);
  PG_TRY(pg_contiguous(x, &flat));
  int status = pg_view(flat, ndim, shape, stride, flat->offset, &c->out[0]);
  pg_release(flat);
  return status;
}

static int reshape_backward(pg_call *c) {
  pg_tensor *same;
  PG_TRY(pg_view(c->grad_out[0], c->in[0]->ndim, c->grad_in[0]->shape, c->grad_in[0]->stride, c->grad_out[0]->offset,
                 &same));
  if (atomic_load(&same->storage->refs) == 2) { /* the tape's and ours: nobody else will see what is added to it */
    pg_release(c->grad_in[0]);
    return c->grad_in[0] = same, PG_OK;
  }
  int status = pg_copy_new(c->grad_in[0], same);
  pg_release(same);
  return status;
}

/* ---- the others ---- */

static int permuted(pg_call *c, const int32_t *order) {
  int64_t shape[PG_MAX_DIMS], stride[PG_MAX_DIMS];
  pg_tensor *x = c->in[0];
  for (int32_t i = 0; i < x->ndim; i++) shape[i] = x->shape[order[i]], stride[i] = x->stride[order[i]];
  return pg_view(x, x->ndim, shape, stride, x->offset, &c->out[0]);
}

static int transpose_view(pg_call *c) {
  int32_t order[PG_MAX_DIMS], a, b;
  PG_TRY(pg_dim(c, c->in[0], c->p[0].ints[0], &a));
  PG_TRY(pg_dim(c, c->in[0], c->p[1].ints[0], &b));
  for (int32_t i = 0; i < c->in[0]->ndim; i++) order[i] = i == a ? b : i == b ? a : i;
  return permuted(c, order);
}

static int permute_view(pg_call *c) {
  int32_t order[PG_MAX_DIMS], n = c->in[0]->ndim;
  uint32_t seen = 0;
  if (c->p[0].len != n) return pg_op_fail(c, "%d dimensions given for a tensor of %d", c->p[0].len, n);
  for (int32_t i = 0; i < n; i++) {
    PG_TRY(pg_dim(c, c->in[0], c->p[0].ints[i], &order[i]));
    if (seen & (1u << order[i])) return pg_op_fail(c, "dimension %lld is named twice", (long long)pg_shown(order[i]));
    seen |= 1u << order[i];
  }
  return permuted(c, order);
}

static int narrow_view(pg_call *c) {
  pg_tensor *x = c->in[0];
  int32_t dim;
  int64_t start = c->p[1].ints[0], length = c->p[2].ints[0], shape[PG_MAX_DIMS];
  PG_TRY(pg_dim(c, x, c->p[0].ints[0], &dim));
  if (!x->ndim) return pg_op_fail(c, "a scalar has no dimension");
  if (start < 0) start += x->shape[dim];
  if (start < 0 || length < 0 || length > x->shape[dim] - start)
    return pg_op_fail(c, "%lld elements from position %lld are not all within the %lld of dimension %lld",
                      (long long)length, (long long)pg_position(c->p[1].ints[0]), (long long)x->shape[dim],
                      (long long)pg_shown(dim));
  memcpy(shape, x->shape, sizeof shape);
  shape[dim] = length;
  return pg_view(x, x->ndim, shape, x->stride, x->offset + start * x->stride[dim], &c->out[0]);
}

static int select_view(pg_call *c) {
  pg_tensor *x = c->in[0];
  int32_t dim;
  int64_t at = c->p[1].ints[0], shape[PG_MAX_DIMS], stride[PG_MAX_DIMS];
  PG_TRY(pg_dim(c, x, c->p[0].ints[0], &dim));
  if (!x->ndim) return pg_op_fail(c, "a scalar has no dimension");
  if (at < 0) at += x->shape[dim];
  if (at < 0 || at >= x->shape[dim])
    return pg_op_fail(c, "position %lld is outside the %lld of dimension %lld", (long long)pg_position(c->p[1].ints[0]),
                      (long long)x->shape[dim], (long long)pg_shown(dim));
  for (int32_t i = 0, k = 0; i < x->ndim; i++)
    if (i != dim) shape[k] = x->shape[i], stride[k++] = x->stride[i];
  return pg_view(x, x->ndim - 1, shape, stride, x->offset + at * x->stride[dim], &c->out[0]);
}

static int unsqueeze_view(pg_call *c) {
  pg_tensor *x = c->in[0];
  int64_t shape[PG_MAX_DIMS], stride[PG_MAX_DIMS], dim = c->p[0].ints[0];
  if (dim < 0) dim += x->ndim + 1;
  if (x->ndim == PG_MAX_DIMS) return pg_op_fail(c, "the result would have more than %d dimensions", PG_MAX_DIMS);
  if (dim < 0 || dim > x->ndim)
    return pg_op_fail(c, "dimension %lld is outside %lld..%lld of the result", (long long)pg_position(c->p[0].ints[0]),
                      (long long)pg_shown(0), (long long)pg_shown(x->ndim));
  for (int32_t i = 0, k = 0; i <= x->ndim; i++) {
    if (i == dim)
      shape[i] = 1, stride[i] = 0;
    else
      shape[i] = x->shape[k], stride[i] = x->stride[k++];
  }
  return pg_view(x, x->ndim + 1, shape, stride, x->offset, &c->out[0]);
}

static int squeeze_view(pg_call *c) {
  int32_t dim;
  PG_TRY(pg_dim(c, c->in[0], c->p[0].ints[0], &dim));
  if (!c->in[0]->ndim || c->in[0]->shape[dim] != 1)
    return pg_op_fail(c, "dimension %lld is not of size 1", (long long)pg_position(c->p[0].ints[0]));
  const pg_value at[2] = {c->p[0], {.ints = {0}, .len = 1}};
  pg_call select = {.op = c->op, .n_in = 1, .in = c->in, .p = at};
  PG_TRY(select_view(&select));
  return c->out[0] = select.out[0], PG_OK;
}

static int expand_view(pg_call *c) {
  pg_tensor *x = c->in[0];
  int64_t shape[PG_MAX_DIMS], stride[PG_MAX_DIMS], count = 1;
  int32_t n = c->p[0].len, skip = n - x->ndim;
  if (n > PG_MAX_DIMS) return pg_op_fail(c, "%d sizes, at most %d", n, PG_MAX_DIMS);
  if (skip < 0) return pg_op_fail(c, "%d sizes for a tensor of %d dimensions", n, x->ndim);
  for (int32_t i = 0; i < n; i++) {
    int64_t own = i < skip ? 1 : x->shape[i - skip], want = c->p[0].ints[i];
    if (want == -1) want = own;
    if (want < 0 || (own != 1 && own != want))
      return pg_op_fail(c, "dimension %lld of the result cannot be %lld where x has %lld", (long long)pg_shown(i),
                        (long long)want, (long long)own);
    if (__builtin_mul_overflow(count, want, &count)) return pg_op_fail(c, "the result has more than 2^63 elements");
    shape[i] = want, stride[i] = i < skip || own == 1 ? 0 : x->stride[i - skip];
  }
  return pg_view(x, n, shape, stride, x->offset, &c->out[0]);
}

static int expand_backward(pg_call *c) { return pg_sum_to(c->grad_out[0], c->grad_in[0]); }

#define VIEW_OP(NAME, DOC, BACKWARD, PARAMS, ...)                                                                      \
  const pg_op pg_op_##NAME = {.info = {.name = #NAME,                                                                  \
                                       .doc = DOC,                                                                     \
                                       .inputs = PG_ARGS({"x", PG_STRIDED, "any shape and dtype"}),                    \
                                       .outputs = PG_ARGS({"y", 0, "a view of x"}),                                    \
                                       .params = PARAMS,                                                               \
                                       .samples = PG_SAMPLES(__VA_ARGS__),                                             \
                                       .method = 1},                                                                   \
                              .flags = PG_F_VIEW,                                                                      \
                              .view = NAME##_view,                                                                     \
                              .backward = PG_ANY_REAL(BACKWARD)};
VIEW_OP(reshape, "the same elements in another shape; copies when the strides leave no view", reshape_backward,
        PG_PARAMS(PG_INT_LIST("shape", "the new sizes; one may be -1")), "{x = randn(2, 6), shape = {3, 4}}",
        "{x = randn(2, 3, 4), shape = {-1, 4}}")
VIEW_OP(transpose, "exchanges two dimensions", view_backward,
        PG_PARAMS(PG_ONE_DIM("dim0", NAN, "a dimension"), PG_ONE_DIM("dim1", NAN, "another")),
        "{x = randn(2, 3, 4), dim0 = 1, dim1 = 3}")
VIEW_OP(permute, "the dimensions in another order", view_backward,
        PG_PARAMS(PG_DIM_LIST("dims", "every dimension once")), "{x = randn(2, 3, 4), dims = {3, 1, 2}}")
VIEW_OP(narrow, "`length` positions along a dimension, from `start`", view_backward,
        PG_PARAMS(PG_ONE_DIM("dim", NAN, "the dimension"), PG_POSITION("start", "first position"),
                  PG_INT("length", NAN, 0, 0, "how many")),
        "{x = randn(3, 5), dim = 2, start = 2, length = 3}")
VIEW_OP(select, "one position of a dimension, which disappears", view_backward,
        PG_PARAMS(PG_ONE_DIM("dim", NAN, "the dimension"), PG_POSITION("index", "the position; -1 is the last")),
        "{x = randn(3, 5), dim = 1, index = 2}", "{x = randn(2, 3, 4), dim = -1, index = -1}")
VIEW_OP(unsqueeze, "a new dimension of size 1", view_backward, PG_PARAMS(PG_ONE_DIM("dim", NAN, "where it will stand")),
        "{x = randn(3, 5), dim = 2}")
VIEW_OP(squeeze, "drops a dimension of size 1", view_backward, PG_PARAMS(PG_ONE_DIM("dim", NAN, "the dimension")),
        "{x = randn(3, 1, 5), dim = 2}")
VIEW_OP(expand, "repeats dimensions of size 1 without copying", expand_backward,
        PG_PARAMS(PG_INT_LIST("shape", "the sizes wanted; -1 keeps one")), "{x = randn(3, 1), shape = {2, 3, 4}}")
