/* gather.cu - elements picked, or added to, by position along a dimension. For x (outer, n, inner) and index
 * (outer, m, inner):
 *
 *   gather       y[o, i, k] = x[o, index[o, i, k], k]
 *   scatter_add  y = x, then y[o, index[o, i, k], k] += src[o, i, k]
 *
 * Each is the other's backward. Picking takes a thread an element; adding is in rows.cu, and in the order of i. */
#include "../cuda/cuda.h"
#include "gather.h"

template <class T> static __global__ void pick_kernel(pg_fault fault, plan p, const int32_t *index, const T *x, T *y) {
  int64_t e = pg_thread();
  if (e >= p.outer * p.m * p.inner) return;
  int64_t at = index[e];
  y[e] = pg_in_range(fault, e, at, p.n) ? x[(e / (p.m * p.inner) * p.n + at) * p.inner + e % p.inner] : (T)0;
}

template <class T> static int pick(pg_call *c, const pg_tensor *x, pg_tensor *y) {
  plan p;
  PG_TRY(make_plan(c, &p));
  PG_LAUNCH(c, pick_kernel<T>, pg_blocks(p.outer * p.m * p.inner), PG_BLOCK, pg_fault_new(c, "index"), p,
            PG_AT(const int32_t, c->in[1]), PG_AT(const T, x), PG_AT(T, y));
  return PG_OK;
}

template <class T> static int add_at(pg_call *c, const pg_tensor *from, pg_tensor *to) {
  plan p;
  PG_TRY(make_plan(c, &p));
  return pg_cuda_add_at(c, pg_fault_new(c, "index"), p.outer, p.n, p.m, p.inner, PG_AT(const int32_t, c->in[1]),
                        PG_AT(const T, from), PG_AT(T, to));
}

template <class T> static int gather_forward(pg_call *c) { return pick<T>(c, c->in[0], c->out[0]); }

template <class T> static int gather_backward(pg_call *c) {
  PG_TRY(pg_fill(c->grad_in[0], 0));
  return add_at<T>(c, c->grad_out[0], c->grad_in[0]);
}

template <class T> static int scatter_add_forward(pg_call *c) {
  PG_TRY(pg_copy(c->out[0], c->in[0]));
  return add_at<T>(c, c->in[2], c->out[0]);
}

template <class T> static int scatter_add_backward(pg_call *c) {
  if (c->grad_in[0]) PG_TRY(pg_copy(c->grad_in[0], c->grad_out[0]));
  return c->grad_in[2] ? pick<T>(c, c->grad_out[0], c->grad_in[2]) : PG_OK;
}

PG_CUDA_OP(gather, {gather_forward<float>, gather_forward<double>, gather_forward<int32_t>, gather_forward<uint8_t>},
           {gather_backward<float>, gather_backward<double>})
PG_CUDA_OP(scatter_add, {scatter_add_forward<float>, scatter_add_forward<double>},
           {scatter_add_backward<float>, scatter_add_backward<double>})
