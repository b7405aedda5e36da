/* scheduler.cu - runs a grid: blocks one after the other, the threads of a block as fibers that take turns.
 *
 * A thread runs until it waits at a barrier or a warp operation, or ends. Who goes next is drawn from a seed
 * (PERIGEE_SIMT_SEED; 0 is the natural order), and some warps rest while others run ahead to the next barrier, so that
 * a kernel that counts on an order, for want of a barrier, gives other results under some seeds. What no order can
 * resolve is a fault: threads at different barriers, a barrier that some have left behind, a shuffle whose mask names a
 * lane that is not coming or leaves out its own. */
#include "simt.h"
#include <algorithm>
#include <map>
#include <stdarg.h>
#include <sys/mman.h>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

place here;

/* ---- fibers: a stack each, and a switch between two ------------------------------------------------------------- */

enum : size_t { STACK = 1 << 17 };

struct fiber {
  char *stack;
#if defined(__x86_64__)
  void *sp;
#else
  ucontext_t context;
#endif
  void *fake; /* AddressSanitizer's */
};

#if defined(__x86_64__)
extern "C" void simt_switch(void **save, void *load);
asm(".text\n.globl simt_switch\n.hidden simt_switch\n.type simt_switch, @function\nsimt_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
#endif

static fiber scheduler; /* the host's own stack */
[[maybe_unused]] static const void *host_bottom;
[[maybe_unused]] static size_t host_size;

static void switch_to(fiber *from, fiber *to, bool forever) {
#if SIMT_ASAN
  __sanitizer_start_switch_fiber(forever ? NULL : &from->fake, to->stack ? (const void *)to->stack : host_bottom,
                                 to->stack ? (size_t)STACK : host_size);
#else
  (void)forever;
#endif
#if defined(__x86_64__)
  simt_switch(&from->sp, to->sp);
#else
  swapcontext(&from->context, &to->context);
#endif
#if SIMT_ASAN
  const void *bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(from->fake, &bottom, &size);
#endif
}

/* ---- the block that runs ---------------------------------------------------------------------------------------- */

enum state { FRESH, READY, AT_BARRIER, AT_WARP, ENDED };

struct thread {
  dim3 index;
  state now;
  fiber *on;
  int line; /* where it waits */
  warp_op op;
  unsigned mask;
  uint64_t value, result;
  int source;
};

static const std::function<void()> *body;
static const char *kernel_name;
static std::vector<thread> threads;
static std::vector<int> order;
static size_t cursor;             /* in order */
static std::vector<char> resting; /* warps that wait until nobody else can go on */
static int current = -1;
static std::vector<fiber *> idle;                        /* whose last thread has ended */
static std::map<const void *, std::vector<char>> arrays; /* shared arrays: red zone, array, red zone */
static std::vector<char> dynamic;
static bool stopping;

enum : size_t { SHARED_ZONE = 64 };

int lane(void) { return current % 32; }

static uint64_t seed = getenv("PERIGEE_SIMT_SEED") ? strtoull(getenv("PERIGEE_SIMT_SEED"), NULL, 10) : 1, drawn = seed;

extern "C" void simt_seed(uint64_t value) { seed = drawn = value; }

bool in_order(void) { return seed == 0; }

uint64_t draw(uint64_t below) { /* SplitMix64 */
  uint64_t z = (drawn += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u, z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return (z ^ (z >> 31)) % below;
}

/* ---- faults ---- */

static char text[512];
bool faulted(void) { return text[0] != 0; }
const char *fault_text(void) { return text; }

void fault(const char *format, ...) {
  if (!faulted()) {
    int used = snprintf(text, sizeof text, "simulated device: fault: ");
    if (current >= 0)
      used += snprintf(text + used, sizeof text - (size_t)used,
                       "%s, block (%u, %u, %u), thread (%u, %u, %u): ", kernel_name, here.block.x, here.block.y,
                       here.block.z, here.thread.x, here.thread.y, here.thread.z);
    va_list args;
    va_start(args, format);
    vsnprintf(text + used, sizeof text - (size_t)used, format, args);
    va_end(args);
  }
  stopping = true;
  if (current >= 0) { /* this thread goes no further; its stack is used again from the start */
    fiber *mine = threads[(size_t)current].on;
    current = -1;
    switch_to(mine, &scheduler, true);
  }
}

/* ---- running threads ---- */

static void wait_in(state why, int line) {
  thread *t = &threads[(size_t)current];
  place kept = here;
  int number = current;
  t->now = why, t->line = line;
  current = -1;
  switch_to(t->on, &scheduler, false);
  here = kept, current = number;
}

static void begin(int number, fiber *on) {
  thread *t = &threads[(size_t)number];
  t->on = on, t->now = READY;
  here.thread = t->index, current = number;
}

static void fiber_main(fiber *self) {
#if SIMT_ASAN
  __sanitizer_finish_switch_fiber(NULL, &host_bottom, &host_size);
#endif
  for (;;) {
    (*body)();
    threads[(size_t)current].now = ENDED;
    /* the next thread that has not begun can go on right here */
    if (cursor + 1 < order.size() && threads[(size_t)order[cursor + 1]].now == FRESH &&
        !resting[(size_t)order[cursor + 1] / 32] && !stopping) {
      begin(order[++cursor], self);
      continue;
    }
    current = -1;
    idle.push_back(self);
    switch_to(self, &scheduler, false);
  }
}

static fiber *started; /* whom the trampoline finds */
extern "C" void simt_fiber_start(void) { fiber_main(started); }

static void prepare(fiber *f) { /* its first switch arrives in simt_fiber_start */
#if defined(__x86_64__)
  void **top = (void **)(f->stack + STACK - 64);
  *--top = NULL; /* no return address: fiber_main never returns */
  *--top = (void *)simt_fiber_start;
  for (int i = 0; i < 6; i++) *--top = NULL;
  f->sp = top;
#else
  getcontext(&f->context);
  f->context.uc_stack.ss_sp = f->stack, f->context.uc_stack.ss_size = STACK, f->context.uc_link = NULL;
  makecontext(&f->context, simt_fiber_start, 0);
#endif
  f->fake = NULL;
}

static std::vector<fiber *> everyone;

static fiber *new_fiber(void) {
  fiber *f = new fiber();
  f->stack = (char *)mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (f->stack == MAP_FAILED) abort();
  prepare(f);
  everyone.push_back(f);
  return f;
}

/* ---- warp operations ---- */

/* The lanes of the caller's mask are all here with one op: each gets its result and is ready. */
static void complete_warp(int first, const thread *model) {
  for (int k = 0; k < 32; k++) {
    if (!(model->mask >> k & 1)) continue;
    thread *t = &threads[(size_t)(first + k)];
    if (model->op == SHUFFLE) t->result = threads[(size_t)(first + t->source)].value;
    if (model->op == BALLOT) {
      t->result = 0;
      for (int j = 0; j < 32; j++)
        if (model->mask >> j & 1 && threads[(size_t)(first + j)].value) t->result |= 1u << j;
    }
  }
  for (int k = 0; k < 32; k++)
    if (model->mask >> k & 1) threads[(size_t)(first + k)].now = READY;
}

uint64_t warp(warp_op op, unsigned mask, uint64_t value, int source, int line) {
  thread *t = &threads[(size_t)current];
  int first = current / 32 * 32, mine = current % 32;
  if (!(mask >> mine & 1))
    fault("mask 0x%08x of a warp operation at line %d leaves out its own lane %d", mask, line, mine);
  if (op == SHUFFLE && (source < 0 || source > 31 || !(mask >> source & 1)))
    fault("shuffle at line %d reads lane %d, which mask 0x%08x leaves out", line, source, mask);
  t->op = op, t->mask = mask, t->value = value, t->source = source, t->line = line, t->now = AT_WARP;
  bool all = true;
  for (int k = 0; k < 32 && all; k++) {
    if (!(mask >> k & 1)) continue;
    if (first + k >= (int)threads.size())
      fault("mask 0x%08x at line %d names lane %d, which this block has not", mask, line, k);
    const thread *other = &threads[(size_t)(first + k)];
    all = other->now == AT_WARP && other->op == op && other->mask == mask && other->line == line;
  }
  if (all)
    complete_warp(first, t); /* the last one to come goes on at once */
  else
    wait_in(AT_WARP, line);
  return threads[(size_t)current].result;
}

void barrier(int line) { wait_in(AT_BARRIER, line); }

/* ---- shared memory ---- */

static char *guarded(std::vector<char> *store, size_t bytes) {
  store->assign(bytes + 2 * SHARED_ZONE, (char)POISON);
  ASAN_POISON_MEMORY_REGION(store->data(), SHARED_ZONE);
  ASAN_POISON_MEMORY_REGION(store->data() + SHARED_ZONE + bytes, SHARED_ZONE);
  return store->data() + SHARED_ZONE;
}

static void check_and_drop(std::vector<char> *store, const char *what) {
  size_t bytes = store->size() - 2 * SHARED_ZONE;
  ASAN_UNPOISON_MEMORY_REGION(store->data(), store->size());
  for (size_t i = 0; i < SHARED_ZONE && !faulted(); i++)
    if ((unsigned char)(*store)[i] != POISON || (unsigned char)(*store)[SHARED_ZONE + bytes + i] != POISON)
      fault("%s: wrote outside of %s", kernel_name, what);
}

void *shared_array(const void *key, size_t bytes, const char *name) {
  (void)name;
  auto it = arrays.find(key);
  if (it == arrays.end()) {
    /* 16-byte alignment, as shared memory has it: a vector's memory is aligned so, and the zone keeps it */
    std::vector<char> &store = arrays[key];
    return guarded(&store, bytes);
  }
  return it->second.data() + SHARED_ZONE;
}

void *shared_dynamic(void) { return dynamic.data() + SHARED_ZONE; }

/* ---- a block ---- */

static void shuffle_order(void) { /* warps in a drawn order, the lanes of each in one of their own */
  size_t n = threads.size();
  order.resize(n);
  for (size_t i = 0; i < n; i++) order[i] = (int)i;
  if (in_order()) return;
  size_t warps = (n + 31) / 32;
  std::vector<int> warp_order(warps);
  for (size_t i = 0; i < warps; i++) warp_order[i] = (int)i;
  for (size_t i = warps; i > 1; i--) std::swap(warp_order[i - 1], warp_order[draw(i)]);
  size_t at = 0;
  for (int w : warp_order) {
    size_t from = at;
    for (size_t k = (size_t)w * 32; k < std::min(n, (size_t)w * 32 + 32); k++) order[at++] = (int)k;
    for (size_t i = at - from; i > 1; i--) std::swap(order[from + i - 1], order[from + draw(i)]);
  }
}

/* Half of the warps, drawn anew behind every barrier, rest until the others have come to the next one: what a warp
 * still needs then, another may have overwritten already. */
static void draw_resting(void) {
  resting.assign((threads.size() + 31) / 32, 0);
  if (!in_order() && resting.size() > 1)
    for (char &r : resting) r = (char)draw(2);
}

/* Nobody can go on: either all are at one barrier, which opens, or this is a fault. */
static void resolve(void) {
  const thread *first = NULL;
  size_t ended = 0;
  for (const thread &t : threads) {
    ended += t.now == ENDED;
    if (t.now == AT_WARP) {
      fault("%s, block (%u, %u, %u), thread %d waits at line %d for the lanes of mask 0x%08x, and some do not come",
            kernel_name, here.block.x, here.block.y, here.block.z, (int)(&t - threads.data()), t.line, t.mask);
      return;
    }
    if (t.now != AT_BARRIER) continue;
    if (first && first->line != t.line) {
      fault("%s, block (%u, %u, %u): divergent barrier: threads wait at lines %d and %d", kernel_name, here.block.x,
            here.block.y, here.block.z, first->line, t.line);
      return;
    }
    first = &t;
  }
  if (ended) {
    fault("%s, block (%u, %u, %u): divergent barrier at line %d: %zu threads have already ended", kernel_name,
          here.block.x, here.block.y, here.block.z, first->line, ended);
    return;
  }
  for (thread &t : threads) t.now = READY;
  draw_resting();
}

static void run_block(void) {
  draw_resting();
  for (;;) {
    bool any = false, waiting = false, rest = false;
    shuffle_order();
    for (cursor = 0; cursor < order.size() && !stopping; cursor++) {
      thread *t = &threads[(size_t)order[cursor]];
      if (resting[(size_t)order[cursor] / 32]) {
        rest = true;
      } else if (t->now == FRESH) {
        fiber *f = idle.empty() ? new_fiber() : idle.back();
        if (!idle.empty()) idle.pop_back();
        begin(order[cursor], f);
        started = f;
        switch_to(&scheduler, f, false);
        any = true;
      } else if (t->now == READY) {
        here.thread = t->index, current = order[cursor];
        switch_to(&scheduler, t->on, false);
        any = true;
      }
    }
    if (stopping) return;
    for (const thread &t : threads) waiting = waiting || t.now != ENDED;
    if (!waiting) return;
    if (!any && rest)
      resting.assign(resting.size(), 0);
    else if (!any)
      resolve();
    if (stopping) return;
  }
}

void run_grid(const char *name, dim3 grid, dim3 block, size_t shared, const std::function<void()> &kernel) {
  if (faulted()) return;
  body = &kernel, kernel_name = name, stopping = false;
  here.block_size = block, here.grid_size = grid;
  size_t count = (size_t)block.x * block.y * block.z;
  uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
  threads.assign(count, thread());
  for (size_t i = 0; i < count; i++)
    threads[i].index =
        dim3((unsigned)(i % block.x), (unsigned)(i / block.x % block.y), (unsigned)(i / block.x / block.y));
  std::vector<uint64_t> block_order(blocks);
  for (uint64_t i = 0; i < blocks; i++) block_order[i] = i;
  if (!in_order())
    for (uint64_t i = blocks; i > 1; i--) std::swap(block_order[i - 1], block_order[draw(i)]);
  for (uint64_t b : block_order) {
    here.block = dim3((unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y), (unsigned)(b / grid.x / grid.y));
    for (thread &t : threads) t.now = FRESH;
    guarded(&dynamic, shared);
    run_block();
    count_block();
    current = -1;
    check_and_drop(&dynamic, "its dynamic shared memory");
    for (auto &entry : arrays) check_and_drop(&entry.second, "an array in shared memory");
    arrays.clear();
    if (stopping) break;
  }
  if (stopping) { /* abandoned threads leave their stacks where they were */
    idle.clear();
    for (fiber *f : everyone) {
      ASAN_UNPOISON_MEMORY_REGION(f->stack, STACK);
      prepare(f), idle.push_back(f);
    }
  }
}

} // namespace simt
