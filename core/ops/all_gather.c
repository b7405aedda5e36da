/* all_gather.c - the rows of every process, in order of rank:  y = [x of rank 0; x of rank 1; ...].
 *
 * Each process differentiates its own loss L_r of y, and the sum of them all is what backward descends, so that the
 * gradient of its x is its rows of sum_r dL_r/dy: a reduce-scatter. Where every process computes the same loss of y,
 * and gradients of parameters are averaged over the processes (pg.distributed.share), the result is the loss's own
 * gradient. A process that runs alone gets a copy. */
#include "../comm.h"
#include "../op.h"

static int all_gather_forward(pg_call *c) {
  const pg_comm_vtable *comm;
  if (pg_comm()->size == 1) return pg_copy_new(c->out[0], c->in[0]);
  PG_TRY(pg_comm_of(c->in[0]->device, &comm));
  return comm->gather(pg_data(c->in[0]), pg_data(c->out[0]),
                      pg_numel(c->in[0]) * (int64_t)pg_dtype_bytes[c->in[0]->dtype]);
}

static int all_gather_backward(pg_call *c) {
  const pg_comm_vtable *comm;
  pg_tensor *x = c->grad_in[0];
  if (pg_comm()->size == 1) return pg_copy_new(x, c->grad_out[0]);
  PG_TRY(pg_comm_of(x->device, &comm));
  return comm->scatter_sum(pg_data(c->grad_out[0]), pg_data(x), pg_numel(x), x->dtype);
}

static int all_gather_shape(pg_call *c) {
  const pg_tensor *x = c->in[0];
  int64_t shape[PG_MAX_DIMS];
  if (x->ndim == 0) return pg_op_fail(c, "a scalar has no rows");
  memcpy(shape, x->shape, sizeof shape);
  shape[0] *= pg_comm()->size;
  return pg_out(c, 0, x->dtype, x->ndim, shape);
}

const pg_op pg_op_all_gather = {
    .info = {.name = "all_gather",
             .doc =
                 "the rows of every process of the run, in order of rank; x itself where there is one. Every process "
                 "must call it, with one shape",
             .inputs = PG_ARGS({"x", 0, "(N, ...) any"}),
             .outputs = PG_ARGS({"y", 0, "(N size, ...)"}),
             .samples = PG_SAMPLES("{x = randn(3, 4)}"),
             .method = 1},
    .shape = all_gather_shape,
    .forward = PG_ANY(all_gather_forward),
    .backward = PG_ANY_REAL(all_gather_backward)};
