/* vmath.h - exp, log1p, the normal tail and friends without branches, so that the compiler vectorises the loops around
 * them.
 *
 * float32: polynomials, about 2 units in the last place of the result's scale; NaN and infinity pass through as in the
 * C library. float64: the C library itself, since gradients are checked there. K(v_exp)(x) is the one for the type. */
#ifndef PG_VMATH_H
#define PG_VMATH_H
#include <math.h>
#include <stdint.h>

/* e^(x + low) = 2^n e^r, n = round(x / ln 2), |r| <= ln 2 / 2: returns e^r by its minimax polynomial (relative error
 * 4e-9) and n. Adding 1.5 * 2^23 rounds, and leaves n in the low bits. `low` is what rounding cut off x. NaN passes. */
static inline __attribute__((always_inline)) float v_exp_parts_f32(float x, float low, int32_t *n) {
  union {
    float f;
    uint32_t i;
  } shifted = {.f = x * 1.44269504f + 12582912.0f};
  float whole = shifted.f - 12582912.0f, r = (x - whole * 0.693145752f) - (whole * 1.42860677e-6f - low);
  *n = (int32_t)(shifted.i - 0x4b400000u);
  float p = 0.00836750958f + r * 0.00138637575f;
  return 1.0f + r * (1.0f + r * (0.5f + r * (0.166665345f + r * (0.0416672379f + r * p))));
}

static inline __attribute__((always_inline)) float v_power_f32(int32_t n) { /* 2^n, -126 <= n <= 127 */
  union {
    uint32_t i;
    float f;
  } power = {.i = (uint32_t)(n + 127) << 23};
  return power.f;
}

/* 2^n goes on in two halves, so that neither overflows before the result does, and subnormal results come out. */
static inline __attribute__((always_inline)) float v_exp_f32(float x) {
  int32_t n;
  x = x < -104.0f ? -104.0f : x; /* NaN fails every comparison and stays */
  float p = v_exp_parts_f32(x > 89.0f ? 89.0f : x, 0, &n);
  return p * v_power_f32(n >> 1) * v_power_f32(n - (n >> 1));
}

/* For x <= 0, where softmax and attention are: results below 2^-126 are 0. */
static inline __attribute__((always_inline)) float v_decay_f32(float x, float low) {
  int32_t n;
  float p = v_exp_parts_f32(x, low, &n) * v_power_f32(n);
  return x < -87.3f ? 0 : p;
}

/* log(1 + u) for u in [0, 1]: 2 atanh(s), s = u / (2 + u) <= 1/3. */
static inline __attribute__((always_inline)) float v_log1p_f32(float u) {
  float s = u / (2.0f + u), q = s * s;
  return 2.0f * s *
         (1.0f + q * (0.333333333f +
                      q * (0.2f + q * (0.142857143f + q * (0.111111111f + q * (0.0909090909f + q * 0.0769230769f))))));
}

/* The normal distribution at 0 <= t <= 13.5, beyond which both are 0 in float: density phi = e^(-t^2/2) / sqrt(2 pi),
 * and tail Q(t) = erfc(t / sqrt 2) / 2. t >= 1.25:  Q = e^(-t^2/2) d P((t - 2.5) d),  d = 1 / (t + 2.5)   (Shepherd and
 * Laframboise, Math. Comp. 36, 1981) t < 1.25:   Q = 1/2 - t R(t^2) with minimax P and R, relative errors 5e-8 and
 * 1e-8. t^2 is taken in two parts, since the exponential multiplies the rounding error of its argument by t^2. Q is
 * then within 6 units in the last place however far out. */
static inline __attribute__((always_inline)) float v_normal_tail_f32(float t, float *density) {
  union {
    float f;
    uint32_t i;
  } high = {.f = t};
  high.i &= 0xfffff000u; /* 12 bits: its square is exact */
  float low = t - high.f, e = v_decay_f32(-0.5f * high.f * high.f, -0.5f * low * (t + high.f));
  float d = 1.0f / (t + 2.5f), u = (t - 2.5f) * d;
  float p = -0.0164441782981f + u * (-0.0014504359569f + u * 0.0027105833869f);
  p = 0.7066566348076f + u * (-0.4336919188499f + u * (0.1319907158613f + u * (0.0092269573361f + u * p)));
  float s = t * t, near = -0.0011838371865f + s * (0.0001110411249f + s * -0.0000068094910f);
  near = 0.3989422619343f + s * (-0.0664902105927f + s * (0.0099722826853f + s * near));
  *density = 0.398942280f * e;
  return t < 1.25f ? 0.5f - t * near : e * (d * p);
}

/* gelu(x) = x Phi(x), Phi(x) = 1 - Q(x): written as max(x, 0) - |x| Q(|x|), nothing cancels on the negative side. */
static inline __attribute__((always_inline)) float v_gelu_f32(float x) {
  float a = fabsf(x), t = a > 13.5f ? 13.5f : a, density, q = v_normal_tail_f32(t, &density);
  return (x > 0 ? x : 0) - t * q;
}
static inline __attribute__((always_inline)) float v_gelu_slope_f32(float x) { /* Phi(x) + x phi(x) */
  float a = fabsf(x), t = a > 13.5f ? 13.5f : a, density, q = v_normal_tail_f32(t, &density);
  float rest = q - t * density;
  return x > 0 ? 1 - rest : rest;
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

/* 2^x for x <= 127 (float) or 1023 (double); results below the least normal number are 0, NaN passes. Adding 1.5 * 2^23
 * (2^52) and the exponent's bias rounds to n and leaves n + bias in the low bits, where a shift makes them 2^n; 2^r,
 * |r|
 * <= 1/2, is a minimax polynomial of relative error 7.5e-8 (3e-18). Both vectorise, double too. */
static inline __attribute__((always_inline)) float v_power2_f32(float x) {
  union {
    float f;
    uint32_t i;
  } shifted = {.f = x + 12583039.0f}, power = {.i = shifted.i << 23};
  float r = x - (shifted.f - 12583039.0f);
  float p = 0.240221197f + r * (0.0555071327f + r * (0.00967554134f + r * 0.00132764726f));
  p = (1.00000007f + r * (0.693146967f + r * p)) * power.f;
  return x < -126.0f ? 0 : p;
}

static inline __attribute__((always_inline)) double v_power2_f64(double x) {
  union {
    double f;
    uint64_t i;
  } shifted = {.f = x + 6755399441056767.0}, power = {.i = shifted.i << 52};
  double r = x - (shifted.f - 6755399441056767.0);
  double p = 1.0178198021671931e-7 + r * (7.0741056135081428e-9 + r * 4.4352827069572715e-10);
  p = 0.00015403530462532114 + r * (1.5252733729988526e-5 + r * (1.3215433089676399e-6 + r * p));
  p = 0.0096181291075883352 + r * (0.0013333558146749922 + r * p);
  p = 0.24022650695910156 + r * (0.055504108664821922 + r * p);
  p = (1 + r * (0.69314718055994533 + r * p)) * power.f;
  return x < -1022.0 ? 0 : p;
}

static inline double v_exp_f64(double x) { return exp(x); }
static inline double v_decay_f64(double x, double low) { return exp(x + low); }
static inline double v_log1p_f64(double x) { return log1p(x); }
static inline double v_gelu_f64(double x) { return x * (0.5 * erfc(-x * M_SQRT1_2)); }
static inline double v_gelu_slope_f64(double x) {
  return 0.5 * erfc(-x * M_SQRT1_2) + x * 0.3989422804014327 * exp(-0.5 * x * x);
}
static inline double v_sigmoid_f64(double x) { return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x)); }
static inline double v_tanh_f64(double x) { return tanh(x); }
static inline double v_softplus_f64(double x) { return fmax(x, 0) + log1p(exp(-fabs(x))) + (x != x ? x : 0); }

#endif
