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
#include <sys/stat.h>
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

typedef struct member { /* a process of this machine */
  int32_t rank, pid;
  uint64_t space; /* in which its pid means something */
} member;

static struct {
  MPI_Comm here; /* the processes of this machine */
  int rank, size;
  member *of;
  struct pollfd *at;
  volatile int32_t *said; /* shared memory: a process that sets its own has said why it ends */
  atomic_bool over;       /* this one ends, and no longer minds; MPI takes `said` away in the end */
} local;

/* The lowest rank that is left here says which one it was. */
static void *watch(void *unused) {
  (void)unused;
  int gone = -1, first = -1;
  while (poll(local.at, (nfds_t)local.size, -1) < 0) {}
  for (int i = 0; i < local.size; i++) {
    if (local.at[i].revents && gone < 0)
      gone = i;
    else if (first < 0)
      first = i;
  }
  if (local.over) return NULL;
  if (gone >= 0 && first == local.rank && !local.said[gone]) {
    char text[HOST_NAME_MAX + 4400], host[HOST_NAME_MAX + 1] = "?";
    const char *more = pg_comm_parting();
    gethostname(host, sizeof host - 1);
    int length = snprintf(text, sizeof text, "perigee: rank %d (process %d on %s) has died, and the run ends%s%s\n",
                          local.of[gone].rank, local.of[gone].pid, host, *more ? "; " : "", more);
    if (write(STDERR_FILENO, text, (size_t)length) < 0) _exit(1);
  }
  _exit(1);
}

static int watch_others(void) {
  struct stat space = {0};
  MPI_Win window;
  MPI_Aint bytes;
  int unit, watched = 0;
  int32_t *own;
  void *all;
  stat("/proc/self/ns/pid", &space);
  member self = {mpi.rank, (int32_t)getpid(), (uint64_t)space.st_ino};
  local.of = calloc((size_t)local.size, sizeof *local.of), local.at = calloc((size_t)local.size, sizeof *local.at);
  if (!local.of || !local.at) return pg_fail(PG_ERR_MEMORY, "out of memory");
  PG_TRY(checked(MPI_Allgather(&self, sizeof self, MPI_BYTE, local.of, sizeof self, MPI_BYTE, local.here), "open"));
  PG_TRY(checked(MPI_Win_allocate_shared(sizeof *own, 1, MPI_INFO_NULL, local.here, &own, &window), "open"));
  PG_TRY(checked(MPI_Win_shared_query(window, 0, &bytes, &unit, &all), "open"));
  local.said = all; /* the pieces of the ranks lie in a row */
  *own = 0;
  PG_TRY(checked(MPI_Barrier(local.here), "open"));
  for (int i = 0; i < local.size; i++) {
    local.at[i] = (struct pollfd){.fd = -1, .events = POLLIN}; /* poll passes over what has no descriptor */
    if (i == local.rank || local.of[i].space != self.space) continue;
    local.at[i].fd =
        (int)syscall(SYS_pidfd_open, local.of[i].pid, 0); /* an old kernel: the launcher alone sees to it */
    watched += local.at[i].fd >= 0;
  }
  pthread_t thread;
  if (watched && !pthread_create(&thread, NULL, watch, NULL)) pthread_detach(thread);
  return PG_OK;
}

/* ---- opening and closing ---------------------------------------------------------------------------------------- */

static void leave(void) {
  local.over = true;
  if (local.said) local.said[local.rank] = 1;
}

static int close_all(void) {
  int finalized;
  MPI_Finalized(&finalized);
  if (finalized) return PG_OK;
  PG_TRY(checked(MPI_Barrier(MPI_COMM_WORLD), "close"));
  leave();
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
  if (abi != PG_ABI)
    return pg_fail(PG_ERR_DEVICE, "MPI is not available: the plug-in speaks ABI %d, the library %d; run `make` again",
                   PG_ABI, abi);
  MPI_Initialized(&open);
  if (!open) PG_TRY(checked(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided), "open"));
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &mpi.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &mpi.size);
  *world = (pg_comm_world){.rank = mpi.rank, .size = mpi.size, .leave = leave, .close = close_all};
  PG_TRY(
      checked(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, mpi.rank, MPI_INFO_NULL, &local.here), "open"));
  MPI_Comm_rank(local.here, &local.rank);
  MPI_Comm_size(local.here, &local.size);
  world->local_rank = local.rank, world->local_size = local.size;
  *vtable = &table;
  on_exit(at_exit, NULL);
  return local.size > 1 ? watch_others() : PG_OK;
}
