/* normalize.cu - lines of length one:  y = x / max(||x||_2, eps)  along one dimension.
 *
 * A line is held in registers by a warp or a block (lines.h): one read and one write, whichever the dimension. */
#include "../cuda/lines.h"

template <class L, class T = typename L::T>
static __global__ void __launch_bounds__(L::BLOCK, 1)
    forward_kernel(pg_lines lines, const T *x, T eps, T *y, T *lengths) {
  L line(lines, L::which());
  if (line.absent()) return;
  typename L::values v(line, x + line.first);
  T squares = 0;
  line.each([&](int k, int64_t i) { squares += v(k, i) * v(k, i); });
  T length = pg_sqrt(line.all(squares, (T)0, pg_plus())), scale = 1 / (length < eps ? eps : length);
  line.write(y + line.first, [&](int k, int64_t i) { return v(k, i) * scale; });
  if (line.leads()) lengths[line.index] = length;
}

/* dx = (dy - y (y . dy)) / max(||x||, eps); below eps the norm is a constant. */
template <class L, class T = typename L::T>
static __global__ void __launch_bounds__(L::BLOCK, 1)
    backward_kernel(pg_lines lines, const T *y, const T *dy, const T *lengths, T eps, T *dx) {
  L line(lines, L::which());
  if (line.absent()) return;
  typename L::values v(line, y + line.first), g(line, dy + line.first);
  T length = line.exists() ? lengths[line.index] : (T)1, along = 0;
  bool tiny = length < eps;
  line.each([&](int k, int64_t i) { along += v(k, i) * g(k, i); });
  along = line.all(along, (T)0, pg_plus());
  T scale = 1 / (tiny ? eps : length);
  line.write(dx + line.first, [&](int k, int64_t i) { return (g(k, i) - (tiny ? (T)0 : along) * v(k, i)) * scale; });
}

static int lines_of(const pg_call *c, pg_lines *lines) {
  int32_t dim;
  PG_TRY(pg_dim(c, c->in[0], c->p[0].ints[0], &dim));
  return pg_around(c->in[0], dim, &lines->outer, &lines->n, &lines->inner), PG_OK;
}

template <class T> static int forward(pg_call *c) {
  pg_lines lines;
  PG_TRY(lines_of(c, &lines));
  if (!pg_numel(c->out[1])) return PG_OK; /* lines of no elements have a length */
  const T *x = PG_AT(const T, c->in[0]);
  T *y = PG_AT(T, c->out[0]), *lengths = PG_AT(T, c->out[1]);
  return pg_with_lines<T, 8>(lines, pg_packable<T>(lines.n, x, y), [&](auto kind) -> int {
    typedef typename decltype(kind)::L L;
    PG_LAUNCH(c, forward_kernel<L>, L::blocks(lines), L::BLOCK, lines, x, (T)c->p[1].num, y, lengths);
    return PG_OK;
  });
}

template <class T> static int backward(pg_call *c) {
  pg_lines lines;
  PG_TRY(lines_of(c, &lines));
  if (!pg_numel(c->in[0])) return PG_OK;
  const T *y = PG_AT(const T, c->out[0]), *lengths = PG_AT(const T, c->out[1]), *dy = PG_AT(const T, c->grad_out[0]);
  T *dx = PG_AT(T, c->grad_in[0]);
  return pg_with_lines<T, 4>(lines, pg_packable<T>(lines.n, y, dy, dx), [&](auto kind) -> int {
    typedef typename decltype(kind)::L L;
    PG_LAUNCH(c, backward_kernel<L>, L::blocks(lines), L::BLOCK, lines, y, dy, lengths, (T)c->p[1].num, dx);
    return PG_OK;
  });
}

PG_CUDA_OP(normalize, {forward<float>, forward<double>}, {backward<float>, backward<double>})
