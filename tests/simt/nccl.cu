/* nccl.cu - NCCL for the simulated device: each process has a device of its own, and they meet in shared memory, piece
 * by piece, when the call's turn in its stream comes. Every process adds in the order of the ranks, so that all get the
 * same bits. */
#include "../../core/cuda/nccl.h"
#include "simt.h"
#include <atomic>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

static const size_t PIECE = 1 << 16; /* bytes */

struct meeting { /* what the processes share; memory that is new holds zeros */
  std::atomic<int> here, round;
  alignas(64) char piece[]; /* one a rank */
};

struct ncclComm {
  meeting *m;
  int rank, size;
  char *of(int rank) const { return m->piece + (size_t)rank * PIECE; }
  void wait() const { /* for all of them */
    int round = m->round;
    if (m->here.fetch_add(1) + 1 == size)
      m->here = 0, m->round++;
    else
      while (m->round == round) sched_yield();
  }
};

static size_t bytes_of(ncclDataType_t type) { return type == ncclUint8 ? 1 : type == ncclFloat64 ? 8 : 4; }

extern "C" const char *ncclGetErrorString(ncclResult_t) { return "no shared memory"; }

extern "C" ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
  snprintf(id->internal, sizeof id->internal, "/perigee-simt-%d", (int)getpid());
  int fd = shm_open(id->internal, O_RDWR | O_CREAT | O_EXCL, 0600);
  return fd < 0 || close(fd);
}

extern "C" ncclResult_t ncclCommInitRank(ncclComm_t *out, int size, ncclUniqueId id, int rank) {
  size_t bytes = sizeof(meeting) + (size_t)size * PIECE;
  int fd = shm_open(id.internal, O_RDWR, 0600);
  if (fd < 0 || ftruncate(fd, (off_t)bytes)) return 1;
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (memory == MAP_FAILED) return 1;
  *out = new ncclComm{(meeting *)memory, rank, size};
  (*out)->wait();
  if (rank == 0) shm_unlink(id.internal);
  return 0;
}

/* Every process gives its `length` bytes at `in`, piece by piece; `take(all, at, n)` puts n bytes from `at` on of what
 * it makes of all of theirs into a buffer of `room` bytes, of which `written` bytes from `from` on are the result.
 *
 * A GPU meets the others while its host waits for something else; here the host must take part, so that the meeting is
 * held at once. The result is written in the stream's own time, and who reads it without waiting for it reads what was
 * there. */
template <class Take>
static ncclResult_t meet(ncclComm_t c, cudaStream_t stream, const char *what, const void *in, size_t length, void *out,
                         size_t room, size_t from, size_t written, Take take) {
  std::vector<char> *all = new std::vector<char>(room);
  simt::enqueue(stream, [=] {
    simt::check_range(what, in, length);
    simt::check_range(what, out, written);
    for (size_t at = 0; at < length && !simt::faulted(); at += PIECE) {
      size_t n = length - at < PIECE ? length - at : PIECE;
      memcpy(c->of(c->rank), (const char *)in + at, n);
      c->wait();
      take(all->data(), at, n);
      c->wait();
    }
  });
  cudaStreamSynchronize(stream);
  simt::enqueue(stream, [=] {
    if (!simt::faulted()) memcpy(out, all->data() + from, written);
    delete all;
  });
  return 0;
}

template <class T> static void add(ncclComm_t c, void *out, size_t n, bool mean) {
  for (size_t i = 0; i < n / sizeof(T); i++) {
    T sum = 0;
    for (int r = 0; r < c->size; r++) sum += ((T *)c->of(r))[i];
    ((T *)out)[i] = mean ? sum / (T)c->size : sum;
  }
}

static ncclResult_t reduce(ncclComm_t c, cudaStream_t stream, const char *what, const void *in, size_t length,
                           void *out, size_t from, size_t written, ncclDataType_t type, ncclRedOp_t op) {
  return meet(c, stream, what, in, length, out, length, from, written, [=](char *all, size_t at, size_t n) {
    (type == ncclFloat64 ? add<double> : add<float>)(c, all + at, n, op == ncclAvg);
  });
}

extern "C" ncclResult_t ncclAllReduce(const void *in, void *out, size_t n, ncclDataType_t type, ncclRedOp_t op,
                                      ncclComm_t c, cudaStream_t stream) {
  size_t length = n * bytes_of(type);
  return reduce(c, stream, "ncclAllReduce", in, length, out, 0, length, type, op);
}

extern "C" ncclResult_t ncclReduceScatter(const void *in, void *out, size_t n, ncclDataType_t type, ncclRedOp_t op,
                                          ncclComm_t c, cudaStream_t stream) {
  size_t part = n * bytes_of(type);
  return reduce(c, stream, "ncclReduceScatter", in, part * (size_t)c->size, out, part * (size_t)c->rank, part, type,
                op);
}

extern "C" ncclResult_t ncclAllGather(const void *in, void *out, size_t n, ncclDataType_t type, ncclComm_t c,
                                      cudaStream_t stream) {
  size_t part = n * bytes_of(type), whole = part * (size_t)c->size;
  return meet(c, stream, "ncclAllGather", in, part, out, whole, 0, whole, [=](char *all, size_t at, size_t some) {
    for (int r = 0; r < c->size; r++) memcpy(all + (size_t)r * part + at, c->of(r), some);
  });
}

extern "C" ncclResult_t ncclBroadcast(const void *in, void *out, size_t n, ncclDataType_t type, int root, ncclComm_t c,
                                      cudaStream_t stream) {
  size_t length = n * bytes_of(type);
  return meet(c, stream, "ncclBroadcast", in, length, out, length, 0, length,
              [=](char *all, size_t at, size_t some) { memcpy(all + at, c->of(root), some); });
}
