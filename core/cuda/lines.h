/* lines.h - lines of a tensor (outer, n, inner) along n, each held in the registers of the threads that share it, so
 * that an op that needs a whole line at once (softmax, layer_norm) reads memory once and writes it once.
 *
 * A kernel is written once, in terms of a class L:
 *
 *     L line(lines, L::which());
 *     if (line.absent()) return;                                 a whole warp without a line
 *     typename L::values v(line, x + line.first);                reads
 *     T sum = 0;
 *     line.each([&](int k, int64_t i) { sum += v(k, i); });      this thread's elements: i counts along n, k what it
 * holds sum = line.all(sum, T(0), pg_plus());                      over the line; each of its threads receives it
 *     line.write(y + line.first, [&](int k, int64_t i) { return v(k, i) / sum; });
 *     if (line.leads()) total[line.index] = sum;                 one thread of the line
 *
 * and launched through pg_with_lines, which picks L by the shape:
 *
 *     pg_row      inner = 1: a warp a line up to 1024 floats, a block beyond, 16 bytes a thread where alignment allows
 *     pg_column   inner > 1: a block takes up to 32 neighbouring lines, so that neighbouring threads read neighbours
 *
 * Lines that are too long for registers are streamed: `values` then reads memory at every use. */
#ifndef PG_LINES_H
#define PG_LINES_H
#include "cuda.h"

typedef struct pg_lines {
  int64_t outer, n, inner;
} pg_lines;

/* PACKS times 16 bytes a thread, as single elements if WIDTH is 1; no packs: streamed. */
template <class T_, int THREADS, int PACKS, int WIDTH> struct pg_row {
  typedef T_ T;
  enum { GROUPS = PACKS * pg_pack<T>::N / WIDTH, HELD = GROUPS * WIDTH, WARP = THREADS == PG_WARP };
  enum { BLOCK = WARP ? (int)PG_BLOCK : THREADS };
  int64_t index, first, count, n;
  int lane;

  static unsigned blocks(const pg_lines &lines) { return pg_blocks(lines.outer, BLOCK / THREADS); }
  static __device__ __forceinline__ int64_t which(void) { return WARP ? pg_thread() / PG_WARP : blockIdx.x; }

  __device__ __forceinline__ pg_row(const pg_lines &lines, int64_t at)
      : index(at), first(at * lines.n), count(lines.outer), n(lines.n), lane(threadIdx.x % THREADS) {}
  __device__ __forceinline__ bool absent(void) const { return WARP && index >= count; }
  __device__ __forceinline__ bool exists(void) const { return true; } /* for who is not absent */
  __device__ __forceinline__ bool leads(void) const { return lane == 0; }

  /* First element of the thread's group g. */
  __device__ __forceinline__ int at(int g) const { return (g * THREADS + lane) * WIDTH; }

  template <class F> __device__ __forceinline__ void each(F f) const {
    if (HELD > 0) {
#pragma unroll
      for (int g = 0; g < GROUPS; g++)
        if (at(g) < n)
#pragma unroll
          for (int j = 0; j < WIDTH; j++) f(g * WIDTH + j, (int64_t)at(g) + j);
    } else {
      for (int64_t i = lane; i < n; i += THREADS) f(0, i);
    }
  }

  struct values {
    T v[HELD > 0 ? (int)HELD : 1];
    const T *from;
    T absent;
    /* `from` is the line's first element; NULL: `absent` everywhere. */
    __device__ __forceinline__ values(const pg_row &line, const T *from, T absent = T(0)) : from(from), absent(absent) {
#pragma unroll
      for (int g = 0; g < GROUPS; g++) {
        int i = line.at(g);
        if (from && i < line.n) {
          if (WIDTH == 1) {
            v[g] = from[i];
          } else {
            pg_pack<T> p = pg_load(from + i);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) v[g * WIDTH + j] = p.v[j];
          }
        } else {
#pragma unroll
          for (int j = 0; j < WIDTH; j++) v[g * WIDTH + j] = absent;
        }
      }
    }
    __device__ __forceinline__ T operator()(int k, int64_t i) const {
      return HELD > 0 ? v[k] : from ? from[i] : absent;
    }
  };

  /* The same without holding them, for what write() needs once, such as weights: a pack is read at its first element.
   */
  struct passing {
    const T *from;
    T absent;
    pg_pack<T> now;
    __device__ __forceinline__ passing(const T *from, T absent) : from(from), absent(absent) {}
    __device__ __forceinline__ T operator()(int k, int64_t i) {
      if (WIDTH == 1 || !from) return from ? from[i] : absent;
      if (k % WIDTH == 0) now = pg_load(from + i);
      return now.v[k % WIDTH];
    }
  };

  template <class F> __device__ __forceinline__ void write(T *to, F f) const {
    if (WIDTH == 1) {
      each([&](int k, int64_t i) { to[i] = f(k, i); });
    } else {
#pragma unroll
      for (int g = 0; g < GROUPS; g++)
        if (at(g) < n) {
          pg_pack<T> p;
#pragma unroll
          for (int j = 0; j < WIDTH; j++) p.v[j] = f(g * WIDTH + j, (int64_t)at(g) + j);
          pg_store(to + at(g), p);
        }
    }
  }

  template <class Op> __device__ __forceinline__ T all(T x, T neutral, Op op) const {
    return WARP ? pg_warp_all(x, op) : pg_block_all(x, neutral, op);
  }
};

/* A block takes min(inner, 32) neighbouring lines at a time; its rows of threads share their elements, each thread
 * holding up to HELD_; none: streamed. */
template <class T_, int THREADS, int HELD_> struct pg_column {
  typedef T_ T;
  enum { HELD = HELD_, BLOCK = THREADS };
  int64_t index, first, n, step;
  int64_t own; /* n, or 0 for a thread without a line */
  int wide, rows, x, y;

  static unsigned blocks(const pg_lines &lines) {
    return pg_blocks(lines.outer * ((lines.inner + PG_WARP - 1) / PG_WARP), 1);
  }
  static __device__ __forceinline__ int64_t which(void) { return blockIdx.x; }

  __device__ __forceinline__ pg_column(const pg_lines &lines, int64_t tile) : n(lines.n), step(lines.inner) {
    int64_t tiles = (step + PG_WARP - 1) / PG_WARP;
    wide = step < PG_WARP ? (int)step : (int)PG_WARP, rows = THREADS / wide;
    x = (int)threadIdx.x % wide, y = (int)threadIdx.x / wide;
    int64_t column = tile % tiles * PG_WARP + x;
    index = tile / tiles * step + column, first = tile / tiles * n * step + column;
    there = y < rows && column < step, own = there ? n : 0;
  }
  __device__ __forceinline__ bool absent(void) const { return false; } /* the block's barriers need everyone */
  __device__ __forceinline__ bool exists(void) const { return there; }
  __device__ __forceinline__ bool leads(void) const { return there && y == 0; }

  template <class F> __device__ __forceinline__ void each(F f) const {
    if (HELD > 0) {
#pragma unroll
      for (int k = 0; k < HELD; k++)
        if (y + k * rows < own) f(k, (int64_t)y + k * rows);
    } else {
      for (int64_t i = y; i < own; i += rows) f(0, i);
    }
  }

  struct values {
    T v[HELD > 0 ? (int)HELD : 1];
    const T *from;
    int64_t step;
    __device__ __forceinline__ values(const pg_column &line, const T *from) : from(from), step(line.step) {
#pragma unroll
      for (int k = 0; k < HELD; k++) {
        int64_t i = line.y + k * line.rows;
        v[k] = i < line.own ? from[i * step] : T(0);
      }
    }
    __device__ __forceinline__ T operator()(int k, int64_t i) const { return HELD > 0 ? v[k] : from[i * step]; }
  };

  template <class F> __device__ __forceinline__ void write(T *to, F f) const {
    each([&](int k, int64_t i) { to[i * step] = f(k, i); });
  }

  template <class Op> __device__ __forceinline__ T all(T value, T neutral, Op op) const {
    (void)neutral;
    PG_SHARED(T, part, [THREADS]);
    __syncthreads(); /* the array may still be read by the call before */
    part[threadIdx.x] = value;
    for (int left = rows; left > 1;) { /* joins the lower half of the rows with the upper one */
      int half = (left + 1) / 2;
      __syncthreads();
      if (y + half < left) part[threadIdx.x] = op(part[threadIdx.x], part[threadIdx.x + half * wide]);
      left = half;
    }
    __syncthreads();
    return part[x];
  }

private:
  bool there;
};

/* ---- which L for which shape ------------------------------------------------------------------------------------ */

template <class L_> struct pg_kind { typedef L_ L; };

template <class T, int MOST, int WIDTH, class F> static int pg_with_width(const pg_lines &lines, F launch) {
  const int64_t packs = (lines.n + pg_pack<T>::N - 1) / pg_pack<T>::N;
  if (packs <= 32) return launch(pg_kind<pg_row<T, 32, 1, WIDTH>>());
  if (packs <= 32 * MOST / 2) return launch(pg_kind<pg_row<T, 32, MOST / 2, WIDTH>>());
  if (packs <= 32 * MOST) return launch(pg_kind<pg_row<T, 32, MOST, WIDTH>>());
  if (packs <= 256 * MOST / 2) return launch(pg_kind<pg_row<T, 256, MOST / 2, WIDTH>>());
  if (packs <= 256 * MOST) return launch(pg_kind<pg_row<T, 256, MOST, WIDTH>>());
  if (packs <= 512 * MOST) return launch(pg_kind<pg_row<T, 512, MOST, WIDTH>>());
  return launch(pg_kind<pg_row<T, 1024, 0, 1>>());
}

/* Calls launch(pg_kind<L>()), a generic lambda that returns a status, with the L for these lines. MOST: 8 for kernels
 * that hold one array of a line, 4 for those that hold more. packable: rows may be moved 16 bytes at a time. */
template <class T, int MOST, class F> static int pg_with_rows(const pg_lines &lines, bool packable, F launch) {
  return packable ? pg_with_width<T, MOST, pg_pack<T>::N>(lines, launch) : pg_with_width<T, MOST, 1>(lines, launch);
}

/* The same for any dimension. */
template <class T, int MOST, class F> static int pg_with_lines(const pg_lines &lines, bool packable, F launch) {
  const int N = pg_pack<T>::N;
  const int64_t wide = PG_MIN(lines.inner, (int64_t)PG_WARP), rows = PG_BLOCK / PG_MAX(wide, 1);
  if (lines.inner == 1) return pg_with_rows<T, MOST>(lines, packable, launch);
  if (lines.n <= rows * N) return launch(pg_kind<pg_column<T, PG_BLOCK, N>>());
  if (lines.n <= rows * N * MOST) return launch(pg_kind<pg_column<T, PG_BLOCK, N * MOST>>());
  if (lines.n <= 512 / wide * N * MOST * 3 / 4) return launch(pg_kind<pg_column<T, 512, N * MOST * 3 / 4>>());
  return launch(pg_kind<pg_column<T, 512, 0>>());
}

#endif
