/* reduce.cu - sum, mean, max, min, var, logsumexp, norm, argmax and argmin, over any dimensions of any layout.
 *
 * x is seen as rows (the kept dimensions) of n elements (the reduced ones). Each op is an accumulator: what a thread
 * keeps, how it takes an element, how two are joined, and the value in the end. Two kernels carry all of them:
 *
 *     lanes   up to 32 neighbouring threads a row: many short rows whose elements are neighbours
 *     tile    a block for 1 to 32 neighbouring rows and a chunk of n: neighbouring threads take neighbouring elements
 * of one long row, or of neighbouring rows where the reduced dimension is an outer one; a tree joins them. Several
 * chunks leave accumulators, which a second launch of the same kernel joins.
 *
 * Orders and chunks depend on the layout alone. Sums are kept in double, as on the CPU: one conversion and one addition
 * an element are still far below what memory allows. */
#include "../cuda/cuda.h"

/* ---- accumulators ----------------------------------------------------------------------------------------------- */

#define DEVICE __device__ __forceinline__

template <class T, class To> struct sum_of {
  typedef T in;
  typedef To out;
  typedef double state;
  double divisor; /* the mean's n */
  DEVICE void row(int64_t) {}
  DEVICE state none(void) const { return 0; }
  DEVICE void take(state &s, T x, int64_t) const { s += (double)x; }
  DEVICE void join(state &s, const state &other) const { s += other; }
  DEVICE To value(const state &s, int64_t) const { return (To)(s / divisor); }
};

template <class T> struct whole_sum { /* of integers; what int32 cannot hold is a fault */
  typedef T in;
  typedef int32_t out;
  typedef int64_t state;
  pg_fault fault;
  DEVICE void row(int64_t) {}
  DEVICE state none(void) const { return 0; }
  DEVICE void take(state &s, T x, int64_t) const { s += x; }
  DEVICE void join(state &s, const state &other) const { s += other; }
  DEVICE int32_t value(const state &s, int64_t r) const {
    if (s >= INT32_MIN && s <= INT32_MAX) return (int32_t)s;
    pg_refuse(fault, r, s < 0 ? INT32_MIN : INT32_MAX);
    return 0;
  }
};

template <class T> struct place_of {
  T v;
  int64_t at; /* -1: nothing taken yet */
};

/* The first greatest (SIGN > 0) or least element, or the first NaN: its value, or as a position. */
template <class T, int SIGN, class To, bool POSITION> struct best {
  typedef T in;
  typedef To out;
  typedef place_of<T> state;
  DEVICE void row(int64_t) {}
  DEVICE state none(void) const { return state{T(0), -1}; }
  static DEVICE bool beats(T a, T b) { return b == b && (a != a || (SIGN > 0 ? a > b : a < b)); }
  DEVICE void take(state &s, T x, int64_t i) const {
    if (s.at < 0 || beats(x, s.v)) s.v = x, s.at = i;
  }
  DEVICE void join(state &s, const state &other) const {
    bool first = !beats(s.v, other.v) && other.at < s.at;
    if (other.at >= 0 && (s.at < 0 || beats(other.v, s.v) || first)) s = other;
  }
  DEVICE To value(const state &s, int64_t) const { return POSITION ? (To)s.at : (To)s.v; }
};

template <class T> struct squares_about { /* sum (x - mean)^2 / divisor */
  typedef T in, out;
  typedef double state;
  const double *mean;
  double divisor, about;
  DEVICE void row(int64_t r) { about = mean[r]; }
  DEVICE state none(void) const { return 0; }
  DEVICE void take(state &s, T x, int64_t) const { s += ((double)x - about) * ((double)x - about); }
  DEVICE void join(state &s, const state &other) const { s += other; }
  DEVICE T value(const state &s, int64_t) const { return (T)(s / divisor); }
};

template <class T> struct log_sum {
  T top;
  double sum; /* of e^(x - top) */
};

/* log sum e^x in one pass: the sum is rescaled when a greater element comes. NaN stays the top once it is. */
template <class T> struct log_sum_exp {
  typedef T in, out;
  typedef log_sum<T> state;
  DEVICE void row(int64_t) {}
  DEVICE state none(void) const { return state{-(T)INFINITY, 0}; }
  static DEVICE void add(state &s, T top, double sum) {
    if (top == -(T)INFINITY) return; /* adds nothing, and its distance from an equal top would be NaN */
    T distance = top - s.top, scale = pg_exp(-pg_abs(distance));
    if (distance > 0 || top != top)
      s.sum = s.sum * (double)scale + sum, s.top = top;
    else
      s.sum += sum * (double)scale;
  }
  DEVICE void take(state &s, T x, int64_t) const { add(s, x, 1); }
  DEVICE void join(state &s, const state &other) const { add(s, other.top, other.sum); }
  DEVICE T value(const state &s, int64_t) const { return isfinite(s.top) ? (T)((double)s.top + log(s.sum)) : s.top; }
};

struct squares {
  double small, middle, big; /* sums of squares, the outer two of scaled elements */
};

/* The Euclidean norm. Squares of a double can leave its range: very small and very large ones are kept scaled. */
template <class T> struct norm_two {
  typedef T in, out;
  typedef squares state;
  DEVICE void row(int64_t) {}
  DEVICE state none(void) const { return state{0, 0, 0}; }
  DEVICE void take(state &s, T x, int64_t) const {
    double a = fabs((double)x);
    if (sizeof(T) == 4)
      s.middle += a * a;
    else if (a > 1e150)
      s.big += (a * 0x1p-600) * (a * 0x1p-600);
    else if (a < 1e-150)
      s.small += (a * 0x1p600) * (a * 0x1p600);
    else
      s.middle += a * a;
  }
  DEVICE void join(state &s, const state &other) const {
    s.small += other.small, s.middle += other.middle, s.big += other.big;
  }
  DEVICE T value(const state &s, int64_t) const {
    if (s.middle != s.middle) return (T)s.middle;
    return (T)hypot(hypot(sqrt(s.big) * 0x1p600, sqrt(s.middle)), sqrt(s.small) * 0x1p-600);
  }
};

template <class T> struct norm_one {
  typedef T in, out;
  typedef double state;
  DEVICE void row(int64_t) {}
  DEVICE state none(void) const { return 0; }
  DEVICE void take(state &s, T x, int64_t) const { s += fabs((double)x); }
  DEVICE void join(state &s, const state &other) const { s += other; }
  DEVICE T value(const state &s, int64_t) const { return (T)s; }
};

template <class T> struct largest_size { /* max |x|; the norm for p = inf */
  typedef T in, out, state;
  DEVICE void row(int64_t) {}
  DEVICE state none(void) const { return 0; }
  DEVICE void take(state &s, T x, int64_t) const { s = pg_larger()(s, pg_abs(x)); }
  DEVICE void join(state &s, const state &other) const { s = pg_larger()(s, other); }
  DEVICE T value(const state &s, int64_t) const { return s; }
};

template <class T> struct norm_any { /* top (sum (|x| / top)^p)^(1/p) */
  typedef T in, out;
  typedef double state;
  const T *tops;
  double p, top;
  DEVICE void row(int64_t r) { top = (double)tops[r]; }
  DEVICE state none(void) const { return 0; }
  DEVICE void take(state &s, T x, int64_t) const { s += pow(fabs((double)x / top), p); }
  DEVICE void join(state &s, const state &other) const { s += other; }
  DEVICE T value(const state &s, int64_t r) const {
    double of_row = (double)tops[r];
    return of_row > 0 && !isinf(of_row) ? (T)(of_row * pow(s, 1 / p)) : tops[r];
  }
};

template <class T> struct ties_of { /* elements with |x| = y */
  typedef T in;
  typedef int64_t out, state;
  const T *y;
  T size;
  DEVICE void row(int64_t r) { size = y[r]; }
  DEVICE state none(void) const { return 0; }
  DEVICE void take(state &s, T x, int64_t) const { s += pg_abs(x) == size; }
  DEVICE void join(state &s, const state &other) const { s += other; }
  DEVICE int64_t value(const state &s, int64_t) const { return s; }
};

template <class A> struct joined { /* takes what A kept of a chunk */
  typedef typename A::state in, state;
  typedef typename A::out out;
  A a;
  DEVICE void row(int64_t) {}
  DEVICE state none(void) const { return a.none(); }
  DEVICE void take(state &s, const in &x, int64_t) const { a.join(s, x); }
  DEVICE void join(state &s, const state &other) const { a.join(s, other); }
  DEVICE out value(const state &s, int64_t r) const { return a.value(s, r); }
};

/* ---- kernels ---------------------------------------------------------------------------------------------------- */

typedef struct view {
  int64_t rows, n;
  pg_strided kept, over;
} view;

/* Elements from, from + step, ... below to of a row; W > 1: so many neighbours at each of them. */
template <int W, class A>
static DEVICE void take_all(const A &a, typename A::state &s, const typename A::in *row, const pg_strided &over,
                            int64_t from, int64_t to, int64_t step) {
  if constexpr (W == 1) {
#pragma unroll 4
    for (int64_t i = from; i < to; i += step) a.take(s, row[pg_place(over, i)], i);
  } else {
#pragma unroll 2
    for (int64_t i = from * W; i < to; i += step * W) {
      pg_pack<typename A::in, W> p = *(const pg_pack<typename A::in, W> *)(row + i);
#pragma unroll
      for (int k = 0; k < W; k++) a.take(s, p.v[k], i + k);
    }
  }
}

template <class S> static DEVICE S shuffle_xor(const S &s, int with) {
  uint32_t words[sizeof(S) / 4];
  S other;
  memcpy(words, &s, sizeof s);
#pragma unroll
  for (int i = 0; i < (int)(sizeof(S) / 4); i++) words[i] = __shfl_xor_sync(PG_FULL_MASK, words[i], with);
  memcpy(&other, words, sizeof s);
  return other;
}

/* lanes: a power of two, at most 32 */
template <int W, class A>
static __global__ void lanes_kernel(view v, int lanes, const typename A::in *x, A a, typename A::out *y) {
  int lane = (int)threadIdx.x % lanes;
  int64_t r = (int64_t)blockIdx.x * (PG_BLOCK / lanes) + threadIdx.x / lanes;
  typename A::state s = a.none();
  if (r < v.rows && v.n) {
    a.row(r);
    take_all<W>(a, s, x + pg_place(v.kept, r), v.over, lane, v.n, lanes);
  }
  for (int half = lanes / 2; half > 0; half /= 2) a.join(s, shuffle_xor(s, half));
  if (lane == 0 && r < v.rows) y[r] = a.value(s, r);
}

/* Block (chunk, tile): rows tile * wide .., elements chunk * share ... One chunk: values to y, else accumulators to
 * partial (chunks, rows). */
template <int W, class A>
static __global__ void tile_kernel(view v, int wide, int64_t tiles, int64_t share, const typename A::in *x, A a,
                                   typename A::state *partial, typename A::out *y) {
  PG_SHARED(typename A::state, part, [PG_BLOCK]);
  const int high = PG_BLOCK / wide, column = (int)threadIdx.x % wide, line = (int)threadIdx.x / wide;
  const int64_t chunk = blockIdx.x / tiles, r = blockIdx.x % tiles * wide + column;
  const bool there = line < high && r < v.rows;
  typename A::state s = a.none();
  if (there) {
    a.row(r);
    int64_t end = (chunk + 1) * share < v.n ? (chunk + 1) * share : v.n;
    take_all<W>(a, s, x + pg_place(v.kept, r), v.over, chunk * share / W + line, end, high);
  }
  part[threadIdx.x] = s;
  for (int left = high; left > 1;) {
    int half = (left + 1) / 2;
    __syncthreads();
    if (line + half < left) a.join(part[threadIdx.x], part[threadIdx.x + half * wide]);
    left = half;
  }
  if (!there || line) return; /* what is written next this thread joined itself */
  if (partial)
    partial[chunk * v.rows + r] = part[column];
  else
    y[r] = a.value(part[column], r);
}

/* ---- launching -------------------------------------------------------------------------------------------------- */

/* Which dimensions are reduced, as bits; reduce.c's shape rule has checked them. */
static int reduced_of(const pg_call *c, uint32_t *reduced) {
  *reduced = c->p[0].len ? 0 : 0xffffffffu;
  for (int32_t i = 0, dim; i < c->p[0].len; i++) {
    PG_TRY(pg_dim(c, c->in[0], c->p[0].ints[i], &dim));
    *reduced |= 1u << dim;
  }
  return PG_OK;
}

static pg_strided part_of(const pg_tensor *x, uint32_t dims, int64_t *n) {
  pg_tensor part = {};
  *n = 1;
  for (int32_t i = 0; i < x->ndim; i++) {
    if (!(dims >> i & 1)) continue;
    part.shape[part.ndim] = x->shape[i], part.stride[part.ndim++] = x->stride[i];
    *n *= x->shape[i];
  }
  return pg_strided_as(&part, part.ndim, part.shape);
}

static int view_of(const pg_call *c, view *v) {
  uint32_t reduced;
  PG_TRY(reduced_of(c, &reduced));
  v->kept = part_of(c->in[0], ~reduced, &v->rows), v->over = part_of(c->in[0], reduced, &v->n);
  return PG_OK;
}

static int64_t last_stride(const pg_strided &s) { return s.ndim ? llabs(s.stride[s.ndim - 1]) : INT64_MAX; }

template <class T> static bool packable(const view &v, const T *x) {
  bool whole = v.over.ndim == 1 && v.over.stride[0] == 1 && pg_packable<T>(v.n, x);
  for (int32_t d = 0; d < v.kept.ndim; d++) whole = whole && v.kept.stride[d] % pg_pack<T>::N == 0;
  return whole;
}

template <int W, class A>
static int run_tiles(const pg_call *c, const view &v, int wide, const typename A::in *x, const A &a,
                     typename A::out *y) {
  enum { BLOCKS = 2048 }; /* fill any device */
  typedef typename A::state state;
  const int64_t high = PG_BLOCK / wide, tiles = (v.rows + wide - 1) / wide, least = high * PG_MAX(8, 2 * W);
  int64_t chunks = PG_MIN((v.n + least - 1) / least, PG_MAX(1, BLOCKS / tiles));
  const int64_t share = (v.n + chunks * W - 1) / (chunks * W) * W; /* whole packs */
  chunks = (v.n + share - 1) / share;
  pg_scratch partial(chunks > 1 ? sizeof(state) * (size_t)(chunks * v.rows) : 1);
  if (partial.status) return partial.status;
  PG_LAUNCH(c, (tile_kernel<W, A>), pg_blocks(tiles * chunks, 1), PG_BLOCK, v, wide, tiles, share, x, a,
            chunks > 1 ? partial.at<state>() : NULL, y);
  if (chunks == 1) return PG_OK;
  view left = {v.rows, chunks, {1, {v.rows}, {1}}, {1, {chunks}, {v.rows}}};
  const int across = (int)PG_MIN(v.rows, (int64_t)PG_WARP);
  const int64_t last_tiles = (v.rows + across - 1) / across;
  PG_LAUNCH(c, (tile_kernel<1, joined<A>>), pg_blocks(last_tiles, 1), PG_BLOCK, left, across, last_tiles, chunks,
            partial.at<const state>(), joined<A>{a}, (state *)NULL, y);
  return PG_OK;
}

template <int W, class A>
static int run_along(const pg_call *c, const view &v, const typename A::in *x, const A &a, typename A::out *y) {
  if (v.n > 1024) return run_tiles<W>(c, v, 1, x, a, y);
  int lanes = 1;
  while (lanes < PG_WARP && lanes * W < v.n) lanes *= 2;
  PG_LAUNCH(c, (lanes_kernel<W, A>), pg_blocks(v.rows, PG_BLOCK / lanes), PG_BLOCK, v, lanes, x, a, y);
  return PG_OK;
}

/* y = A over the reduced dimensions of the call's input. */
template <class A> static int run(const pg_call *c, const A &a, typename A::out *y) {
  typedef typename A::in T;
  view v;
  PG_TRY(view_of(c, &v));
  if (!v.rows) return PG_OK;
  const T *x = PG_AT(const T, c->in[0]);
  if (v.n && last_stride(v.kept) < last_stride(v.over)) { /* neighbours are of different rows */
    int64_t wide = PG_MIN(v.kept.shape[v.kept.ndim - 1], (int64_t)PG_WARP);
    return run_tiles<1>(c, v, (int)wide, x, a, y);
  }
  return packable(v, x) ? run_along<pg_pack<T>::N>(c, v, x, a, y) : run_along<1>(c, v, x, a, y);
}

static double count_of(const pg_call *c) { return (double)pg_numel(c->in[0]) / (double)pg_numel(c->out[0]); }

/* Scratch for one To a row; at least a byte. */
template <class To> static size_t row_bytes(const pg_call *c) {
  return sizeof(To) * (size_t)PG_MAX(pg_numel(c->out[0]), (int64_t)1);
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

template <class T> static int sum_forward(pg_call *c) { return run(c, sum_of<T, T>{1}, PG_AT(T, c->out[0])); }
template <class T> static int mean_forward(pg_call *c) {
  return run(c, sum_of<T, T>{count_of(c)}, PG_AT(T, c->out[0]));
}
template <class T> static int whole_forward(pg_call *c) {
  pg_fault fault = pg_fault_new(c, "int32 does not hold the sum; convert x to float64 first");
  return run(c, whole_sum<T>{fault}, PG_AT(int32_t, c->out[0]));
}
template <class T, int SIGN> static int best_forward(pg_call *c) {
  return run(c, best<T, SIGN, T, false>(), PG_AT(T, c->out[0]));
}
template <class T, int SIGN> static int position_forward(pg_call *c) {
  return run(c, best<T, SIGN, int32_t, true>(), PG_AT(int32_t, c->out[0]));
}
template <class T> static int logsumexp_forward(pg_call *c) { return run(c, log_sum_exp<T>(), PG_AT(T, c->out[0])); }

static double var_divisor(const pg_call *c) { return count_of(c) - (c->p[2].ints[0] ? 1 : 0); }

template <class T> static int var_forward(pg_call *c) {
  pg_scratch mean(row_bytes<double>(c));
  if (mean.status) return mean.status;
  PG_TRY(run(c, sum_of<T, double>{count_of(c)}, mean.at<double>()));
  return run(c, squares_about<T>{mean.at<const double>(), var_divisor(c), 0}, PG_AT(T, c->out[0]));
}

template <class T> static int norm_forward(pg_call *c) {
  const double p = c->p[2].num;
  T *y = PG_AT(T, c->out[0]);
  if (p == 1) return run(c, norm_one<T>(), y);
  if (p == 2) return run(c, norm_two<T>(), y);
  if (isinf(p)) return run(c, largest_size<T>(), y);
  pg_scratch top(row_bytes<T>(c));
  if (top.status) return top.status;
  PG_TRY(run(c, largest_size<T>(), top.at<T>()));
  return run(c, norm_any<T>{top.at<const T>(), p, 0}, y);
}

/* ---- backward: a thread an element of dx; F gives it from x, the row's gradient, the row and the place in it ---- */

template <class F, class T>
static __global__ void grad_kernel(int64_t n, pg_strided at_x, pg_strided at_row, pg_strided at_place, const T *x,
                                   const T *dy, F f, T *dx) {
  int64_t i = pg_thread();
  if (i >= n) return;
  int64_t r = pg_place(at_row, i);
  dx[i] = f(F::X ? x[pg_place(at_x, i)] : T(0), dy[r], r, F::PLACE ? pg_place(at_place, i) : 0);
}

/* Over x's shape: row-major strides of the dimensions `dims`, 0 of the others. */
static pg_strided counted(const pg_tensor *x, uint32_t dims) {
  pg_tensor t = {};
  int64_t step = 1;
  t.ndim = x->ndim;
  for (int32_t i = x->ndim - 1; i >= 0; i--) {
    t.shape[i] = x->shape[i];
    if (dims >> i & 1) t.stride[i] = step, step *= x->shape[i];
  }
  return pg_strided_as(&t, t.ndim, t.shape);
}

template <class T, class F> static int run_grad(pg_call *c, const F &f) {
  const pg_tensor *x = c->in[0];
  const int64_t n = pg_numel(x);
  uint32_t reduced;
  PG_TRY(reduced_of(c, &reduced));
  if (!n) return PG_OK;
  PG_LAUNCH(c, (grad_kernel<F, T>), pg_blocks(n), PG_BLOCK, n, pg_strided_as(x, x->ndim, x->shape),
            counted(x, ~reduced), counted(x, reduced), F::X ? PG_AT(const T, x) : NULL, PG_AT(const T, c->grad_out[0]),
            f, PG_AT(T, c->grad_in[0]));
  return PG_OK;
}

template <class T> struct spread {
  enum { X = 0, PLACE = 0 };
  T divisor;
  DEVICE T operator()(T, T g, int64_t, int64_t) const { return g / divisor; }
};

template <class T> struct to_best {
  enum { X = 0, PLACE = 1 };
  const int64_t *best;
  DEVICE T operator()(T, T g, int64_t r, int64_t place) const { return place == best[r] ? g : T(0); }
};

template <class T> struct var_slope {
  enum { X = 1, PLACE = 0 };
  const double *mean;
  double divisor;
  DEVICE T operator()(T x, T g, int64_t r, int64_t) const { return (T)(g * 2 * ((double)x - mean[r]) / divisor); }
};

template <class T> struct logsumexp_slope {
  enum { X = 1, PLACE = 0 };
  const T *y;
  DEVICE T operator()(T x, T g, int64_t r, int64_t) const { return x == -(T)INFINITY ? T(0) : g * pg_exp(x - y[r]); }
};

template <class T> struct norm_slope {
  enum { X = 1, PLACE = 0 };
  const T *y;
  const int64_t *ties; /* for p = inf */
  double p;
  DEVICE T operator()(T x, T g, int64_t r, int64_t) const {
    T length = y[r], size = pg_abs(x), slope;
    if (x == 0 || length == 0)
      slope = 0;
    else if (ties)
      slope = length != length ? length : size == length ? 1 / (T)ties[r] : T(0);
    else
      slope = p == 2 ? size / length : p == 1 ? T(1) : (T)pow((double)size / (double)length, p - 1);
    return g * copysign(slope, x);
  }
};

template <class T> static int sum_backward(pg_call *c) { return run_grad<T>(c, spread<T>{1}); }
template <class T> static int mean_backward(pg_call *c) { return run_grad<T>(c, spread<T>{(T)count_of(c)}); }
template <class T, int SIGN> static int best_backward(pg_call *c) {
  pg_scratch at(row_bytes<int64_t>(c));
  if (at.status) return at.status;
  PG_TRY(run(c, best<T, SIGN, int64_t, true>(), at.at<int64_t>()));
  return run_grad<T>(c, to_best<T>{at.at<const int64_t>()});
}
template <class T> static int var_backward(pg_call *c) {
  pg_scratch mean(row_bytes<double>(c));
  if (mean.status) return mean.status;
  PG_TRY(run(c, sum_of<T, double>{count_of(c)}, mean.at<double>()));
  return run_grad<T>(c, var_slope<T>{mean.at<const double>(), var_divisor(c)});
}
template <class T> static int logsumexp_backward(pg_call *c) {
  return run_grad<T>(c, logsumexp_slope<T>{PG_AT(const T, c->out[0])});
}
template <class T> static int norm_backward(pg_call *c) {
  const double p = c->p[2].num;
  const T *y = PG_AT(const T, c->out[0]);
  pg_scratch ties(row_bytes<int64_t>(c));
  if (ties.status) return ties.status;
  if (isinf(p)) PG_TRY(run(c, ties_of<T>{y, 0}, ties.at<int64_t>()));
  return run_grad<T>(c, norm_slope<T>{y, isinf(p) ? ties.at<const int64_t>() : NULL, p});
}

#define FLOATS(f)                                                                                                      \
  { f<float>, f<double> }
PG_CUDA_OP(sum, {sum_forward<float>, sum_forward<double>, whole_forward<int32_t>, whole_forward<uint8_t>},
           FLOATS(sum_backward))
PG_CUDA_OP(mean, FLOATS(mean_forward), FLOATS(mean_backward))
PG_CUDA_OP(var, FLOATS(var_forward), FLOATS(var_backward))
PG_CUDA_OP(logsumexp, FLOATS(logsumexp_forward), FLOATS(logsumexp_backward))
PG_CUDA_OP(norm, FLOATS(norm_forward), FLOATS(norm_backward))
#define BEST(name, position, sign)                                                                                     \
  PG_CUDA_OP(name,                                                                                                     \
             {best_forward<float, sign>, best_forward<double, sign>, best_forward<int32_t, sign>,                      \
              best_forward<uint8_t, sign>},                                                                            \
             {best_backward<float, sign>, best_backward<double, sign>})                                                \
  PG_CUDA_OP(position, {position_forward<float, sign>, position_forward<double, sign>,                                 \
                        position_forward<int32_t, sign>, position_forward<uint8_t, sign>})
BEST(max, argmax, 1)
BEST(min, argmin, -1)
