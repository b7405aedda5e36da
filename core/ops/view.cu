/* view.cu - gradients of the ops that move no number. view.c writes them through pg_view, pg_fill and pg_copy, which
 * work wherever the tensors are, so its functions serve here as they are; only the sum behind `expand` is another. */
#include "../cuda/cuda.h"

/* The function that the descriptor in view.c names: one for all dtypes. */
static int backward(pg_call *c) { return c->op->backward[PG_FLOAT32](c); }

static int expand_backward(pg_call *c) { return pg_cuda_sum_to(c->grad_out[0], c->grad_in[0]); }

PG_CUDA_OP(reshape, {}, {backward, backward})
PG_CUDA_OP(transpose, {}, {backward, backward})
PG_CUDA_OP(permute, {}, {backward, backward})
PG_CUDA_OP(narrow, {}, {backward, backward})
PG_CUDA_OP(select, {}, {backward, backward})
PG_CUDA_OP(unsqueeze, {}, {backward, backward})
PG_CUDA_OP(squeeze, {}, {backward, backward})
PG_CUDA_OP(expand, {}, {expand_backward, expand_backward})
