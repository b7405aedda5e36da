/* mem.c - storage: a caching allocator over whatever device holds the bytes, with live and peak counts.
 *
 * Freed blocks are kept by size class and handed out again: a training step asks for the same sizes every time, and the
 * first touch of fresh pages costs more than most kernels. Sizes are rounded to a sixteenth of their power of two, so
 * at most 1/16 is wasted, those of a megabyte and more to whole pages where blocks are divided, and a tensor may take a
 * free block that is up to 1/8 too large. Live and cached bytes together stay within what was ever live at once (and
 * the cache within a quarter of the machine's memory); what exceeds that goes back to the system, the longest unused
 * first, so that the sizes in use stay.
 *
 * Where the device lets blocks be divided, as the host does, a large free block also serves a smaller tensor, and free
 * neighbours become one again: gradients take the place of the activations that were let go of, and the other way
 * round.
 */
#include "core.h"
#include <pthread.h>
#include <unistd.h>
#ifdef PG_SANITIZE /* AddressSanitizer is told what it cannot know: blocks are rounded up, and cached when freed */
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(data, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(data, bytes)
#endif

enum { CLASSES = 64 * 16, ALIGNMENT = 64 };
static const size_t CACHE_LEAST = (size_t)1 << 24;
static const size_t NEAR = (size_t)1 << 20; /* bytes from which a block that is a little too large will do */

typedef struct block {     /* a free block's header lives in host memory: the block itself may be on another device */
  struct block *up, *down; /* in its class, the newest on top; `down` also links spare headers */
  struct block *newer, *older; /* among all free blocks of the device */
  void *data;
  size_t capacity;
} block;

static struct {
  block *free[CLASSES];
  block *newest, *oldest;
  pg_memory stats;
  int64_t watched; /* live bytes past which the flag is set; 0: none */
} pools[PG_DEVICES];
static volatile int32_t past_watched;
static block *spare_headers;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* loader threads allocate too */

static const pg_device_vtable *devices[PG_DEVICES] = {[PG_CPU] = &pg_device_cpu};

const pg_device_vtable *pg_device_get(int32_t device) {
  if (device < 0 || device >= PG_DEVICES) return pg_fail(PG_ERR_DEVICE, "there is no device number %d", device), NULL;
  if (!devices[device] && (device != PG_CUDA || pg_device_load_cuda())) return NULL;
  return devices[device];
}

const char *pg_device_describe(int32_t device) {
  const pg_device_vtable *vtable = pg_device_get(device);
  return !vtable ? NULL : vtable->describe ? vtable->describe() : vtable->name;
}

int pg_synchronize(int32_t device) {
  const pg_device_vtable *vtable = pg_device_get(device);
  if (!vtable) return PG_ERR_DEVICE;
  return vtable->synchronize ? vtable->synchronize() : PG_OK;
}

void pg_device_register(int32_t device, const pg_device_vtable *vtable) { devices[device] = vtable; }

/* The class of a size, and the class's capacity: sixteen steps to a power of two, from 64 bytes up. */
static int size_class(size_t bytes, size_t *capacity) {
  if (bytes <= ALIGNMENT) return *capacity = ALIGNMENT, 0;
  int top = 63 - __builtin_clzll(bytes - 1);
  size_t step = top > 10 ? (size_t)1 << (top - 4) : ALIGNMENT;
  *capacity = (bytes + step - 1) / step * step;
  int rank = top > 10 ? (int)((*capacity - 1) >> (top - 4)) - 16 : (int)(*capacity / ALIGNMENT) % 16;
  return PG_MIN(top * 16 + rank, CLASSES - 1);
}

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

static size_t cache_most(void) {
  static size_t most;
  long pages = most ? 0 : sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (!most) most = PG_MAX(CACHE_LEAST, (size_t)PG_MAX(pages, 0) * (size_t)page / 4);
  return most;
}

/* Tells whoever watches the device's memory how much of a block is in use. */
static void mark(const pg_device_vtable *device, void *data, size_t used, size_t capacity) {
  if (device == &pg_device_cpu) {
    ASAN_UNPOISON_MEMORY_REGION(data, used);
    ASAN_POISON_MEMORY_REGION((char *)data + used, capacity - used);
  } else if (device->mark) {
    device->mark(data, used, capacity);
  }
}

/* All below but the last: lock held. */

static void class_link(int32_t device, block *b) {
  size_t same;
  block **top = &pools[device].free[size_class(b->capacity, &same)];
  b->up = NULL, b->down = *top;
  if (b->down) b->down->up = b;
  *top = b;
  pools[device].stats.cached += (int64_t)b->capacity;
}

static void class_unlink(int32_t device, block *b) {
  size_t same;
  if (b->up)
    b->up->down = b->down;
  else
    pools[device].free[size_class(b->capacity, &same)] = b->down;
  if (b->down) b->down->up = b->up;
  pools[device].stats.cached -= (int64_t)b->capacity;
}

static void cache_push(int32_t device, block *b, void *data, size_t capacity) {
  *b = (block){.older = pools[device].newest, .data = data, .capacity = capacity};
  if (b->older) b->older->newer = b;
  pools[device].newest = b;
  if (!pools[device].oldest) pools[device].oldest = b;
  class_link(device, b);
}

static void cache_remove(int32_t device, block *b) { /* the header joins the spare ones */
  class_unlink(device, b);
  if (b->newer)
    b->newer->older = b->older;
  else
    pools[device].newest = b->older;
  if (b->older)
    b->older->newer = b->newer;
  else
    pools[device].oldest = b->newer;
  b->down = spare_headers, spare_headers = b;
}

static void cut_to(int32_t device, block *b, size_t capacity) { /* it stays as old as it is */
  class_unlink(device, b);
  b->capacity = capacity;
  class_link(device, b);
}

static block *header_new(void) {
  block *b = spare_headers;
  if (!b) return malloc(sizeof *b);
  return spare_headers = b->down, b;
}

static void release(int32_t device, void *data, size_t capacity) {
  mark(devices[device], data, capacity, capacity);
  devices[device]->free(data, capacity);
}

static void trim_to(int32_t device, size_t limit) {
  size_t part = devices[device]->divisible;
  while ((size_t)pools[device].stats.cached > limit) {
    block *b = pools[device].oldest;
    size_t excess = (size_t)pools[device].stats.cached - limit, most = b->capacity, cut = most;
    char *data = b->data;
    if (part) cut = PG_MAX(part, (excess + part - 1) / part * part); /* its end is enough, if something remains */
    if (cut > most || most - cut < part) cut = most;
    if (cut < most)
      cut_to(device, b, most - cut);
    else
      cache_remove(device, b);
    release(device, data + (most - cut), cut);
  }
}

/* What the cache may hold when `more` bytes will be live. */
static size_t cache_room(const pg_memory *stats, int64_t more) {
  int64_t room = stats->peak - stats->live - more;
  return PG_MAX(CACHE_LEAST, PG_MIN(cache_most(), (size_t)PG_MAX(room, 0)));
}

/* How large a block for so many bytes is. Where large ones are divided, they are whole pages and no more: what is left
 * of an activation beside a gradient is then just what the next gradient takes. */
static size_t capacity_for(int32_t device, size_t bytes) {
  size_t capacity;
  size_class(bytes, &capacity);
  if (bytes < NEAR || !devices[device]->divisible) return capacity;
  size_t page = (size_t)PG_MAX(sysconf(_SC_PAGESIZE), 4096);
  return (bytes + page - 1) / page * page;
}

/* The least free block that will do, of equal ones the newest: for scratch memory one of just that size, for a tensor,
 * which remembers what it got, also one that is a little larger. */
static block *fitting_block(int32_t device, size_t capacity, int64_t tensor) {
  size_t same, most = capacity + (tensor && capacity >= NEAR ? capacity / 8 : 0);
  block *least = NULL;
  for (int k = size_class(capacity, &same), last = size_class(most, &same); k <= last && !least; k++)
    for (block *b = pools[device].free[k]; b; b = b->down) {
      if (b->capacity == capacity) return b;
      if (b->capacity > capacity && b->capacity <= most && (!least || b->capacity < least->capacity)) least = b;
    }
  return least;
}

/* The beginning of a free block that is larger by a part or more, of the lowest class that has one; what remains of it
 * is a block by itself. */
static block *divided_block(int32_t device, size_t capacity) {
  size_t part = devices[device]->divisible, same;
  if (!part || capacity < part) return NULL;
  for (int k = size_class(capacity + part, &same); k < CLASSES; k++)
    for (block *b = pools[device].free[k]; b; b = b->down) {
      if (b->capacity < capacity + part) continue;
      block *rest = header_new();
      if (!rest) return NULL;
      cache_push(device, rest, (char *)b->data + capacity, b->capacity - capacity);
      cut_to(device, b, capacity);
      return b;
    }
  return NULL;
}

/* Takes free neighbours of what is being freed out of the cache, and makes it as large as all of them. */
static void join_neighbors(int32_t device, void **data, size_t *capacity) {
  size_t part = devices[device]->divisible, same;
  if (!part || *capacity < part) return;
  for (int k = size_class(part, &same); k < CLASSES; k++)
    for (block *b = pools[device].free[k], *next; b; b = next) {
      next = b->down;
      bool before = (char *)b->data + b->capacity == *data, behind = (char *)*data + *capacity == b->data;
      if ((!before && !behind) || b->capacity < part) continue;
      if (before) *data = b->data;
      *capacity += b->capacity;
      cache_remove(device, b);
    }
}

/* Counts a tensor along where asked, so that one turn of the lock serves both. */
static int block_take(int32_t device, size_t bytes, void **data, size_t *capacity, int64_t tensor) {
  const pg_device_vtable *vtable = pg_device_get(device);
  if (!vtable) return PG_ERR_DEVICE;
  int status = PG_OK;
  *capacity = capacity_for(device, bytes);
  pg_memory *stats = &pools[device].stats;
  pthread_mutex_lock(&lock);
  block *b = fitting_block(device, *capacity, tensor);
  if (!b) b = divided_block(device, *capacity);
  if (b) {
    *data = b->data, *capacity = b->capacity;
    cache_remove(device, b);
  } else {
    trim_to(device, cache_room(stats, (int64_t)*capacity));
    status = vtable->alloc(*capacity, data);
    if (status == PG_ERR_MEMORY) { /* what the cache holds may be what is missing */
      trim_to(device, 0);
      status = vtable->alloc(*capacity, data);
    }
  }
  if (!status) {
    mark(vtable, *data, bytes, *capacity);
    stats->live += (int64_t)*capacity;
    stats->peak = PG_MAX(stats->peak, stats->live);
    stats->tensors += tensor;
    if (tensor && pools[device].watched && stats->live > pools[device].watched) past_watched = 1;
    trim_to(device, cache_room(stats, 0));
  }
  int64_t live = stats->live, tensors = stats->tensors;
  pthread_mutex_unlock(&lock);
  if (status == PG_ERR_MEMORY)
    return pg_fail(PG_ERR_MEMORY, "out of memory on %s: %.1f MB asked for while %lld tensors hold %.1f MB",
                   vtable->name, bytes / 1e6, (long long)tensors, live / 1e6);
  return status;
}

static void block_give(int32_t device, void *data, size_t capacity, int64_t tensor) {
  pg_memory *stats = &pools[device].stats;
  pthread_mutex_lock(&lock);
  stats->live -= (int64_t)capacity;
  stats->tensors -= tensor;
  mark(devices[device], data, 0, capacity);
  join_neighbors(device, &data, &capacity);
  block *b = header_new();
  if (b) {
    cache_push(device, b, data, capacity);
    trim_to(device, cache_room(stats, 0));
  } else {
    release(device, data, capacity);
  }
  pthread_mutex_unlock(&lock);
}

void *pg_scratch_alloc(size_t bytes) {
  void *data = NULL;
  size_t capacity;
  return block_take(PG_CPU, bytes, &data, &capacity, 0) ? NULL : data;
}

void pg_scratch_free(void *p, size_t bytes) {
  if (p) block_give(PG_CPU, p, capacity_for(PG_CPU, bytes), 0);
}

/* ---- storages ---------------------------------------------------------------------------------------------------- */

int pg_storage_new(int32_t device, size_t bytes, pg_storage **out) {
  pg_storage *s = calloc(1, sizeof *s);
  if (!s) return pg_fail(PG_ERR_MEMORY, "out of memory");
  int status = block_take(device, PG_MAX(bytes, 1), &s->data, &s->capacity, 1);
  if (status) return free(s), status;
  atomic_init(&s->refs, 1);
  s->device = device;
  s->bytes = bytes;
  return *out = s, PG_OK;
}

static void storage_drop(pg_storage *s) {
  if (!s->data) return;
  block_give(s->device, s->data, s->capacity, 1);
  s->data = NULL;
}

void pg_storage_release(pg_storage *s) {
  if (!s || atomic_fetch_sub(&s->refs, 1) > 1) return;
  storage_drop(s);
  free(s);
}

void pg_memory_stats(int32_t device, pg_memory *out) {
  pthread_mutex_lock(&lock);
  *out = pools[device].stats;
  pthread_mutex_unlock(&lock);
}

void pg_memory_watch(int32_t device, int64_t limit) {
  if (device < 0 || device >= PG_DEVICES) return;
  pthread_mutex_lock(&lock);
  pools[device].watched = limit;
  pthread_mutex_unlock(&lock);
}

volatile int32_t *pg_memory_flag(void) { return &past_watched; }

void pg_memory_reset_peak(int32_t device) {
  pthread_mutex_lock(&lock);
  pools[device].stats.peak = pools[device].stats.live;
  pthread_mutex_unlock(&lock);
}

void pg_memory_trim(int32_t device) {
  pthread_mutex_lock(&lock);
  if (devices[device]) trim_to(device, 0);
  pthread_mutex_unlock(&lock);
}
