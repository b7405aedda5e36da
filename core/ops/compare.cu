/* compare.cu - z = (a OP b) as bytes, 1 where it holds, with NumPy's broadcasting.
 *
 * Two numbers are in one of four relations; a comparison is the set of those in which it holds, a mask, so that one
 * kernel does all six. A thread takes 16 bytes of each operand that runs along with the output (as in binary.cu). */
#include "../cuda/cuda.h"

enum { LESS = 1, EQUAL = 2, GREATER = 4, UNORDERED = 8 }; /* unordered: one of them is NaN */

template <class T, int W>
static __global__ void compare_kernel(int64_t n, pg_walk w, const T *a, const T *b, int holds, uint8_t *z) {
  int64_t i = pg_thread() * W, at[2];
  if (i >= n) return;
  pg_walk_places(w, i, at);
  pg_pack<T, W> x = pg_take<W>(a + at[0], w.step[0], n - i), y = pg_take<W>(b + at[1], w.step[1], n - i);
  pg_pack<uint8_t, W> out;
#pragma unroll
  for (int k = 0; k < W; k++) {
    int relation = x.v[k] < y.v[k] ? LESS : x.v[k] == y.v[k] ? EQUAL : x.v[k] > y.v[k] ? GREATER : UNORDERED;
    out.v[k] = (holds & relation) != 0;
  }
  pg_put(z + i, out, n - i);
}

template <class T, int HOLDS> static int compare(pg_call *c) {
  enum { W = pg_pack<T>::N };
  int64_t n = pg_numel(c->out[0]);
  if (!n) return PG_OK;
  pg_walk w = pg_walk_over(c->out[0], 2, c->in);
  const T *a = PG_AT(const T, c->in[0]), *b = PG_AT(const T, c->in[1]);
  uint8_t *z = PG_AT(uint8_t, c->out[0]);
  if (pg_walk_packable<W>(w, 0, a) && pg_walk_packable<W>(w, 1, b))
    PG_LAUNCH(c, (compare_kernel<T, W>), pg_blocks(n, PG_BLOCK * W), PG_BLOCK, n, w, a, b, HOLDS, z);
  else
    PG_LAUNCH(c, (compare_kernel<T, 1>), pg_blocks(n), PG_BLOCK, n, w, a, b, HOLDS, z);
  return PG_OK;
}

#define COMPARE(name, holds)                                                                                           \
  PG_CUDA_OP(name, {compare<float, holds>, compare<double, holds>, compare<int32_t, holds>, compare<uint8_t, holds>})
COMPARE(eq, EQUAL)
COMPARE(ne, LESS | GREATER | UNORDERED)
COMPARE(lt, LESS)
COMPARE(le, LESS | EQUAL)
COMPARE(gt, GREATER)
COMPARE(ge, GREATER | EQUAL)
