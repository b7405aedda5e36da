/* comm.c - the processes of a run: opens MPI's plug-in, a library of its own beside this one, when a launcher started
 * several, and hands tensors to whatever moves their device's memory. A process that was started alone is rank 0 of 1,
 * and everything here does nothing. */
#include "comm.h"
#include <dlfcn.h>

enum { PIECE = 1 << 28 }; /* most elements or bytes of one call: MPI counts in int */

static pg_comm_world world = {.size = 1, .local_size = 1};
static const pg_comm_vtable *tables[PG_DEVICES];
static char parting[4096];

const pg_comm_world *pg_comm(void) { return &world; }

int32_t pg_comm_rank(void) { return world.rank; }
int32_t pg_comm_size(void) { return world.size; }
int32_t pg_comm_local_size(void) { return world.local_size; }

const char *pg_comm_parting(void) { return parting; }
void pg_comm_last_words(const char *text) { snprintf(parting, sizeof parting, "%s", text); }

void pg_comm_use(const pg_comm_world *as, int32_t device, const pg_comm_vtable *vtable) {
  world = *as, tables[device] = vtable;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

typedef int (*opener)(int32_t abi, pg_comm_world *world, const pg_comm_vtable **vtable);

static int plugin(void **handle) {
  Dl_info self;
  const char *file = dladdr((void *)plugin, &self) && self.dli_fname ? self.dli_fname : "";
  char whole[4096], path[4200], *folder = realpath(file, whole) ? strrchr(whole, '/') : NULL;
  snprintf(path, sizeof path, "%.*s/libperigee_mpi.so", folder ? (int)(folder - whole) : 1, folder ? whole : ".");
  FILE *there = fopen(path, "rb");
  if (!there)
    return pg_fail(PG_ERR_DEVICE, "MPI is not available: there is no plug-in %s; `make` builds it where it finds mpicc",
                   path);
  fclose(there);
  *handle = dlopen(path, RTLD_NOW | RTLD_GLOBAL); /* MPI's own components look for its symbols among the global ones */
  return *handle ? PG_OK : pg_fail(PG_ERR_DEVICE, "MPI is not available: %s", dlerror());
}

int pg_comm_open(void) {
  void *handle;
  if (tables[PG_CPU]) return PG_OK;
  PG_TRY(plugin(&handle));
  opener open = (opener)dlsym(handle, "pg_mpi_open");
  if (!open) return pg_fail(PG_ERR_DEVICE, "MPI is not available: the plug-in is none of Perigee's");
  return open(PG_ABI, &world, &tables[PG_CPU]);
}

const char *pg_comm_describe(void) {
  void *handle;
  if (plugin(&handle)) return NULL;
  const char *(*describe)(void) = (const char *(*)(void))dlsym(handle, "pg_mpi_describe");
  return describe ? describe()
                  : (pg_fail(PG_ERR_DEVICE, "MPI is not available: the plug-in is none of Perigee's"), NULL);
}

void pg_comm_leave(void) {
  if (world.leave) world.leave();
}

int pg_comm_close(void) { return world.close ? world.close() : PG_OK; }

int pg_comm_of(int32_t device, const pg_comm_vtable **out) {
  if (!tables[device]) {
    const pg_device_vtable *vtable = pg_device_get(device);
    if (!vtable) return PG_ERR_DEVICE;
    if (!vtable->comm) return pg_fail(PG_ERR_DEVICE, "%s: nothing moves its memory between processes", vtable->name);
    PG_TRY(vtable->comm(&tables[device]));
  }
  return *out = tables[device], PG_OK;
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

static int ready(const pg_tensor *t, const char *what, const pg_comm_vtable **comm) {
  PG_TRY(pg_check_live(t, what));
  if (!pg_is_contiguous(t)) return pg_fail(PG_ERR_STATE, "%s: the tensor must be contiguous", what);
  return pg_comm_of(t->device, comm);
}

int pg_comm_broadcast(pg_tensor *t) {
  const pg_comm_vtable *comm;
  if (world.size == 1) return PG_OK;
  PG_TRY(ready(t, "broadcast", &comm));
  char *data = pg_data(t);
  int64_t bytes = pg_numel(t) * (int64_t)pg_dtype_bytes[t->dtype];
  for (int64_t at = 0; at < bytes; at += PIECE) PG_TRY(comm->broadcast(data + at, PG_MIN(bytes - at, PIECE)));
  t->storage->version++;
  return PG_OK;
}

int pg_comm_reduce(pg_tensor *t, int32_t mean) {
  const pg_comm_vtable *comm;
  if (world.size == 1) return PG_OK;
  if (!pg_is_float(t->dtype))
    return pg_fail(PG_ERR_DTYPE, "all_reduce: takes float32 and float64, not %s", pg_dtype_name(t->dtype));
  PG_TRY(ready(t, "all_reduce", &comm));
  char *data = pg_data(t);
  int64_t n = pg_numel(t);
  for (int64_t at = 0; at < n; at += PIECE) {
    char *piece = data + at * (int64_t)pg_dtype_bytes[t->dtype];
    PG_TRY(comm->reduce_begin(0, piece, PG_MIN(n - at, PIECE), t->dtype, mean));
    PG_TRY(comm->reduce_end(0));
  }
  t->storage->version++;
  return PG_OK;
}
