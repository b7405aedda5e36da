/* loader.c - worker threads that fill batches ahead of the caller.
 *
 * Batches stand in a ring of slots in the order of their pushes, and are taken in that order. A thread claims the first
 * items of the oldest slot that has unclaimed ones: one image where files are decoded, a few where bytes only move.
 * What an item becomes is a function of (image, seed, sample), so that the number of threads shows nowhere but in time.
 * The threads block every signal, so that Ctrl-C reaches the caller's, and use no OpenMP: the cores are theirs and the
 * caller's already. */
#include "augment.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>

enum { MOST_WORKERS = 256, MOST_SLOTS = 1024, RUN = 8 };

typedef struct slot {
  pg_tensor *images; /* (count, 3, S, S), filled by the threads */
  int64_t *position;
  int32_t count, claimed, done; /* items: all, handed to a thread, finished */
  uint64_t seed, first;
  int32_t failed, code; /* the first item that failed, or count; its error code */
  char error[1024];
} slot;

struct pg_loader {
  pg_augment augment;
  pg_tensor *images; /* (N, H, W, 3), or NULL */
  char **files;      /* N names, or NULL */
  int64_t n;
  slot *slots;            /* batch number b stands in slots[b % capacity] */
  uint64_t taken, pushed; /* batches so far */
  int32_t busy;           /* threads at work on an item */
  bool stop;
  pthread_mutex_t lock; /* over all of the above that changes */
  pthread_cond_t work;  /* items to claim, or stop */
  pthread_cond_t ready; /* a slot is complete, or no thread is busy */
  int32_t started;
  pthread_t threads[MOST_WORKERS];
};

/* ---- in the threads --------------------------------------------------------------------------------------------- */

static int make_item(const pg_loader *l, int64_t position, uint64_t seed, uint64_t sample, uint8_t *scratch,
                     float *out) {
  if (l->images) {
    int64_t h = l->images->shape[1], w = l->images->shape[2];
    return pg_augment_image(&l->augment, PG_AT(uint8_t, l->images) + position * h * w * 3, h, w, seed, sample, scratch,
                            out);
  }
  pg_tensor *picture;
  PG_TRY(pg_image_load(l->files[position], &picture));
  int status = pg_augment_image(&l->augment, PG_AT(uint8_t, picture), picture->shape[0], picture->shape[1], seed,
                                sample, scratch, out);
  pg_release(picture);
  return status;
}

static slot *claimable(pg_loader *l) { /* lock held */
  for (uint64_t b = l->taken; b < l->pushed; b++) {
    slot *s = &l->slots[b % (uint64_t)l->augment.o.capacity];
    if (s->claimed < s->count) return s;
  }
  return NULL;
}

/* Lock held on entry and exit, let go of meanwhile. */
static void work_on(pg_loader *l, slot *s, uint8_t *scratch) {
  int32_t from = s->claimed, to = PG_MIN(from + (l->images ? RUN : 1), s->count);
  int64_t pixels = 3 * (int64_t)l->augment.o.size * l->augment.o.size;
  s->claimed = to, l->busy++;
  pthread_mutex_unlock(&l->lock);
  int32_t i = from;
  int status = scratch ? PG_OK : pg_fail(PG_ERR_MEMORY, "loader: out of memory");
  while (!status && i < to) {
    status =
        make_item(l, s->position[i], s->seed, s->first + (uint64_t)i, scratch, PG_AT(float, s->images) + i * pixels);
    if (!status) i++;
  }
  pthread_mutex_lock(&l->lock);
  if (status && i < s->failed) { /* the first in the batch's order, not in time: the same for any number of threads */
    s->failed = i, s->code = status;
    snprintf(s->error, sizeof s->error, "%s", pg_last_error());
  }
  s->done += to - from, l->busy--;
  if (s->done == s->count || !l->busy) pthread_cond_broadcast(&l->ready);
}

static void *worker(void *argument) {
  pg_loader *l = argument;
  uint8_t *scratch = malloc((size_t)l->augment.o.size * (size_t)l->augment.o.size * 3);
  pthread_mutex_lock(&l->lock);
  while (!l->stop) {
    slot *s = claimable(l);
    if (s)
      work_on(l, s, scratch);
    else
      pthread_cond_wait(&l->work, &l->lock);
  }
  pthread_mutex_unlock(&l->lock);
  free(scratch);
  return NULL;
}

/* ---- making and ending ------------------------------------------------------------------------------------------ */

static int start(pg_loader *l) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int reason = 0;
  while (l->started < l->augment.o.workers && !reason) {
    reason = pthread_create(&l->threads[l->started], NULL, worker, l);
    if (!reason) l->started++;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return reason ? pg_fail(PG_ERR_STATE, "loader: cannot start thread %d: %s", l->started + 1, strerror(reason)) : PG_OK;
}

static int take_source(pg_loader *l, pg_tensor *images, const char *const *files) {
  if (images) {
    PG_TRY(pg_check_live(images, "loader"));
    char text[128];
    if (images->dtype != PG_UINT8 || images->device != PG_CPU || images->ndim != 4 || images->shape[3] != 3 ||
        !pg_numel(images))
      return pg_fail(PG_ERR_SHAPE, "loader: images must be uint8 (N, H, W, 3) on the cpu, got %s %s",
                     pg_dtype_name(images->dtype), pg_shape_text(images, text));
    l->n = images->shape[0];
    pg_tensor *packed;
    PG_TRY(pg_contiguous(images, &packed));
    int status = pg_alias(packed, &l->images); /* a handle of its own: freeing the caller's leaves the bytes */
    pg_release(packed);
    return status;
  }
  if (l->n < 1 || l->n > INT32_MAX) return pg_fail(PG_ERR_ARGUMENT, "loader: there are no images and no files");
  l->files = calloc((size_t)l->n, sizeof *l->files);
  for (int64_t i = 0; i < l->n; i++)
    if (!l->files || !(l->files[i] = strdup(files[i]))) return pg_fail(PG_ERR_MEMORY, "loader: out of memory");
  return PG_OK;
}

static int set_up(pg_loader *l, const pg_loader_options *o, pg_tensor *images, const char *const *files) {
  PG_TRY(pg_augment_init(&l->augment, o));
  if (o->workers < 1 || o->workers > MOST_WORKERS)
    return pg_fail(PG_ERR_ARGUMENT, "loader: workers must be within 1..%d, got %d", MOST_WORKERS, o->workers);
  if (o->capacity < 1 || o->capacity > MOST_SLOTS)
    return pg_fail(PG_ERR_ARGUMENT, "loader: batches under way must be within 1..%d, got %d", MOST_SLOTS, o->capacity);
  PG_TRY(take_source(l, images, files));
  l->slots = calloc((size_t)o->capacity, sizeof *l->slots);
  if (!l->slots) return pg_fail(PG_ERR_MEMORY, "loader: out of memory");
  return start(l);
}

int pg_loader_new(const pg_loader_options *options, pg_tensor *images, const char *const *files, int64_t n,
                  pg_loader **out) {
  pg_loader *l = calloc(1, sizeof *l);
  if (!l) return pg_fail(PG_ERR_MEMORY, "loader: out of memory");
  pthread_condattr_t monotonic; /* waits must not follow a change of the wall clock */
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_mutex_init(&l->lock, NULL);
  pthread_cond_init(&l->work, NULL);
  pthread_cond_init(&l->ready, &monotonic);
  pthread_condattr_destroy(&monotonic);
  l->n = n;
  int status = set_up(l, options, images, files);
  if (status) return pg_loader_free(l), status;
  return *out = l, PG_OK;
}

void pg_loader_clear(pg_loader *l) {
  pthread_mutex_lock(&l->lock);
  for (uint64_t b = l->taken; b < l->pushed; b++) { /* nothing more is claimed, then nothing is under way */
    slot *s = &l->slots[b % (uint64_t)l->augment.o.capacity];
    s->claimed = s->count;
  }
  while (l->busy) pthread_cond_wait(&l->ready, &l->lock);
  for (; l->taken < l->pushed; l->taken++) {
    slot *s = &l->slots[l->taken % (uint64_t)l->augment.o.capacity];
    pg_release(s->images), s->images = NULL;
    free(s->position), s->position = NULL;
  }
  pthread_mutex_unlock(&l->lock);
}

void pg_loader_free(pg_loader *l) {
  if (!l) return;
  pthread_mutex_lock(&l->lock);
  l->stop = true;
  pthread_cond_broadcast(&l->work);
  pthread_mutex_unlock(&l->lock);
  for (int32_t i = 0; i < l->started; i++) pthread_join(l->threads[i], NULL);
  pg_loader_clear(l);
  pg_release(l->images);
  for (int64_t i = 0; l->files && i < l->n; i++) free(l->files[i]);
  free(l->files);
  free(l->slots);
  pthread_cond_destroy(&l->work), pthread_cond_destroy(&l->ready), pthread_mutex_destroy(&l->lock);
  free(l);
}

/* ---- in the caller's thread ------------------------------------------------------------------------------------- */

static int check_positions(const pg_loader *l, const pg_tensor *positions) {
  PG_TRY(pg_check_live(positions, "loader"));
  char text[128];
  if (positions->dtype != PG_INT32 || positions->device != PG_CPU || positions->ndim != 1 || !positions->shape[0])
    return pg_fail(PG_ERR_SHAPE, "loader: a batch's positions must be int32 (B) on the cpu, B >= 1, got %s %s",
                   pg_dtype_name(positions->dtype), pg_shape_text(positions, text));
  const int32_t *p = PG_AT(int32_t, positions);
  for (int64_t i = 0; i < positions->shape[0]; i++) {
    int64_t value = p[i * positions->stride[0]];
    if (value < 0 || value >= l->n)
      return pg_fail(PG_ERR_ARGUMENT, "loader: position %lld is outside %lld..%lld", (long long)pg_shown(value),
                     (long long)pg_shown(0), (long long)pg_shown(l->n - 1));
  }
  return PG_OK;
}

int pg_loader_push(pg_loader *l, pg_tensor *positions, uint64_t seed, uint64_t first) {
  if (l->pushed - l->taken == (uint64_t)l->augment.o.capacity)
    return pg_fail(PG_ERR_STATE, "loader: %d batches are under way; take one first", l->augment.o.capacity);
  PG_TRY(check_positions(l, positions));
  int32_t count = (int32_t)positions->shape[0], size = l->augment.o.size;
  int64_t *position = malloc(sizeof *position * (size_t)count);
  if (!position) return pg_fail(PG_ERR_MEMORY, "loader: out of memory");
  for (int32_t i = 0; i < count; i++) position[i] = PG_AT(int32_t, positions)[i * positions->stride[0]];
  pg_tensor *images;
  int status = pg_new(PG_FLOAT32, PG_CPU, 4, (int64_t[]){count, 3, size, size}, &images);
  if (status) return free(position), status;
  pthread_mutex_lock(&l->lock);
  slot *s = &l->slots[l->pushed++ % (uint64_t)l->augment.o.capacity];
  s->images = images, s->position = position, s->count = s->failed = count, s->claimed = s->done = 0;
  s->seed = seed, s->first = first;
  pthread_cond_broadcast(&l->work);
  pthread_mutex_unlock(&l->lock);
  return PG_OK;
}

int pg_loader_next(pg_loader *l, double seconds, pg_tensor **out) {
  *out = NULL;
  if (l->pushed == l->taken) return pg_fail(PG_ERR_STATE, "loader: no batch is under way");
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  int64_t ns = until.tv_nsec + (int64_t)(PG_MIN(PG_MAX(seconds, 0), 1e6) * 1e9);
  until.tv_sec += ns / 1000000000, until.tv_nsec = ns % 1000000000;
  slot *s = &l->slots[l->taken % (uint64_t)l->augment.o.capacity];
  int late = 0;
  pthread_mutex_lock(&l->lock);
  while (s->done < s->count && late != ETIMEDOUT) late = pthread_cond_timedwait(&l->ready, &l->lock, &until);
  bool whole = s->done == s->count;
  if (whole) l->taken++;
  pthread_mutex_unlock(&l->lock);
  if (!whole) return PG_OK;
  pg_tensor *images = s->images;
  free(s->position), s->images = NULL, s->position = NULL;
  if (s->failed < s->count) return pg_release(images), pg_fail(s->code, "%s", s->error);
  return *out = images, PG_OK;
}

int64_t pg_loader_pushed(const pg_loader *l) { return (int64_t)l->pushed; }

int64_t pg_loader_taken(const pg_loader *l) { return (int64_t)l->taken; }
