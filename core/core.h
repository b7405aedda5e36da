/* core.h - what the core's own files share: the structs behind the handles, errors, and checks. */
#ifndef PG_CORE_H
#define PG_CORE_H
#include <math.h>
#ifdef __cplusplus /* the CUDA plug-in: it never touches a count of references, and the size is the same */
typedef int atomic_int;
#else
#include <stdatomic.h>
#endif
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "perigee.h"

/* Compiled once for each instruction set and chosen when the program starts, so that one build runs on every node of a
 * cluster. Put it on serial kernels; the OpenMP loop around them is ordinary code. Not under sanitizers or clang. */
#if defined(__GNUC__) && !defined(__clang__) && !defined(PG_SANITIZE) && defined(__x86_64__)
#define PG_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PG_SIMD
#endif

/* A function may be compiled for instructions that are asked for when it runs, by its `target` attribute. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define PG_X86
#endif

#define PG_MIN(a, b) ((a) < (b) ? (a) : (b))
#define PG_MAX(a, b) ((a) > (b) ? (a) : (b))
#define PG_TRY(call)                                                                                                   \
  do {                                                                                                                 \
    int pg_status_ = (call);                                                                                           \
    if (pg_status_) return pg_status_;                                                                                 \
  } while (0)

/* ---- error.c ---------------------------------------------------------------------------------------------------- */

int pg_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3))); /* sets the text, returns code */
int64_t pg_shown(int64_t index);                           /* a 0-based position or label as messages print it */
char *pg_shape_text(const pg_tensor *t, char buffer[128]); /* "(2, 3)" */

/* ---- stop.c ----------------------------------------------------------------------------------------------------- */

bool pg_stopping(void); /* for a long loop, between pieces of some 0.1 s: true when it should leave its work as it is */
int pg_unless_stopped(int status); /* status; PG_ERR_INTERRUPTED when a loop has left since this was last asked */

/* ---- threads.c -------------------------------------------------------------------------------------------------- */

/* What this CPU has, as the kernels ask: AVX2 with FMA; AVX-512 as x86-64-v4 has it; and its bfloat16 products. False
 * where PG_X86 is not defined. */
bool pg_has_avx2(void);
bool pg_has_avx512(void);
bool pg_has_bfloat16(void);

/* ---- mem.c, device_cpu.c, device_cuda.c ------------------------------------------------------------------------- */

struct pg_comm_vtable; /* comm.h */

typedef struct pg_device_vtable { /* what a device provides; the CUDA plug-in fills one */
  const char *name;
  int (*alloc)(size_t bytes, void **out); /* at least 64-byte aligned; PG_ERR_MEMORY when there is none */
  void (*free)(void *p, size_t bytes);
  int (*fill_zero)(void *p, size_t bytes);
  int (*from_host)(void *dst, const void *src, size_t bytes);
  /* Waits for the device, and reports what went wrong there. */
  int (*to_host)(void *dst, const void *src, size_t bytes);
  int (*copy)(void *dst, const void *src, size_t bytes);

  /* What tensor.c and rng.c ask of a device that is not the host. Tensors live on it. */
  int (*assign)(pg_tensor *dst, const pg_tensor *src);      /* one shape, any strides, any dtypes */
  int (*fill)(pg_tensor *t, double value);                  /* any strides */
  int (*add)(pg_tensor *sum, const pg_tensor *t);           /* sum += t, contiguous, one shape and floating dtype */
  int (*count_nonfinite)(const pg_tensor *t, int64_t *out); /* contiguous, floating */
  int (*random)(pg_tensor *t, uint64_t seed, uint64_t offset, int32_t normal); /* contiguous, floating */
  int (*synchronize)(void);
  const char *(*describe)(void); /* what it is, in one line */
  /* Optional. From now on `used` of the block's bytes belong to somebody, none of them written yet; 0: nobody's. A
   * simulated device guards the rest. */
  void (*mark)(void *p, size_t used, size_t capacity);
  /* Optional: joins the run's other processes on this device (comm.h). */
  int (*comm)(const struct pg_comm_vtable **out);
  /* Optional, more than 0: blocks of so many bytes or more may be freed in parts as large as that, and neighbours as
   * one. */
  size_t divisible;
} pg_device_vtable;

extern const pg_device_vtable pg_device_cpu;
/* Loads a plug-in at first; NULL and an error where there is none. */
const pg_device_vtable *pg_device_get(int32_t device);
void pg_device_register(int32_t device, const pg_device_vtable *vtable);
int pg_device_load_cuda(void); /* device_cuda.c: opens the plug-in, which registers itself */

typedef struct pg_storage {
  atomic_int refs;
  int32_t device;
  void *data;      /* NULL: a shell with a shape and no memory, or freed */
  size_t bytes;    /* asked for */
  size_t capacity; /* size of the cached block behind it */
  int64_t version; /* in-place writes so far */
} pg_storage;

int pg_storage_new(int32_t device, size_t bytes, pg_storage **out);
void pg_storage_release(pg_storage *s);
/* CPU memory from the caching allocator, 64-byte aligned; NULL when there is none. */
void *pg_scratch_alloc(size_t bytes);
void pg_scratch_free(void *p, size_t bytes);

/* ---- tensor.c --------------------------------------------------------------------------------------------------- */

typedef struct pg_node pg_node;

struct pg_tensor {
  atomic_int refs;
  int32_t dtype, device, ndim;
  int64_t shape[PG_MAX_DIMS];
  int64_t stride[PG_MAX_DIMS]; /* in elements */
  int64_t offset;              /* in elements from the storage's start */
  pg_storage *storage;
  bool requires_grad;  /* asked for by the user (a leaf), or inherited from an input (has a node) */
  pg_tensor *grad;     /* of a leaf; owned */
  pg_node *node;       /* the recorded call that made it; owned; NULL for a leaf */
  int32_t node_output; /* which of the node's outputs it is */
  int32_t shared;      /* of a leaf whose gradient is averaged over processes: its number from 1 (buckets.c) */
  bool reached;        /* the backward pass that runs leads to such a leaf */
};

extern const size_t pg_dtype_bytes[PG_DTYPES];
static inline bool pg_is_float(int32_t dtype) { return dtype == PG_FLOAT32 || dtype == PG_FLOAT64; }
#define PG_AT(type, t) ((type *)(t)->storage->data + (t)->offset) /* first element */

int pg_new_like(const pg_tensor *t, pg_tensor **out);  /* contiguous, not initialised */
int pg_new_shell(const pg_tensor *t, pg_tensor **out); /* shape and dtype only */
int pg_view(pg_tensor *t, int32_t ndim, const int64_t *shape, const int64_t *stride, int64_t offset, pg_tensor **out);
int pg_alias(pg_tensor *t, pg_tensor **out); /* same view, no history */
bool pg_same_shape(const pg_tensor *a, const pg_tensor *b);
void pg_contiguous_strides(int32_t ndim, const int64_t *shape, int64_t *stride);
int pg_check_live(const pg_tensor *t, const char *what);
int pg_copy_new(pg_tensor *dst,
                const pg_tensor *src);               /* into what holds nothing yet: a stop may leave it half copied */
int pg_add_into(pg_tensor *sum, const pg_tensor *t); /* sum += t, both contiguous, same shape and dtype */

/* ---- rng.c ------------------------------------------------------------------------------------------------------ */

void pg_rng_reserve(uint64_t count, uint64_t *seed, uint64_t *offset); /* takes `count` numbers off the global stream */
/* Number i of the stream (seed, offset): 32 random bits, uniform [0,1) with 24 bits, a normal. The same on every
 * device. */
uint32_t pg_rng_bits(uint64_t seed, uint64_t index);
static inline float pg_uniform(uint64_t seed, uint64_t index) { return (pg_rng_bits(seed, index) >> 8) * 0x1p-24f; }
float pg_normal(uint64_t seed, uint64_t index);

/* ---- gemm.c ----------------------------------------------------------------------------------------------------- */

/* C (m,n) = alpha * op(A) (m,k) * op(B) (k,n) + beta * C, row-major with leading dimensions; trans: 0 or 1.
 * PG_ERR_SHAPE where a size is more than BLAS's int holds; in a parallel region ask pg_blas_fits before it. */
int pg_gemm_f32(int ta, int tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
int pg_gemm_f64(int ta, int tb, int64_t m, int64_t n, int64_t k, double alpha, const double *a, int64_t lda,
                const double *b, int64_t ldb, double beta, double *c, int64_t ldc);
/* y = x W^T + bias: x (rows, in), W (out, in); bias (out) or NULL. */
int pg_affine_f32(int64_t rows, int64_t out, int64_t in, const float *x, const float *w, const float *bias, float *y);
int pg_affine_f64(int64_t rows, int64_t out, int64_t in, const double *x, const double *w, const double *bias,
                  double *y);
int pg_syrk_f32(int64_t n, int64_t k, const float *a, int64_t lda, float *c, int64_t ldc); /* both halves of A A^T */
int pg_syrk_f64(int64_t n, int64_t k, const double *a, int64_t lda, double *c, int64_t ldc);
void pg_blas_wait(void); /* until no call of LAPACK that was left behind runs any more (linalg.c); before any of BLAS */
int pg_blas_fits(int count, const int64_t *sizes);

/* ---- gemm_f32.c ------------------------------------------------------------------------------------------------- */

/* pg_gemm_f32 and pg_affine_f32 without BLAS; false, and nothing done, where the CPU lacks AVX-512 or memory is short.
 */
bool pg_gemm_avx512(int ta, int tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                    const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
bool pg_affine_avx512(int64_t rows, int64_t out, int64_t in, const float *x, const float *w, const float *bias,
                      float *y);
/* dw (out, in) = dy^T x of dy (rows, out) and x (rows, in), and on the way db (out), dy's sums over rows; false, and
 * nothing done, also where the product is small. */
bool pg_outer_avx512(int64_t rows, int64_t out, int64_t in, const float *dy, const float *x, float *dw, float *db);

/* ---- gemm_bf16.c ------------------------------------------------------------------------------------------------ */

/* pg_gemm_f32 of operands that are first rounded to bfloat16; PG_ERR_MEMORY where there is none to pack them in. */
int pg_gemm_bf16(int ta, int tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                 const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
/* pg_affine_f32 so. */
int pg_affine_bf16(int64_t rows, int64_t out, int64_t in, const float *x, const float *w, const float *bias, float *y);

#endif
