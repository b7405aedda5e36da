/* softmax_regression.cu - the loss of a linear classifier on features that stand still, and its gradient (the maths:
 * softmax_regression.c). Two products by cuBLAS; between them a warp a row turns logits into N dz, and a block a class
 * adds them up for db. Sums of losses and of db are made in double and in one order. */
#include "../cuda/cuda.h"

template <class T>
static __global__ void slopes_kernel(int64_t rows, int64_t n, const T *bias, const int32_t *labels, pg_fault fault,
                                     T *z, double *losses) {
  int64_t row = (int64_t)blockIdx.x * (PG_BLOCK / PG_WARP) + threadIdx.x / PG_WARP;
  if (row >= rows) return; /* the whole warp */
  int64_t lane = threadIdx.x % PG_WARP, label = labels[row];
  T top = -(T)INFINITY, sum = 0, own = 0;
  z += row * n;
  for (int64_t i = lane; i < n; i += PG_WARP) {
    T v = z[i] + bias[i];
    z[i] = v, top = pg_larger()(top, v);
    if (i == label) own = v;
  }
  top = pg_warp_all(top, pg_larger()), own = pg_warp_sum(own);
  for (int64_t i = lane; i < n; i += PG_WARP) sum += pg_exp(z[i] - top);
  sum = pg_warp_sum(sum);
  for (int64_t i = lane; i < n; i += PG_WARP) z[i] = pg_exp(z[i] - top) / sum - (i == label ? 1 : 0);
  if (lane == 0)
    losses[row] =
        pg_in_range(fault, row, label, n) ? (double)top - (double)own + (double)pg_log(sum) : (double)INFINITY;
}

/* Block i < n: db_i / N; the last one the mean loss. */
template <class T>
static __global__ void sums_kernel(int64_t rows, int64_t n, const T *z, const double *losses, T *db, T *loss) {
  int64_t i = blockIdx.x;
  double sum = 0;
  for (int64_t r = threadIdx.x; r < rows; r += PG_BLOCK) sum += i < n ? (double)z[r * n + i] : losses[r];
  sum = pg_block_sum(sum);
  if (threadIdx.x == 0) *(i < n ? db + i : loss) = (T)(sum / (double)rows);
}

template <class T> static int forward(pg_call *c) {
  int64_t rows = c->in[0]->shape[0], d = c->in[0]->shape[1], n = c->in[1]->shape[0];
  const T *x = PG_AT(const T, c->in[0]), *w = PG_AT(const T, c->in[1]);
  T *slopes = PG_AT(T, c->out[1]);
  pg_scratch z(sizeof(T) * (size_t)(rows * n)), losses(sizeof(double) * (size_t)rows);
  if (z.status || losses.status) return PG_MAX(z.status, losses.status);
  PG_TRY(pg_cuda_gemm<T>(0, 1, rows, n, d, T(1), x, d, w, d, T(0), z.at<T>(), n));
  PG_LAUNCH(c, slopes_kernel<T>, pg_blocks(rows, PG_BLOCK / PG_WARP), PG_BLOCK, rows, n, PG_AT(const T, c->in[2]),
            PG_AT(const int32_t, c->in[3]), pg_fault_new(c, "labels"), z.at<T>(), losses.at<double>());
  PG_LAUNCH(c, sums_kernel<T>, (unsigned)(n + 1), PG_BLOCK, rows, n, z.at<const T>(), losses.at<const double>(),
            slopes + n * d, PG_AT(T, c->out[0]));
  return pg_cuda_gemm<T>(1, 0, n, d, rows, T(1 / (double)rows), z.at<T>(), n, x, d, T(0), slopes, d);
}

template <class T> static __global__ void scale_kernel(int64_t n, const T *slopes, const T *upstream, T *to) {
  int64_t i = pg_thread();
  if (i < n) to[i] = *upstream * slopes[i];
}

template <class T> static int backward(pg_call *c) {
  const T *slopes = PG_AT(const T, c->out[1]), *upstream = PG_AT(const T, c->grad_out[0]);
  for (int i = 1; i <= 2; i++) {
    int64_t n = pg_numel(c->in[i]);
    if (c->grad_in[i] && n)
      PG_LAUNCH(c, scale_kernel<T>, pg_blocks(n), PG_BLOCK, n, slopes, upstream, PG_AT(T, c->grad_in[i]));
    slopes += n;
  }
  return PG_OK;
}

PG_CUDA_OP(softmax_regression, {forward<float>, forward<double>}, {backward<float>, backward<double>})
