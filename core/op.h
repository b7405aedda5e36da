/* op.h - how an op is described, and what its kernels see.
 *
 * An op is one descriptor in core/ops/NAME.c and one line in ops.def. A call runs
 *     validate (counts, dtypes, devices, parameter ranges) -> shape -> dispatch -> record,
 * all in op.c; a descriptor says only what is particular to the op.
 *
 * Numeric kernels are written once in terms of `real` and K(name) inside `#ifdef REAL`, and compiled for float and for
 * double by including "../reals.h", which includes the op's file again:
 *
 *     #ifdef REAL                                 // the kernels, compiled twice
 *     static int K(relu_forward)(pg_call *c) { ... real ... }
 *     #else                                       // the rest, compiled once
 *     #include "../op.h"
 *     #define REALS_FILE "ops/relu.c"
 *     #include "../reals.h"
 *     const pg_op pg_op_relu = { ..., .forward = PG_REALS(relu_forward) };
 *     #endif
 */
#ifndef PG_OP_H
#define PG_OP_H
#include "core.h"

enum { PG_MAX_OUTPUTS = 4 };

/* One call of an op, forward or backward. */
typedef struct pg_call {
  const struct pg_op *op;
  int32_t n_in;
  pg_tensor **in;                 /* inputs; contiguous unless declared PG_STRIDED; NULL: an absent optional one */
  pg_tensor *out[PG_MAX_OUTPUTS]; /* forward: allocated after `shape`, contiguous, not initialised */
  int32_t n_out;                  /* outputs that the descriptor declares */
  const pg_value *p;              /* parameters in the declared order; dims already made non-negative by pg_dim() */
  uint64_t seed, offset;          /* PG_F_RANDOM: this call's own stretch of the generator's stream */
  bool bf16;                      /* made under pg_autocast */
  pg_tensor *grad_out[PG_MAX_OUTPUTS]; /* backward: dLoss/dout, contiguous; zeros where nothing flowed back */
  pg_tensor **grad_in;                 /* backward: assign every element; NULL where no gradient is wanted */
} pg_call;

typedef int (*pg_kernel)(pg_call *c);

enum {                  /* flags of an op */
       PG_F_VIEW = 1,   /* forward is `view`: makes out[0] over in[0]'s storage */
       PG_F_RANDOM = 2, /* takes pg_numel(in[0]) numbers from the generator */
       PG_F_MIXED = 4,  /* inputs may differ in floating dtype; otherwise all floating inputs share one */
       PG_F_HOST = 8,   /* runs on the host whatever the device (image files and the like) */
       PG_F_SUM = 16    /* out[0] is the sum of its inputs: its gradient is that of each which has its shape */
};

typedef struct pg_op {
  pg_op_info info;
  int32_t flags;
  int (*shape)(pg_call *c);     /* checks shapes and declares outputs with pg_out(); */
  int (*view)(pg_call *c);      /* PG_F_VIEW: sets out[0] with pg_view() */
  pg_kernel forward[PG_DTYPES]; /* by the dtype of the first input that is present; NULL: not for this dtype */
  pg_kernel backward[PG_DTYPES];
  uint32_t needs; /* what backward reads: PG_NEED_IN(i) | PG_NEED_OUT(i); the rest are shells */
  /* Whether this call costs little beside a matrix product, so that what it gave may be computed again in backward by
   * who asks for it in `again`; NULL: no. It then keeps all its inputs. */
  bool (*cheap)(const pg_call *c);
  uint32_t again; /* of `needs`: inputs not kept where a cheap call made them, outputs not kept of a cheap call */
} pg_op;

static inline bool pg_always(const pg_call *c) { return true; }

#define PG_NEED_IN(i) (1u << (i))
#define PG_NEED_OUT(i) (1u << (16 + (i)))
#define PG_NEED_ALL_IN 0xffffu

#define PG_REALS(f)                                                                                                    \
  { [PG_FLOAT32] = f##_f32, [PG_FLOAT64] = f##_f64 }
#define PG_ANY(f)                                                                                                      \
  { [PG_FLOAT32] = f, [PG_FLOAT64] = f, [PG_INT32] = f, [PG_UINT8] = f }
#define PG_ANY_REAL(f)                                                                                                 \
  { [PG_FLOAT32] = f, [PG_FLOAT64] = f }
#define PG_ARGS(...)                                                                                                   \
  (const pg_arg_info[]) {                                                                                              \
    __VA_ARGS__, { 0 }                                                                                                 \
  }
#define PG_PARAMS(...)                                                                                                 \
  (const pg_param_info[]) {                                                                                            \
    __VA_ARGS__, { 0 }                                                                                                 \
  }
#define PG_SAMPLES(...)                                                                                                \
  (const char *const[]) { __VA_ARGS__, NULL }
/* {"x", 0, "(N, D) float"} is an input; PG_NUM("eps", 1e-5, 0, 1, "added to the variance") a parameter. */
#define PG_NUM(name, def, lo, hi, help)                                                                                \
  { name, PG_P_NUMBER, def, lo, hi, NULL, help }
#define PG_INT(name, def, lo, hi, help)                                                                                \
  { name, PG_P_INTEGER, def, lo, hi, NULL, help }
#define PG_FLAG(name, def, help)                                                                                       \
  { name, PG_P_BOOLEAN, def, 0, 1, NULL, help }
#define PG_ONE_DIM(name, def, help)                                                                                    \
  { name, PG_P_DIM, def, 0, 0, NULL, help }
#define PG_DIM_LIST(name, help)                                                                                        \
  { name, PG_P_DIMS, 0, 0, 0, NULL, help }
#define PG_INT_LIST(name, help)                                                                                        \
  { name, PG_P_INTS, 0, 0, 0, NULL, help }
#define PG_POSITION(name, help)                                                                                        \
  { name, PG_P_INDEX, NAN, 0, 0, NULL, help }
#define PG_WORD(name, def, choices, help)                                                                              \
  { name, PG_P_CHOICE, def, 0, 0, choices, help }

/* For plug-ins: the kernels of op number `op` on a device, by dtype; NULL: not for this dtype. */
void pg_op_plug(int32_t device, int32_t op, const pg_kernel *forward, const pg_kernel *backward);

/* For shape rules. */
int pg_out(pg_call *c, int i, int32_t dtype, int32_t ndim, const int64_t *shape); /* declares output i */
int pg_out_like(pg_call *c, int i, const pg_tensor *t);
int pg_op_fail(const pg_call *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* ^ PG_ERR_SHAPE with "op: <text>: x (2, 3), y (4, 5)": every input by name and shape */
int pg_dim(const pg_call *c, const pg_tensor *t, int64_t dim, int32_t *out); /* -1 is the last; checks the range */
int pg_check_indices(const pg_call *c, const pg_tensor *index, int64_t n, const char *what); /* each in 0..n-1 */
/* A position or dimension as the caller wrote it: negative ones are not shifted. */
static inline int64_t pg_position(int64_t given) { return given < 0 ? given : pg_shown(given); }
int pg_check_value(const pg_call *c, const pg_tensor *t, double value); /* the parameter `value` fits t's dtype */
/* "[2, 3]": where row-major element i stands, as messages print it; "" of a scalar */
char *pg_place_text(const pg_tensor *t, int64_t i, char buffer[128]);

/* ---- broadcast.c ---- */
int pg_broadcast(const pg_call *c, const pg_tensor *a, const pg_tensor *b, int32_t *ndim, int64_t *shape);
int pg_stretch(const pg_call *c, const pg_tensor *t, int32_t *ndim, int64_t *shape); /* shape grows to hold t too */
int pg_sum_to(const pg_tensor *wide, pg_tensor *small); /* small = wide summed over what broadcasting stretched */

enum { PG_WALK_OPERANDS = 3 };

/* Operands against a contiguous output that their shapes broadcast to: run r covers `length` elements of the output,
 * along which operand k advances by step[k]. */
typedef struct pg_walk {
  int32_t ndim; /* dimensions that the runs are counted through */
  int64_t shape[PG_MAX_DIMS], stride[PG_WALK_OPERANDS][PG_MAX_DIMS];
  int64_t runs, length, total; /* total > length: one run cut into pieces, the last maybe shorter */
  int64_t step[PG_WALK_OPERANDS];
} pg_walk;

pg_walk pg_walk_over(const pg_tensor *out, int operands, const pg_tensor *const *operand);

/* Run r: where each operand begins, where the output does, and how long it is. */
static inline int64_t pg_walk_at(const pg_walk *w, int64_t r, int operands, int64_t *begin, int64_t *at) {
  *begin = r * w->length;
  for (int k = 0; k < operands; k++) at[k] = w->ndim ? 0 : *begin * w->step[k];
  int64_t rest = r;
  for (int32_t d = w->ndim - 1; d >= 0; rest /= w->shape[d], d--)
    for (int k = 0; k < operands; k++) at[k] += rest % w->shape[d] * w->stride[k][d];
  return w->ndim ? w->length : PG_MIN(w->length, w->total - *begin);
}

/* The body for every run, with `begin`, `at` and `n` its place, its operands' and its length; runs in parallel. */
#define PG_EACH_RUN(w, operands, ...)                                                                                  \
  _Pragma("omp parallel for schedule(static) if ((w).runs > 1 && (w).runs * (w).length > 32768)") for (int64_t r = 0;  \
                                                                                                       r < (w).runs;   \
                                                                                                       r++) {          \
    if (pg_stopping()) continue;                                                                                       \
    int64_t begin, at[operands], n = pg_walk_at(&(w), r, operands, &begin, at);                                        \
    __VA_ARGS__;                                                                                                       \
  }

/* How many neighbouring columns of (outer, n, inner) a thread takes where sums run along n: no sum crosses columns, so
 * the result does not depend on it. */
static inline int64_t pg_columns(int64_t outer, int64_t inner) {
  int64_t share = (pg_threads() + PG_MAX(outer, 1) - 1) / PG_MAX(outer, 1);
  return PG_MAX(64, (inner + share - 1) / share);
}

/* A dimension in the middle: the tensor seen as (outer, n, inner). */
static inline void pg_around(const pg_tensor *t, int32_t dim, int64_t *outer, int64_t *n, int64_t *inner) {
  *outer = *inner = 1;
  for (int32_t i = 0; i < dim; i++) *outer *= t->shape[i];
  *n = t->shape[dim];
  for (int32_t i = dim + 1; i < t->ndim; i++) *inner *= t->shape[i];
}

#endif
