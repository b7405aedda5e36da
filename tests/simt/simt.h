/* simt.h - what the simulator's own files share. */
#ifndef PG_SIMT_H
#define PG_SIMT_H
#include "cuda_runtime.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SIMT_ASAN 1
#else
#define SIMT_ASAN 0
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

namespace simt {

/* ---- faults: the first one sticks to the device, as a real one's do ---- */
void fault(const char *format, ...) __attribute__((format(printf, 1, 2)));
bool faulted(void);
const char *fault_text(void);

/* ---- randomness of the schedule: PERIGEE_SIMT_SEED, 0: natural order ---- */
uint64_t draw(uint64_t below);
bool in_order(void);

/* ---- memory.cu ---- */
void device_open(void); /* device memory may be touched between these two, and never else */
void device_close(void);
bool is_device(const void *p, size_t bytes); /* inside one live allocation */
void check_range(const char *what, const void *p, size_t bytes); /* faults where it is not */
void check_red_zones(const char *after);
void check_host(const char *what, const void *p, size_t bytes); /* faults where it is device memory */
bool in_range(const void *p); /* anywhere in the range of addresses that device memory lies in */
enum { POISON = 0xff }; /* what memory holds before it is written: NaN as a float, -1 as an integer */

/* ---- scheduler.cu ---- */
void run_grid(const char *name, dim3 grid, dim3 block, size_t shared, const std::function<void()> &body);

/* ---- runtime.cu ---- */
void enqueue(cudaStream_t stream, std::function<void()> work); /* runs later, in the stream's order */

/* ---- count.cu, in the build that counts what kernels move (make cuda-report); in the others these do nothing ---- */
#ifdef SIMT_COUNT
void count_begin(const char *name, const void *kernel, dim3 block, size_t shared); /* a grid is about to run */
void count_block(void);                                                           /* one of its blocks has ended */
void count_end(void);
void count_library(const char *name, uint64_t read, uint64_t written, double flops); /* bytes; what no kernel does */
#else
static inline void count_begin(const char *, const void *, dim3, size_t) {}
static inline void count_block(void) {}
static inline void count_end(void) {}
static inline void count_library(const char *, uint64_t, uint64_t, double) {}
#endif

} // namespace simt

#endif
