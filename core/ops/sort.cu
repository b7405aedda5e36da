/* sort.cu - lines along a dimension in order, all of them or the first k (the order: sort.c), on entries (order.h).
 *
 * Lines of up to 2,048 are sorted in shared memory, several to a block where they are short. Of longer ones each piece
 * of 2,048 is. The first k, for k up to 1,024, are then taken from the pieces' first k, round by round, so that all but
 * the first round see little; otherwise passes merge neighbouring runs, a block for 2,048 places of the result, for
 * which it looks up where its stretches of the two runs begin. Lines that do not run along the last dimension are
 * turned first. */
#include "../cuda/order.h"

enum { PIECE = 2048, FEW = 1024, ROOM = 1 << 28 }; /* ROOM: bytes of entries at a time, or one line's */

/* ---- turning: (outer, rows, columns) becomes (outer, columns, rows)
 * -------------------------------------------------------- */

template <class T> static __global__ void turn_kernel(int64_t rows, int64_t columns, const T *from, T *to) {
  PG_SHARED(T, tile, [32][33]);
  int x = threadIdx.x % 32, y = threadIdx.x / 32;
  int64_t across = (columns + 31) / 32, down = (rows + 31) / 32, t = blockIdx.x;
  int64_t c0 = t % across * 32, r0 = t / across % down * 32, base = t / (across * down) * rows * columns;
  for (int i = y; i < 32; i += 8)
    if (r0 + i < rows && c0 + x < columns) tile[i][x] = from[base + (r0 + i) * columns + c0 + x];
  __syncthreads();
  for (int i = y; i < 32; i += 8)
    if (c0 + i < columns && r0 + x < rows) to[base + (c0 + i) * rows + r0 + x] = tile[x][i];
}

template <class T> static int turn(pg_call *c, int64_t outer, int64_t rows, int64_t columns, const T *from, T *to) {
  unsigned blocks = (unsigned)(outer * ((rows + 31) / 32) * ((columns + 31) / 32));
  PG_LAUNCH(c, turn_kernel<T>, blocks, PG_BLOCK, rows, columns, from, to);
  return PG_OK;
}

/* ---- pieces
 * ------------------------------------------------------------------------------------------------------------------ */

template <class T> struct lines_of { /* what is sorted, and where it goes: lines next to one another */
  int64_t lines, n, k, descending;
  const T *x;     /* (lines, n) */
  T *values;      /* (lines, k) */
  int32_t *index; /* (lines, k) */
  __device__ __forceinline__ void put(int64_t line, int64_t i, int32_t place) const {
    values[line * k + i] = x[line * n + place], index[line * k + i] = place;
  }
};

/* A block takes PIECE entries: one piece of a line, or several whole lines, each run of a power of two. The first
 * `keep` of each go to `to`, or where there is no `to` the first k to their final place. They come from x or, in later
 * rounds, from `from`, (lines, n). */
template <class T, class E>
static __global__ void pieces_kernel(lines_of<T> s, int64_t n, int64_t pieces, int run, int keep, const E *from,
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

/* ---- merging
 * -------------------------------------------------------------------------------------------------------------------
 */

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

template <class T, class E> static __global__ void put_kernel(lines_of<T> s, int64_t n, const E *from) {
  int64_t i = pg_thread();
  if (i < s.lines * s.k) s.put(i / s.k, i % s.k, from[i / s.k * n + i % s.k].place());
}

/* ---- lines next to one another
 * --------------------------------------------------------------------------------------------------- */

/* Rounds: each piece's first `keep` are the next round's line, until one piece holds a line. */
template <class T, class E> static int first_of_lines(pg_call *c, const lines_of<T> &s, E *room, E *other) {
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

template <class T, class E> static int merge_lines(pg_call *c, const lines_of<T> &s, E *room, E *other) {
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

template <class T> static int order_lines(pg_call *c, const lines_of<T> &all) {
  typedef typename pg_entry_for<T>::type E;
  if (all.n <= PIECE) return first_of_lines<T, E>(c, all, NULL, NULL);
  bool few = all.k <= FEW;
  int64_t pieces = (all.n + PIECE - 1) / PIECE, entries = pieces * (few ? pg_power_of_two(all.k) : (int)PIECE);
  int64_t most = PG_MAX(1, PG_MIN(all.lines, ROOM / (2 * (int64_t)sizeof(E) * entries)));
  pg_scratch room(2 * sizeof(E) * (size_t)(most * entries));
  if (room.status) return room.status;
  for (int64_t from = 0; from < all.lines; from += most) {
    lines_of<T> s = all;
    s.lines = PG_MIN(most, all.lines - from);
    s.x += from * s.n, s.values += from * s.k, s.index += from * s.k;
    E *one = room.at<E>(), *two = one + most * entries;
    PG_TRY((few ? first_of_lines<T, E>(c, s, one, two) : merge_lines<T, E>(c, s, one, two)));
  }
  return PG_OK;
}

/* ---- any dimension
 * ---------------------------------------------------------------------------------------------------------------- */

template <class T> static int order(pg_call *c, int64_t dimension, bool descending) {
  const pg_tensor *x = c->in[0];
  int32_t dim;
  int64_t outer, n, inner;
  PG_TRY(pg_dim(c, x, dimension, &dim));
  pg_around(x, dim, &outer, &n, &inner);
  int64_t k = c->out[0]->shape[dim], lines = outer * inner;
  if (!lines || !k) return PG_OK;
  lines_of<T> s = {lines, n, k, descending, PG_AT(const T, x), PG_AT(T, c->out[0]), PG_AT(int32_t, c->out[1])};
  if (inner == 1) return order_lines<T>(c, s);
  pg_scratch turned(sizeof(T) * (size_t)(lines * n)), values(sizeof(T) * (size_t)(lines * k)),
      index(sizeof(int32_t) * (size_t)(lines * k));
  if (turned.status || values.status || index.status) return PG_MAX(PG_MAX(turned.status, values.status), index.status);
  PG_TRY(turn<T>(c, outer, n, inner, s.x, turned.at<T>()));
  s.x = turned.at<T>(), s.values = values.at<T>(), s.index = index.at<int32_t>();
  PG_TRY(order_lines<T>(c, s));
  PG_TRY(turn<T>(c, outer, inner, k, s.values, PG_AT(T, c->out[0])));
  return turn<int32_t>(c, outer, inner, k, s.index, PG_AT(int32_t, c->out[1]));
}

/* Positions of a line are distinct: every gradient has a place of its own. */
template <class T>
static __global__ void scatter_kernel(int64_t count, int64_t n, int64_t k, int64_t inner, const int32_t *index,
                                      const T *g, T *dx) {
  int64_t i = pg_thread();
  if (i < count) dx[(i / (k * inner) * n + index[i]) * inner + i % inner] = g[i];
}

template <class T> static int scatter_back(pg_call *c, int64_t dimension) {
  pg_tensor *dx = c->grad_in[0], *g = c->grad_out[0];
  int32_t dim;
  int64_t outer, n, inner, count = pg_numel(g);
  PG_TRY(pg_dim(c, dx, dimension, &dim));
  pg_around(dx, dim, &outer, &n, &inner);
  int64_t k = g->shape[dim];
  if (k < n) PG_TRY(pg_fill(dx, 0));
  if (count)
    PG_LAUNCH(c, scatter_kernel<T>, pg_blocks(count), PG_BLOCK, count, n, k, inner, PG_AT(const int32_t, c->out[1]),
              PG_AT(const T, g), PG_AT(T, dx));
  return PG_OK;
}

template <class T> static int sort_forward(pg_call *c) { return order<T>(c, c->p[0].ints[0], c->p[1].ints[0] != 0); }
template <class T> static int sort_backward(pg_call *c) { return scatter_back<T>(c, c->p[0].ints[0]); }
template <class T> static int topk_forward(pg_call *c) { return order<T>(c, c->p[1].ints[0], c->p[2].ints[0] != 0); }
template <class T> static int topk_backward(pg_call *c) { return scatter_back<T>(c, c->p[1].ints[0]); }

PG_CUDA_OP(sort, {sort_forward<float>, sort_forward<double>, sort_forward<int32_t>, sort_forward<uint8_t>},
           {sort_backward<float>, sort_backward<double>})
PG_CUDA_OP(topk, {topk_forward<float>, topk_forward<double>, topk_forward<int32_t>, topk_forward<uint8_t>},
           {topk_backward<float>, topk_backward<double>})
