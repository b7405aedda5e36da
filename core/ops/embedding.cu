/* embedding.cu - one row of a table for each label: y[.., :] = weight[index[..], :]; a unit of up to 16 bytes a thread.
 * Backward adds each label's gradient to its row, in the order of the index (rows.cu). */
#include "../cuda/cuda.h"

static int embedding_forward(pg_call *c) {
  const pg_tensor *weight = c->in[0];
  int64_t bytes = weight->shape[1] * (int64_t)pg_dtype_bytes[weight->dtype];
  return pg_cuda_pick_rows(c, pg_fault_new(c, "index"), 1, weight->shape[0], pg_numel(c->in[1]), bytes,
                           PG_AT(const int32_t, c->in[1]), pg_data(c->in[0]), pg_data(c->out[0]));
}

template <class T> static int embedding_backward(pg_call *c) {
  pg_tensor *dw = c->grad_in[0];
  PG_TRY(pg_fill(dw, 0));
  return pg_cuda_add_rows(c, pg_fault_new(c, "index"), 1, dw->shape[0], pg_numel(c->in[1]), dw->shape[1],
                          PG_AT(const int32_t, c->in[1]), PG_AT(const T, c->grad_out[0]), PG_AT(T, dw));
}

PG_CUDA_OP(embedding, {embedding_forward, embedding_forward}, {embedding_backward<float>, embedding_backward<double>})
