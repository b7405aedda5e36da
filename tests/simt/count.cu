/* count.cu - what kernels move: bytes of global memory by kernel, and 32-byte sectors by warp and line of source.
 *
 * Part of one build alone, build/simt-count/libperigee_cuda_sim.so. There the kernel files are compiled with
 * -fsanitize=thread, which puts a call before every load and store, and linked without that sanitizer's library: the
 * calls arrive here. What lies in the device's range of addresses is global memory; shared memory and local variables
 * are let pass.
 *
 * A warp's lanes run one after the other, so an access is put together afterwards: the n-th time that each lane of a
 * warp comes by one place in the code is one access of the warp. Of it are counted the sectors that it touches, each
 * once, and the fewest that could hold the bytes it wants. This is the traffic that a kernel asks for, before any
 * cache: a sector that two warps read counts twice. Beside it stands what a launch touches at all, each sector once:
 * what would reach memory if the cache held everything. */
#include "simt.h"
#include <algorithm>
#include <dlfcn.h>
#include <map>
#include <unordered_map>
#include <vector>

extern "C" {

struct simt_count_row { /* a kernel in one launch shape, or a library call; sums over its launches */
  const char *name;     /* as the launch spells it */
  uint64_t at;          /* its first instruction, from the start of this library; 0: no kernel */
  uint64_t block, shared, launches, blocks;
  uint64_t read, written;                   /* bytes asked for, in whole sectors */
  uint64_t distinct_read, distinct_written; /* each sector once a launch */
  double flops;                             /* of products; kernels' arithmetic is not seen here */
};

struct simt_count_site {              /* a load or store in the code of a row's kernel */
  uint64_t row, at;                   /* at: behind the call that stands before it, from the start of this library */
  uint64_t accesses, touched, needed; /* of warps; sectors */
};

} /* extern "C" */

namespace simt {

enum : uint64_t { SECTOR = 32 };

struct event { /* one lane's access */
  uint64_t address;
  uint32_t site, bytes;
};

struct piece { /* a sector's part of a warp's access */
  uint64_t access, sector;
  uint32_t bytes; /* a bit each */
  bool operator<(const piece &p) const { return access != p.access ? access < p.access : sector < p.sector; }
};

struct local_site { /* of the kernel that runs */
  uint64_t number;  /* among all */
  bool writes;
};

static std::vector<simt_count_row> rows;
static std::vector<simt_count_site> sites;
static std::map<std::vector<uint64_t>, uint64_t> row_of, site_of;

static bool counting;
static uint64_t row;                                       /* the kernel that runs */
static std::unordered_map<const void *, uint32_t> here_of; /* place in the code -> its sites */
static std::vector<local_site> here_sites;
static std::vector<std::vector<event>> lanes;          /* what each thread of the block has done */
static std::unordered_map<uint64_t, uint64_t> seen[2]; /* page -> its sectors read, written by this launch */

static uint64_t offset(const void *p) {
  Dl_info library;
  return p && dladdr((void *)count_begin, &library) ? (uint64_t)((const char *)p - (const char *)library.dli_fbase) : 0;
}

static uint64_t find_row(const char *name, const void *kernel, uint64_t block, uint64_t shared) {
  auto found = row_of.insert({{(uint64_t)name, (uint64_t)kernel, block, shared}, rows.size()});
  if (found.second) rows.push_back({name, offset(kernel), block, shared, 0, 0, 0, 0, 0, 0, 0});
  return found.first->second;
}

static uint32_t find_site(const void *pc, bool writes) {
  auto it = here_of.find(pc);
  if (it != here_of.end()) return it->second;
  auto found = site_of.insert({{row, (uint64_t)pc}, sites.size()});
  if (found.second) sites.push_back({row, offset(pc), 0, 0, 0});
  here_sites.push_back({found.first->second, writes});
  return here_of[pc] = (uint32_t)here_sites.size() - 1;
}

static void note(const void *pc, const void *p, size_t bytes, bool writes) {
  if (!counting || !in_range(p)) return;
  dim3 t = here.thread, size = here.block_size;
  lanes[t.x + size.x * (t.y + size.y * t.z)].push_back({(uint64_t)p, find_site(pc, writes), (uint32_t)bytes});
}

void count_begin(const char *name, const void *kernel, dim3 block, size_t shared) {
  row = find_row(name, kernel, (uint64_t)block.x * block.y * block.z, shared);
  rows[row].launches++;
  lanes.resize(rows[row].block);
  here_of.clear(), here_sites.clear(), seen[0].clear(), seen[1].clear();
  counting = true;
}

void count_end(void) {
  counting = false;
  for (auto &lane : lanes) lane.clear(); /* of a block that a fault has ended */
}

/* One access of a warp: its sectors, in order, each perhaps several times. */
static void count_access(const piece *from, const piece *to) {
  const local_site *at = &here_sites[from->access >> 32];
  uint64_t touched = 0, bytes = 0, fresh = 0;
  while (from < to) {
    uint64_t sector = from->sector;
    uint32_t wanted = 0;
    for (; from < to && from->sector == sector; from++) wanted |= from->bytes;
    touched++, bytes += (uint64_t)__builtin_popcount(wanted);
    uint64_t *page = &seen[at->writes][sector / 64], bit = (uint64_t)1 << sector % 64;
    fresh += !(*page & bit), *page |= bit;
  }
  simt_count_site *s = &sites[at->number];
  s->accesses++, s->touched += touched, s->needed += (bytes + SECTOR - 1) / SECTOR;
  (at->writes ? rows[row].written : rows[row].read) += touched * SECTOR;
  (at->writes ? rows[row].distinct_written : rows[row].distinct_read) += fresh * SECTOR;
}

void count_block(void) {
  std::vector<piece> pieces;
  std::vector<uint32_t> times;
  rows[row].blocks++;
  for (size_t warp = 0; warp < lanes.size(); warp += 32) {
    pieces.clear();
    for (size_t k = warp; k < std::min(warp + 32, lanes.size()); k++) {
      times.assign(here_sites.size(), 0);
      for (const event &e : lanes[k]) {
        uint64_t access = (uint64_t)e.site << 32 | times[e.site]++;
        for (uint64_t a = e.address, end = e.address + e.bytes; a < end;) {
          uint64_t next = std::min(end, (a / SECTOR + 1) * SECTOR);
          uint32_t bits = (uint32_t)((((uint64_t)1 << (next - a)) - 1) << a % SECTOR);
          pieces.push_back({access, a / SECTOR, bits});
          a = next;
        }
      }
      lanes[k].clear();
    }
    std::sort(pieces.begin(), pieces.end());
    for (size_t from = 0, to; from < pieces.size(); from = to) {
      for (to = from; to < pieces.size() && pieces[to].access == pieces[from].access;) to++;
      count_access(&pieces[from], &pieces[0] + to);
    }
  }
}

void count_library(const char *name, uint64_t read, uint64_t written, double flops) {
  simt_count_row *r = &rows[find_row(name, NULL, 0, 0)];
  r->launches++, r->flops += flops;
  r->read += read, r->written += written, r->distinct_read += read, r->distinct_written += written;
}

} // namespace simt

using namespace simt;

/* ---- what tests/cuda/report.lua reads --------------------------------------------------------------------------- */

extern "C" void simt_count_clear(void) { rows.clear(), sites.clear(), row_of.clear(), site_of.clear(); }

extern "C" uint64_t simt_count_rows(const simt_count_row **out) { return *out = rows.data(), rows.size(); }

extern "C" uint64_t simt_count_sites(const simt_count_site **out) { return *out = sites.data(), sites.size(); }

/* ---- what -fsanitize=thread calls ------------------------------------------------------------------------------- */

#define HERE __builtin_return_address(0)
#define CALLS(n)                                                                                                       \
  extern "C" void __tsan_read##n(void *p) { note(HERE, p, n, false); }                                                 \
  extern "C" void __tsan_write##n(void *p) { note(HERE, p, n, true); }                                                 \
  extern "C" void __tsan_unaligned_read##n(void *p) { note(HERE, p, n, false); }                                       \
  extern "C" void __tsan_unaligned_write##n(void *p) { note(HERE, p, n, true); }
CALLS(1)
CALLS(2)
CALLS(4)
CALLS(8)
CALLS(16)
extern "C" void __tsan_read_range(void *p, size_t bytes) { note(HERE, p, bytes, false); }
extern "C" void __tsan_write_range(void *p, size_t bytes) { note(HERE, p, bytes, true); }
extern "C" void __tsan_init(void) {}
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit(void) {}
extern "C" void __tsan_vptr_update(void **, void *) {}
extern "C" void __tsan_vptr_read(void **) {}
/* The guard of a variable that is made when first come by. */
extern "C" char __tsan_atomic8_load(const volatile char *p, int) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
