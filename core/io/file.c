/* file.c - whole files: opened with their size known, and written so that a failure leaves the old one. */
#include "io.h"
#include <fcntl.h>
#include <unistd.h>

FILE *pg_file_open(const char *path, int64_t *bytes) {
  FILE *f = fopen(path, "rb");
  struct stat info;
  if (!f || fstat(fileno(f), &info)) {
    pg_fail(PG_ERR_FILE, "cannot read %s: %s", path, strerror(errno));
  } else if (!S_ISREG(info.st_mode)) {
    pg_fail(PG_ERR_FILE, "cannot read %s: not a regular file", path);
  } else {
    return *bytes = info.st_size, f;
  }
  if (f) fclose(f);
  return NULL;
}

/* write(2) may take less than it was given, and a signal may interrupt it. */
static bool write_all(int fd, const char *data, int64_t bytes) {
  while (bytes > 0 && !pg_stopping()) {
    ssize_t done = write(fd, data, (size_t)PG_MIN(bytes, (int64_t)1 << 24));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return false;
    data += done;
    bytes -= done;
  }
  return true;
}

int pg_file_write(const char *path, int32_t n, const void *const *parts, const int64_t *bytes) {
  char temporary[4096];
  struct stat info;
  if (!stat(path, &info) && !S_ISREG(info.st_mode)) /* renaming onto a device would replace it */
    return pg_fail(PG_ERR_FILE, "cannot write %s: not a regular file", path);
  if (snprintf(temporary, sizeof temporary, "%s.tmp", path) >= (int)sizeof temporary)
    return pg_fail(PG_ERR_FILE, "cannot write %.60s...: the name is too long", path);
  int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) return pg_fail(PG_ERR_FILE, "cannot write %s: %s", path, strerror(errno));
  bool ok = true;
  for (int32_t i = 0; ok && i < n; i++) ok = write_all(fd, parts[i], bytes[i]);
  int stopped = pg_unless_stopped(PG_OK);
  ok = ok && !stopped && !fsync(fd);
  int reason = errno;
  if (close(fd) && ok) ok = false, reason = errno;
  if (ok && rename(temporary, path)) ok = false, reason = errno;
  if (ok) return PG_OK;
  unlink(temporary);
  if (stopped) return stopped;
  return pg_fail(PG_ERR_FILE, "cannot write %s: %s", path, strerror(reason));
}
