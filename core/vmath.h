/* vmath.h - exp, log1p, erf and friends without branches, so that the compiler vectorises the loops around them.
 *
 * float32: polynomials, about 2 units in the last place of the result's scale; NaN and infinity pass through as in the
 * C library. float64: the C library itself, since gradients are checked there. K(v_exp)(x) is the one for the type. */
#ifndef PG_VMATH_H
#define PG_VMATH_H
#include <math.h>
#include <stdint.h>

/* exp(x) = 2^n e^r, n = round(x / ln 2), |r| <= ln 2 / 2; e^r by its series to r^7. 2^n is applied in two halves, so
 * that neither overflows before the result does, and subnormal results come out. */
static inline __attribute__((always_inline)) float v_exp_f32(float x) {
  float clamped = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x == x ? x : 0.0f;
  float n = (clamped * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounds: 1.5 * 2^23 leaves no fraction bits */
  float r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 0.00138888889f + r * 0.000198412698f;
  p = 1.0f + r * (1.0f + r * (0.5f + r * (0.166666667f + r * (0.0416666667f + r * (0.00833333333f + r * p)))));
  int32_t half = (int32_t)n >> 1, rest = (int32_t)n - half;
  union {
    int32_t i;
    float f;
  } a = {.i = (half + 127) << 23}, b = {.i = (rest + 127) << 23};
  return x != x ? x : p * a.f * b.f;
}

/* log(1 + u) for u in [0, 1]: 2 atanh(s), s = u / (2 + u) <= 1/3. */
static inline __attribute__((always_inline)) float v_log1p_f32(float u) {
  float s = u / (2.0f + u), q = s * s;
  return 2.0f * s *
         (1.0f + q * (0.333333333f +
                      q * (0.2f + q * (0.142857143f + q * (0.111111111f + q * (0.0909090909f + q * 0.0769230769f))))));
}

/* Abramowitz and Stegun 7.1.26: absolute error below 1.5e-7. */
static inline __attribute__((always_inline)) float v_erf_f32(float x) {
  float a = fabsf(x), t = 1.0f / (1.0f + 0.3275911f * a);
  float p = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  return copysignf(1.0f - p * v_exp_f32(-a * a), x);
}

static inline __attribute__((always_inline)) float v_sigmoid_f32(float x) { return 1.0f / (1.0f + v_exp_f32(-x)); }
static inline __attribute__((always_inline)) float v_tanh_f32(float x) {
  float a = fabsf(x), e = v_exp_f32(-2.0f * a), big = (1.0f - e) / (1.0f + e);
  float small = x * (1.0f - x * x * (0.333333333f - x * x * 0.133333333f)); /* no cancellation near 0 */
  return a < 0.05f ? small : copysignf(big, x);
}
static inline __attribute__((always_inline)) float v_softplus_f32(float x) {
  return (x > 0 ? x : x != x ? x : 0.0f) + v_log1p_f32(v_exp_f32(-fabsf(x)));
}

static inline double v_exp_f64(double x) { return exp(x); }
static inline double v_log1p_f64(double x) { return log1p(x); }
static inline double v_erf_f64(double x) { return erf(x); }
static inline double v_sigmoid_f64(double x) { return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x)); }
static inline double v_tanh_f64(double x) { return tanh(x); }
static inline double v_softplus_f64(double x) { return fmax(x, 0) + log1p(exp(-fabs(x))) + (x != x ? x : 0); }

#endif
