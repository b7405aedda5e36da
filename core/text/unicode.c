/* unicode.c - what a tokenizer asks of Unicode: normal forms, lower and upper case, and the class of every character.
 * The tables are libutf8proc's. Text is UTF-8; a byte that is none becomes U+FFFD as the Unicode Standard recommends
 * (chapter 3.9, "maximal subpart"), and as Python's errors="replace" does. */
#include "../core.h"
#include <utf8proc.h>

enum {
  REPLACEMENT = 0xFFFD,
  CAPITAL_SIGMA = 0x3A3,
  FINAL_SIGMA = 0x3C2,
  CAPITAL_I_WITH_DOT = 0x130,
  DOT_ABOVE = 0x307
};

/* ---- UTF-8 ----------------------------------------------------------------------------------------------------- */

/* The first character of n > 0 bytes, and how many bytes it takes; -1 where they are none, and *used is then the
 * longest piece that begins a character, at least one byte (RFC 3629: no overlong forms, no surrogates, nothing past
 * 10FFFF). */
static int32_t first_of(const uint8_t *s, int64_t n, int64_t *used) {
  *used = 1;
  if (s[0] < 0x80) return s[0];
  if (s[0] < 0xC2 || s[0] > 0xF4) return -1;
  int more = s[0] < 0xE0 ? 1 : s[0] < 0xF0 ? 2 : 3;
  uint8_t low = s[0] == 0xE0   ? 0xA0
                : s[0] == 0xF0 ? 0x90
                               : 0x80,
          high = s[0] == 0xED   ? 0x9F
                 : s[0] == 0xF4 ? 0x8F
                                : 0xBF;
  int32_t point = s[0] & (0x3F >> more);
  for (int i = 1; i <= more; i++, low = 0x80, high = 0xBF) {
    if (i >= n || s[i] < low || s[i] > high) return -1;
    point = point << 6 | (s[i] & 0x3F);
    *used = i + 1;
  }
  return point;
}

int64_t pg_text_fault(const char *text, int64_t bytes) {
  for (int64_t at = 0, used; at < bytes; at += used)
    if (first_of((const uint8_t *)text + at, bytes - at, &used) < 0) return at;
  return -1;
}

/* points has room for `bytes` of them; returns how many there are. */
static int64_t decode(const char *text, int64_t bytes, int32_t *points) {
  int64_t n = 0;
  for (int64_t at = 0, used; at < bytes; at += used) {
    int32_t point = first_of((const uint8_t *)text + at, bytes - at, &used);
    points[n++] = point < 0 ? REPLACEMENT : point;
  }
  return n;
}

static int encode(const int32_t *points, int64_t n, char *out, int64_t room, int64_t *length) {
  uint8_t one[4];
  int64_t at = 0;
  for (int64_t i = 0; i < n; i++) {
    int64_t bytes = utf8proc_encode_char(points[i], one);
    if (bytes > room - at)
      return pg_fail(PG_ERR_ARGUMENT, "the text does not fit the %lld bytes that are there for it", (long long)room);
    memcpy(out + at, one, (size_t)bytes);
    at += bytes;
  }
  return *length = at, PG_OK;
}

/* ---- case ------------------------------------------------------------------------------------------------------ */

static bool within(int32_t c, int32_t low, int32_t high) { return c >= low && c <= high; }

/* Case_Ignorable (Unicode, chapter 3.13): marks, format characters, modifiers, and the punctuation of words. */
static bool case_ignorable(int32_t c) {
  static const int32_t WITHIN_WORDS[] = {0x27,   0x2E,   0x3A,   0xB7,   0x387,  0x55F,  0x5F4,  0x2018, 0x2019,
                                         0x2024, 0x2027, 0xFE13, 0xFE52, 0xFE55, 0xFF07, 0xFF0E, 0xFF1A};
  switch (utf8proc_category(c)) {
  case UTF8PROC_CATEGORY_MN:
  case UTF8PROC_CATEGORY_ME:
  case UTF8PROC_CATEGORY_CF:
  case UTF8PROC_CATEGORY_LM:
  case UTF8PROC_CATEGORY_SK: return true;
  default: break;
  }
  for (size_t i = 0; i < sizeof WITHIN_WORDS / sizeof *WITHIN_WORDS; i++)
    if (c == WITHIN_WORDS[i]) return true;
  return false;
}

/* Cased, of a character that is not ignorable: letters with case; ordinals, Roman numerals and letters in circles and
 * squares, which have case without being such letters. */
static bool cased(int32_t c) {
  switch (utf8proc_category(c)) {
  case UTF8PROC_CATEGORY_LU:
  case UTF8PROC_CATEGORY_LL:
  case UTF8PROC_CATEGORY_LT: return true;
  default: break;
  }
  return c == 0xAA || c == 0xBA || within(c, 0x2160, 0x217F) || within(c, 0x24B6, 0x24E9) ||
         within(c, 0x1F130, 0x1F149) || within(c, 0x1F150, 0x1F169) || within(c, 0x1F170, 0x1F189);
}

/* A sigma ends a word where the next character to either side that is not ignorable has case before it and none after
 * it. `before` is what the first question has found on the way here. */
static bool ends_word(const int32_t *points, int64_t n, int64_t at, bool before) {
  if (!before) return false;
  for (at++; at < n && case_ignorable(points[at]);) at++;
  return at == n || !cased(points[at]);
}

/* out has room for 2 n points. final: sigma at the end of a word is the final one, as in the full mapping. */
static int64_t lower(const int32_t *points, int64_t n, bool final, int32_t *out) {
  int64_t made = 0;
  bool before = false;
  for (int64_t i = 0; i < n; i++) {
    int32_t c = points[i];
    if (c == CAPITAL_I_WITH_DOT)
      out[made++] = 'i', out[made++] = DOT_ABOVE;
    else if (c == CAPITAL_SIGMA && final && ends_word(points, n, i, before))
      out[made++] = FINAL_SIGMA;
    else
      out[made++] = utf8proc_tolower(c);
    if (final && !case_ignorable(c)) before = cased(c);
  }
  return made;
}

/* ---- what is called ---------------------------------------------------------------------------------------------- */

/* Composed characters; compatible: those that are variants of others first become these. */
static int compose(const char *text, int64_t bytes, bool compatible, char *out, int64_t room, int64_t *length) {
  utf8proc_option_t how = UTF8PROC_STABLE | UTF8PROC_COMPOSE | (compatible ? UTF8PROC_COMPAT : 0);
  int64_t n = utf8proc_decompose((const uint8_t *)text, bytes, NULL, 0, how), most = n;
  if (n < 0) return pg_fail(PG_ERR_ARGUMENT, "the text cannot be normalised: %s", utf8proc_errmsg(n));
  size_t held = (size_t)(most + 1) * sizeof(int32_t);
  int32_t *points = pg_scratch_alloc(held);
  if (!points) return pg_fail(PG_ERR_MEMORY, "no memory to normalise a text of %lld bytes", (long long)bytes);
  n = utf8proc_decompose((const uint8_t *)text, bytes, points, most, how);
  if (n >= 0 && n <= most) n = utf8proc_normalize_utf32(points, n, how);
  int status = n >= 0 ? encode(points, n, out, room, length)
                      : pg_fail(PG_ERR_ARGUMENT, "the text cannot be normalised: %s", utf8proc_errmsg(n));
  pg_scratch_free(points, held);
  return status;
}

int pg_text_map(const char *text, int64_t bytes, int32_t form, char *out, int64_t room, int64_t *length) {
  if (bytes < 0 || room < 0 || form < 0 || form >= PG_TEXT_FORMS)
    return pg_fail(PG_ERR_ARGUMENT, "there is no form %d of a text of %lld bytes", form, (long long)bytes);
  if (bytes > INT32_MAX / 16) return pg_fail(PG_ERR_ARGUMENT, "a text of %lld bytes is too long", (long long)bytes);
  if (form == PG_TEXT_NFC || form == PG_TEXT_NFKC) {
    int64_t at = pg_text_fault(text, bytes);
    if (at < 0) return compose(text, bytes, form == PG_TEXT_NFKC, out, room, length);
    return pg_fail(PG_ERR_ARGUMENT, "the text is not UTF-8 at byte %lld", (long long)pg_shown(at));
  }
  size_t held = (size_t)(bytes + 1) * 3 * sizeof(int32_t);
  int32_t *read = pg_scratch_alloc(held);
  if (!read) return pg_fail(PG_ERR_MEMORY, "no memory for a text of %lld bytes", (long long)bytes);
  int64_t n = decode(text, bytes, read);
  int32_t *points = read, *mapped = read + bytes;
  if (form == PG_TEXT_LOWER || form == PG_TEXT_LOWER_FINAL)
    n = lower(read, n, form == PG_TEXT_LOWER_FINAL, mapped), points = mapped;
  if (form == PG_TEXT_UPPER)
    for (int64_t i = 0; i < n; i++) points[i] = utf8proc_toupper(points[i]);
  int status = encode(points, n, out, room, length);
  pg_scratch_free(read, held);
  return status;
}

static uint8_t class_of(int32_t c) {
  if (within(c, 9, 13) || c == 0x85) return PG_TEXT_SPACE;
  utf8proc_category_t category = utf8proc_category(c);
  if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) return PG_TEXT_LETTER;
  if (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO) return PG_TEXT_NUMBER;
  if (category >= UTF8PROC_CATEGORY_ZS && category <= UTF8PROC_CATEGORY_ZP) return PG_TEXT_SPACE;
  return PG_TEXT_OTHER;
}

void pg_text_classes(const char *text, int64_t bytes, uint8_t *out) {
  for (int64_t at = 0, used; at < bytes; at += used) {
    int32_t c = first_of((const uint8_t *)text + at, bytes - at, &used);
    memset(out + at, PG_TEXT_FOLLOWS, (size_t)used);
    out[at] = c < 0 ? PG_TEXT_OTHER : class_of(c);
  }
}
