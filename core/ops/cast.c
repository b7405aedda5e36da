/* cast.c - copies: into row-major order, of everything, and to another dtype. The gradient is copied back. */
#include "../op.h"

static int copy_shape(pg_call *c) { return pg_out_like(c, 0, c->in[0]); }
static int copy_forward(pg_call *c) { return pg_copy_new(c->out[0], c->in[0]); }
static int copy_backward(pg_call *c) { return pg_copy_new(c->grad_in[0], c->grad_out[0]); }
static int to_shape(pg_call *c) { return pg_out(c, 0, (int32_t)c->p[0].ints[0], c->in[0]->ndim, c->in[0]->shape); }

static int contiguous_view(pg_call *c) { /* the same tensor when it is in order already */
  pg_tensor *flat;
  PG_TRY(pg_contiguous(c->in[0], &flat));
  int status = pg_alias(flat, &c->out[0]);
  pg_release(flat);
  return status;
}

const pg_op pg_op_clone = {.info = {.name = "clone",
                                    .doc = "a copy of x",
                                    .inputs = PG_ARGS({"x", PG_STRIDED, "any"}),
                                    .outputs = PG_ARGS({"y", 0, "x's shape, contiguous"}),
                                    .samples = PG_SAMPLES("{x = randn(3, 4)}"),
                                    .method = 1},
                           .shape = copy_shape,
                           .forward = PG_ANY(copy_forward),
                           .backward = PG_ANY_REAL(copy_backward)};
const pg_op pg_op_contiguous = {.info = {.name = "contiguous",
                                         .doc = "x in row-major order; x itself when it is so already",
                                         .inputs = PG_ARGS({"x", PG_STRIDED, "any"}),
                                         .outputs = PG_ARGS({"y", 0, "x's shape"}),
                                         .samples = PG_SAMPLES("{x = randn(3, 4)}"),
                                         .method = 1},
                                .flags = PG_F_VIEW,
                                .view = contiguous_view,
                                .backward = PG_ANY_REAL(copy_backward)};
const pg_op pg_op_to = {
    .info = {.name = "to",
             .doc = "x in another dtype; values out of range saturate, NaN becomes 0 in an integer",
             .inputs = PG_ARGS({"x", PG_STRIDED, "any"}),
             .outputs = PG_ARGS({"y", 0, "x's shape"}),
             .params = PG_PARAMS(PG_WORD("dtype", NAN, "float32 float64 int32 uint8", "the new dtype")),
             .samples = PG_SAMPLES("{x = randn(3, 4), dtype = \"float64\"}")},
    .shape = to_shape,
    .forward = PG_ANY(copy_forward),
    .backward = PG_ANY_REAL(copy_backward)};
