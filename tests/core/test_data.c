/* test_data.c - scenes, the loader and reduced pictures at odd sizes, built with AddressSanitizer and
 * UndefinedBehaviorSanitizer. A picture of one colour must stay that colour whatever its shape: everything that crops,
 * resizes, shifts and flips only mixes its pixels. Prints each failure and ends with "N passed, N failed". */
#include "core.h"

static int passed, failed;

static void check(bool ok, const char *what) {
  if (ok)
    passed++;
  else
    failed++, printf("FAILED: %s\n", what);
}

static const uint8_t tone[3] = {10, 130, 250};

static pg_tensor *plain(int64_t n, int64_t h, int64_t w) { /* uint8 (n, h, w, 3), or (h, w, 3) for n = 0 */
  int64_t shape[4] = {n, h, w, 3};
  pg_tensor *t = NULL;
  check(pg_new(PG_UINT8, PG_CPU, n ? 4 : 3, n ? shape : shape + 1, &t) == PG_OK, "a picture of one colour");
  for (int64_t i = 0; i < pg_numel(t); i++) PG_AT(uint8_t, t)[i] = tone[i % 3];
  return t;
}

static pg_tensor *positions_of(int64_t n) { /* int32 (n): 0 .. n - 1 */
  pg_tensor *t = NULL;
  check(pg_new(PG_INT32, PG_CPU, 1, &n, &t) == PG_OK, "positions");
  for (int64_t i = 0; i < n; i++) PG_AT(int32_t, t)[i] = (int32_t)i;
  return t;
}

/* ---- scenes ----------------------------------------------------------------------------------------------------- */

static pg_tensor *specs_of(int64_t n, const int32_t *most) { /* every field at 0, at its most, and in between */
  pg_tensor *t = NULL;
  check(pg_new(PG_INT32, PG_CPU, 2, (int64_t[]){n, PG_CONCEPT_FIELDS}, &t) == PG_OK, "specs");
  for (int64_t i = 0; i < n; i++)
    for (int f = 0; f < PG_CONCEPT_FIELDS; f++)
      PG_AT(int32_t, t)
      [i * PG_CONCEPT_FIELDS + f] =
          i == 0   ? 0
          : i == 1 ? most[f]
                   : (int32_t)(pg_rng_bits(1, (uint64_t)(i * 8 + f)) % (uint32_t)(most[f] + 1));
  return t;
}

static void test_concepts(void) {
  enum { SCENES = 40 };
  static const int32_t most[PG_CONCEPT_FIELDS] = {7, 7, 3, 8, 3, 2, 7};
  static const int32_t sizes[] = {8, 9, 15, 31, 33, 64, 97};
  pg_tensor *specs = specs_of(SCENES, most), *one = specs_of(1, most), *none = specs_of(0, most), *images = NULL;
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
    pg_tensor *first = NULL;
    int64_t pixels = 3 * (int64_t)sizes[s] * sizes[s];
    check(pg_concepts_render(specs, sizes[s], 5, &images) == PG_OK && pg_size(images, 2) == sizes[s], "scenes");
    check(pg_concepts_render(one, sizes[s], 5, &first) == PG_OK, "one scene");
    check(!memcmp(pg_data(images), pg_data(first), (size_t)pixels), "a scene does not depend on those after it");
    for (int64_t i = 1; i < SCENES; i++)
      check(memcmp(PG_AT(uint8_t, images) + i * pixels, pg_data(first), (size_t)pixels) != 0, "scenes differ");
    pg_release(images), pg_release(first);
  }
  check(pg_concepts_render(one, 511, 5, &images) == PG_OK && pg_size(images, 1) == 511, "a scene of 511 pixels a side");
  pg_release(images);
  check(pg_concepts_render(none, 16, 5, &images) == PG_OK && pg_numel(images) == 0, "no scenes");
  pg_release(images);
  check(pg_concepts_render(one, 7, 5, &images) == PG_ERR_ARGUMENT, "too small");
  check(pg_concepts_render(one, 513, 5, &images) == PG_ERR_ARGUMENT, "too large");
  for (int f = 0; f < PG_CONCEPT_FIELDS; f++)
    for (int wrong = 0; wrong < 2; wrong++) {
      PG_AT(int32_t, specs)[3 * PG_CONCEPT_FIELDS + f] = wrong ? -1 : most[f] + 1;
      check(pg_concepts_render(specs, 16, 5, &images) == PG_ERR_ARGUMENT, "a field out of range");
      check(strstr(pg_last_error(), "scene 3") != NULL, "which is named");
      PG_AT(int32_t, specs)[3 * PG_CONCEPT_FIELDS + f] = 0;
    }
  pg_release(specs), pg_release(one), pg_release(none);
}

/* ---- the loader ------------------------------------------------------------------------------------------------- */

static const pg_loader_options whole = {.size = 1, .workers = 2, .capacity = 2, .std = {1, 1, 1}};

/* Every value of the batch (B, 3, S, S) is its channel's tone / 255. */
static bool is_plain(pg_tensor *batch) {
  int64_t plane = pg_size(batch, 2) * pg_size(batch, 3);
  for (int64_t i = 0; i < pg_numel(batch); i++)
    if (!(fabsf(PG_AT(float, batch)[i] - (float)tone[i / plane % 3] / 255) < 1e-6f)) return false;
  return true;
}

static void take(const pg_loader_options *o, pg_tensor *images, const char *const *files, int64_t n) {
  pg_loader *l = NULL;
  pg_tensor *batch = NULL, *positions = positions_of(n);
  check(pg_loader_new(o, images, files, n, &l) == PG_OK, "loader starts");
  check(pg_loader_push(l, positions, 3, 1) == PG_OK, "push");
  check(pg_loader_next(l, 60, &batch) == PG_OK && batch && pg_size(batch, 3) == o->size, "next");
  check(batch && is_plain(batch), "one colour stays one colour");
  pg_release(batch), pg_release(positions);
  pg_loader_free(l);
}

static void test_loader_sizes(void) {
  static const int64_t sides[][2] = {{1, 1}, {1, 40}, {40, 1}, {2, 3}, {17, 5}, {31, 33}, {1, 5000}, {3000, 2}};
  static const int32_t sizes[] = {1, 2, 7, 32, 33};
  for (size_t i = 0; i < sizeof sides / sizeof *sides; i++) {
    pg_tensor *images = plain(5, sides[i][0], sides[i][1]);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
      for (int way = 0; way < 4; way++) {
        pg_loader_options o = whole;
        o.size = sizes[s], o.flip = 0.5f, o.bilinear = way & 1, o.pad = o.size - 1, o.pad_edge = 1;
        o.crop_min = way & 2 ? 0.01f : 0, o.crop_max = way & 2 ? 1 : 0;
        take(&o, images, NULL, 5);
      }
    pg_release(images);
  }
  pg_loader_options o = whole;
  pg_tensor *images = plain(1, 3, 5);
  o.size = 1024, o.workers = 256, o.capacity = 1024;
  take(&o, images, NULL, 1);
  pg_loader *l = NULL;
  for (int wrong = 0; wrong < 6; wrong++) {
    o = whole;
    if (wrong == 0) o.size = 0;
    if (wrong == 1) o.size = 1025;
    if (wrong == 2) o.workers = 257;
    if (wrong == 3) o.capacity = 0;
    if (wrong == 4) o.pad = o.size;
    if (wrong == 5) o.flip = NAN;
    check(pg_loader_new(&o, images, NULL, 1, &l) == PG_ERR_ARGUMENT, "an option out of range");
  }
  pg_release(images);
}

/* ---- picture files ---------------------------------------------------------------------------------------------- */

static void test_files(void) {
  enum { FILES = 8 };
  static const int64_t sides[FILES][2] = {{1, 1}, {1, 301}, {301, 1}, {2, 3}, {63, 65}, {200, 199}, {7, 2000}, {5, 4}};
  static const int64_t sizes[] = {1, 2, 31, 32, 33};
  char names[FILES][40];
  const char *files[FILES + 1];
  for (int i = 0; i < FILES; i++) {
    pg_tensor *t = plain(0, sides[i][0], sides[i][1]);
    snprintf(names[i], sizeof names[i], "build/test-data-%d.png", i);
    files[i] = names[i];
    check(pg_image_save(files[i], t) == PG_OK, "save");
    pg_release(t);
  }
  pg_loader_options o = whole;
  o.size = 33, o.workers = 3;
  take(&o, NULL, files, FILES);
  files[FILES] = "build/no-such.png";
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
    int64_t size = sizes[s];
    pg_tensor *images = NULL, *read = NULL;
    check(pg_images_load_reduced(files, FILES + 1, size, &images, &read) == PG_OK, "pictures");
    for (int i = 0; i < FILES; i++) {
      const uint8_t *square = PG_AT(uint8_t, images) + i * size * size * 3;
      int64_t colored = 0, white = 0;
      for (int64_t p = 0; p < size * size; p++) {
        colored += !memcmp(square + 3 * p, tone, 3);
        white += square[3 * p] == 255 && square[3 * p + 1] == 255 && square[3 * p + 2] == 255;
      }
      double longer = (double)PG_MAX(sides[i][0], sides[i][1]);
      int64_t h = PG_MAX(llround(size * (sides[i][0] / longer)), 1),
              w = PG_MAX(llround(size * (sides[i][1] / longer)), 1);
      check(PG_AT(uint8_t, read)[i] == 1, "read");
      check(colored == h * w && white == size * size - h * w, "the picture's colour where it lies, white around it");
    }
    check(PG_AT(uint8_t, read)[FILES] == 0, "a file that is not there is marked");
    pg_release(images), pg_release(read);
  }
  pg_tensor *images = NULL, *read = NULL;
  check(pg_images_load_reduced(files, 1, 0, &images, &read) == PG_ERR_ARGUMENT, "size 0");
  check(pg_images_load_reduced(files, 1, 1025, &images, &read) == PG_ERR_ARGUMENT, "size 1025");
  for (int i = 0; i < FILES; i++) remove(files[i]);
}

int main(void) {
  test_concepts();
  test_loader_sizes();
  test_files();
  pg_memory_trim(PG_CPU);
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
