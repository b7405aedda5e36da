/* lanes.h - sums of a row in eight vectors at a time, for the kernels that are compiled once for each real type:
 * include it inside #ifdef REAL, after K and real. A single running sum would wait for itself at every step; eight
 * parts of the row would be eight streams from memory. The order of the additions depends on n alone.
 *
 * Vectors have the 32 bytes of AVX2: wider ones are kept in memory by gcc where there is no AVX-512, ten times as slow,
 * and with AVX-512 eight of these are as fast as four of those. */
typedef real K(lanes) __attribute__((vector_size(32), aligned(sizeof(real)), may_alias));

/* sum_i (x_i - shift)^power, power 1 or 2 */
static inline __attribute__((always_inline)) real K(power_sum)(int64_t n, const real *x, real shift, int power) {
  enum { WIDTH = 32 / sizeof(real), VECTORS = 8 };
  K(lanes) sum[VECTORS] = {{0}};
  int64_t i = 0;
  for (; i + VECTORS * WIDTH <= n; i += VECTORS * WIDTH)
#pragma GCC unroll 8
    for (int k = 0; k < VECTORS; k++) {
      K(lanes) d = *(const K(lanes) *)(x + i + k * WIDTH) - shift;
      if (power == 2) d *= d;
      sum[k] += d;
    }
  K(lanes) even = (sum[0] + sum[2]) + (sum[4] + sum[6]), odd = (sum[1] + sum[3]) + (sum[5] + sum[7]);
  real total = 0;
  for (int k = 0; k < WIDTH; k++) total += even[k];
  for (int k = 0; k < WIDTH; k++) total += odd[k];
  for (; i < n; i++) total += power == 2 ? (x[i] - shift) * (x[i] - shift) : x[i] - shift;
  return total;
}
