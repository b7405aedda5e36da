/* softmin.cu - half a step of Sinkhorn's algorithm in the log domain, and its gradients (the maths: softmin.c).
 *
 * The sum over a row, or with `transpose` over a column, is over a line of C (lines.h) that registers hold: C is read
 * once and never copied. The gradient of C is a thread an element; those of g and b are sums over the lines of the
 * other direction. */
#include "../cuda/lines.h"

template <class T> struct side { /* what stands at one place along a line: h in softmin.c, in units of e */
  const T *potential, *log_weights;
  T per_eps, eps;
  __device__ __forceinline__ T at(int64_t i) const {
    return potential[i] * per_eps + (log_weights ? log_weights[i] : T(0));
  }
};

template <class L, class T = typename L::T>
static __global__ void __launch_bounds__(L::BLOCK, 1)
    forward_kernel(pg_lines lines, const T *cost, side<T> over, T *out) {
  L line(lines, L::which());
  if (line.absent()) return;
  typename L::values v(line, cost + line.first);
  T top = -(T)INFINITY, sum = 0;
  line.each([&](int k, int64_t i) { top = pg_larger()(top, over.at(i) - over.per_eps * v(k, i)); });
  top = line.all(top, -(T)INFINITY, pg_larger());
  if (top == -(T)INFINITY) top = 0; /* no mass */
  line.each([&](int k, int64_t i) { sum += pg_exp(over.at(i) - over.per_eps * v(k, i) - top); });
  sum = line.all(sum, T(0), pg_plus());
  if (line.leads()) out[line.index] = -over.eps * (top + pg_log(sum));
}

/* p, of the place i along the sum's lines and of the line o */
template <class T>
static __device__ __forceinline__ T share(const side<T> &over, int64_t i, const T *out, int64_t o, T cost) {
  T y = out[o];
  return pg_exp(over.at(i) + ((y < (T)INFINITY ? y : T(0)) - cost) * over.per_eps);
}

template <class T>
static __global__ void cost_kernel(int64_t n, int64_t m, bool across, const T *cost, side<T> over, const T *out,
                                   const T *dy, T *dcost) {
  int64_t e = pg_thread();
  if (e >= n * m) return;
  int64_t i = across ? e / m : e % m, o = across ? e % m : e / m;
  dcost[e] = dy[o] * share(over, i, out, o, cost[e]);
}

/* Lines of the other direction: sums over `o` at one place i of the sum's own lines. */
template <class L, class T = typename L::T>
static __global__ void __launch_bounds__(L::BLOCK, 1)
    side_kernel(pg_lines lines, const T *cost, side<T> over, const T *out, const T *dy, T *dg, T *db) {
  L line(lines, L::which());
  if (line.absent()) return;
  typename L::values v(line, cost + line.first);
  T sum = 0;
  line.each([&](int k, int64_t o) { sum += dy[o] * share(over, line.index, out, o, v(k, o)); });
  sum = line.all(sum, T(0), pg_plus());
  if (line.leads() && dg) dg[line.index] = -sum;
  if (line.leads() && db) db[line.index] = -sum * over.eps;
}

template <class T> static side<T> side_of(const pg_call *c) {
  bool weighed = c->n_in > 2 && c->in[2];
  return {PG_AT(const T, c->in[1]), weighed ? PG_AT(const T, c->in[2]) : NULL, (T)(1 / c->p[0].num), (T)c->p[0].num};
}

static pg_lines lines_of(const pg_call *c, bool down) { /* along rows, or down columns */
  int64_t n = c->in[0]->shape[0], m = c->in[0]->shape[1];
  return down ? pg_lines{1, n, m} : pg_lines{n, m, 1};
}

template <class T> static int softmin_forward(pg_call *c) {
  const pg_lines lines = lines_of(c, c->p[1].ints[0]);
  const T *cost = PG_AT(const T, c->in[0]);
  if (!pg_numel(c->out[0])) return PG_OK;
  return pg_with_lines<T, 8>(lines, pg_packable<T>(lines.n, cost), [&](auto kind) -> int {
    typedef typename decltype(kind)::L L;
    PG_LAUNCH(c, (forward_kernel<L>), L::blocks(lines), L::BLOCK, lines, cost, side_of<T>(c), PG_AT(T, c->out[0]));
    return PG_OK;
  });
}

template <class T> static int softmin_backward(pg_call *c) {
  const int64_t n = c->in[0]->shape[0], m = c->in[0]->shape[1];
  const bool across = c->p[1].ints[0];
  const pg_lines lines = lines_of(c, !across);
  const T *cost = PG_AT(const T, c->in[0]), *out = PG_AT(const T, c->out[0]), *dy = PG_AT(const T, c->grad_out[0]);
  T *dg = c->grad_in[1] ? PG_AT(T, c->grad_in[1]) : NULL;
  T *db = c->n_in > 2 && c->grad_in[2] ? PG_AT(T, c->grad_in[2]) : NULL;
  if (c->grad_in[0] && n > 0 && m > 0)
    PG_LAUNCH(c, cost_kernel<T>, pg_blocks(n * m), PG_BLOCK, n, m, across, cost, side_of<T>(c), out, dy,
              PG_AT(T, c->grad_in[0]));
  if (!(dg || db) || !(across ? n : m)) return PG_OK;
  return pg_with_lines<T, 8>(lines, pg_packable<T>(lines.n, cost), [&](auto kind) -> int {
    typedef typename decltype(kind)::L L;
    PG_LAUNCH(c, (side_kernel<L>), L::blocks(lines), L::BLOCK, lines, cost, side_of<T>(c), out, dy, dg, db);
    return PG_OK;
  });
}

PG_CUDA_OP(softmin, {softmin_forward<float>, softmin_forward<double>},
           {softmin_backward<float>, softmin_backward<double>})
