/* optim.c - optimiser steps over a whole parameter list at once, in place, and gradient-norm clipping.
 *
 * AdamW (Loshchilov and Hutter, arXiv 1711.05101; PyTorch's order of operations), t counted from 1:
 *   p *= 1 - lr wd;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t))
 * + eps) SGD:  g' = g + wd p;  u = momentum u + g' (the first step: u = g');  p -= lr u. Clipping: every gradient is
 * scaled by min(1, max_norm / (|g| + 1e-6)); a norm that is not finite scales nothing. */
#ifdef REAL

PG_SIMD static void K(adamw_run)(int64_t n, real *restrict p, const real *restrict g, real *restrict m,
                                 real *restrict v, const adam *a) {
  real decay = (real)a->decay, b1 = (real)a->beta1, b2 = (real)a->beta2, step = (real)a->step, fix = (real)a->fix,
       eps = (real)a->eps;
  for (int64_t i = 0; i < n; i++) {
    m[i] = b1 * m[i] + (1 - b1) * g[i];
    v[i] = b2 * v[i] + (1 - b2) * g[i] * g[i];
    p[i] = p[i] * decay - step * m[i] / (R(sqrt)(v[i]) * fix + eps);
  }
}

static int K(adamw_forward)(pg_call *c) {
  int32_t n = c->n_in / 4;
  double lr = c->p[0].num, t = c->p[5].num;
  adam a = {.decay = 1 - lr * c->p[4].num,
            .beta1 = c->p[1].num,
            .beta2 = c->p[2].num,
            .eps = c->p[3].num,
            .step = lr / (1 - pow(c->p[1].num, t)),
            .fix = 1 / sqrt(1 - pow(c->p[2].num, t))};
  for (int32_t k = 0; k < n; k++) {
    real *p = PG_AT(real, c->in[k]), *g = PG_AT(real, c->in[n + k]), *m = PG_AT(real, c->in[2 * n + k]),
         *v = PG_AT(real, c->in[3 * n + k]);
    int64_t size = pg_numel(c->in[k]);
#pragma omp parallel for schedule(static) if (size > 2 * PIECE)
    for (int64_t i = 0; i < size; i += PIECE) K(adamw_run)(PG_MIN(PIECE, size - i), p + i, g + i, m + i, v + i, &a);
  }
  return PG_OK;
}

PG_SIMD static void K(sgd_run)(int64_t n, real *restrict p, const real *restrict g, real *restrict u, real lr,
                               real momentum, real decay) { /* momentum 0 where the buffers are new */
  for (int64_t i = 0; i < n; i++) {
    real step = g[i] + decay * p[i];
    u[i] = momentum ? momentum * u[i] + step : step; /* a new buffer holds anything, even NaN */
    p[i] -= lr * u[i];
  }
}

static int K(sgd_forward)(pg_call *c) {
  int32_t n = c->n_in / 3;
  real lr = (real)c->p[0].num, momentum = c->p[3].ints[0] ? 0 : (real)c->p[1].num, decay = (real)c->p[2].num;
  for (int32_t k = 0; k < n; k++) {
    real *p = PG_AT(real, c->in[k]), *g = PG_AT(real, c->in[n + k]), *u = PG_AT(real, c->in[2 * n + k]);
    int64_t size = pg_numel(c->in[k]);
#pragma omp parallel for schedule(static) if (size > 2 * PIECE)
    for (int64_t i = 0; i < size; i += PIECE)
      K(sgd_run)(PG_MIN(PIECE, size - i), p + i, g + i, u + i, lr, momentum, decay);
  }
  return PG_OK;
}

PG_SIMD static double K(square_sum)(int64_t n, const real *restrict g) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += (double)g[i] * (double)g[i];
  return sum;
}

PG_SIMD static void K(scale_run)(int64_t n, real *restrict g, real scale) {
  for (int64_t i = 0; i < n; i++) g[i] *= scale;
}

/* The sum is taken in pieces of fixed size, added in order: its bits do not depend on the number of threads. */
static int K(clip_forward)(pg_call *c) {
  double sum = 0;
  for (int32_t k = 0; k < c->n_in; k++) {
    const real *g = PG_AT(real, c->in[k]);
    int64_t size = pg_numel(c->in[k]), pieces = (size + PIECE - 1) / PIECE;
    size_t bytes = sizeof(double) * (size_t)PG_MAX(pieces, 1);
    double *part = pg_scratch_alloc(bytes);
    if (!part) return pg_fail(PG_ERR_MEMORY, "clip_grad_norm_: out of memory");
#pragma omp parallel for schedule(static) if (pieces > 2)
    for (int64_t i = 0; i < pieces; i++) part[i] = K(square_sum)(PG_MIN(PIECE, size - i * PIECE), g + i * PIECE);
    for (int64_t i = 0; i < pieces; i++) sum += part[i];
    pg_scratch_free(part, bytes);
  }
  double norm = sqrt(sum), scale = c->p[0].num / (norm + 1e-6);
  *PG_AT(real, c->out[0]) = (real)norm;
  for (int32_t k = 0; isfinite(norm) && scale < 1 && k < c->n_in; k++) {
    real *g = PG_AT(real, c->in[k]);
    int64_t size = pg_numel(c->in[k]);
#pragma omp parallel for schedule(static) if (size > 2 * PIECE)
    for (int64_t i = 0; i < size; i += PIECE) K(scale_run)(PG_MIN(PIECE, size - i), g + i, (real)scale);
  }
  return PG_OK;
}

#else
#include "../op.h"

enum { PIECE = 16384 }; /* elements that one thread takes at a time */

typedef struct adam { /* one step's constants */
  double decay, beta1, beta2, eps, step, fix;
} adam;

#define REALS_FILE "ops/optim.c"
#include "../reals.h"

static int groups_shape(pg_call *c, int32_t groups, const char *what) {
  if (c->n_in % groups)
    return pg_fail(PG_ERR_ARGUMENT, "%s: takes %s, lists of equal length; got %d tensors", c->op->info.name, what,
                   c->n_in);
  int32_t n = c->n_in / groups;
  for (int32_t k = n; k < c->n_in; k++) {
    char a[128], b[128];
    if (!pg_same_shape(c->in[k], c->in[k % n]))
      return pg_fail(PG_ERR_SHAPE, "%s: parameter %lld is %s, its partner in the lists %s", c->op->info.name,
                     (long long)pg_shown(k % n), pg_shape_text(c->in[k % n], a), pg_shape_text(c->in[k], b));
  }
  return PG_OK;
}

static int adamw_shape(pg_call *c) { return groups_shape(c, 4, "parameters, gradients, first and second moments"); }
static int sgd_shape(pg_call *c) { return groups_shape(c, 3, "parameters, gradients, momentum buffers"); }
static int clip_shape(pg_call *c) { return pg_out(c, 0, c->in[0]->dtype, 0, NULL); }

#define IN_PLACE .no_backward = "an optimiser step is not part of the loss"
#define NO_OUTPUTS                                                                                                     \
  (const pg_arg_info[]) {                                                                                              \
    { 0 }                                                                                                              \
  }

const pg_op pg_op_adamw_ = {
    .info = {.name = "adamw_",
             .doc = "one AdamW step over a parameter list, in place",
             .source = "Loshchilov and Hutter, arXiv 1711.05101",
             .inputs = PG_ARGS({"tensors", PG_LIST | PG_WRITTEN,
                                "parameters, gradients (read only), first moments, second moments: four lists in one"}),
             .outputs = NO_OUTPUTS,
             .params = PG_PARAMS(
                 PG_NUM("lr", 1e-3, 0, 1e6, "learning rate"), PG_NUM("beta1", 0.9, 0, 1, "of the first moment"),
                 PG_NUM("beta2", 0.999, 0, 1, "of the second moment"), PG_NUM("eps", 1e-8, 0, 1, "added to the root"),
                 PG_NUM("weight_decay", 0.01, 0, 1e6, "decoupled decay"), PG_NUM("step", NAN, 1, 1e15, "t, from 1")),
             IN_PLACE,
             .samples =
                 PG_SAMPLES("{tensors = {randn(3), randn(3), randn(3), uniform(0.1, 1, 3)}, lr = 0.1, step = 2}")},
    .shape = adamw_shape,
    .forward = PG_REALS(adamw_forward)};

const pg_op pg_op_sgd_ = {
    .info = {.name = "sgd_",
             .doc = "one step of SGD with momentum over a parameter list, in place",
             .inputs = PG_ARGS({"tensors", PG_LIST | PG_WRITTEN,
                                "parameters, gradients (read only), momentum buffers: three lists in one"}),
             .outputs = NO_OUTPUTS,
             .params =
                 PG_PARAMS(PG_NUM("lr", 1e-3, 0, 1e6, "learning rate"), PG_NUM("momentum", 0, 0, 1, "of the buffer"),
                           PG_NUM("weight_decay", 0, 0, 1e6, "added to the gradient"),
                           PG_FLAG("first", 0, "the buffers are new")),
             IN_PLACE,
             .samples = PG_SAMPLES("{tensors = {randn(3), randn(3), randn(3)}, lr = 0.1, momentum = 0.9}")},
    .shape = sgd_shape,
    .forward = PG_REALS(sgd_forward)};

const pg_op pg_op_clip_grad_norm_ = {
    .info = {.name = "clip_grad_norm_",
             .doc = "scales gradients in place so that their joint 2-norm is at most max_norm; returns the norm before",
             .inputs = PG_ARGS({"tensors", PG_LIST | PG_WRITTEN, "gradients of any shapes"}),
             .outputs = PG_ARGS({"norm", 0, "scalar"}),
             .params = PG_PARAMS(PG_NUM("max_norm", NAN, 0, 1e30, "greatest norm")),
             IN_PLACE,
             .samples = PG_SAMPLES("{tensors = {randn(3), randn(2, 2)}, max_norm = 1}")},
    .shape = clip_shape,
    .forward = PG_REALS(clip_forward)};
#endif
