/* fda.cu - the Proxy-FDA loss over all pairs of a batch, and over each anchor's own list (the maths: fda.c).
 *
 * fda_loss. A block takes tile (I, J), I <= J, of the cosines, which are symmetric: the tile serves both w_ij and w_ji,
 * and never leaves the block; the lengths come from the same pass over the rows. Both halves of S + S^T meet here, so
 * what is kept for backward is R_ij = (S_ij + S_ji) / |x_i|, with what the way through the normalisation subtracts on
 * the diagonal, R_ii = -sum_j R_ij c_ij: backward is one product, dx = z R x^.
 *
 * fda_pairs. A warp takes a pair, a block 32 pairs of one anchor. In place of S and the cosines c, p = S / |y| and q =
 * p c / |y| are kept: dy = p a^ - q y, and v = sum_m p_m y_m gives dx = (v - a^ (a^ . v)) / |a|, so that backward reads
 * the vectors once.
 *
 * A block's three sums (loss, w s, w s c) go to its own place and are added in the order of blocks, in double. */
#include "../cuda/tile.h"

/* ---- what both ops share ---------------------------------------------------------------------------------------- */

template <class T> struct settings { /* tensors, when given, win over numbers */
  const T *scale_at, *bias_at;
  T scale, bias;
  __device__ __forceinline__ void read(void) {
    if (scale_at) scale = *scale_at;
    if (bias_at) bias = *bias_at;
  }
};

template <class T> static settings<T> settings_of(const pg_call *c, int at) {
  return {c->in[at] ? PG_AT(const T, c->in[at]) : NULL, c->in[at + 1] ? PG_AT(const T, c->in[at + 1]) : NULL,
          (T)(1 / c->p[0].num), (T)c->p[1].num};
}

template <class T> struct sums { T loss = 0, ws = 0, wsc = 0; };

/* Adds a pair to the sums; returns its part of S, without 1 / (B Z). */
template <class T> static __device__ __forceinline__ T pair(T w, T c, const settings<T> &set, sums<T> *total) {
  T z = w * (set.bias - set.scale * c), e = pg_exp(-pg_abs(z)), s = (z >= 0 ? T(1) : e) / (1 + e);
  total->loss += (z > 0 ? z : z != z ? z : T(0)) + pg_log1p(e);
  total->ws += w * s, total->wsc += w * s * c;
  return -set.scale * w * s;
}

/* One block: the three sums of `blocks` blocks become the loss, dL/dscale and dL/dbias. */
template <class T>
static __global__ void finish_kernel(int64_t blocks, const double *partial, double z, T *loss, T *slopes) {
  double total[3];
  for (int k = 0; k < 3; k++) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < blocks; i += blockDim.x) sum += partial[k * blocks + i];
    total[k] = pg_block_sum(sum);
  }
  if (threadIdx.x == 0) *loss = (T)(total[0] * z), slopes[0] = (T)(-total[2] * z), slopes[1] = (T)(total[1] * z);
}

template <class T> static __global__ void setting_grads_kernel(const T *g, const T *slopes, T *dscale, T *dbias) {
  if (threadIdx.x == 0 && dscale) *dscale = *g * slopes[0];
  if (threadIdx.x == 1 && dbias) *dbias = *g * slopes[1];
}

template <class T> static int setting_grads(pg_call *c, int at) {
  pg_tensor *dscale = c->grad_in[at], *dbias = c->grad_in[at + 1];
  if (dscale || dbias)
    PG_LAUNCH(c, setting_grads_kernel<T>, 1, PG_WARP, PG_AT(const T, c->grad_out[0]), PG_AT(const T, c->out[1]),
              dscale ? PG_AT(T, dscale) : NULL, dbias ? PG_AT(T, dbias) : NULL);
  return PG_OK;
}

/* A warp a row: dx = z (v - a^ (a^ . v)) / |a|, where v stands in dx. */
template <class T, int N>
static __global__ void project_kernel(int64_t rows, int64_t d, const T *a, const T *upstream, double over, T *dx) {
  int64_t row = (int64_t)blockIdx.x * (PG_BLOCK / PG_WARP) + threadIdx.x / PG_WARP;
  if (row >= rows) return; /* the whole warp */
  const pg_few<T, N> *from = (const pg_few<T, N> *)(a + row * d);
  pg_few<T, N> *to = (pg_few<T, N> *)(dx + row * d);
  T along = 0, square = 0, z = *upstream / (T)over;
  for (int64_t k = threadIdx.x % PG_WARP; k < d / N; k += PG_WARP) {
    pg_few<T, N> p = from[k], v = to[k];
#pragma unroll
    for (int i = 0; i < N; i++) along += p.v[i] * v.v[i], square += p.v[i] * p.v[i];
  }
  T length = pg_sqrt(pg_warp_sum(square)), scale = 1 / (length > (T)1e-12 ? length : (T)1e-12);
  along = pg_warp_sum(along) * scale * scale;
  for (int64_t k = threadIdx.x % PG_WARP; k < d / N; k += PG_WARP) {
    pg_few<T, N> p = from[k], v = to[k];
#pragma unroll
    for (int i = 0; i < N; i++) v.v[i] = z * (v.v[i] - along * p.v[i]) * scale;
    to[k] = v;
  }
}

template <class T> static int project(pg_call *c, int64_t rows, int64_t d, const T *a, double over, T *dx) {
  const T *upstream = PG_AT(const T, c->grad_out[0]);
  unsigned blocks = pg_blocks(rows, PG_BLOCK / PG_WARP);
  if (pg_packable<T>(d, a, dx))
    PG_LAUNCH(c, (project_kernel<T, pg_pack<T>::N>), blocks, PG_BLOCK, rows, d, a, upstream, over, dx);
  else
    PG_LAUNCH(c, (project_kernel<T, 1>), blocks, PG_BLOCK, rows, d, a, upstream, over, dx);
  return PG_OK;
}

/* ---- all pairs of a batch --------------------------------------------------------------------------------------- */

/* Block t of n (n + 1) / 2 takes tile (I, J), I <= J: row I has n - I tiles, so rows I and n - 1 - I have n + 1. */
static __device__ __forceinline__ void triangle_place(int64_t t, int64_t n, int64_t *I, int64_t *J) {
  int64_t r = t / (n + 1), s = t % (n + 1);
  *I = s < n - r ? r : n - 1 - r;
  *J = s < n - r ? r + s : *I + s - (n - r);
}

template <class T> static __device__ __forceinline__ T unit_scale(T norm) {
  return norm > (T)1e-12 ? 1 / norm : (T)1e12;
}
template <class T> static __device__ __forceinline__ T slope_scale(T norm) { return norm > (T)1e-12 ? 1 / norm : T(0); }

template <class T> struct batch {
  int64_t n, d, packed;
  const T *x, *w;     /* (n, d), (n, n) */
  T *unit, *r, *norm; /* (n, d), (n, n) and (n): kept for backward */
  T *along;           /* (tiles, n): sum_j (S_ij + S_ji) c_ij over a tile's columns */
  double *partial;    /* (3, blocks) */
};

/* Each access to w and to r runs along a row of it: the tile is crossed along its rows for (i, j), along its columns
 * for (j, i), and what the two have for one another goes through shared memory. */
template <class T, int M>
static __global__ void __launch_bounds__(PG_BLOCK) fda_tile_kernel(batch<T> s, settings<T> set) {
  enum { SIDE = pg_tile<T, M>::SIDE, EACH = SIDE * SIDE / PG_BLOCK, STEP = PG_BLOCK / SIDE };
  PG_SHARED(T, tile, [SIDE][SIDE + 1]);
  PG_SHARED(T, norm, [2 * SIDE]); /* of the rows, then of the columns */
  int64_t I, J, n = s.n;
  triangle_place(blockIdx.x, (n + SIDE - 1) / SIDE, &I, &J);
  int64_t i0 = I * SIDE, j0 = J * SIDE, rows = PG_MIN(n - i0, (int64_t)SIDE), columns = PG_MIN(n - j0, (int64_t)SIDE);
  pg_tile<T, M> product;
  product.template run<true>(rows, columns, s.d, s.x + i0 * s.d, s.x + j0 * s.d, s.packed != 0, norm,
                             [](T a, T b) { return a * b; });
  if (threadIdx.x < 2 * SIDE) norm[threadIdx.x] = pg_sqrt(norm[threadIdx.x]);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < M; i++)
#pragma unroll
    for (int j = 0; j < M; j++) {
      int row = threadIdx.x / 16 * M + i, column = threadIdx.x % 16 * M + j;
      tile[row][column] = product.sum[i][j] * unit_scale(norm[row]) * unit_scale(norm[SIDE + column]);
    }
  set.read();
  __syncthreads();

  sums<T> total;
  T both[EACH], cosine[EACH]; /* S_ij, then S_ij + S_ji */
  int near = threadIdx.x % SIDE, far = threadIdx.x / SIDE;
#pragma unroll
  for (int t = 0; t < EACH; t++) {
    int row = far + t * STEP, column = near;
    cosine[t] = tile[row][column], both[t] = 0;
    if (row < rows && column < columns && i0 + row != j0 + column)
      both[t] = pair(s.w[(i0 + row) * n + j0 + column], cosine[t], set, &total);
  }
  __syncthreads();
#pragma unroll
  for (int t = 0; t < EACH; t++) { /* S_ji takes the cosine's place; on the diagonal the sums have it already */
    int column = far + t * STEP, row = near;
    T half = 0;
    sums<T> with = total;
    if (row < rows && column < columns && i0 + row != j0 + column)
      half = pair(s.w[(j0 + column) * n + i0 + row], tile[row][column], set, &with);
    tile[row][column] = half;
    if (I != J) total = with;
  }
  __syncthreads();
#pragma unroll
  for (int t = 0; t < EACH; t++) {
    int row = far + t * STEP, column = near;
    both[t] += tile[row][column], tile[row][column] = both[t];
    if (row < rows && column < columns) s.r[(i0 + row) * n + j0 + column] = both[t] * slope_scale(norm[row]);
  }
  __syncthreads();
#pragma unroll
  for (int t = 0; t < EACH; t++) {
    int column = far + t * STEP, row = near;
    if (I != J && row < rows && column < columns)
      s.r[(j0 + column) * n + i0 + row] = tile[row][column] * slope_scale(norm[SIDE + column]);
  }
  __syncthreads();
#pragma unroll
  for (int t = 0; t < EACH; t++) tile[far + t * STEP][near] = both[t] * cosine[t];
  __syncthreads();
  if (threadIdx.x < 2 * SIDE) { /* a thread a row, or a column */
    T along = 0;
    for (int k = 0; k < SIDE; k++) along += threadIdx.x < SIDE ? tile[near][k] : tile[k][near];
    if (threadIdx.x < SIDE && near < rows) s.along[J * n + i0 + near] = along;
    if (threadIdx.x >= SIDE && near < columns && I != J) s.along[I * n + j0 + near] = along;
  }
  if (I == J) {
    if (threadIdx.x < rows) s.norm[i0 + threadIdx.x] = norm[threadIdx.x];
    for (int row = threadIdx.x / PG_WARP; row < rows; row += PG_BLOCK / PG_WARP)
      for (int64_t k = threadIdx.x % PG_WARP; k < s.d; k += PG_WARP)
        s.unit[(i0 + row) * s.d + k] = s.x[(i0 + row) * s.d + k] * unit_scale(norm[row]);
  }
  T loss = pg_block_sum(total.loss), ws = pg_block_sum(total.ws), wsc = pg_block_sum(total.wsc);
  if (threadIdx.x == 0) {
    s.partial[blockIdx.x] = loss;
    s.partial[gridDim.x + blockIdx.x] = ws, s.partial[2 * (int64_t)gridDim.x + blockIdx.x] = wsc;
  }
}

template <class T> static __global__ void diagonal_kernel(batch<T> s, int64_t tiles) {
  int64_t i = pg_thread();
  if (i >= s.n) return;
  T along = 0;
  for (int64_t t = 0; t < tiles; t++) along += s.along[t * s.n + i];
  s.r[i * s.n + i] = -along * slope_scale(s.norm[i]);
}

template <class T, int M> static int fda_tiles(pg_call *c, batch<T> s) {
  int64_t tiles = (s.n + pg_tile<T, M>::SIDE - 1) / pg_tile<T, M>::SIDE, blocks = tiles * (tiles + 1) / 2;
  pg_scratch partial(sizeof(double) * 3 * (size_t)blocks), along(sizeof(T) * (size_t)(tiles * s.n));
  if (partial.status || along.status) return PG_MAX(partial.status, along.status);
  s.partial = partial.at<double>(), s.along = along.at<T>();
  PG_LAUNCH(c, (fda_tile_kernel<T, M>), (unsigned)blocks, PG_BLOCK, s, settings_of<T>(c, 2));
  PG_LAUNCH(c, diagonal_kernel<T>, pg_blocks(s.n), PG_BLOCK, s, tiles);
  PG_LAUNCH(c, finish_kernel<T>, 1, PG_BLOCK, blocks, s.partial, 1.0 / ((double)s.n * (double)(s.n - 1)),
            PG_AT(T, c->out[0]), PG_AT(T, c->out[1]));
  return PG_OK;
}

template <class T> static int fda_loss_forward(pg_call *c) {
  int64_t b = c->in[0]->shape[0], d = c->in[0]->shape[1];
  const T *x = PG_AT(const T, c->in[0]);
  T *unit = PG_AT(T, c->out[2]);
  batch<T> s = {b, d, pg_packable<T>(d, x), x, PG_AT(const T, c->in[1]), unit, unit + b * d, PG_AT(T, c->out[3])};
  enum {
    MOST = sizeof(T) == 4 ? 4 : 2
  }; /* tiles of 64 read x half as often, where there are enough for all of the GPU */
  return b >= 768 ? fda_tiles<T, MOST>(c, s) : fda_tiles<T, 2>(c, s);
}

template <class T> static __global__ void factors_kernel(const T *upstream, double over, T *factors) {
  if (threadIdx.x == 0) factors[0] = *upstream / (T)over, factors[1] = 0;
}

template <class T> static int fda_loss_backward(pg_call *c) {
  int64_t b = c->in[0]->shape[0], d = c->in[0]->shape[1];
  const T *unit = PG_AT(const T, c->out[2]);
  PG_TRY(setting_grads<T>(c, 2));
  if (!c->grad_in[0]) return PG_OK;
  pg_scratch factors(2 * sizeof(T));
  if (factors.status) return factors.status;
  PG_LAUNCH(c, factors_kernel<T>, 1, PG_WARP, PG_AT(const T, c->grad_out[0]), (double)b * (double)(b - 1),
            factors.at<T>());
  return pg_cuda_gemm_scaled<T>(0, 0, b, d, b, factors.at<T>(), unit + b * d, b, unit, d, PG_AT(T, c->grad_in[0]), d);
}

PG_CUDA_OP(fda_loss, {fda_loss_forward<float>, fda_loss_forward<double>},
           {fda_loss_backward<float>, fda_loss_backward<double>})

/* ---- each anchor with its own list ------------------------------------------------------------------------------ */

/* The sum of squares of one vector, taken by the whole block. */
template <class T, int N> static __device__ __forceinline__ T block_square(int64_t d, const T *x) {
  T sum = 0;
  for (int64_t k = threadIdx.x; k < d / N; k += PG_BLOCK) {
    pg_few<T, N> p = ((const pg_few<T, N> *)x)[k];
#pragma unroll
    for (int i = 0; i < N; i++) sum += p.v[i] * p.v[i];
  }
  return pg_block_sum(sum);
}

template <class T, int N>
static __global__ void pairs_kernel(int64_t b, int64_t m, int64_t d, const T *x, const T *y, const T *w,
                                    settings<T> set, T *saved, double *partial) {
  PG_SHARED(T, cosine, [PG_WARP]);
  PG_SHARED(T, norm, [PG_WARP]);
  int64_t groups = (m + PG_WARP - 1) / PG_WARP, anchor = blockIdx.x / groups, j0 = blockIdx.x % groups * PG_WARP;
  int lane = threadIdx.x % PG_WARP, warp = threadIdx.x / PG_WARP;
  const pg_few<T, N> *a = (const pg_few<T, N> *)(x + anchor * d);
  T length = pg_sqrt(block_square<T, N>(d, x + anchor * d)), scale = length > (T)1e-12 ? 1 / length : (T)1e12;
  for (int64_t t = warp; t < PG_WARP && j0 + t < m; t += PG_BLOCK / PG_WARP) {
    const pg_few<T, N> *other = (const pg_few<T, N> *)(y + (anchor * m + j0 + t) * d);
    T across = 0, square = 0;
#pragma unroll 4
    for (int64_t k = lane; k < d / N; k += PG_WARP) {
      pg_few<T, N> p = a[k], q = other[k];
#pragma unroll
      for (int i = 0; i < N; i++) across += p.v[i] * scale * q.v[i], square += q.v[i] * q.v[i];
    }
    across = pg_warp_sum(across), square = pg_sqrt(pg_warp_sum(square));
    if (square <= (T)1e-12) square = (T)1e-12;
    if (lane == 0) cosine[t] = across / square, norm[t] = square;
  }
  __syncthreads();
  if (warp > 0) return; /* the pairs' exponentials: one warp, a pair a lane */
  sums<T> total;
  if (j0 + lane < m) {
    int64_t at = anchor * m + j0 + lane;
    set.read();
    T c = cosine[lane], p = pair(w[at], c, set, &total) / norm[lane];
    saved[at] = p, saved[b * m + at] = p * c / norm[lane];
  }
  T loss = pg_warp_sum(total.loss), ws = pg_warp_sum(total.ws), wsc = pg_warp_sum(total.wsc);
  if (lane == 0) {
    partial[blockIdx.x] = loss;
    partial[gridDim.x + blockIdx.x] = ws, partial[2 * (int64_t)gridDim.x + blockIdx.x] = wsc;
  }
}

template <class T> static int fda_pairs_forward(pg_call *c) {
  int64_t b = c->in[1]->shape[0], m = c->in[1]->shape[1], d = c->in[1]->shape[2];
  int64_t blocks = b * ((m + PG_WARP - 1) / PG_WARP);
  const T *x = PG_AT(const T, c->in[0]), *y = PG_AT(const T, c->in[1]), *w = PG_AT(const T, c->in[2]);
  T *saved = PG_AT(T, c->out[2]);
  pg_scratch partial(sizeof(double) * 3 * (size_t)PG_MAX(blocks, 1));
  if (partial.status) return partial.status;
  if (blocks && pg_packable<T>(d, x, y))
    PG_LAUNCH(c, (pairs_kernel<T, pg_pack<T>::N>), (unsigned)blocks, PG_BLOCK, b, m, d, x, y, w, settings_of<T>(c, 3),
              saved, partial.at<double>());
  else if (blocks)
    PG_LAUNCH(c, (pairs_kernel<T, 1>), (unsigned)blocks, PG_BLOCK, b, m, d, x, y, w, settings_of<T>(c, 3), saved,
              partial.at<double>());
  PG_LAUNCH(c, finish_kernel<T>, 1, PG_BLOCK, blocks, partial.at<double>(), 1.0 / ((double)b * c->p[2].num),
            PG_AT(T, c->out[0]), PG_AT(T, c->out[1]));
  return PG_OK;
}

/* A block takes 32 packs of columns of one anchor; its warps share the list, and their parts of v are added in order.
 */
template <class T, int N>
static __global__ void pairs_grad_kernel(int64_t b, int64_t m, int64_t d, const T *x, const T *y, const T *saved,
                                         const T *upstream, double over, T *v, T *dy) {
  typedef pg_few<T, N> few;
  PG_SHARED(few, part, [PG_BLOCK / PG_WARP][PG_WARP]);
  int64_t strips = (d / N + PG_WARP - 1) / PG_WARP, anchor = blockIdx.x / strips;
  int lane = threadIdx.x % PG_WARP, warp = threadIdx.x / PG_WARP;
  int64_t column = (blockIdx.x % strips * PG_WARP + lane) * N;
  T length = pg_sqrt(block_square<T, N>(d, x + anchor * d)), z = *upstream / (T)over;
  length = length > (T)1e-12 ? length : (T)1e-12;
  few sum = {}, a = {};
  if (column < d) {
    a = *(const few *)(x + anchor * d + column);
#pragma unroll
    for (int i = 0; i < N; i++) a.v[i] /= length;
#pragma unroll 4
    for (int64_t j = warp; j < m; j += PG_BLOCK / PG_WARP) {
      int64_t at = anchor * m + j;
      few other = *(const few *)(y + at * d + column);
      T p = saved[at], q = saved[b * m + at];
#pragma unroll
      for (int i = 0; i < N; i++) sum.v[i] += p * other.v[i], other.v[i] = z * (p * a.v[i] - q * other.v[i]);
      if (dy) *(few *)(dy + at * d + column) = other;
    }
  }
  part[warp][lane] = sum;
  __syncthreads();
  if (!v || warp > 0 || column >= d) return;
  for (int k = 1; k < PG_BLOCK / PG_WARP; k++)
#pragma unroll
    for (int i = 0; i < N; i++) sum.v[i] += part[k][lane].v[i];
  *(few *)(v + anchor * d + column) = sum;
}

template <class T> static int fda_pairs_backward(pg_call *c) {
  int64_t b = c->in[1]->shape[0], m = c->in[1]->shape[1], d = c->in[1]->shape[2];
  const T *x = PG_AT(const T, c->in[0]), *y = PG_AT(const T, c->in[1]), *saved = PG_AT(const T, c->out[2]);
  const T *upstream = PG_AT(const T, c->grad_out[0]);
  T *dx = c->grad_in[0] ? PG_AT(T, c->grad_in[0]) : NULL, *dy = c->grad_in[1] ? PG_AT(T, c->grad_in[1]) : NULL;
  double over = (double)b * c->p[2].num;
  PG_TRY(setting_grads<T>(c, 3));
  if ((!dx && !dy) || b * d == 0) return PG_OK;
  if (pg_packable<T>(d, x, y, dx, dy))
    PG_LAUNCH(c, (pairs_grad_kernel<T, pg_pack<T>::N>), (unsigned)(b * ((d / pg_pack<T>::N + PG_WARP - 1) / PG_WARP)),
              PG_BLOCK, b, m, d, x, y, saved, upstream, over, dx, dy);
  else
    PG_LAUNCH(c, (pairs_grad_kernel<T, 1>), (unsigned)(b * ((d + PG_WARP - 1) / PG_WARP)), PG_BLOCK, b, m, d, x, y,
              saved, upstream, over, dx, dy);
  return dx ? project<T>(c, b, d, x, over, dx) : PG_OK;
}

PG_CUDA_OP(fda_pairs, {fda_pairs_forward<float>, fda_pairs_forward<double>},
           {fda_pairs_backward<float>, fda_pairs_backward<double>})
