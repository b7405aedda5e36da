/* comm.h - what moves values between the processes of a run. MPI's plug-in fills this table for the host's memory
 * (core/mpi/), the CUDA plug-in fills it for the device's by NCCL (core/cuda/nccl.cu); nothing above knows either.
 *
 * Every process makes the same calls in the same order with the same sizes. */
#ifndef PG_COMM_H
#define PG_COMM_H
#include "core.h"

typedef struct pg_comm_vtable {
  /* Begins to replace n floats by their sum over all processes, or by their mean. What is under way is told apart by
   * `slot`, a small number that is free again after reduce_end. */
  int (*reduce_begin)(int32_t slot, void *data, int64_t n, int32_t dtype, int32_t mean);
  int (*reduce_end)(int32_t slot); /* what follows, on the host or on the device's stream, sees the result */
  void (*progress)(void);          /* NULL, or moves along what is under way: MPI works only while it is called */
  int (*gather)(const void *part, void *whole, int64_t bytes);                 /* parts in order of rank */
  int (*scatter_sum)(const void *whole, void *part, int64_t n, int32_t dtype); /* the sum's part of this rank */
  int (*broadcast)(void *data, int64_t bytes);                                 /* from rank 0 */
} pg_comm_vtable;

typedef struct pg_comm_world { /* what the launcher started */
  int32_t rank, size;
  int32_t local_rank, local_size; /* among the processes of this machine */
  void (*leave)(void);            /* this process fails and says why itself; nobody need say that it has ended */
  int (*close)(void);             /* waits for the others, then ends MPI */
} pg_comm_world;

/* comm.c */
const pg_comm_world *pg_comm(void);
int pg_comm_of(int32_t device, const pg_comm_vtable **out); /* loads NCCL at first; an error where there is none */
void pg_comm_use(const pg_comm_world *world, int32_t device,
                 const pg_comm_vtable *vtable); /* for tests: as if opened */
const char *pg_comm_parting(void);              /* what pg_comm_last_words set */

/* buckets.c: gradients of shared leaves, averaged over the processes while backward goes on */
bool pg_buckets_any(void);
void pg_buckets_expect(pg_tensor *leaf); /* an edge of the graph leads to this leaf; before backward begins */
int pg_buckets_ready(pg_tensor *leaf);   /* the gradient of one such edge has been added */
void pg_buckets_progress(void);          /* between two nodes */
int pg_buckets_end(int status);          /* status of the pass: waits, and puts the means in the leaves' gradients */

#endif
