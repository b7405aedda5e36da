/* runtime.cu - streams, events, copies and launches of the simulated device.
 *
 * Work is queued, and done when somebody waits: a copy that is asked for sees what memory holds later, not now, as on a
 * real device. Streams that are not tied by events advance in an order drawn from the seed. */
#include "simt.h"
#include <algorithm>
#include <chrono>
#include <deque>
#include <vector>

struct simt_event {
  uint64_t recorded, passed; /* how often it was put into a queue, and how many of those have been reached */
  std::chrono::steady_clock::time_point when;
};

struct simt_stream {
  struct item {
    std::function<void()> work;
    simt_event *wait; /* not before this event has passed `count` times */
    uint64_t count;
  };
  std::deque<item> queue;
};

namespace simt {

enum { QUEUE_MOST = 8192 };
static std::vector<simt_stream *> streams;
static cudaError_t last = cudaSuccess;

static cudaError_t keep(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

static cudaError_t state(void) { return faulted() ? keep(cudaErrorLaunchFailure) : cudaSuccess; }

static bool can_go(const simt_stream *s) {
  return !s->queue.empty() && (!s->queue.front().wait || s->queue.front().wait->passed >= s->queue.front().count);
}

static const char *launched; /* the last launch since the red zones were looked at */

/* Advances streams, one item at a time, until `done` says so or nothing can go on. */
template <class Done> static void advance(Done done) {
  if (done() || faulted()) return;
  device_open();
  while (!done() && !faulted()) {
    std::vector<simt_stream *> able;
    for (simt_stream *s : streams)
      if (can_go(s)) able.push_back(s);
    if (able.empty()) break;
    simt_stream *s = able[in_order() ? 0 : draw(able.size())];
    simt_stream::item next = std::move(s->queue.front());
    s->queue.pop_front();
    if (next.work) next.work();
  }
  if (launched) check_red_zones(launched), launched = NULL;
  device_close();
}

void enqueue(cudaStream_t stream, std::function<void()> work) {
  stream->queue.push_back({std::move(work), NULL, 0});
  if (stream->queue.size() > QUEUE_MOST) advance([&] { return stream->queue.size() <= QUEUE_MOST / 2; });
}

void enqueue_launch(const char *name, const void *kernel, dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                    std::function<void()> body) {
  uint64_t threads = (uint64_t)block.x * block.y * block.z;
  if (threads == 0 || threads > 1024 || !grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 ||
      grid.x > 2147483647u || shared > 227 * 1024) {
    keep(cudaErrorInvalidConfiguration);
    return;
  }
  enqueue(stream, [=] {
    count_begin(name, kernel, block, shared);
    run_grid(name, grid, block, shared, body);
    count_end();
    launched = name;
  });
}

} // namespace simt

using namespace simt;

/* ---- the device ------------------------------------------------------------------------------------------------- */

cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : keep(cudaErrorInvalidValue); }
cudaError_t cudaDriverGetVersion(int *version) { return *version = 13000, cudaSuccess; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
  if (device != 0) return keep(cudaErrorInvalidValue);
  *p = {};
  snprintf(p->name, sizeof p->name, "simulated device (seed %s)",
           getenv("PERIGEE_SIMT_SEED") ? getenv("PERIGEE_SIMT_SEED") : "1");
  p->major = 9, p->minor = 0, p->multiProcessorCount = 1, p->sharedMemPerBlock = 227 * 1024;
  size_t available;
  return cudaMemGetInfo(&available, &p->totalGlobalMem);
}

cudaError_t cudaGetLastError(void) {
  cudaError_t error = last;
  last = faulted() ? cudaErrorLaunchFailure : cudaSuccess; /* a fault stays, as on a real device */
  return error;
}

const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
  case cudaSuccess: return "no error";
  case cudaErrorInvalidValue: return "invalid argument";
  case cudaErrorMemoryAllocation: return "out of memory";
  case cudaErrorInvalidConfiguration: return "invalid configuration argument";
  case cudaErrorNotReady: return "device not ready";
  default: return faulted() ? fault_text() : "unspecified launch failure";
  }
}

/* ---- copies ----------------------------------------------------------------------------------------------------- */

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  bool to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  bool from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  enqueue(stream, [=] {
    (to ? check_range : check_host)("cudaMemcpyAsync, destination", dst, bytes);
    (from ? check_range : check_host)("cudaMemcpyAsync, source", src, bytes);
    if (!faulted()) memmove(dst, src, bytes);
    if (to && from) count_library("cudaMemcpyAsync", bytes, bytes, 0);
  });
  return state();
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream) {
  enqueue(stream, [=] {
    check_range("cudaMemsetAsync", p, bytes);
    if (!faulted()) memset(p, value, bytes);
    count_library("cudaMemsetAsync", 0, bytes, 0);
  });
  return state();
}

cudaError_t cudaMemset2DAsync(void *p, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream) {
  if (!height) return cudaSuccess;
  enqueue(stream, [=] {
    check_range("cudaMemset2DAsync", p, pitch * (height - 1) + width);
    for (size_t i = 0; i < height && !faulted(); i++) memset((char *)p + i * pitch, value, width);
    count_library("cudaMemset2DAsync", 0, width * height, 0);
  });
  return state();
}

/* ---- streams and events ----------------------------------------------------------------------------------------- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags) {
  (void)flags;
  streams.push_back(*out = new simt_stream());
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  cudaStreamSynchronize(stream);
  streams.erase(std::find(streams.begin(), streams.end(), stream));
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  advance([=] { return stream->queue.empty(); });
  if (!stream->queue.empty() && !faulted()) fault("a stream waits for an event that nothing will reach");
  return state();
}

cudaError_t cudaDeviceSynchronize(void) {
  for (simt_stream *s : streams) cudaStreamSynchronize(s);
  return state();
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags) {
  (void)flags;
  return *out = new simt_event(), cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->recorded++;
  enqueue(stream, [=] { event->passed++, event->when = std::chrono::steady_clock::now(); });
  return state();
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  (void)flags;
  stream->queue.push_back({nullptr, event, event->recorded});
  return state();
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  advance([=] { return event->passed >= event->recorded; });
  return state();
}

cudaError_t cudaEventQuery(cudaEvent_t event) { return event->passed >= event->recorded ? state() : cudaErrorNotReady; }

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
  *ms = std::chrono::duration<float, std::milli>(to->when - from->when).count();
  return cudaSuccess;
}
