/* pad.cu - x set into a larger tensor that is `value` elsewhere.
 *
 * Forward: an element of the output a thread, which finds out whether it lies within x; one pass, nothing is written
 * twice. Backward: x's part of the gradient copied out, by pad.c's own function, which works wherever the tensors are.
 */
#include "../cuda/cuda.h"

typedef struct margins { /* dimensions without a margin are merged with the one before where x runs on */
  int32_t ndim;
  int64_t size[PG_MAX_DIMS], before[PG_MAX_DIMS]; /* of the output; of it, in front of x */
  int64_t own[PG_MAX_DIMS], stride[PG_MAX_DIMS];  /* x's own size and stride */
} margins;

template <class T> static __global__ void pad_kernel(int64_t n, margins m, const T *x, T value, T *y) {
  int64_t i = pg_thread(), rest = i, at = 0;
  bool inside = true;
  if (i >= n) return;
  for (int32_t d = m.ndim - 1; d >= 0; d--) {
    int64_t up = d ? rest / m.size[d] : 0, place = rest - up * m.size[d] - m.before[d];
    inside = inside && place >= 0 && place < m.own[d];
    at += place * m.stride[d], rest = up;
  }
  y[i] = inside ? x[at] : value;
}

static margins margins_of(const pg_call *c) {
  const pg_tensor *x = c->in[0], *y = c->out[0];
  margins m = {};
  for (int32_t d = 0; d < x->ndim; d++) {
    int64_t before = 2 * d < c->p[0].len ? c->p[0].ints[2 * d] : 0, own = x->shape[d];
    int32_t last = m.ndim - 1;
    if (own == y->shape[d] && last >= 0 && m.stride[last] == x->stride[d] * own) {
      m.size[last] *= own, m.own[last] *= own, m.before[last] *= own, m.stride[last] = x->stride[d];
    } else {
      m.size[m.ndim] = y->shape[d], m.before[m.ndim] = before, m.own[m.ndim] = own;
      m.stride[m.ndim++] = x->stride[d];
    }
  }
  return m;
}

template <class T> static int forward(pg_call *c) {
  int64_t n = pg_numel(c->out[0]);
  PG_LAUNCH(c, pad_kernel<T>, pg_blocks(n), PG_BLOCK, n, margins_of(c), PG_AT(const T, c->in[0]), (T)c->p[1].num,
            PG_AT(T, c->out[0]));
  return PG_OK;
}

static int backward(pg_call *c) { return c->op->backward[PG_FLOAT32](c); }

PG_CUDA_OP(pad, {forward<float>, forward<double>, forward<int32_t>, forward<uint8_t>}, {backward, backward})
