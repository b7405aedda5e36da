/* device_cpu.c - the host as a device: what mem.c and tensor.c ask of any device, in its plainest form. */
#include "core.h"
#include <sys/mman.h>

/* Large blocks ask for pages of 2 MiB: their first touch costs a fraction of what 512 small ones do. */
static int cpu_alloc(size_t bytes, void **out) {
  enum { HUGE_PAGE = 1 << 21 };
  size_t align = bytes >= 4 * (size_t)HUGE_PAGE ? HUGE_PAGE : 64;
  if (posix_memalign(out, align, (bytes + 63) & ~(size_t)63)) *out = NULL; /* aligned_alloc wants whole alignments */
#ifdef MADV_HUGEPAGE
  if (*out && align == HUGE_PAGE) madvise(*out, bytes, MADV_HUGEPAGE); /* only advice: a refusal changes nothing */
#endif
  return *out ? PG_OK : PG_ERR_MEMORY;
}

static void cpu_free(void *p, size_t bytes) {
  (void)bytes;
  free(p);
}

static int cpu_zero(void *p, size_t bytes) { return memset(p, 0, bytes), PG_OK; }

static int cpu_copy(void *dst, const void *src, size_t bytes) { return memcpy(dst, src, bytes), PG_OK; }

const pg_device_vtable pg_device_cpu = {"cpu", cpu_alloc, cpu_free, cpu_zero, cpu_copy, cpu_copy, cpu_copy};
