/* replay.c - feeds the harness every committed input, one reader a process: a sanitizer ends the process that it stops,
 * and the others are still counted. Ends with "N passed, N failed"; an input passes with its whole folder. Runs from
 * the repository's root. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const char *const READERS[] = {"png",    "pixels", "jpeg", "idx", "idxgz", "npy",   "npz",
                                      "values", "mat",    "matz", "ppm",   "bytes", "text"};

/* Feeds one file; the copy is exactly as long as the file, so that one byte too far is found. */
static int feed(const char *path) {
  FILE *f = fopen(path, "rb");
  if (!f || fseek(f, 0, SEEK_END)) return 0;
  size_t bytes = (size_t)ftell(f);
  uint8_t *data = malloc(bytes ? bytes : 1);
  rewind(f);
  int ok = data && fread(data, 1, bytes, f) == bytes;
  fclose(f);
  if (ok) LLVMFuzzerTestOneInput(data, bytes);
  free(data);
  return ok;
}

/* In a child: every regular file of the folder. The status is 0 when all were read. */
static int feed_folder(const char *reader, const char *folder) {
  DIR *d = opendir(folder);
  char path[512];
  if (!d) return 1;
  setenv("FUZZ_READER", reader, 1);
  for (struct dirent *e; (e = readdir(d));) {
    if (e->d_name[0] == '.') continue;
    snprintf(path, sizeof path, "%s/%.200s", folder, e->d_name);
    if (!feed(path)) return fprintf(stderr, "cannot read %s\n", path), 1;
  }
  closedir(d);
  return 0;
}

static int count_files(const char *folder) {
  DIR *d = opendir(folder);
  int n = 0;
  if (!d) return 0;
  for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
  closedir(d);
  return n;
}

int main(void) {
  int passed = 0, failed = 0;
  for (size_t i = 0; i < sizeof READERS / sizeof *READERS; i++) {
    char folder[128];
    snprintf(folder, sizeof folder, "tests/fuzz/corpus/%s", READERS[i]);
    int files = count_files(folder), status = -1;
    fflush(stdout);
    pid_t child = fork();
    if (!child) exit(feed_folder(READERS[i], folder));
    if (child > 0) waitpid(child, &status, 0);
    if (files && status == 0)
      passed += files;
    else
      failed++,
          printf("FAILED: %s: the inputs in %s (%d files, wait status 0x%x)\n", READERS[i], folder, files, status);
  }
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
