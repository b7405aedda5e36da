/* all_gather.cu - all_gather.c asks whatever moves the device's memory between processes, so its functions serve here
 * as they are. */
#include "../cuda/cuda.h"

static int forward(pg_call *c) { return c->op->forward[PG_FLOAT32](c); }
static int backward(pg_call *c) { return c->op->backward[PG_FLOAT32](c); }

PG_CUDA_OP(all_gather, {forward, forward, forward, forward}, {backward, backward})
