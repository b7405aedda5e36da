/* binary.c - z = f(a, b) with NumPy's broadcasting, and the same with a number in place of b.
 *
 * Backward: each operand's gradient is computed at the broadcast shape and summed over the dimensions that it was
 * stretched along, in a fixed order. */
#ifdef REAL

/* Calls the body for every element with x, y its operands and i its place in the output; operands by their strides. */
#define BINARY(name, value, da, db)                                                                                    \
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
  PG_SIMD static void K(name##_run_a)(int64_t n, const real *a, int64_t sa, const real *b, int64_t sb,                 \
                                      const real *restrict g, real *restrict out) {                                    \
    for (int64_t i = 0; i < n; i++) {                                                                                  \
      real x = a[i * sa], y = b[i * sb];                                                                               \
      (void)x, (void)y;                                                                                                \
      out[i] = g[i] * (da);                                                                                            \
    }                                                                                                                  \
  }                                                                                                                    \
  PG_SIMD static void K(name##_run_b)(int64_t n, const real *a, int64_t sa, const real *b, int64_t sb,                 \
                                      const real *restrict g, real *restrict out) {                                    \
    for (int64_t i = 0; i < n; i++) {                                                                                  \
      real x = a[i * sa], y = b[i * sb];                                                                               \
      (void)x, (void)y;                                                                                                \
      out[i] = g[i] * (db);                                                                                            \
    }                                                                                                                  \
  }                                                                                                                    \
  static int K(name##_forward)(pg_call * c) {                                                                          \
    walk w = walk_over(c->in[0], c->in[1], c->out[0]);                                                                 \
    const real *a = PG_AT(real, c->in[0]), *b = PG_AT(real, c->in[1]);                                                 \
    real *out = PG_AT(real, c->out[0]);                                                                                \
    EACH_RUN(w, K(name##_run)(length, a + at_a, w.run_a, b + at_b, w.run_b, out + at))                                 \
  }                                                                                                                    \
  static int K(name##_side)(pg_call * c, int side) {                                                                   \
    pg_tensor *g = c->grad_out[0], *wide = c->grad_in[side];                                                           \
    if (!wide) return PG_OK;                                                                                           \
    bool stretched = !pg_same_shape(wide, g);                                                                          \
    if (stretched) PG_TRY(pg_new_like(g, &wide));                                                                      \
    walk w = walk_over(c->in[0], c->in[1], g);                                                                         \
    const real *a = PG_AT(real, c->in[0]), *b = PG_AT(real, c->in[1]), *dout = PG_AT(real, g);                         \
    real *out = PG_AT(real, wide);                                                                                     \
    if (side) {                                                                                                        \
      WALK(K(name##_run_b), w, a, b, dout, out)                                                                        \
    } else {                                                                                                           \
      WALK(K(name##_run_a), w, a, b, dout, out)                                                                        \
    }                                                                                                                  \
    if (stretched) K(sum_to)(wide, c->grad_in[side]), pg_release(wide);                                                \
    return PG_OK;                                                                                                      \
  }                                                                                                                    \
  static int K(name##_backward)(pg_call * c) {                                                                         \
    PG_TRY(K(name##_side)(c, 0));                                                                                      \
    return K(name##_side)(c, 1);                                                                                       \
  }

/* small += wide, over the dimensions in which small has size 1 or is missing. */
static void K(sum_to)(const pg_tensor *wide, pg_tensor *small) {
  int64_t stride[PG_MAX_DIMS] = {0}, n = pg_numel(wide), inner = wide->ndim ? wide->shape[wide->ndim - 1] : 1;
  int32_t skip = wide->ndim - small->ndim;
  for (int32_t i = 0; i < small->ndim; i++) stride[i + skip] = small->shape[i] == 1 ? 0 : small->stride[i];
  const real *from = PG_AT(real, wide);
  real *to = PG_AT(real, small);
  memset(to, 0, sizeof(real) * (size_t)pg_numel(small));
  int64_t last = wide->ndim ? stride[wide->ndim - 1] : 0;
  for (int64_t row = 0; inner && row < n / inner; row++) {
    int64_t at = 0, rest = row;
    for (int32_t i = wide->ndim - 2; i >= 0; i--) at += rest % wide->shape[i] * stride[i], rest /= wide->shape[i];
    const real *x = from + row * inner;
    if (last)
      for (int64_t i = 0; i < inner; i++) to[at + i] += x[i];
    else {
      double sum = 0;
      for (int64_t i = 0; i < inner; i++) sum += x[i];
      to[at] += (real)sum;
    }
  }
}

BINARY(add, x + y, 1, 1)
BINARY(sub, x - y, 1, -1)
BINARY(mul, x *y, y, x)
BINARY(div, x / y, 1 / y, -x / (y * y))
BINARY(pow, R(pow)(x, y), y *R(pow)(x, y - 1), (x > 0 ? R(pow)(x, y) * R(log)(x) : 0))
BINARY(maximum, x != x || x > y ? x : y, (real)(x > y) + (x == y) * (real)0.5, (real)(y > x) + (x == y) * (real)0.5)
BINARY(minimum, x != x || x < y ? x : y, (real)(x < y) + (x == y) * (real)0.5, (real)(y < x) + (x == y) * (real)0.5)
#undef BINARY

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
SCALAR(pow_scalar, s == 2 ? x * x : R(pow)(x, s), s == 2 ? 2 * x : s * R(pow)(x, s - 1))
#undef SCALAR

static int K(where_pick)(pg_call *c) {
  const uint8_t *pick = PG_AT(uint8_t, c->in[0]);
  const real *a = PG_AT(real, c->in[1]), *b = PG_AT(real, c->in[2]);
  real *out = PG_AT(real, c->out[0]);
  for (int64_t i = 0, n = pg_numel(c->out[0]); i < n; i++) out[i] = pick[i] ? a[i] : b[i];
  return PG_OK;
}

static int K(where_grad)(pg_call *c) {
  const uint8_t *pick = PG_AT(uint8_t, c->in[0]);
  const real *g = PG_AT(real, c->grad_out[0]);
  for (int side = 1; side <= 2; side++)
    for (int64_t i = 0, n = c->grad_in[side] ? pg_numel(c->out[0]) : 0; i < n; i++)
      PG_AT(real, c->grad_in[side])[i] = (pick[i] != 0) == (side == 1) ? g[i] : 0;
  return PG_OK;
}

#else
#include "../op.h"

typedef struct walk { /* two operands against an output, in runs along its last dimension */
  int32_t ndim;
  int64_t shape[PG_MAX_DIMS], a[PG_MAX_DIMS], b[PG_MAX_DIMS]; /* all dimensions but the last run */
  int64_t runs, length, run_a, run_b;
} walk;

static walk walk_over(const pg_tensor *a, const pg_tensor *b, const pg_tensor *out) {
  walk w = {0};
  for (int32_t i = 0; i < out->ndim; i++) { /* dimensions that run on in both operands are merged */
    int32_t ia = i - (out->ndim - a->ndim), ib = i - (out->ndim - b->ndim);
    int64_t n = out->shape[i], sa = ia < 0 || a->shape[ia] == 1 ? 0 : a->stride[ia];
    int64_t sb = ib < 0 || b->shape[ib] == 1 ? 0 : b->stride[ib];
    if (n == 1 && out->ndim > 1) continue;
    int32_t k = w.ndim - 1;
    if (w.ndim && w.a[k] == sa * n && w.b[k] == sb * n)
      w.shape[k] *= n, w.a[k] = sa, w.b[k] = sb;
    else
      w.shape[w.ndim] = n, w.a[w.ndim] = sa, w.b[w.ndim] = sb, w.ndim++;
  }
  if (!w.ndim) w.shape[w.ndim++] = 1;
  w.ndim--;
  w.length = w.shape[w.ndim], w.run_a = w.a[w.ndim], w.run_b = w.b[w.ndim], w.runs = 1;
  for (int32_t i = 0; i < w.ndim; i++) w.runs *= w.shape[i];
  if (w.runs == 1 && w.length > 32768) { /* one long run: cut it, so that threads can share it */
    int64_t piece = 16384;
    while (piece > 64 && w.length % piece) piece >>= 1;
    if (w.length % piece == 0)
      w.ndim = 1, w.shape[0] = w.runs = w.length / piece, w.a[0] = w.run_a * piece, w.b[0] = w.run_b * piece,
      w.length = piece;
  }
  return w;
}

#define EACH_RUN(w, ...)                                                                                               \
  _Pragma("omp parallel for schedule(static) if (w.runs > 1 && w.runs * w.length > 32768)") for (int64_t r = 0;        \
                                                                                                 r < w.runs; r++) {    \
    int64_t length = w.length, at = r * length, at_a = 0, at_b = 0, rest = r;                                          \
    for (int32_t d = w.ndim - 1; d >= 0; d--) {                                                                        \
      int64_t step = rest % w.shape[d];                                                                                \
      rest /= w.shape[d], at_a += step * w.a[d], at_b += step * w.b[d];                                                \
    }                                                                                                                  \
    __VA_ARGS__;                                                                                                       \
  }                                                                                                                    \
  return PG_OK;

#define WALK(kernel, w, a, b, g, out)                                                                                  \
  for (int64_t r = 0; r < w.runs; r++) {                                                                               \
    int64_t at = r * w.length, at_a = 0, at_b = 0, rest = r;                                                           \
    for (int32_t d = w.ndim - 1; d >= 0; d--) {                                                                        \
      int64_t step = rest % w.shape[d];                                                                                \
      rest /= w.shape[d], at_a += step * w.a[d], at_b += step * w.b[d];                                                \
    }                                                                                                                  \
    kernel(w.length, a + at_a, w.run_a, b + at_b, w.run_b, g + at, out + at);                                          \
  }

#define REALS_FILE "ops/binary.c"
#include "../reals.h"

/* ---- integers ---- */
#define INT_BINARY(name, value)                                                                                        \
  static int name##_int(pg_call *c) {                                                                                  \
    walk w = walk_over(c->in[0], c->in[1], c->out[0]);                                                                 \
    const int32_t *a = PG_AT(int32_t, c->in[0]), *b = PG_AT(int32_t, c->in[1]);                                        \
    int32_t *out = PG_AT(int32_t, c->out[0]);                                                                          \
    EACH_RUN(                                                                                                          \
        w, for (int64_t i = 0; i < length; i++) {                                                                      \
          uint32_t x = (uint32_t)a[at_a + i * w.run_a], y = (uint32_t)b[at_b + i * w.run_b];                           \
          out[at + i] = (int32_t)(value);                                                                              \
        })                                                                                                             \
  }
INT_BINARY(add, x + y)
INT_BINARY(sub, x - y)
INT_BINARY(mul, x *y)
INT_BINARY(maximum, (int32_t)x > (int32_t)y ? x : y)
INT_BINARY(minimum, (int32_t)x < (int32_t)y ? x : y)

static int add_scalar_int(pg_call *c) {
  for (int64_t i = 0, n = pg_numel(c->in[0]); i < n; i++)
    PG_AT(int32_t, c->out[0])[i] = (int32_t)((uint32_t)PG_AT(int32_t, c->in[0])[i] + (uint32_t)(int32_t)c->p[0].num);
  return PG_OK;
}

static int mul_scalar_int(pg_call *c) {
  for (int64_t i = 0, n = pg_numel(c->in[0]); i < n; i++)
    PG_AT(int32_t, c->out[0])[i] = (int32_t)((uint32_t)PG_AT(int32_t, c->in[0])[i] * (uint32_t)(int32_t)c->p[0].num);
  return PG_OK;
}

static int binary_shape(pg_call *c) {
  int64_t shape[PG_MAX_DIMS];
  int32_t ndim;
  PG_TRY(pg_broadcast(c, c->in[0], c->in[1], &ndim, shape));
  return pg_out(c, 0, c->in[0]->dtype, ndim, shape);
}

static int scalar_shape(pg_call *c) { return pg_out_like(c, 0, c->in[0]); }

#define BINARY_OP(NAME, DOC, INT, ...)                                                                                 \
  const pg_op pg_op_##NAME = {                                                                                         \
      .info = {.name = #NAME,                                                                                          \
               .doc = DOC ", with broadcasting",                                                                       \
               .inputs = PG_ARGS({"a", PG_STRIDED, "any shape"}, {"b", PG_STRIDED, "a shape that broadcasts with a"}), \
               .outputs = PG_ARGS({"z", 0, "the broadcast shape"}),                                                    \
               .samples = PG_SAMPLES(__VA_ARGS__),                                                                     \
               .method = 1},                                                                                           \
      .shape = binary_shape,                                                                                           \
      .needs = PG_NEED_IN(0) | PG_NEED_IN(1),                                                                          \
      .forward = {[PG_FLOAT32] = NAME##_forward_f32, [PG_FLOAT64] = NAME##_forward_f64, [PG_INT32] = INT},             \
      .backward = PG_REALS(NAME##_backward)};
BINARY_OP(add, "a + b", add_int, "{a = randn(3, 4), b = randn(3, 4)}", "{a = randn(2, 3, 4), b = randn(4)}",
          "{a = randn(3, 1), b = randn(1, 4)}")
BINARY_OP(sub, "a - b", sub_int, "{a = randn(3, 4), b = randn(4)}", "{a = randn(4), b = randn(2, 1, 4)}")
BINARY_OP(mul, "a * b", mul_int, "{a = randn(3, 4), b = randn(3, 4)}", "{a = randn(2, 3, 4), b = randn(3, 1)}")
BINARY_OP(div, "a / b", NULL, "{a = randn(3, 4), b = uniform(0.5, 2, 3, 4)}", "{a = randn(4), b = uniform(1, 2, 3, 4)}")
BINARY_OP(pow, "a ^ b", NULL, "{a = uniform(0.5, 2, 3, 4), b = randn(4)}")
BINARY_OP(maximum, "the greater of a and b; equal ones share the gradient", maximum_int,
          "{a = randn(3, 4), b = randn(4)}")
BINARY_OP(minimum, "the lesser of a and b; equal ones share the gradient", minimum_int,
          "{a = randn(3, 4), b = randn(4)}")

#define SCALAR_OP(NAME, DOC, NEEDS, INT, ...)                                                                          \
  const pg_op pg_op_##NAME = {                                                                                         \
      .info = {.name = #NAME,                                                                                          \
               .doc = DOC,                                                                                             \
               .inputs = PG_ARGS({"x", 0, "any shape"}),                                                               \
               .outputs = PG_ARGS({"y", 0, "the shape of x"}),                                                         \
               .params = PG_PARAMS(PG_NUM("value", NAN, 0, 0, "the number")),                                          \
               .samples = PG_SAMPLES(__VA_ARGS__),                                                                     \
               .method = 1},                                                                                           \
      .shape = scalar_shape,                                                                                           \
      .needs = NEEDS,                                                                                                  \
      .forward = {[PG_FLOAT32] = NAME##_forward_f32, [PG_FLOAT64] = NAME##_forward_f64, [PG_INT32] = INT},             \
      .backward = PG_REALS(NAME##_backward)};
SCALAR_OP(add_scalar, "x + value", 0, add_scalar_int, "{x = randn(3, 4), value = 2.5}")
SCALAR_OP(mul_scalar, "x * value", 0, mul_scalar_int, "{x = randn(3, 4), value = -3}")
SCALAR_OP(pow_scalar, "x ^ value", PG_NEED_IN(0), NULL, "{x = uniform(0.5, 2, 3, 4), value = 1.7}",
          "{x = randn(5), value = 2}")

static int where_shape(pg_call *c) {
  if (!pg_same_shape(c->in[0], c->in[1]) || !pg_same_shape(c->in[1], c->in[2]))
    return pg_op_fail(c, "the three shapes must be equal (use expand)");
  if (c->in[0]->dtype != PG_UINT8 || c->in[1]->dtype != c->in[2]->dtype || !pg_is_float(c->in[1]->dtype))
    return pg_fail(PG_ERR_DTYPE, "where: takes cond uint8 and a, b of one floating dtype");
  return pg_out_like(c, 0, c->in[1]);
}
static int where_forward(pg_call *c) { return c->in[1]->dtype == PG_FLOAT32 ? where_pick_f32(c) : where_pick_f64(c); }
static int where_backward(pg_call *c) { return c->in[1]->dtype == PG_FLOAT32 ? where_grad_f32(c) : where_grad_f64(c); }

const pg_op pg_op_where = {.info = {.name = "where",
                                    .doc = "a where cond is not 0, else b",
                                    .inputs = PG_ARGS({"cond", 0, "uint8"}, {"a", 0, "float, the shape of cond"},
                                                      {"b", 0, "float, the shape of cond"}),
                                    .outputs = PG_ARGS({"z", 0, "the shape of cond"}),
                                    .samples = PG_SAMPLES("{cond = bytes(2, 3, 4), a = randn(3, 4), b = randn(3, 4)}")},
                           .shape = where_shape,
                           .needs = PG_NEED_IN(0),
                           .forward = {[PG_UINT8] = where_forward},
                           .backward = {[PG_UINT8] = where_backward}};
#endif
