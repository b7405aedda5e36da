/* unary.c - y = f(x), element by element. Backward: dx = dy * f'(x), with f' written from x and y.
 *
 * Each function is one row of kernels (forward expression, derivative expression) and one descriptor below. */
#ifdef REAL

#define UNARY(name, value, derivative)                                                                                 \
  PG_SIMD static void K(name##_run)(int64_t n, const real *restrict in, real *restrict out) {                          \
    for (int64_t i = 0; i < n; i++) {                                                                                  \
      real x = in[i];                                                                                                  \
      out[i] = (value);                                                                                                \
    }                                                                                                                  \
  }                                                                                                                    \
  PG_SIMD static void K(name##_grad)(int64_t n, const real *restrict in, const real *restrict out,                     \
                                     const real *restrict dout, real *restrict din) {                                  \
    for (int64_t i = 0; i < n; i++) {                                                                                  \
      real x = in[i], y = out[i];                                                                                      \
      (void)x, (void)y;                                                                                                \
      din[i] = dout[i] * (derivative);                                                                                 \
    }                                                                                                                  \
  }                                                                                                                    \
  static int K(name##_forward)(pg_call * c) {                                                                          \
    const real *x = PG_AT(real, c->in[0]);                                                                             \
    real *y = PG_AT(real, c->out[0]);                                                                                  \
    EACH_PIECE(c->in[0], K(name##_run)(length, x + begin, y + begin))                                                  \
  }                                                                                                                    \
  static int K(name##_backward)(pg_call * c) {                                                                         \
    const real *x = c->in[0]->storage ? PG_AT(real, c->in[0]) : NULL;                                                  \
    const real *y = c->out[0]->storage ? PG_AT(real, c->out[0]) : NULL, *dy = PG_AT(real, c->grad_out[0]);             \
    real *dx = PG_AT(real, c->grad_in[0]);                                                                             \
    if (!x) x = dy; /* what the derivative does not use is not kept; something must stand there */                     \
    if (!y) y = dy;                                                                                                    \
    EACH_PIECE(c->in[0], K(name##_grad)(length, x + begin, y + begin, dy + begin, dx + begin))                         \
  }

UNARY(neg, -x, -1)
UNARY(abs, R(fabs)(x), (real)((x > 0) - (x < 0)))
UNARY(exp, K(v_exp)(x), y)
UNARY(log, R(log)(x), 1 / x)
UNARY(sqrt, R(sqrt)(x), (real)0.5 / y)
UNARY(rsqrt, 1 / R(sqrt)(x), (real)-0.5 * y * y * y)
UNARY(tanh, K(v_tanh)(x), 1 - y * y)
UNARY(sigmoid, K(v_sigmoid)(x), y *(1 - y))
UNARY(silu, x *K(v_sigmoid)(x), (K(v_sigmoid)(x) * (1 + x * (1 - K(v_sigmoid)(x)))))
UNARY(relu, x > 0 ? x : x != x ? x : 0, (real)(x > 0))
UNARY(gelu, K(v_gelu)(x), K(v_gelu_slope)(x))
UNARY(quick_gelu, x *K(v_sigmoid)((real)1.702 * x),
      (K(v_sigmoid)((real)1.702 * x) * (1 + (real)1.702 * x * (1 - K(v_sigmoid)((real)1.702 * x)))))
UNARY(softplus, K(v_softplus)(x), K(v_sigmoid)(x))
#undef UNARY

PG_SIMD static void K(clamp_run)(int64_t n, const real *restrict x, real lo, real hi, real *restrict y) {
  for (int64_t i = 0; i < n; i++) y[i] = x[i] < lo ? lo : x[i] > hi ? hi : x[i];
}

PG_SIMD static void K(clamp_grad)(int64_t n, const real *restrict x, const real *restrict dy, real lo, real hi,
                                  real *restrict dx) { /* the ends let the gradient through */
  for (int64_t i = 0; i < n; i++) dx[i] = x[i] >= lo && x[i] <= hi ? dy[i] : 0;
}

static int K(clamp_forward)(pg_call *c) {
  const real *x = PG_AT(real, c->in[0]), lo = (real)c->p[0].num, hi = (real)c->p[1].num;
  real *y = PG_AT(real, c->out[0]);
  EACH_PIECE(c->in[0], K(clamp_run)(length, x + begin, lo, hi, y + begin))
}

static int K(clamp_backward)(pg_call *c) {
  const real *x = PG_AT(real, c->in[0]), *dy = PG_AT(real, c->grad_out[0]), lo = (real)c->p[0].num,
             hi = (real)c->p[1].num;
  real *dx = PG_AT(real, c->grad_in[0]);
  EACH_PIECE(c->in[0], K(clamp_grad)(length, x + begin, dy + begin, lo, hi, dx + begin))
}

#else
#include "../op.h"
#include "../vmath.h"

/* Pieces of 16 Ki elements, shared out among the threads; the body sees begin and length. A small tensor does without
 * the parallel region: even one of a single thread makes a system call when it ends. */
#define EACH_PIECE(t, body)                                                                                            \
  enum { PIECE = 16384 };                                                                                              \
  int64_t total = pg_numel(t);                                                                                         \
  if (total <= 2 * PIECE) {                                                                                            \
    int64_t begin = 0, length = total;                                                                                 \
    body;                                                                                                              \
    return PG_OK;                                                                                                      \
  }                                                                                                                    \
  _Pragma("omp parallel for schedule(static)") for (int64_t begin = 0; begin < total; begin += PIECE) {                \
    if (pg_stopping()) continue;                                                                                       \
    int64_t length = PG_MIN(PIECE, total - begin);                                                                     \
    body;                                                                                                              \
  }                                                                                                                    \
  return PG_OK;

#define REALS_FILE "ops/unary.c"
#include "../reals.h"

static int unary_shape(pg_call *c) { return pg_out_like(c, 0, c->in[0]); }

static int int_neg(pg_call *c) {
  for (int64_t i = 0, n = pg_numel(c->in[0]); i < n; i++)
    PG_AT(int32_t, c->out[0])[i] = (int32_t)(0u - (uint32_t)PG_AT(int32_t, c->in[0])[i]);
  return PG_OK;
}

static int int_abs(pg_call *c) {
  for (int64_t i = 0, n = pg_numel(c->in[0]); i < n; i++) {
    int32_t x = PG_AT(int32_t, c->in[0])[i];
    PG_AT(int32_t, c->out[0])[i] = x < 0 ? (int32_t)(0u - (uint32_t)x) : x;
  }
  return PG_OK;
}

#define UNARY_OP(NAME, DOC, SOURCE, NEEDS, INT, ...)                                                                   \
  const pg_op pg_op_##NAME = {                                                                                         \
      .info = {.name = #NAME,                                                                                          \
               .doc = DOC,                                                                                             \
               .source = SOURCE,                                                                                       \
               .inputs = PG_ARGS({"x", 0, "any shape, float"}),                                                        \
               .outputs = PG_ARGS({"y", 0, "the shape of x"}),                                                         \
               .samples = PG_SAMPLES(__VA_ARGS__),                                                                     \
               .method = 1},                                                                                           \
      .cheap = (NEEDS) == X ? pg_always : NULL, /* x is kept anyway */                                                 \
      .shape = unary_shape,                                                                                            \
      .needs = NEEDS,                                                                                                  \
      .forward = {[PG_FLOAT32] = NAME##_forward_f32, [PG_FLOAT64] = NAME##_forward_f64, [PG_INT32] = INT},             \
      .backward = PG_REALS(NAME##_backward)};

#define X PG_NEED_IN(0)
#define Y PG_NEED_OUT(0)
UNARY_OP(neg, "-x", NULL, 0, int_neg, "{x = randn(3, 4)}")
UNARY_OP(abs, "|x|; the gradient at 0 is 0", NULL, X, int_abs, "{x = uniform(0.1, 2, 3, 4)}")
UNARY_OP(exp, "e^x", NULL, Y, NULL, "{x = randn(3, 4)}", "{x = randn(7)}")
UNARY_OP(log, "natural logarithm of x", NULL, X, NULL, "{x = uniform(0.5, 2, 3, 4)}")
UNARY_OP(sqrt, "square root of x", NULL, Y, NULL, "{x = uniform(0.5, 2, 3, 4)}")
UNARY_OP(rsqrt, "1 / sqrt(x)", NULL, Y, NULL, "{x = uniform(0.5, 2, 3, 4)}")
UNARY_OP(tanh, "hyperbolic tangent of x", NULL, Y, NULL, "{x = randn(3, 4)}")
UNARY_OP(sigmoid, "1 / (1 + e^-x)", NULL, Y, NULL, "{x = randn(3, 4)}")
UNARY_OP(silu, "x * sigmoid(x)", "Elfwing et al., arXiv 1702.03118", X, NULL, "{x = randn(3, 4)}")
UNARY_OP(relu, "max(x, 0); the gradient at 0 is 0", NULL, X, NULL, "{x = uniform(0.1, 1, 3, 4)}")
UNARY_OP(gelu, "x/2 (1 + erf(x / sqrt 2))", "Hendrycks and Gimpel, arXiv 1606.08415", X, NULL, "{x = randn(3, 4)}",
         "{x = randn(2, 3, 4)}")
UNARY_OP(quick_gelu, "x * sigmoid(1.702 x), the activation of OpenAI's CLIP", "openai/CLIP clip/model.py", X, NULL,
         "{x = randn(3, 4)}")
UNARY_OP(softplus, "log(1 + e^x), without overflow", NULL, X, NULL, "{x = randn(3, 4)}")

static int clamp_shape(pg_call *c) {
  double lo = c->p[0].num, hi = c->p[1].num;
  if (!(lo <= hi)) return pg_op_fail(c, "lo = %g and hi = %g; lo must be at most hi", lo, hi);
  return unary_shape(c);
}

const pg_op pg_op_clamp = {.info = {.name = "clamp",
                                    .doc = "x limited to lo..hi",
                                    .inputs = PG_ARGS({"x", 0, "any shape, float"}),
                                    .outputs = PG_ARGS({"y", 0, "the shape of x"}),
                                    .params = PG_PARAMS(PG_NUM("lo", -INFINITY, 0, 0, "least value"),
                                                        PG_NUM("hi", INFINITY, 0, 0, "greatest value")),
                                    .samples = PG_SAMPLES("{x = randn(3, 4), lo = -0.513, hi = 0.717}"),
                                    .method = 1},
                           .shape = clamp_shape,
                           .needs = X,
                           .forward = PG_REALS(clamp_forward),
                           .backward = PG_REALS(clamp_backward)};
#endif
