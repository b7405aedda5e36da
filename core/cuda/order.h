/* order.h - elements in the library's one order: by value, equal ones by position, NaN after everything.
 *
 * An element becomes an entry, whole numbers that compare as the elements do, its position last. No two entries are
 * equal, so that any way of sorting or selecting gives the same result. Blocks of 256 threads sort in shared memory. */
#ifndef PG_ORDER_H
#define PG_ORDER_H
#include "cuda.h"

/* ---- keys: greater as the value is; the other way round when descending, NaN being last in both ----------------- */

static __device__ __forceinline__ uint32_t pg_key(float x, bool descending) {
  if (x != x) return 0xffffffffu;
  uint32_t bits = __float_as_uint(x == 0 ? 0.0f : x); /* -0 is 0 */
  bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  return descending ? ~bits : bits;
}
static __device__ __forceinline__ uint64_t pg_key(double x, bool descending) {
  if (x != x) return ~(uint64_t)0;
  uint64_t bits = (uint64_t)__double_as_longlong(x == 0 ? 0.0 : x);
  bits = bits >> 63 ? ~bits : bits | (uint64_t)1 << 63;
  return descending ? ~bits : bits;
}
static __device__ __forceinline__ uint32_t pg_key(int32_t x, bool descending) {
  uint32_t bits = (uint32_t)x ^ 0x80000000u;
  return descending ? ~bits : bits;
}
static __device__ __forceinline__ uint32_t pg_key(uint8_t x, bool descending) {
  return descending ? ~(uint32_t)x : (uint32_t)x;
}

/* The value that a descending key was made from (a NaN, if it was one). */
static __device__ __forceinline__ float pg_unkey_descending(uint32_t key) {
  uint32_t bits = ~key;
  if (key == 0xffffffffu) return NAN;
  return __uint_as_float(bits >> 31 ? bits & 0x7fffffffu : ~bits);
}
static __device__ __forceinline__ double pg_unkey_descending(uint64_t key) {
  uint64_t bits = ~key, sign = (uint64_t)1 << 63;
  if (key == ~(uint64_t)0) return NAN;
  return __longlong_as_double((long long)(bits & sign ? bits & ~sign : ~bits));
}

/* ---- entries: memory of all ones is the one that comes after every element -------------------------------------- */

struct pg_entry32 { /* a key of 32 bits above the position */
  uint64_t both;
  typedef uint32_t key_type;
  __device__ __forceinline__ bool before(const pg_entry32 &o) const { return both < o.both; }
  __device__ __forceinline__ uint32_t key(void) const { return (uint32_t)(both >> 32); }
  __device__ __forceinline__ int32_t place(void) const { return (int32_t)(uint32_t)both; }
  static __device__ __forceinline__ pg_entry32 of(uint32_t key, int64_t at) {
    return {(uint64_t)key << 32 | (uint32_t)at};
  }
};
struct alignas(16) pg_entry64 {
  uint64_t high, at;
  typedef uint64_t key_type;
  __device__ __forceinline__ bool before(const pg_entry64 &o) const {
    return high < o.high || (high == o.high && at < o.at);
  }
  __device__ __forceinline__ uint64_t key(void) const { return high; }
  __device__ __forceinline__ int32_t place(void) const { return (int32_t)at; }
  static __device__ __forceinline__ pg_entry64 of(uint64_t key, int64_t at) { return {key, (uint64_t)at}; }
};
template <class E> static __device__ __forceinline__ E pg_last_entry(void) {
  return E::of((typename E::key_type) ~(uint64_t)0, ~(int64_t)0);
}

template <class T> struct pg_entry_for { typedef pg_entry32 type; };
template <> struct pg_entry_for<double> { typedef pg_entry64 type; };

/* ---- a block sorts: bitonic networks; every size a power of two, shared memory settled before and after --------- */

template <class E> static __device__ __forceinline__ void pg_exchange(E *e, int lo, int hi) {
  E a = e[lo], b = e[hi];
  if (b.before(a)) e[lo] = b, e[hi] = a;
}

/* Runs of 2 gap entries that rise and then fall, or fall and then rise, become sorted. */
template <class E> static __device__ __forceinline__ void pg_block_settle(E *e, int n, int gap) {
  for (; gap > 0; gap /= 2) {
    for (int t = threadIdx.x; t < n / 2; t += PG_BLOCK) {
      int lo = 2 * t - (t & (gap - 1));
      pg_exchange(e, lo, lo + gap);
    }
    __syncthreads();
  }
}

/* Each run of e[0..n-1] sorted by itself. */
template <class E> static __device__ __forceinline__ void pg_block_sort(E *e, int n, int run) {
  for (int size = 2; size <= run; size *= 2) {
    for (int t = threadIdx.x; t < n / 2; t += PG_BLOCK) { /* the first half against the second from its end */
      int lo = 2 * t - (t & (size / 2 - 1));
      pg_exchange(e, lo, lo ^ (size - 1));
    }
    __syncthreads();
    pg_block_settle(e, n, size / 4);
  }
}

/* The first k of each run, sorted: run r's stand at e[r k ..]. Two sorted lists of k hold their first k in the smaller
 * of one's i-th and the other's i-th from its end. n at most MOST. */
template <int MOST, class E> static __device__ __forceinline__ void pg_block_first(E *e, int n, int run, int k) {
  pg_block_sort(e, n, k);
  for (; run > k; run /= 2) {
    n /= 2;
    E kept[MOST / 2 / PG_BLOCK];
#pragma unroll
    for (int i = 0; i < MOST / 2 / PG_BLOCK; i++) {
      int t = threadIdx.x + i * PG_BLOCK, lo = 2 * t - (t & (k - 1));
      if (t < n) kept[i] = e[lo].before(e[lo ^ (2 * k - 1)]) ? e[lo] : e[lo ^ (2 * k - 1)];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < MOST / 2 / PG_BLOCK; i++) {
      int t = threadIdx.x + i * PG_BLOCK;
      if (t < n) e[t] = kept[i];
    }
    __syncthreads();
    pg_block_settle(e, n, k / 2);
  }
}

/* e becomes the first k of e and other, each sorted and of k. */
template <class E> static __device__ __forceinline__ void pg_block_join(E *e, const E *other, int k) {
  for (int i = threadIdx.x; i < k; i += PG_BLOCK)
    if (other[k - 1 - i].before(e[i])) e[i] = other[k - 1 - i];
  __syncthreads();
  pg_block_settle(e, k, k / 2);
}

static __host__ __device__ __forceinline__ int pg_power_of_two(int64_t n) { /* the least that is not less */
  int p = 1;
  while (p < n) p *= 2;
  return p;
}

/* ---- order.cu: lines next to one another, sorted or their first k ----------------------------------------------- */

template <class T> struct pg_lines {
  int64_t lines, n, k, descending;
  const T *x;     /* (lines, n) */
  T *values;      /* (lines, k) */
  int32_t *index; /* (lines, k) */
  __device__ __forceinline__ void put(int64_t line, int64_t i, int32_t place) const {
    values[line * k + i] = x[line * n + place], index[line * k + i] = place;
  }
};
template <class T> int pg_cuda_order(const pg_call *c, const pg_lines<T> &all); /* lines and k at least 1 */

#endif
