/* dropout.cu - y = x * keep / (1 - p); number i of the call's own stretch of the generator decides element i, as on the
 * CPU, and backward draws the same numbers again.
 *
 * A thread takes the four elements that one block of the generator decides, 16 bytes at a time where that is possible.
 * u >= p, u = bits / 2^24, is decided in whole numbers: bits >= ceil(p 2^24). */
#include "../cuda/cuda.h"

/* skip: elements' numbers begin so far into the first block; only a whole block may be packed. */
template <class T, bool PACKED>
static __global__ void dropout_kernel(int64_t n, const T *x, uint64_t seed, uint64_t block, int32_t skip,
                                      uint32_t threshold, T scale, T *y) {
  int64_t first = pg_thread() * 4 - skip;
  if (first >= n) return;
  uint32_t bits[4];
  pg_cuda_four_bits(seed, block + (uint64_t)pg_thread(), bits);
  if (PACKED && first + 4 <= n) {
#pragma unroll
    for (int j = 0; j < 4; j += pg_pack<T>::N) {
      pg_pack<T> p = pg_load(x + first + j);
#pragma unroll
      for (int k = 0; k < pg_pack<T>::N; k++) p.v[k] = bits[j + k] >> 8 >= threshold ? p.v[k] * scale : (T)0;
      pg_store(y + first + j, p);
    }
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      int64_t i = first + j;
      if (i >= 0 && i < n) y[i] = bits[j] >> 8 >= threshold ? x[i] * scale : (T)0;
    }
  }
}

template <class T> static int apply(pg_call *c, const pg_tensor *from, pg_tensor *to) {
  double p = c->p[0].num;
  int64_t n = pg_numel(from);
  const T *x = PG_AT(const T, from);
  T *y = PG_AT(T, to);
  if (!n) return PG_OK;
  if (!c->p[1].ints[0] || p <= 0) return pg_device_get(PG_CUDA)->copy(y, x, sizeof(T) * (size_t)n);
  int32_t skip = (int32_t)(c->offset % 4);
  uint32_t threshold = (uint32_t)ceil(p * 0x1p24);
  T scale = p < 1 ? (T)(1 / (1 - p)) : (T)0;
  unsigned blocks = pg_blocks((n + skip + 3) / 4);
  if (!skip && pg_packable<T>(0, x, y))
    PG_LAUNCH(c, (dropout_kernel<T, true>), blocks, PG_BLOCK, n, x, c->seed, c->offset / 4, skip, threshold, scale, y);
  else
    PG_LAUNCH(c, (dropout_kernel<T, false>), blocks, PG_BLOCK, n, x, c->seed, c->offset / 4, skip, threshold, scale, y);
  return PG_OK;
}

template <class T> static int forward(pg_call *c) { return apply<T>(c, c->in[0], c->out[0]); }
template <class T> static int backward(pg_call *c) { return apply<T>(c, c->grad_out[0], c->grad_in[0]); }

PG_CUDA_OP(dropout, {forward<float>, forward<double>}, {backward<float>, backward<double>})
