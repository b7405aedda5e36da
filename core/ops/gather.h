/* gather.h - the loop of gather and scatter_add, on the CPU and on the device: x (outer, n, inner), picked (outer, m,
 * inner). */
#ifndef PG_GATHER_H
#define PG_GATHER_H
#include "../op.h"

typedef struct plan {
  int64_t outer, n, m, inner; /* n positions in x, m picked */
} plan;

static inline int make_plan(const pg_call *c, plan *p) {
  int32_t dim;
  PG_TRY(pg_dim(c, c->in[0], c->p[0].ints[0], &dim));
  pg_around(c->in[0], dim, &p->outer, &p->n, &p->inner);
  p->m = c->in[1]->shape[dim];
  return PG_OK;
}

#endif
