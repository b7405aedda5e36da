/* where.cu - z = a where cond is not 0, else b, with NumPy's broadcasting of all three.
 *
 * A thread takes 16 bytes of the output and as many elements of cond (as in binary.cu). Backward parts the gradient in
 * one pass, exactly 0 where the other was picked, and sums back over what was stretched. */
#include "../cuda/cuda.h"

template <class T, int W>
static __global__ void where_kernel(int64_t n, pg_walk w, const uint8_t *cond, const T *a, const T *b, T *z) {
  int64_t i = pg_thread() * W, at[3];
  if (i >= n) return;
  pg_walk_places(w, i, at);
  pg_pack<uint8_t, W> pick = pg_take<W>(cond + at[0], w.step[0], n - i);
  pg_pack<T, W> x = pg_take<W>(a + at[1], w.step[1], n - i), y = pg_take<W>(b + at[2], w.step[2], n - i);
#pragma unroll
  for (int k = 0; k < W; k++) x.v[k] = pick.v[k] ? x.v[k] : y.v[k];
  pg_put(z + i, x, n - i);
}

template <class T> static int where_as(pg_call *c) {
  enum { W = pg_pack<T>::N };
  int64_t n = pg_numel(c->out[0]);
  if (!n) return PG_OK;
  pg_walk w = pg_walk_over(c->out[0], 3, c->in);
  const uint8_t *cond = PG_AT(const uint8_t, c->in[0]);
  const T *a = PG_AT(const T, c->in[1]), *b = PG_AT(const T, c->in[2]);
  T *z = PG_AT(T, c->out[0]);
  if (pg_walk_packable<W>(w, 0, cond) && pg_walk_packable<W>(w, 1, a) && pg_walk_packable<W>(w, 2, b))
    PG_LAUNCH(c, (where_kernel<T, W>), pg_blocks(n, PG_BLOCK * W), PG_BLOCK, n, w, cond, a, b, z);
  else
    PG_LAUNCH(c, (where_kernel<T, 1>), pg_blocks(n), PG_BLOCK, n, w, cond, a, b, z);
  return PG_OK;
}

static int forward(pg_call *c) {
  switch (c->in[1]->dtype) {
  case PG_FLOAT32: return where_as<float>(c);
  case PG_FLOAT64: return where_as<double>(c);
  case PG_INT32: return where_as<int32_t>(c);
  default: return where_as<uint8_t>(c);
  }
}

/* da and db: NULL where they are not asked for. */
template <class T, int W>
static __global__ void part_kernel(int64_t n, pg_walk w, const uint8_t *cond, const T *dz, T *da, T *db) {
  int64_t i = pg_thread() * W, at[1];
  if (i >= n) return;
  pg_walk_places(w, i, at);
  pg_pack<uint8_t, W> pick = pg_take<W>(cond + at[0], w.step[0], n - i);
  pg_pack<T, W> g = pg_take<W>(dz + i, 1, n - i), out;
  if (da) {
#pragma unroll
    for (int k = 0; k < W; k++) out.v[k] = pick.v[k] ? g.v[k] : (T)0;
    pg_put(da + i, out, n - i);
  }
  if (db) {
#pragma unroll
    for (int k = 0; k < W; k++) out.v[k] = pick.v[k] ? (T)0 : g.v[k];
    pg_put(db + i, out, n - i);
  }
}

/* Both parts of the gradient at the broadcast shape. */
template <class T> static int part(pg_call *c, pg_tensor *for_a, pg_tensor *for_b) {
  enum { W = pg_pack<T>::N };
  int64_t n = pg_numel(c->grad_out[0]);
  if (!n) return PG_OK;
  pg_walk w = pg_walk_over(c->grad_out[0], 1, c->in);
  const uint8_t *cond = PG_AT(const uint8_t, c->in[0]);
  const T *dz = PG_AT(const T, c->grad_out[0]);
  T *da = for_a ? PG_AT(T, for_a) : NULL, *db = for_b ? PG_AT(T, for_b) : NULL;
  if (pg_walk_packable<W>(w, 0, cond) && pg_packable<T>(0, dz, da, db))
    PG_LAUNCH(c, (part_kernel<T, W>), pg_blocks(n, PG_BLOCK * W), PG_BLOCK, n, w, cond, dz, da, db);
  else
    PG_LAUNCH(c, (part_kernel<T, 1>), pg_blocks(n), PG_BLOCK, n, w, cond, dz, da, db);
  return PG_OK;
}

static int backward(pg_call *c) {
  return pg_cuda_grads(c, c->grad_in + 1, c->grad_out[0]->dtype == PG_FLOAT32 ? part<float> : part<double>);
}

PG_CUDA_OP(where, {NULL, NULL, NULL, forward}, {NULL, NULL, NULL, backward})
