/* buckets.c - data-parallel training: the gradients of shared leaves become their means over all processes while
 * backward still goes on.
 *
 * Leaves are put together in buckets of some 25 MB, from the last to the first, as backward reaches them. When the last
 * gradient of a bucket is there its values are copied into one buffer, and the reduction of the buffer begins; at the
 * end of the pass the means are copied back. Buckets begin in their order on every process, whatever the order in which
 * they are filled, so that the processes agree on what is being reduced. A bucket takes part in a pass when the graph
 * leads to one of its leaves; a leaf of it that the graph does not lead to counts as zero and gets no gradient. */
#include "comm.h"

typedef struct bucket {
  pg_tensor *flat;     /* all its leaves' gradients in a row */
  int32_t first, last; /* its leaves are first..last-1 */
  int32_t waiting;     /* edges to its leaves whose gradients are still to come in this pass */
  bool reached, begun;
} bucket;

static struct {
  pg_tensor **leaf; /* in the order of the buckets */
  int64_t *at;      /* where a leaf's values begin in its bucket */
  int32_t *of;      /* its bucket */
  bucket *buckets;
  int32_t leaves, count;
  int32_t next; /* of this pass: every bucket before it has begun or takes no part */
} shared;

bool pg_buckets_any(void) { return shared.count > 0; }

/* ---- sharing ---------------------------------------------------------------------------------------------------- */

static void forget(void) {
  for (int32_t i = 0; i < shared.leaves; i++) shared.leaf[i]->shared = 0, pg_release(shared.leaf[i]);
  for (int32_t b = 0; b < shared.count; b++) pg_release(shared.buckets[b].flat);
  free(shared.leaf), free(shared.at), free(shared.of), free(shared.buckets);
  memset(&shared, 0, sizeof shared);
}

/* Puts leaf i in the last bucket, or in a new one where that is full or of another kind, or where a group begins. */
static void place(int32_t i, int64_t most, bool begins) {
  const pg_tensor *t = shared.leaf[i];
  bucket *b = shared.count ? &shared.buckets[shared.count - 1] : NULL;
  int64_t used = b && !begins ? shared.at[i - 1] + pg_numel(shared.leaf[i - 1]) : 0;
  bool fits = b && !begins && shared.leaf[b->first]->dtype == t->dtype && shared.leaf[b->first]->device == t->device &&
              (used + pg_numel(t)) * (int64_t)pg_dtype_bytes[t->dtype] <= most;
  if (!fits) b = &shared.buckets[shared.count++], b->first = i, used = 0;
  b->last = i + 1, shared.at[i] = used, shared.of[i] = shared.count - 1;
}

int pg_comm_share(pg_tensor *const *leaves, const int32_t *groups, int32_t n, int64_t most) {
  forget();
  if (pg_comm()->size == 1 || n == 0) return PG_OK;
  for (int32_t i = 0; i < n; i++)
    if (!leaves[i]->requires_grad || leaves[i]->node)
      return pg_fail(PG_ERR_STATE, "share: parameter %lld does not require grad, or was computed",
                     (long long)pg_shown(i));
  shared.leaf = calloc((size_t)n, sizeof *shared.leaf), shared.at = calloc((size_t)n, sizeof *shared.at);
  shared.of = calloc((size_t)n, sizeof *shared.of), shared.buckets = calloc((size_t)n, sizeof *shared.buckets);
  if (!shared.leaf || !shared.at || !shared.of || !shared.buckets)
    return forget(), pg_fail(PG_ERR_MEMORY, "out of memory");
  for (int32_t k = n - 1, last = -1; k >= 0; k--) { /* from the last to the first */
    if (leaves[k]->shared) continue;                /* named twice */
    int32_t i = shared.leaves++;
    shared.leaf[i] = pg_retain(leaves[k]), shared.leaf[i]->shared = i + 1;
    place(i, most, groups[k] != last);
    last = groups[k];
  }
  for (int32_t i = shared.leaves - 1; i >= 0; i--) PG_TRY(pg_comm_broadcast(shared.leaf[i]));
  return PG_OK;
}

/* ---- a pass ----------------------------------------------------------------------------------------------------- */

void pg_buckets_expect(pg_tensor *leaf) {
  if (!leaf->shared) return;
  bucket *b = &shared.buckets[shared.of[leaf->shared - 1]];
  b->reached = true, b->waiting++, leaf->reached = true;
}

static int slot(int32_t i, pg_tensor **out) { /* leaf i's part of its bucket, in the leaf's shape */
  const pg_tensor *t = shared.leaf[i];
  int64_t stride[PG_MAX_DIMS];
  pg_contiguous_strides(t->ndim, t->shape, stride);
  return pg_view(shared.buckets[shared.of[i]].flat, t->ndim, t->shape, stride, shared.at[i], out);
}

static int begin(int32_t k) {
  bucket *b = &shared.buckets[k];
  const pg_tensor *first = shared.leaf[b->first];
  const pg_comm_vtable *comm;
  int64_t n = shared.at[b->last - 1] + pg_numel(shared.leaf[b->last - 1]);
  if (!b->flat) PG_TRY(pg_new(first->dtype, first->device, 1, &n, &b->flat));
  for (int32_t i = b->first; i < b->last; i++) {
    pg_tensor *part, *leaf = shared.leaf[i];
    PG_TRY(slot(i, &part));
    int status = leaf->reached && leaf->grad ? pg_copy(part, leaf->grad) : pg_fill(part, 0);
    pg_release(part);
    PG_TRY(status);
  }
  PG_TRY(pg_comm_of(first->device, &comm));
  b->begun = true;
  return comm->reduce_begin(k + 1, pg_data(b->flat), n, first->dtype, 1); /* slot 0 is pg_comm_reduce's */
}

static int begin_filled(bool all) {
  for (; shared.next < shared.count; shared.next++) {
    bucket *b = &shared.buckets[shared.next];
    if (b->reached && b->waiting && !all) return PG_OK;
    if (b->reached) PG_TRY(begin(shared.next));
  }
  return PG_OK;
}

int pg_buckets_ready(pg_tensor *leaf) {
  if (!leaf->shared || --shared.buckets[shared.of[leaf->shared - 1]].waiting > 0) return PG_OK;
  return begin_filled(false);
}

void pg_buckets_progress(void) {
  for (int32_t device = -1, k = 0; k < shared.next; k++) {
    const pg_comm_vtable *comm;
    if (!shared.buckets[k].begun || shared.leaf[shared.buckets[k].first]->device == device) continue;
    device = shared.leaf[shared.buckets[k].first]->device;
    if (!pg_comm_of(device, &comm) && comm->progress) comm->progress();
  }
}

static int end(int32_t k) {
  bucket *b = &shared.buckets[k];
  const pg_comm_vtable *comm;
  PG_TRY(pg_comm_of(b->flat->device, &comm));
  PG_TRY(comm->reduce_end(k + 1));
  for (int32_t i = b->first; i < b->last; i++) {
    pg_tensor *part, *leaf = shared.leaf[i];
    if (!leaf->reached || !leaf->grad) continue;
    PG_TRY(slot(i, &part));
    int status = pg_copy(leaf->grad, part);
    pg_release(part);
    PG_TRY(status);
  }
  return PG_OK;
}

int pg_buckets_end(int status) {
  if (!status) status = begin_filled(true);
  for (int32_t k = 0; k < shared.count; k++) {
    if (!status && shared.buckets[k].begun) status = end(k);
    shared.buckets[k].reached = shared.buckets[k].begun = false, shared.buckets[k].waiting = 0;
  }
  for (int32_t i = 0; i < shared.leaves; i++) shared.leaf[i]->reached = false;
  shared.next = 0;
  return status;
}
