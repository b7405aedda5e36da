/* unary.cu - y = f(x), element by element, 16 bytes a thread. Backward: dx = dy * f'(x), from x and y.
 *
 * As in unary.c a function is one row: value and derivative. What a derivative does not use is not read. */
#include "../cuda/cuda.h"

/* A row: struct name with value(x) and slope(x, y); X and Y say which of the two the slope reads. */
#define UNARY(name, uses_x, uses_y, value_, slope_)                                                                    \
  struct name {                                                                                                        \
    enum { X = uses_x, Y = uses_y };                                                                                   \
    template <class T> static __device__ __forceinline__ T value(T x) { return value_; }                               \
    template <class T> static __device__ __forceinline__ T slope(T x, T y) {                                           \
      (void)x, (void)y;                                                                                                \
      return slope_;                                                                                                   \
    }                                                                                                                  \
  };

template <class T>
static __device__ __forceinline__ T gelu_value(T x) { /* x Phi(x); erfc keeps the digits of the tail */
  const T root_half = (T)0.70710678118654752440;
  return x < 0 ? (T)0.5 * x * pg_erfc(-x * root_half) : (T)0.5 * x * (1 + pg_erf(x * root_half));
}
template <class T> static __device__ __forceinline__ T gelu_slope(T x) {
  const T root_half = (T)0.70710678118654752440, density = (T)0.39894228040143267794;
  T below = x < 0 ? (T)0.5 * pg_erfc(-x * root_half) : (T)0.5 * (1 + pg_erf(x * root_half));
  return below + x * density * pg_exp((T)-0.5 * x * x);
}
template <class T> static __device__ __forceinline__ T swish_slope(T x, T by) { /* of x sigmoid(by x) */
  T s = pg_sigmoid(by * x);
  return s * (1 + by * x * (1 - s));
}

UNARY(neg_op, 0, 0, -x, (T)-1)
UNARY(abs_op, 1, 0, pg_abs(x), (T)((x > 0) - (x < 0)))
UNARY(exp_op, 0, 1, pg_exp(x), y)
UNARY(log_op, 1, 0, pg_log(x), 1 / x)
UNARY(sqrt_op, 0, 1, pg_sqrt(x), (T)0.5 / y)
UNARY(rsqrt_op, 0, 1, 1 / pg_sqrt(x), (T)-0.5 * y * y * y)
UNARY(tanh_op, 0, 1, pg_tanh(x), 1 - y * y)
UNARY(sigmoid_op, 0, 1, pg_sigmoid(x), y *(1 - y))
UNARY(silu_op, 1, 0, x *pg_sigmoid(x), swish_slope(x, (T)1))
UNARY(relu_op, 1, 0, x > 0 || x != x ? x : (T)0, (T)(x > 0))
UNARY(gelu_op, 1, 0, gelu_value(x), gelu_slope(x))
UNARY(quick_gelu_op, 1, 0, x *pg_sigmoid((T)1.702 * x), swish_slope(x, (T)1.702))
UNARY(softplus_op, 1, 0, pg_softplus(x), pg_sigmoid(x))

/* ---- kernels: W elements a thread, 16 bytes where every row begins at a multiple of 16; the last few singly ---- */

template <class T, class F, int W> static __global__ void forward_kernel(int64_t n, const T *x, T *y) {
  int64_t i = pg_thread() * W;
  if (i + W <= n) {
    pg_pack<T, W> p = *(const pg_pack<T, W> *)(x + i);
#pragma unroll
    for (int k = 0; k < W; k++) p.v[k] = F::value(p.v[k]);
    *(pg_pack<T, W> *)(y + i) = p;
  } else {
    for (; i < n; i++) y[i] = F::value(x[i]);
  }
}

template <class T, class F, int W>
static __global__ void backward_kernel(int64_t n, const T *x, const T *y, const T *dy, T *dx) {
  typedef pg_pack<T, W> pack;
  int64_t i = pg_thread() * W;
  if (i + W <= n) {
    pack g = *(const pack *)(dy + i), a = F::X ? *(const pack *)(x + i) : g, b = F::Y ? *(const pack *)(y + i) : g;
#pragma unroll
    for (int k = 0; k < W; k++) g.v[k] *= F::slope(a.v[k], b.v[k]);
    *(pack *)(dx + i) = g;
  } else {
    for (; i < n; i++) dx[i] = dy[i] * F::slope(F::X ? x[i] : dy[i], F::Y ? y[i] : dy[i]);
  }
}

template <class T, class F> static int forward(pg_call *c) {
  enum { W = pg_pack<T>::N };
  int64_t n = pg_numel(c->in[0]);
  const T *x = PG_AT(const T, c->in[0]);
  T *y = PG_AT(T, c->out[0]);
  if (pg_packable<T>(0, x, y))
    PG_LAUNCH(c, (forward_kernel<T, F, W>), pg_blocks(n, PG_BLOCK * W), PG_BLOCK, n, x, y);
  else
    PG_LAUNCH(c, (forward_kernel<T, F, 1>), pg_blocks(n), PG_BLOCK, n, x, y);
  return PG_OK;
}

template <class T, class F> static int backward(pg_call *c) {
  enum { W = pg_pack<T>::N };
  int64_t n = pg_numel(c->in[0]);
  const T *x = F::X ? PG_AT(const T, c->in[0]) : NULL, *y = F::Y ? PG_AT(const T, c->out[0]) : NULL;
  const T *dy = PG_AT(const T, c->grad_out[0]);
  T *dx = PG_AT(T, c->grad_in[0]);
  if (pg_packable<T>(0, x, y, dy, dx))
    PG_LAUNCH(c, (backward_kernel<T, F, W>), pg_blocks(n, PG_BLOCK * W), PG_BLOCK, n, x, y, dy, dx);
  else
    PG_LAUNCH(c, (backward_kernel<T, F, 1>), pg_blocks(n), PG_BLOCK, n, x, y, dy, dx);
  return PG_OK;
}

#define ROW(name)                                                                                                      \
  PG_CUDA_OP(name, {forward<float, name##_op>, forward<double, name##_op>},                                            \
             {backward<float, name##_op>, backward<double, name##_op>})
ROW(exp)
ROW(log)
ROW(sqrt)
ROW(rsqrt)
ROW(tanh)
ROW(sigmoid)
ROW(silu)
ROW(relu)
ROW(gelu)
ROW(quick_gelu)
ROW(softplus)

/* ---- whole numbers: neg and abs wrap around, as on the host ----------------------------------------------------- */

template <bool ABS> static __global__ void int_kernel(int64_t n, const int32_t *x, int32_t *y) {
  int64_t i = pg_thread();
  if (i < n) y[i] = ABS && x[i] >= 0 ? x[i] : (int32_t)(0u - (uint32_t)x[i]);
}

template <bool ABS> static int int_forward(pg_call *c) {
  int64_t n = pg_numel(c->in[0]);
  PG_LAUNCH(c, int_kernel<ABS>, pg_blocks(n), PG_BLOCK, n, PG_AT(const int32_t, c->in[0]), PG_AT(int32_t, c->out[0]));
  return PG_OK;
}

PG_CUDA_OP(neg, {forward<float, neg_op>, forward<double, neg_op>, int_forward<false>},
           {backward<float, neg_op>, backward<double, neg_op>})
PG_CUDA_OP(abs, {forward<float, abs_op>, forward<double, abs_op>, int_forward<true>},
           {backward<float, abs_op>, backward<double, abs_op>})

/* ---- clamp: the ends let the gradient through ------------------------------------------------------------------- */

template <class T> static __global__ void clamp_kernel(int64_t n, const T *x, T lo, T hi, T *y) {
  int64_t i = pg_thread();
  if (i < n) y[i] = x[i] < lo ? lo : x[i] > hi ? hi : x[i];
}

template <class T> static __global__ void clamp_grad_kernel(int64_t n, const T *x, const T *dy, T lo, T hi, T *dx) {
  int64_t i = pg_thread();
  if (i < n) dx[i] = x[i] >= lo && x[i] <= hi ? dy[i] : (T)0;
}

template <class T> static int clamp_forward(pg_call *c) {
  int64_t n = pg_numel(c->in[0]);
  PG_LAUNCH(c, clamp_kernel<T>, pg_blocks(n), PG_BLOCK, n, PG_AT(const T, c->in[0]), (T)c->p[0].num, (T)c->p[1].num,
            PG_AT(T, c->out[0]));
  return PG_OK;
}

template <class T> static int clamp_backward(pg_call *c) {
  int64_t n = pg_numel(c->in[0]);
  PG_LAUNCH(c, clamp_grad_kernel<T>, pg_blocks(n), PG_BLOCK, n, PG_AT(const T, c->in[0]),
            PG_AT(const T, c->grad_out[0]), (T)c->p[0].num, (T)c->p[1].num, PG_AT(T, c->grad_in[0]));
  return PG_OK;
}

PG_CUDA_OP(clamp, {clamp_forward<float>, clamp_forward<double>}, {clamp_backward<float>, clamp_backward<double>})
