/* npz.c - NumPy's .npz: a ZIP archive whose members are .npy files, stored or deflated, with 64-bit sizes where they
 * are needed. https://numpy.org/doc/stable/reference/generated/numpy.savez.html
 * ZIP: https://pkware.cachefly.net/webdocs/casestudy/APPNOTE.TXT, whose sections are named below
 *
 * The directory at the archive's end says what is where. It is believed after its records were found to lie within the
 * file, no two over each other, and each again as the member's own header has it. Values are read in order, so that the
 * checksum of every member is checked. */
#include "io.h"
#include <libdeflate.h>
#include <unistd.h>
#include <utf8proc.h>
#include <zlib.h>

enum { END = 22, LOCATOR = 20, END64 = 56, ENTRY = 46, LOCAL = 30 };   /* bytes of the records */
enum { STORED = 0, DEFLATED = 8, ENCRYPTED = 1, UTF8 = 0x800 };        /* methods and flags */
enum { MOST_COMMENT = 65535, MOST_DIRECTORY = 1 << 28, ROOM = 65536 }; /* bytes */
static const int64_t MOST_EXPANSION = 1032;                            /* deflate cannot expand more */
static const uint32_t SATURATED = 0xffffffff;                          /* the true number is in a 64-bit field */

typedef struct member {
  char *name; /* without .npy */
  int64_t at, packed, bytes;
  int method;
  uint32_t checksum;
} member;

struct pg_npz {
  char *path;
  FILE *file;
  int64_t bytes, directory, count;
  member *members;
};

static uint32_t get16(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
static uint32_t get32(const uint8_t *p) { return get16(p) | get16(p + 2) << 16; }
static uint64_t get64(const uint8_t *p) { return get32(p) | (uint64_t)get32(p + 4) << 32; }

static int damaged(const pg_npz *z, const char *what) {
  return pg_fail(PG_ERR_FILE, "%s: truncated or damaged: %s", z->path, what);
}

static bool read_at(const pg_npz *z, int64_t at, void *dst, int64_t bytes) {
  pg_source file = pg_source_file(fileno(z->file));
  return at >= 0 && bytes >= 0 && at <= z->bytes - bytes && !file.read(&file, at, dst, bytes);
}

/* ---- the directory (4.3.12 to 4.3.16) ---------------------------------------------------------------------------- */

/* Where the directory is, how long, and of how many entries. */
static int find_directory(pg_npz *z, int64_t *size, int64_t *entries) {
  int64_t most = PG_MIN(z->bytes, END + MOST_COMMENT), from = z->bytes - most, end = -1;
  uint8_t *tail = malloc((size_t)most + 1), last[LOCATOR], wide[END64];
  if (!tail) return pg_fail(PG_ERR_MEMORY, "%s: out of memory", z->path);
  bool found = read_at(z, from, tail, most);
  for (int64_t i = most - END; found && i >= 0 && end < 0; i--) /* a comment of any text may follow the record */
    if (get32(tail + i) == 0x06054b50 && get16(tail + i + 20) == most - END - i) end = i;
  if (end < 0) return free(tail), pg_fail(PG_ERR_FILE, "%s: not a .npz file, or truncated", z->path);
  const uint8_t *e = tail + end;
  uint64_t count = get16(e + 10), bytes = get32(e + 12), at = get32(e + 16);
  bool parts = get16(e + 4) || get16(e + 6) || get16(e + 8) != count;
  int64_t stop = from + end; /* where the directory has to end */
  free(tail);
  if (read_at(z, stop - LOCATOR, last, LOCATOR) && get32(last) == 0x07064b50) {
    stop = (int64_t)(get64(last + 8) & INT64_MAX);
    if (!read_at(z, stop, wide, END64) || get32(wide) != 0x06064b50)
      return damaged(z, "its 64-bit end record is not where the locator says");
    count = get64(wide + 32), bytes = get64(wide + 40), at = get64(wide + 48);
    parts = get32(wide + 16) || get32(wide + 20) || get64(wide + 24) != count;
  }
  if (parts) return pg_fail(PG_ERR_FILE, "%s: it is a part of an archive of several files", z->path);
  if (at > (uint64_t)stop || bytes != (uint64_t)stop - at || bytes > MOST_DIRECTORY)
    return damaged(z, "its directory does not end where its end record begins");
  if (count > bytes / ENTRY) return damaged(z, "its directory is too short for its entries");
  z->directory = (int64_t)at, *size = (int64_t)bytes, *entries = (int64_t)count;
  return PG_OK;
}

/* 64-bit sizes and place, for those that are saturated (4.5.3). */
static bool read_wide(const uint8_t *extra, int64_t length, uint64_t *bytes, uint64_t *packed, uint64_t *at) {
  uint64_t *fields[] = {bytes, packed, at};
  while (length >= 4) {
    int64_t own = get16(extra + 2), used = 4;
    if (own > length - 4) return false;
    for (int i = 0; i < 3 && get16(extra) == 1; i++) {
      if (*fields[i] != SATURATED) continue;
      if (used + 8 > own + 4) return false;
      *fields[i] = get64(extra + used), used += 8;
    }
    extra += own + 4, length -= own + 4;
  }
  return true;
}

static bool is_name(const uint8_t *text, int64_t length) {
  for (int64_t i = 0; i < length;) {
    utf8proc_int32_t c;
    utf8proc_ssize_t used = utf8proc_iterate(text + i, length - i, &c);
    if (used < 1 || utf8proc_category(c) == UTF8PROC_CATEGORY_CC) return false;
    i += used;
  }
  return true;
}

/* One entry of the directory; returns what follows it, or NULL and an error. */
static const uint8_t *read_entry(pg_npz *z, const uint8_t *e, const uint8_t *end, member *m) {
  if (end - e < ENTRY || get32(e) != 0x02014b50) return damaged(z, "an entry of its directory is none"), NULL;
  int64_t name = get16(e + 28), extra = get16(e + 30), comment = get16(e + 32);
  uint64_t packed = get32(e + 20), bytes = get32(e + 24), at = get32(e + 42);
  if (end - e < ENTRY + name + extra + comment) return damaged(z, "an entry passes the end of its directory"), NULL;
  const uint8_t *text = e + ENTRY;
  if (!is_name(text, name)) return damaged(z, "a member's name is not plain UTF-8"), NULL;
  if (name < 4 || memcmp(text + name - 4, ".npy", 4))
    return pg_fail(PG_ERR_FILE, "%s: member '%.*s' is no .npy array", z->path, (int)PG_MIN(name, 200), text), NULL;
  if (!(m->name = strndup((const char *)text, (size_t)name - 4)))
    return pg_fail(PG_ERR_MEMORY, "%s: out of memory", z->path), NULL;
  const char *wrong = NULL;
  m->method = (int)get16(e + 10), m->checksum = get32(e + 16);
  if (get16(e + 8) & ENCRYPTED)
    wrong = "is encrypted";
  else if (m->method != STORED && m->method != DEFLATED)
    wrong = "is neither stored nor deflated";
  else if (!read_wide(text + name, extra, &bytes, &packed, &at))
    wrong = "has a damaged 64-bit field";
  else if (at > (uint64_t)z->directory || packed > (uint64_t)z->directory - at)
    wrong = "would lie outside the archive";
  else if (m->method == STORED ? bytes != packed : bytes / MOST_EXPANSION > packed)
    wrong = "claims a size that its stored bytes cannot have";
  if (wrong) return pg_fail(PG_ERR_FILE, "%s: member '%.200s' %s", z->path, m->name, wrong), NULL;
  m->at = (int64_t)at, m->packed = (int64_t)packed, m->bytes = (int64_t)bytes;
  return text + name + extra + comment;
}

static int by_place(const void *a, const void *b) {
  const member *x = a, *y = b;
  return x->at < y->at ? -1 : x->at > y->at;
}

static int read_directory(pg_npz *z) {
  int64_t size = 0, entries = 0;
  PG_TRY(find_directory(z, &size, &entries));
  uint8_t *all = malloc((size_t)size + 1);
  z->members = calloc((size_t)entries + 1, sizeof *z->members);
  int status = all && z->members ? PG_OK : pg_fail(PG_ERR_MEMORY, "%s: out of memory", z->path);
  if (!status && !read_at(z, z->directory, all, size)) status = damaged(z, "its directory cannot be read");
  const uint8_t *at = all, *end = all + size;
  while (!status && at && z->count < entries) at = read_entry(z, at, end, &z->members[z->count++]);
  if (!status && !at) status = PG_ERR_FILE; /* with its text */
  if (!status && at != end) status = damaged(z, "its directory has more than its entries");
  free(all);
  PG_TRY(status);
  qsort(z->members, (size_t)z->count, sizeof *z->members, by_place);
  for (int64_t i = 1; i < z->count; i++)
    if (z->members[i].at - z->members[i - 1].at < LOCAL + z->members[i - 1].packed)
      return pg_fail(PG_ERR_FILE, "%s: members '%.200s' and '%.200s' overlap", z->path, z->members[i - 1].name,
                     z->members[i].name);
  return PG_OK;
}

/* ---- a member ---------------------------------------------------------------------------------------------------- */

typedef struct unpacking {
  pg_source source; /* first: it is handed on, and comes back */
  int64_t at, left; /* of the packed bytes */
  bool deflated;
  z_stream stream;
  uint32_t checksum; /* of what came out */
  uint8_t room[ROOM];
} unpacking;

static int read_packed(unpacking *u, void *dst, int64_t bytes) {
  pg_source file = pg_source_file(u->source.fd);
  if (bytes > u->left) return PG_SOURCE_ENDS;
  int reason = file.read(&file, u->at, dst, bytes);
  u->at += bytes, u->left -= bytes;
  return reason;
}

/* Fills dst; *got tells how much there was, which may be less where the stream ends. */
static int inflate_some(unpacking *u, uint8_t *dst, int64_t bytes, int64_t *got) {
  for (*got = 0; *got < bytes;) {
    z_stream *z = &u->stream;
    if (!z->avail_in && u->left) {
      int64_t more = PG_MIN(u->left, ROOM);
      int reason = read_packed(u, u->room, more);
      if (reason) return reason;
      z->next_in = u->room, z->avail_in = (unsigned)more;
    }
    unsigned room = (unsigned)PG_MIN(bytes - *got, 1 << 30);
    z->next_out = dst + *got, z->avail_out = room;
    int said = inflate(z, Z_NO_FLUSH);
    *got += room - z->avail_out;
    if (said == Z_STREAM_END || (said == Z_BUF_ERROR && !u->left)) return 0;
    if (said != Z_OK) return PG_SOURCE_DAMAGED;
  }
  return 0;
}

static int read_member(pg_source *s, int64_t at, void *dst, int64_t bytes) {
  (void)at; /* in order */
  unpacking *u = (unpacking *)s;
  int64_t got = bytes;
  int reason = u->deflated ? inflate_some(u, dst, bytes, &got) : read_packed(u, dst, bytes);
  if (reason) return reason;
  u->checksum = libdeflate_crc32(u->checksum, dst, (size_t)got);
  return got < bytes ? PG_SOURCE_ENDS : 0;
}

/* After the values: nothing more comes, and the checksum is the directory's. */
static int check_end(const pg_npz *z, const member *m, unpacking *u) {
  uint8_t extra;
  int64_t got = 0;
  bool ends = !u->left;
  if (u->deflated) ends = !inflate_some(u, &extra, 1, &got) && !got && !u->left && !u->stream.avail_in;
  if (!ends) return pg_fail(PG_ERR_FILE, "%s: member '%.200s' does not end where it should", z->path, m->name);
#ifndef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
  if (u->checksum != m->checksum)
    return pg_fail(PG_ERR_FILE, "%s: member '%.200s' is damaged: its checksum differs", z->path, m->name);
#endif
  return PG_OK;
}

int pg_npz_read(pg_npz *z, int64_t i, pg_tensor **out) {
  if (i < 0 || i >= z->count) return pg_fail(PG_ERR_ARGUMENT, "%s: there is no member %lld", z->path, (long long)i);
  const member *m = &z->members[i];
  uint8_t head[LOCAL];
  char label[512];
  snprintf(label, sizeof label, "%.250s: member '%.200s'", z->path, m->name);
  if (!read_at(z, m->at, head, LOCAL) || get32(head) != 0x04034b50)
    return pg_fail(PG_ERR_FILE, "%s is not where the directory says", label);
  size_t length = get16(head + 26), expected = strlen(m->name) + 4;
  int64_t start = m->at + LOCAL + (int64_t)length + get16(head + 28);
  unpacking *u = calloc(1, sizeof *u);
  if (!u) return pg_fail(PG_ERR_MEMORY, "%s: out of memory", label);
  u->source = (pg_source){.read = read_member, .fd = fileno(z->file), .in_order = true};
  u->at = start, u->left = m->packed, u->deflated = m->method == DEFLATED;
  int status = PG_OK;
  if (length != expected || !read_at(z, m->at + LOCAL, u->room, (int64_t)length) ||
      memcmp(u->room, m->name, length - 4) || memcmp(u->room + length - 4, ".npy", 4))
    status = pg_fail(PG_ERR_FILE, "%s has another name in its own header", label);
  else if (start > z->directory - m->packed || (i + 1 < z->count && start > z->members[i + 1].at - m->packed))
    status = pg_fail(PG_ERR_FILE, "%s runs into what follows it", label);
  else if (u->deflated && inflateInit2(&u->stream, -15) != Z_OK)
    status = pg_fail(PG_ERR_MEMORY, "%s: out of memory", label);
  if (!status) {
    status = pg_npy_from(&u->source, label, m->bytes, out);
    if (!status && (status = check_end(z, m, u))) pg_release(*out), *out = NULL;
    if (u->deflated) inflateEnd(&u->stream);
  }
  free(u);
  return status;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

int pg_npz_open(const char *path, pg_npz **out) {
  pg_npz *z = calloc(1, sizeof *z);
  if (!z || !(z->path = strdup(path))) return free(z), pg_fail(PG_ERR_MEMORY, "%s: out of memory", path);
  z->file = pg_file_open(path, &z->bytes);
  int status = z->file ? read_directory(z) : PG_ERR_FILE;
  if (status) return pg_npz_close(z), status;
  return *out = z, PG_OK;
}

int64_t pg_npz_count(const pg_npz *z) { return z->count; }

const char *pg_npz_name(const pg_npz *z, int64_t i) { return i >= 0 && i < z->count ? z->members[i].name : NULL; }

void pg_npz_close(pg_npz *z) {
  if (!z) return;
  for (int64_t i = 0; i < z->count; i++) free(z->members[i].name);
  if (z->file) fclose(z->file);
  free(z->members), free(z->path), free(z);
}

/* ---- saving: stored members, as numpy.savez writes them ---------------------------------------------------------- */

typedef struct writer {
  uint8_t *at;
} writer;

static void put(writer *w, int bytes, uint64_t v) {
  for (int i = 0; i < bytes; i++) *w->at++ = (uint8_t)(v >> 8 * i);
}

typedef struct piece { /* one member on its way */
  char head[PG_NPY_HEAD];
  int64_t head_bytes, value_bytes, at;
  uint32_t checksum;
  uint64_t name_bytes;
  bool ascii;
} piece;

static uint64_t capped(uint64_t v) { return PG_MIN(v, SATURATED); }

/* What a member's own header and its entry have in common (4.3.7): from the version to the length of what is extra. */
static void put_common(writer *w, const piece *p, bool wide, uint64_t extra) {
  uint64_t bytes = (uint64_t)(p->head_bytes + p->value_bytes);
  put(w, 2, wide ? 45 : 20), put(w, 2, p->ascii ? 0 : UTF8), put(w, 2, STORED);
  put(w, 2, 0), put(w, 2, 33); /* 1 January 1980: the same arrays give the same bytes */
  put(w, 4, p->checksum), put(w, 4, capped(bytes)), put(w, 4, capped(bytes));
  put(w, 2, p->name_bytes), put(w, 2, extra);
}

static void put_name(writer *w, const char *name, const piece *p) {
  memcpy(w->at, name, p->name_bytes - 4), memcpy(w->at + p->name_bytes - 4, ".npy", 4);
  w->at += p->name_bytes;
}

static void put_local(writer *w, const char *name, const piece *p) {
  uint64_t bytes = (uint64_t)(p->head_bytes + p->value_bytes);
  bool wide = bytes >= SATURATED;
  put(w, 4, 0x04034b50), put_common(w, p, wide, wide ? 20 : 0), put_name(w, name, p);
  if (wide) put(w, 2, 1), put(w, 2, 16), put(w, 8, bytes), put(w, 8, bytes);
}

static void put_entry(writer *w, const char *name, const piece *p) {
  uint64_t bytes = (uint64_t)(p->head_bytes + p->value_bytes), at = (uint64_t)p->at;
  uint64_t extra = (bytes >= SATURATED ? 16 : 0) + (at >= SATURATED ? 8 : 0);
  put(w, 4, 0x02014b50), put(w, 2, 3 << 8 | (extra ? 45 : 20)); /* made on Unix, whose rights follow: rw------- */
  put_common(w, p, extra, extra ? extra + 4 : 0);
  put(w, 2, 0), put(w, 2, 0), put(w, 2, 0), put(w, 4, 0600u << 16), put(w, 4, capped(at));
  put_name(w, name, p);
  if (extra) put(w, 2, 1), put(w, 2, extra);
  if (bytes >= SATURATED) put(w, 8, bytes), put(w, 8, bytes);
  if (at >= SATURATED) put(w, 8, at);
}

static void put_end(writer *w, uint64_t count, uint64_t at, uint64_t bytes) {
  if (count >= 0xffff || at >= SATURATED || bytes >= SATURATED) {
    put(w, 4, 0x06064b50), put(w, 8, END64 - 12), put(w, 2, 45), put(w, 2, 45), put(w, 8, 0);
    put(w, 8, count), put(w, 8, count), put(w, 8, bytes), put(w, 8, at);
    put(w, 4, 0x07064b50), put(w, 4, 0), put(w, 8, at + bytes), put(w, 4, 1);
  }
  put(w, 4, 0x06054b50), put(w, 4, 0), put(w, 2, PG_MIN(count, 0xffff)), put(w, 2, PG_MIN(count, 0xffff));
  put(w, 4, capped(bytes)), put(w, 4, capped(at)), put(w, 2, 0);
}

static int describe(const char *path, const char *name, pg_tensor *t, piece *p) {
  size_t length = strlen(name);
  if (length > 60000 || !is_name((const uint8_t *)name, (int64_t)length))
    return pg_fail(PG_ERR_ARGUMENT, "%s: an array's name must be plain UTF-8 of at most 60000 bytes", path);
  PG_TRY(pg_check_live(t, name));
  if (t->device != PG_CPU || !pg_is_contiguous(t))
    return pg_fail(PG_ERR_DEVICE, "%s: '%.200s' must be contiguous and on the cpu", path, name);
  p->name_bytes = length + 4, p->ascii = true;
  for (size_t i = 0; i < length; i++) p->ascii &= (unsigned char)name[i] < 128;
  p->head_bytes = pg_npy_head(t, p->head);
  p->value_bytes = pg_numel(t) * (int64_t)pg_dtype_bytes[t->dtype];
  p->checksum = libdeflate_crc32(0, p->head, (size_t)p->head_bytes);
  p->checksum = libdeflate_crc32(p->checksum, pg_data(t), (size_t)p->value_bytes);
  return PG_OK;
}

int pg_npz_save(const char *path, int32_t n, const char *const *names, pg_tensor *const *tensors) {
  enum { MOST_EXTRA = 32, PARTS = 3 };
  int64_t room = END64 + LOCATOR + END, offset = 0;
  for (int32_t i = 0; i < n; i++) room += LOCAL + ENTRY + 2 * ((int64_t)strlen(names[i]) + 4 + MOST_EXTRA);
  piece *pieces = calloc((size_t)n + 1, sizeof *pieces);
  const void **parts = calloc(PARTS * (size_t)n + 1, sizeof *parts);
  int64_t *bytes = calloc(PARTS * (size_t)n + 1, sizeof *bytes);
  writer w = {malloc((size_t)room)};
  uint8_t *records = w.at;
  int status = pieces && parts && bytes && records ? PG_OK : pg_fail(PG_ERR_MEMORY, "%s: out of memory", path);
  for (int32_t i = 0; !status && i < n; i++) {
    piece *p = &pieces[i];
    if ((status = describe(path, names[i], tensors[i], p))) break;
    const uint8_t *first = w.at;
    p->at = offset;
    put_local(&w, names[i], p);
    parts[PARTS * i] = first, bytes[PARTS * i] = w.at - first;
    parts[PARTS * i + 1] = p->head, bytes[PARTS * i + 1] = p->head_bytes;
    parts[PARTS * i + 2] = pg_data(tensors[i]), bytes[PARTS * i + 2] = p->value_bytes;
    offset += bytes[PARTS * i] + p->head_bytes + p->value_bytes;
  }
  if (!status) {
    const uint8_t *first = w.at;
    for (int32_t i = 0; i < n; i++) put_entry(&w, names[i], &pieces[i]);
    put_end(&w, (uint64_t)n, (uint64_t)offset, (uint64_t)(w.at - first));
    parts[PARTS * n] = first, bytes[PARTS * n] = w.at - first;
    status = pg_file_write(path, PARTS * n + 1, parts, bytes);
  }
  free(pieces), free(parts), free(bytes), free(records);
  return status;
}
