/* binary.c - z = f(a, b) with NumPy's broadcasting, and the same with a number in place of b.
 *
 * Backward: each operand's gradient is computed at the broadcast shape and summed over the dimensions that it was
 * stretched along, in a fixed order (core/broadcast.c).
 *
 * Integers wrap around, as C's unsigned ones do; their division truncates towards zero. */
#ifdef REAL

/* One run of n elements, the operands by their strides. */
#define FORWARD(name, value)                                                                                           \
  PG_SIMD static void K(name##_run)(int64_t n, const real *a, int64_t sa, const real *b, int64_t sb,                   \
                                    real *restrict out) {                                                              \
    if (sa == 1 && sb == 1)                                                                                            \
      for (int64_t i = 0; i < n; i++) {                                                                                \
        real x = a[i], y = b[i];                                                                                       \
        out[i] = (value);                                                                                              \
      }                                                                                                                \
    else if (sa == 1 && sb == 0)                                                                                       \
      for (int64_t i = 0; i < n; i++) {                                                                                \
        real x = a[i], y = *b;                                                                                         \
        out[i] = (value);                                                                                              \
      }                                                                                                                \
    else                                                                                                               \
      for (int64_t i = 0; i < n; i++) {                                                                                \
        real x = a[i * sa], y = b[i * sb];                                                                             \
        out[i] = (value);                                                                                              \
      }                                                                                                                \
  }                                                                                                                    \
  static int K(name##_forward)(pg_call * c) {                                                                          \
    pg_walk w = pg_walk_over(c->out[0], 2, (const pg_tensor *const *)c->in);                                           \
    const real *a = PG_AT(real, c->in[0]), *b = PG_AT(real, c->in[1]);                                                 \
    real *out = PG_AT(real, c->out[0]);                                                                                \
    PG_EACH_RUN(w, 2, K(name##_run)(n, a + at[0], w.step[0], b + at[1], w.step[1], out + begin))                       \
    return PG_OK;                                                                                                      \
  }

/* out = g times the derivative by a (side 0) or by b (side 1). */
#define BACKWARD(name, da, db)                                                                                         \
  PG_SIMD static void K(name##_slope)(int side, int64_t n, const real *a, int64_t sa, const real *b, int64_t sb,       \
                                      const real *restrict g, real *restrict out) {                                    \
    for (int64_t i = 0; i < n; i++) {                                                                                  \
      real x = a[i * sa], y = b[i * sb];                                                                               \
      (void)x;                                                                                                         \
      out[i] = g[i] * (side ? (db) : (da));                                                                            \
    }                                                                                                                  \
  }                                                                                                                    \
  static int K(name##_backward)(pg_call * c) {                                                                         \
    pg_tensor *g = c->grad_out[0];                                                                                     \
    pg_walk w = pg_walk_over(g, 2, (const pg_tensor *const *)c->in);                                                   \
    const real *a = PG_AT(real, c->in[0]), *b = PG_AT(real, c->in[1]), *dz = PG_AT(real, g);                           \
    for (int side = 0; side < 2; side++) {                                                                             \
      pg_tensor *to = c->grad_in[side], *wide = to;                                                                    \
      if (!to) continue;                                                                                               \
      if (!pg_same_shape(to, g)) PG_TRY(pg_new_like(g, &wide));                                                        \
      real *out = PG_AT(real, wide);                                                                                   \
      PG_EACH_RUN(w, 2, K(name##_slope)(side, n, a + at[0], w.step[0], b + at[1], w.step[1], dz + begin, out + begin)) \
      if (wide != to) PG_TRY(sum_and_release(wide, to));                                                               \
    }                                                                                                                  \
    return PG_OK;                                                                                                      \
  }

FORWARD(add, x + y)
FORWARD(sub, x - y)
FORWARD(mul, x *y)
FORWARD(div, x / y)
FORWARD(pow, R(pow)(x, y))
FORWARD(maximum, x != x || x > y ? x : y)
FORWARD(minimum, x != x || x < y ? x : y)
BACKWARD(mul, y, x)
BACKWARD(div, 1 / y, -x / (y * y))
BACKWARD(pow, (y == 0 ? 0 : y * R(pow)(x, y - 1)), (x > 0 ? R(pow)(x, y) * R(log)(x) : 0))
BACKWARD(maximum, (real)(x > y) + (x == y) * (real)0.5, (real)(y > x) + (x == y) * (real)0.5)
BACKWARD(minimum, (real)(x < y) + (x == y) * (real)0.5, (real)(y < x) + (x == y) * (real)0.5)
#undef FORWARD
#undef BACKWARD

/* The derivatives of a + b and a - b are 1 and -1: neither operand is kept for backward. */
static int K(add_backward)(pg_call *c) {
  for (int side = 0; side < 2; side++)
    if (c->grad_in[side]) PG_TRY(sum_or_copy(c->grad_out[0], c->grad_in[side]));
  return PG_OK;
}

static int K(sub_backward)(pg_call *c) {
  PG_TRY(K(add_backward)(c));
  int64_t n = c->grad_in[1] ? pg_numel(c->grad_in[1]) : 0;
  real *db = n ? PG_AT(real, c->grad_in[1]) : NULL;
#pragma omp parallel for schedule(static) if (n > 32768)
  for (int64_t i = 0; i < n; i++) db[i] = -db[i];
  return PG_OK;
}

/* ---- with a number ---- */
#define SCALAR(name, value, derivative)                                                                                \
  static int K(name##_forward)(pg_call * c) {                                                                          \
    const real *in = PG_AT(real, c->in[0]), s = (real)c->p[0].num;                                                     \
    real *out = PG_AT(real, c->out[0]);                                                                                \
    int64_t n = pg_numel(c->in[0]);                                                                                    \
    _Pragma("omp parallel for schedule(static) if (n > 32768)") for (int64_t i = 0; i < n; i++) {                      \
      real x = in[i];                                                                                                  \
      out[i] = (value);                                                                                                \
    }                                                                                                                  \
    return PG_OK;                                                                                                      \
  }                                                                                                                    \
  static int K(name##_backward)(pg_call * c) {                                                                         \
    const real *in = c->in[0]->storage ? PG_AT(real, c->in[0]) : NULL, *g = PG_AT(real, c->grad_out[0]);               \
    real *out = PG_AT(real, c->grad_in[0]), s = (real)c->p[0].num;                                                     \
    int64_t n = pg_numel(c->in[0]);                                                                                    \
    (void)s;                                                                                                           \
    _Pragma("omp parallel for schedule(static) if (n > 32768)") for (int64_t i = 0; i < n; i++) {                      \
      real x = in ? in[i] : 0;                                                                                         \
      (void)x;                                                                                                         \
      out[i] = g[i] * (derivative);                                                                                    \
    }                                                                                                                  \
    return PG_OK;                                                                                                      \
  }
SCALAR(add_scalar, x + s, 1)
SCALAR(mul_scalar, x *s, s)
SCALAR(pow_scalar, s == 2 ? x * x : R(pow)(x, s), s == 2 ? 2 * x : s == 0 ? 0 : s * R(pow)(x, s - 1))
#undef SCALAR

#else
#include "../op.h"

static int sum_and_release(pg_tensor *wide, pg_tensor *to) {
  int status = pg_sum_to(wide, to);
  pg_release(wide);
  return status;
}

static int sum_or_copy(const pg_tensor *wide, pg_tensor *to) {
  return pg_same_shape(wide, to) ? pg_copy_new(to, wide) : pg_sum_to(wide, to);
}

#define REALS_FILE "ops/binary.c"
#include "../reals.h"

/* ---- integers ---- */

static uint32_t int_power(uint32_t x, uint32_t n) {
  uint32_t y = 1;
  for (; n; n >>= 1, x *= x)
    if (n & 1) y *= x;
  return y;
}

/* The kernels see x and y as they are and, for what wraps, as unsigned: ux, uy. */
#define INT_BINARY(name, type, value)                                                                                  \
  static int name##_##type(pg_call *c) {                                                                               \
    pg_walk w = pg_walk_over(c->out[0], 2, (const pg_tensor *const *)c->in);                                           \
    const type *a = PG_AT(type, c->in[0]), *b = PG_AT(type, c->in[1]);                                                 \
    type *out = PG_AT(type, c->out[0]);                                                                                \
    PG_EACH_RUN(                                                                                                       \
        w, 2, for (int64_t i = 0; i < n; i++) {                                                                        \
          type x = a[at[0] + i * w.step[0]], y = b[at[1] + i * w.step[1]];                                             \
          uint32_t ux = (uint32_t)x, uy = (uint32_t)y;                                                                 \
          (void)ux, (void)uy;                                                                                          \
          out[begin + i] = (type)(value);                                                                              \
        })                                                                                                             \
    return PG_OK;                                                                                                      \
  }
#define INT_SCALAR(name, type, value)                                                                                  \
  static int name##_##type(pg_call *c) {                                                                               \
    const type *in = PG_AT(type, c->in[0]);                                                                            \
    type *out = PG_AT(type, c->out[0]);                                                                                \
    uint32_t s = (uint32_t)(int64_t)c->p[0].num;                                                                       \
    int64_t n = pg_numel(c->in[0]);                                                                                    \
    _Pragma("omp parallel for schedule(static) if (n > 32768)") for (int64_t i = 0; i < n; i++) {                      \
      uint32_t x = (uint32_t)in[i];                                                                                    \
      out[i] = (type)(value);                                                                                          \
    }                                                                                                                  \
    return PG_OK;                                                                                                      \
  }
#define INTEGERS(type)                                                                                                 \
  INT_BINARY(add, type, ux + uy)                                                                                       \
  INT_BINARY(sub, type, ux - uy)                                                                                       \
  INT_BINARY(mul, type, ux *uy)                                                                                        \
  INT_BINARY(div, type, (int64_t)x / (int64_t)y)                                                                       \
  INT_BINARY(pow, type, int_power(ux, uy))                                                                             \
  INT_BINARY(maximum, type, x > y ? x : y)                                                                             \
  INT_BINARY(minimum, type, x < y ? x : y)                                                                             \
  INT_SCALAR(add_scalar, type, x + s)                                                                                  \
  INT_SCALAR(mul_scalar, type, x *s)                                                                                   \
  INT_SCALAR(pow_scalar, type, int_power(x, s))
INTEGERS(int32_t)
INTEGERS(uint8_t)

/* ---- shapes ---- */

static int binary_shape(pg_call *c) {
  int64_t shape[PG_MAX_DIMS];
  int32_t ndim;
  PG_TRY(pg_broadcast(c, c->in[0], c->in[1], &ndim, shape));
  return pg_out(c, 0, c->in[0]->dtype, ndim, shape);
}

/* Refuses the first element of an integer b that is 0 (`zero`), or else that is negative. */
static int check_right(pg_call *c, bool zero, const char *why) {
  const pg_tensor *b = c->in[1];
  pg_tensor *flat;
  char place[128];
  if (pg_is_float(b->dtype) || b->device != PG_CPU) return PG_OK;
  PG_TRY(pg_contiguous((pg_tensor *)b, &flat));
  int64_t bad = -1, value = 0;
  for (int64_t i = 0, n = pg_numel(flat); i < n && bad < 0; i++) {
    value = b->dtype == PG_INT32 ? PG_AT(int32_t, flat)[i] : PG_AT(uint8_t, flat)[i];
    if (zero ? value == 0 : value < 0) bad = i;
  }
  pg_release(flat);
  if (bad < 0) return PG_OK;
  return pg_op_fail(c, "b%s is %lld, and %s %s", pg_place_text(b, bad, place), (long long)value,
                    pg_dtype_name(b->dtype), why);
}

static int div_shape(pg_call *c) {
  PG_TRY(binary_shape(c));
  return check_right(c, true, "has no quotient by 0");
}

static int pow_shape(pg_call *c) {
  PG_TRY(binary_shape(c));
  return check_right(c, false, "takes exponents of 0 or more; convert a and b to a floating dtype first");
}

static int scalar_shape(pg_call *c) {
  PG_TRY(pg_check_value(c, c->in[0], c->p[0].num));
  return pg_out_like(c, 0, c->in[0]);
}

static int pow_scalar_shape(pg_call *c) {
  if (!pg_is_float(c->in[0]->dtype) && c->p[0].num < 0)
    return pg_op_fail(c, "value = %g, and %s takes exponents of 0 or more; convert x to a floating dtype first",
                      c->p[0].num, pg_dtype_name(c->in[0]->dtype));
  return scalar_shape(c);
}

#define KERNELS(name)                                                                                                  \
  {                                                                                                                    \
    [PG_FLOAT32] = name##_forward_f32, [PG_FLOAT64] = name##_forward_f64, [PG_INT32] = name##_int32_t,                 \
    [PG_UINT8] = name##_uint8_t                                                                                        \
  }
#define BINARY_OP(NAME, FLAGS, DOC, SHAPE, NEEDS, ...)                                                                 \
  const pg_op pg_op_##NAME = {                                                                                         \
      .info = {.name = #NAME,                                                                                          \
               .doc = DOC,                                                                                             \
               .inputs = PG_ARGS({"a", PG_STRIDED, "any shape and dtype"},                                             \
                                 {"b", PG_STRIDED, "the dtype of a, a shape that broadcasts with a; or a number"}),    \
               .outputs = PG_ARGS({"z", 0, "the broadcast shape"}),                                                    \
               .samples = PG_SAMPLES(__VA_ARGS__),                                                                     \
               .method = 1},                                                                                           \
      .flags = FLAGS,                                                                                                  \
      .shape = SHAPE,                                                                                                  \
      .needs = NEEDS,                                                                                                  \
      .forward = KERNELS(NAME),                                                                                        \
      .backward = PG_REALS(NAME##_backward)};
#define BOTH (PG_NEED_IN(0) | PG_NEED_IN(1))
BINARY_OP(add, PG_F_SUM, "a + b, with broadcasting; integers wrap around", binary_shape, 0,
          "{a = randn(3, 4), b = randn(3, 4)}", "{a = randn(2, 3, 4), b = randn(4)}",
          "{a = randn(3, 1), b = randn(1, 4)}", "{a = randn(2, 3, 4), b = randn(2, 1, 1)}")
BINARY_OP(sub, 0, "a - b, with broadcasting; integers wrap around", binary_shape, 0, "{a = randn(3, 4), b = randn(4)}",
          "{a = randn(4), b = randn(2, 1, 4)}")
BINARY_OP(mul, 0, "a * b, with broadcasting; integers wrap around", binary_shape, BOTH,
          "{a = randn(3, 4), b = randn(3, 4)}", "{a = randn(2, 3, 4), b = randn(3, 1)}",
          "{a = randn(2, 3, 2, 4), b = randn(3, 1, 4)}")
BINARY_OP(div, 0, "a / b, with broadcasting; integers truncate towards 0, and an integer b of 0 is an error", div_shape,
          BOTH, "{a = randn(3, 4), b = uniform(0.5, 2, 3, 4)}", "{a = randn(4), b = uniform(1, 2, 3, 4)}",
          "{a = ints(9, 3, 4), b = ints(3, 4)}")
BINARY_OP(pow, 0, "a ^ b, with broadcasting; integers wrap around and take no negative exponent", pow_shape, BOTH,
          "{a = uniform(0.5, 2, 3, 4), b = randn(4)}", "{a = ints(9, 3, 4), b = ints(3, 4)}")
BINARY_OP(maximum, 0, "the greater of a and b, with broadcasting; NaN wins; equal ones share the gradient",
          binary_shape, BOTH, "{a = randn(3, 4), b = randn(4)}")
BINARY_OP(minimum, 0, "the lesser of a and b, with broadcasting; NaN wins; equal ones share the gradient", binary_shape,
          BOTH, "{a = randn(3, 4), b = randn(4)}")

#define SCALAR_OP(NAME, FLAGS, DOC, SHAPE, NEEDS, ...)                                                                 \
  const pg_op pg_op_##NAME = {                                                                                         \
      .info = {.name = #NAME,                                                                                          \
               .doc = DOC,                                                                                             \
               .inputs = PG_ARGS({"x", 0, "any shape and dtype"}),                                                     \
               .outputs = PG_ARGS({"y", 0, "the shape of x"}),                                                         \
               .params =                                                                                               \
                   PG_PARAMS(PG_NUM("value", NAN, 0, 0, "the number; one of x's dtype where that is an integer")),     \
               .samples = PG_SAMPLES(__VA_ARGS__),                                                                     \
               .method = 1},                                                                                           \
      .flags = FLAGS,                                                                                                  \
      .shape = SHAPE,                                                                                                  \
      .needs = NEEDS,                                                                                                  \
      .forward = KERNELS(NAME),                                                                                        \
      .backward = PG_REALS(NAME##_backward)};
SCALAR_OP(add_scalar, PG_F_SUM, "x + value", scalar_shape, 0, "{x = randn(3, 4), value = 2.5}",
          "{x = ints(9, 3, 4), value = -7}")
SCALAR_OP(mul_scalar, 0, "x * value", scalar_shape, 0, "{x = randn(3, 4), value = -3}", "{x = bytes(9, 5), value = 7}")
SCALAR_OP(pow_scalar, 0, "x ^ value; integers wrap around and take no negative exponent", pow_scalar_shape,
          PG_NEED_IN(0), "{x = uniform(0.5, 2, 3, 4), value = 1.7}", "{x = randn(5), value = 2}",
          "{x = ints(9, 5), value = 3}")
#endif
