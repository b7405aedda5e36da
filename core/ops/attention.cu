/* attention.cu - softmax(scale q k^T + mask) v and its gradients, tile by tile in shared memory.
 *
 * No (T, S) matrix leaves a block, as in FlashAttention (Dao et al., arXiv 2205.14135). In every kernel a block owns a
 * tile of rows and streams the other side past it in tiles of columns; its 16 x 16 threads each hold R rows and C
 * columns of the product of the two, and R rows of the result. Forward: rows are queries, with a running maximum and
 * sum (m, l). Backward recomputes the weights P from q, k and the saved log-sum-exp, in two kernels, so that every sum
 * has one owner and one order: dq by tiles of queries, dk and dv by tiles of keys. With D_t = sum_e dy_te y_te: dS = P
 * (dy v^T - D), dq = scale dS k, dk = scale dS^T q, dv = P^T dy.
 *
 * W is the width of heads that a tile holds: 32, 64 or 128. A product over wider heads runs in steps of W, and blocks
 * share the columns of a wider result, each recomputing the weights. Tiles get smaller where W or the type is large, so
 * that two blocks fit a multiprocessor where they can. */
#include "../cuda/cuda.h"

enum { SIDE = 16, THREADS = SIDE * SIDE };

/* ---- one call --------------------------------------------------------------------------------------------------- */

template <class T> struct operand { /* (B, H, rows, width), neighbours in a row next to each other */
  const T *first;
  int64_t batch, head, row; /* strides */
  int64_t rows, width;
  int32_t packed; /* rows begin at 16 bytes and are whole packs */
};

template <class T> struct target { /* the same, to be written */
  T *first;
  int64_t batch, head, row;
};

template <class T> struct problem {
  operand<T> q, k, v, y, dy; /* y and dy: backward only */
  target<T> out, dq, dk, dv; /* out: forward only, the others backward; first NULL: not wanted */
  const T *mask;             /* NULL: none */
  int64_t mask_batch, mask_head, heads;
  int32_t causal;
  T scale;
};

template <class T>
static __device__ __forceinline__ const T *matrix_of(const operand<T> &x, int64_t task, int64_t heads) {
  return x.first + task / heads * x.batch + task % heads * x.head;
}

template <class T> static __device__ __forceinline__ T *matrix_of(const target<T> &x, int64_t task, int64_t heads) {
  return x.first + task / heads * x.batch + task % heads * x.head;
}

template <class T>
static operand<T> operand_at(const T *first, int64_t batch, int64_t head, int64_t row, int64_t rows, int64_t width) {
  operand<T> x = {first, batch, head, row, rows, width, 0};
  x.packed = ((batch | head | row | width) % pg_pack<T>::N) == 0 && (uintptr_t)first % 16 == 0;
  return x;
}

template <class T> static operand<T> operand_of(const pg_tensor *t) {
  return operand_at<T>(PG_AT(const T, t), t->stride[0], t->stride[1], t->stride[2], t->shape[2], t->shape[3]);
}

template <class T> static target<T> target_of(const pg_tensor *t) { /* contiguous */
  target<T> x = {};
  if (t) x.first = PG_AT(T, t), x.batch = t->stride[0], x.head = t->stride[1], x.row = t->shape[3];
  return x;
}

/* What the call says beside its matrices. */
template <class T>
static void set_terms(problem<T> &p, int64_t heads, bool causal, double scale, const pg_tensor *mask) {
  p.heads = PG_MAX(heads, (int64_t)1);
  p.causal = causal;
  p.scale = (T)(scale != 0 ? scale : 1 / sqrt((double)PG_MAX(p.q.width, (int64_t)1)));
  if (!mask) return;
  p.mask = PG_AT(const T, mask);
  if (mask->ndim == 4) {
    int64_t matrix = p.q.rows * p.k.rows;
    p.mask_head = mask->shape[1] == 1 ? 0 : matrix;
    p.mask_batch = mask->shape[0] == 1 ? 0 : mask->shape[1] * matrix;
  }
}

/* ---- tiles ------------------------------------------------------------------------------------------------------ */

template <class T, int W> struct sizes {
  enum {
    N = pg_pack<T>::N,
    R = sizeof(T) == 4 ? 4 : 2, /* rows and columns that a thread holds */
    C = sizeof(T) == 4 && W < 128 ? 4 : 2,
    BLOCKS = sizeof(T) == 4 && W < 128 ? 2 : 1, /* that fit a multiprocessor at least */
    ROWS = R * SIDE,
    COLS = C * SIDE,
    LD = W + N,       /* the pack behind each row spreads a column over the banks */
    LDP = COLS + N,   /* of the weights, (ROWS, COLS) */
    E = W / SIDE,     /* columns of the result that a thread holds, */
    G = E < N ? E : N /* in groups of G neighbours */
  };
  static constexpr size_t bytes(int row_tiles) { /* row tiles, one tile that streams, the weights */
    return sizeof(T) * ((size_t)(row_tiles * ROWS + COLS) * LD + (size_t)ROWS * LDP);
  }
};

template <class T, int G> struct alignas(sizeof(T) * G) group { T v[G]; };

/* Rows from..from+COUNT of x, columns at..at+W, zeros outside of it. */
template <class T, int W, int COUNT>
static __device__ __forceinline__ void load(T *tile, const operand<T> &x, const T *matrix, int64_t from, int64_t at) {
  enum { N = pg_pack<T>::N, PACKS = W / N };
#pragma unroll
  for (int i = threadIdx.x; i < COUNT * PACKS; i += THREADS) {
    int row = i / PACKS, column = i % PACKS * N;
    const T *source = matrix + (from + row) * x.row + at + column;
    pg_pack<T> p;
    if (x.packed && from + row < x.rows && at + column < x.width) {
      p = pg_load(source);
    } else {
#pragma unroll
      for (int k = 0; k < N; k++) p.v[k] = from + row < x.rows && at + column + k < x.width ? source[k] : (T)0;
    }
    pg_store(tile + row * sizes<T, W>::LD + column, p);
  }
}

/* sum[i][j] += row i of a . row j of b, over `width` columns (up to a whole pack, which zeros fill). */
template <class T, int W, int R, int C>
static __device__ __forceinline__ void dots(T (&sum)[R][C], const T *a, const T *b, int64_t width) {
  enum { N = pg_pack<T>::N, LD = sizes<T, W>::LD };
  int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE, steps = (int)(width < W ? width : (int64_t)W);
#pragma unroll 1
  for (int d = 0; d < steps; d += N) {
    pg_pack<T> x[R], y[C];
#pragma unroll
    for (int i = 0; i < R; i++) x[i] = pg_load(a + (ty + i * SIDE) * LD + d);
#pragma unroll
    for (int j = 0; j < C; j++) y[j] = pg_load(b + (tx + j * SIDE) * LD + d);
#pragma unroll
    for (int k = 0; k < N; k++)
#pragma unroll
      for (int i = 0; i < R; i++)
#pragma unroll
        for (int j = 0; j < C; j++) sum[i][j] += x[i].v[k] * y[j].v[k];
  }
}

/* Where in a row the thread's group g of result columns stands. */
template <class T, int W> static __device__ __forceinline__ int column_of(int g) {
  return (g * SIDE + (int)threadIdx.x % SIDE) * sizes<T, W>::G;
}

/* sum[i] += sum over columns c of weights[i][c] * (row c of b), for the thread's columns of b. */
template <class T, int W, int R, int E>
static __device__ __forceinline__ void mix(T (&sum)[R][E], const T *weights, const T *b, int columns) {
  typedef sizes<T, W> Z;
  int ty = threadIdx.x / SIDE;
#pragma unroll 1
  for (int c = 0; c < columns; c += Z::N) {
    pg_pack<T> w[R];
#pragma unroll
    for (int i = 0; i < R; i++) w[i] = pg_load(weights + (ty + i * SIDE) * Z::LDP + c);
#pragma unroll
    for (int k = 0; k < Z::N; k++)
#pragma unroll
      for (int g = 0; g < E / Z::G; g++) {
        group<T, Z::G> x = *(const group<T, Z::G> *)(b + (c + k) * Z::LD + column_of<T, W>(g));
#pragma unroll
        for (int i = 0; i < R; i++)
#pragma unroll
          for (int j = 0; j < Z::G; j++) sum[i][g * Z::G + j] += w[i].v[k] * x.v[j];
      }
  }
}

/* The thread's rows of a result (rows, width), `stride` apart, whose columns this block has from `at` on. */
template <class T, int W, int R, int E>
static __device__ __forceinline__ void write(T *to, int64_t stride, int64_t from, int64_t rows, int64_t at,
                                             int64_t width, const T (&x)[R][E]) {
  typedef sizes<T, W> Z;
  int ty = threadIdx.x / SIDE;
#pragma unroll
  for (int i = 0; i < R; i++) {
    int64_t row = from + ty + i * SIDE;
#pragma unroll
    for (int g = 0; g < E / Z::G; g++) {
      int64_t column = at + column_of<T, W>(g);
      if (row >= rows || column >= width) continue;
      T *place = to + row * stride + column;
      if (width % Z::G == 0) {
        group<T, Z::G> p;
#pragma unroll
        for (int j = 0; j < Z::G; j++) p.v[j] = x[i][g * Z::G + j];
        *(group<T, Z::G> *)place = p;
      } else {
#pragma unroll
        for (int j = 0; j < Z::G; j++)
          if (column + j < width) place[j] = x[i][g * Z::G + j];
      }
    }
  }
}

/* Which keys the queries of one pair of tiles see, and the mask over them. */
template <class T> struct window {
  int queries, keys; /* that there are */
  int ahead;         /* query t sees the keys up to t + ahead */
  const T *mask;     /* at the first of both */
  int64_t mask_row;
  T scale;

  __device__ __forceinline__ bool sees(int t, int s) const { return t < queries && s < keys && s <= t + ahead; }
  __device__ __forceinline__ T score(T dot, int t, int s) const {
    T x = dot * scale;
    return mask ? x + mask[t * mask_row + s] : x;
  }
  __device__ __forceinline__ T weight(T dot, int t, int s, T lse) const { /* given the row's log-sum-exp */
    return sees(t, s) ? pg_exp(score(dot, t, s) - lse) : (T)0;
  }
};

static __device__ __forceinline__ int
within(int64_t x) { /* as an int that keeps its order against positions in a tile */
  return (int)(x < -65536 ? -65536 : x > 65536 ? 65536 : x);
}

template <class T>
static __device__ __forceinline__ window<T> window_of(const problem<T> &p, int64_t task, int64_t t0, int64_t s0) {
  int64_t t = p.q.rows, s = p.k.rows;
  window<T> w;
  w.queries = within(t - t0), w.keys = within(s - s0), w.ahead = p.causal ? within(t0 + s - t - s0) : 65536;
  w.mask = p.mask ? p.mask + task / p.heads * p.mask_batch + task % p.heads * p.mask_head + t0 * s + s0 : NULL;
  w.mask_row = s, w.scale = p.scale;
  return w;
}

/* Keys that some query of rows t0..t0+count sees: they end here. */
template <class T> static __device__ __forceinline__ int64_t keys_end(const problem<T> &p, int64_t t0, int64_t count) {
  int64_t s = p.k.rows, last = (t0 + count < p.q.rows ? t0 + count : p.q.rows) + s - p.q.rows;
  return !p.causal || last > s ? s : last < 0 ? 0 : last;
}

/* sum += rows x_from.. of x times rows y_from.. of y, in steps of W columns; `rows` holds x already where one is all.
 */
template <class T, int W, int R, int C>
static __device__ __forceinline__ void multiply(T (&sum)[R][C], T *rows, const operand<T> &x, const T *x_matrix,
                                                int64_t x_from, T *stream, const operand<T> &y, const T *y_matrix,
                                                int64_t y_from) {
  for (int64_t at = 0; at == 0 || at < x.width; at += W) {
    __syncthreads(); /* what was there has been read */
    if (x.width > W) load<T, W, sizes<T, W>::ROWS>(rows, x, x_matrix, x_from, at);
    load<T, W, sizes<T, W>::COLS>(stream, y, y_matrix, y_from, at);
    __syncthreads();
    dots<T, W>(sum, rows, stream, x.width - at);
  }
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

/* Blocks: (tile of queries fastest, W columns of y, batch and head). */
template <class T, int W>
static __global__ void __launch_bounds__(THREADS, (sizes<T, W>::BLOCKS))
    forward_kernel(problem<T> p, int64_t tiles, int64_t parts, T *lse) {
  typedef sizes<T, W> Z;
  PG_SHARED_DYNAMIC(T, shared);
  T *rows = shared, *stream = rows + Z::ROWS * Z::LD, *weights = stream + Z::COLS * Z::LD;
  int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
  int64_t tile = blockIdx.x % tiles, part = blockIdx.x / tiles % parts, task = blockIdx.x / tiles / parts;
  int64_t t0 = (p.causal ? tiles - 1 - tile : tile) * Z::ROWS; /* the longest rows first */
  const T *q = matrix_of(p.q, task, p.heads), *k = matrix_of(p.k, task, p.heads), *v = matrix_of(p.v, task, p.heads);
  T out[Z::R][Z::E] = {}, top[Z::R], total[Z::R];
#pragma unroll
  for (int i = 0; i < Z::R; i++) top[i] = (T)-INFINITY, total[i] = 0;
  if (p.q.width <= W) load<T, W, Z::ROWS>(rows, p.q, q, t0, 0);
  int64_t end = keys_end(p, t0, Z::ROWS);
  for (int64_t s0 = 0; s0 < end; s0 += Z::COLS) {
    T x[Z::R][Z::C] = {};
    multiply<T, W>(x, rows, p.q, q, t0, stream, p.k, k, s0);
    window<T> w = window_of(p, task, t0, s0);
#pragma unroll
    for (int i = 0; i < Z::R; i++) {
      T most = top[i];
#pragma unroll
      for (int j = 0; j < Z::C; j++) {
        int t = ty + i * SIDE, s = tx + j * SIDE;
        x[i][j] = w.sees(t, s) ? w.score(x[i][j], t, s) : (T)-INFINITY;
        most = x[i][j] > most ? x[i][j] : most;
      }
      for (int offset = SIDE / 2; offset > 0; offset /= 2) {
        T other = __shfl_xor_sync(PG_FULL_MASK, most, offset);
        most = other > most ? other : most;
      }
      T base = most > (T)-INFINITY ? most : (T)0, shrink = pg_exp(top[i] - base); /* no key yet: 0 */
      top[i] = most, total[i] *= shrink;
#pragma unroll
      for (int j = 0; j < Z::C; j++) {
        T e = pg_exp(x[i][j] - base);
        total[i] += e;
        weights[(ty + i * SIDE) * Z::LDP + tx + j * SIDE] = e;
      }
#pragma unroll
      for (int j = 0; j < Z::E; j++) out[i][j] *= shrink;
    }
    __syncthreads(); /* the keys have been read */
    load<T, W, Z::COLS>(stream, p.v, v, s0, part * W);
    __syncthreads();
    mix<T, W>(out, weights, stream, w.keys < Z::COLS ? w.keys : (int)Z::COLS);
  }
#pragma unroll
  for (int i = 0; i < Z::R; i++) {
    int64_t t = t0 + ty + i * SIDE;
    T sum = total[i];
    for (int offset = SIDE / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(PG_FULL_MASK, sum, offset);
    T inverse = sum > 0 ? 1 / sum : (T)0;
#pragma unroll
    for (int j = 0; j < Z::E; j++) out[i][j] *= inverse;
    if (part == 0 && tx == 0 && t < p.q.rows) /* +infinity, where nothing is seen: backward finds weights of zero */
      lse[task * p.q.rows + t] = sum > 0 ? top[i] + pg_log(sum) : sum == 0 ? (T)INFINITY : sum;
  }
  write<T, W>(matrix_of(p.out, task, p.heads), p.out.row, t0, p.q.rows, part * W, p.v.width, out);
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* D, a warp a row. */
template <class T> static __global__ void delta_kernel(problem<T> p, int64_t rows, T *delta) {
  int64_t row = pg_thread() / PG_WARP;
  int lane = threadIdx.x % PG_WARP;
  T sum = 0;
  if (row < rows) {
    int64_t task = row / p.y.rows, t = row % p.y.rows;
    const T *y = matrix_of(p.y, task, p.heads) + t * p.y.row, *dy = matrix_of(p.dy, task, p.heads) + t * p.dy.row;
    for (int64_t e = lane; e < p.y.width; e += PG_WARP) sum += dy[e] * y[e];
  }
  sum = pg_warp_sum(sum);
  if (lane == 0 && row < rows) delta[row] = sum;
}

/* Blocks: (tile of queries, W columns of dq, batch and head). */
template <class T, int W>
static __global__ void __launch_bounds__(THREADS, (sizes<T, W>::BLOCKS))
    dq_kernel(problem<T> p, int64_t tiles, int64_t parts, const T *lse, const T *delta) {
  typedef sizes<T, W> Z;
  PG_SHARED_DYNAMIC(T, shared);
  T *q_rows = shared, *dy_rows = q_rows + Z::ROWS * Z::LD, *stream = dy_rows + Z::ROWS * Z::LD,
    *weights = stream + Z::COLS * Z::LD;
  int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
  int64_t tile = blockIdx.x % tiles, part = blockIdx.x / tiles % parts, task = blockIdx.x / tiles / parts;
  int64_t t0 = (p.causal ? tiles - 1 - tile : tile) * Z::ROWS;
  const T *q = matrix_of(p.q, task, p.heads), *k = matrix_of(p.k, task, p.heads), *v = matrix_of(p.v, task, p.heads),
          *dy = matrix_of(p.dy, task, p.heads);
  T out[Z::R][Z::E] = {};
  if (p.q.width <= W) load<T, W, Z::ROWS>(q_rows, p.q, q, t0, 0);
  if (p.dy.width <= W) load<T, W, Z::ROWS>(dy_rows, p.dy, dy, t0, 0);
  int64_t end = keys_end(p, t0, Z::ROWS);
  for (int64_t s0 = 0; s0 < end; s0 += Z::COLS) {
    T x[Z::R][Z::C] = {}, dx[Z::R][Z::C] = {};
    multiply<T, W>(dx, dy_rows, p.dy, dy, t0, stream, p.v, v, s0);
    multiply<T, W>(x, q_rows, p.q, q, t0, stream, p.k, k, s0);
    window<T> w = window_of(p, task, t0, s0);
#pragma unroll
    for (int i = 0; i < Z::R; i++) {
      int t = ty + i * SIDE;
      int64_t row = task * p.q.rows + t0 + t;
      T row_lse = t < w.queries ? lse[row] : (T)0, row_delta = t < w.queries ? delta[row] : (T)0;
#pragma unroll
      for (int j = 0; j < Z::C; j++) {
        int s = tx + j * SIDE;
        weights[t * Z::LDP + s] = w.weight(x[i][j], t, s, row_lse) * (dx[i][j] - row_delta);
      }
    }
    __syncthreads();
    if (p.k.width > W) { /* else the keys are still there */
      load<T, W, Z::COLS>(stream, p.k, k, s0, part * W);
      __syncthreads();
    }
    mix<T, W>(out, weights, stream, w.keys < Z::COLS ? w.keys : (int)Z::COLS);
  }
#pragma unroll
  for (int i = 0; i < Z::R; i++)
#pragma unroll
    for (int j = 0; j < Z::E; j++) out[i][j] *= p.scale;
  write<T, W>(matrix_of(p.dq, task, p.heads), p.dq.row, t0, p.q.rows, part * W, p.q.width, out);
}

/* Blocks: (tile of keys, W columns of dk and of dv, batch and head); either result may be NULL. */
template <class T, int W>
static __global__ void __launch_bounds__(THREADS, (sizes<T, W>::BLOCKS))
    dkv_kernel(problem<T> p, int64_t tiles, int64_t parts, const T *lse, const T *delta) {
  typedef sizes<T, W> Z;
  PG_SHARED_DYNAMIC(T, shared);
  T *k_rows = shared, *v_rows = k_rows + Z::ROWS * Z::LD, *stream = v_rows + Z::ROWS * Z::LD,
    *weights = stream + Z::COLS * Z::LD;
  int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
  int64_t tile = blockIdx.x % tiles, part = blockIdx.x / tiles % parts, task = blockIdx.x / tiles / parts;
  int64_t s0 = tile * Z::ROWS, first = p.causal ? s0 + p.q.rows - p.k.rows : 0; /* the first query that sees a key */
  const T *q = matrix_of(p.q, task, p.heads), *k = matrix_of(p.k, task, p.heads), *v = matrix_of(p.v, task, p.heads),
          *dy = matrix_of(p.dy, task, p.heads);
  T k_out[Z::R][Z::E] = {}, v_out[Z::R][Z::E] = {};
  if (p.k.width <= W) load<T, W, Z::ROWS>(k_rows, p.k, k, s0, 0);
  if (p.v.width <= W) load<T, W, Z::ROWS>(v_rows, p.v, v, s0, 0);
  for (int64_t t0 = first > 0 ? first / Z::COLS * Z::COLS : 0; t0 < p.q.rows; t0 += Z::COLS) {
    T x[Z::R][Z::C] = {}, dx[Z::R][Z::C] = {};
    multiply<T, W>(x, k_rows, p.k, k, s0, stream, p.q, q, t0);
    window<T> w = window_of(p, task, t0, s0);
    int count = w.queries < Z::COLS ? w.queries : (int)Z::COLS;
#pragma unroll
    for (int j = 0; j < Z::C; j++) {
      int t = tx + j * SIDE;
      T column_lse = t < count ? lse[task * p.q.rows + t0 + t] : (T)0;
#pragma unroll
      for (int i = 0; i < Z::R; i++) {
        int s = ty + i * SIDE;
        x[i][j] = w.weight(x[i][j], t, s, column_lse);
        weights[s * Z::LDP + t] = x[i][j];
      }
    }
    multiply<T, W>(dx, v_rows, p.v, v, s0, stream, p.dy, dy, t0);
    if (p.dv.first) {
      if (p.v.width > W) { /* else dy is still there */
        __syncthreads();
        load<T, W, Z::COLS>(stream, p.dy, dy, t0, part * W);
        __syncthreads();
      }
      mix<T, W>(v_out, weights, stream, count);
    }
    if (!p.dk.first) continue;
    __syncthreads(); /* the weights and dy have been read */
#pragma unroll
    for (int j = 0; j < Z::C; j++) {
      int t = tx + j * SIDE;
      T column_delta = t < count ? delta[task * p.q.rows + t0 + t] : (T)0;
#pragma unroll
      for (int i = 0; i < Z::R; i++) weights[(ty + i * SIDE) * Z::LDP + t] = x[i][j] * (dx[i][j] - column_delta);
    }
    load<T, W, Z::COLS>(stream, p.q, q, t0, part * W);
    __syncthreads();
    mix<T, W>(k_out, weights, stream, count);
  }
#pragma unroll
  for (int i = 0; i < Z::R; i++)
#pragma unroll
    for (int j = 0; j < Z::E; j++) k_out[i][j] *= p.scale;
  if (p.dk.first) write<T, W>(matrix_of(p.dk, task, p.heads), p.dk.row, s0, p.k.rows, part * W, p.k.width, k_out);
  if (p.dv.first) write<T, W>(matrix_of(p.dv, task, p.heads), p.dv.row, s0, p.k.rows, part * W, p.v.width, v_out);
}

/* ---- launches --------------------------------------------------------------------------------------------------- */

static int64_t pieces(int64_t n, int64_t size) { return PG_MAX((n + size - 1) / size, (int64_t)1); }

template <class T, int W> static int forward_as(pg_call *c, const problem<T> &p, int64_t tasks) {
  typedef sizes<T, W> Z;
  int64_t tiles = pieces(p.q.rows, Z::ROWS), parts = pieces(p.v.width, W);
  PG_LAUNCH_SHARED(c, (forward_kernel<T, W>), (unsigned)(tiles * parts * tasks), THREADS, Z::bytes(1), p, tiles, parts,
                   PG_AT(T, c->out[1]));
  return PG_OK;
}

template <class T, int W> static int backward_as(pg_call *c, const problem<T> &p, int64_t tasks) {
  typedef sizes<T, W> Z;
  int64_t rows = tasks * p.q.rows, tiles = pieces(p.q.rows, Z::ROWS), parts = pieces(p.q.width, W);
  const T *lse = PG_AT(const T, c->out[1]);
  pg_scratch delta(sizeof(T) * (size_t)rows);
  if (delta.status) return delta.status;
  PG_LAUNCH(c, delta_kernel<T>, pg_blocks(rows, PG_BLOCK / PG_WARP), PG_BLOCK, p, rows, delta.at<T>());
  if (p.dq.first)
    PG_LAUNCH_SHARED(c, (dq_kernel<T, W>), (unsigned)(tiles * parts * tasks), THREADS, Z::bytes(2), p, tiles, parts,
                     lse, delta.at<const T>());
  if (!p.dk.first && !p.dv.first) return PG_OK;
  tiles = pieces(p.k.rows, Z::ROWS), parts = pieces(PG_MAX(p.k.width, p.v.width), W);
  PG_LAUNCH_SHARED(c, (dkv_kernel<T, W>), (unsigned)(tiles * parts * tasks), THREADS, Z::bytes(2), p, tiles, parts, lse,
                   delta.at<const T>());
  return PG_OK;
}

template <class T> static int run(pg_call *c, const problem<T> &p, int64_t tasks, bool backward) {
  int64_t width = PG_MAX(p.q.width, p.v.width);
  if (!tasks) return PG_OK;
  if (width <= 32) return backward ? backward_as<T, 32>(c, p, tasks) : forward_as<T, 32>(c, p, tasks);
  if (width <= 64) return backward ? backward_as<T, 64>(c, p, tasks) : forward_as<T, 64>(c, p, tasks);
  return backward ? backward_as<T, 128>(c, p, tasks) : forward_as<T, 128>(c, p, tasks);
}

template <class T> static int separate(pg_call *c, bool backward) {
  pg_held held[3];
  for (int i = 0; i < 3; i++) { /* views of one packed projection are read where they stand */
    if (c->in[i]->stride[3] == 1)
      held[i].t = pg_retain(c->in[i]);
    else
      PG_TRY(pg_contiguous(c->in[i], &held[i].t));
  }
  problem<T> p = {};
  p.q = operand_of<T>(held[0].t), p.k = operand_of<T>(held[1].t), p.v = operand_of<T>(held[2].t);
  set_terms(p, c->in[0]->shape[1], c->p[0].ints[0], c->p[1].num, c->in[3]);
  if (backward) {
    p.y = operand_of<T>(c->out[0]), p.dy = operand_of<T>(c->grad_out[0]);
    p.dq = target_of<T>(c->grad_in[0]), p.dk = target_of<T>(c->grad_in[1]), p.dv = target_of<T>(c->grad_in[2]);
  } else {
    p.out = target_of<T>(c->out[0]);
  }
  return run<T>(c, p, c->in[0]->shape[0] * c->in[0]->shape[1], backward);
}

/* Part `at` of (B, T, parts W), the heads of a part next to each other. */
template <class T> static operand<T> part_of(const pg_tensor *t, int parts, int at, int64_t heads) {
  int64_t row = t->shape[2], width = row / parts;
  return operand_at<T>(PG_AT(const T, t) + at * width, t->shape[1] * row, width / heads, row, t->shape[1],
                       width / heads);
}

template <class T> static target<T> target_part(const pg_tensor *t, int parts, int at, int64_t heads) {
  int64_t row = t->shape[2], width = row / parts;
  target<T> x = {PG_AT(T, t) + at * width, t->shape[1] * row, width / heads, row};
  return x;
}

template <class T> static int packed(pg_call *c, bool backward) {
  const pg_tensor *qkv = c->in[0];
  int64_t heads = c->p[0].ints[0];
  problem<T> p = {};
  p.q = part_of<T>(qkv, 3, 0, heads), p.k = part_of<T>(qkv, 3, 1, heads), p.v = part_of<T>(qkv, 3, 2, heads);
  set_terms(p, heads, c->p[1].ints[0], c->p[2].num, c->in[1]);
  if (backward) {
    const pg_tensor *d = c->grad_in[0];
    p.y = part_of<T>(c->out[0], 1, 0, heads), p.dy = part_of<T>(c->grad_out[0], 1, 0, heads);
    p.dq = target_part<T>(d, 3, 0, heads), p.dk = target_part<T>(d, 3, 1, heads);
    p.dv = target_part<T>(d, 3, 2, heads);
  } else {
    p.out = target_part<T>(c->out[0], 1, 0, heads);
  }
  return run<T>(c, p, qkv->shape[0] * heads, backward);
}

template <class T> static int forward(pg_call *c) { return separate<T>(c, false); }
template <class T> static int backward(pg_call *c) { return separate<T>(c, true); }
template <class T> static int packed_forward(pg_call *c) { return packed<T>(c, false); }
template <class T> static int packed_backward(pg_call *c) { return packed<T>(c, true); }

PG_CUDA_OP(attention, {forward<float>, forward<double>}, {backward<float>, backward<double>})
PG_CUDA_OP(self_attention, {packed_forward<float>, packed_forward<double>},
           {packed_backward<float>, packed_backward<double>})
