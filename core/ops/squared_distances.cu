/* squared_distances.cu - |x_i - y_j|^2 between all rows, a tile a block, and its gradients, a thread an element that
 * goes through the other side's rows in order (the maths: squared_distances.c). */
#include "../cuda/tile.h"

template <class T, int M>
static __global__ void __launch_bounds__(PG_BLOCK)
    forward_kernel(int64_t n, int64_t m, int64_t d, const T *x, const T *y, bool packed, T *out) {
  enum { SIDE = pg_tile<T, M>::SIDE };
  int64_t down = (n + SIDE - 1) / SIDE, i0 = blockIdx.x % down * SIDE, j0 = blockIdx.x / down * SIDE;
  pg_tile<T, M> tile;
  tile.template run<false>(PG_MIN(n - i0, (int64_t)SIDE), PG_MIN(m - j0, (int64_t)SIDE), d, x + i0 * d, y + j0 * d,
                           packed, (T *)NULL, [](T a, T b) { return (a - b) * (a - b); });
  int64_t i = i0 + threadIdx.x / 16 * M, j = j0 + threadIdx.x % 16 * M;
#pragma unroll
  for (int u = 0; u < M; u++) {
    if (i + u >= n) break;
    if (m % M == 0 && j < m) {
      pg_few<T, M> row;
#pragma unroll
      for (int v = 0; v < M; v++) row.v[v] = tile.sum[u][v];
      *(pg_few<T, M> *)(out + (i + u) * m + j) = row;
    } else {
#pragma unroll
      for (int v = 0; v < M; v++)
        if (j + v < m) out[(i + u) * m + j + v] = tile.sum[u][v];
    }
  }
}

/* to_i = 2 sum_j g_ij (x_i - y_j); g's rows and columns so far apart */
template <class T>
static __global__ void backward_kernel(int64_t n, int64_t m, int64_t d, const T *x, const T *y, const T *g,
                                       int64_t row_step, int64_t column_step, T *to) {
  int64_t e = pg_thread();
  if (e >= n * d) return;
  int64_t i = e / d, k = e % d;
  T own = x[e], sum = 0;
  for (int64_t j = 0; j < m; j++) sum += g[i * row_step + j * column_step] * (own - y[j * d + k]);
  to[e] = 2 * sum;
}

template <class T> static int squared_distances_forward(pg_call *c) {
  enum { M = pg_pack<T>::N, SIDE = pg_tile<T, M>::SIDE };
  int64_t n = c->in[0]->shape[0], d = c->in[0]->shape[1], m = c->in[1]->shape[0];
  const T *x = PG_AT(const T, c->in[0]), *y = PG_AT(const T, c->in[1]);
  if (!n || !m) return PG_OK;
  PG_LAUNCH(c, (forward_kernel<T, M>), (unsigned)((n + SIDE - 1) / SIDE * ((m + SIDE - 1) / SIDE)), PG_BLOCK, n, m, d,
            x, y, pg_packable<T>(d, x, y), PG_AT(T, c->out[0]));
  return PG_OK;
}

template <class T> static int squared_distances_backward(pg_call *c) {
  int64_t n = c->in[0]->shape[0], d = c->in[0]->shape[1], m = c->in[1]->shape[0];
  const T *x = PG_AT(const T, c->in[0]), *y = PG_AT(const T, c->in[1]), *g = PG_AT(const T, c->grad_out[0]);
  if (c->grad_in[0] && n > 0 && d > 0)
    PG_LAUNCH(c, backward_kernel<T>, pg_blocks(n * d), PG_BLOCK, n, m, d, x, y, g, m, (int64_t)1,
              PG_AT(T, c->grad_in[0]));
  if (c->grad_in[1] && m > 0 && d > 0)
    PG_LAUNCH(c, backward_kernel<T>, pg_blocks(m * d), PG_BLOCK, m, n, d, y, x, g, (int64_t)1, m,
              PG_AT(T, c->grad_in[1]));
  return PG_OK;
}

PG_CUDA_OP(squared_distances, {squared_distances_forward<float>, squared_distances_forward<double>},
           {squared_distances_backward<float>, squared_distances_backward<double>})
