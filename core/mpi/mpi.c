/* mpi.c - MPI's plug-in: the table of comm.h for the host's memory, and a thread that ends the run when a process of
 * this machine dies, since MPI itself would wait for it for ever.
 *
 * MPI is called from the thread that opened it alone. A reduction under way moves on only inside MPI's calls, so that
 * progress() is called between the nodes of a backward pass. */
#include "comm.h"
#include <mpi.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct {
  int rank, size;
  struct under_way {
    MPI_Request request;
    void *data;
    int64_t n;
    int32_t dtype, mean;
  } * slot; /* by number */
  int32_t slots;
} mpi;

static const MPI_Datatype types[PG_DTYPES] = {MPI_FLOAT, MPI_DOUBLE, MPI_INT, MPI_UNSIGNED_CHAR};

static int checked(int code, const char *what) {
  char text[MPI_MAX_ERROR_STRING];
  int length;
  if (code == MPI_SUCCESS) return PG_OK;
  MPI_Error_string(code, text, &length);
  return pg_fail(PG_ERR_DEVICE, "%s between processes: %.*s", what, length, text);
}

static int counted(int64_t n, const char *what) {
  if (n <= INT_MAX) return PG_OK;
  return pg_fail(PG_ERR_SHAPE, "%s between processes: %lld elements are more than MPI's int holds", what, (long long)n);
}

/* ---- the table -------------------------------------------------------------------------------------------------- */

static int mpi_reduce_begin(int32_t slot, void *data, int64_t n, int32_t dtype, int32_t mean) {
  PG_TRY(counted(n, "all_reduce"));
  if (slot >= mpi.slots) {
    struct under_way *more = realloc(mpi.slot, sizeof *more * (size_t)(slot + 1));
    if (!more) return pg_fail(PG_ERR_MEMORY, "out of memory");
    mpi.slot = more;
    for (; mpi.slots <= slot; mpi.slots++) mpi.slot[mpi.slots] = (struct under_way){.request = MPI_REQUEST_NULL};
  }
  mpi.slot[slot] = (struct under_way){MPI_REQUEST_NULL, data, n, dtype, mean};
  return checked(
      MPI_Iallreduce(MPI_IN_PLACE, data, (int)n, types[dtype], MPI_SUM, MPI_COMM_WORLD, &mpi.slot[slot].request),
      "all_reduce");
}

static int mpi_reduce_end(int32_t slot) {
  struct under_way *u = &mpi.slot[slot];
  PG_TRY(checked(MPI_Wait(&u->request, MPI_STATUS_IGNORE), "all_reduce"));
  if (!u->mean) return PG_OK;
  if (u->dtype == PG_FLOAT32)
    for (int64_t i = 0; i < u->n; i++) ((float *)u->data)[i] /= (float)mpi.size;
  else
    for (int64_t i = 0; i < u->n; i++) ((double *)u->data)[i] /= mpi.size;
  return PG_OK;
}

static void mpi_progress(void) {
  for (int32_t i = 0; i < mpi.slots; i++) {
    int done;
    if (mpi.slot[i].request == MPI_REQUEST_NULL) continue;
    MPI_Request_get_status(mpi.slot[i].request, &done, MPI_STATUS_IGNORE);
    return; /* one call moves all of them */
  }
}

static int mpi_gather(const void *part, void *whole, int64_t bytes) {
  PG_TRY(counted(bytes, "all_gather"));
  return checked(MPI_Allgather(part, (int)bytes, MPI_BYTE, whole, (int)bytes, MPI_BYTE, MPI_COMM_WORLD), "all_gather");
}

static int mpi_scatter_sum(const void *whole, void *part, int64_t n, int32_t dtype) {
  PG_TRY(counted(n * mpi.size, "reduce_scatter"));
  return checked(MPI_Reduce_scatter_block(whole, part, (int)n, types[dtype], MPI_SUM, MPI_COMM_WORLD),
                 "reduce_scatter");
}

static int mpi_broadcast(void *data, int64_t bytes) {
  PG_TRY(counted(bytes, "broadcast"));
  return checked(MPI_Bcast(data, (int)bytes, MPI_BYTE, 0, MPI_COMM_WORLD), "broadcast");
}

static const pg_comm_vtable table = {mpi_reduce_begin, mpi_reduce_end,  mpi_progress,
                                     mpi_gather,       mpi_scatter_sum, mpi_broadcast};

/* ---- whether the others live ------------------------------------------------------------------------------------ */

typedef struct neighbour { /* a process of this machine */
  int32_t rank, pid;
} neighbour;

static struct {
  neighbour *of;
  struct pollfd *at;
  int count, rank;
  char host[HOST_NAME_MAX + 1];
  atomic_bool ended; /* this process no longer minds */
} watch;

/* Says which one it was, once: from the lowest rank that is left here. Then the launcher ends what runs elsewhere. */
static void *look(void *unused) {
  (void)unused;
  while (poll(watch.at, (nfds_t)watch.count, -1) < 0) {}
  int gone = -1, first = watch.rank;
  for (int i = 0; i < watch.count; i++) {
    if (watch.at[i].revents && gone < 0)
      gone = i;
    else
      first = PG_MIN(first, watch.of[i].rank);
  }
  if (watch.ended) return NULL;
  if (first == watch.rank && gone >= 0) {
    char text[sizeof watch.host + 4400];
    const char *more = pg_comm_parting();
    int length = snprintf(text, sizeof text,
                          "perigee: rank %d (process %d on %s) has ended before the others; the run ends%s%s\n",
                          watch.of[gone].rank, watch.of[gone].pid, watch.host, *more ? "; " : "", more);
    if (write(STDERR_FILENO, text, (size_t)length) < 0) _exit(1);
  }
  _exit(1);
}

static int watch_others(void) {
  struct member {
    char host[HOST_NAME_MAX + 1];
    int32_t pid;
  } own = {"", (int32_t)getpid()}, *all = calloc((size_t)mpi.size, sizeof *all);
  watch.of = calloc((size_t)mpi.size, sizeof *watch.of), watch.at = calloc((size_t)mpi.size, sizeof *watch.at);
  if (!all || !watch.of || !watch.at) return free(all), pg_fail(PG_ERR_MEMORY, "out of memory");
  gethostname(own.host, sizeof own.host - 1);
  memcpy(watch.host, own.host, sizeof own.host);
  watch.rank = mpi.rank;
  int status = mpi_gather(&own, all, sizeof own);
  for (int i = 0; i < mpi.size && !status; i++) {
    if (i == mpi.rank || strcmp(all[i].host, own.host)) continue;
    int fd = (int)syscall(SYS_pidfd_open, all[i].pid, 0);
    if (fd < 0) continue; /* an old kernel: then the launcher alone sees to it */
    watch.of[watch.count] = (neighbour){i, all[i].pid};
    watch.at[watch.count++] = (struct pollfd){.fd = fd, .events = POLLIN};
  }
  free(all);
  pthread_t thread;
  if (!status && watch.count && !pthread_create(&thread, NULL, look, NULL)) pthread_detach(thread);
  return status;
}

/* ---- opening and closing ---------------------------------------------------------------------------------------- */

static void leave(void) { watch.ended = true; }

static int close_all(void) {
  int finalized;
  leave();
  MPI_Finalized(&finalized);
  if (finalized) return PG_OK;
  PG_TRY(checked(MPI_Barrier(MPI_COMM_WORLD), "close")); /* nobody is gone while somebody still minds */
  return checked(MPI_Finalize(), "close");
}

/* A process that failed leaves MPI as it is, by which the launcher knows it. */
static void at_exit(int status, void *unused) {
  (void)unused;
  if (status == 0) close_all();
}

const char *pg_mpi_describe(void) {
  static char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length;
  MPI_Get_library_version(text, &length);
  text[strcspn(text, ",\n")] = 0;
  return text;
}

int pg_mpi_open(int32_t abi, pg_comm_world *world, const pg_comm_vtable **vtable) {
  int provided, open;
  MPI_Comm here;
  if (abi != PG_ABI)
    return pg_fail(PG_ERR_DEVICE, "MPI is not available: the plug-in speaks ABI %d, the library %d; run `make` again",
                   PG_ABI, abi);
  MPI_Initialized(&open);
  if (!open) PG_TRY(checked(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided), "open"));
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &mpi.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &mpi.size);
  *world = (pg_comm_world){.rank = mpi.rank, .size = mpi.size, .leave = leave, .close = close_all};
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, mpi.rank, MPI_INFO_NULL, &here);
  MPI_Comm_rank(here, &world->local_rank);
  MPI_Comm_size(here, &world->local_size);
  MPI_Comm_free(&here);
  *vtable = &table;
  on_exit(at_exit, NULL);
  return mpi.size > 1 ? watch_others() : PG_OK;
}
