/* binary.cu - z = f(a, b) with NumPy's broadcasting, and the same with a number in place of b.
 *
 * A thread takes 16 bytes of the output. Operands are walked as on the host (pg_walk): one that runs along with the
 * output is read 16 bytes at a time, one that stands still (a number, a column) once, any other element by element;
 * what cannot be cut into packs goes one element a thread. Backward computes both derivatives in one pass at the
 * broadcast shape, and sums back over what was stretched (pg_cuda_sum_to). */
#include "../cuda/cuda.h"

/* ---- the functions: value, derivative by a, derivative by b, as in binary.c -------------------------------------- */

template <class T> struct wrapping { /* the type in which integers wrap around */
  typedef uint32_t type;
};
template <> struct wrapping<float> { typedef float type; };
template <> struct wrapping<double> { typedef double type; };
#define WRAP(x) ((typename wrapping<T>::type)(x))

/* READS_A, READS_B: which operands the derivatives by a and by b look at. */
enum { READS_A = 1, READS_B = 2, READS_BOTH = 3 };

#define VALUE(value_)                                                                                                  \
  template <class T> static __device__ __forceinline__ T value(T x, T y) { return value_; }
#define SLOPES(reads_da, da_, reads_db, db_)                                                                           \
  enum { DA = reads_da, DB = reads_db };                                                                               \
  template <class T> static __device__ __forceinline__ T da(T x, T y) { return (void)x, (void)y, (da_); }              \
  template <class T> static __device__ __forceinline__ T db(T x, T y) { return (void)x, (void)y, (db_); }

template <class T> static __device__ __forceinline__ T quotient(T x, T y) { /* of integers; a b of 0 was refused */
  return y ? (T)((int64_t)x / (int64_t)y) : (T)0;
}
static __device__ __forceinline__ float quotient(float x, float y) { return x / y; }
static __device__ __forceinline__ double quotient(double x, double y) { return x / y; }

template <class T> static __device__ __forceinline__ T power(T x, T n) { /* of integers */
  uint32_t y = 1, base = (uint32_t)x;
  for (uint32_t bits = (uint32_t)n; bits; bits >>= 1, base *= base)
    if (bits & 1) y *= base;
  return (T)y;
}
static __device__ __forceinline__ float power(float x, float y) { return pg_pow(x, y); }
static __device__ __forceinline__ double power(double x, double y) { return pg_pow(x, y); }

struct add_op {
  VALUE((T)(WRAP(x) + WRAP(y)))
};
struct sub_op {
  VALUE((T)(WRAP(x) - WRAP(y)))
};
struct mul_op {
  VALUE((T)(WRAP(x) * WRAP(y)))
  SLOPES(READS_B, y, READS_A, x)
};
struct div_op {
  VALUE(quotient(x, y))
  SLOPES(READS_B, 1 / y, READS_BOTH, -x / (y * y))
};
struct pow_op {
  VALUE(power(x, y))
  SLOPES(READS_BOTH, y == 0 ? (T)0 : y * power(x, y - 1), READS_BOTH, x > 0 ? power(x, y) * pg_log(x) : (T)0)
};
struct maximum_op { /* NaN wins; equal ones share the gradient */
  VALUE(x != x || x > y ? x : y)
  SLOPES(READS_BOTH, (T)(x > y) + (x == y) * (T)0.5, READS_BOTH, (T)(y > x) + (x == y) * (T)0.5)
};
struct minimum_op {
  VALUE(x != x || x < y ? x : y)
  SLOPES(READS_BOTH, (T)(x < y) + (x == y) * (T)0.5, READS_BOTH, (T)(y < x) + (x == y) * (T)0.5)
};

/* ---- forward ----------------------------------------------------------------------------------------------------- */

template <class T, class F, int W>
static __global__ void forward_kernel(int64_t n, pg_walk w, const T *a, const T *b, T *z) {
  int64_t i = pg_thread() * W, at[2];
  if (i >= n) return;
  pg_walk_places(w, i, at);
  pg_pack<T, W> x = pg_take<W>(a + at[0], w.step[0], n - i), y = pg_take<W>(b + at[1], w.step[1], n - i);
#pragma unroll
  for (int k = 0; k < W; k++) x.v[k] = F::value(x.v[k], y.v[k]);
  pg_put(z + i, x, n - i);
}

template <class T, class F> static int forward(pg_call *c) {
  enum { W = pg_pack<T>::N };
  int64_t n = pg_numel(c->out[0]);
  if (!n) return PG_OK;
  pg_walk w = pg_walk_over(c->out[0], 2, c->in);
  const T *a = PG_AT(const T, c->in[0]), *b = PG_AT(const T, c->in[1]);
  T *z = PG_AT(T, c->out[0]);
  if (pg_walk_packable<W>(w, 0, a) && pg_walk_packable<W>(w, 1, b))
    PG_LAUNCH(c, (forward_kernel<T, F, W>), pg_blocks(n, PG_BLOCK * W), PG_BLOCK, n, w, a, b, z);
  else
    PG_LAUNCH(c, (forward_kernel<T, F, 1>), pg_blocks(n), PG_BLOCK, n, w, a, b, z);
  return PG_OK;
}

/* ---- backward: a and da, b and db are NULL where they are not asked for ------------------------------------------ */

template <class T, class F, int W>
static __global__ void backward_kernel(int64_t n, pg_walk w, const T *a, const T *b, const T *dz, T *da, T *db) {
  int64_t i = pg_thread() * W, at[2];
  if (i >= n) return;
  pg_walk_places(w, i, at);
  pg_pack<T, W> x = {}, y = {}, g = pg_take<W>(dz + i, 1, n - i), out;
  if (a) x = pg_take<W>(a + at[0], w.step[0], n - i);
  if (b) y = pg_take<W>(b + at[1], w.step[1], n - i);
  if (da) {
#pragma unroll
    for (int k = 0; k < W; k++) out.v[k] = g.v[k] * F::da(x.v[k], y.v[k]);
    pg_put(da + i, out, n - i);
  }
  if (db) {
#pragma unroll
    for (int k = 0; k < W; k++) out.v[k] = g.v[k] * F::db(x.v[k], y.v[k]);
    pg_put(db + i, out, n - i);
  }
}

/* Both derivatives times the gradient, at the broadcast shape. */
template <class T, class F> static int slopes(pg_call *c, pg_tensor *for_a, pg_tensor *for_b) {
  enum { W = pg_pack<T>::N };
  int64_t n = pg_numel(c->grad_out[0]);
  if (!n) return PG_OK;
  pg_walk w = pg_walk_over(c->grad_out[0], 2, c->in);
  T *da = for_a ? PG_AT(T, for_a) : NULL, *db = for_b ? PG_AT(T, for_b) : NULL;
  int reads = (da ? F::DA : 0) | (db ? F::DB : 0);
  const T *a = reads & READS_A ? PG_AT(const T, c->in[0]) : NULL, *dz = PG_AT(const T, c->grad_out[0]);
  const T *b = reads & READS_B ? PG_AT(const T, c->in[1]) : NULL;
  if (pg_walk_packable<W>(w, 0, a) && pg_walk_packable<W>(w, 1, b) && pg_packable<T>(0, dz, da, db))
    PG_LAUNCH(c, (backward_kernel<T, F, W>), pg_blocks(n, PG_BLOCK * W), PG_BLOCK, n, w, a, b, dz, da, db);
  else
    PG_LAUNCH(c, (backward_kernel<T, F, 1>), pg_blocks(n), PG_BLOCK, n, w, a, b, dz, da, db);
  return PG_OK;
}

template <class T, class F> static int backward(pg_call *c) { return pg_cuda_grads(c, c->grad_in, slopes<T, F>); }

/* ---- with a number, and factors of -1 ---------------------------------------------------------------------------- */

/* value(x, s), and slope(x, s), which reads x where READS_X. */
struct add_scalar_op : add_op {};
struct mul_scalar_op : mul_op {
  enum { READS_X = 0 };
  template <class T> static __device__ __forceinline__ T slope(T, T s) { return s; }
};
struct pow_scalar_op {
  enum { READS_X = 1 };
  static __device__ __forceinline__ int32_t value(int32_t x, int32_t s) { return power(x, s); }
  static __device__ __forceinline__ uint8_t value(uint8_t x, uint8_t s) { return power(x, s); }
  template <class T> static __device__ __forceinline__ T value(T x, T s) { return s == 2 ? x * x : power(x, s); }
  template <class T> static __device__ __forceinline__ T slope(T x, T s) {
    return s == 2 ? 2 * x : s == 0 ? (T)0 : s * power(x, s - 1);
  }
};

template <class T, class F, int W> static __global__ void scalar_kernel(int64_t n, const T *x, T s, T *y) {
  int64_t i = pg_thread() * W;
  if (i >= n) return;
  pg_pack<T, W> p = pg_take<W>(x + i, 1, n - i);
#pragma unroll
  for (int k = 0; k < W; k++) p.v[k] = F::value(p.v[k], s);
  pg_put(y + i, p, n - i);
}

template <class T, class F, int W>
static __global__ void scalar_grad_kernel(int64_t n, const T *x, T s, const T *dy, T *dx) {
  int64_t i = pg_thread() * W;
  if (i >= n) return;
  pg_pack<T, W> g = pg_take<W>(dy + i, 1, n - i), p = F::READS_X ? pg_take<W>(x + i, 1, n - i) : g;
#pragma unroll
  for (int k = 0; k < W; k++) g.v[k] *= F::slope(p.v[k], s);
  pg_put(dx + i, g, n - i);
}

template <class T, class F> static int with_number(const pg_call *c, int64_t n, const T *x, T s, T *y) {
  enum { W = pg_pack<T>::N };
  if (pg_packable<T>(0, x, y))
    PG_LAUNCH(c, (scalar_kernel<T, F, W>), pg_blocks(n, PG_BLOCK * W), PG_BLOCK, n, x, s, y);
  else
    PG_LAUNCH(c, (scalar_kernel<T, F, 1>), pg_blocks(n), PG_BLOCK, n, x, s, y);
  return PG_OK;
}

template <class T, class F> static int scalar_forward(pg_call *c) {
  return with_number<T, F>(c, pg_numel(c->in[0]), PG_AT(const T, c->in[0]), (T)c->p[0].num, PG_AT(T, c->out[0]));
}

template <class T, class F> static int scalar_backward(pg_call *c) {
  enum { W = pg_pack<T>::N };
  int64_t n = pg_numel(c->in[0]);
  const T *x = F::READS_X ? PG_AT(const T, c->in[0]) : NULL, *dy = PG_AT(const T, c->grad_out[0]);
  T *dx = PG_AT(T, c->grad_in[0]), s = (T)c->p[0].num;
  if (pg_packable<T>(0, x, dy, dx))
    PG_LAUNCH(c, (scalar_grad_kernel<T, F, W>), pg_blocks(n, PG_BLOCK * W), PG_BLOCK, n, x, s, dy, dx);
  else
    PG_LAUNCH(c, (scalar_grad_kernel<T, F, 1>), pg_blocks(n), PG_BLOCK, n, x, s, dy, dx);
  return PG_OK;
}

static int copy_backward(pg_call *c) { return pg_copy(c->grad_in[0], c->grad_out[0]); }

/* ---- a + b and a - b: the derivatives are 1 and -1, and neither operand is there in backward --------------------- */

static int sum_or_copy(const pg_tensor *wide, pg_tensor *to) {
  return pg_same_shape(wide, to) ? pg_copy(to, wide) : pg_cuda_sum_to(wide, to);
}

static int add_backward(pg_call *c) {
  for (int side = 0; side < 2; side++)
    if (c->grad_in[side]) PG_TRY(sum_or_copy(c->grad_out[0], c->grad_in[side]));
  return PG_OK;
}

template <class T> static int sub_backward(pg_call *c) {
  pg_tensor *g = c->grad_out[0], *db = c->grad_in[1];
  if (c->grad_in[0]) PG_TRY(sum_or_copy(g, c->grad_in[0]));
  if (!db) return PG_OK;
  if (!pg_same_shape(g, db)) {
    PG_TRY(pg_cuda_sum_to(g, db));
    g = db; /* negated where it stands */
  }
  return with_number<T, mul_op>(c, pg_numel(db), PG_AT(const T, g), (T)-1, PG_AT(T, db));
}

/* ---- integers: the elements of b that the host refuses are refused by a kernel that reads b alone ---------------- */

template <class T, bool ZERO>
static __global__ void check_kernel(int64_t n, const T *b, pg_strided of, pg_fault fault) {
  int64_t i = pg_thread();
  if (i >= n) return;
  int64_t value = b[pg_place(of, i)];
  if (ZERO ? value == 0 : value < 0) pg_refuse(fault, i, value);
}

template <class T, class F, bool ZERO> static int checked_forward(pg_call *c) {
  const pg_tensor *b = c->in[1];
  int64_t n = pg_numel(b);
  if (n)
    PG_LAUNCH(c, (check_kernel<T, ZERO>), pg_blocks(n), PG_BLOCK, n, PG_AT(const T, b),
              pg_strided_as(b, b->ndim, b->shape),
              pg_fault_new(c, ZERO ? "no integer has a quotient by 0; b" : "integers take no negative exponent; b"));
  return forward<T, F>(c);
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

#define FORWARD(name)                                                                                                  \
  { forward<float, name##_op>, forward<double, name##_op>, forward<int32_t, name##_op>, forward<uint8_t, name##_op> }
#define BACKWARD(name)                                                                                                 \
  { backward<float, name##_op>, backward<double, name##_op> }
PG_CUDA_OP(add, FORWARD(add), {add_backward, add_backward})
PG_CUDA_OP(sub, FORWARD(sub), {sub_backward<float>, sub_backward<double>})
PG_CUDA_OP(mul, FORWARD(mul), BACKWARD(mul))
PG_CUDA_OP(div,
           {forward<float, div_op>, forward<double, div_op>, checked_forward<int32_t, div_op, true>,
            checked_forward<uint8_t, div_op, true>},
           BACKWARD(div))
PG_CUDA_OP(pow,
           {forward<float, pow_op>, forward<double, pow_op>, checked_forward<int32_t, pow_op, false>,
            forward<uint8_t, pow_op>},
           BACKWARD(pow))
PG_CUDA_OP(maximum, FORWARD(maximum), BACKWARD(maximum))
PG_CUDA_OP(minimum, FORWARD(minimum), BACKWARD(minimum))

#define SCALAR_FORWARD(name)                                                                                           \
  {                                                                                                                    \
    scalar_forward<float, name##_op>, scalar_forward<double, name##_op>, scalar_forward<int32_t, name##_op>,           \
        scalar_forward<uint8_t, name##_op>                                                                             \
  }
#define SCALAR_BACKWARD(name)                                                                                          \
  { scalar_backward<float, name##_op>, scalar_backward<double, name##_op> }
PG_CUDA_OP(add_scalar, SCALAR_FORWARD(add_scalar), {copy_backward, copy_backward})
PG_CUDA_OP(mul_scalar, SCALAR_FORWARD(mul_scalar), SCALAR_BACKWARD(mul_scalar))
PG_CUDA_OP(pow_scalar, SCALAR_FORWARD(pow_scalar), SCALAR_BACKWARD(pow_scalar))
