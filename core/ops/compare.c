/* compare.c - z = (a OP b) as bytes, 1 where it holds, with NumPy's broadcasting.
 *
 * IEEE rules: every comparison with NaN is 0, but for `ne`, which is 1. No gradient: a step function has none. */
#include "../op.h"

enum { EQ, NE, LT, LE, GT, GE };

/* One run of n elements, the operands by their strides (0: stretched). */
#define RUN(sign)                                                                                                      \
  for (int64_t i = 0; i < n; i++) out[i] = a[i * sa] sign b[i * sb];                                                   \
  break;
#define RUNS(type)                                                                                                     \
  PG_SIMD static void run_##type(int kind, int64_t n, const type *a, int64_t sa, const type *b, int64_t sb,            \
                                 uint8_t *restrict out) {                                                              \
    switch (kind) {                                                                                                    \
    case EQ: RUN(==)                                                                                                   \
    case NE: RUN(!=)                                                                                                   \
    case LT: RUN(<)                                                                                                    \
    case LE: RUN(<=)                                                                                                   \
    case GT: RUN(>)                                                                                                    \
    default: RUN(>=)                                                                                                   \
    }                                                                                                                  \
  }
RUNS(float)
RUNS(double)
RUNS(int32_t)
RUNS(uint8_t)

static int compare(pg_call *c, int kind) {
  const pg_tensor *a = c->in[0], *b = c->in[1];
  pg_walk w = pg_walk_over(c->out[0], 2, (const pg_tensor *const *)c->in);
  uint8_t *out = PG_AT(uint8_t, c->out[0]);
#define RUN_AS(type)                                                                                                   \
  run_##type(kind, n, PG_AT(type, a) + at[0], w.step[0], PG_AT(type, b) + at[1], w.step[1], out + begin);              \
  break
  PG_EACH_RUN(
      w, 2, switch (a->dtype) {
        case PG_FLOAT32: RUN_AS(float);
        case PG_FLOAT64: RUN_AS(double);
        case PG_INT32: RUN_AS(int32_t);
        default: RUN_AS(uint8_t);
      })
  return PG_OK;
}

static int compare_shape(pg_call *c) {
  int64_t shape[PG_MAX_DIMS];
  int32_t ndim;
  PG_TRY(pg_broadcast(c, c->in[0], c->in[1], &ndim, shape));
  return pg_out(c, 0, PG_UINT8, ndim, shape);
}

#define COMPARE_OP(NAME, KIND, SIGN)                                                                                   \
  static int NAME##_forward(pg_call *c) { return compare(c, KIND); }                                                   \
  const pg_op pg_op_##NAME = {                                                                                         \
      .info = {.name = #NAME,                                                                                          \
               .doc = "1 where a " SIGN " b, else 0, with broadcasting",                                               \
               .inputs = PG_ARGS({"a", PG_STRIDED, "any shape and dtype"},                                             \
                                 {"b", PG_STRIDED, "the dtype of a, a shape that broadcasts with a"}),                 \
               .outputs = PG_ARGS({"z", 0, "the broadcast shape, uint8"}),                                             \
               .no_backward = "a comparison is piecewise constant",                                                    \
               .samples = PG_SAMPLES("{a = randn(3, 4), b = randn(4)}", "{a = ints(3, 4, 1), b = ints(3, 2, 1, 5)}",   \
                                     "{a = bytes(2, 6), b = bytes(2, 6)}"),                                            \
               .method = 1},                                                                                           \
      .shape = compare_shape,                                                                                          \
      .forward = PG_ANY(NAME##_forward)};
COMPARE_OP(eq, EQ, "==")
COMPARE_OP(ne, NE, "!=")
COMPARE_OP(lt, LT, "<")
COMPARE_OP(le, LE, "<=")
COMPARE_OP(gt, GT, ">")
COMPARE_OP(ge, GE, ">=")
