/* npy.c - NumPy's .npy, versions 1 to 3: "\x93NUMPY", the version, the header's length, a Python dictionary with descr,
 * fortran_order and shape, then the values. https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html */
#include "io.h"

enum { MOST_HEADER = 65536 };

static const char *const DESCR[PG_KINDS] = {
    [PG_FLOAT32] = "<f4", [PG_FLOAT64] = "<f8", [PG_INT32] = "<i4",  [PG_UINT8] = "|u1",
    [PG_FLOAT16] = "<f2", [PG_INT64] = "<i8",   [PG_UINT64] = "<u8", [PG_UINT32] = "<u4",
    [PG_INT16] = "<i2",   [PG_UINT16] = "<u2",  [PG_INT8] = "|i1",   [PG_BOOL] = "|b1"};

typedef struct header {
  int32_t kind, ndim;
  bool fortran;
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

static int parse_shape(const char *label, const char *s, header *h) {
  if (!s || *s != '(') return pg_fail(PG_ERR_FILE, "%s: its .npy header has no shape", label);
  for (s = skip_space(s + 1); *s != ')'; s = skip_space(s)) {
    if (h->ndim == PG_MAX_DIMS) return pg_fail(PG_ERR_FILE, "%s: more than %d dimensions", label, PG_MAX_DIMS);
    int64_t size = 0;
    const char *first = s;
    for (; *s >= '0' && *s <= '9'; s++)
      if (__builtin_mul_overflow(size, 10, &size) || __builtin_add_overflow(size, *s - '0', &size)) break;
    const char *after = skip_space(s);
    if (s == first || (*after != ',' && *after != ')'))
      return pg_fail(PG_ERR_FILE, "%s: its .npy header has a malformed shape", label);
    h->shape[h->ndim++] = size;
    s = *after == ',' ? after + 1 : after;
  }
  return PG_OK;
}

static int parse(const char *label, const char *text, header *h) {
  const char *descr = value_of(text, "descr"), *order = value_of(text, "fortran_order");
  char name[8] = "";
  if (!descr || (*descr != '\'' && *descr != '"') || !order)
    return pg_fail(PG_ERR_FILE, "%s: its .npy header lacks descr or fortran_order, or has a structured dtype", label);
  snprintf(name, sizeof name, "%.*s", (int)strcspn(descr + 1, "'\""), descr + 1);
  for (char *c = name; *c; c++) /* it may end up in a message */
    if (*c < ' ' || *c > '~') *c = '?';
  h->fortran = !strncmp(order, "True", 4);
  for (h->kind = 0; h->kind < PG_KINDS; h->kind++)
    if (DESCR[h->kind] && !strcmp(name, DESCR[h->kind])) return parse_shape(label, value_of(text, "shape"), h);
  if (name[0] == '>') return pg_fail(PG_ERR_FILE, "%s: dtype '%s': big-endian values are not read", label, name);
  return pg_fail(PG_ERR_FILE, "%s: dtype '%s'; f2, f4, f8, i1 to i8, u1 to u8 and b1 can be read", label, name);
}

static int read_header(pg_source *s, const char *label, int64_t bytes, header *h, int64_t *start) {
  uint8_t head[12];
  if (s->read(s, 0, head, 10) || memcmp(head, "\x93NUMPY", 6))
    return pg_fail(PG_ERR_FILE, "%s: not a .npy file", label);
  if (head[6] < 1 || head[6] > 3)
    return pg_fail(PG_ERR_FILE, "%s: .npy version %d; 1 to 3 can be read", label, head[6]);
  int64_t length = head[8] | head[9] << 8, first = 10;
  if (head[6] > 1) {
    if (s->read(s, 10, head + 10, 2)) return pg_fail(PG_ERR_FILE, "%s: truncated within its .npy header", label);
    length |= (int64_t)head[10] << 16 | (int64_t)head[11] << 24;
    first = 12;
  }
  *start = first + length;
  if (length > MOST_HEADER || *start > bytes)
    return pg_fail(PG_ERR_FILE, "%s: its .npy header would be %lld bytes; the file has %lld", label, (long long)length,
                   (long long)bytes);
  char *text = malloc((size_t)length + 1);
  if (!text) return pg_fail(PG_ERR_MEMORY, "%s: out of memory", label);
  int status;
  if (s->read(s, first, text, length)) {
    status = pg_fail(PG_ERR_FILE, "%s: truncated within its .npy header", label);
  } else {
    text[length] = 0;
    status = parse(label, text, h);
  }
  free(text);
  return status;
}

/* The error of this thread, with a name before it; where a stop came is chance. */
static int named(int status, const char *label) {
  char text[1024];
  if (!status || status == PG_ERR_INTERRUPTED) return status;
  snprintf(text, sizeof text, "%s", pg_last_error());
  return pg_fail(PG_ERR_FILE, "%s: %s", label, text);
}

int pg_npy_from(pg_source *s, const char *label, int64_t bytes, pg_tensor **out) {
  header h = {0};
  int64_t start = 0, reversed[PG_MAX_DIMS], stride[PG_MAX_DIMS];
  PG_TRY(read_header(s, label, bytes, &h, &start));
  int64_t expected = pg_kind_bytes(h.kind);
  bool overflow = false;
  for (int32_t i = 0; i < h.ndim; i++) {
    overflow |= __builtin_mul_overflow(expected, h.shape[i], &expected);
    reversed[h.ndim - 1 - i] = h.shape[i];
  }
  if (overflow || expected != bytes - start)
    return pg_fail(PG_ERR_FILE,
                   "%s: truncated or damaged: its shape and dtype do not make the %lld bytes of values it holds", label,
                   (long long)(bytes - start));
  pg_tensor *t, *view;
  PG_TRY(pg_new(pg_kind_dtype(h.kind), PG_CPU, h.ndim, h.fortran ? reversed : h.shape, &t));
  int status = named(pg_values_from(s, start, h.kind, t), label);
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
  pg_source file = pg_source_file(fileno(f));
  int status = pg_npy_from(&file, path, bytes, out);
  fclose(f);
  return status;
}

int64_t pg_npy_head(const pg_tensor *t, char head[PG_NPY_HEAD]) {
  char shape[256] = "";
  int used = 0;
  for (int32_t i = 0; i < t->ndim; i++)
    used += snprintf(shape + used, sizeof shape - used, i ? ", %lld" : "%lld", (long long)t->shape[i]);
  int length = snprintf(head + 10, PG_NPY_HEAD - 10, "{'descr': '%s', 'fortran_order': False, 'shape': (%s%s), }",
                        DESCR[t->dtype], shape, t->ndim == 1 ? "," : "");
  int padded = (10 + length + 1 + 63) / 64 * 64; /* the values start on a multiple of 64 */
  memset(head + 10 + length, ' ', (size_t)(padded - 10 - length));
  memcpy(head, "\x93NUMPY\x01\x00", 8);
  head[8] = (char)((padded - 10) & 255);
  head[9] = (char)((padded - 10) >> 8);
  head[padded - 1] = '\n';
  return padded;
}

int pg_npy_save(const char *path, pg_tensor *t) {
  char head[PG_NPY_HEAD];
  pg_tensor *src;
  PG_TRY(pg_check_live(t, "npy.save"));
  if (t->device != PG_CPU) return pg_fail(PG_ERR_DEVICE, "%s: npy.save takes a tensor on the CPU", path);
  int64_t length = pg_npy_head(t, head);
  PG_TRY(pg_contiguous(t, &src));
  const void *parts[] = {head, pg_data(src)};
  int status = pg_file_write(path, 2, parts, (int64_t[]){length, pg_numel(t) * (int64_t)pg_dtype_bytes[t->dtype]});
  pg_release(src);
  return status;
}
