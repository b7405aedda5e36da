/* dropout.c - y = x * keep / (1 - p), keep drawn anew at each call. Backward draws the same numbers again instead of
 * keeping a mask: number i of the call's own stretch of the generator decides element i. */
#ifdef REAL

enum { K(PIECE) = 8192 }; /* elements that one thread takes at a time */

static int K(dropout_apply)(pg_call *c, const pg_tensor *from, pg_tensor *to) {
  double p = c->p[0].num;
  bool active = c->p[1].ints[0] && p > 0;
  const real *x = PG_AT(real, from);
  real *y = PG_AT(real, to), scale = p < 1 ? (real)(1 / (1 - p)) : 0;
  int64_t n = pg_numel(from);
#pragma omp parallel for schedule(static) if (n > 2 * K(PIECE))
  for (int64_t begin = 0; begin < n; begin += K(PIECE)) {
    if (pg_stopping()) continue;
    for (int64_t i = begin; i < PG_MIN(begin + K(PIECE), n); i++)
      y[i] = !active ? x[i] : (double)pg_uniform(c->seed, c->offset + (uint64_t)i) >= p ? x[i] * scale : 0;
  }
  return PG_OK;
}

static int K(dropout_forward)(pg_call *c) { return K(dropout_apply)(c, c->in[0], c->out[0]); }
static int K(dropout_backward)(pg_call *c) { return K(dropout_apply)(c, c->grad_out[0], c->grad_in[0]); }

#else
#include "../op.h"
#define REALS_FILE "ops/dropout.c"
#include "../reals.h"

static int dropout_shape(pg_call *c) { return pg_out_like(c, 0, c->in[0]); }

const pg_op pg_op_dropout = {
    .info = {.name = "dropout",
             .doc = "each element becomes 0 with probability p, the others are scaled by 1 / (1 - p)",
             .source = "Srivastava et al., JMLR 15 (2014)",
             .inputs = PG_ARGS({"x", 0, "any shape, float"}),
             .outputs = PG_ARGS({"y", 0, "the shape of x"}),
             .params = PG_PARAMS(PG_NUM("p", 0.5, 0, 1, "probability"), PG_FLAG("training", 1, "false: y = x")),
             .samples = PG_SAMPLES("{x = randn(4, 5), p = 0.3}"),
             .method = 1},
    .flags = PG_F_RANDOM,
    .shape = dropout_shape,
    .forward = PG_REALS(dropout_forward),
    .backward = PG_REALS(dropout_backward)};
#endif
