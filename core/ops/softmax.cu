/* softmax.cu - softmax and log_softmax along one dimension, and their gradients from the output alone.
 *
 * A line is held in registers by a warp or a block (lines.h): one read and one write of memory, for the last dimension
 * and for those in the middle. */
#include "../cuda/lines.h"

template <class L, bool LOG, class T = typename L::T>
static __global__ void __launch_bounds__(L::BLOCK, 1) forward_kernel(pg_lines lines, const T *x, T *y) {
  L line(lines, L::which());
  if (line.absent()) return;
  typename L::values v(line, x + line.first);
  T top = -(T)INFINITY, sum = 0;
  line.each([&](int k, int64_t i) { top = pg_larger()(top, v(k, i)); });
  top = line.all(top, -(T)INFINITY, pg_larger());
  line.each([&](int k, int64_t i) { sum += pg_exp(v(k, i) - top); });
  sum = line.all(sum, (T)0, pg_plus());
  T scale = LOG ? top + pg_log(sum) : 1 / sum;
  line.write(y + line.first, [&](int k, int64_t i) { return LOG ? v(k, i) - scale : pg_exp(v(k, i) - top) * scale; });
}

template <class L, bool LOG, class T = typename L::T>
static __global__ void __launch_bounds__(L::BLOCK, 1) backward_kernel(pg_lines lines, const T *y, const T *dy, T *dx) {
  L line(lines, L::which());
  if (line.absent()) return;
  typename L::values v(line, y + line.first), g(line, dy + line.first);
  T sum = 0;
  line.each([&](int k, int64_t i) { sum += LOG ? g(k, i) : g(k, i) * v(k, i); });
  sum = line.all(sum, (T)0, pg_plus());
  line.write(dx + line.first,
             [&](int k, int64_t i) { return LOG ? g(k, i) - pg_exp(v(k, i)) * sum : v(k, i) * (g(k, i) - sum); });
}

static int lines_of(const pg_call *c, pg_lines *lines) {
  int32_t dim;
  PG_TRY(pg_dim(c, c->in[0], c->p[0].ints[0], &dim));
  return pg_around(c->in[0], dim, &lines->outer, &lines->n, &lines->inner), PG_OK;
}

template <class T, bool LOG> static int forward(pg_call *c) {
  pg_lines lines;
  PG_TRY(lines_of(c, &lines));
  if (!pg_numel(c->in[0])) return PG_OK;
  const T *x = PG_AT(const T, c->in[0]);
  T *y = PG_AT(T, c->out[0]);
  return pg_with_lines<T, 8>(lines, pg_packable<T>(lines.n, x, y), [&](auto kind) -> int {
    typedef typename decltype(kind)::L L;
    PG_LAUNCH(c, (forward_kernel<L, LOG>), L::blocks(lines), L::BLOCK, lines, x, y);
    return PG_OK;
  });
}

template <class T, bool LOG> static int backward(pg_call *c) {
  pg_lines lines;
  PG_TRY(lines_of(c, &lines));
  if (!pg_numel(c->in[0])) return PG_OK;
  const T *y = PG_AT(const T, c->out[0]), *dy = PG_AT(const T, c->grad_out[0]);
  T *dx = PG_AT(T, c->grad_in[0]);
  return pg_with_lines<T, 4>(lines, pg_packable<T>(lines.n, y, dy, dx), [&](auto kind) -> int {
    typedef typename decltype(kind)::L L;
    PG_LAUNCH(c, (backward_kernel<L, LOG>), L::blocks(lines), L::BLOCK, lines, y, dy, dx);
    return PG_OK;
  });
}

PG_CUDA_OP(softmax, {forward<float, false>, forward<double, false>}, {backward<float, false>, backward<double, false>})
PG_CUDA_OP(log_softmax, {forward<float, true>, forward<double, true>}, {backward<float, true>, backward<double, true>})
