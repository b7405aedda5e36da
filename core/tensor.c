/* tensor.c - handles over storages: shapes, strides, views, and moving values between layouts, dtypes and devices. */
#include "core.h"

const size_t pg_dtype_bytes[PG_DTYPES] = {4, 8, 4, 1};

const char *pg_dtype_name(int32_t dtype) {
  static const char *names[PG_DTYPES] = {"float32", "float64", "int32", "uint8"};
  return dtype >= 0 && dtype < PG_DTYPES ? names[dtype] : "unknown";
}

const char *pg_device_name(int32_t device) {
  static const char *names[PG_DEVICES] = {"cpu", "cuda"};
  return device >= 0 && device < PG_DEVICES ? names[device] : "unknown";
}

/* ---- making and dropping ---------------------------------------------------------------------------------------- */

void pg_contiguous_strides(int32_t ndim, const int64_t *shape, int64_t *stride) {
  int64_t step = 1;
  for (int32_t i = ndim - 1; i >= 0; i--) stride[i] = step, step *= PG_MAX(shape[i], 1);
}

static int tensor_alloc(int32_t dtype, int32_t device, int32_t ndim, const int64_t *shape, pg_tensor **out) {
  pg_tensor *t = calloc(1, sizeof *t);
  if (!t) return pg_fail(PG_ERR_MEMORY, "out of memory");
  atomic_init(&t->refs, 1);
  t->dtype = dtype, t->device = device, t->ndim = ndim;
  for (int32_t i = 0; i < ndim; i++) t->shape[i] = shape[i];
  pg_contiguous_strides(ndim, t->shape, t->stride);
  return *out = t, PG_OK;
}

int pg_new(int32_t dtype, int32_t device, int32_t ndim, const int64_t *shape, pg_tensor **out) {
  if (dtype < 0 || dtype >= PG_DTYPES) return pg_fail(PG_ERR_DTYPE, "new tensor: unknown dtype %d", dtype);
  if (ndim < 0 || ndim > PG_MAX_DIMS)
    return pg_fail(PG_ERR_SHAPE, "new tensor: %d dimensions, at most %d", ndim, PG_MAX_DIMS);
  pg_tensor asked = {.ndim = ndim}, *t = NULL;
  int64_t bytes = (int64_t)pg_dtype_bytes[dtype], span = bytes; /* span: as if no size were 0, since strides are so */
  char text[128];
  if (ndim) memcpy(asked.shape, shape, sizeof *shape * (size_t)ndim);
  for (int32_t i = 0; i < ndim; i++) {
    if (shape[i] < 0) return pg_fail(PG_ERR_SHAPE, "new tensor: size %lld is negative", (long long)shape[i]);
    if (__builtin_mul_overflow(span, PG_MAX(shape[i], 1), &span) || span > ((int64_t)1 << 46))
      return pg_fail(PG_ERR_MEMORY, "new tensor: %s %s asks for more than 64 TiB", pg_dtype_name(dtype),
                     pg_shape_text(&asked, text));
    bytes *= shape[i];
  }
  PG_TRY(tensor_alloc(dtype, device, ndim, shape, &t));
  int status = pg_storage_new(device, (size_t)bytes, &t->storage);
  if (status) return free(t), status;
  return *out = t, PG_OK;
}

int pg_new_like(const pg_tensor *t, pg_tensor **out) { return pg_new(t->dtype, t->device, t->ndim, t->shape, out); }

int pg_new_shell(const pg_tensor *t, pg_tensor **out) {
  return tensor_alloc(t->dtype, t->device, t->ndim, t->shape, out);
}

pg_tensor *pg_retain(pg_tensor *t) {
  if (t) atomic_fetch_add(&t->refs, 1);
  return t;
}

void pg_node_release(pg_node *node); /* tape.c */

void pg_release(pg_tensor *t) {
  if (!t || atomic_fetch_sub(&t->refs, 1) > 1) return;
  pg_release(t->grad);
  pg_storage_release(t->storage);
  pg_node_release(t->node);
  free(t);
}

void pg_free(pg_tensor *t) { /* other views of the storage, and what the tape saved, keep it alive */
  pg_storage_release(t->storage), t->storage = NULL;
  pg_node_release(t->node), t->node = NULL;
}

int pg_view(pg_tensor *t, int32_t ndim, const int64_t *shape, const int64_t *stride, int64_t offset, pg_tensor **out) {
  PG_TRY(tensor_alloc(t->dtype, t->device, ndim, shape, out));
  for (int32_t i = 0; i < ndim; i++) (*out)->stride[i] = stride[i];
  (*out)->offset = offset;
  (*out)->storage = t->storage;
  if (t->storage) atomic_fetch_add(&t->storage->refs, 1);
  return PG_OK;
}

int pg_alias(pg_tensor *t, pg_tensor **out) { return pg_view(t, t->ndim, t->shape, t->stride, t->offset, out); }

int pg_detach(pg_tensor *t, pg_tensor **out) { return pg_alias(t, out); }

/* ---- asking ----------------------------------------------------------------------------------------------------- */

int32_t pg_ndim(const pg_tensor *t) { return t->ndim; }
int64_t pg_size(const pg_tensor *t, int32_t dim) { return dim >= 0 && dim < t->ndim ? t->shape[dim] : -1; }
int64_t pg_stride(const pg_tensor *t, int32_t dim) { return dim >= 0 && dim < t->ndim ? t->stride[dim] : -1; }
int32_t pg_dtype(const pg_tensor *t) { return t->dtype; }
int32_t pg_device(const pg_tensor *t) { return t->device; }
int64_t pg_version_of(const pg_tensor *t) { return t->storage ? t->storage->version : 0; }
void *pg_data(pg_tensor *t) {
  if (!t->storage || !t->storage->data) return NULL;
  return (char *)t->storage->data + (size_t)t->offset * pg_dtype_bytes[t->dtype];
}

int64_t pg_numel(const pg_tensor *t) {
  int64_t n = 1;
  for (int32_t i = 0; i < t->ndim; i++) n *= t->shape[i];
  return n;
}

int32_t pg_is_contiguous(const pg_tensor *t) {
  int64_t step = 1;
  if (pg_numel(t) == 0) return 1;
  for (int32_t i = t->ndim - 1; i >= 0; i--) {
    if (t->shape[i] == 1) continue;
    if (t->stride[i] != step) return 0;
    step *= t->shape[i];
  }
  return 1;
}

bool pg_same_shape(const pg_tensor *a, const pg_tensor *b) {
  if (a->ndim != b->ndim) return false;
  for (int32_t i = 0; i < a->ndim; i++)
    if (a->shape[i] != b->shape[i]) return false;
  return true;
}

int pg_check_live(const pg_tensor *t, const char *what) {
  if (t->storage && t->storage->data) return PG_OK;
  return pg_fail(PG_ERR_STATE, "%s: a tensor's memory was already released by free()", what);
}

/* ---- moving values ---------------------------------------------------------------------------------------------- */

static double element_get(int32_t dtype, const void *p, int64_t i) {
  switch (dtype) {
  case PG_FLOAT32: return ((const float *)p)[i];
  case PG_FLOAT64: return ((const double *)p)[i];
  case PG_INT32: return ((const int32_t *)p)[i];
  default: return ((const uint8_t *)p)[i];
  }
}

/* Out-of-range values saturate and NaN becomes 0, so that no conversion is undefined. */
static void element_set(int32_t dtype, void *p, int64_t i, double v) {
  switch (dtype) {
  case PG_FLOAT32: ((float *)p)[i] = (float)v; break;
  case PG_FLOAT64: ((double *)p)[i] = v; break;
  case PG_INT32: ((int32_t *)p)[i] = v != v ? 0 : (int32_t)fmax(-2147483648.0, fmin(2147483647.0, v)); break;
  default: ((uint8_t *)p)[i] = v != v ? 0 : (uint8_t)fmax(0, fmin(255, v)); break;
  }
}

/* One run of n elements with strides, the innermost dimension of a copy. */
static void copy_run(int32_t to, void *dst, int64_t ds, int32_t from, const void *src, int64_t ss, int64_t n) {
  if (to == from && ds == 1 && ss == 1) {
    memcpy(dst, src, (size_t)n * pg_dtype_bytes[to]);
    return;
  }
  if (to == from) switch (pg_dtype_bytes[to]) {
    case 8:
      for (int64_t i = 0; i < n; i++) ((uint64_t *)dst)[i * ds] = ((const uint64_t *)src)[i * ss];
      return;
    case 4:
      for (int64_t i = 0; i < n; i++) ((uint32_t *)dst)[i * ds] = ((const uint32_t *)src)[i * ss];
      return;
    default:
      for (int64_t i = 0; i < n; i++) ((uint8_t *)dst)[i * ds] = ((const uint8_t *)src)[i * ss];
      return;
    }
  for (int64_t i = 0; i < n; i++) element_set(to, dst, i * ds, element_get(from, src, i * ss));
}

/* dst and src: host tensors of one shape, any strides, any dtypes. Dimensions that run on in both are merged, then the
 * last is the run and the others are counted through. Where dst is new, a stop may leave it half copied. */
static void copy_strided(pg_tensor *dst, const pg_tensor *src, bool new) {
  enum { PIECE = 1 << 18 };
  int64_t shape[PG_MAX_DIMS], ds[PG_MAX_DIMS], ss[PG_MAX_DIMS];
  int32_t n = 0;
  for (int32_t i = 0; i < dst->ndim; i++) {
    if (dst->shape[i] == 0) return;
    if (dst->shape[i] == 1) continue;
    if (n && ds[n - 1] == dst->stride[i] * dst->shape[i] && ss[n - 1] == src->stride[i] * dst->shape[i]) {
      shape[n - 1] *= dst->shape[i], ds[n - 1] = dst->stride[i], ss[n - 1] = src->stride[i];
    } else {
      shape[n] = dst->shape[i], ds[n] = dst->stride[i], ss[n] = src->stride[i], n++;
    }
  }
  if (!n) shape[0] = 1, ds[0] = ss[0] = 1, n = 1;
  int64_t runs = 1, length = shape[n - 1];
  for (int32_t i = 0; i < n - 1; i++) runs *= shape[i];
  size_t dbytes = pg_dtype_bytes[dst->dtype], sbytes = pg_dtype_bytes[src->dtype];
  char *to = pg_data(dst);
  const char *from = pg_data((pg_tensor *)src);
  int64_t pieces = (length + PIECE - 1) / PIECE; /* of a run, for the threads, and so that a stop is heard */
#pragma omp parallel for schedule(static) if (runs * pieces > 1 && runs * length > 32768)
  for (int64_t task = 0; task < runs * pieces; task++) {
    if (new &&pg_stopping()) continue;
    int64_t begin = task % pieces * PIECE, d = begin * ds[n - 1], s = begin * ss[n - 1], rest = task / pieces;
    for (int32_t i = n - 2; i >= 0; i--) {
      int64_t at = rest % shape[i];
      rest /= shape[i], d += at * ds[i], s += at * ss[i];
    }
    copy_run(dst->dtype, to + d * (int64_t)dbytes, ds[n - 1], src->dtype, from + s * (int64_t)sbytes, ss[n - 1],
             PG_MIN(PIECE, length - begin));
  }
}

/* Between devices only plain rows of bytes travel: layout and dtype are made on the source's side, then taken apart on
 * the other. */
static int copy_across(pg_tensor *dst, const pg_tensor *src) {
  pg_tensor *there = NULL, *here = NULL;
  PG_TRY(pg_new(dst->dtype, src->device, dst->ndim, dst->shape, &there));
  int status = pg_copy_new(there, src);
  if (!status && pg_is_contiguous(dst)) {
    status = pg_copy(dst, there);
  } else if (!status && !(status = pg_new_like(dst, &here))) {
    status = pg_copy_new(here, there);
    if (!status) status = pg_copy(dst, here);
  }
  pg_release(there), pg_release(here);
  return status;
}

static int copy(pg_tensor *dst, const pg_tensor *src, bool new) {
  char a[128], b[128];
  if (!pg_same_shape(dst, src))
    return pg_fail(PG_ERR_SHAPE, "copy: shapes differ: destination %s, source %s", pg_shape_text(dst, a),
                   pg_shape_text(src, b));
  PG_TRY(pg_check_live(dst, "copy"));
  PG_TRY(pg_check_live(src, "copy"));
  dst->storage->version++;
  if (dst->device == PG_CPU && src->device == PG_CPU) return copy_strided(dst, src, new), PG_OK;
  const pg_device_vtable *vtable = pg_device_get(dst->device == PG_CPU ? src->device : dst->device);
  if (!vtable) return PG_ERR_DEVICE;
  if (!pg_numel(src)) return PG_OK;
  bool plain = dst->dtype == src->dtype && pg_is_contiguous(dst) && pg_is_contiguous(src);
  size_t bytes = (size_t)pg_numel(src) * pg_dtype_bytes[src->dtype];
  void *to = pg_data(dst), *from = pg_data((pg_tensor *)src);
  if (dst->device == src->device) return plain ? vtable->copy(to, from, bytes) : vtable->assign(dst, src);
  if (plain) return dst->device == PG_CPU ? vtable->to_host(to, from, bytes) : vtable->from_host(to, from, bytes);
  return copy_across(dst, src);
}

int pg_copy(pg_tensor *dst, const pg_tensor *src) { return copy(dst, src, false); }

int pg_copy_new(pg_tensor *dst, const pg_tensor *src) { return pg_unless_stopped(copy(dst, src, true)); }

int pg_contiguous(pg_tensor *t, pg_tensor **out) {
  if (pg_is_contiguous(t)) return *out = pg_retain(t), PG_OK;
  PG_TRY(pg_new_like(t, out));
  int status = pg_copy_new(*out, t);
  if (status) pg_release(*out), *out = NULL;
  return status;
}

int pg_convert(pg_tensor *t, int32_t dtype, int32_t device, pg_tensor **out) {
  if (t->dtype == dtype && t->device == device) return *out = pg_retain(t), PG_OK;
  PG_TRY(pg_new(dtype, device, t->ndim, t->shape, out));
  int status = pg_copy_new(*out, t);
  if (status) pg_release(*out), *out = NULL;
  return status;
}

int pg_upload(pg_tensor *t, const void *host, int64_t bytes) {
  PG_TRY(pg_check_live(t, "upload"));
  int64_t own = pg_numel(t) * (int64_t)pg_dtype_bytes[t->dtype];
  if (!pg_is_contiguous(t) || own != bytes)
    return pg_fail(PG_ERR_SHAPE, "upload: %lld bytes for a tensor of %lld", (long long)bytes, (long long)own);
  const pg_device_vtable *vtable = pg_device_get(t->device);
  if (!vtable) return PG_ERR_DEVICE;
  t->storage->version++;
  return vtable->from_host(pg_data(t), host, (size_t)bytes);
}

/* LuaJIT keeps its own values in the spare bits of NaN: read from memory, one with such bits, from a file for example,
 * would become whatever they say. */
static void plain_nans(void *values, int32_t dtype, int64_t n) {
  float *f = values;
  double *d = values;
  if (dtype == PG_FLOAT32)
    for (int64_t i = 0; i < n; i++) f[i] = f[i] != f[i] ? NAN : f[i];
  if (dtype == PG_FLOAT64)
    for (int64_t i = 0; i < n; i++) d[i] = d[i] != d[i] ? NAN : d[i];
}

int pg_download(const pg_tensor *t, void *host, int64_t bytes) {
  PG_TRY(pg_check_live(t, "download"));
  int64_t own = pg_numel(t) * (int64_t)pg_dtype_bytes[t->dtype];
  if (own != bytes)
    return pg_fail(PG_ERR_SHAPE, "download: %lld bytes from a tensor of %lld", (long long)bytes, (long long)own);
  const pg_device_vtable *vtable = pg_device_get(t->device);
  pg_tensor *flat;
  if (!vtable) return PG_ERR_DEVICE;
  PG_TRY(pg_contiguous((pg_tensor *)t, &flat));
  int status = vtable->to_host(host, pg_data(flat), (size_t)bytes);
  pg_release(flat);
  if (!status) plain_nans(host, t->dtype, pg_numel(t));
  return status;
}

static int fill(pg_tensor *t, double value, bool new) {
  enum { PIECE = 1 << 26 };
  PG_TRY(pg_check_live(t, "fill"));
  const pg_device_vtable *vtable = pg_device_get(t->device);
  if (!vtable) return PG_ERR_DEVICE;
  t->storage->version++;
  int64_t n = pg_numel(t);
  if (value == 0 && !signbit(value) && pg_is_contiguous(t)) {
    int64_t bytes = n * (int64_t)pg_dtype_bytes[t->dtype];
    for (int64_t i = 0; i < bytes && !(i && new &&pg_stopping()); i += PIECE)
      PG_TRY(vtable->fill_zero((char *)pg_data(t) + i, (size_t)PG_MIN(PIECE, bytes - i)));
    return PG_OK;
  }
  if (t->device == PG_CPU) { /* copy from one element, seen with strides of zero */
    uint64_t bits = 0;
    pg_tensor *one;
    element_set(t->dtype, &bits, 0, value);
    int64_t zero[PG_MAX_DIMS] = {0};
    PG_TRY(pg_new(t->dtype, PG_CPU, 0, NULL, &one));
    memcpy(pg_data(one), &bits, pg_dtype_bytes[t->dtype]);
    pg_tensor *wide;
    int status = pg_view(one, t->ndim, t->shape, zero, 0, &wide);
    if (!status) copy_strided(t, wide, new), pg_release(wide);
    return pg_release(one), status;
  }
  return n ? vtable->fill(t, value) : PG_OK;
}

int pg_fill(pg_tensor *t, double value) { return fill(t, value, false); }

int pg_fill_new(pg_tensor *t, double value) { return pg_unless_stopped(fill(t, value, true)); }

PG_SIMD static void add_f32(int64_t n, float *restrict a, const float *restrict b) {
  for (int64_t i = 0; i < n; i++) a[i] += b[i];
}

PG_SIMD static void add_f64(int64_t n, double *restrict a, const double *restrict b) {
  for (int64_t i = 0; i < n; i++) a[i] += b[i];
}

PG_SIMD static int64_t nonfinite_f32(int64_t n, const float *x) {
  int64_t bad = 0;
  for (int64_t i = 0; i < n; i++) bad += !(fabsf(x[i]) <= 3.4028235e38f);
  return bad;
}

PG_SIMD static int64_t nonfinite_f64(int64_t n, const double *x) {
  int64_t bad = 0;
  for (int64_t i = 0; i < n; i++) bad += !(fabs(x[i]) <= 1.7976931348623157e308);
  return bad;
}

enum { PIECE = 16384 }; /* elements that one thread takes at a time */

int pg_add_into(pg_tensor *sum, const pg_tensor *t) {
  int64_t n = pg_numel(sum);
  if (sum->device != PG_CPU) {
    const pg_device_vtable *vtable = pg_device_get(sum->device);
    sum->storage->version++;
    return !vtable ? PG_ERR_DEVICE : n ? vtable->add(sum, t) : PG_OK;
  }
#pragma omp parallel for schedule(static) if (n > 2 * PIECE)
  for (int64_t i = 0; i < n; i += PIECE) {
    if (sum->dtype == PG_FLOAT32)
      add_f32(PG_MIN(PIECE, n - i), PG_AT(float, sum) + i, PG_AT(float, t) + i);
    else
      add_f64(PG_MIN(PIECE, n - i), PG_AT(double, sum) + i, PG_AT(double, t) + i);
  }
  sum->storage->version++;
  return PG_OK;
}

int pg_count_nonfinite(const pg_tensor *t, int64_t *out) {
  PG_TRY(pg_check_live(t, "count_nonfinite"));
  *out = 0;
  if (!pg_is_float(t->dtype)) return PG_OK;
  pg_tensor *flat;
  PG_TRY(pg_contiguous((pg_tensor *)t, &flat));
  int64_t n = pg_numel(flat), bad = 0;
  if (t->device != PG_CPU) {
    const pg_device_vtable *vtable = pg_device_get(t->device);
    int status = !vtable ? PG_ERR_DEVICE : n ? vtable->count_nonfinite(flat, out) : PG_OK;
    return pg_release(flat), status;
  }
#pragma omp parallel for schedule(static) reduction(+ : bad) if (n > 2 * PIECE)
  for (int64_t i = 0; i < n; i += PIECE)
    bad += t->dtype == PG_FLOAT32 ? nonfinite_f32(PG_MIN(PIECE, n - i), PG_AT(float, flat) + i)
                                  : nonfinite_f64(PG_MIN(PIECE, n - i), PG_AT(double, flat) + i);
  pg_release(flat);
  return *out = bad, PG_OK;
}
