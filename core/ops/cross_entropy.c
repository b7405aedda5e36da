/* cross_entropy.c - mean over rows of  -sum_c q_c log softmax(z)_c,  q = (1 - s) onehot(label) + s / C.
 *
 * Backward:  dz = (softmax(z) - q) / N * dL.  The log-sum-exp of every row is kept from the forward pass. */
#ifdef REAL

/* One row's loss; its log-sum-exp goes to *lse. The sums are kept in double. */
PG_SIMD static double K(entropy_row)(int64_t n, const real *restrict x, int32_t label, real s, real *lse) {
  real top = x[0];
  double sum = 0, all = 0;
#pragma omp simd reduction(max : top)
  for (int64_t i = 1; i < n; i++) top = x[i] > top ? x[i] : top;
#pragma omp simd reduction(+ : sum, all)
  for (int64_t i = 0; i < n; i++) sum += (double)K(v_decay)(x[i] - top, 0), all += (double)x[i];
  double log_sum = (double)top + log(sum);
  *lse = (real)log_sum;
  return log_sum - (1 - (double)s) * x[label] - (s > 0 ? s * all / (double)n : 0); /* 0 * -inf is not 0 */
}

PG_SIMD static void K(entropy_row_grad)(int64_t n, const real *restrict x, int32_t label, real s, real lse, real scale,
                                        real *restrict dx) {
  real rest = s / (real)n;
  for (int64_t i = 0; i < n; i++) dx[i] = scale * (K(v_decay)(x[i] - lse, 0) - rest);
  dx[label] -= scale * (1 - s);
}

static int K(cross_entropy_forward)(pg_call *c) {
  int64_t rows = c->in[0]->shape[0], n = c->in[0]->shape[1];
  const real *z = PG_AT(real, c->in[0]), s = (real)c->p[0].num;
  const int32_t *label = PG_AT(int32_t, c->in[1]);
  real *lse = PG_AT(real, c->out[1]);
  size_t bytes = sizeof(double) * (size_t)rows;
  double *loss = pg_scratch_alloc(bytes), total = 0;
  if (!loss) return pg_fail(PG_ERR_MEMORY, "cross_entropy: out of memory");
#pragma omp parallel for schedule(static) if (rows * n > 32768)
  for (int64_t r = 0; r < rows; r++)
    if (!pg_stopping()) loss[r] = K(entropy_row)(n, z + r * n, label[r], s, lse + r);
  for (int64_t r = 0; r < rows; r++) total += loss[r]; /* in order: the same bits whatever the threads */
  pg_scratch_free(loss, bytes);
  *PG_AT(real, c->out[0]) = (real)(total / (double)rows);
  return PG_OK;
}

static int K(cross_entropy_backward)(pg_call *c) {
  int64_t rows = c->in[0]->shape[0], n = c->in[0]->shape[1];
  const real *z = PG_AT(real, c->in[0]), *lse = PG_AT(real, c->out[1]), s = (real)c->p[0].num;
  const int32_t *label = PG_AT(int32_t, c->in[1]);
  real *dz = PG_AT(real, c->grad_in[0]), scale = *PG_AT(real, c->grad_out[0]) / (real)rows;
#pragma omp parallel for schedule(static) if (rows * n > 32768)
  for (int64_t r = 0; r < rows; r++)
    if (!pg_stopping()) K(entropy_row_grad)(n, z + r * n, label[r], s, lse[r], scale, dz + r * n);
  return PG_OK;
}

#else
#include "../op.h"
#include "../vmath.h"
#define REALS_FILE "ops/cross_entropy.c"
#include "../reals.h"

static int cross_entropy_shape(pg_call *c) {
  const pg_tensor *z = c->in[0], *label = c->in[1];
  if (z->ndim != 2 || label->ndim != 1 || label->shape[0] != z->shape[0] || !pg_numel(z))
    return pg_op_fail(c, "takes logits (N, C) and labels (N), neither empty");
  PG_TRY(pg_check_indices(c, label, z->shape[1], "labels"));
  PG_TRY(pg_out(c, 0, z->dtype, 0, NULL));
  return pg_out(c, 1, z->dtype, 1, z->shape);
}

const pg_op pg_op_cross_entropy = {
    .info = {.name = "cross_entropy",
             .doc = "mean of -sum_c q_c log softmax(logits)_c with smoothed one-hot labels q",
             .source = "Szegedy et al., arXiv 1512.00567 (label smoothing)",
             .inputs = PG_ARGS({"logits", 0, "(N, C) float"}, {"labels", PG_INDEX, "(N) int32"}),
             .outputs = PG_ARGS({"loss", 0, "scalar"}, {"lse", PG_HIDDEN, "(N)"}),
             .params = PG_PARAMS(PG_NUM("label_smoothing", 0, 0, 1, "weight of the uniform distribution")),
             .samples = PG_SAMPLES("{logits = randn(4, 3), labels = ints(3, 4)}",
                                   "{logits = randn(5, 4), labels = ints(4, 5), label_smoothing = 0.1}")},
    .shape = cross_entropy_shape,
    .needs = PG_NEED_IN(0) | PG_NEED_IN(1) | PG_NEED_OUT(1),
    .forward = PG_REALS(cross_entropy_forward),
    .backward = PG_REALS(cross_entropy_backward)};
#endif
