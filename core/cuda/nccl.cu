/* nccl.cu - the table of ../comm.h for the device's memory, by NCCL; MPI tells the processes of each other.
 *
 * Everything runs on a stream of its own, in one order on every process, and is tied to the plug-in's stream by events:
 * it begins when what was queued before it is done, and what is queued after reduce_end waits for it. Gradients so
 * travel while the rest of backward computes, and no call waits on the host. */
#include "cuda.h"
#include "nccl.h"
#include <dlfcn.h>
extern "C" {
#include "../comm.h"
}

static struct {
#define FUNCTION(type, name, parameters) type(*name) parameters;
  NCCL_FUNCTIONS(FUNCTION)
#undef FUNCTION
  ncclComm_t comm;
  cudaStream_t stream;
  cudaEvent_t before;
  cudaEvent_t *done; /* by slot */
  int32_t slots;
} nccl;

static const ncclDataType_t types[PG_DTYPES] = {ncclFloat32, ncclFloat64, ncclInt32, ncclUint8};

static int checked(ncclResult_t result, const char *what) {
  if (!result) return PG_OK;
  return pg_fail(PG_ERR_DEVICE, "%s between processes: NCCL: %s", what, nccl.ncclGetErrorString(result));
}

static int after_queued(void) {
  PG_TRY(pg_cuda_status(cudaEventRecord(nccl.before, pg_cuda_stream()), "NCCL"));
  return pg_cuda_status(cudaStreamWaitEvent(nccl.stream, nccl.before, 0), "NCCL");
}

static int slot_ready(int32_t slot) {
  if (slot < nccl.slots) return PG_OK;
  cudaEvent_t *more = (cudaEvent_t *)realloc(nccl.done, sizeof *more * (size_t)(slot + 1));
  if (!more) return pg_fail(PG_ERR_MEMORY, "out of memory");
  for (nccl.done = more; nccl.slots <= slot; nccl.slots++)
    PG_TRY(pg_cuda_status(cudaEventCreateWithFlags(&nccl.done[nccl.slots], cudaEventDisableTiming), "NCCL"));
  return PG_OK;
}

static int reached(int32_t slot) {
  PG_TRY(slot_ready(slot));
  return pg_cuda_status(cudaEventRecord(nccl.done[slot], nccl.stream), "NCCL");
}

/* ---- the table -------------------------------------------------------------------------------------------------- */

static int reduce_begin(int32_t slot, void *data, int64_t n, int32_t dtype, int32_t mean) {
  PG_TRY(after_queued());
  PG_TRY(
      checked(nccl.ncclAllReduce(data, data, (size_t)n, types[dtype], mean ? ncclAvg : ncclSum, nccl.comm, nccl.stream),
              "all_reduce"));
  return reached(slot);
}

static int reduce_end(int32_t slot) {
  return pg_cuda_status(cudaStreamWaitEvent(pg_cuda_stream(), nccl.done[slot], 0), "NCCL");
}

static int at_once(void) { /* slot 0 is free where nothing but single calls is under way */
  PG_TRY(reached(0));
  return reduce_end(0);
}

static int gather(const void *part, void *whole, int64_t bytes) {
  PG_TRY(after_queued());
  PG_TRY(checked(nccl.ncclAllGather(part, whole, (size_t)bytes, ncclUint8, nccl.comm, nccl.stream), "all_gather"));
  return at_once();
}

static int scatter_sum(const void *whole, void *part, int64_t n, int32_t dtype) {
  PG_TRY(after_queued());
  PG_TRY(checked(nccl.ncclReduceScatter(whole, part, (size_t)n, types[dtype], ncclSum, nccl.comm, nccl.stream),
                 "reduce_scatter"));
  return at_once();
}

static int broadcast(void *data, int64_t bytes) {
  PG_TRY(after_queued());
  PG_TRY(checked(nccl.ncclBroadcast(data, data, (size_t)bytes, ncclUint8, 0, nccl.comm, nccl.stream), "broadcast"));
  return at_once();
}

static const pg_comm_vtable table = {reduce_begin, reduce_end, NULL, gather, scatter_sum, broadcast};

/* ---- opening ---------------------------------------------------------------------------------------------------- */

/* The simulated device brings functions of these names in the plug-in itself. */
static int load(void) {
  Dl_info self;
  void *own = dladdr((void *)load, &self) ? dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD) : NULL;
  void *from = own && dlsym(own, "ncclAllReduce") ? own : dlopen("libnccl.so.2", RTLD_NOW);
  if (!from) return pg_fail(PG_ERR_DEVICE, "several processes on cuda need NCCL: %s", dlerror());
#define FUNCTION(type, name, parameters)                                                                               \
  nccl.name = (type(*) parameters)dlsym(from, #name);                                                                  \
  if (!nccl.name) return pg_fail(PG_ERR_DEVICE, "this NCCL has no " #name);
  NCCL_FUNCTIONS(FUNCTION)
#undef FUNCTION
  return PG_OK;
}

int pg_cuda_comm(const pg_comm_vtable **out) {
  const pg_comm_vtable *host;
  ncclUniqueId id = {};
  PG_TRY(load());
  PG_TRY(pg_comm_of(PG_CPU, &host));
  if (pg_comm()->rank == 0) PG_TRY(checked(nccl.ncclGetUniqueId(&id), "open"));
  PG_TRY(host->broadcast(&id, sizeof id));
  PG_TRY(checked(nccl.ncclCommInitRank(&nccl.comm, pg_comm()->size, id, pg_comm()->rank), "open"));
  PG_TRY(pg_cuda_status(cudaStreamCreateWithFlags(&nccl.stream, cudaStreamNonBlocking), "NCCL"));
  PG_TRY(pg_cuda_status(cudaEventCreateWithFlags(&nccl.before, cudaEventDisableTiming), "NCCL"));
  return *out = &table, PG_OK;
}
