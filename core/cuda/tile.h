/* tile.h - for every row i of one matrix and j of another, sum over k of f(a_ik, b_jk), a square tile of (i, j) a
 * block.
 *
 * For the kernels that do not write such sums as they are, but go on with the tile where it stands: a loss over all
 * pairs (fda.cu), squared distances from differences (knn.cu). 256 threads share a tile of 16 M x 16 M: 32 columns of
 * both sets of rows are brought to shared memory at a time, with k as the row there, so that a thread reads its M
 * values of either side at once; thread (x, y) keeps the sums of rows M y.. and columns M x.. in registers. Every sum
 * is taken in the order of k wherever its tile lies: equal rows give equal sums. */
#ifndef PG_TILE_H
#define PG_TILE_H
#include "cuda.h"

template <class T, int N> struct alignas(sizeof(T) * N) pg_few { /* N neighbours moved by one access; N is 1, 2 or 4 */
  T v[N];
};

template <class T, int M> struct pg_tile {
  enum { SIDE = 16 * M, DEPTH = 32 };
  typedef pg_few<T, M> row_of_few[17]; /* one more than 16: columns fall into different banks */
  T sum[M][M];

  template <int N>
  static __device__ __forceinline__ void load(int64_t rows, int64_t left, int64_t d, const T *x, row_of_few *to) {
#pragma unroll
    for (int at = 0; at < SIDE * DEPTH / N; at += PG_BLOCK) {
      int place = at + threadIdx.x, row = place / (DEPTH / N), k = place % (DEPTH / N) * N;
      pg_few<T, N> p = {};
      if (row < rows && k < left) p = *(const pg_few<T, N> *)(x + row * d + k);
#pragma unroll
      for (int i = 0; i < N; i++) to[k + i][row / M].v[row % M] = p.v[i];
    }
  }

  /* a and b: the tile's first rows, of which rows_a and rows_b are there; packed: both may be read 16 bytes at a time.
   */
  template <class F>
  __device__ __forceinline__ void run(int64_t rows_a, int64_t rows_b, int64_t d, const T *a, const T *b, bool packed,
                                      F f) {
    PG_SHARED(row_of_few, left, [DEPTH]);
    PG_SHARED(row_of_few, right, [DEPTH]);
    int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
      for (int j = 0; j < M; j++) sum[i][j] = 0;
    for (int64_t k0 = 0; k0 < d; k0 += DEPTH) {
      __syncthreads(); /* the columns before are still being read */
      if (packed) {
        load<pg_pack<T>::N>(rows_a, d - k0, d, a + k0, left);
        load<pg_pack<T>::N>(rows_b, d - k0, d, b + k0, right);
      } else {
        load<1>(rows_a, d - k0, d, a + k0, left);
        load<1>(rows_b, d - k0, d, b + k0, right);
      }
      __syncthreads();
#pragma unroll 8
      for (int k = 0; k < DEPTH; k++) {
        pg_few<T, M> p = left[k][y], q = right[k][x];
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
          for (int j = 0; j < M; j++) sum[i][j] += f(p.v[i], q.v[j]);
      }
    }
  }
};

#endif
