/* perigee.h - the one public header of the Perigee core.
 *
 * Everything a caller (the Lua package, a C program) may touch is here. The slice between the two cdef marks is
 * embedded verbatim in the Lua package at build time, so there is no second copy of any declaration.
 *
 * Conventions
 *   - Functions return PG_OK (0) or an error code; the message is in pg_last_error(). The core never aborts, exits,
 *     prints or calls back.
 *   - Tensors are reference-counted handles. A function that gives one out gives a reference that the caller owns and
 *     returns with pg_release().
 *   - Dimensions, positions and labels are 0-based here. The Lua package is 1-based and shifts in one place.
 *   - Sizes are in elements unless a name says bytes. Shapes are row-major.
 */
#ifndef PERIGEE_H
#define PERIGEE_H
#include <stdint.h>

/* cdef-begin */
enum {
  PG_ABI = 11,        /* raised whenever this slice changes; compared when the Lua package loads the library */
  PG_MAX_DIMS = 8,    /* most dimensions that a tensor has */
  PG_MAX_VALUES = 16, /* most values of one parameter: a pair for each dimension */
  PG_MAX_PARAMS = 12
};

/* Error codes. The text says what happened; the code says of what kind it was. */
enum {
  PG_OK,
  PG_ERR_ARGUMENT,
  PG_ERR_SHAPE,
  PG_ERR_DTYPE,
  PG_ERR_DEVICE,
  PG_ERR_MEMORY,
  PG_ERR_FILE,
  PG_ERR_STATE,
  PG_ERR_INTERRUPTED /* the stop flag was set: nothing was given out, every tensor is as it was but for gradients */
};

enum { PG_FLOAT32, PG_FLOAT64, PG_INT32, PG_UINT8, PG_DTYPES };
enum { PG_CPU, PG_CUDA, PG_DEVICES };

typedef struct pg_tensor pg_tensor;

const char *pg_last_error(void);
int32_t pg_abi(void);
const char *pg_version(void);
volatile int32_t *
pg_stop_flag(void);                 /* while it is not 0, calls that last long end soon; a signal handler may set it */
void pg_message_base(int32_t base); /* what messages add to a 0-based position or label: 1 for a 1-based caller */

/* ---- tensors ------------------------------------------------------------------------------------------------- */

int pg_new(int32_t dtype, int32_t device, int32_t ndim, const int64_t *shape, pg_tensor **out); /* not initialised */
pg_tensor *pg_retain(pg_tensor *t);
void pg_release(pg_tensor *t);
void pg_free(pg_tensor *t); /* lets go of memory and history at once; the handle stays, and reading it is an error */

int32_t pg_ndim(const pg_tensor *t);
int64_t pg_size(const pg_tensor *t, int32_t dim);
int64_t pg_stride(const pg_tensor *t, int32_t dim);
int64_t pg_numel(const pg_tensor *t);
int32_t pg_dtype(const pg_tensor *t);
int32_t pg_device(const pg_tensor *t);
int32_t pg_is_contiguous(const pg_tensor *t);
int64_t pg_version_of(const pg_tensor *t); /* counts in-place writes to the storage */
void *pg_data(pg_tensor *t);               /* first element, in the memory of the tensor's device; NULL when freed */
const char *pg_dtype_name(int32_t dtype);
const char *pg_device_name(int32_t device);

int pg_upload(pg_tensor *t, const void *host, int64_t bytes);   /* t must be contiguous; counts as an in-place write */
int pg_download(const pg_tensor *t, void *host, int64_t bytes); /* any layout, row-major result; plain NaN */
int pg_copy(pg_tensor *dst, const pg_tensor *src);              /* same shape; converts dtype and device */
int pg_fill(pg_tensor *t, double value);
int pg_fill_new(pg_tensor *t, double value); /* of a tensor that holds nothing yet: a stop may leave it half filled */
int pg_convert(pg_tensor *t, int32_t dtype, int32_t device, pg_tensor **out); /* not recorded; see op `to` */
int pg_contiguous(pg_tensor *t, pg_tensor **out);                             /* not recorded */
int pg_randn(pg_tensor *t);                               /* in place, normal(0, 1) from the global generator */
int pg_rand(pg_tensor *t);                                /* in place, uniform [0, 1) */
int pg_randperm(int32_t *out, int64_t n);                 /* a uniformly random order of 0..n-1 */
int pg_count_nonfinite(const pg_tensor *t, int64_t *out); /* NaN and infinity */

/* ---- autograd -------------------------------------------------------------------------------------------------- */

int pg_set_requires_grad(pg_tensor *t, int32_t on);
int32_t pg_requires_grad(const pg_tensor *t);
int32_t pg_is_leaf(const pg_tensor *t);
int pg_detach(pg_tensor *t, pg_tensor **out);                   /* same storage, no history */
pg_tensor *pg_grad(pg_tensor *t);                               /* borrowed; NULL when there is none */
int pg_set_grad(pg_tensor *t, pg_tensor *grad);                 /* NULL clears */
int pg_backward(pg_tensor *t, pg_tensor *grad, int32_t retain); /* grad NULL: t is a scalar, starts from 1 */
int32_t pg_grad_enabled(int32_t on);                            /* -1 asks; returns the previous state */
/* Whether op linear rounds the operands of its float32 products to bfloat16, forward and in the backward of the calls
 * that were made meanwhile; -1 asks; returns the previous state. */
int32_t pg_autocast(int32_t on);

/* ---- the processes of a run: every one makes the same calls in the same order -------------------------------------
 */

int pg_comm_open(void);     /* joins the processes that mpirun or srun started with this one; loads MPI's plug-in */
int32_t pg_comm_rank(void); /* from 0; 0 before pg_comm_open */
int32_t pg_comm_size(void); /* 1 before it, and where a process was started alone */
int32_t pg_comm_local_size(void);    /* of them, how many run on this machine */
const char *pg_comm_describe(void);  /* which MPI, in one line; NULL and an error: why there is none. Opens nothing */
int pg_comm_broadcast(pg_tensor *t); /* rank 0's values, in place */
int pg_comm_reduce(pg_tensor *t, int32_t mean); /* the sum over all processes, or their mean, in place; floats */
/* From now on backward leaves in the gradients of these leaves, and of no others, their means over all processes. Their
 * values become rank 0's. Leaves of one group come to be reduced together, in buckets of at most `most` bytes. */
int pg_comm_share(pg_tensor *const *leaves, const int32_t *groups, int32_t n, int64_t most);
void pg_comm_last_words(const char *text); /* what is added to the line that says that a process died */
void pg_comm_leave(void); /* this process fails and says why itself; nobody need say that it has ended */
int pg_comm_close(void);  /* waits for the others; done by itself where the process exits with status 0 */
/* On (1): of the calls recorded until off (0), backward computes again what it reads, from what came from outside and
 * was kept. -1 asks; returns the previous state; on while on changes nothing. */
int32_t pg_checkpoint(int32_t on);

/* ---- memory, generator, threads --------------------------------------------------------------------------------- */

typedef struct pg_memory {
  int64_t live;    /* bytes that tensors hold */
  int64_t peak;    /* most bytes ever live since the last reset */
  int64_t cached;  /* bytes kept for reuse */
  int64_t tensors; /* storages alive */
} pg_memory;

void pg_memory_stats(int32_t device, pg_memory *out);
void pg_memory_reset_peak(int32_t device);
/* For a collector that sees handles and not what they hold: a tensor that takes the live bytes of a device past `limit`
 * (0, as at first: any) sets the flag, which only the collector clears. */
void pg_memory_watch(int32_t device, int64_t limit);
volatile int32_t *pg_memory_flag(void);
void pg_memory_trim(int32_t device); /* gives cached blocks back to the system */

const char *pg_device_describe(int32_t device); /* what it is, in one line; NULL and an error: why it is not there */
int pg_synchronize(int32_t device);             /* waits until it has done everything that was asked of it */

void pg_seed(uint64_t seed);
void pg_rng_state(uint64_t state[2]); /* {seed, offset}: what a checkpoint stores */
void pg_rng_restore(const uint64_t state[2]);
void pg_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]); /* one Philox 4x32-10 block */

int pg_set_threads(int32_t n); /* OpenMP and OpenBLAS together */
int32_t pg_threads(void);
const char *pg_cpu_name(void);
const char *pg_simd_name(void);
const char *pg_blas_name(void);
/* Whether products in bfloat16 run on AVX-512 BF16 (1) or are emulated in float32 (0). 0 emulates from now on, 1 no
 * longer where the CPU can; -1 asks. */
int32_t pg_bf16_native(int32_t want);
double pg_now(void); /* seconds of a monotonic clock */

/* ---- the op table ----------------------------------------------------------------------------------------------- */

enum {              /* kinds of parameter: how a caller passes it, and how Lua shifts it */
       PG_P_NUMBER, /* pg_value.num */
       PG_P_INTEGER,
       PG_P_BOOLEAN, /* pg_value.ints[0] */
       PG_P_DIM,     /* a dimension: negative counts from the end */
       PG_P_DIMS,    /* a list of dimensions; an empty list is the op's default, mostly "all" */
       PG_P_INTS,    /* a list of integers, such as a shape or a stride */
       PG_P_INDEX,   /* a position along a dimension */
       PG_P_CHOICE   /* one of the words in `choices`; ints[0] is its number, from 0 */
};

enum {                  /* flags of an op's input or output */
       PG_OPTIONAL = 1, /* may be absent (NULL) */
       PG_INDEX = 2,    /* int32 positions or labels: 0-based here, 1-based in Lua */
       PG_LIST = 4,     /* last input only: any number of tensors */
       PG_WRITTEN = 8,  /* the op changes it in place */
       PG_HIDDEN = 16,  /* an output that only backward reads; not returned */
       PG_STRIDED = 32, /* the kernel takes any strides; other inputs reach it contiguous */
       PG_NO_GRAD = 64  /* a floating input through which no gradient flows, by definition of the op */
};

typedef struct pg_arg_info {
  const char *name; /* NULL ends the list */
  int32_t flags;
  const char *help; /* shape and dtype, one line */
} pg_arg_info;

typedef struct pg_param_info {
  const char *name; /* NULL ends the list */
  int32_t kind;
  double def;          /* default of a number, integer, boolean, dim, index or choice; NAN: must be given */
  double lo, hi;       /* range of a number or integer, both ends allowed; lo == hi: any */
  const char *choices; /* words separated by spaces */
  const char *help;
} pg_param_info;

typedef struct pg_op_info {
  const char *name;   /* also the Lua name; a trailing underscore marks an in-place op */
  const char *doc;    /* what it computes, with its formula */
  const char *source; /* where the formula comes from; NULL: elementary */
  const pg_arg_info *inputs, *outputs;
  const pg_param_info *params; /* NULL: none */
  const char *no_backward;     /* why there is no gradient; NULL: there is one */
  const char *const *samples;  /* NULL-ended; each the Lua text of a call's named arguments, as tests make them */
  int32_t method;              /* also a tensor method */
} pg_op_info;

typedef struct pg_value {
  double num;                  /* NUMBER */
  int64_t ints[PG_MAX_VALUES]; /* everything else */
  int32_t len;                 /* how many values are set; 0: not given, the default holds */
} pg_value;

int32_t pg_op_count(void);
const pg_op_info *pg_op_get(int32_t op);
int32_t pg_op_has_kernel(int32_t op, int32_t device, int32_t dtype, int32_t backward);

/* Validate, infer shapes, dispatch, record. in: n_in handles, NULL where an optional one is absent, a list flattened at
 * the end. params: one a declared parameter, in order. out: receives the op's visible outputs. */
int pg_apply(int32_t op, pg_tensor *const *in, int32_t n_in, const pg_value *params, pg_tensor **out);
/* ---- decompositions: float64 on the CPU, without gradients ------------------------------------------------------ */

/* A symmetric (N, N), whose lower half is read: rising eigenvalues (N), and the eigenvectors as rows (N, N). */
int pg_eigh(pg_tensor *x, pg_tensor **values, pg_tensor **vectors);
/* (count, count): the nuclear norm of F_i F_j^T for all pairs of matrices (rows_i, D), on all threads. */
int pg_nuclear_norms(pg_tensor *const *factors, int32_t count, pg_tensor **out);
/* ---- files: every error names the file; writing is whole or not at all ------------------------------------------ */

int pg_file_write(const char *path, int32_t n, const void *const *parts, const int64_t *bytes); /* n pieces in a row */
/* All bytes of a file, gunzipped if need be: uint8. More than `most` are an error. */
int pg_bytes_load(const char *path, int64_t most, pg_tensor **out);
int pg_idx_load(const char *path, pg_tensor **out); /* IDX, plain or gzipped: uint8 */
/* The array of that name of a MATLAB 5 file, in its own shape: uint8, or float64 where its class is double. */
int pg_mat_load(const char *path, const char *name, pg_tensor **out);
int pg_npy_load(const char *path, pg_tensor **out);
int pg_npy_save(const char *path, pg_tensor *t);

/* What files hold: the dtypes, and kinds of value that become one of them on reading: float32, int32, or uint8. */
enum {
  PG_FLOAT16 = PG_DTYPES,
  PG_BFLOAT16,
  PG_INT64,
  PG_UINT64,
  PG_UINT32,
  PG_INT16,
  PG_UINT16,
  PG_INT8,
  PG_BOOL,
  PG_KINDS
};
int32_t pg_kind_dtype(int32_t kind);
int64_t pg_kind_bytes(int32_t kind); /* of a value in a file */
/* Fills t, contiguous and of the kind's dtype, with what an open file holds from byte `at` on. */
int pg_values_read(int32_t fd, int64_t at, int32_t kind, pg_tensor *t);
/* Floats rounded to PG_FLOAT16 or PG_BFLOAT16, to nearest, ties to even: uint8 (2 numel), as files hold them. */
int pg_values_pack(pg_tensor *t, int32_t kind, pg_tensor **out);

/* NumPy's .npz: named arrays in one ZIP archive. */
typedef struct pg_npz pg_npz;
int pg_npz_open(const char *path, pg_npz **out);
int64_t pg_npz_count(const pg_npz *z);
const char *pg_npz_name(const pg_npz *z, int64_t i); /* of an array, in UTF-8 without control characters */
int pg_npz_read(pg_npz *z, int64_t i, pg_tensor **out);
void pg_npz_close(pg_npz *z);
int pg_npz_save(const char *path, int32_t n, const char *const *names, pg_tensor *const *tensors);

/* PNG, JPEG or PPM, by content: uint8 (H, W, 3), alpha composited on white, turned as EXIF says */
int pg_image_load(const char *path, pg_tensor **out);
/* The whole picture, centred on (size, size, 3). */
int pg_image_load_reduced(const char *path, int64_t size, pg_tensor **out);
/* The same for n files on all threads: images uint8 (n, size, size, 3), and whole uint8 (n), 1 where one was read. */
int pg_images_load_reduced(const char *const *paths, int64_t n, int64_t size, pg_tensor **images, pg_tensor **whole);
int pg_image_save(const char *path, pg_tensor *t);                 /* PNG: uint8 (H, W, 3) or (H, W) */
int pg_jpeg_save(const char *path, pg_tensor *t, int32_t quality); /* 4:2:0; quality 1..100 */
/* ---- pictures as models take them ------------------------------------------------------------------------------- */

enum {                  /* how a picture is resized */
       PG_FIT_NONE,     /* it is not */
       PG_FIT_SHORTEST, /* the shorter side to `height` */
       PG_FIT_EXACT,    /* to height and width */
       PG_FIT_COVER,    /* in proportion, to the least that has height and width */
       PG_FIT_WITHIN    /* in proportion, to the most that fits into height and width */
};

typedef struct pg_preprocess {
  int32_t fit, height, width;      /* for PG_FIT_SHORTEST width is height */
  int32_t bilinear;                /* 0: bicubic */
  int32_t crop_height, crop_width; /* 0 and 0: no centre crop */
  int32_t crop_floor;              /* a half pixel of margin: 0 to even (torchvision), 1 down (transformers) */
  int32_t fill;                    /* 0..255: what a crop finds beyond the picture */
  int32_t drop_alpha, as_stored;   /* of files: do not composite on white; do not turn as EXIF says */
  double scale, mean[3], std[3];   /* (v scale - mean) / std, v a byte */
} pg_preprocess;

/* images: uint8 (H, W, 3) or (N, H, W, 3); out: float32 (1 or N, 3, height, width) of what was cropped or resized. */
int pg_preprocess_images(const pg_preprocess *p, pg_tensor *images, pg_tensor **out);
/* The same for n files on all threads; the first that fails is the error. */
int pg_preprocess_files(const pg_preprocess *p, const char *const *paths, int64_t n, pg_tensor **out);
/* ---- text: UTF-8, by the tables of libutf8proc ------------------------------------------------------------------ */

enum {                      /* what pg_text_map makes of a text */
       PG_TEXT_VALID,       /* itself; here and in the cases below, U+FFFD for bytes that are no UTF-8 */
       PG_TEXT_LOWER,       /* lower case, character by character */
       PG_TEXT_LOWER_FINAL, /* the same, and a sigma that ends a word is the final one */
       PG_TEXT_UPPER,       /* upper case, where it is one character */
       PG_TEXT_NFC,         /* composed; bytes that are no UTF-8 are an error */
       PG_TEXT_NFKC,        /* the same of the compatible characters */
       PG_TEXT_FORMS
};

enum { PG_TEXT_OTHER, PG_TEXT_LETTER, PG_TEXT_NUMBER, PG_TEXT_SPACE, PG_TEXT_FOLLOWS };

/* Writes the form to `out`, at most `room` bytes, and its length. NFKC takes at most 11 times the text's bytes, the
 * other forms 3 times. */
int pg_text_map(const char *text, int64_t bytes, int32_t form, char *out, int64_t room, int64_t *length);
/* The class of each character at its first byte (category L, N, White_Space), and PG_TEXT_FOLLOWS at its others. */
void pg_text_classes(const char *text, int64_t bytes, uint8_t *out);
int64_t pg_text_fault(const char *text, int64_t bytes); /* the first byte that is no UTF-8, from 0; -1: none */
/* ---- procedural scenes ------------------------------------------------------------------------------------------ */

enum { /* columns of a scene's spec; each value is 0-based, a count of 0 is one shape */
       PG_CONCEPT_SHAPE,
       PG_CONCEPT_COLOR,
       PG_CONCEPT_TEXTURE,
       PG_CONCEPT_POSITION,
       PG_CONCEPT_COUNT,
       PG_CONCEPT_SIZE,
       PG_CONCEPT_BACKGROUND,
       PG_CONCEPT_FIELDS
};

/* specs int32 (N, PG_CONCEPT_FIELDS) -> out uint8 (N, size, size, 3), a function of (specs, size, seed) alone. */
int pg_concepts_render(const pg_tensor *specs, int32_t size, uint64_t seed, pg_tensor **out);
/* ---- the loader: threads that read, augment and normalise batches ahead of the caller --------------------------- */

typedef struct pg_loader pg_loader;

typedef struct pg_loader_options {
  int32_t size;              /* S: side of the square that comes out, 1..1024 */
  int32_t workers, capacity; /* threads, 1..256, and most batches under way at once, 1..1024 */
  int32_t bilinear;          /* 0: bicubic */
  float crop_min, crop_max;  /* share of the area that a random resized crop keeps; crop_max 0: resize, centre crop */
  float flip;                /* probability of mirroring left and right */
  int32_t pad, pad_edge;     /* most pixels of a random shift; 0: zeros come in, 1: the edge repeats */
  float jitter[3];           /* amplitudes of brightness, contrast, saturation */
  float mean[3], std[3];     /* of v / 255 */
} pg_loader_options;

/* images: uint8 (N, H, W, 3), kept alive; or NULL, and n PNG or JPEG files, whose names are copied. */
int pg_loader_new(const pg_loader_options *options, pg_tensor *images, const char *const *files, int64_t n,
                  pg_loader **out);
/* One more batch: images positions[i], item i augmented as sample first + i of the stream `seed`. An error when
 * `capacity` batches are under way. */
int pg_loader_push(pg_loader *l, pg_tensor *positions, uint64_t seed, uint64_t first);
/* The oldest batch, float32 (B, 3, S, S); NULL when it is not ready within `seconds`. The first of its images that
 * cannot be read is the error; that batch is then gone and the next call gives the one after it. */
int pg_loader_next(pg_loader *l, double seconds, pg_tensor **out);
int64_t pg_loader_pushed(const pg_loader *l); /* batches so far, counting those that were forgotten */
int64_t pg_loader_taken(const pg_loader *l);
void pg_loader_clear(pg_loader *l); /* forgets every batch under way */
void pg_loader_free(pg_loader *l);  /* waits for the threads, at most one image each */
/* ---- other programs, locks, and what a sweep asks of the system -----------------------------------------------------
 */

typedef struct pg_spawn_options {
  const char *const *argv; /* ended by NULL; the first is a path, or a name that is looked for on PATH */
  const char *const *env;  /* "NAME=value" beside or in place of what is inherited, ended by NULL; NULL: none */
  const char *output;      /* file that stdout and stderr are appended to; NULL: nowhere */
  int32_t orphan_signal;   /* sent to the child when this process ends before it, however; 0: none */
  int32_t cpu, cpus;       /* the child runs on `cpus` of this process's processors, from its cpu-th on; 0: on all */
} pg_spawn_options;

int pg_process_spawn(const pg_spawn_options *options, int32_t *pid); /* in a process group of its own; no shell */
/* Does not wait. When ended is 1: status, or -1 and the signal that ended it. */
int pg_process_wait(int32_t pid, int32_t *ended, int32_t *status, int32_t *signal_number);
int pg_process_kill(int32_t pid, int32_t signal_number); /* -pid: its whole group */
int pg_lock(const char *path, int32_t *fd);              /* fd -1: another process holds it; the file says who */
void pg_unlock(int32_t fd);
int32_t pg_processors(void);            /* that this process may use */
int64_t pg_disk_free(const char *path); /* bytes that a file there may still take; -1: not known */
void pg_sleep(double duration);         /* seconds; a signal ends it early */
/* cdef-end */

#endif
