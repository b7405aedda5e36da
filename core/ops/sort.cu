/* sort.cu - lines along a dimension in order, all of them or the first k (the order: sort.c). Lines next to one another
 * are core/cuda/order.cu's work; those that do not run along the last dimension are turned first, and the result turned
 * back.
 */
#include "../cuda/order.h"

/* ---- turning: (outer, rows, columns) becomes (outer, columns, rows) --------------------------------------------- */

template <class T> static __global__ void turn_kernel(int64_t rows, int64_t columns, const T *from, T *to) {
  PG_SHARED(T, tile, [32][33]);
  int x = threadIdx.x % 32, y = threadIdx.x / 32;
  int64_t across = (columns + 31) / 32, down = (rows + 31) / 32, t = blockIdx.x;
  int64_t c0 = t % across * 32, r0 = t / across % down * 32, base = t / (across * down) * rows * columns;
  for (int i = y; i < 32; i += 8)
    if (r0 + i < rows && c0 + x < columns) tile[i][x] = from[base + (r0 + i) * columns + c0 + x];
  __syncthreads();
  for (int i = y; i < 32; i += 8)
    if (c0 + i < columns && r0 + x < rows) to[base + (c0 + i) * rows + r0 + x] = tile[x][i];
}

template <class T> static int turn(pg_call *c, int64_t outer, int64_t rows, int64_t columns, const T *from, T *to) {
  unsigned blocks = (unsigned)(outer * ((rows + 31) / 32) * ((columns + 31) / 32));
  PG_LAUNCH(c, turn_kernel<T>, blocks, PG_BLOCK, rows, columns, from, to);
  return PG_OK;
}

/* ---- any dimension ---------------------------------------------------------------------------------------------- */

template <class T> static int order(pg_call *c, int64_t dimension, bool descending) {
  const pg_tensor *x = c->in[0];
  int32_t dim;
  int64_t outer, n, inner;
  PG_TRY(pg_dim(c, x, dimension, &dim));
  pg_around(x, dim, &outer, &n, &inner);
  int64_t k = c->out[0]->shape[dim], lines = outer * inner;
  if (!lines || !k) return PG_OK;
  pg_lines<T> s = {lines, n, k, descending, PG_AT(const T, x), PG_AT(T, c->out[0]), PG_AT(int32_t, c->out[1])};
  if (inner == 1) return pg_cuda_order<T>(c, s);
  pg_scratch turned(sizeof(T) * (size_t)(lines * n)), values(sizeof(T) * (size_t)(lines * k)),
      index(sizeof(int32_t) * (size_t)(lines * k));
  if (turned.status || values.status || index.status) return PG_MAX(PG_MAX(turned.status, values.status), index.status);
  PG_TRY(turn<T>(c, outer, n, inner, s.x, turned.at<T>()));
  s.x = turned.at<T>(), s.values = values.at<T>(), s.index = index.at<int32_t>();
  PG_TRY(pg_cuda_order<T>(c, s));
  PG_TRY(turn<T>(c, outer, inner, k, s.values, PG_AT(T, c->out[0])));
  return turn<int32_t>(c, outer, inner, k, s.index, PG_AT(int32_t, c->out[1]));
}

/* Positions of a line are distinct: every gradient has a place of its own. */
template <class T>
static __global__ void scatter_kernel(int64_t count, int64_t n, int64_t k, int64_t inner, const int32_t *index,
                                      const T *g, T *dx) {
  int64_t i = pg_thread();
  if (i < count) dx[(i / (k * inner) * n + index[i]) * inner + i % inner] = g[i];
}

template <class T> static int scatter_back(pg_call *c, int64_t dimension) {
  pg_tensor *dx = c->grad_in[0], *g = c->grad_out[0];
  int32_t dim;
  int64_t outer, n, inner, count = pg_numel(g);
  PG_TRY(pg_dim(c, dx, dimension, &dim));
  pg_around(dx, dim, &outer, &n, &inner);
  int64_t k = g->shape[dim];
  if (k < n) PG_TRY(pg_fill(dx, 0));
  if (count)
    PG_LAUNCH(c, scatter_kernel<T>, pg_blocks(count), PG_BLOCK, count, n, k, inner, PG_AT(const int32_t, c->out[1]),
              PG_AT(const T, g), PG_AT(T, dx));
  return PG_OK;
}

template <class T> static int sort_forward(pg_call *c) { return order<T>(c, c->p[0].ints[0], c->p[1].ints[0] != 0); }
template <class T> static int sort_backward(pg_call *c) { return scatter_back<T>(c, c->p[0].ints[0]); }
template <class T> static int topk_forward(pg_call *c) { return order<T>(c, c->p[1].ints[0], c->p[2].ints[0] != 0); }
template <class T> static int topk_backward(pg_call *c) { return scatter_back<T>(c, c->p[1].ints[0]); }

PG_CUDA_OP(sort, {sort_forward<float>, sort_forward<double>, sort_forward<int32_t>, sort_forward<uint8_t>},
           {sort_backward<float>, sort_backward<double>})
PG_CUDA_OP(topk, {topk_forward<float>, topk_forward<double>, topk_forward<int32_t>, topk_forward<uint8_t>},
           {topk_backward<float>, topk_backward<double>})
