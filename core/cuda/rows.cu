/* rows.cu - values picked, and values added, where an index says: what index, embedding and gather share.
 *
 * Picking is a copy. Adding must not depend on which thread comes first, and every destination takes its sources in the
 * order of the index, as on the host. Two ways:
 *
 *   walk   a thread takes one column of (outer, n, inner) and goes through its m sources. Columns never meet.
 *   sort   keys (destination, source) are sorted; the thread at the first key of a destination adds what the run names.
 *          A key is met once, so that any right sort gives one result; a bitonic one needs no counting and no scan. */
#include "cuda.h"

/* ---- picking ---- */

/* U: the widest unit that the rows are made of; `width` of them a row. */
template <class U>
static __global__ void pick_kernel(pg_fault fault, int64_t total, int64_t n, int64_t count, int64_t width,
                                   const int32_t *index, const U *x, U *y) {
  int64_t e = pg_thread();
  if (e >= total) return;
  int64_t row = e / width, i = row % count, at = index[i];
  U value = {};
  if (pg_in_range(fault, i, at, n)) value = x[(row / count * n + at) * width + e % width];
  y[e] = value;
}

template <class U>
static int pick(const pg_call *c, pg_fault fault, int64_t outer, int64_t n, int64_t count, int64_t bytes,
                const int32_t *index, const void *x, void *y) {
  int64_t width = bytes / (int64_t)sizeof(U), total = outer * count * width;
  PG_LAUNCH(c, pick_kernel<U>, pg_blocks(total), PG_BLOCK, fault, total, n, count, width, index, (const U *)x, (U *)y);
  return PG_OK;
}

int pg_cuda_pick_rows(const pg_call *c, pg_fault fault, int64_t outer, int64_t n, int64_t count, int64_t bytes,
                      const int32_t *index, const void *x, void *y) {
  if (outer * count * bytes == 0) return PG_OK;
  uintptr_t either = (uintptr_t)x | (uintptr_t)y | (uintptr_t)bytes;
  if (either % 16 == 0) return pick<pg_pack<float>>(c, fault, outer, n, count, bytes, index, x, y);
  if (either % 8 == 0) return pick<double>(c, fault, outer, n, count, bytes, index, x, y);
  if (either % 4 == 0) return pick<float>(c, fault, outer, n, count, bytes, index, x, y);
  return pick<uint8_t>(c, fault, outer, n, count, bytes, index, x, y);
}

/* ---- keys: destination << bits | source, in order ---- */

enum { TILE = 2048 }; /* keys that a block sorts in shared memory, two a thread */
#define NO_KEY UINT64_MAX

typedef struct order { /* of the sources of (outer, n, inner), which are (outer, m, inner) */
  int64_t outer, n, m, inner;
  int32_t bits; /* that a source's number takes */
} order;

static __global__ void key_kernel(pg_fault fault, order o, int64_t room, const int32_t *index, uint64_t *keys) {
  int64_t e = pg_thread();
  if (e >= room) return;
  uint64_t key = NO_KEY;
  if (e < o.outer * o.m * o.inner && pg_in_range(fault, e, index[e], o.n)) {
    int64_t to = (e / (o.m * o.inner) * o.n + index[e]) * o.inner + e % o.inner;
    key = (uint64_t)to << o.bits | (uint64_t)e;
  }
  keys[e] = key;
}

/* Bitonic: runs of `run` keys, each half of which rises or falls, become sorted ones; those at an odd place fall. */
static __device__ __forceinline__ void exchange(uint64_t &low, uint64_t &high, bool rising) {
  uint64_t a = low, b = high;
  if ((a > b) == rising) low = b, high = a;
}

/* All of the steps that stay within a tile, for runs of first, 2 first, .. last. The keys are a multiple of 2 blockDim.
 */
static __global__ void sort_tile_kernel(int64_t first, int64_t last, uint64_t *keys) {
  PG_SHARED(uint64_t, tile, [TILE]);
  int threads = blockDim.x, t = threadIdx.x;
  int64_t begin = (int64_t)blockIdx.x * 2 * threads;
  tile[t] = keys[begin + t], tile[t + threads] = keys[begin + t + threads];
  for (int64_t run = first; run <= last; run *= 2) {
    for (int step = (int)PG_MIN(run / 2, (int64_t)threads); step > 0; step /= 2) {
      __syncthreads();
      int low = 2 * t - (t & (step - 1));
      exchange(tile[low], tile[low + step], ((begin + low) & run) == 0);
    }
  }
  __syncthreads();
  keys[begin + t] = tile[t], keys[begin + t + threads] = tile[t + threads];
}

/* One step between keys that are further apart. */
static __global__ void sort_step_kernel(int64_t pairs, int64_t run, int64_t step, uint64_t *keys) {
  int64_t t = pg_thread(), low = 2 * t - (t & (step - 1));
  if (t < pairs) exchange(keys[low], keys[low + step], (low & run) == 0);
}

static int sort(const pg_call *c, int64_t room, uint64_t *keys) { /* room: a power of two, at least 2 */
  int64_t tile = PG_MIN(room, (int64_t)TILE);
  unsigned blocks = (unsigned)(room / tile), threads = (unsigned)(tile / 2);
  PG_LAUNCH(c, sort_tile_kernel, blocks, threads, (int64_t)2, tile, keys);
  for (int64_t run = 2 * tile; run <= room; run *= 2) {
    for (int64_t step = run / 2; step >= tile; step /= 2)
      PG_LAUNCH(c, sort_step_kernel, pg_blocks(room / 2), PG_BLOCK, room / 2, run, step, keys);
    PG_LAUNCH(c, sort_tile_kernel, blocks, threads, run, run, keys);
  }
  return PG_OK;
}

/* ---- adding ---- */

/* Rows of `width` packs of N elements, for each of `repeats` layers `to_layer` and `from_layer` packs apart: the thread
 * of the first key of a run goes through the run, four rows under way at a time. */
template <class T, int N> struct alignas(N * sizeof(T)) lanes { T v[N]; };

template <class T, int N>
static __global__ void sum_kernel(int64_t total, int64_t sources, int32_t bits, int64_t width, int64_t to_layer,
                                  int64_t from_layer, const uint64_t *keys, const lanes<T, N> *from, lanes<T, N> *to) {
  enum { AHEAD = 4 };
  int64_t e = pg_thread();
  if (e >= total) return;
  int64_t column = e % width, row = e / width, i = row % sources, layer = row / sources;
  uint64_t key = keys[i], mask = ((uint64_t)1 << bits) - 1;
  if (key == NO_KEY || (i > 0 && keys[i - 1] >> bits == key >> bits)) return;
  to += layer * to_layer + (int64_t)(key >> bits) * width + column;
  from += layer * from_layer + column;
  lanes<T, N> sum = *to;
  for (bool more = true; more; i += AHEAD) {
    lanes<T, N> term[AHEAD] = {};
    bool taken[AHEAD];
#pragma unroll
    for (int q = 0; q < AHEAD; q++) {
      uint64_t next = i + q < sources ? keys[i + q] : NO_KEY;
      taken[q] = next != NO_KEY && next >> bits == key >> bits;
      if (taken[q]) term[q] = from[(int64_t)(next & mask) * width];
    }
#pragma unroll
    for (int q = 0; q < AHEAD; q++)
#pragma unroll
      for (int k = 0; k < N; k++)
        if (taken[q]) sum.v[k] += term[q].v[k];
    more = taken[AHEAD - 1];
  }
  *to = sum;
}

/* Sorts the sources, then adds rows of `width` elements in `layers` layers. */
template <class T>
static int add_sorted(const pg_call *c, pg_fault fault, order o, int64_t layers, int64_t width, const int32_t *index,
                      const T *from, T *to) {
  int64_t sources = o.outer * o.m * o.inner, places = o.outer * o.n * o.inner, room = 2;
  while (room < sources) room *= 2;
  pg_scratch keys((size_t)room * sizeof(uint64_t));
  if (keys.status) return keys.status;
  PG_LAUNCH(c, key_kernel, pg_blocks(room), PG_BLOCK, fault, o, room, index, keys.at<uint64_t>());
  PG_TRY(sort(c, room, keys.at<uint64_t>()));
  enum { N = pg_pack<T>::N };
  if (pg_packable<T>(width, from, to)) {
    int64_t packs = width / N, total = layers * sources * packs;
    PG_LAUNCH(c, (sum_kernel<T, N>), pg_blocks(total), PG_BLOCK, total, sources, o.bits, packs, places * packs,
              sources * packs, keys.at<uint64_t>(), (const lanes<T, N> *)from, (lanes<T, N> *)to);
  } else {
    int64_t total = layers * sources * width;
    PG_LAUNCH(c, (sum_kernel<T, 1>), pg_blocks(total), PG_BLOCK, total, sources, o.bits, width, places * width,
              sources * width, keys.at<uint64_t>(), (const lanes<T, 1> *)from, (lanes<T, 1> *)to);
  }
  return PG_OK;
}

/* Whether destination and source fit one key; sets the bits of a source. */
static bool fits(order *o) {
  o->bits = 1;
  while (o->bits < 40 && (int64_t)1 << o->bits < o->outer * o->m * o->inner) o->bits++;
  return o->outer * o->n * o->inner < (int64_t)1 << (63 - o->bits);
}

template <class T>
int pg_cuda_add_rows(const pg_call *c, pg_fault fault, int64_t outer, int64_t n, int64_t count, int64_t width,
                     const int32_t *index, const T *from, T *to) {
  order o = {1, n, count, 1, 0};
  if (outer * count * width == 0) return PG_OK;
  if (!fits(&o)) return pg_op_fail(c, "more rows than the device can put in order");
  return add_sorted(c, fault, o, outer, width, index, from, to);
}

template <class T>
static __global__ void walk_kernel(pg_fault fault, order o, const int32_t *index, const T *from, T *to) {
  int64_t column = pg_thread(), layer = column / o.inner, k = column % o.inner;
  if (column >= o.outer * o.inner) return;
  for (int64_t i = 0; i < o.m; i++) {
    int64_t e = (layer * o.m + i) * o.inner + k, at = index[e];
    if (pg_in_range(fault, e, at, o.n)) to[(layer * o.n + at) * o.inner + k] += from[e];
  }
}

template <class T>
int pg_cuda_add_at(const pg_call *c, pg_fault fault, int64_t outer, int64_t n, int64_t m, int64_t inner,
                   const int32_t *index, const T *from, T *to) {
  order o = {outer, n, m, inner, 0};
  int64_t columns = outer * inner;
  if (columns * m == 0) return PG_OK;
  if (fits(&o) && m > 256 && columns < 4096) /* too few threads, each with too much to do */
    return add_sorted(c, fault, o, 1, 1, index, from, to);
  PG_LAUNCH(c, walk_kernel<T>, pg_blocks(columns), PG_BLOCK, fault, o, index, from, to);
  return PG_OK;
}

#define ADD(T)                                                                                                         \
  template int pg_cuda_add_rows<T>(const pg_call *, pg_fault, int64_t, int64_t, int64_t, int64_t, const int32_t *,     \
                                   const T *, T *);                                                                    \
  template int pg_cuda_add_at<T>(const pg_call *, pg_fault, int64_t, int64_t, int64_t, int64_t, const int32_t *,       \
                                 const T *, T *);
ADD(float)
ADD(double)
