/* index.cu - rows picked by position: y[.., i, ..] = x[.., index_i, ..] along a dimension; a unit of up to 16 bytes a
 * thread. Backward adds each picked row's gradient to where it came from, in the order of the index (rows.cu). */
#include "../cuda/cuda.h"

static int index_forward(pg_call *c) {
  const pg_tensor *x = c->in[0];
  int32_t dim;
  int64_t outer, n, inner;
  PG_TRY(pg_dim(c, x, c->p[0].ints[0], &dim));
  pg_around(x, dim, &outer, &n, &inner);
  return pg_cuda_pick_rows(c, pg_fault_new(c, "index"), outer, n, pg_numel(c->in[1]),
                           inner * (int64_t)pg_dtype_bytes[x->dtype], PG_AT(const int32_t, c->in[1]), pg_data(c->in[0]),
                           pg_data(c->out[0]));
}

template <class T> static int index_backward(pg_call *c) {
  pg_tensor *dx = c->grad_in[0];
  int32_t dim;
  int64_t outer, n, inner;
  PG_TRY(pg_dim(c, dx, c->p[0].ints[0], &dim));
  PG_TRY(pg_fill(dx, 0));
  pg_around(dx, dim, &outer, &n, &inner);
  return pg_cuda_add_rows(c, pg_fault_new(c, "index"), outer, n, pg_numel(c->in[1]), inner,
                          PG_AT(const int32_t, c->in[1]), PG_AT(const T, c->grad_out[0]), PG_AT(T, dx));
}

PG_CUDA_OP(index, {index_forward, index_forward, index_forward, index_forward},
           {index_backward<float>, index_backward<double>})
