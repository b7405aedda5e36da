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

  /* The rows' next columns; what a thread brings is always of the same rows, whose squares it adds up. */
  template <int N>
  static __device__ __forceinline__ void load(int64_t rows, int64_t left, int64_t d, const T *x, row_of_few *to,
                                              T *square) {
#pragma unroll
    for (int t = 0; t < SIDE * DEPTH / N / PG_BLOCK; t++) {
      int place = t * PG_BLOCK + threadIdx.x, row = place / (DEPTH / N), k = place % (DEPTH / N) * N;
      pg_few<T, N> p = {};
      if (row < rows && k < left) p = *(const pg_few<T, N> *)(x + row * d + k);
#pragma unroll
      for (int i = 0; i < N; i++) to[k + i][row / M].v[row % M] = p.v[i], square[t] += p.v[i] * p.v[i];
    }
  }

  /* The squares of a row's elements, from the lanes that brought them. */
  template <int N> static __device__ __forceinline__ void join(T *square, T *to) {
#pragma unroll
    for (int t = 0; t < SIDE * DEPTH / N / PG_BLOCK; t++) {
      for (int offset = DEPTH / N / 2; offset > 0; offset /= 2)
        square[t] += __shfl_xor_sync(PG_FULL_MASK, square[t], offset);
      int place = t * PG_BLOCK + threadIdx.x;
      if (place % (DEPTH / N) == 0) to[place / (DEPTH / N)] = square[t];
    }
  }

  template <int N, bool SQUARES, class F>
  __device__ __forceinline__ void loop(int64_t rows_a, int64_t rows_b, int64_t d, const T *a, const T *b,
                                       row_of_few *left, row_of_few *right, T *squares, F f) {
    int x = threadIdx.x % 16, y = threadIdx.x / 16;
    bool same = a == b; /* on the diagonal one load serves both */
    T square_a[SIDE * DEPTH / N / PG_BLOCK] = {}, square_b[SIDE * DEPTH / N / PG_BLOCK] = {};
    for (int64_t k0 = 0; k0 < d; k0 += DEPTH) {
      __syncthreads(); /* the columns before are still being read */
      load<N>(rows_a, d - k0, d, a + k0, left, square_a);
      if (!same) load<N>(rows_b, d - k0, d, b + k0, right, square_b);
      __syncthreads();
      const row_of_few *other = same ? left : right;
#pragma unroll 8
      for (int k = 0; k < DEPTH; k++) {
        pg_few<T, M> p = left[k][y], q = other[k][x];
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
          for (int j = 0; j < M; j++) sum[i][j] += f(p.v[i], q.v[j]);
      }
    }
    if (!SQUARES) return;
    join<N>(square_a, squares);
    if (!same) join<N>(square_b, squares + SIDE);
    __syncthreads();
    if (same && threadIdx.x < SIDE) squares[SIDE + threadIdx.x] = squares[threadIdx.x];
    __syncthreads();
  }

  /* a and b: the tile's first rows, of which rows_a and rows_b are there; packed: both may be read 16 bytes at a time.
   * With SQUARES, squares[0..SIDE-1] and [SIDE..] in shared memory become sum_k a_ik^2 and b_jk^2. */
  template <bool SQUARES, class F>
  __device__ __forceinline__ void run(int64_t rows_a, int64_t rows_b, int64_t d, const T *a, const T *b, bool packed,
                                      T *squares, F f) {
    PG_SHARED(row_of_few, left, [DEPTH]);
    PG_SHARED(row_of_few, right, [DEPTH]);
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
      for (int j = 0; j < M; j++) sum[i][j] = 0;
    if (packed)
      loop<pg_pack<T>::N, SQUARES>(rows_a, rows_b, d, a, b, left, right, squares, f);
    else
      loop<1, SQUARES>(rows_a, rows_b, d, a, b, left, right, squares, f);
  }
};

#endif
