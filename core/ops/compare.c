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

/* The operand's stride along dimension d of the output: 0 where it is stretched or not there. */
static int64_t stride_along(const pg_tensor *t, const pg_tensor *out, int32_t d) {
  int32_t own = d - (out->ndim - t->ndim);
  return own < 0 || t->shape[own] == 1 ? 0 : t->stride[own];
}

static int compare(pg_call *c, int kind) {
  const pg_tensor *a = c->in[0], *b = c->in[1], *out = c->out[0];
  int32_t last = out->ndim - 1;
  int64_t n = out->ndim ? out->shape[last] : 1, runs = n ? pg_numel(out) / n : 0;
  int64_t sa = out->ndim ? stride_along(a, out, last) : 0, sb = out->ndim ? stride_along(b, out, last) : 0;
#pragma omp parallel for schedule(static) if (runs > 1 && runs * n > 32768)
  for (int64_t r = 0; r < runs; r++) {
    int64_t at_a = 0, at_b = 0, rest = r;
    for (int32_t d = last - 1; d >= 0; rest /= out->shape[d], d--) {
      int64_t step = rest % out->shape[d];
      at_a += step * stride_along(a, out, d), at_b += step * stride_along(b, out, d);
    }
    uint8_t *z = PG_AT(uint8_t, out) + r * n;
    switch (a->dtype) {
    case PG_FLOAT32: run_float(kind, n, PG_AT(float, a) + at_a, sa, PG_AT(float, b) + at_b, sb, z); break;
    case PG_FLOAT64: run_double(kind, n, PG_AT(double, a) + at_a, sa, PG_AT(double, b) + at_b, sb, z); break;
    case PG_INT32: run_int32_t(kind, n, PG_AT(int32_t, a) + at_a, sa, PG_AT(int32_t, b) + at_b, sb, z); break;
    default: run_uint8_t(kind, n, PG_AT(uint8_t, a) + at_a, sa, PG_AT(uint8_t, b) + at_b, sb, z);
    }
  }
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
