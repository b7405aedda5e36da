/* threads.c - one setting for every thread that computes, and what this machine is.
 *
 * OpenBLAS's OpenMP flavour runs on the same pool as our own loops, so that there is one pool and one number. */
#include "core.h"
#include <cblas.h>
#include <omp.h>
#include <time.h>

void openblas_set_num_threads(int n);
char *openblas_get_config(void);
char *openblas_get_corename(void);

int pg_set_threads(int32_t n) {
  if (n < 1 || n > 1024) return pg_fail(PG_ERR_ARGUMENT, "threads: %d is outside 1..1024", n);
  omp_set_num_threads(n);
  pg_blas_wait();
  openblas_set_num_threads(n);
  return PG_OK;
}

int32_t pg_threads(void) { return omp_get_max_threads(); }

const char *pg_cpu_name(void) {
  static char name[128] = "unknown";
  FILE *f = fopen("/proc/cpuinfo", "r");
  for (char line[256]; f && fgets(line, sizeof line, f);) {
    char *colon = strchr(line, ':');
    if (strncmp(line, "model name", 10) || !colon) continue;
    snprintf(name, sizeof name, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
    break;
  }
  if (f) fclose(f);
  return name;
}

#ifdef PG_X86
#define HAS(feature) __builtin_cpu_supports(feature)
#else
#define HAS(feature) false
#endif

bool pg_has_avx2(void) { return HAS("avx2") && HAS("fma"); }

bool pg_has_avx512(void) {
  return HAS("avx512f") && HAS("avx512bw") && HAS("avx512dq") && HAS("avx512vl") && HAS("fma");
}

bool pg_has_bfloat16(void) { return pg_has_avx512() && HAS("avx512bf16"); }

const char *pg_simd_name(void) { return pg_has_avx512() ? "AVX-512" : pg_has_avx2() ? "AVX2" : "baseline"; }

const char *pg_blas_name(void) {
  static char name[256];
  snprintf(name, sizeof name, "%s (kernel %s)", openblas_get_config(), openblas_get_corename());
  return name;
}

double pg_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
