/* cast.cu - copies on the device. cast.c asks pg_copy, which moves values wherever the tensors are
 * (core/cuda/tensor.cu), so its functions serve here as they are. `contiguous` is a view and has a gradient only. */
#include "../cuda/cuda.h"

/* The function that the descriptor in cast.c names: one for all dtypes. */
static int forward(pg_call *c) { return c->op->forward[PG_FLOAT32](c); }
static int backward(pg_call *c) { return c->op->backward[PG_FLOAT32](c); }

PG_CUDA_OP(clone, {forward, forward, forward, forward}, {backward, backward})
PG_CUDA_OP(contiguous, {}, {backward, backward})
PG_CUDA_OP(to, {forward, forward, forward, forward}, {backward, backward})
