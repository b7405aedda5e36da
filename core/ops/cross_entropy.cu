/* cross_entropy.cu - mean over rows of  -sum_c q_c log softmax(z)_c,  q = (1 - s) onehot(label) + s / C.
 *
 * Forward holds a row of logits in registers (lines.h): it reads them once and writes the row's loss and log-sum-exp;
 * one block then adds the losses, in double and in a fixed order. Backward:  dz = (softmax(z) - q) / N * dL. */
#include "../cuda/lines.h"

template <class L, class T = typename L::T>
static __global__ void __launch_bounds__(L::BLOCK, 1)
    rows_kernel(pg_lines lines, const T *z, const int32_t *labels, pg_fault fault, T s, double *losses, T *lses) {
  L line(lines, L::which());
  if (line.absent()) return;
  typename L::values v(line, z + line.first);
  T top = -(T)INFINITY, sum = 0, all = 0;
  line.each([&](int k, int64_t i) { top = pg_larger()(top, v(k, i)); });
  top = line.all(top, -(T)INFINITY, pg_larger());
  line.each([&](int k, int64_t i) { sum += pg_exp(v(k, i) - top), all += v(k, i); });
  sum = line.all(sum, (T)0, pg_plus());
  if (s > 0) all = line.all(all, (T)0, pg_plus());
  if (!line.leads()) return;
  double lse = (double)top + (double)pg_log(sum), loss = 0;
  int32_t label = labels[line.index];
  if (pg_in_range(fault, line.index, label, lines.n)) {
    loss = lse - (1 - (double)s) * z[line.first + label];
    if (s > 0) loss -= s * (double)all / (double)lines.n; /* 0 * -inf is not 0 */
  }
  losses[line.index] = loss, lses[line.index] = (T)lse;
}

template <class T> static __global__ void mean_kernel(int64_t rows, const double *losses, T *mean) {
  double sum = 0;
  for (int64_t r = threadIdx.x; r < rows; r += blockDim.x) sum += losses[r];
  sum = pg_block_sum(sum);
  if (threadIdx.x == 0) *mean = (T)(sum / (double)rows);
}

template <class L, class T = typename L::T>
static __global__ void __launch_bounds__(L::BLOCK, 1)
    backward_kernel(pg_lines lines, const T *z, const int32_t *labels, const T *lses, const T *upstream, T s, T *dz) {
  L line(lines, L::which());
  if (line.absent()) return;
  typename L::values v(line, z + line.first);
  T lse = lses[line.index], scale = *upstream / (T)lines.outer, rest = s / (T)lines.n;
  int32_t label = labels[line.index]; /* forward has complained of one that is no column */
  line.write(dz + line.first, [&](int k, int64_t i) {
    T d = scale * (pg_exp(v(k, i) - lse) - rest);
    return i == label ? d - scale * (1 - s) : d;
  });
}

template <class T> static int forward(pg_call *c) {
  pg_lines lines = {c->in[0]->shape[0], c->in[0]->shape[1], 1};
  const T *z = PG_AT(const T, c->in[0]);
  pg_scratch losses(sizeof(double) * (size_t)lines.outer);
  if (losses.status) return losses.status;
  pg_fault fault = pg_fault_new(c, "labels");
  PG_TRY((pg_with_rows<T, 8>(lines, pg_packable<T>(lines.n, z), [&](auto kind) -> int {
    typedef typename decltype(kind)::L L;
    PG_LAUNCH(c, rows_kernel<L>, L::blocks(lines), L::BLOCK, lines, z, PG_AT(const int32_t, c->in[1]), fault,
              (T)c->p[0].num, losses.at<double>(), PG_AT(T, c->out[1]));
    return PG_OK;
  })));
  PG_LAUNCH(c, mean_kernel<T>, 1, 1024, lines.outer, losses.at<const double>(), PG_AT(T, c->out[0]));
  return PG_OK;
}

template <class T> static int backward(pg_call *c) {
  pg_lines lines = {c->in[0]->shape[0], c->in[0]->shape[1], 1};
  const T *z = PG_AT(const T, c->in[0]);
  T *dz = PG_AT(T, c->grad_in[0]);
  return pg_with_rows<T, 8>(lines, pg_packable<T>(lines.n, z, dz), [&](auto kind) -> int {
    typedef typename decltype(kind)::L L;
    PG_LAUNCH(c, backward_kernel<L>, L::blocks(lines), L::BLOCK, lines, z, PG_AT(const int32_t, c->in[1]),
              PG_AT(const T, c->out[1]), PG_AT(const T, c->grad_out[0]), (T)c->p[0].num, dz);
    return PG_OK;
  });
}

PG_CUDA_OP(cross_entropy, {forward<float>, forward<double>}, {backward<float>, backward<double>})
