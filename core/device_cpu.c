/* device_cpu.c - the host as a device: what mem.c and tensor.c ask of any device, in its plainest form. */
#include "core.h"

static int cpu_alloc(size_t bytes, void **out) {
  *out = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
  return *out ? PG_OK : PG_ERR_MEMORY;
}

static void cpu_free(void *p, size_t bytes) {
  (void)bytes;
  free(p);
}

static int cpu_zero(void *p, size_t bytes) { return memset(p, 0, bytes), PG_OK; }

static int cpu_copy(void *dst, const void *src, size_t bytes) { return memcpy(dst, src, bytes), PG_OK; }

const pg_device_vtable pg_device_cpu = {"cpu", cpu_alloc, cpu_free, cpu_zero, cpu_copy, cpu_copy, cpu_copy};
