/* fda_weights.cu - the weights of a batch's neighbour graph (the maths: fda_weights.c): the cosines by one product, in
 * the weights' place; then a block a row. */
#include "../cuda/cuda.h"
#include "fda_weights.h"

template <class T>
static __global__ void weights_kernel(pg_fault fault, int64_t b, int64_t k, const int32_t *neighbors, const T *nearest,
                                      T least, T slope, T shift, T *w) {
  int64_t i = blockIdx.x;
  for (int64_t j = threadIdx.x; j < b; j += PG_BLOCK) {
    T s = w[i * b + j];
    w[i * b + j] = i == j ? T(0) : slope * (s < least ? least : s) + shift;
  }
  __syncthreads();
  for (int64_t t = threadIdx.x; t < k; t += PG_BLOCK) {
    T s = nearest[i * k + t];
    int64_t j = neighbors[i * k + t];
    if (pg_in_range(fault, i * k + t, j, b)) w[i * b + j] = s < least ? least : s;
  }
}

template <class T> static int fda_weights_forward(pg_call *c) {
  int64_t b = c->in[0]->shape[0], d = c->in[0]->shape[1], k = c->in[1]->shape[1];
  const T *unit = PG_AT(const T, c->in[0]);
  T *w = PG_AT(T, c->out[0]), least = c->p[1].ints[0] ? T(0) : T(-INFINITY);
  rest_weight rest = rests[c->p[0].ints[0]];
  if (!b) return PG_OK;
  PG_TRY(pg_cuda_gemm<T>(0, 1, b, b, d, T(1), unit, d, unit, d, T(0), w, b));
  PG_LAUNCH(c, weights_kernel<T>, (unsigned)b, PG_BLOCK, pg_fault_new(c, "neighbors"), b, k,
            PG_AT(const int32_t, c->in[1]), PG_AT(const T, c->in[2]), least, (T)rest.slope, (T)rest.shift, w);
  return PG_OK;
}

PG_CUDA_OP(fda_weights, {fda_weights_forward<float>, fda_weights_forward<double>}, {})
