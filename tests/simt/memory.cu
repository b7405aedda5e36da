/* memory.cu - the simulated device's memory: one reserved range of addresses that the host may not touch.
 *
 * The range has no access rights while host code runs, so that a stray look from there is a fault that names it; rights
 * are given while the device works. Around every allocation, and behind the part of a block that is in use (mark),
 * stands a red zone: poisoned for AddressSanitizer, filled with a pattern that is looked at after every launch in other
 * builds. Fresh memory holds 0xff bytes, NaN as a float, so that a value read before it was written shows. */
#include "simt.h"
#include <map>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace simt {

enum : size_t { RANGE = (size_t)1 << 36, HUGE = (size_t)1 << 21, ZONE = 256, ALIGN = 256, PATTERN = 0xa5 };

struct allocation {
  size_t bytes; /* as asked for */
  size_t used;  /* of these, what mark() said; the rest is red zone */
};

static char *base;
static int open_depth;
static std::map<char *, allocation> live;                /* by address */
static std::map<size_t, std::vector<char *>> given_back; /* by padded size, to be used again */
static size_t next_free;
static struct sigaction before;

static size_t padded(size_t bytes) { return (bytes + 2 * ZONE + ALIGN - 1) / ALIGN * ALIGN; }

static void on_segv(int number, siginfo_t *info, void *context) {
  char *p = (char *)info->si_addr;
  if (in_range(p)) {
    static const char text[] = "simulated device: fault: host code touched device memory\n";
    if (write(2, text, sizeof text - 1)) {}
    _exit(99);
  }
  sigaction(SIGSEGV, &before, NULL); /* somebody else's: fault again, as it would have been */
  (void)number, (void)context;
}

static void reserve(void) {
  if (base) return;
  void *p = mmap(NULL, RANGE + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) abort();
  base = (char *)(((uintptr_t)p + HUGE - 1) / HUGE * HUGE);
  madvise(base, RANGE, MADV_HUGEPAGE); /* rights are given and taken by the page: the fewer, the better */
  struct sigaction action = {};
  action.sa_sigaction = on_segv, action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, &before);
}

static void set_rights(int rights) {
  if (next_free) mprotect(base, (next_free + HUGE - 1) / HUGE * HUGE, rights);
}

void device_open(void) {
  if (open_depth++ == 0) set_rights(PROT_READ | PROT_WRITE);
}

void device_close(void) {
  if (--open_depth == 0) set_rights(PROT_NONE);
}

/* Rights for a moment of bookkeeping, from whichever side. */
struct opened {
  opened() { device_open(); }
  ~opened() { device_close(); }
};

static void fill_zone(char *p, size_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(p, bytes);
  memset(p, PATTERN, bytes);
  ASAN_POISON_MEMORY_REGION(p, bytes);
}

/* Whether the zones around an allocation are as they were filled. AddressSanitizer sees the access itself. */
static void check_zones(const char *p, const allocation *a, const char *after) {
#if !SIMT_ASAN
  size_t behind = a->bytes - a->used + ZONE;
  for (size_t i = 0; i < ZONE && a->used; i++)
    if ((unsigned char)p[-(ptrdiff_t)i - 1] != PATTERN || (unsigned char)p[a->used + i % behind] != PATTERN) {
      fault("%s, or a launch before it: wrote %s an allocation of %zu bytes", after,
            (unsigned char)p[-(ptrdiff_t)i - 1] != PATTERN ? "before" : "behind", a->used);
      return;
    }
#else
  (void)p, (void)a, (void)after;
#endif
}

void check_red_zones(const char *after) {
  opened rights;
  for (auto &entry : live) check_zones(entry.first, &entry.second, after);
}

static void set_used(char *p, allocation *a, size_t used, bool was_filled = true) {
  opened rights;
  if (a->used && was_filled) check_zones(p, a, "a kernel");
  a->used = used;
  ASAN_UNPOISON_MEMORY_REGION(p, used);
  memset(p, POISON, used);
  fill_zone(p + used, a->bytes - used + ZONE);
}

static std::map<char *, allocation>::iterator containing(const void *p) {
  auto it = live.upper_bound((char *)p);
  if (it == live.begin()) return live.end();
  --it;
  return (char *)p < it->first + it->second.bytes + ZONE ? it : live.end();
}

bool in_range(const void *p) { return base && (char *)p >= base && (char *)p < base + RANGE; }

bool is_device(const void *p, size_t bytes) {
  auto it = containing(p);
  return it != live.end() && (char *)p + bytes <= it->first + it->second.used;
}

void check_range(const char *what, const void *p, size_t bytes) {
  if (!bytes || is_device(p, bytes)) return;
  auto it = containing(p);
  if (it == live.end())
    fault("%s: %p is not in device memory", what, p);
  else
    fault("%s: %zu bytes at %p, which is byte %zd of an allocation of %zu", what, bytes, p, (char *)p - it->first,
          it->second.used);
}

void check_host(const char *what, const void *p, size_t bytes) {
  (void)bytes;
  if (in_range(p)) fault("%s: %p is device memory, not the host's", what, p);
}

void mark(void *p, size_t used, size_t capacity, cudaStream_t stream) {
  enqueue(stream, [=] { /* work that is queued before still has the block as it was */
                        auto it = live.find((char *)p);
                        if (it != live.end() && it->second.bytes >= capacity) set_used((char *)p, &it->second, used);
  });
}

void check_pointer(const char *kernel, int index, const void *p) {
  auto it = containing(p); /* what lies behind an array's end is a fault when it is read, not before */
  if (!p || (it != live.end() && (char *)p >= it->first)) return;
  fault("%s: argument %d is %p, which is not device memory", kernel, index, p);
}

void check_words(const char *kernel, int index, const void *value, size_t bytes) {
  for (size_t i = 0; i + sizeof(uintptr_t) <= bytes; i += sizeof(uintptr_t)) {
    uintptr_t word;
    memcpy(&word, (const char *)value + i, sizeof word);
    if (word < 0x500000000000u || word > 0x7fffffffffffu || ((char *)word >= base && (char *)word < base + RANGE))
      continue;
    if ((word & 0xffffffffu) < 0x10000u) continue; /* a small int beside four bytes of padding, which hold anything */
    uintptr_t page = word & ~(uintptr_t)4095;
    if (msync((void *)page, 4096, MS_ASYNC) == 0)
      fault("%s: argument %d holds %p at byte %zu, which is the host's memory", kernel, index, (void *)word, i);
  }
}

} // namespace simt

using namespace simt;

/* ---- the runtime's side ----------------------------------------------------------------------------------------- */

static size_t limit_bytes(void) { /* PERIGEE_SIMT_MEMORY: bytes that the device pretends to have */
  const char *text = getenv("PERIGEE_SIMT_MEMORY");
  return text ? (size_t)strtoull(text, NULL, 10) : RANGE / 2;
}

static size_t held;

cudaError_t cudaMalloc(void **out, size_t bytes) {
  reserve();
  size_t room = padded(bytes);
  if (held + bytes > limit_bytes() || (given_back[room].empty() && next_free + room > RANGE))
    return cudaErrorMemoryAllocation;
  char *zone;
  bool fresh = given_back[room].empty();
  if (fresh) {
    zone = base + next_free;
    next_free += room;
    if (open_depth) set_rights(PROT_READ | PROT_WRITE);
  } else {
    zone = given_back[room].back();
    given_back[room].pop_back();
  }
  opened rights;
  char *p = zone + ZONE;
  fill_zone(zone, ZONE);
  live[p] = {bytes, bytes};
  set_used(p, &live[p], bytes, false);
  held += bytes;
  return *out = p, cudaSuccess;
}

cudaError_t cudaFree(void *p) {
  if (!p) return cudaSuccess;
  auto it = live.find((char *)p);
  if (it == live.end()) return fault("cudaFree: %p was never allocated, or is freed twice", p), cudaErrorInvalidValue;
  size_t bytes = it->second.bytes;
  set_used((char *)p, &it->second, 0);
  given_back[padded(bytes)].push_back((char *)p - ZONE);
  held -= bytes;
  live.erase(it);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void **out, size_t bytes) {
  *out = malloc(bytes);
  return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFreeHost(void *p) { return free(p), cudaSuccess; }

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
  *total = limit_bytes(), *available = limit_bytes() - held;
  return cudaSuccess;
}
