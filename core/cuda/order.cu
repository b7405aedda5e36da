/* order.cu - lines in order, all of them or the first k, on entries (order.h).
 *
 * Lines of up to 2,048 are sorted in shared memory, several to a block where they are short. Of longer ones each piece
 * of 2,048 is. The first k, for k up to 1,024, are then taken from the pieces' first k, round by round, so that all but
 * the first round see little; otherwise passes merge neighbouring runs, a block for 2,048 places of the result, for
 * which it looks up where its stretches of the two runs begin. */
#include "order.h"

enum { PIECE = 2048, FEW = 1024, ROOM = 1 << 28 }; /* ROOM: bytes of entries at a time, or one line's */

/* ---- pieces ----------------------------------------------------------------------------------------------------- */

/* A block takes PIECE entries: one piece of a line, or several whole lines, each run of a power of two. The first
 * `keep` of each go to `to`, or where there is no `to` the first k to their final place. They come from x or, in later
 * rounds, from `from`, (lines, n). */
template <class T, class E>
static __global__ void pieces_kernel(pg_lines<T> s, int64_t n, int64_t pieces, int run, int keep, const E *from,
                                     E *to) {
  PG_SHARED(E, e, [PIECE]);
  int64_t first = (int64_t)blockIdx.x * (PIECE / run); /* in pieces of all lines */
  for (int at = threadIdx.x; at < PIECE; at += PG_BLOCK) {
    int64_t piece = first + at / run, line = piece / pieces, i = piece % pieces * run + at % run;
    if (line >= s.lines || i >= n)
      e[at] = pg_last_entry<E>();
    else
      e[at] = from ? from[line * n + i] : E::of(pg_key(s.x[line * n + i], s.descending != 0), i);
  }
  __syncthreads();
  pg_block_first<PIECE>(e, PIECE, run, keep);
  for (int at = threadIdx.x; at < PIECE / run * keep; at += PG_BLOCK) {
    int64_t piece = first + at / keep, i = at % keep;
    if (piece >= s.lines * pieces) continue;
    if (to)
      to[piece * keep + i] = e[at];
    else if (i < s.k)
      s.put(piece, i, e[at].place());
  }
}

/* ---- merging ---------------------------------------------------------------------------------------------------- */

/* How many of the first d of the two sorted lists together are of a. */
template <class E>
static __device__ __forceinline__ int64_t share(int64_t d, const E *a, int64_t na, const E *b, int64_t nb) {
  int64_t lo = d > nb ? d - nb : 0, hi = PG_MIN(d, na);
  while (lo < hi) {
    int64_t mid = (lo + hi) / 2;
    if (a[mid].before(b[d - 1 - mid]))
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo;
}

/* Sorted runs of `width` become runs of 2 width; lines of n, a multiple of PIECE. */
template <class E> static __global__ void merge_kernel(int64_t n, int64_t width, const E *from, E *to) {
  enum { EACH = PIECE / PG_BLOCK };
  PG_SHARED(E, e, [PIECE]);
  PG_SHARED(int64_t, cut, [2]);
  int64_t begin = (int64_t)blockIdx.x * PIECE, line = begin / n * n,
          lo = line + (begin - line) / (2 * width) * 2 * width;
  int64_t na = PG_MIN(width, line + n - lo), nb = PG_MIN(width, line + n - lo - na), d = begin - lo;
  const E *a = from + lo, *b = a + na;
  if (threadIdx.x < 2) cut[threadIdx.x] = share(d + threadIdx.x * PIECE, a, na, b, nb);
  __syncthreads();
  int64_t a0 = cut[0], b0 = d - a0;
  int of_a = (int)(cut[1] - a0), of_b = PIECE - of_a;
  for (int at = threadIdx.x; at < PIECE; at += PG_BLOCK) e[at] = at < of_a ? a[a0 + at] : b[b0 + at - of_a];
  __syncthreads();
  E mine[EACH];
  int i = (int)share((int64_t)threadIdx.x * EACH, e, of_a, e + of_a, of_b), j = of_a + threadIdx.x * EACH - i;
#pragma unroll
  for (int t = 0; t < EACH; t++) mine[t] = j == PIECE || (i < of_a && e[i].before(e[j])) ? e[i++] : e[j++];
  __syncthreads();
#pragma unroll
  for (int t = 0; t < EACH; t++) e[threadIdx.x * EACH + t] = mine[t];
  __syncthreads();
  for (int at = threadIdx.x; at < PIECE; at += PG_BLOCK) to[begin + at] = e[at];
}

template <class T, class E> static __global__ void put_kernel(pg_lines<T> s, int64_t n, const E *from) {
  int64_t i = pg_thread();
  if (i < s.lines * s.k) s.put(i / s.k, i % s.k, from[i / s.k * n + i % s.k].place());
}

/* ---- lines ------------------------------------------------------------------------------------------------------ */

/* Rounds: each piece's first `keep` are the next round's line, until one piece holds a line. */
template <class T, class E> static int first_of_lines(const pg_call *c, const pg_lines<T> &s, E *room, E *other) {
  int keep = pg_power_of_two(s.k);
  int64_t n = s.n;
  const E *from = NULL;
  for (; n > PIECE;) {
    int64_t pieces = (n + PIECE - 1) / PIECE;
    PG_LAUNCH(c, (pieces_kernel<T, E>), (unsigned)(s.lines * pieces), PG_BLOCK, s, n, pieces, (int)PIECE, keep, from,
              room);
    E *spare = other;
    from = room, n = pieces * keep, other = room, room = spare;
  }
  int run = PG_MAX(pg_power_of_two(n), keep);
  PG_LAUNCH(c, (pieces_kernel<T, E>), pg_blocks(s.lines, PIECE / run), PG_BLOCK, s, n, (int64_t)1, run, keep, from,
            (E *)NULL);
  return PG_OK;
}

template <class T, class E> static int merge_lines(const pg_call *c, const pg_lines<T> &s, E *room, E *other) {
  int64_t pieces = (s.n + PIECE - 1) / PIECE, n = pieces * PIECE;
  PG_LAUNCH(c, (pieces_kernel<T, E>), (unsigned)(s.lines * pieces), PG_BLOCK, s, s.n, pieces, (int)PIECE, (int)PIECE,
            (const E *)NULL, room);
  for (int64_t width = PIECE; width < n; width *= 2) {
    PG_LAUNCH(c, merge_kernel<E>, (unsigned)(s.lines * pieces), PG_BLOCK, n, width, room, other);
    E *t = room;
    room = other, other = t;
  }
  PG_LAUNCH(c, (put_kernel<T, E>), pg_blocks(s.lines * s.k), PG_BLOCK, s, n, room);
  return PG_OK;
}

template <class T> int pg_cuda_order(const pg_call *c, const pg_lines<T> &all) {
  typedef typename pg_entry_for<T>::type E;
  if (all.n <= PIECE) return first_of_lines<T, E>(c, all, NULL, NULL);
  bool few = all.k <= FEW;
  int64_t pieces = (all.n + PIECE - 1) / PIECE, entries = pieces * (few ? pg_power_of_two(all.k) : (int)PIECE);
  int64_t most = PG_MAX(1, PG_MIN(all.lines, ROOM / (2 * (int64_t)sizeof(E) * entries)));
  pg_scratch room(2 * sizeof(E) * (size_t)(most * entries));
  if (room.status) return room.status;
  for (int64_t from = 0; from < all.lines; from += most) {
    pg_lines<T> s = all;
    s.lines = PG_MIN(most, all.lines - from);
    s.x += from * s.n, s.values += from * s.k, s.index += from * s.k;
    E *one = room.at<E>(), *two = one + most * entries;
    PG_TRY((few ? first_of_lines<T, E>(c, s, one, two) : merge_lines<T, E>(c, s, one, two)));
  }
  return PG_OK;
}

template int pg_cuda_order<float>(const pg_call *, const pg_lines<float> &);
template int pg_cuda_order<double>(const pg_call *, const pg_lines<double> &);
template int pg_cuda_order<int32_t>(const pg_call *, const pg_lines<int32_t> &);
template int pg_cuda_order<uint8_t>(const pg_call *, const pg_lines<uint8_t> &);
