/* rng.c - Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
 *
 * A counter-based generator: number i of a stream is a function of (seed, i) alone, so every device and any number of
 * threads draw the same values, and a checkpoint stores two integers. */
#include "core.h"

void pg_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
    c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
    c1 = (uint32_t)b;
    c3 = (uint32_t)a;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* ---- numbered draws: four to a block ---------------------------------------------------------------------------- */

static void block_of(uint64_t seed, uint64_t block, uint32_t out[4]) {
  const uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), 0, 0};
  const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  pg_philox(counter, key, out);
}

uint32_t pg_rng_bits(uint64_t seed, uint64_t index) {
  uint32_t out[4];
  block_of(seed, index >> 2, out);
  return out[index & 3];
}

/* Box-Muller on the block's pairs: numbers 2j and 2j+1 share a radius. u in (0, 1], so the logarithm is finite. */
static void normal_pair(const uint32_t bits[2], float out[2]) {
  double u = ((bits[0] >> 8) + 1) * 0x1p-24, v = (bits[1] >> 8) * 0x1p-24;
  double r = sqrt(-2 * log(u)), angle = 6.283185307179586 * v;
  out[0] = (float)(r * cos(angle)), out[1] = (float)(r * sin(angle));
}

float pg_normal(uint64_t seed, uint64_t index) {
  uint32_t bits[4];
  float pair[2];
  block_of(seed, index >> 2, bits);
  normal_pair(bits + (index & 2), pair);
  return pair[index & 1];
}

/* ---- the global stream ------------------------------------------------------------------------------------------ */

static uint64_t global_seed = 0, global_offset = 0;

void pg_seed(uint64_t seed) { global_seed = seed, global_offset = 0; }

void pg_rng_state(uint64_t state[2]) { state[0] = global_seed, state[1] = global_offset; }

void pg_rng_restore(const uint64_t state[2]) { global_seed = state[0], global_offset = state[1]; }

void pg_rng_reserve(uint64_t count, uint64_t *seed, uint64_t *offset) {
  *seed = global_seed, *offset = global_offset;
  global_offset += (count + 3) & ~(uint64_t)3; /* every stretch starts on a whole block */
}

enum { PIECE = 4096 }; /* draws of a thread, and between two looks at the stop flag */

static int fill_random(pg_tensor *t, bool normal, const char *name) {
  if (!pg_is_float(t->dtype) || !pg_is_contiguous(t))
    return pg_fail(PG_ERR_DTYPE, "%s: needs a contiguous float32 or float64 tensor", name);
  PG_TRY(pg_check_live(t, name));
  uint64_t seed, offset;
  int64_t n = pg_numel(t);
  pg_rng_reserve((uint64_t)n, &seed, &offset);
  if (t->device != PG_CPU) {
    const pg_device_vtable *vtable = pg_device_get(t->device);
    t->storage->version++;
    return !vtable ? PG_ERR_DEVICE : n ? vtable->random(t, seed, offset, normal) : PG_OK;
  }
  float *f = PG_AT(float, t);
  double *d = PG_AT(double, t);
  bool single = t->dtype == PG_FLOAT32;
#pragma omp parallel for schedule(static) if (n > PIECE)
  for (int64_t begin = 0; begin < n; begin += PIECE) {
    if (pg_stopping()) continue;
    for (int64_t i = begin; i < PG_MIN(begin + PIECE, n);
         i += 4) { /* a stretch of the stream starts on a whole block */
      uint32_t bits[4];
      float value[4];
      block_of(seed, (offset + (uint64_t)i) >> 2, bits);
      if (normal)
        normal_pair(bits, value), normal_pair(bits + 2, value + 2);
      else
        for (int k = 0; k < 4; k++) value[k] = (bits[k] >> 8) * 0x1p-24f;
      for (int64_t k = i; k < PG_MIN(i + 4, n); k++) {
        if (single)
          f[k] = value[k - i];
        else
          d[k] = value[k - i];
      }
    }
  }
  t->storage->version++;
  return pg_unless_stopped(PG_OK);
}

int pg_randn(pg_tensor *t) { return fill_random(t, true, "randn"); }

int pg_rand(pg_tensor *t) { return fill_random(t, false, "rand"); }

int pg_randperm(int32_t *out, int64_t n) {
  uint64_t seed, offset;
  pg_rng_reserve((uint64_t)n, &seed, &offset);
  for (int64_t i = 0; i < n && (i % PIECE || !pg_stopping()); i++) out[i] = (int32_t)i;
  for (int64_t i = n - 1; i > 0 && (i % PIECE || !pg_stopping());
       i--) { /* Fisher-Yates; multiply-shift instead of a modulo */
    int64_t j = (int64_t)(((uint64_t)pg_rng_bits(seed, offset + (uint64_t)i) * (uint64_t)(i + 1)) >> 32);
    int32_t kept = out[i];
    out[i] = out[j], out[j] = kept;
  }
  return pg_unless_stopped(PG_OK);
}
