/* softmax_regression.c - the loss of a linear classifier on features that stand still, with its gradient in the same
 * pass:
 *
 *   L = mean_i -log softmax(z_i)_{y_i},  z_i = W x_i + b;      dz = (softmax(z) - onehot(y)) / N,
 *   dW = dz^T x,  db = sum dz
 *
 * linear and cross_entropy say the same and read the features twice, from memory where there are many. Here a block of
 * rows gives its part of dW while it is in the cache; that pays while dW, too, is small (16 Ki numbers). Blocks are
 * added up in pieces, and pieces in order, so that the bits do not depend on the threads. */
#ifdef REAL

/* Logits of `rows` rows become N dz; returns the sum of their losses. */
PG_SIMD static double K(slopes)(int64_t rows, int64_t n, const int32_t *label, real *restrict z) {
  double loss = 0;
  for (int64_t r = 0; r < rows; r++) {
    real *row = z + r * n, top = row[0];
    for (int64_t i = 1; i < n; i++) top = row[i] > top ? row[i] : top;
    for (int64_t i = 0; i < n; i++) row[i] -= top;
    loss -= (double)row[label[r]];
  }
  for (int64_t i = 0; i < rows * n; i++) z[i] = K(v_decay)(z[i], 0);
  for (int64_t r = 0; r < rows; r++) {
    real *row = z + r * n, sum = 0;
    for (int64_t i = 0; i < n; i++) sum += row[i];
    loss += log((double)sum);
    for (int64_t i = 0; i < n; i++) row[i] /= sum;
    row[label[r]] -= 1;
  }
  return loss;
}

/* dW += z^T x, db += sum z, over eight rows */
PG_SIMD static void K(add_eight)(int64_t n, int64_t d, const real *restrict z, const real *restrict x,
                                 real *restrict dw, real *restrict db) {
  for (int64_t c = 0; c < n; c++) {
    real z0 = z[c], z1 = z[c + n], z2 = z[c + 2 * n], z3 = z[c + 3 * n], z4 = z[c + 4 * n], z5 = z[c + 5 * n],
         z6 = z[c + 6 * n], z7 = z[c + 7 * n], *to = dw + c * d;
#pragma omp simd
    for (int64_t j = 0; j < d; j++)
      to[j] += z0 * x[j] + z1 * x[j + d] + z2 * x[j + 2 * d] + z3 * x[j + 3 * d] +
               (z4 * x[j + 4 * d] + z5 * x[j + 5 * d] + z6 * x[j + 6 * d] + z7 * x[j + 7 * d]);
    db[c] += z0 + z1 + z2 + z3 + (z4 + z5 + z6 + z7);
  }
}

PG_SIMD static void K(add_one)(int64_t n, int64_t d, const real *restrict z, const real *restrict x, real *restrict dw,
                               real *restrict db) {
  for (int64_t c = 0; c < n; c++) {
#pragma omp simd
    for (int64_t j = 0; j < d; j++) dw[c * d + j] += z[c] * x[j];
    db[c] += z[c];
  }
}

/* One block: its loss is added to *loss; its part of dW and db, made in `own`, to `all`. */
static int K(block)(const pg_call *c, int64_t from, int64_t rows, real *z, real *own, real *all, double *loss) {
  int64_t d = c->in[1]->shape[1], n = c->in[1]->shape[0], size = n * (d + 1);
  const real *x = PG_AT(real, c->in[0]) + from * d, *w = PG_AT(real, c->in[1]), *b = PG_AT(real, c->in[2]);
  for (int64_t r = 0; r < rows; r++) memcpy(z + r * n, b, sizeof(real) * (size_t)n);
  PG_TRY(K(pg_gemm)(0, 1, rows, n, d, 1, x, d, w, d, 1, z, n));
  *loss += K(slopes)(rows, n, PG_AT(int32_t, c->in[3]) + from, z);
  memset(own, 0, sizeof(real) * (size_t)size);
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8) K(add_eight)(n, d, z + r * n, x + r * d, own, own + n * d);
  for (; r < rows; r++) K(add_one)(n, d, z + r * n, x + r * d, own, own + n * d);
  for (int64_t i = 0; i < size; i++) all[i] += own[i];
  return PG_OK;
}

static int K(softmax_regression_forward)(pg_call *c) {
  int64_t count = c->in[0]->shape[0], d = c->in[1]->shape[1], n = c->in[1]->shape[0], size = n * (d + 1);
  int64_t rows = PG_MAX(8, PG_MIN(BLOCK / PG_MAX(d, 1), MOST_ROWS)), blocks = (count + rows - 1) / rows;
  int64_t pieces = PG_MIN(blocks, PIECES), each = size + rows * n;
  int threads = (int)PG_MIN(pieces, pg_threads()), failed = 0;
  size_t bytes = sizeof(double) * (size_t)pieces + sizeof(real) * (size_t)(pieces * size + threads * each);
  double *losses = pg_scratch_alloc(bytes), loss = 0;
  if (!losses) return pg_fail(PG_ERR_MEMORY, "softmax_regression: out of memory");
  real *sums = (real *)(losses + pieces), *rooms = sums + pieces * size, *slopes = PG_AT(real, c->out[1]);
  memset(losses, 0, bytes - sizeof(real) * (size_t)(threads * each));
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t p = 0; p < pieces; p++) {
    real *own = rooms + omp_get_thread_num() * each;
    for (int64_t i = p * blocks / pieces; i < (p + 1) * blocks / pieces && !pg_stopping(); i++)
      if (K(block)(c, i * rows, PG_MIN(rows, count - i * rows), own + size, own, sums + p * size, &losses[p])) {
#pragma omp atomic write
        failed = 1;
      }
  }
  for (int64_t p = 0; p < pieces; p++) loss += losses[p];
  *PG_AT(real, c->out[0]) = (real)(loss / (double)count);
  for (int64_t i = 0; i < size; i++) {
    double sum = 0;
    for (int64_t p = 0; p < pieces; p++) sum += (double)sums[p * size + i];
    slopes[i] = (real)(sum / (double)count);
  }
  pg_scratch_free(losses, bytes);
  return failed ? pg_fail(PG_ERR_MEMORY, "softmax_regression: out of memory") : PG_OK;
}

static int K(softmax_regression_backward)(pg_call *c) {
  real g = *PG_AT(real, c->grad_out[0]), *from = PG_AT(real, c->out[1]);
  for (int i = 1; i <= 2; from += pg_numel(c->in[i]), i++)
    for (int64_t k = 0; c->grad_in[i] && k < pg_numel(c->in[i]); k++) PG_AT(real, c->grad_in[i])[k] = g * from[k];
  return PG_OK;
}

#else
#include <omp.h>

#include "../op.h"
#include "../vmath.h"

/* Numbers of the features in a block, the rows that these are at most, and the sums that are made side by side. */
enum { BLOCK = 1 << 16, MOST_ROWS = 256, PIECES = 64 };

#define REALS_FILE "ops/softmax_regression.c"
#include "../reals.h"

static int softmax_regression_shape(pg_call *c) {
  const pg_tensor *x = c->in[0], *w = c->in[1], *b = c->in[2], *labels = c->in[3];
  if (w->dtype != x->dtype || b->dtype != x->dtype)
    return pg_fail(PG_ERR_DTYPE, "softmax_regression: dtypes differ: x is %s, weight is %s, bias is %s",
                   pg_dtype_name(x->dtype), pg_dtype_name(w->dtype), pg_dtype_name(b->dtype));
  if (x->ndim != 2 || w->ndim != 2 || b->ndim != 1 || labels->ndim != 1 || w->shape[1] != x->shape[1] ||
      b->shape[0] != w->shape[0] || labels->shape[0] != x->shape[0] || !x->shape[0] || !w->shape[0])
    return pg_op_fail(c, "takes features (N, D), a weight (C, D), a bias (C) and labels (N), N and C at least 1");
  PG_TRY(pg_check_indices(c, labels, w->shape[0], "labels"));
  int64_t size = pg_numel(w) + pg_numel(b);
  PG_TRY(pg_out(c, 0, x->dtype, 0, NULL));
  return pg_out(c, 1, x->dtype, 1, &size);
}

const pg_op pg_op_softmax_regression = {
    .info =
        {.name = "softmax_regression",
         .doc = "mean cross-entropy of a linear classifier on constant features; its gradient is made in the same pass",
         .inputs = PG_ARGS({"x", PG_NO_GRAD, "(N, D) features, constants"}, {"weight", 0, "(C, D)"}, {"bias", 0, "(C)"},
                           {"labels", PG_INDEX, "(N) int32"}),
         .outputs = PG_ARGS({"loss", 0, "scalar"}, {"slopes", PG_HIDDEN, "(C D + C)"}),
         .samples = PG_SAMPLES("{x = randn(11, 5), weight = randn(3, 5), bias = randn(3), labels = ints(3, 11)}",
                               "{x = randn(2, 3), weight = randn(4, 3), bias = randn(4), labels = ints(4, 2)}")},
    .shape = softmax_regression_shape,
    .needs = PG_NEED_OUT(1),
    .forward = PG_REALS(softmax_regression_forward),
    .backward = PG_REALS(softmax_regression_backward)};
#endif
