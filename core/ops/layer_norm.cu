/* layer_norm.cu - y = (x - mean) / sqrt(var + eps) * weight + bias over the last dimension.
 *
 * A row is held in registers by a warp or a block (lines.h): forward reads x once and writes y once. Backward reads x
 * and dy once: a warp or block goes through neighbouring rows, writes their dx, and sums what they add to dweight and
 * dbias in registers too; a second kernel adds those partial sums in order. How rows are shared out depends on the
 * shape alone, so that the sums have the same bits on every device. */
#include "../cuda/lines.h"

template <class L, class T = typename L::T>
static __global__ void __launch_bounds__(L::BLOCK, 1)
    forward_kernel(pg_lines lines, const T *x, const T *weight, const T *bias, T eps, T *y, T *means, T *rstds) {
  L line(lines, L::which());
  if (line.absent()) return;
  typename L::values v(line, x + line.first);
  T sum = 0, squares = 0;
  line.each([&](int k, int64_t i) { sum += v(k, i); });
  T mean = line.all(sum, (T)0, pg_plus()) / (T)lines.n;
  line.each([&](int k, int64_t i) { squares += (v(k, i) - mean) * (v(k, i) - mean); });
  T rstd = 1 / pg_sqrt(line.all(squares, (T)0, pg_plus()) / (T)lines.n + eps);
  typename L::passing w(weight, 1), b(bias, 0);
  line.write(y + line.first, [&](int k, int64_t i) { return (v(k, i) - mean) * rstd * w(k, i) + b(k, i); });
  if (line.leads()) means[line.index] = mean, rstds[line.index] = rstd;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* Sums over rows that a thread keeps for its columns: in registers, or in memory for rows that are streamed. */
template <class L, class T = typename L::T> struct column_sums {
  T v[L::HELD > 0 ? (int)L::HELD : 1];
  T *to;
  __device__ __forceinline__ column_sums(const L &line, T *to) : to(to) {
    if (L::HELD > 0)
#pragma unroll
      for (int k = 0; k < L::HELD; k++) v[k] = 0;
    else
      line.each([&](int, int64_t i) { to[i] = 0; });
  }
  __device__ __forceinline__ void add(int k, int64_t i, T x) {
    if (L::HELD > 0)
      v[k] += x;
    else
      to[i] += x;
  }
  __device__ __forceinline__ void finish(const L &line) const {
    if (L::HELD > 0) line.write(to, [&](int k, int64_t) { return v[k]; });
  }
};

/* Group g takes rows g * share .. and leaves its sums in partial (groups, 2, n); without SUMS it has one row. */
template <class L, bool SUMS, class T = typename L::T>
static __global__ void __launch_bounds__(L::BLOCK, 1)
    backward_kernel(pg_lines groups, int64_t rows, int64_t share, const T *x, const T *weight, const T *dy,
                    const T *means, const T *rstds, T *dx, T *partial) {
  const int64_t group = L::which(), n = groups.n;
  L own(groups, group);
  if (own.absent()) return;
  typename L::values w(own, weight, 1);
  column_sums<L> dw(own, partial + group * 2 * n), db(own, partial + group * 2 * n + n);
  for (int64_t r = group * share; r < (group + 1) * share && r < rows; r++) {
    L line(groups, r);
    typename L::values v(line, x + line.first), g(line, dy + line.first);
    T mean = means[r], rstd = rstds[r];
    if (SUMS)
      line.each([&](int k, int64_t i) { dw.add(k, i, g(k, i) * (v(k, i) - mean) * rstd), db.add(k, i, g(k, i)); });
    if (!dx) continue;
    T sum = 0, along = 0;
    line.each([&](int k, int64_t i) {
      T up = g(k, i) * w(k, i);
      sum += up, along += up * (v(k, i) - mean) * rstd;
    });
    sum = line.all(sum, (T)0, pg_plus()) / (T)n, along = line.all(along, (T)0, pg_plus()) / (T)n;
    line.write(dx + line.first,
               [&](int k, int64_t i) { return rstd * (g(k, i) * w(k, i) - sum - (v(k, i) - mean) * rstd * along); });
  }
  if (SUMS) dw.finish(own), db.finish(own);
}

/* partial (groups, 2 n) summed over groups: 32 columns a block, whose 8 or 32 rows of threads are joined by a tree. */
template <class T> static __global__ void sums_kernel(int64_t groups, int64_t n, const T *partial, T *dw, T *db) {
  PG_SHARED(T, part, [32][33]);
  int x = threadIdx.x % 32, y = threadIdx.x / 32, rows = blockDim.x / 32;
  int64_t column = (int64_t)blockIdx.x * 32 + x;
  T sum = 0;
  if (column < 2 * n)
#pragma unroll 4
    for (int64_t g = y; g < groups; g += rows) sum += partial[g * 2 * n + column];
  part[y][x] = sum;
  for (int half = rows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (y < half) part[y][x] += part[y + half][x];
  }
  T *to = column < n ? dw : db;
  if (y == 0 && column < 2 * n && to) to[column % n] = part[0][x];
}

/* ---- host ------------------------------------------------------------------------------------------------------- */

template <class T> static int forward(pg_call *c) {
  const pg_tensor *x = c->in[0];
  pg_lines lines = {pg_numel(c->out[1]), x->shape[x->ndim - 1], 1};
  if (!lines.outer) return PG_OK;
  const T *w = c->in[1] ? PG_AT(const T, c->in[1]) : NULL, *b = c->in[2] ? PG_AT(const T, c->in[2]) : NULL;
  bool packable = pg_packable<T>(lines.n, PG_AT(const T, x), PG_AT(T, c->out[0]), w, b);
  return pg_with_rows<T, 8>(lines, packable, [&](auto kind) -> int {
    typedef typename decltype(kind)::L L;
    PG_LAUNCH(c, forward_kernel<L>, L::blocks(lines), L::BLOCK, lines, PG_AT(const T, x), w, b, (T)c->p[0].num,
              PG_AT(T, c->out[0]), PG_AT(T, c->out[1]), PG_AT(T, c->out[2]));
    return PG_OK;
  });
}

template <class T> static int backward(pg_call *c) {
  const T *x = PG_AT(const T, c->in[0]), *w = c->in[1] ? PG_AT(const T, c->in[1]) : NULL;
  const T *dy = PG_AT(const T, c->grad_out[0]), *mean = PG_AT(const T, c->out[1]), *rstd = PG_AT(const T, c->out[2]);
  T *dx = c->grad_in[0] ? PG_AT(T, c->grad_in[0]) : NULL;
  T *dw = c->grad_in[1] ? PG_AT(T, c->grad_in[1]) : NULL, *db = c->grad_in[2] ? PG_AT(T, c->grad_in[2]) : NULL;
  const int64_t rows = pg_numel(c->out[1]), n = c->in[0]->shape[c->in[0]->ndim - 1];
  /* At least 8 rows a group keep the partial sums' traffic below a sixth of the rows'; 2048 groups fill any device. */
  const bool sums = dw || db;
  const int64_t share = sums ? PG_MAX(8, (rows + 2047) / 2048) : 1;
  const pg_lines groups = {(rows + share - 1) / share, n, 1};
  pg_scratch partial(sums ? PG_MAX(sizeof(T) * 2 * (size_t)(groups.outer * n), (size_t)1) : 1);
  if (partial.status) return partial.status;
  if (rows) {
    bool packable = pg_packable<T>(n, x, dy, w, dx);
    PG_TRY((pg_with_rows<T, 4>(groups, packable, [&](auto kind) -> int {
      typedef typename decltype(kind)::L L;
      if (sums)
        PG_LAUNCH(c, (backward_kernel<L, true>), L::blocks(groups), L::BLOCK, groups, rows, share, x, w, dy, mean, rstd,
                  dx, partial.at<T>());
      else
        PG_LAUNCH(c, (backward_kernel<L, false>), L::blocks(groups), L::BLOCK, groups, rows, share, x, w, dy, mean,
                  rstd, dx, partial.at<T>());
      return PG_OK;
    })));
  }
  if (sums)
    PG_LAUNCH(c, sums_kernel<T>, pg_blocks(2 * n, 32), groups.outer > 64 ? 1024 : 256, groups.outer, n,
              partial.at<const T>(), dw, db);
  return PG_OK;
}

PG_CUDA_OP(layer_norm, {forward<float>, forward<double>}, {backward<float>, backward<double>})
