/* device_cpu.c - the host as a device: what mem.c and tensor.c ask of any device, in its plainest form. */
#include "core.h"
#include <sys/mman.h>

/* Large blocks are mappings of their own: what is freed leaves the process at once, whatever lies around it. Where
 * they hold whole pages of 2 MiB they ask for these, whose first touch costs a fraction of what 512 small ones do.
 * Under sanitizers the C library's allocator keeps watch over all blocks. */
#ifdef PG_SANITIZE
#define LARGE SIZE_MAX
#else
#define LARGE ((size_t)1 << 20)
#endif
static const size_t HUGE_PAGE = (size_t)2 << 20;

/* mem.c's sizes of blocks as large as this are whole pages. */
static int map_large(size_t bytes, void **out) {
  size_t align = bytes >= HUGE_PAGE ? HUGE_PAGE : 0;
  char *p = mmap(NULL, bytes + align, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return PG_ERR_MEMORY;
  *out = p;
  if (!align) return PG_OK;
  size_t before = -(uintptr_t)p & (align - 1);
  if (before) munmap(p, before);
  if (before < align) munmap(p + before + bytes, align - before);
  *out = p + before;
#ifdef MADV_HUGEPAGE
  madvise(*out, bytes, MADV_HUGEPAGE); /* only advice: a refusal changes nothing */
#endif
  return PG_OK;
}

static int cpu_alloc(size_t bytes, void **out) {
  if (bytes >= LARGE) return map_large(bytes, out);
  return posix_memalign(out, 64, (bytes + 63) & ~(size_t)63) ? PG_ERR_MEMORY : PG_OK;
}

static void cpu_free(void *p, size_t bytes) {
  if (bytes >= LARGE)
    munmap(p, bytes);
  else
    free(p);
}

static int cpu_zero(void *p, size_t bytes) { return memset(p, 0, bytes), PG_OK; }

static int cpu_copy(void *dst, const void *src, size_t bytes) { return memcpy(dst, src, bytes), PG_OK; }

const pg_device_vtable pg_device_cpu = {"cpu",    cpu_alloc, cpu_free, cpu_zero,
                                        cpu_copy, cpu_copy,  cpu_copy, .divisible = LARGE};
