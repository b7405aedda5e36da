/* linear.cu - y = x W^T + b by cuBLAS; the bias is laid into y before the product adds to it, as on the host. Under
 * autocast cuBLAS multiplies bfloat16 numbers, to which the operands are rounded before.
 *
 * Backward: dx = dy W and dW = dy^T x by cuBLAS. db, the sum of dy's columns, in two steps: each block sums a stretch
 * of rows for neighbouring columns, then the stretches are added in order; how many there are depends on the shape
 * alone. */
#include "../cuda/cuda.h"

static int64_t rows_of(const pg_tensor *x) {
  int64_t rows = 1;
  for (int32_t i = 0; i < x->ndim - 1; i++) rows *= x->shape[i];
  return rows;
}

/* ---- the bias in every row -------------------------------------------------------------------------------------- */

enum { LAID = 16 }; /* rows that a thread writes its columns into */

/* W columns a thread: a pack, or one where rows do not begin at 16 bytes. */
template <class T, int W>
static __global__ void lay_kernel(int64_t rows, int64_t columns, int64_t strips, const T *b, T *y) {
  int64_t column = (blockIdx.x % strips * blockDim.x + threadIdx.x) * W, row = blockIdx.x / strips * LAID;
  if (column >= columns) return;
  T value[W];
#pragma unroll
  for (int k = 0; k < W; k++) value[k] = b[column + k];
  y += row * columns + column;
  for (int64_t last = row + LAID < rows ? row + LAID : rows; row < last; row++, y += columns) {
    if (W > 1) {
      pg_pack<T> p;
#pragma unroll
      for (int k = 0; k < W; k++) p.v[k % pg_pack<T>::N] = value[k];
      pg_store(y, p);
    } else {
      *y = value[0];
    }
  }
}

template <class T, int W> static int lay_bias(pg_call *c, int64_t rows, int64_t columns) {
  unsigned threads = (unsigned)PG_MIN((columns / W + 31) / 32 * 32, (int64_t)PG_BLOCK);
  int64_t strips = (columns / W + threads - 1) / threads, bands = (rows + LAID - 1) / LAID;
  PG_LAUNCH(c, (lay_kernel<T, W>), (unsigned)(strips * bands), threads, rows, columns, strips, PG_AT(const T, c->in[2]),
            PG_AT(T, c->out[0]));
  return PG_OK;
}

/* A product of the call, as on the host: dense, alpha 1. */
static int product(const pg_call *c, int ta, int tb, int64_t m, int64_t n, int64_t k, const double *a, const double *b,
                   double beta, double *y) {
  return pg_cuda_gemm<double>(ta, tb, m, n, k, 1, a, ta ? m : k, b, tb ? k : n, beta, y, n);
}
static int product(const pg_call *c, int ta, int tb, int64_t m, int64_t n, int64_t k, const float *a, const float *b,
                   float beta, float *y) {
  if (c->bf16) return pg_cuda_gemm_bf16(c, ta, tb, m, n, k, a, b, beta, y);
  return pg_cuda_gemm<float>(ta, tb, m, n, k, 1, a, ta ? m : k, b, tb ? k : n, beta, y, n);
}

template <class T> static int forward(pg_call *c) {
  int64_t in = c->in[1]->shape[1], out = c->in[1]->shape[0], rows = rows_of(c->in[0]);
  if (!rows || !out) return PG_OK;
  T *y = PG_AT(T, c->out[0]);
  if (c->in[2])
    PG_TRY(pg_packable<T>(out, y) ? (lay_bias<T, pg_pack<T>::N>(c, rows, out)) : (lay_bias<T, 1>(c, rows, out)));
  return product(c, 0, 1, rows, out, in, PG_AT(const T, c->in[0]), PG_AT(const T, c->in[1]), T(c->in[2] ? 1 : 0), y);
}

/* ---- sums of columns -------------------------------------------------------------------------------------------- */

enum { LANES = 8, STRETCH = 64 }; /* threads that share a column in a block; rows that are worth a block */

/* A warp holds 32 W neighbouring columns; the block's warps take turns with the rows of its stretch. */
template <class T, int W>
static __global__ void sum_kernel(int64_t rows, int64_t columns, int64_t strips, int64_t stretch, const T *dy,
                                  T *part) {
  PG_SHARED(T, shared, [LANES][PG_WARP * W]);
  int x = threadIdx.x % PG_WARP, turn = threadIdx.x / PG_WARP;
  int64_t column = (blockIdx.x % strips * PG_WARP + x) * W, which = blockIdx.x / strips, row = which * stretch;
  int64_t last = row + stretch < rows ? row + stretch : rows;
  T sum[W];
#pragma unroll
  for (int k = 0; k < W; k++) sum[k] = 0;
  if (column < columns) {
    for (row += turn; row < last; row += LANES) {
      if (W > 1) {
        pg_pack<T> p = pg_load(dy + row * columns + column);
#pragma unroll
        for (int k = 0; k < W; k++) sum[k] += p.v[k % pg_pack<T>::N];
      } else {
        sum[0] += dy[row * columns + column];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < W; k++) shared[turn][x + k * PG_WARP] = sum[k];
  for (int half = LANES / 2; half > 0; half /= 2) {
    __syncthreads();
    if (turn < half) {
#pragma unroll
      for (int k = 0; k < W; k++) shared[turn][x + k * PG_WARP] += shared[turn + half][x + k * PG_WARP];
    }
  }
  if (turn == 0 && column < columns) {
#pragma unroll
    for (int k = 0; k < W; k++) part[which * columns + column + k] = shared[0][x + k * PG_WARP];
  }
}

template <class T> static __global__ void join_kernel(int64_t stretches, int64_t columns, const T *part, T *db) {
  int64_t column = pg_thread();
  if (column >= columns) return;
  T sum = 0;
  for (int64_t s = 0; s < stretches; s++) sum += part[s * columns + column];
  db[column] = sum;
}

template <class T, int W> static int sum_columns(pg_call *c, int64_t rows, int64_t columns, const T *dy, T *db) {
  int64_t strips = (columns + PG_WARP * W - 1) / (PG_WARP * W);
  int64_t wanted =
      PG_MAX(1, PG_MIN(1024 / strips, (rows + STRETCH - 1) / STRETCH)); /* blocks that fill a large device */
  int64_t stretch = PG_MAX(1, (rows + wanted - 1) / wanted), stretches = PG_MAX(1, (rows + stretch - 1) / stretch);
  pg_scratch part(stretches > 1 ? sizeof(T) * (size_t)(stretches * columns) : 0);
  if (part.status) return part.status;
  T *to = stretches > 1 ? part.at<T>() : db;
  PG_LAUNCH(c, (sum_kernel<T, W>), (unsigned)(strips * stretches), PG_WARP * LANES, rows, columns, strips, stretch, dy,
            to);
  if (stretches > 1)
    PG_LAUNCH(c, join_kernel<T>, pg_blocks(columns), PG_BLOCK, stretches, columns, part.at<const T>(), db);
  return PG_OK;
}

template <class T> static int backward(pg_call *c) {
  int64_t in = c->in[1]->shape[1], out = c->in[1]->shape[0], rows = rows_of(c->in[0]);
  const T *dy = PG_AT(const T, c->grad_out[0]);
  if (c->grad_in[0])
    PG_TRY(product(c, 0, 0, rows, in, out, dy, PG_AT(const T, c->in[1]), T(0), PG_AT(T, c->grad_in[0])));
  if (c->grad_in[1])
    PG_TRY(product(c, 1, 0, out, in, rows, dy, PG_AT(const T, c->in[0]), T(0), PG_AT(T, c->grad_in[1])));
  if (!c->in[2] || !c->grad_in[2] || !out) return PG_OK;
  T *db = PG_AT(T, c->grad_in[2]);
  return pg_packable<T>(out, dy) ? sum_columns<T, pg_pack<T>::N>(c, rows, out, dy, db)
                                 : sum_columns<T, 1>(c, rows, out, dy, db);
}

PG_CUDA_OP(linear, {forward<float>, forward<double>}, {backward<float>, backward<double>})
