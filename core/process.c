/* process.c - other programs, started without a shell; locks on files; the few figures of the system that sweeps need.
 *
 * Between fork and exec the child calls only what is safe there (signal-safety(7)): other threads of the parent may
 * hold any lock. Everything that allocates is done before. */
#include "core.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

/* ---- the child --------------------------------------------------------------------------------------------------- */

/* The environment with the additions in place of what they rename; the strings are not copied. */
static const char **merge_environment(const char *const *additions) {
  size_t old = 0, more = 0, count = 0;
  while (environ && environ[old]) old++;
  while (additions && additions[more]) more++;
  const char **merged = malloc((old + more + 1) * sizeof *merged);
  if (!merged) return NULL;
  for (size_t i = 0; i < old; i++) {
    size_t name = strcspn(environ[i], "=") + 1, j = 0;
    while (j < more && strncmp(environ[i], additions[j], name)) j++;
    if (j == more) merged[count++] = environ[i];
  }
  for (size_t j = 0; j < more; j++) merged[count++] = additions[j];
  merged[count] = NULL;
  return merged;
}

/* The processors from the `first`-th of those that this process may use; all of them where that is not possible. */
static cpu_set_t choose_cpus(int32_t first, int32_t count) {
  cpu_set_t own, chosen;
  CPU_ZERO(&own);
  CPU_ZERO(&chosen);
  sched_getaffinity(0, sizeof own, &own);
  int32_t seen = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &own) && seen++ >= first && seen <= first + count) CPU_SET(cpu, &chosen);
  return CPU_COUNT(&chosen) == count ? chosen : own;
}

/* In the child: becomes the program, or writes errno into the pipe. */
static void become(const pg_spawn_options *o, const char **env, const cpu_set_t *cpus, pid_t parent, int report) {
  setpgid(0, 0); /* the terminal's Ctrl-C reaches the parent alone, which passes it on once */
  if (o->orphan_signal) {
    prctl(PR_SET_PDEATHSIG, o->orphan_signal);
    if (getppid() != parent) _exit(127); /* it died before the line above */
  }
  signal(SIGPIPE, SIG_DFL);
  if (o->cpus) sched_setaffinity(0, sizeof *cpus, cpus);
  int in = open("/dev/null", O_RDONLY);
  int out = open(o->output ? o->output : "/dev/null", O_WRONLY | O_CREAT | O_APPEND, 0666);
  if (in >= 0 && out >= 0 && dup2(in, 0) >= 0 && dup2(out, 1) >= 0 && dup2(out, 2) >= 0) {
    if (in > 2) close(in);
    if (out > 2) close(out);
    execvpe(o->argv[0], (char *const *)o->argv, (char *const *)env);
  }
  int reason = errno;
  if (write(report, &reason, sizeof reason) < 0) _exit(126);
  _exit(127);
}

int pg_process_spawn(const pg_spawn_options *options, int32_t *pid) {
  const char *name = options->argv[0];
  const char **env = merge_environment(options->env);
  if (!env) return pg_fail(PG_ERR_MEMORY, "cannot start %s: out of memory", name);
  cpu_set_t cpus = choose_cpus(options->cpu, options->cpus);
  int report[2];
  if (pipe2(report, O_CLOEXEC)) {
    free(env);
    return pg_fail(PG_ERR_STATE, "cannot start %s: %s", name, strerror(errno));
  }
  pid_t self = getpid(), child = fork();
  int reason = errno;
  if (child == 0) become(options, env, &cpus, self, report[1]);
  close(report[1]);
  free(env);
  ssize_t got = 0;
  if (child > 0) /* the pipe closes when the program has begun */
    do got = read(report[0], &reason, sizeof reason);
    while (got < 0 && errno == EINTR);
  close(report[0]);
  if (child > 0 && got <= 0) return *pid = child, PG_OK;
  if (child > 0) waitpid(child, NULL, 0);
  return pg_fail(PG_ERR_STATE, "cannot start %s: %s", name, strerror(reason));
}

int pg_process_wait(int32_t pid, int32_t *ended, int32_t *status, int32_t *signal_number) {
  int word = 0;
  pid_t got = waitpid(pid, &word, WNOHANG);
  if (got < 0) return pg_fail(PG_ERR_STATE, "cannot wait for process %d: %s", pid, strerror(errno));
  *ended = got == pid;
  *status = WIFEXITED(word) ? WEXITSTATUS(word) : -1;
  *signal_number = WIFSIGNALED(word) ? WTERMSIG(word) : 0;
  return PG_OK;
}

int pg_process_kill(int32_t pid, int32_t signal_number) {
  if (kill(pid, signal_number)) return pg_fail(PG_ERR_STATE, "cannot signal process %d: %s", pid, strerror(errno));
  return PG_OK;
}

/* ---- locks ------------------------------------------------------------------------------------------------------- */

/* flock(2): the kernel lets go of it when the process ends, however it ends. The file says who holds it. */
int pg_lock(const char *path, int32_t *fd) {
  *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (*fd < 0) return pg_fail(PG_ERR_FILE, "cannot open %s: %s", path, strerror(errno));
  if (flock(*fd, LOCK_EX | LOCK_NB)) {
    int reason = errno;
    close(*fd);
    *fd = -1;
    return reason == EWOULDBLOCK ? PG_OK : pg_fail(PG_ERR_FILE, "cannot lock %s: %s", path, strerror(reason));
  }
  char text[HOST_NAME_MAX + 32], host[HOST_NAME_MAX + 1] = "?";
  gethostname(host, sizeof host - 1);
  int length = snprintf(text, sizeof text, "process %d on %s\n", (int)getpid(), host);
  /* only for messages: a full disk may keep it out, and the lock holds all the same */
  if (ftruncate(*fd, 0) == 0 && pwrite(*fd, text, (size_t)length, 0) < 0) (void)ftruncate(*fd, 0);
  return PG_OK;
}

void pg_unlock(int32_t fd) {
  if (fd >= 0) close(fd);
}

/* ---- the system -------------------------------------------------------------------------------------------------- */

int32_t pg_processors(void) {
  cpu_set_t own;
  return sched_getaffinity(0, sizeof own, &own) ? 1 : CPU_COUNT(&own);
}

int64_t pg_disk_free(const char *path) {
  struct statvfs info;
  return statvfs(path, &info) ? -1 : (int64_t)info.f_bavail * (int64_t)info.f_frsize;
}

void pg_sleep(double duration) {
  struct timespec t = {.tv_sec = (time_t)duration, .tv_nsec = (long)((duration - (double)(time_t)duration) * 1e9)};
  nanosleep(&t, NULL);
}
