/* mat.c - one array of a MATLAB 5 file, by name: uint8 and double, plain or in zlib-compressed elements.
 *
 * A file is a header of 128 bytes and then elements: a tag of two 32-bit numbers, type and bytes, and the data, padded
 * to a multiple of 8. A tag whose type has its upper half set is small: that half is the length, and up to four bytes
 * of data stand in place of the second number. A matrix element holds elements of its own: flags, dimensions, name,
 * values, first dimension fastest. A compressed element is the zlib stream of one element. Values are stored in any
 * number type that holds them, whatever the array's class. Little-endian files only.
 * https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf */
#include "io.h"
#include <zlib.h>

enum { HEADER = 128, MI_INT8 = 1, MI_INT32 = 5, MI_UINT32 = 6, MI_MATRIX = 14, MI_COMPRESSED = 15 };
enum { MX_DOUBLE = 6, MX_UINT8 = 9, MX_COMPLEX = 0x800, MOST_NAME = 64 };

/* Bytes that one value takes, by type; 0: no number. 1 int8, 2 uint8, 3 int16, 4 uint16, 5 int32, 6 uint32, 7 single,
 * 9 double, 12 int64, 13 uint64. */
static const uint8_t VALUE_BYTES[16] = {0, 1, 1, 2, 2, 4, 4, 4, 0, 8, 0, 0, 8, 8, 0, 0};

/* Deflate cannot expand more than 1032 times, so a tag that promises more than that lies. */
static const int64_t MOST_EXPANSION = 1032;

/* The bytes of one top-level element, inflated where it is compressed. */
typedef struct source {
  FILE *f;
  const char *path;
  int64_t left;    /* bytes of it in the file that are not read yet */
  int64_t promise; /* most bytes that can still come out */
  bool packed, open;
  z_stream z;
  uint8_t in[16384];
} source;

typedef struct tag {
  uint32_t type, bytes;
  bool small;
  uint8_t data[4]; /* of a small element */
} tag;

static int cut(const source *s) { return pg_fail(PG_ERR_FILE, "%s: truncated or damaged MATLAB file", s->path); }

static uint32_t little(const uint8_t *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* ---- bytes ------------------------------------------------------------------------------------------------------- */

/* One step of inflating: up to `room` bytes to dst; the code of zlib, and *got of them. */
static int inflate_some(source *s, uint8_t *dst, int64_t room, int64_t *got) {
  if (!s->z.avail_in && s->left > 0) {
    size_t n = fread(s->in, 1, (size_t)PG_MIN(s->left, (int64_t)sizeof s->in), s->f);
    s->left -= (int64_t)n, s->z.next_in = s->in, s->z.avail_in = (unsigned)n;
  }
  unsigned most = (unsigned)PG_MIN(room, (int64_t)1 << 30);
  s->z.next_out = dst, s->z.avail_out = most;
  int code = inflate(&s->z, Z_NO_FLUSH);
  return *got = most - s->z.avail_out, code;
}

static int take(source *s, void *dst, int64_t bytes) {
  enum { PIECE = 1 << 24 }; /* bytes between two looks at whether to stop */
  if (bytes > s->promise) return cut(s);
  s->promise -= bytes;
  for (uint8_t *to = dst; bytes > 0 && !pg_stopping();) {
    int64_t got, most = PG_MIN(bytes, (int64_t)PIECE);
    if (s->packed) {
      int code = inflate_some(s, to, most, &got);
      if (code != Z_OK && !(code == Z_STREAM_END && got == bytes)) return cut(s);
    } else {
      got = (int64_t)fread(to, 1, (size_t)most, s->f), s->left -= got;
      if (got < most) return cut(s);
    }
    to += got, bytes -= got;
  }
  return pg_unless_stopped(PG_OK);
}

/* Inflates what is left: zlib compares its checksum at the end. */
static int finish(source *s) {
  uint8_t waste[512];
  int64_t got;
  int code = s->packed ? Z_OK : Z_STREAM_END;
  while (code == Z_OK && !pg_stopping()) code = inflate_some(s, waste, sizeof waste, &got);
  PG_TRY(pg_unless_stopped(PG_OK));
  return code == Z_STREAM_END ? PG_OK : cut(s);
}

static int skip(source *s, int64_t bytes) {
  uint8_t waste[512];
  while (bytes > 0) {
    int64_t n = PG_MIN(bytes, (int64_t)sizeof waste);
    PG_TRY(take(s, waste, n));
    bytes -= n;
  }
  return PG_OK;
}

static int take_tag(source *s, tag *t) {
  uint8_t b[8];
  PG_TRY(take(s, b, 8));
  t->type = little(b), t->bytes = little(b + 4), t->small = t->type >> 16;
  if (!t->small) return PG_OK;
  t->bytes = t->type >> 16, t->type &= 0xffff;
  memcpy(t->data, b + 4, 4);
  return t->bytes > 4 ? cut(s) : PG_OK;
}

/* The data of an element of at most `most` bytes, and what it is padded with. */
static int take_data(source *s, const tag *t, void *dst, int64_t most) {
  if (t->bytes > most) return cut(s);
  if (t->small) return memcpy(dst, t->data, PG_MIN(t->bytes, sizeof t->data)), PG_OK;
  PG_TRY(take(s, dst, t->bytes));
  return skip(s, -(int64_t)t->bytes & 7);
}

/* ---- an array ---------------------------------------------------------------------------------------------------- */

/* Values of any number type as doubles; what is none stays out by VALUE_BYTES. */
static double value_of(const uint8_t *p, uint32_t type) {
  union {
    uint8_t b[8];
    int8_t i8;
    int16_t i16;
    uint16_t u16;
    int32_t i32;
    uint32_t u32;
    int64_t i64;
    uint64_t u64;
    float f32;
    double f64;
  } v;
  memcpy(v.b, p, VALUE_BYTES[type]);
  switch (type) {
  case 1: return v.i8;
  case 2: return v.b[0];
  case 3: return v.i16;
  case 4: return v.u16;
  case 5: return v.i32;
  case 6: return v.u32;
  case 7: return v.f32;
  case 12: return (double)v.i64;
  case 13: return (double)v.u64;
  default: return v.f64;
  }
}

static int take_values(source *s, const tag *t, pg_tensor *to) {
  int64_t n = pg_numel(to), width = VALUE_BYTES[t->type];
  if (t->small) { /* at most four values, which came with the tag */
    for (int64_t i = 0; i < n; i++) {
      double v = value_of(t->data + i * width, t->type);
      if (to->dtype == PG_UINT8)
        PG_AT(uint8_t, to)[i] = (uint8_t)v;
      else
        PG_AT(double, to)[i] = v;
    }
    return PG_OK;
  }
  if (to->dtype == PG_UINT8) return take(s, PG_AT(uint8_t, to), n);
  uint8_t chunk[4096];
  for (int64_t at = 0; at < n;) {
    int64_t count = PG_MIN(n - at, (int64_t)sizeof chunk / width);
    PG_TRY(take(s, chunk, count * width));
    for (int64_t i = 0; i < count; i++) PG_AT(double, to)[at++] = value_of(chunk + i * width, t->type);
  }
  return PG_OK;
}

/* The inside of a matrix element; *out stays NULL when it has another name. */
static int take_matrix(source *s, const char *name, pg_tensor **out) {
  tag t;
  uint8_t flags[8] = {0}, dims[4 * PG_MAX_DIMS];
  char its_name[MOST_NAME];
  PG_TRY(take_tag(s, &t));
  if (t.type != MI_UINT32 || t.bytes != 8) return cut(s);
  PG_TRY(take_data(s, &t, flags, 8));
  PG_TRY(take_tag(s, &t));
  if (t.type != MI_INT32) return cut(s);
  int64_t dim_bytes = t.bytes;
  if (dim_bytes % 4 || dim_bytes < 8 || dim_bytes > (int64_t)sizeof dims)
    return pg_fail(PG_ERR_FILE, "%s: an array of %lld dimensions; 2 to %d are read", s->path, (long long)dim_bytes / 4,
                   PG_MAX_DIMS);
  PG_TRY(take_data(s, &t, dims, sizeof dims));
  PG_TRY(take_tag(s, &t));
  if (t.type != MI_INT8) return cut(s);
  if (t.bytes > MOST_NAME - 1) return PG_OK; /* MATLAB's own names have up to 63 letters */
  PG_TRY(take_data(s, &t, its_name, sizeof its_name));
  if (t.bytes != strlen(name) || memcmp(its_name, name, t.bytes)) return PG_OK;

  int32_t class = flags[0], ndim = (int32_t)(dim_bytes / 4);
  if ((class != MX_DOUBLE && class != MX_UINT8) || little(flags) & MX_COMPLEX)
    return pg_fail(PG_ERR_FILE, "%s: '%s' is of MATLAB class %d%s; uint8 (9) and real double (6) arrays are read",
                   s->path, name, class, little(flags) & MX_COMPLEX ? ", complex" : "");
  PG_TRY(take_tag(s, &t));
  int64_t width = t.type < 16 ? VALUE_BYTES[t.type] : 0, expected = width, reversed[PG_MAX_DIMS], shape[PG_MAX_DIMS],
          stride[PG_MAX_DIMS];
  if (!width || (class == MX_UINT8 && t.type != 2)) return cut(s);
  bool wrong = false;
  for (int32_t i = 0; i < ndim; i++) {
    shape[i] = reversed[ndim - 1 - i] = (int32_t)little(dims + 4 * i);
    stride[i] = expected / width; /* the first dimension runs fastest */
    wrong |= shape[i] < 1 || __builtin_mul_overflow(expected, shape[i], &expected);
    if (wrong || expected > UINT32_MAX) break;
  }
  if (wrong || expected != t.bytes || (!t.small && expected > s->promise))
    return pg_fail(PG_ERR_FILE, "%s: truncated or damaged: the dimensions of '%s' do not make its %u bytes of values",
                   s->path, name, t.bytes);
  pg_tensor *all, *view;
  PG_TRY(pg_new(class == MX_UINT8 ? PG_UINT8 : PG_FLOAT64, PG_CPU, ndim, reversed, &all));
  int status = take_values(s, &t, all);
  if (!status) status = pg_view(all, ndim, shape, stride, 0, &view);
  pg_release(all);
  return status ? status : (*out = view, PG_OK);
}

/* ---- the file ---------------------------------------------------------------------------------------------------- */

/* One top-level element, whose tag was read: its matrix, when it is one of that name. */
static int read_element(source *s, uint32_t type, const char *name, pg_tensor **out) {
  tag t = {.type = type};
  s->promise = s->left;
  s->packed = type == MI_COMPRESSED;
  if (s->packed) {
    s->promise = s->left * MOST_EXPANSION;
    s->z = (z_stream){0};
    if (inflateInit(&s->z) != Z_OK) return pg_fail(PG_ERR_MEMORY, "%s: out of memory", s->path);
    s->open = true;
    PG_TRY(take_tag(s, &t));
    if (t.small) return cut(s);
    s->promise = PG_MIN(s->promise, (int64_t)t.bytes);
  }
  return t.type == MI_MATRIX ? take_matrix(s, name, out) : PG_OK;
}

static int mat_read(source *s, int64_t bytes, const char *name, pg_tensor **out) {
  uint8_t head[HEADER], word[8];
  if (fread(head, 1, HEADER, s->f) < HEADER) return pg_fail(PG_ERR_FILE, "%s: not a MATLAB 5 file", s->path);
  if (head[126] != 'I' || head[127] != 'M' || head[125] != 1)
    return pg_fail(PG_ERR_FILE, "%s: not a little-endian MATLAB 5 file%s", s->path,
                   !memcmp(head, "MATLAB 7.3", 10) ? " but version 7.3 (HDF5); save it with -v7" : "");
  for (int64_t at = HEADER; at < bytes && !*out;) {
    if (fseek(s->f, at, SEEK_SET) || fread(word, 1, 8, s->f) < 8) return cut(s);
    uint32_t type = little(word);
    s->left = little(word + 4);
    if (type >> 16 || s->left > bytes - at - 8) return cut(s);
    at += 8 + s->left + (type == MI_COMPRESSED ? 0 : -s->left & 7);
    int status = read_element(s, type, name, out);
    if (!status && *out) status = finish(s);
    if (s->open) inflateEnd(&s->z), s->open = false;
    if (status) return status;
  }
  return *out ? PG_OK : pg_fail(PG_ERR_FILE, "%s: it has no array '%s'", s->path, name);
}

int pg_mat_load(const char *path, const char *name, pg_tensor **out) {
  int64_t bytes;
  source s = {.path = path};
  pg_tensor *t = NULL;
  s.f = pg_file_open(path, &bytes);
  if (!s.f) return PG_ERR_FILE;
  int status = mat_read(&s, bytes, name, &t);
  fclose(s.f);
  if (status && t) pg_release(t);
  return status ? status : (*out = t, PG_OK);
}
