/* sort.c - the elements of each line along a dimension in order, all of them or the first k, and where they were.
 *
 * The order is total: by value, NaN after everything, equal ones by position. So sort is stable in both directions and
 * topk breaks ties to the lower position, the same on every run. Backward hands each value's gradient to its place:
 * dx[index_i] = dy_i, zero elsewhere. */
#include <omp.h>

#include "../op.h"

/* Every dtype's values are exact as doubles. A descending order is an ascending one of the negated keys. */
typedef struct entry {
  double key;
  int32_t at;
} entry;

static inline bool before(entry a, entry b) { /* strict; equal keys keep the order that they are met in */
  return a.key < b.key || (isnan(b.key) && !isnan(a.key));
}

static double read_key(const pg_tensor *x, int64_t at, double sign) {
  switch (x->dtype) {
  case PG_FLOAT32: return sign * (double)PG_AT(float, x)[at];
  case PG_FLOAT64: return sign * PG_AT(double, x)[at];
  case PG_INT32: return sign * PG_AT(int32_t, x)[at];
  default: return sign * PG_AT(uint8_t, x)[at];
  }
}

enum { PIECE = 1 << 20 }; /* elements between two looks at whether to stop */

/* Bottom-up merge sort of e[0..n-1] with room for as many in `spare`; returns whichever of the two holds the result,
 * e unsorted when it is to stop. */
static entry *merge_sort(entry *e, entry *spare, int64_t n) {
  for (int64_t width = 1; width < n; width *= 2) {
    for (int64_t lo = 0; lo < n; lo += 2 * width) {
      int64_t mid = PG_MIN(lo + width, n), hi = PG_MIN(lo + 2 * width, n), i = lo, j = mid;
      for (int64_t to = lo; to < hi;) {
        if (to % PIECE == 0 && pg_stopping()) return e;
        for (int64_t end = PG_MIN(hi, (to / PIECE + 1) * PIECE); to < end; to++)
          spare[to] = j == hi || (i < mid && !before(e[j], e[i])) ? e[i++] : e[j++];
      }
    }
    entry *t = e;
    e = spare, spare = t;
  }
  return e;
}

/* The first k of the order, by insertion: few elements get past the last of the best so far. */
static entry *select_first(entry *e, entry *best, int64_t n, int64_t k) {
  int64_t have = 0;
  for (int64_t i = 0; i < n; i++) {
    if (have == k && !before(e[i], best[k - 1])) continue;
    int64_t to = have < k ? have++ : k - 1;
    for (; to > 0 && before(e[i], best[to - 1]); to--) best[to] = best[to - 1];
    best[to] = e[i];
  }
  return best;
}

static int order_lines(pg_call *c, int64_t dimension, bool descending) {
  const pg_tensor *x = c->in[0];
  int32_t dim;
  int64_t outer, n, inner;
  PG_TRY(pg_dim(c, x, dimension, &dim));
  pg_around(x, dim, &outer, &n, &inner);
  int64_t k = c->out[0]->shape[dim], lines = outer * inner;
  if (!lines || !k) return PG_OK;
  int threads = lines > 1 && lines * n > 8192 ? (int)PG_MIN(lines, pg_threads()) : 1;
  size_t width = pg_dtype_bytes[x->dtype], bytes = sizeof(entry) * 2 * (size_t)n * (size_t)threads;
  entry *room = pg_scratch_alloc(bytes);
  if (!room) return pg_fail(PG_ERR_MEMORY, "%s: out of memory", c->op->info.name);
  const char *from = (const char *)x->storage->data + (size_t)x->offset * width;
  char *values = pg_data(c->out[0]);
  int32_t *index = PG_AT(int32_t, c->out[1]);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t r = 0; r < lines; r++) {
    if (pg_stopping()) continue;
    entry *e = room + 2 * n * omp_get_thread_num(), *spare = e + n;
    int64_t in = r / inner * n * inner + r % inner, out = r / inner * k * inner + r % inner;
    for (int64_t i = 0; i < n && (i % PIECE || !pg_stopping()); i++)
      e[i] = (entry){read_key(x, in + i * inner, descending ? -1 : 1), (int32_t)i};
    e = k < n && k <= 64 ? select_first(e, spare, n, k) : merge_sort(e, spare, n);
    for (int64_t i = 0; i < k && !pg_stopping(); i++) {
      memcpy(values + (size_t)(out + i * inner) * width, from + (size_t)(in + e[i].at * inner) * width, width);
      index[out + i * inner] = e[i].at;
    }
  }
  pg_scratch_free(room, bytes);
  return PG_OK;
}

static int scatter_back(pg_call *c, int64_t dimension) {
  pg_tensor *dx = c->grad_in[0], *g = c->grad_out[0];
  int32_t dim;
  int64_t outer, n, inner;
  PG_TRY(pg_dim(c, dx, dimension, &dim));
  PG_TRY(pg_fill_new(dx, 0));
  pg_around(dx, dim, &outer, &n, &inner);
  const int32_t *index = PG_AT(int32_t, c->out[1]);
  for (int64_t o = 0, from = 0; o < outer; o++)
    for (int64_t i = 0; i < g->shape[dim]; i++)
      for (int64_t j = 0; j < inner; j++, from++) {
        int64_t to = (o * n + index[from]) * inner + j;
        if (dx->dtype == PG_FLOAT32)
          PG_AT(float, dx)[to] = PG_AT(float, g)[from];
        else
          PG_AT(double, dx)[to] = PG_AT(double, g)[from];
      }
  return PG_OK;
}

static int order_shape(pg_call *c, int64_t dimension, int64_t k) { /* k < 0: all */
  const pg_tensor *x = c->in[0];
  int32_t dim;
  int64_t shape[PG_MAX_DIMS];
  PG_TRY(pg_dim(c, x, dimension, &dim));
  if (!x->ndim) return pg_op_fail(c, "needs at least one dimension");
  if (x->shape[dim] > INT32_MAX) return pg_op_fail(c, "positions do not fit int32");
  if (k > x->shape[dim])
    return pg_op_fail(c, "k = %lld is more than the %lld elements of dimension %lld", (long long)k,
                      (long long)x->shape[dim], (long long)pg_shown(dim));
  memcpy(shape, x->shape, sizeof shape);
  if (k >= 0) shape[dim] = k;
  PG_TRY(pg_out(c, 0, x->dtype, x->ndim, shape));
  return pg_out(c, 1, PG_INT32, x->ndim, shape);
}

static int sort_shape(pg_call *c) { return order_shape(c, c->p[0].ints[0], -1); }
static int sort_forward(pg_call *c) { return order_lines(c, c->p[0].ints[0], c->p[1].ints[0]); }
static int sort_backward(pg_call *c) { return scatter_back(c, c->p[0].ints[0]); }

const pg_op pg_op_sort = {
    .info = {.name = "sort",
             .doc = "values in order along a dimension; stable, NaN last",
             .inputs = PG_ARGS({"x", 0, "any shape and dtype"}),
             .outputs = PG_ARGS({"values", 0, "the shape of x"},
                                {"index", PG_INDEX, "the shape of x, int32: where each value was"}),
             .params = PG_PARAMS(PG_ONE_DIM("dim", -1, "the dimension"), PG_FLAG("descending", 0, "largest first")),
             .samples = PG_SAMPLES("{x = randn(3, 5)}", "{x = randn(2, 6, 3), dim = 2, descending = true}"),
             .method = 1},
    .shape = sort_shape,
    .needs = PG_NEED_OUT(1),
    .forward = PG_ANY(sort_forward),
    .backward = PG_ANY_REAL(sort_backward)};

static int topk_shape(pg_call *c) { return order_shape(c, c->p[1].ints[0], c->p[0].ints[0]); }
static int topk_forward(pg_call *c) { return order_lines(c, c->p[1].ints[0], c->p[2].ints[0]); }
static int topk_backward(pg_call *c) { return scatter_back(c, c->p[1].ints[0]); }

const pg_op pg_op_topk = {
    .info = {.name = "topk",
             .doc =
                 "the k largest (or smallest) values along a dimension, in order; ties to the lower position, NaN last",
             .inputs = PG_ARGS({"x", 0, "any shape and dtype"}),
             .outputs = PG_ARGS({"values", 0, "x with k in place of the dimension's size"},
                                {"index", PG_INDEX, "the shape of values, int32: where each was"}),
             .params = PG_PARAMS(PG_INT("k", NAN, 1, INT32_MAX, "how many"), PG_ONE_DIM("dim", -1, "the dimension"),
                                 PG_FLAG("largest", 1, "the largest, else the smallest")),
             .samples = PG_SAMPLES("{x = randn(3, 7), k = 3}", "{x = randn(5, 2, 3), k = 2, dim = 1, largest = false}"),
             .method = 1},
    .shape = topk_shape,
    .needs = PG_NEED_OUT(1),
    .forward = PG_ANY(topk_forward),
    .backward = PG_ANY_REAL(topk_backward)};
