/* proxy_pool.cu - proxies as convex combinations of real features (the maths: proxy_pool.c).
 *
 * Logits lie (B, N, P) and the pooling weights (B, P, N): a block takes one anchor and up to 32 of its proxies, walks
 * down the tokens once for the softmax's maximum and sum together, and once to write the weights, through shared memory
 * so that both sides run along rows. The combinations themselves, and both gradients through them, are products. */
#include "../cuda/cuda.h"

/* A block's threads are `width` proxies (a power of two, up to 32) by PG_BLOCK / width tokens, and it writes tiles of
 * `width` proxies by `length` tokens. */
typedef struct layout {
  int width, length;
} layout;

static layout layout_of(int64_t p) {
  int width = 1;
  while (width < PG_WARP && width < p) width *= 2;
  return {width, PG_MAX(PG_BLOCK / width, (int)PG_WARP)};
}
enum { TILE = PG_WARP * (PG_WARP + 1) }; /* width (length + 1) is never more */

/* A softmax's running maximum and the sum of e^(x - maximum). */
template <class T> struct weight {
  T top = -INFINITY, sum = 0;
  __device__ __forceinline__ T base(void) const { return top > -INFINITY ? top : T(0); }
};

template <class T>
static __global__ void pool_kernel(int64_t n, int64_t p, layout shape, const T *logits, const T *mask, T *pi) {
  PG_SHARED(T, tile, [TILE]);
  PG_SHARED(T, tops, [PG_BLOCK]);
  PG_SHARED(T, parts, [PG_BLOCK]);
  int width = shape.width, length = shape.length, rows = PG_BLOCK / width;
  int x = threadIdx.x % width, y = threadIdx.x / width;
  int64_t strips = (p + width - 1) / width, anchor = blockIdx.x / strips, p0 = blockIdx.x % strips * width;
  const T *from = logits + anchor * n * p + p0, *allowed = mask + anchor * n;
  bool here = p0 + x < p;

  weight<T> w;
  for (int64_t j = y; here && j < n; j += rows) {
    if (allowed[j] == 0) continue;
    T l = from[j * p + x];
    if (l > w.top)
      w.sum = w.sum * pg_exp(w.top - l) + pg_exp(l - l), w.top = l; /* e^0, or NaN as on the host where l is infinite */
    else
      w.sum += pg_exp(l - w.base());
  }
  tops[threadIdx.x] = w.top, parts[threadIdx.x] = w.sum;
  for (int half = rows / 2; half > 0; half /= 2) { /* a column's threads, joined as a tree */
    __syncthreads();
    if (y < half) {
      int other = threadIdx.x + half * width;
      weight<T> joint;
      joint.top = pg_larger()(w.top, tops[other]);
      joint.sum = w.sum * pg_exp(w.top - joint.base()) + parts[other] * pg_exp(tops[other] - joint.base());
      w = joint;
      tops[threadIdx.x] = w.top, parts[threadIdx.x] = w.sum;
    }
  }
  __syncthreads();
  w.top = tops[x], w.sum = parts[x];
  T base = w.base(), scale = w.sum == 0 ? T(0) : 1 / w.sum;

  for (int64_t j0 = 0; j0 < n; j0 += length) {
    for (int j = y; j < length; j += rows)
      if (here && j0 + j < n)
        tile[x * (length + 1) + j] = (allowed[j0 + j] != 0 ? pg_exp(from[(j0 + j) * p + x] - base) : T(0)) * scale;
    __syncthreads();
    for (int at = threadIdx.x; at < width * length; at += PG_BLOCK) {
      int j = at % length, k = at / length;
      if (p0 + k < p && j0 + j < n) pi[(anchor * p + p0 + k) * n + j0 + j] = tile[k * (length + 1) + j];
    }
    __syncthreads();
  }
}

/* g holds dP x^T; with dL/dPi added it is G. A warp takes a proxy's row for sum_m Pi G; the tiles turn as above. */
template <class T>
static __global__ void pool_grad_kernel(int64_t n, int64_t p, layout shape, const T *pi, const T *upstream, const T *g,
                                        T *dlogits) {
  PG_SHARED(T, tile, [TILE]);
  PG_SHARED(T, along, [PG_WARP]);
  int width = shape.width, length = shape.length;
  int64_t strips = (p + width - 1) / width, anchor = blockIdx.x / strips, p0 = blockIdx.x % strips * width;
  for (int k = threadIdx.x / PG_WARP; k < width && p0 + k < p; k += PG_BLOCK / PG_WARP) {
    int64_t row = (anchor * p + p0 + k) * n;
    T sum = 0;
    for (int64_t j = threadIdx.x % PG_WARP; j < n; j += PG_WARP) sum += pi[row + j] * (g[row + j] + upstream[row + j]);
    sum = pg_warp_sum(sum);
    if (threadIdx.x % PG_WARP == 0) along[k] = sum;
  }
  __syncthreads();
  for (int64_t j0 = 0; j0 < n; j0 += length) {
    for (int at = threadIdx.x; at < width * length; at += PG_BLOCK) {
      int j = at % length, k = at / length;
      int64_t from = (anchor * p + p0 + k) * n + j0 + j;
      if (p0 + k < p && j0 + j < n) tile[k * (length + 1) + j] = pi[from] * (g[from] + upstream[from] - along[k]);
    }
    __syncthreads();
    for (int at = threadIdx.x; at < width * length; at += PG_BLOCK) {
      int k = at % width, j = at / width;
      if (p0 + k < p && j0 + j < n) dlogits[(anchor * n + j0 + j) * p + p0 + k] = tile[k * (length + 1) + j];
    }
    __syncthreads();
  }
}

template <class T> static int proxy_pool_forward(pg_call *c) {
  int64_t b = c->in[0]->shape[0], n = c->in[0]->shape[1], p = c->in[0]->shape[2], d = c->in[2]->shape[1];
  T *pi = PG_AT(T, c->out[1]);
  layout shape = layout_of(p);
  if (b * n * p > 0)
    PG_LAUNCH(c, pool_kernel<T>, (unsigned)(b * ((p + shape.width - 1) / shape.width)), PG_BLOCK, n, p, shape,
              PG_AT(const T, c->in[0]), PG_AT(const T, c->in[1]), pi);
  return pg_cuda_gemm<T>(0, 0, b * p, d, n, 1, pi, n, PG_AT(const T, c->in[2]), d, 0, PG_AT(T, c->out[0]), d);
}

template <class T> static int proxy_pool_backward(pg_call *c) {
  int64_t b = c->out[1]->shape[0], p = c->out[1]->shape[1], n = c->out[1]->shape[2], d = c->in[2]->shape[1];
  const T *pi = PG_AT(const T, c->out[1]), *dp = PG_AT(const T, c->grad_out[0]), *x = PG_AT(const T, c->in[2]);
  if (c->grad_in[1]) PG_TRY(pg_fill(c->grad_in[1], 0));
  if (c->grad_in[2]) PG_TRY(pg_cuda_gemm<T>(1, 0, n, d, b * p, 1, pi, n, dp, d, 0, PG_AT(T, c->grad_in[2]), d));
  if (!c->grad_in[0] || b * n * p == 0) return PG_OK;
  pg_scratch g(sizeof(T) * (size_t)(b * p * n));
  if (g.status) return g.status;
  layout shape = layout_of(p);
  PG_TRY(pg_cuda_gemm<T>(0, 1, b * p, n, d, 1, dp, d, x, d, 0, g.at<T>(), n));
  PG_LAUNCH(c, pool_grad_kernel<T>, (unsigned)(b * ((p + shape.width - 1) / shape.width)), PG_BLOCK, n, p, shape, pi,
            PG_AT(const T, c->grad_out[1]), g.at<const T>(), PG_AT(T, c->grad_in[0]));
  return PG_OK;
}

PG_CUDA_OP(proxy_pool, {proxy_pool_forward<float>, proxy_pool_forward<double>},
           {proxy_pool_backward<float>, proxy_pool_backward<double>})
