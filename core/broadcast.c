/* broadcast.c - shapes that stretch: NumPy's rule, walking operands of different shapes together, and summing a
 * gradient back over what was stretched.
 *
 * Shapes are aligned at their last dimension; a size of 1, or a missing dimension, is repeated. */
#ifdef REAL

enum { K(BLOCK) = 512 };

/* sum[j] += x[j], over one run of kept elements. */
PG_SIMD static void K(add_run)(int64_t n, const real *restrict x, double *restrict sum) {
  for (int64_t j = 0; j < n; j++) sum[j] += (double)x[j];
}

PG_SIMD static double K(total_run)(int64_t n, const real *x) { /* eight partial sums */
  double part[8] = {0}, sum = 0;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int k = 0; k < 8; k++) part[k] += (double)x[i + k];
  for (; i < n; i++) sum += (double)x[i];
  return sum + ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

/* One thread owns a block of the result and adds to it in the order of the stretched positions. */
static void K(sum_to)(const fold *f, const real *x, real *y) {
  int64_t block = PG_MIN(pg_columns(f->kept, f->width), K(BLOCK));
  int64_t blocks = (f->width + block - 1) / block, tasks = f->kept * blocks;
#pragma omp parallel for schedule(static) if (tasks > 1 && tasks * f->folded > 256)
  for (int64_t t = 0; t < tasks; t++) {
    if (pg_stopping()) continue;
    int64_t from = t % blocks * block, n = PG_MIN(block, f->width - from), out = t / blocks;
    int64_t start = from + fold_offset(f->kept_dims, f->kept_shape, f->kept_stride, out);
    double sum[K(BLOCK)];
    memset(sum, 0, sizeof *sum * (size_t)n);
    for (int64_t s = 0; s < f->folded; s++) {
      const real *run = x + start + fold_offset(f->folded_dims, f->folded_shape, f->folded_stride, s);
      if (f->run > 1)
        sum[0] += K(total_run)(f->run, run);
      else
        K(add_run)(n, run, sum);
    }
    for (int64_t j = 0; j < n; j++) y[out * f->width + from + j] = (real)sum[j];
  }
}

#else
#include "op.h"

int pg_broadcast(const pg_call *c, const pg_tensor *a, const pg_tensor *b, int32_t *ndim, int64_t *shape) {
  if (a->dtype != b->dtype)
    return pg_fail(PG_ERR_DTYPE, "%s: dtypes differ: a is %s, b is %s", c->op->info.name, pg_dtype_name(a->dtype),
                   pg_dtype_name(b->dtype));
  *ndim = 0;
  PG_TRY(pg_stretch(c, a, ndim, shape));
  return pg_stretch(c, b, ndim, shape);
}

int pg_stretch(const pg_call *c, const pg_tensor *t, int32_t *ndim, int64_t *shape) {
  int32_t more = t->ndim - *ndim;
  if (more > 0) {
    memmove(shape + more, shape, sizeof *shape * (size_t)*ndim);
    for (int32_t i = 0; i < more; i++) shape[i] = 1;
    *ndim = t->ndim;
  }
  for (int32_t i = 0; i < t->ndim; i++) {
    int64_t *size = &shape[i + *ndim - t->ndim];
    if (t->shape[i] != *size && t->shape[i] != 1 && *size != 1) return pg_op_fail(c, "shapes do not broadcast");
    if (*size == 1) *size = t->shape[i];
  }
  return PG_OK;
}

/* ---- walking ---- */

pg_walk pg_walk_over(const pg_tensor *out, int operands, const pg_tensor *const *operand) {
  enum { PIECE = 16384 };
  pg_walk w = {.runs = 1};
  for (int32_t i = 0; i < out->ndim; i++) { /* dimensions that run on in every operand are merged */
    int64_t step[PG_WALK_OPERANDS], n = out->shape[i];
    bool runs_on = w.ndim > 0;
    if (n == 1) continue;
    for (int k = 0; k < operands; k++) {
      int32_t own = i - (out->ndim - operand[k]->ndim);
      step[k] = own < 0 || operand[k]->shape[own] == 1 ? 0 : operand[k]->stride[own];
      runs_on = runs_on && w.stride[k][w.ndim - 1] == step[k] * n;
    }
    if (!runs_on) w.shape[w.ndim++] = 1;
    w.shape[w.ndim - 1] *= n;
    for (int k = 0; k < operands; k++) w.stride[k][w.ndim - 1] = step[k];
  }
  w.total = w.length = 1;
  if (w.ndim) { /* the last one is the run */
    w.total = w.length = w.shape[--w.ndim];
    for (int k = 0; k < operands; k++) w.step[k] = w.stride[k][w.ndim];
  }
  for (int32_t i = 0; i < w.ndim; i++) w.runs *= w.shape[i];
  if (w.ndim == 0 && w.total > 2 * PIECE) /* one long run: cut it, so that threads can share it */
    w.length = PIECE, w.runs = (w.total + PIECE - 1) / PIECE;
  if (!w.total) w.runs = 0;
  return w;
}

/* ---- summing back ---- */

typedef struct fold { /* a wide tensor: what the result keeps and what is summed; neighbours of one kind are merged */
  int32_t kept_dims, folded_dims;
  int64_t kept_shape[PG_MAX_DIMS], kept_stride[PG_MAX_DIMS];
  int64_t folded_shape[PG_MAX_DIMS], folded_stride[PG_MAX_DIMS];
  int64_t kept, folded; /* products of the above */
  int64_t width, run;   /* the last dimension: kept (width elements) or summed (run elements); the other is 1 */
} fold;

static int64_t fold_offset(int32_t dims, const int64_t *shape, const int64_t *stride, int64_t position) {
  int64_t at = 0;
  for (int32_t d = dims - 1; d >= 0; position /= shape[d], d--) at += position % shape[d] * stride[d];
  return at;
}

#define REALS_FILE "broadcast.c"
#include "reals.h"

int pg_sum_to(const pg_tensor *wide, pg_tensor *small) {
  fold f = {.kept = 1, .folded = 1, .width = 1, .run = 1};
  int64_t step = pg_numel(wide), total = step;
  if (!total) return pg_fill(small, 0);
  int last = -1; /* the kind of the dimension before: 0 summed, 1 kept */
  for (int32_t i = 0; i < wide->ndim; i++) {
    int32_t own = i - (wide->ndim - small->ndim);
    int64_t n = wide->shape[i];
    int kept = own >= 0 && small->shape[own] != 1;
    step /= n;
    if (n == 1) continue;
    int32_t *dims = kept ? &f.kept_dims : &f.folded_dims;
    int64_t *shape = kept ? f.kept_shape : f.folded_shape, *stride = kept ? f.kept_stride : f.folded_stride;
    if (kept != last) shape[(*dims)++] = 1;
    shape[*dims - 1] *= n, stride[*dims - 1] = step, last = kept;
  }
  if (last == 1)
    f.width = f.kept_shape[--f.kept_dims];
  else if (last == 0)
    f.run = f.folded_shape[--f.folded_dims];
  for (int32_t d = 0; d < f.kept_dims; d++) f.kept *= f.kept_shape[d];
  for (int32_t d = 0; d < f.folded_dims; d++) f.folded *= f.folded_shape[d];
  if (wide->dtype == PG_FLOAT32)
    sum_to_f32(&f, PG_AT(float, wide), PG_AT(float, small));
  else
    sum_to_f64(&f, PG_AT(double, wide), PG_AT(double, small));
  return PG_OK;
}
#endif
