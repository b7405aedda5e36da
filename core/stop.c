/* stop.c - how a call that lasts seconds is ended from outside: whoever wants it ended sets a flag, long loops look at
 * it between two pieces of their work and leave, and the op's caller then gives its outputs back and an error. */
#include "core.h"

static volatile int32_t flag;
static atomic_int left; /* 1: a loop has left its work undone since pg_unless_stopped last asked */

volatile int32_t *pg_stop_flag(void) { return &flag; }

bool pg_stopping(void) {
  if (!flag) return false;
  atomic_store(&left, 1);
  return true;
}

int pg_unless_stopped(int status) {
  if (!atomic_load_explicit(&left, memory_order_relaxed) || !atomic_exchange(&left, 0)) return status;
  return pg_fail(PG_ERR_INTERRUPTED, "interrupted");
}
