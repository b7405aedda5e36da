/* fuzz_io.c - one libFuzzer harness for every reader of untrusted bytes: the input becomes a file in memory, and
 * whatever a reader does with it under the sanitizers must be a tensor or one line of error. TARGET chooses the reader.
 */
#include "core.h"
#include "io/io.h"
#include <sys/mman.h>
#include <unistd.h>

static int load(const char *path, pg_tensor **out) {
  if (!strcmp(TARGET, "idx")) return pg_idx_load(path, out);
  if (!strcmp(TARGET, "npy")) return pg_npy_load(path, out);
  return pg_image_load(path, out);
}

/* What the quick reader takes, libpng takes too, and gives the same bytes. */
static void compare_readers(const char *path) {
  pg_tensor *quick = NULL, *slow = NULL;
  if (pg_png_load(path, true, &quick)) return;
  if (pg_png_load(path, false, &slow) || !pg_same_shape(quick, slow) ||
      memcmp(pg_data(quick), pg_data(slow), (size_t)pg_numel(slow)))
    abort();
  pg_release(quick), pg_release(slow);
}

static void check(int status, pg_tensor *t) {
  if (status ? strchr(pg_last_error(), '\n') != NULL : t == NULL) abort();
  if (!status) pg_release(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
  static int fd = -1;
  static char path[64];
  if (fd < 0) {
    fd = memfd_create("input", 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  }
  if (fd < 0 || ftruncate(fd, 0) || pwrite(fd, data, bytes, 0) != (ssize_t)bytes) return 0;
  pg_tensor *t = NULL;
  check(load(path, &t), t);
  t = NULL;
  if (!strcmp(TARGET, "png")) compare_readers(path);
  if (!strcmp(TARGET, "png")) check(pg_image_load_reduced(path, 16, &t), t);
  return 0;
}
