/* where.c - z = a where cond is not 0, else b, with NumPy's broadcasting of all three.
 *
 * Backward: da is the gradient where cond holds, db where it does not, 0 elsewhere, summed over what was stretched.
 * What was not picked gets exactly 0, whatever it is: a NaN there does not reach the gradient. */
#include "../op.h"

static int where_shape(pg_call *c) {
  const pg_tensor *cond = c->in[0], *a = c->in[1], *b = c->in[2];
  int64_t shape[PG_MAX_DIMS];
  int32_t ndim = 0;
  if (cond->dtype != PG_UINT8)
    return pg_fail(PG_ERR_DTYPE, "where: cond must be uint8, as comparisons give it; it is %s",
                   pg_dtype_name(cond->dtype));
  if (a->dtype != b->dtype)
    return pg_fail(PG_ERR_DTYPE, "where: dtypes differ: a is %s, b is %s", pg_dtype_name(a->dtype),
                   pg_dtype_name(b->dtype));
  for (int i = 0; i < 3; i++) PG_TRY(pg_stretch(c, c->in[i], &ndim, shape));
  return pg_out(c, 0, a->dtype, ndim, shape);
}

#define PICK(type)                                                                                                     \
  {                                                                                                                    \
    const type *a = PG_AT(type, c->in[1]), *b = PG_AT(type, c->in[2]);                                                 \
    type *out = PG_AT(type, c->out[0]);                                                                                \
    PG_EACH_RUN(w, 3,                                                                                                  \
                for (int64_t i = 0; i < n; i++) out[begin + i] =                                                       \
                    pick[at[0] + i * w.step[0]] ? a[at[1] + i * w.step[1]] : b[at[2] + i * w.step[2]])                 \
    return PG_OK;                                                                                                      \
  }

static int where_forward(pg_call *c) {
  pg_walk w = pg_walk_over(c->out[0], 3, (const pg_tensor *const *)c->in);
  const uint8_t *pick = PG_AT(uint8_t, c->in[0]);
  switch (c->in[1]->dtype) {
  case PG_FLOAT32: PICK(float)
  case PG_FLOAT64: PICK(double)
  case PG_INT32: PICK(int32_t)
  default: PICK(uint8_t)
  }
}

#define KEEP(type)                                                                                                     \
  {                                                                                                                    \
    const type *dz = PG_AT(type, g);                                                                                   \
    type *out = PG_AT(type, wide);                                                                                     \
    PG_EACH_RUN(w, 1,                                                                                                  \
                for (int64_t i = 0; i < n; i++) out[begin + i] =                                                       \
                    (pick[at[0] + i * w.step[0]] != 0) == first ? dz[begin + i] : 0)                                   \
  }

static int where_backward(pg_call *c) {
  pg_tensor *g = c->grad_out[0];
  pg_walk w = pg_walk_over(g, 1, (const pg_tensor *const *)c->in);
  const uint8_t *pick = PG_AT(uint8_t, c->in[0]);
  for (int side = 1; side <= 2; side++) {
    pg_tensor *to = c->grad_in[side], *wide = to;
    bool first = side == 1;
    if (!to) continue;
    if (!pg_same_shape(to, g)) PG_TRY(pg_new_like(g, &wide));
    if (g->dtype == PG_FLOAT32)
      KEEP(float)
    else
      KEEP(double)
    if (wide == to) continue;
    int status = pg_sum_to(wide, to);
    pg_release(wide);
    PG_TRY(status);
  }
  return PG_OK;
}

const pg_op pg_op_where = {
    .info = {.name = "where",
             .doc = "a where cond is not 0, else b, with broadcasting; a NaN that is not picked stays out of gradients",
             .inputs = PG_ARGS({"cond", PG_STRIDED, "uint8, as comparisons give it"},
                               {"a", PG_STRIDED, "any dtype, a shape that broadcasts with cond; or a number"},
                               {"b", PG_STRIDED, "the dtype of a, a shape that broadcasts with both; or a number"}),
             .outputs = PG_ARGS({"z", 0, "the broadcast shape, the dtype of a"}),
             .samples = PG_SAMPLES("{cond = bytes(2, 3, 4), a = randn(3, 4), b = randn(3, 4)}",
                                   "{cond = bytes(2, 3, 1), a = randn(4), b = randn(2, 1, 1)}",
                                   "{cond = bytes(2, 2, 5), a = randn(1), b = randn(5)}"),
             .method = 1},
    .shape = where_shape,
    .needs = PG_NEED_IN(0),
    .forward = {[PG_UINT8] = where_forward},
    .backward = {[PG_UINT8] = where_backward}};
