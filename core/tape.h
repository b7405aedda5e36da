/* tape.h - what op.c hands to tape.c: a finished call, to be recorded for backward. */
#ifndef PG_TAPE_H
#define PG_TAPE_H
#include "op.h"

bool pg_recording(void);
int pg_record(const pg_call *c, pg_tensor *const *original_in, pg_kernel forward, pg_kernel backward, int n_params);
void pg_node_release(pg_node *node);

#endif
