/* reduce.c - sum, mean, max, min, var, logsumexp, norm, argmax and argmin, over any dimensions.
 *
 * The input is brought to (rows, n): the kept dimensions first, the reduced ones last, each kind in x's order. Each row
 * is then one serial pass, rows in parallel, so the result does not depend on the number of threads. Sums are kept in
 * double.
 *
 * NaN wins everywhere: a row that holds one gives NaN, and for argmax and argmin the first NaN's position. Over zero
 * elements sum and norm are 0 and logsumexp is -inf; the others have no value, which is an error.
 *
 * norm: y = (sum |x_i|^p)^(1/p), for p = inf the greatest |x_i|; dx_i = dy sign(x_i) (|x_i| / y)^(p-1), for p = inf dy
 * shared by those with |x_i| = y. Where y or x_i is 0, so is dx_i. */
#ifdef REAL

#define ROWS(...)                                                                                                      \
  _Pragma("omp parallel for schedule(static) if (s.rows > 1 && s.rows * s.n > 16384)") for (int64_t r = 0; r < s.rows; \
                                                                                            r++) {                     \
    if (pg_stopping()) continue;                                                                                       \
    const real *x = flat + r * s.n;                                                                                    \
    __VA_ARGS__                                                                                                        \
  }

PG_SIMD static double K(sum_row)(int64_t n, const real *x) { /* eight partial sums */
  double part[8] = {0}, sum = 0;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int k = 0; k < 8; k++) part[k] += x[i + k];
  for (; i < n; i++) sum += x[i];
  return sum + ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

static int64_t K(best)(int64_t n, const real *x, int sign) { /* the first greatest, or the first NaN */
  int64_t at = 0;
  for (int64_t i = 0; i < n; i++) {
    if (x[i] != x[i]) return i;
    if (sign > 0 ? x[i] > x[at] : x[i] < x[at]) at = i;
  }
  return at;
}

static double K(norm_row)(int64_t n, const real *x, double p) {
  double sum = 0, top = 0;
  if (p == 2) {
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    if (isnormal(sum)) return sqrt(sum); /* else squares left the range, or there are infinities, NaN or only zeros */
    sum = 0;
  }
  for (int64_t i = 0; i < n; i++) {
    if (x[i] != x[i]) return NAN;
    top = PG_MAX(top, fabs((double)x[i]));
  }
  if (top == 0 || isinf(top) || isinf(p)) return top;
  if (p == 1)
    for (int64_t i = 0; i < n; i++) sum += fabs(x[i] / top);
  else
    for (int64_t i = 0; i < n; i++) sum += pow(fabs(x[i] / top), p);
  return top * pow(sum, 1 / p);
}

static void K(norm_slope)(int64_t n, const real *x, double p, real y, real g, real *dx) {
  int64_t ties = 0;
  if (isinf(p))
    for (int64_t i = 0; i < n; i++) ties += R(fabs)(x[i]) == y;
  for (int64_t i = 0; i < n; i++) {
    double size = fabs((double)x[i]), slope;
    if (x[i] == 0 || y == 0)
      slope = 0;
    else if (isinf(p))
      slope = y != y ? y : size == y ? 1 / (double)ties : 0;
    else
      slope = p == 2 ? size / y : p == 1 ? 1 : pow(size / y, p - 1);
    dx[i] = (real)(g * copysign(slope, (double)x[i]));
  }
}

static int K(reduce_run)(pg_call *c, kind what) {
  split s;
  pg_tensor *held;
  PG_TRY(gather_rows(c, &s, &held));
  const real *flat = PG_AT(real, held);
  real *out = PG_AT(real, c->out[0]);
  int32_t *index = PG_AT(int32_t, c->out[0]);
  bool unbiased = what == VAR && c->p[2].ints[0];
  double p = what == NORM ? c->p[2].num : 0;
  ROWS(switch (what) {
    case SUM: out[r] = (real)K(sum_row)(s.n, x); break;
    case MEAN: out[r] = (real)(K(sum_row)(s.n, x) / (double)s.n); break;
    case MAX: out[r] = x[K(best)(s.n, x, 1)]; break;
    case MIN: out[r] = x[K(best)(s.n, x, -1)]; break;
    case ARGMAX: index[r] = (int32_t)K(best)(s.n, x, 1); break;
    case ARGMIN: index[r] = (int32_t)K(best)(s.n, x, -1); break;
    case NORM: out[r] = (real)K(norm_row)(s.n, x, p); break;
    case VAR: {
      double mean = K(sum_row)(s.n, x) / (double)s.n, sum = 0;
      for (int64_t i = 0; i < s.n; i++) sum += (x[i] - mean) * (x[i] - mean);
      out[r] = (real)(sum / (double)(s.n - unbiased));
      break;
    }
    case LOGSUMEXP: {
      real top = s.n ? x[K(best)(s.n, x, 1)] : (real)-INFINITY;
      double sum = 0;
      if (!isfinite(top)) {
        out[r] = top;
        break;
      }
      for (int64_t i = 0; i < s.n; i++) sum += exp((double)x[i] - top);
      out[r] = (real)(top + log(sum));
      break;
    }
  })
  pg_release(held);
  return PG_OK;
}

static int K(reduce_grad)(pg_call *c, kind what) {
  split s;
  pg_tensor *held, *wide;
  bool reads = c->in[0]->storage != NULL;
  PG_TRY(split_of(c, &s));
  if (reads)
    PG_TRY(gather_rows(c, &s, &held));
  else
    PG_TRY(pg_new(REAL_DTYPE, PG_CPU, s.ndim, s.shape, &held));
  int status = pg_new(REAL_DTYPE, PG_CPU, s.ndim, s.shape, &wide);
  if (status) return pg_release(held), status;
  const real *flat = PG_AT(real, held), *g = PG_AT(real, c->grad_out[0]);
  const real *y = c->out[0]->storage ? PG_AT(real, c->out[0]) : NULL;
  real *to = PG_AT(real, wide);
  bool unbiased = what == VAR && c->p[2].ints[0];
  double p = what == NORM ? c->p[2].num : 0;
  ROWS({
    real *dx = to + r * s.n;
    int64_t at = what == MAX || what == MIN ? K(best)(s.n, x, what == MAX ? 1 : -1) : -1;
    double mean = what == VAR ? K(sum_row)(s.n, x) / (double)s.n : 0;
    real each = what == MEAN ? g[r] / (real)s.n : g[r];
    if (what == NORM)
      K(norm_slope)(s.n, x, p, y[r], g[r], dx);
    else
      for (int64_t i = 0; i < s.n; i++) switch (what) {
        case MAX:
        case MIN: dx[i] = i == at ? g[r] : 0; break;
        case VAR: dx[i] = (real)(g[r] * 2 * (x[i] - mean) / (double)(s.n - unbiased)); break;
        case LOGSUMEXP: dx[i] = x[i] == (real)-INFINITY ? 0 : g[r] * R(exp)(x[i] - y[r]); break;
        default: dx[i] = each;
        }
  })
  status = scatter_rows(c, &s, wide);
  pg_release(held), pg_release(wide);
  return status;
}

#define KIND(name, what)                                                                                               \
  static int K(name##_forward)(pg_call * c) { return K(reduce_run)(c, what); }                                         \
  static int K(name##_backward)(pg_call * c) { return K(reduce_grad)(c, what); }
KIND(sum, SUM)
KIND(mean, MEAN)
KIND(max, MAX)
KIND(min, MIN) KIND(var, VAR) KIND(logsumexp, LOGSUMEXP) KIND(norm, NORM) static int K(argmax_forward)(pg_call *c) {
  return K(reduce_run)(c, ARGMAX);
}
static int K(argmin_forward)(pg_call *c) { return K(reduce_run)(c, ARGMIN); }
#undef KIND

#else
#include "../op.h"

typedef enum { SUM, MEAN, MAX, MIN, ARGMAX, ARGMIN, NORM, VAR, LOGSUMEXP } kind;

typedef struct split {              /* an input as (rows, n): which dimensions are kept and which reduced */
  int32_t ndim, order[PG_MAX_DIMS]; /* kept dimensions, then reduced ones */
  int64_t shape[PG_MAX_DIMS];       /* in that order */
  int64_t rows, n;
  uint32_t reduced; /* bit i: dimension i */
} split;

static int split_of(const pg_call *c, split *s) {
  const pg_tensor *x = c->in[0];
  *s = (split){.ndim = x->ndim, .rows = 1, .n = 1, .reduced = c->p[0].len ? 0 : 0xffffffffu};
  for (int32_t i = 0, dim; i < c->p[0].len; i++) {
    PG_TRY(pg_dim(c, x, c->p[0].ints[i], &dim));
    if (s->reduced >> dim & 1) return pg_op_fail(c, "dimension %lld is named twice", (long long)pg_shown(dim));
    s->reduced |= 1u << dim;
  }
  for (int32_t pass = 0, k = 0; pass < 2; pass++)
    for (int32_t i = 0; i < x->ndim; i++) {
      if ((int32_t)(s->reduced >> i & 1) != pass) continue;
      s->order[k] = i, s->shape[k++] = x->shape[i];
      if (pass)
        s->n *= x->shape[i];
      else
        s->rows *= x->shape[i];
    }
  return PG_OK;
}

static int ordered_view(pg_tensor *t, const split *s, pg_tensor **out) {
  int64_t stride[PG_MAX_DIMS];
  for (int32_t i = 0; i < s->ndim; i++) stride[i] = t->stride[s->order[i]];
  return pg_view(t, s->ndim, s->shape, stride, t->offset, out);
}

static int gather_rows(const pg_call *c, split *s, pg_tensor **out) {
  pg_tensor *view;
  PG_TRY(split_of(c, s));
  PG_TRY(ordered_view(c->in[0], s, &view));
  int status = pg_contiguous(view, out);
  pg_release(view);
  return status;
}

static int scatter_rows(const pg_call *c, const split *s, const pg_tensor *rows) {
  pg_tensor *view;
  PG_TRY(ordered_view(c->grad_in[0], s, &view));
  int status = pg_copy_new(view, rows);
  pg_release(view);
  return status;
}

#define REALS_FILE "ops/reduce.c"
#include "../reals.h"

static int reduce_shape_as(pg_call *c, int32_t dtype) {
  split s;
  int64_t shape[PG_MAX_DIMS];
  int32_t n = 0;
  PG_TRY(split_of(c, &s));
  for (int32_t i = 0; i < c->in[0]->ndim; i++) {
    if (!(s.reduced >> i & 1))
      shape[n++] = c->in[0]->shape[i];
    else if (c->p[1].ints[0])
      shape[n++] = 1;
  }
  return pg_out(c, 0, dtype, n, shape);
}

static int reduce_shape(pg_call *c) { return reduce_shape_as(c, c->in[0]->dtype); }
static int sum_shape(pg_call *c) {
  return reduce_shape_as(c, c->in[0]->dtype == PG_UINT8 ? PG_INT32 : c->in[0]->dtype);
}

/* For what has no value over zero elements. */
static int some_shape_as(pg_call *c, int32_t dtype) {
  split s;
  PG_TRY(split_of(c, &s));
  if (s.n == 0) return pg_op_fail(c, "zero elements have no %s", c->op->info.name);
  return reduce_shape_as(c, dtype);
}
static int some_shape(pg_call *c) { return some_shape_as(c, c->in[0]->dtype); }

static int var_shape(pg_call *c) {
  split s;
  PG_TRY(split_of(c, &s));
  if (s.n == 1 && c->p[2].ints[0]) return pg_op_fail(c, "one element has no unbiased variance; pass unbiased = false");
  return some_shape(c);
}

static int norm_shape(pg_call *c) {
  if (c->p[2].num == 0) return pg_op_fail(c, "p = 0; it must be above 0");
  return reduce_shape(c);
}

static int index_shape(pg_call *c) {
  split s;
  PG_TRY(split_of(c, &s));
  if (s.n > INT32_MAX) return pg_op_fail(c, "positions among %lld elements do not fit int32", (long long)s.n);
  return some_shape_as(c, PG_INT32);
}

/* ---- integers: the same rows ---- */
#define INT_ROWS(type)                                                                                                 \
  static int reduce_##type(pg_call *c, kind what) {                                                                    \
    split s;                                                                                                           \
    pg_tensor *held;                                                                                                   \
    bool fits = true;                                                                                                  \
    PG_TRY(gather_rows(c, &s, &held));                                                                                 \
    _Pragma("omp parallel for schedule(static) reduction(&& : fits) if (s.rows > 1 && s.rows * s.n > 16384)") for (    \
        int64_t r = 0; r < s.rows; r++) {                                                                              \
      if (pg_stopping()) continue;                                                                                     \
      const type *x = PG_AT(type, held) + r * s.n;                                                                     \
      int64_t sum = 0, at = 0;                                                                                         \
      switch (what) {                                                                                                  \
      case SUM:                                                                                                        \
        for (int64_t i = 0; i < s.n; i++) sum += x[i];                                                                 \
        fits = fits && sum >= INT32_MIN && sum <= INT32_MAX;                                                           \
        PG_AT(int32_t, c->out[0])[r] = fits ? (int32_t)sum : 0;                                                        \
        break;                                                                                                         \
      case MAX:                                                                                                        \
      case ARGMAX:                                                                                                     \
        for (int64_t i = 1; i < s.n; i++) at = x[i] > x[at] ? i : at;                                                  \
        break;                                                                                                         \
      default:                                                                                                         \
        for (int64_t i = 1; i < s.n; i++) at = x[i] < x[at] ? i : at;                                                  \
      }                                                                                                                \
      if (what == MAX || what == MIN) PG_AT(type, c->out[0])[r] = x[at];                                               \
      if (what == ARGMAX || what == ARGMIN) PG_AT(int32_t, c->out[0])[r] = (int32_t)at;                                \
    }                                                                                                                  \
    pg_release(held);                                                                                                  \
    return fits ? PG_OK : pg_op_fail(c, "the sum does not fit int32; convert x to float64 first");                     \
  }                                                                                                                    \
  static int sum_##type(pg_call *c) { return reduce_##type(c, SUM); }                                                  \
  static int max_##type(pg_call *c) { return reduce_##type(c, MAX); }                                                  \
  static int min_##type(pg_call *c) { return reduce_##type(c, MIN); }                                                  \
  static int argmax_##type(pg_call *c) { return reduce_##type(c, ARGMAX); }                                            \
  static int argmin_##type(pg_call *c) { return reduce_##type(c, ARGMIN); }
INT_ROWS(int32_t)
INT_ROWS(uint8_t)

#define FLOATS(name) [PG_FLOAT32] = name##_forward_f32, [PG_FLOAT64] = name##_forward_f64
#define ALL(name) FLOATS(name), [PG_INT32] = name##_int32_t, [PG_UINT8] = name##_uint8_t
#define DIMS                                                                                                           \
  PG_DIM_LIST("dim", "the dimensions to reduce; all when none is given"), PG_FLAG("keepdim", 0, "keep them with size 1")
#define REDUCE_OP(NAME, DOC, TAKES, GIVES, SHAPE, NEEDS, PARAMS, KERNELS, ...)                                         \
  const pg_op pg_op_##NAME = {.info = {.name = #NAME,                                                                  \
                                       .doc = DOC,                                                                     \
                                       .inputs = PG_ARGS({"x", PG_STRIDED, "any shape" TAKES}),                        \
                                       .outputs = PG_ARGS({"y", 0, "x without the reduced dimensions" GIVES}),         \
                                       .params = PARAMS,                                                               \
                                       .samples = PG_SAMPLES(__VA_ARGS__),                                             \
                                       .method = 1},                                                                   \
                              .shape = SHAPE,                                                                          \
                              .needs = NEEDS,                                                                          \
                              .forward = {KERNELS(NAME)},                                                              \
                              .backward = PG_REALS(NAME##_backward)};
#define X PG_NEED_IN(0)
#define Y PG_NEED_OUT(0)
REDUCE_OP(sum, "sum of the elements, 0 over none; an integer sum that int32 cannot hold is an error", " and dtype",
          "; int32 for uint8", sum_shape, 0, PG_PARAMS(DIMS), ALL, "{x = randn(3, 4)}",
          "{x = randn(2, 3, 4), dim = {1, 3}}", "{x = randn(2, 3, 4), dim = 2, keepdim = true}",
          "{x = bytes(256, 3, 5), dim = 2}", "{x = ints(9, 3, 5)}")
REDUCE_OP(mean, "arithmetic mean", ", float", "", some_shape, 0, PG_PARAMS(DIMS), FLOATS, "{x = randn(3, 4)}",
          "{x = randn(2, 3, 4), dim = {2}}")
REDUCE_OP(max, "greatest element; NaN wins; the gradient goes to the first", " and dtype", "", some_shape, X,
          PG_PARAMS(DIMS), ALL, "{x = randn(3, 4)}", "{x = randn(3, 4), dim = 2}", "{x = randn(2, 3, 4), dim = {1, 3}}",
          "{x = ints(9, 3, 5), dim = 1}")
REDUCE_OP(min, "least element; NaN wins; the gradient goes to the first", " and dtype", "", some_shape, X,
          PG_PARAMS(DIMS), ALL, "{x = randn(3, 4), dim = 1}", "{x = randn(2, 3, 4), dim = {3, 1}}",
          "{x = bytes(256, 3, 5)}")
REDUCE_OP(var, "variance, by two passes", ", float", "", var_shape, X,
          PG_PARAMS(DIMS, PG_FLAG("unbiased", 1, "divide by n - 1, else by n")), FLOATS, "{x = randn(3, 4), dim = 2}",
          "{x = randn(3, 4), unbiased = false}")
REDUCE_OP(logsumexp, "log of the sum of e^x, without overflow; -inf over none", ", float", "", reduce_shape, X | Y,
          PG_PARAMS(DIMS), FLOATS, "{x = randn(3, 4), dim = 2}")
REDUCE_OP(norm, "(sum |x|^p)^(1/p), the Euclidean norm by default, 0 over none; the gradient at 0 is 0", ", float", "",
          norm_shape, X | Y,
          PG_PARAMS(DIMS,
                    PG_NUM("p", 2, 0, INFINITY, "the order, above 0; inf: the greatest |x|, ties share the gradient")),
          FLOATS, "{x = randn(3, 4), dim = 2}", "{x = randn(3, 4)}", "{x = randn(3, 4), p = 1}",
          "{x = randn(2, 3, 4), dim = {1, 3}, p = inf}", "{x = randn(3, 4), dim = 1, p = 3.5}",
          "{x = uniform(0.5, 2, 3, 4), p = 0.5}")

#define INDEX_OP(NAME, DOC)                                                                                            \
  const pg_op pg_op_##NAME = {                                                                                         \
      .info = {.name = #NAME,                                                                                          \
               .doc = DOC "; over several dimensions, its row-major position among them",                              \
               .inputs = PG_ARGS({"x", PG_STRIDED, "any shape and dtype"}),                                            \
               .outputs = PG_ARGS({"index", PG_INDEX, "int32, x without the reduced dimensions"}),                     \
               .params = PG_PARAMS(DIMS),                                                                              \
               .no_backward = "a position is piecewise constant",                                                      \
               .samples = PG_SAMPLES("{x = randn(3, 4), dim = 2}", "{x = randn(3, 4)}",                                \
                                     "{x = randn(2, 3, 4), dim = {1, 3}}", "{x = ints(9, 3, 5), dim = 1}"),            \
               .method = 1},                                                                                           \
      .shape = index_shape,                                                                                            \
      .forward = {ALL(NAME)}};
INDEX_OP(argmax, "position of the first greatest element, or of the first NaN")
INDEX_OP(argmin, "position of the first least element, or of the first NaN")
#endif
