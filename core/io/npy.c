/* npy.c - NumPy's .npy, versions 1 to 3: "\x93NUMPY", the version, the header's length, a Python dictionary with descr,
 * fortran_order and shape, then the values. https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html */
#include "io.h"

enum { MOST_HEADER = 65536 };

static const char *const DESCR[PG_DTYPES] = {"<f4", "<f8", "<i4", "|u1"};

typedef struct header {
  int32_t dtype, ndim;
  bool wide, fortran; /* wide: int64 in the file */
  int64_t shape[PG_MAX_DIMS];
} header;

static const char *skip_space(const char *s) { return s + strspn(s, " \t\n"); }

/* The text after 'key': , or NULL. */
static const char *value_of(const char *text, const char *key) {
  for (const char *s = text; (s = strstr(s, key)); s++) {
    size_t n = strlen(key);
    if (s == text || (s[-1] != '\'' && s[-1] != '"') || s[n] != s[-1]) continue;
    const char *colon = skip_space(s + n + 1);
    if (*colon == ':') return skip_space(colon + 1);
  }
  return NULL;
}

static int parse_shape(const char *path, const char *s, header *h) {
  if (!s || *s != '(') return pg_fail(PG_ERR_FILE, "%s: its .npy header has no shape", path);
  for (s = skip_space(s + 1); *s != ')'; s = skip_space(s)) {
    if (h->ndim == PG_MAX_DIMS) return pg_fail(PG_ERR_FILE, "%s: more than %d dimensions", path, PG_MAX_DIMS);
    int64_t size = 0;
    const char *first = s;
    for (; *s >= '0' && *s <= '9'; s++)
      if (__builtin_mul_overflow(size, 10, &size) || __builtin_add_overflow(size, *s - '0', &size)) break;
    const char *after = skip_space(s);
    if (s == first || (*after != ',' && *after != ')'))
      return pg_fail(PG_ERR_FILE, "%s: its .npy header has a malformed shape", path);
    h->shape[h->ndim++] = size;
    s = *after == ',' ? after + 1 : after;
  }
  return PG_OK;
}

static int parse(const char *path, const char *text, header *h) {
  const char *descr = value_of(text, "descr"), *order = value_of(text, "fortran_order");
  char kind[8] = "";
  if (!descr || (*descr != '\'' && *descr != '"') || !order)
    return pg_fail(PG_ERR_FILE, "%s: its .npy header lacks descr or fortran_order, or has a structured dtype", path);
  snprintf(kind, sizeof kind, "%.*s", (int)strcspn(descr + 1, "'\""), descr + 1);
  for (char *c = kind; *c; c++) /* it may end up in a message */
    if (*c < ' ' || *c > '~') *c = '?';
  h->fortran = !strncmp(order, "True", 4);
  h->wide = !strcmp(kind, "<i8");
  h->dtype = h->wide ? PG_INT32 : PG_DTYPES;
  for (int32_t i = 0; i < PG_DTYPES; i++)
    if (!strcmp(kind, DESCR[i])) h->dtype = i;
  if (h->dtype == PG_DTYPES)
    return pg_fail(PG_ERR_FILE, "%s: dtype '%s'; <f4, <f8, <i4, <i8 and |u1 can be read", path, kind);
  return parse_shape(path, value_of(text, "shape"), h);
}

static int read_wide(FILE *f, const char *path, int32_t *dst, int64_t count) {
  int64_t chunk[512];
  for (int64_t at = 0; at < count;) {
    int64_t n = PG_MIN(count - at, 512);
    if ((int64_t)fread(chunk, 8, (size_t)n, f) < n) return pg_fail(PG_ERR_FILE, "%s: cannot read its values", path);
    for (int64_t i = 0; i < n; i++) {
      if (chunk[i] < INT32_MIN || chunk[i] > INT32_MAX)
        return pg_fail(PG_ERR_FILE, "%s: the int64 value %lld does not fit int32", path, (long long)chunk[i]);
      dst[at++] = (int32_t)chunk[i];
    }
  }
  return PG_OK;
}

static int read_header(FILE *f, const char *path, int64_t bytes, header *h, int64_t *start) {
  uint8_t head[12];
  if (fread(head, 1, 10, f) < 10 || memcmp(head, "\x93NUMPY", 6))
    return pg_fail(PG_ERR_FILE, "%s: not a .npy file", path);
  if (head[6] < 1 || head[6] > 3) return pg_fail(PG_ERR_FILE, "%s: .npy version %d; 1 to 3 can be read", path, head[6]);
  int64_t length = head[8] | head[9] << 8;
  *start = 10;
  if (head[6] > 1) {
    if (fread(head + 10, 1, 2, f) < 2) return pg_fail(PG_ERR_FILE, "%s: truncated within its .npy header", path);
    length |= (int64_t)head[10] << 16 | (int64_t)head[11] << 24;
    *start = 12;
  }
  *start += length;
  if (length > MOST_HEADER || *start > bytes)
    return pg_fail(PG_ERR_FILE, "%s: its .npy header would be %lld bytes; the file has %lld", path, (long long)length,
                   (long long)bytes);
  char *text = malloc((size_t)length + 1);
  if (!text) return pg_fail(PG_ERR_MEMORY, "%s: out of memory", path);
  int status;
  if ((int64_t)fread(text, 1, (size_t)length, f) < length) {
    status = pg_fail(PG_ERR_FILE, "%s: truncated within its .npy header", path);
  } else {
    text[length] = 0;
    status = parse(path, text, h);
  }
  free(text);
  return status;
}

static int npy_read(FILE *f, const char *path, int64_t bytes, pg_tensor **out) {
  header h = {0};
  int64_t start = 0, reversed[PG_MAX_DIMS], stride[PG_MAX_DIMS], count = 1;
  PG_TRY(read_header(f, path, bytes, &h, &start));
  int64_t expected = h.wide ? 8 : (int64_t)pg_dtype_bytes[h.dtype];
  bool overflow = false;
  for (int32_t i = 0; i < h.ndim; i++) {
    overflow |= __builtin_mul_overflow(expected, h.shape[i], &expected);
    if (!overflow) count *= h.shape[i];
    reversed[h.ndim - 1 - i] = h.shape[i];
  }
  if (overflow || expected != bytes - start)
    return pg_fail(PG_ERR_FILE,
                   "%s: truncated or damaged: its shape and dtype do not make the %lld bytes of values it holds", path,
                   (long long)(bytes - start));
  pg_tensor *t, *view;
  PG_TRY(pg_new(h.dtype, PG_CPU, h.ndim, h.fortran ? reversed : h.shape, &t));
  int status = PG_OK;
  if (h.wide)
    status = read_wide(f, path, PG_AT(int32_t, t), count);
  else if ((int64_t)fread(PG_AT(uint8_t, t), 1, (size_t)expected, f) < expected)
    status = pg_fail(PG_ERR_FILE, "%s: cannot read its values", path);
  if (!status && h.fortran) { /* the file's first dimension runs fastest: read reversed, then turn round */
    for (int32_t i = 0; i < h.ndim; i++) stride[i] = t->stride[h.ndim - 1 - i];
    status = pg_view(t, h.ndim, h.shape, stride, 0, &view);
    if (!status) {
      pg_release(t);
      status = pg_contiguous(view, &t);
      pg_release(view);
      return status ? status : (*out = t, PG_OK);
    }
  }
  if (status) return pg_release(t), status;
  return *out = t, PG_OK;
}

int pg_npy_load(const char *path, pg_tensor **out) {
  int64_t bytes;
  FILE *f = pg_file_open(path, &bytes);
  if (!f) return PG_ERR_FILE;
  int status = npy_read(f, path, bytes, out);
  fclose(f);
  return status;
}

int pg_npy_save(const char *path, pg_tensor *t) {
  char shape[256] = "", head[512];
  int used = 0;
  pg_tensor *src;
  PG_TRY(pg_check_live(t, "npy.save"));
  if (t->device != PG_CPU) return pg_fail(PG_ERR_DEVICE, "%s: npy.save takes a tensor on the CPU", path);
  for (int32_t i = 0; i < t->ndim; i++)
    used += snprintf(shape + used, sizeof shape - used, i ? " %lld," : "%lld,", (long long)t->shape[i]);
  int length = snprintf(head + 10, sizeof head - 10, "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }",
                        DESCR[t->dtype], shape);
  int padded = (10 + length + 1 + 63) / 64 * 64; /* the values start on a multiple of 64 */
  memset(head + 10 + length, ' ', (size_t)(padded - 10 - length));
  memcpy(head, "\x93NUMPY\x01\x00", 8);
  head[8] = (char)((padded - 10) & 255);
  head[9] = (char)((padded - 10) >> 8);
  head[padded - 1] = '\n';
  PG_TRY(pg_contiguous(t, &src));
  const void *parts[] = {head, pg_data(src)};
  int status = pg_file_write(path, 2, parts, (int64_t[]){padded, pg_numel(t) * (int64_t)pg_dtype_bytes[t->dtype]});
  pg_release(src);
  return status;
}
