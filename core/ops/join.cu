/* join.cu - tensors laid end to end on the device. join.c copies each through a view of its place with pg_copy, which
 * works wherever the tensors are, so its functions serve here as they are: one copy a tensor. */
#include "../cuda/cuda.h"

/* The function that the descriptor in join.c names: one for all dtypes. */
static int forward(pg_call *c) { return c->op->forward[PG_FLOAT32](c); }
static int backward(pg_call *c) { return c->op->backward[PG_FLOAT32](c); }

PG_CUDA_OP(cat, {forward, forward, forward, forward}, {backward, backward})
PG_CUDA_OP(stack, {forward, forward, forward, forward}, {backward, backward})
