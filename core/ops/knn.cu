/* knn.cu - exact k nearest neighbours, by (similarity, index) (the metrics: knn.c).
 *
 * The database is taken in chunks that stay in the GPU's cache, and up to 512 queries against one: a product, or for
 * squared distances a kernel of tiles that sums differences, writes their similarities to a buffer that stays there
 * too, so that memory moves the database once for all the queries of a round. Then a block reads each query's row,
 * keeps what is ahead of the k-th best so far, and now and then sorts what it has kept into the query's list of k;
 * after the first chunks next to nothing gets that far. Few queries are given several blocks each, whose lists are
 * joined in the end. Every chunk has one size, the last one overlapping the one before, so that the products of equal
 * rows are equal and their tie goes to the lower index. NaN, which a product of finite values may overflow to, comes
 * last.
 *
 * k of more than 1,024 has whole rows sorted, a few at a time. */
#include "../cuda/order.h"
#include "../cuda/tile.h"

enum { IP, COSINE, L2 };
enum {
  BUFFER = 16 << 20, /* bytes of similarities, and of a chunk of the database: both fit the cache of an A100 */
  LISTS = 64 << 20,  /* bytes of lists: how many queries a pass over the database serves */
  ROWS = 512,        /* queries against a chunk at a time */
  MOST = 1024,       /* k up to here is kept in shared memory */
  BLOCKS = 512       /* a GPU's worth of blocks */
};

/* ---- similarities ----------------------------------------------------------------------------------------------- */

/* A warp a row: 1 / |x|. */
template <class T, int N> static __global__ void inverse_kernel(int64_t rows, int64_t d, const T *x, T *inverse) {
  int64_t row = (int64_t)blockIdx.x * (PG_BLOCK / PG_WARP) + threadIdx.x / PG_WARP;
  if (row >= rows) return; /* the whole warp */
  const pg_few<T, N> *from = (const pg_few<T, N> *)(x + row * d);
  T sum = 0;
#pragma unroll 4
  for (int64_t k = threadIdx.x % PG_WARP; k < d / N; k += PG_WARP) {
    pg_few<T, N> p = from[k];
#pragma unroll
    for (int i = 0; i < N; i++) sum += p.v[i] * p.v[i];
  }
  sum = pg_warp_sum(sum);
  if (threadIdx.x % PG_WARP == 0) inverse[row] = 1 / (pg_sqrt(sum) + (T)1e-30);
}

template <class T> static int inverses(pg_call *c, int64_t rows, int64_t d, const T *x, T *inverse) {
  unsigned blocks = pg_blocks(rows, PG_BLOCK / PG_WARP);
  if (pg_packable<T>(d, x))
    PG_LAUNCH(c, (inverse_kernel<T, pg_pack<T>::N>), blocks, PG_BLOCK, rows, d, x, inverse);
  else
    PG_LAUNCH(c, (inverse_kernel<T, 1>), blocks, PG_BLOCK, rows, d, x, inverse);
  return PG_OK;
}

/* -|q - x|^2; blocks next to one another share rows of the database. */
template <class T, int M>
static __global__ void __launch_bounds__(PG_BLOCK)
    distance_kernel(int64_t q, int64_t n, int64_t d, const T *a, const T *b, bool packed, T *out, int64_t pitch) {
  enum { SIDE = pg_tile<T, M>::SIDE };
  int64_t down = (q + SIDE - 1) / SIDE, i0 = blockIdx.x % down * SIDE, j0 = blockIdx.x / down * SIDE;
  pg_tile<T, M> tile;
  tile.template run<false>(PG_MIN(q - i0, (int64_t)SIDE), PG_MIN(n - j0, (int64_t)SIDE), d, a + i0 * d, b + j0 * d,
                           packed, (T *)NULL, [](T x, T y) { return (x - y) * (x - y); });
  int64_t i = i0 + threadIdx.x / 16 * M, j = j0 + threadIdx.x % 16 * M;
#pragma unroll
  for (int u = 0; u < M; u++) {
    pg_few<T, M> row;
#pragma unroll
    for (int v = 0; v < M; v++) row.v[v] = -tile.sum[u][v];
    if (i + u < q && pitch % M == 0 && j < pitch) /* what follows column n is room */
      *(pg_few<T, M> *)(out + (i + u) * pitch + j) = row;
    else
      for (int v = 0; v < M && i + u < q && j + v < n; v++) out[(i + u) * pitch + j + v] = row.v[v];
  }
}

/* (q, n) with rows `pitch` apart: q . x, or -|q - x|^2. */
template <class T>
static int similarities(pg_call *c, int metric, int64_t q, int64_t n, int64_t d, const T *a, const T *b, T *out,
                        int64_t pitch) {
  if (metric != L2) return pg_cuda_gemm<T>(0, 1, q, n, d, 1, a, d, b, d, 0, out, pitch);
  enum { M = pg_pack<T>::N, SIDE = pg_tile<T, M>::SIDE };
  PG_LAUNCH(c, (distance_kernel<T, M>), (unsigned)((q + SIDE - 1) / SIDE * ((n + SIDE - 1) / SIDE)), PG_BLOCK, q, n, d,
            a, b, pg_packable<T>(d, a, b), out, pitch);
  return PG_OK;
}

/* ---- a row's k best --------------------------------------------------------------------------------------------- */

/* What of a chunk is new, and how its products become similarities. */
template <class T> struct chunk {
  const T *products;                         /* (queries, columns), rows `pitch` apart */
  const T *query_inverse, *database_inverse; /* cosine; else NULL */
  int64_t pitch, columns, seen;              /* the first `seen` columns were in the chunk before */
  int64_t first_query, first_row, self;      /* where it stands; self: query i is not to find row i */
};

/* A block: the columns begin.. of one query (one of `parts`), merged into its list of `room` (a power of two), the
 * first k of which count. e: the list, if it was needed yet, then what was kept. */
template <class T, class E> static __global__ void select_kernel(chunk<T> s, int64_t parts, int k, int room, E *lists) {
  enum { EACH = 2, STEP = EACH * PG_BLOCK };
  PG_SHARED(E, e, [2 * MOST]);
  PG_SHARED(int, kept, [1]);
  E *fresh = e + MOST, *list = lists + blockIdx.x * (int64_t)room;
  int64_t row = blockIdx.x / parts, span = (s.columns + parts - 1) / parts, begin = blockIdx.x % parts * span;
  int64_t end = PG_MIN(begin + span, s.columns), self = s.self ? s.first_query + row - s.first_row : -1;
  T scale = s.query_inverse ? s.query_inverse[row] : T(1);
  int lane = threadIdx.x % PG_WARP, loaded = 0;
  E bar = list[k - 1];
  if (threadIdx.x == 0) *kept = 0;
  __syncthreads();
  for (int64_t from = begin; from < end; from += STEP) {
    T value[EACH];
#pragma unroll
    for (int u = 0; u < EACH; u++) {
      int64_t j = from + u * PG_BLOCK + threadIdx.x;
      value[u] = j < end ? s.products[row * s.pitch + j] : T(0);
      if (s.query_inverse && j < end) value[u] = value[u] * scale * s.database_inverse[j];
    }
#pragma unroll
    for (int u = 0; u < EACH; u++) {
      int64_t j = from + u * PG_BLOCK + threadIdx.x;
      E mine = E::of(pg_key(value[u], true), s.first_row + j);
      bool ahead = j < end && j >= s.seen && j != self && mine.before(bar);
      unsigned votes = __ballot_sync(PG_FULL_MASK, ahead);
      int at = 0;
      if (votes && lane == 0) at = atomicAdd(kept, __popc(votes)); /* which place does not matter: they are sorted */
      at = __shfl_sync(PG_FULL_MASK, at, 0) + __popc(votes & ((1u << lane) - 1));
      if (ahead) fresh[at] = mine;
    }
    __syncthreads();
    int have = *kept; /* one answer for the whole block, read before anyone goes on */
    __syncthreads();
    if (!(have > MOST - STEP || (have > 0 && from + STEP >= end))) continue;
    int run = pg_power_of_two(have);
    for (int i = threadIdx.x; !loaded && i < room; i += PG_BLOCK) e[i] = list[i];
    for (int i = have + threadIdx.x; i < PG_MAX(run, room); i += PG_BLOCK) fresh[i] = pg_last_entry<E>();
    if (threadIdx.x == 0) *kept = 0;
    loaded = 1;
    __syncthreads();
    pg_block_sort(fresh, run, run);
    pg_block_join(e, fresh, room);
    bar = e[k - 1];
  }
  for (int i = threadIdx.x; loaded && i < room; i += PG_BLOCK) list[i] = e[i];
}

/* A block a query: its parts' lists joined, and what they stand for. */
template <class T, class E>
static __global__ void join_kernel(int64_t parts, int k, int room, bool negate, const E *lists, T *value,
                                   int32_t *index) {
  PG_SHARED(E, e, [2 * MOST]);
  const E *from = lists + blockIdx.x * parts * room;
  for (int64_t part = 0; part < parts; part++) {
    for (int i = threadIdx.x; i < room; i += PG_BLOCK) e[(part ? MOST : 0) + i] = from[part * room + i];
    __syncthreads();
    if (part) pg_block_join(e, e + MOST, room);
  }
  for (int i = threadIdx.x; i < k; i += PG_BLOCK) {
    T s = pg_unkey_descending(e[i].key());
    value[(int64_t)blockIdx.x * k + i] = negate ? -s : s, index[(int64_t)blockIdx.x * k + i] = e[i].place();
  }
}

template <class T>
static int select_best(pg_call *c, int64_t q, int64_t n, int64_t d, int64_t k, int metric, bool self) {
  typedef typename pg_entry_for<T>::type E;
  const T *a = PG_AT(const T, c->in[0]), *b = PG_AT(const T, c->in[1]);
  int room = pg_power_of_two(k);
  int64_t rows = PG_MIN(q, (int64_t)ROWS), columns = PG_MAX(d, rows) * (int64_t)sizeof(T);
  columns = PG_MIN(n, PG_MAX((int64_t)MOST, BUFFER / columns / 128 * 128));
  int64_t pitch = (columns + 3) / 4 * 4, parts = PG_MAX((int64_t)1, PG_MIN(BLOCKS / q, columns / 1024));
  int64_t group = PG_MIN(q, PG_MAX(rows, LISTS / (parts * room * (int64_t)sizeof(E))));
  size_t list_bytes = sizeof(E) * (size_t)(group * parts * room);
  pg_scratch lists(list_bytes), products(sizeof(T) * (size_t)(rows * pitch)),
      norms(sizeof(T) * (size_t)(group + columns));
  if (lists.status || products.status || norms.status) return PG_ERR_MEMORY;
  T *query_inverse = metric == COSINE ? norms.at<T>() : NULL,
    *inverse = metric == COSINE ? query_inverse + group : NULL;
  for (int64_t from = 0; from < q; from += group) {
    int64_t queries = PG_MIN(group, q - from);
    if (metric == COSINE) PG_TRY(inverses(c, queries, d, a + from * d, query_inverse));
    PG_TRY(pg_cuda_status(cudaMemsetAsync(lists.at<char>(), 0xff, list_bytes, pg_cuda_stream()), "knn"));
    for (int64_t done = 0; done < n; done += columns) {
      int64_t first = PG_MIN(done, n - columns);
      if (metric == COSINE) PG_TRY(inverses(c, columns, d, b + first * d, inverse));
      for (int64_t i = 0; i < queries; i += rows) {
        int64_t count = PG_MIN(rows, queries - i);
        chunk<T> s = {products.at<T>(),
                      metric == COSINE ? query_inverse + i : NULL,
                      inverse,
                      pitch,
                      columns,
                      done - first,
                      from + i,
                      first,
                      self};
        PG_TRY(similarities(c, metric, count, columns, d, a + (from + i) * d, b + first * d, products.at<T>(), pitch));
        PG_LAUNCH(c, (select_kernel<T, E>), (unsigned)(count * parts), PG_BLOCK, s, parts, (int)k, room,
                  lists.at<E>() + i * parts * room);
      }
    }
    PG_LAUNCH(c, (join_kernel<T, E>), (unsigned)queries, PG_BLOCK, parts, (int)k, room, metric == L2,
              lists.at<const E>(), PG_AT(T, c->out[0]) + from * k, PG_AT(int32_t, c->out[1]) + from * k);
  }
  return PG_OK;
}

/* ---- many neighbours: whole rows sorted ------------------------------------------------------------------------- */

template <class T>
static __global__ void row_kernel(int64_t rows, int64_t n, int64_t self, const T *query_inverse, const T *inverse,
                                  T *x) {
  int64_t i = pg_thread();
  if (i >= rows * n) return;
  T s = query_inverse ? x[i] * query_inverse[i / n] * inverse[i % n] : x[i];
  x[i] = self >= 0 && i % n == self + i / n ? (T)NAN : s; /* last, and k leaves room for it */
}

template <class T> static __global__ void negate_kernel(int64_t n, T *x) {
  int64_t i = pg_thread();
  if (i < n) x[i] = -x[i];
}

template <class T> static int sort_rows(pg_call *c, int64_t q, int64_t n, int64_t d, int64_t k, int metric, bool self) {
  const T *a = PG_AT(const T, c->in[0]), *b = PG_AT(const T, c->in[1]);
  T *value = PG_AT(T, c->out[0]);
  int64_t rows = PG_MIN(q, PG_MAX((int64_t)1, BUFFER / (n * (int64_t)sizeof(T))));
  pg_scratch products(sizeof(T) * (size_t)(rows * n)), norms(sizeof(T) * (size_t)(q + n));
  if (products.status || norms.status) return PG_ERR_MEMORY;
  T *query_inverse = metric == COSINE ? norms.at<T>() : NULL, *inverse = metric == COSINE ? query_inverse + q : NULL;
  if (metric == COSINE) {
    PG_TRY(inverses(c, q, d, a, query_inverse));
    PG_TRY(inverses(c, n, d, b, inverse));
  }
  for (int64_t from = 0; from < q; from += rows) {
    int64_t count = PG_MIN(rows, q - from);
    T *x = products.at<T>();
    PG_TRY(similarities(c, metric, count, n, d, a + from * d, b, x, n));
    if (metric == COSINE || self)
      PG_LAUNCH(c, row_kernel<T>, pg_blocks(count * n), PG_BLOCK, count, n, self ? from : (int64_t)-1,
                query_inverse ? query_inverse + from : NULL, inverse, x);
    PG_TRY(pg_cuda_order<T>(c, {count, n, k, 1, x, value + from * k, PG_AT(int32_t, c->out[1]) + from * k}));
  }
  if (metric == L2) PG_LAUNCH(c, negate_kernel<T>, pg_blocks(q * k), PG_BLOCK, q * k, value);
  return PG_OK;
}

template <class T> static int knn_forward(pg_call *c) {
  int64_t q = c->in[0]->shape[0], n = c->in[1]->shape[0], d = c->in[0]->shape[1], k = c->p[0].ints[0];
  int metric = (int)c->p[1].ints[0];
  bool self = c->p[2].ints[0] != 0;
  if (!q) return PG_OK;
  return k <= MOST ? select_best<T>(c, q, n, d, k, metric, self) : sort_rows<T>(c, q, n, d, k, metric, self);
}

PG_CUDA_OP(knn, {knn_forward<float>, knn_forward<double>}, {})
