/* share.h - tasks in order, of which each thread has a run of its own, and helps the others when it is done.
 *
 * Elementwise loops give each thread a run of rows, schedule(static); where products do the same, a thread finds what
 * it made before in its own caches. Between cores that share no cache that is worth up to a tenth of a product; with
 * runs that nobody else may touch, a busy core would keep all waiting. */
#ifndef PG_SHARE_H
#define PG_SHARE_H
#include <stdatomic.h>
#include <stdint.h>

typedef struct pg_share { /* how many of a thread's run are taken; a cache line each */
  _Alignas(64) atomic_llong taken;
} pg_share;

/* Before the threads start. */
static inline void pg_share_out(pg_share *shares, int threads) {
  for (int i = 0; i < threads; i++) atomic_init(&shares[i].taken, 0);
}

/* The next of tasks 0..tasks - 1 for thread `me` of `threads`; -1: all are taken. */
static inline int64_t pg_share_next(pg_share *shares, int threads, int me, int64_t tasks) {
  for (int turn = 0; turn < threads; turn++) {
    int whose = (me + turn) % threads;
    int64_t task = tasks * whose / threads + atomic_fetch_add_explicit(&shares[whose].taken, 1, memory_order_relaxed);
    if (task < tasks * (whose + 1) / threads) return task;
  }
  return -1;
}

#endif
