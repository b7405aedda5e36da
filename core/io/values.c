/* values.c - values as files hold them. Kinds that are no dtype here are widened on reading: half types to float32,
 * integers to int32 and truth values to uint8. Floats are rounded to half types for writing.
 *
 * Bytes are read into place, and not mapped: a mapped file that somebody cuts short ends the process with SIGBUS at the
 * next look at a tensor, at any time later. Reading in pieces, on all threads, into blocks of large pages takes no more
 * memory than the values themselves, and a file that shrinks meanwhile is an error of one line. */
#include "io.h"
#include <unistd.h>

enum { PIECE = 32768 }; /* values that one thread reads at a time */

typedef struct kind {
  const char *name;
  int32_t dtype; /* what it becomes */
  size_t bytes;
} kind;

static const kind KINDS[PG_KINDS] = {
    [PG_FLOAT32] = {"float32", PG_FLOAT32, 4}, [PG_FLOAT64] = {"float64", PG_FLOAT64, 8},
    [PG_INT32] = {"int32", PG_INT32, 4},       [PG_UINT8] = {"uint8", PG_UINT8, 1},
    [PG_FLOAT16] = {"float16", PG_FLOAT32, 2}, [PG_BFLOAT16] = {"bfloat16", PG_FLOAT32, 2},
    [PG_INT64] = {"int64", PG_INT32, 8},       [PG_UINT64] = {"uint64", PG_INT32, 8},
    [PG_UINT32] = {"uint32", PG_INT32, 4},     [PG_INT16] = {"int16", PG_INT32, 2},
    [PG_UINT16] = {"uint16", PG_INT32, 2},     [PG_INT8] = {"int8", PG_INT32, 1},
    [PG_BOOL] = {"bool", PG_UINT8, 1}};

int32_t pg_kind_dtype(int32_t kind) { return KINDS[kind].dtype; }
int64_t pg_kind_bytes(int32_t kind) { return (int64_t)KINDS[kind].bytes; }
const char *pg_kind_name(int32_t kind) { return KINDS[kind].name; }

/* ---- widening: every NaN becomes the plain one ------------------------------------------------------------------- */

static const uint32_t PLAIN_NAN = 0x7fc00000, INFINITE = 0x7f800000;

PG_SIMD static void from_bfloat16(int64_t n, const uint16_t *restrict src, uint32_t *restrict dst) {
  for (int64_t i = 0; i < n; i++) { /* the upper half of a float32 */
    uint32_t bits = (uint32_t)src[i] << 16;
    dst[i] = (bits & 0x7fffffff) > INFINITE ? PLAIN_NAN : bits;
  }
}

/* 1 sign, 5 exponent, 10 fraction bits: the exponent's bias is 15 in place of 127, and exponent 0 counts in 2^-24. */
PG_SIMD static void from_float16(int64_t n, const uint16_t *restrict src, uint32_t *restrict dst) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t sign = (uint32_t)(src[i] & 0x8000) << 16, size = src[i] & 0x7fff;
    union {
      float value;
      uint32_t bits;
    } small = {(float)(int32_t)size * 0x1p-24f};
    uint32_t bits = size < 0x400 ? small.bits : size < 0x7c00 ? (size << 13) + (112u << 23) : INFINITE;
    dst[i] = size > 0x7c00 ? PLAIN_NAN : sign | bits;
  }
}

/* How many values there are before the first that int32 cannot hold. */
#define FROM_INTEGER(type, misfits)                                                                                    \
  static int64_t from_##type(int64_t n, const type##_t *restrict src, int32_t *restrict dst) {                         \
    for (int64_t i = 0; i < n; i++) {                                                                                  \
      if (misfits) return i;                                                                                           \
      dst[i] = (int32_t)src[i];                                                                                        \
    }                                                                                                                  \
    return n;                                                                                                          \
  }
FROM_INTEGER(int64, src[i] != (int32_t)src[i])
FROM_INTEGER(uint64, src[i] > INT32_MAX)
FROM_INTEGER(uint32, src[i] > INT32_MAX)
FROM_INTEGER(int16, false)
FROM_INTEGER(uint16, false)
FROM_INTEGER(int8, false)

static int64_t widen(int32_t kind, int64_t n, const void *src, void *dst) {
  switch (kind) {
  case PG_FLOAT16: return from_float16(n, src, dst), n;
  case PG_BFLOAT16: return from_bfloat16(n, src, dst), n;
  case PG_INT64: return from_int64(n, src, dst);
  case PG_UINT64: return from_uint64(n, src, dst);
  case PG_UINT32: return from_uint32(n, src, dst);
  case PG_INT16: return from_int16(n, src, dst);
  case PG_UINT16: return from_uint16(n, src, dst);
  case PG_INT8: return from_int8(n, src, dst);
  default: /* truth values: every byte but 0 is true */
    for (int64_t i = 0; i < n; i++) ((uint8_t *)dst)[i] = ((const uint8_t *)src)[i] != 0;
    return n;
  }
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static int read_file(pg_source *s, int64_t at, void *dst, int64_t bytes) {
  while (bytes > 0) {
    ssize_t got = pread(s->fd, dst, (size_t)bytes, at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return got < 0 ? errno : PG_SOURCE_ENDS;
    dst = (char *)dst + got, at += got, bytes -= got;
  }
  return 0;
}

pg_source pg_source_file(int fd) { return (pg_source){.read = read_file, .fd = fd}; }

int pg_values_from(pg_source *s, int64_t at, int32_t kind, pg_tensor *t) {
  int64_t n = pg_numel(t), bytes = pg_kind_bytes(kind), good = n; /* good: values before the first that is lost */
  int failure = 0;
#pragma omp parallel for schedule(static) reduction(min : good) if (n > PIECE && !s->in_order)
  for (int64_t i = 0; i < n; i += PIECE) {
    int64_t raw[PIECE], count = PG_MIN(PIECE, n - i), took = count;
    char *dst = (char *)pg_data(t) + i * (int64_t)pg_dtype_bytes[t->dtype];
    if (good < i || pg_stopping()) continue; /* what comes after a failure is lost too */
    int reason = s->read(s, at + i * bytes, kind < PG_DTYPES ? (void *)dst : raw, count * bytes);
    if (reason) {
      took = 0;
#pragma omp atomic write
      failure = reason;
    } else if (kind >= PG_DTYPES) {
      took = widen(kind, count, raw, dst);
    }
    if (took < count) good = PG_MIN(good, i + took);
  }
  t->storage->version++;
  PG_TRY(pg_unless_stopped(PG_OK));
  if (failure == PG_SOURCE_ENDS) return pg_fail(PG_ERR_FILE, "its values end early: the file shrank or is damaged");
  if (failure == PG_SOURCE_DAMAGED) return pg_fail(PG_ERR_FILE, "its compressed values are damaged");
  if (failure) return pg_fail(PG_ERR_FILE, "its values cannot be read: %s", strerror(failure));
  if (good < n)
    return pg_fail(PG_ERR_FILE, "the %s at position %lld does not fit int32", KINDS[kind].name,
                   (long long)pg_shown(good));
  return PG_OK;
}

int pg_values_read(int32_t fd, int64_t at, int32_t kind, pg_tensor *t) {
  PG_TRY(pg_check_live(t, "values_read"));
  if (kind < 0 || kind >= PG_KINDS) return pg_fail(PG_ERR_ARGUMENT, "values_read: there is no kind %d", kind);
  if (t->dtype != KINDS[kind].dtype || t->device != PG_CPU || !pg_is_contiguous(t))
    return pg_fail(PG_ERR_DTYPE, "values_read: %s needs a contiguous %s tensor on the cpu", KINDS[kind].name,
                   pg_dtype_name(KINDS[kind].dtype));
  pg_source file = pg_source_file(fd);
  return pg_values_from(&file, at, kind, t);
}

/* ---- rounding to half types: to nearest, ties to even; NaN stays NaN --------------------------------------------- */

PG_SIMD static void to_bfloat16(int64_t n, const uint32_t *restrict src, uint16_t *restrict dst) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits = src[i], rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    dst[i] = (uint16_t)((bits & 0x7fffffff) > INFINITE ? PLAIN_NAN >> 16 : rounded);
  }
}

PG_SIMD static void to_float16(int64_t n, const uint32_t *restrict src, uint16_t *restrict dst) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t sign = src[i] >> 16 & 0x8000, size = src[i] & 0x7fffffff;
    union {
      uint32_t bits;
      float value;
    } small = {size};
    small.value += 0.5f; /* whose last place is 2^-24, as that of a half below 2^-14: the addition rounds */
    uint32_t normal = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13; /* from 65520 on it reaches infinity */
    uint32_t half = size < 113u << 23 ? small.bits - 0x3f000000 : size < 143u << 23 ? normal : 0x7c00;
    dst[i] = (uint16_t)(size > INFINITE ? 0x7e00 : sign | half);
  }
}

/* Rounded to odd: a last bit that is 1 remembers what was cut off, so that the second rounding is as good as one. */
static void narrow(int64_t n, const double *restrict src, uint32_t *restrict dst) {
  for (int64_t i = 0; i < n; i++) {
    union {
      float value;
      uint32_t bits;
    } near = {(float)src[i]};
    bool exact = near.value == src[i] || src[i] != src[i];
    dst[i] = exact ? near.bits : (near.bits - (fabs((double)near.value) > fabs(src[i]))) | 1;
  }
}

int pg_values_pack(pg_tensor *t, int32_t kind, pg_tensor **out) {
  pg_tensor *flat;
  PG_TRY(pg_check_live(t, "values_pack"));
  if (!pg_is_float(t->dtype) || t->device != PG_CPU || (kind != PG_FLOAT16 && kind != PG_BFLOAT16))
    return pg_fail(PG_ERR_DTYPE, "values_pack: rounds floats on the cpu to float16 or bfloat16");
  PG_TRY(pg_contiguous(t, &flat));
  int64_t n = pg_numel(flat), bytes = 2 * n;
  int status = pg_new(PG_UINT8, PG_CPU, 1, &bytes, out);
  if (status) return pg_release(flat), status;
#pragma omp parallel for schedule(static) if (n > PIECE)
  for (int64_t i = 0; i < n; i += PIECE) {
    if (pg_stopping()) continue;
    uint32_t single[PIECE];
    const uint32_t *src = single;
    int64_t count = PG_MIN(PIECE, n - i);
    uint16_t *dst = PG_AT(uint16_t, *out) + i;
    if (t->dtype == PG_FLOAT64)
      narrow(count, PG_AT(double, flat) + i, single);
    else
      src = PG_AT(uint32_t, flat) + i;
    if (kind == PG_FLOAT16)
      to_float16(count, src, dst);
    else
      to_bfloat16(count, src, dst);
  }
  pg_release(flat);
  status = pg_unless_stopped(PG_OK);
  if (status) pg_release(*out), *out = NULL;
  return status;
}
