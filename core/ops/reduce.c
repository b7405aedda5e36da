/* reduce.c - sum, mean, max, min, var, logsumexp, norm over any dimensions; argmax and argmin over one.
 *
 * The input is brought to (rows, n): the kept dimensions first, the reduced ones last. Each row is then one serial
 * pass, rows in parallel, so the result does not depend on the number of threads. Sums are kept in double. */
#ifdef REAL

#define ROWS(...)                                                                                                      \
  _Pragma("omp parallel for schedule(static) if (s.rows > 1 && s.rows * s.n > 16384)") for (int64_t r = 0; r < s.rows; \
                                                                                            r++) {                     \
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

static int K(reduce_run)(pg_call *c, kind what) {
  split s;
  pg_tensor *held;
  PG_TRY(gather_rows(c, &s, &held));
  if (s.n == 0 && what != SUM) return pg_release(held), pg_op_fail(c, "there is nothing to reduce");
  const real *flat = PG_AT(real, held);
  real *out = PG_AT(real, c->out[0]);
  int32_t *index = PG_AT(int32_t, c->out[0]);
  bool unbiased = what == VAR && c->p[2].ints[0];
  ROWS(switch (what) {
    case SUM: out[r] = (real)K(sum_row)(s.n, x); break;
    case MEAN: out[r] = (real)(K(sum_row)(s.n, x) / (double)s.n); break;
    case MAX: out[r] = x[K(best)(s.n, x, 1)]; break;
    case MIN: out[r] = x[K(best)(s.n, x, -1)]; break;
    case ARGMAX: index[r] = (int32_t)K(best)(s.n, x, 1); break;
    case ARGMIN: index[r] = (int32_t)K(best)(s.n, x, -1); break;
    case NORM: {
      double sum = 0;
      for (int64_t i = 0; i < s.n; i++) sum += (double)x[i] * x[i];
      out[r] = (real)sqrt(sum);
      break;
    }
    case VAR: {
      double mean = K(sum_row)(s.n, x) / (double)s.n, sum = 0;
      for (int64_t i = 0; i < s.n; i++) sum += (x[i] - mean) * (x[i] - mean);
      out[r] = (real)(sum / (double)(s.n - unbiased));
      break;
    }
    case LOGSUMEXP: {
      real top = x[K(best)(s.n, x, 1)];
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
  ROWS({
    real *dx = to + r * s.n;
    int64_t at = what == MAX || what == MIN ? K(best)(s.n, x, what == MAX ? 1 : -1) : -1;
    double mean = what == VAR ? K(sum_row)(s.n, x) / (double)s.n : 0;
    real each = what == MEAN ? g[r] / (real)s.n : g[r];
    for (int64_t i = 0; i < s.n; i++) switch (what) {
      case MAX:
      case MIN: dx[i] = i == at ? g[r] : 0; break;
      case NORM: dx[i] = y[r] > 0 ? g[r] * x[i] / y[r] : 0; break;
      case VAR: dx[i] = (real)(g[r] * 2 * (x[i] - mean) / (double)(s.n - unbiased)); break;
      case LOGSUMEXP: dx[i] = g[r] * R(exp)(x[i] - y[r]); break;
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
KIND(mean, MEAN) KIND(max, MAX) KIND(min, MIN) KIND(var, VAR) KIND(logsumexp, LOGSUMEXP)
    KIND(norm, NORM) static int K(argmax_forward)(pg_call *c) {
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
  int status = pg_copy(view, rows);
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
static int index_shape(pg_call *c) {
  if (c->p[0].len > 1) return pg_op_fail(c, "takes one dimension, or none for all elements");
  return reduce_shape_as(c, PG_INT32);
}

static int sum_int(pg_call *c) {
  split s;
  pg_tensor *held;
  PG_TRY(gather_rows(c, &s, &held));
  for (int64_t r = 0; r < s.rows; r++) {
    uint32_t sum = 0;
    for (int64_t i = 0; i < s.n; i++) sum += (uint32_t)PG_AT(int32_t, held)[r * s.n + i];
    PG_AT(int32_t, c->out[0])[r] = (int32_t)sum;
  }
  pg_release(held);
  return PG_OK;
}

#define DIMS                                                                                                           \
  PG_DIM_LIST("dim", "the dimensions to reduce; all when none is given"), PG_FLAG("keepdim", 0, "keep them with size 1")
#define REDUCE_OP(NAME, DOC, NEEDS, PARAMS, INT, ...)                                                                  \
  const pg_op pg_op_##NAME = {                                                                                         \
      .info = {.name = #NAME,                                                                                          \
               .doc = DOC,                                                                                             \
               .inputs = PG_ARGS({"x", PG_STRIDED, "any shape"}),                                                      \
               .outputs = PG_ARGS({"y", 0, "x without the reduced dimensions"}),                                       \
               .params = PARAMS,                                                                                       \
               .samples = PG_SAMPLES(__VA_ARGS__),                                                                     \
               .method = 1},                                                                                           \
      .shape = reduce_shape,                                                                                           \
      .needs = NEEDS,                                                                                                  \
      .forward = {[PG_FLOAT32] = NAME##_forward_f32, [PG_FLOAT64] = NAME##_forward_f64, [PG_INT32] = INT},             \
      .backward = PG_REALS(NAME##_backward)};
#define X PG_NEED_IN(0)
REDUCE_OP(sum, "sum of the elements", 0, PG_PARAMS(DIMS), sum_int, "{x = randn(3, 4)}",
          "{x = randn(2, 3, 4), dim = {1, 3}}", "{x = randn(2, 3, 4), dim = 2, keepdim = true}")
REDUCE_OP(mean, "arithmetic mean", 0, PG_PARAMS(DIMS), NULL, "{x = randn(3, 4)}", "{x = randn(2, 3, 4), dim = {2}}")
REDUCE_OP(max, "greatest element; NaN wins; the gradient goes to the first", X, PG_PARAMS(DIMS), NULL,
          "{x = randn(3, 4)}", "{x = randn(3, 4), dim = 2}")
REDUCE_OP(min, "least element; NaN wins; the gradient goes to the first", X, PG_PARAMS(DIMS), NULL,
          "{x = randn(3, 4), dim = 1}")
REDUCE_OP(var, "variance, by two passes", X, PG_PARAMS(DIMS, PG_FLAG("unbiased", 1, "divide by n - 1")), NULL,
          "{x = randn(3, 4), dim = 2}", "{x = randn(3, 4), unbiased = false}")
REDUCE_OP(logsumexp, "log of the sum of e^x, without overflow", X | PG_NEED_OUT(0), PG_PARAMS(DIMS), NULL,
          "{x = randn(3, 4), dim = 2}")
REDUCE_OP(norm, "Euclidean norm; its gradient at 0 is 0", X | PG_NEED_OUT(0), PG_PARAMS(DIMS), NULL,
          "{x = randn(3, 4), dim = 2}", "{x = randn(3, 4)}")

#define INDEX_OP(NAME, DOC)                                                                                            \
  const pg_op pg_op_##NAME = {.info = {.name = #NAME,                                                                  \
                                       .doc = DOC,                                                                     \
                                       .inputs = PG_ARGS({"x", PG_STRIDED, "any shape, float"}),                       \
                                       .outputs = PG_ARGS({"index", PG_INDEX, "int32, x without the dimension"}),      \
                                       .params = PG_PARAMS(DIMS),                                                      \
                                       .no_backward = "a position is piecewise constant",                              \
                                       .samples = PG_SAMPLES("{x = randn(3, 4), dim = 2}", "{x = randn(3, 4)}"),       \
                                       .method = 1},                                                                   \
                              .shape = index_shape,                                                                    \
                              .forward = PG_REALS(NAME##_forward)};
INDEX_OP(argmax, "position of the first greatest element")
INDEX_OP(argmin, "position of the first least element")
#endif
