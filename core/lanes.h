/* lanes.h - sums of a row in four vectors at a time, for the kernels that are compiled once for each real type: include
 * it inside #ifdef REAL, after K and real. A single running sum would wait for itself at every step; four quarters of
 * the row would be four streams from memory. The order of the additions depends on n alone. */
typedef real K(lanes) __attribute__((vector_size(64), aligned(sizeof(real)), may_alias));

/* sum_i (x_i - shift)^power, power 1 or 2 */
static inline __attribute__((always_inline)) real K(power_sum)(int64_t n, const real *x, real shift, int power) {
  enum { WIDTH = 64 / sizeof(real) };
  K(lanes) sum[4] = {{0}};
  int64_t i = 0;
  for (; i + 4 * WIDTH <= n; i += 4 * WIDTH)
    for (int k = 0; k < 4; k++) {
      K(lanes) d = *(const K(lanes) *)(x + i + k * WIDTH) - shift;
      if (power == 2) d *= d;
      sum[k] += d;
    }
  sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  real total = 0;
  for (int k = 0; k < WIDTH; k++) total += sum[0][k];
  for (; i < n; i++) total += power == 2 ? (x[i] - shift) * (x[i] - shift) : x[i] - shift;
  return total;
}
