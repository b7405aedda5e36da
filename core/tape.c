/* tape.c - reverse-mode automatic differentiation.
 *
 * A recorded call is a node. It holds what its backward reads (and only shapes of the rest), an edge to wherever each
 * input came from, and nothing of its outputs' handles, so that there are no cycles: a tensor owns its node, a node
 * owns the nodes before it. Backward walks the reachable nodes from the newest to the oldest and lets each go as it
 * passes.
 *
 * Saved tensors remember the version of their storage. Before a single gradient is written every version in the graph
 * is checked, so that a tensor overwritten in place is an error and never a wrong gradient.
 */
#include "tape.h"
#include "comm.h"

typedef struct pg_edge { /* where an input's gradient goes */
  pg_node *node;         /* the call that made it, or */
  int32_t output;
  pg_tensor *leaf; /* the leaf that it is; both NULL: nowhere */
} pg_edge;

typedef struct pg_saved { /* an input or output as backward will see it */
  pg_tensor *t;           /* an alias, or a shell where only the shape is needed; NULL: an absent input */
  int64_t version;        /* of the storage when it was saved */
} pg_saved;

struct pg_node {
  int64_t refs;
  uint64_t order; /* calls are numbered; a node is always newer than what it used */
  uint64_t mark;  /* the backward pass that last saw it */
  const pg_op *op;
  pg_kernel backward;
  pg_value *params;
  uint64_t seed, offset;
  bool bf16;
  int32_t n_in, n_out;
  pg_saved *in;
  pg_edge *edges;
  pg_saved out[PG_MAX_OUTPUTS];
  pg_tensor *grad[PG_MAX_OUTPUTS]; /* gathered while a backward pass runs */
  pg_node *next;                   /* in the list of nodes being dropped */
  bool spent;                      /* a backward pass has consumed it */
};

static bool enabled = true;
static uint64_t calls = 0, passes = 0;

int32_t pg_grad_enabled(int32_t on) {
  bool before = enabled;
  if (on >= 0) enabled = on != 0;
  return before;
}

bool pg_recording(void) { return enabled; }

/* ---- dropping: a loop, not a recursion, since a graph may be a hundred thousand calls deep ---------------------- */

static void node_spend(pg_node *n) { /* lets go of everything that backward would read */
  for (int32_t i = 0; i < n->n_in; i++) pg_release(n->in[i].t), n->in[i].t = NULL;
  for (int32_t i = 0; i < n->n_out; i++) {
    pg_release(n->out[i].t), n->out[i].t = NULL;
    pg_release(n->grad[i]), n->grad[i] = NULL;
  }
  n->spent = true;
}

static pg_node *unlink_edges(pg_node *n, pg_node *list) { /* nodes that nobody else holds join the list */
  for (int32_t i = 0; i < n->n_in; i++) {
    pg_node *from = n->edges[i].node;
    if (from && --from->refs == 0) from->next = list, list = from;
    pg_release(n->edges[i].leaf);
    n->edges[i] = (pg_edge){0};
  }
  return list;
}

void pg_node_release(pg_node *node) {
  if (!node || --node->refs > 0) return;
  node->next = NULL;
  for (pg_node *list = node; list;) {
    pg_node *n = list;
    list = unlink_edges(n, n->next);
    node_spend(n);
    free(n);
  }
}

/* ---- recording -------------------------------------------------------------------------------------------------- */

static int save(pg_saved *slot, pg_tensor *t, bool value) {
  if (!t) return PG_OK;
  slot->version = pg_version_of(t);
  return value ? pg_alias(t, &slot->t) : pg_new_shell(t, &slot->t);
}

int pg_record(const pg_call *c, pg_tensor *const *original_in, pg_kernel backward, int n_params) {
  /* the node and its three arrays in one piece: edges, saved inputs, parameters */
  size_t inputs = (size_t)c->n_in, params = sizeof(pg_value) * (size_t)n_params;
  pg_node *n = calloc(1, sizeof *n + inputs * (sizeof *n->edges + sizeof *n->in) + params);
  if (!n) return pg_fail(PG_ERR_MEMORY, "out of memory");
  *n = (pg_node){.refs = 1,
                 .order = ++calls,
                 .op = c->op,
                 .backward = backward,
                 .seed = c->seed,
                 .offset = c->offset,
                 .bf16 = c->bf16,
                 .n_in = c->n_in,
                 .n_out = c->n_out};
  int status = PG_OK;
  n->edges = (pg_edge *)(n + 1), n->in = (pg_saved *)(n->edges + inputs), n->params = (pg_value *)(n->in + inputs);
  if (n_params) memcpy(n->params, c->p, params);
  const pg_arg_info *info = c->op->info.inputs;
  for (int32_t i = 0; i < c->n_in && !status; i++) {
    bool needed = c->op->needs == PG_NEED_ALL_IN || (i < 16 && c->op->needs & PG_NEED_IN(i));
    if ((status = save(&n->in[i], c->in[i], needed))) break;
    pg_tensor *t = original_in[i];
    bool flows = t && t->requires_grad && pg_is_float(t->dtype) && !(info->flags & (PG_NO_GRAD | PG_INDEX));
    if (flows && t->node)
      t->node->refs++, n->edges[i] = (pg_edge){t->node, t->node_output, NULL};
    else if (flows)
      n->edges[i].leaf = pg_retain(t);
    if (!(info->flags & PG_LIST)) info++;
  }
  for (int32_t i = 0; i < c->n_out && !status; i++)
    status = save(&n->out[i], c->out[i], (c->op->needs >> 16) & (1u << i));
  if (status) return pg_node_release(n), status;
  for (int32_t i = 0; i < c->n_out; i++) {
    if (!c->out[i] || !pg_is_float(c->out[i]->dtype)) continue;
    c->out[i]->node = n, c->out[i]->node_output = i, c->out[i]->requires_grad = true;
    n->refs++;
  }
  pg_node_release(n);
  return PG_OK;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

static int newest_first(const void *a, const void *b) {
  uint64_t x = (*(pg_node *const *)a)->order, y = (*(pg_node *const *)b)->order;
  return x < y ? 1 : x > y ? -1 : 0;
}

/* Every node that t depends on, newest first, each with a reference held. */
static int collect(pg_node *root, pg_node ***out, int64_t *count) {
  int64_t n = 0, room = 256;
  pg_node **nodes = malloc(sizeof *nodes * (size_t)room);
  uint64_t pass = ++passes;
  if (!nodes) return pg_fail(PG_ERR_MEMORY, "out of memory");
  root->mark = pass, root->refs++, nodes[n++] = root;
  for (int64_t at = 0; at < n; at++)
    for (int32_t i = 0; i < nodes[at]->n_in; i++) {
      pg_node *from = nodes[at]->edges[i].node;
      if (!from || from->mark == pass) continue;
      if (n == room) {
        pg_node **more = realloc(nodes, sizeof *nodes * (size_t)(room *= 2));
        if (!more) {
          for (int64_t k = 0; k < n; k++) pg_node_release(nodes[k]);
          return free(nodes), pg_fail(PG_ERR_MEMORY, "out of memory");
        }
        nodes = more;
      }
      from->mark = pass, from->refs++, nodes[n++] = from;
    }
  qsort(nodes, (size_t)n, sizeof *nodes, newest_first);
  return *out = nodes, *count = n, PG_OK;
}

static int check_saved(const pg_node *n, const pg_saved *slot, const char *role, const char *name) {
  if (!slot->t || !slot->t->storage) return PG_OK;
  if (!slot->t->storage->data)
    return pg_fail(PG_ERR_STATE, "backward: %s: its %s %s was released by free() before backward", n->op->info.name,
                   role, name);
  if (slot->t->storage->version == slot->version) return PG_OK;
  return pg_fail(PG_ERR_STATE,
                 "backward: %s: its %s %s was changed in place after the call (version %lld, saved at %lld)",
                 n->op->info.name, role, name, (long long)slot->t->storage->version, (long long)slot->version);
}

static int check_leaf(const pg_tensor *leaf) {
  if (!leaf || !leaf->grad || leaf->grad->storage) return PG_OK;
  return pg_fail(PG_ERR_STATE, "backward: a .grad that it adds to was released by free(); set it to nil first");
}

static int check_node(const pg_node *n) {
  if (n->spent)
    return pg_fail(PG_ERR_STATE,
                   "backward: the graph behind %s was already used by a backward pass; keep it with "
                   "backward{retain = true}",
                   n->op->info.name);
  const pg_arg_info *info = n->op->info.inputs;
  for (int32_t i = 0; i < n->n_in; i++) {
    PG_TRY(check_leaf(n->edges[i].leaf));
    PG_TRY(check_saved(n, &n->in[i], "input", info->name));
    if (!(info->flags & PG_LIST)) info++;
  }
  for (int32_t i = 0; i < n->n_out; i++) PG_TRY(check_saved(n, &n->out[i], "output", n->op->info.outputs[i].name));
  return PG_OK;
}

/* Takes the gradient over: the first one that arrives is kept as it is, the others are added to it. */
static int gather(pg_tensor **sum, pg_tensor *grad) {
  if (!*sum) return *sum = grad, PG_OK;
  int status = pg_add_into(*sum, grad);
  pg_release(grad);
  return status;
}

static int leaf_gather(pg_tensor *leaf, pg_tensor *grad) {
  if (leaf->grad && !pg_is_contiguous(leaf->grad)) {
    pg_tensor *flat;
    int status = pg_contiguous(leaf->grad, &flat);
    if (status) return pg_release(grad), status;
    pg_release(leaf->grad), leaf->grad = flat;
  }
  return gather(&leaf->grad, grad);
}

static int run_node(pg_node *n) {
  pg_call c = {.op = n->op,
               .n_in = n->n_in,
               .n_out = n->n_out,
               .p = n->params,
               .seed = n->seed,
               .offset = n->offset,
               .bf16 = n->bf16};
  pg_tensor *few[2 * 8] = {0}, **room = few;
  if (n->n_in > 8 && !(room = calloc(2 * (size_t)n->n_in, sizeof *room)))
    return pg_fail(PG_ERR_MEMORY, "out of memory");
  c.in = room, c.grad_in = room + n->n_in;
  int status = PG_OK;
  for (int32_t i = 0; i < n->n_out && !status; i++) {
    c.out[i] = n->out[i].t;
    /* Nobody can use a hidden one: it has no gradient, and none is read. */
    bool hidden = n->op->info.outputs[i].flags & PG_HIDDEN;
    if (!n->grad[i] && !hidden && pg_is_float(c.out[i]->dtype)) { /* nothing flowed back into this output */
      if (!(status = pg_new_like(c.out[i], &n->grad[i]))) status = pg_fill(n->grad[i], 0);
    }
    c.grad_out[i] = n->grad[i];
  }
  for (int32_t i = 0; i < n->n_in && !status; i++) {
    c.in[i] = n->in[i].t;
    if (n->edges[i].node || n->edges[i].leaf) status = pg_new_like(c.in[i], &c.grad_in[i]);
  }
  if (!status) status = n->backward(&c);
  for (int32_t i = 0; i < n->n_in; i++) {
    pg_edge *e = &n->edges[i];
    if (!c.grad_in[i]) continue;
    if (status)
      pg_release(c.grad_in[i]);
    else if (e->node)
      status = gather(&e->node->grad[e->output], c.grad_in[i]);
    else if (!(status = leaf_gather(e->leaf, c.grad_in[i])))
      status = pg_buckets_ready(e->leaf);
  }
  if (room != few) free(room);
  return status;
}

int pg_backward(pg_tensor *t, pg_tensor *grad, int32_t retain) {
  char a[128], b[128];
  if (!t->requires_grad)
    return pg_fail(PG_ERR_STATE, "backward: the tensor does not depend on anything that requires grad");
  if (!grad && pg_numel(t) != 1)
    return pg_fail(PG_ERR_SHAPE, "backward: a loss has one element, this tensor has shape %s; pass its gradient",
                   pg_shape_text(t, a));
  if (grad && (!pg_same_shape(t, grad) || grad->dtype != t->dtype))
    return pg_fail(PG_ERR_SHAPE, "backward: the gradient %s %s does not fit the tensor %s %s",
                   pg_dtype_name(grad->dtype), pg_shape_text(grad, a), pg_dtype_name(t->dtype), pg_shape_text(t, b));
  pg_node **nodes = NULL;
  int64_t count = 0;
  if (t->node) PG_TRY(collect(t->node, &nodes, &count));
  int status = check_leaf(t);
  for (int64_t i = 0; i < count && !status; i++) status = check_node(nodes[i]);
  pg_tensor *seed = NULL;
  if (!status && grad && t->node && pg_is_contiguous(grad)) { /* kernels only read it, and nothing is added to it */
    status = pg_check_live(grad, "backward");
    if (!status) status = pg_alias(grad, &seed);
  } else {
    if (!status) status = pg_new_like(t, &seed);
    if (!status) status = grad ? pg_copy(seed, grad) : pg_fill(seed, 1);
  }
  if (status)
    pg_release(seed);
  else
    status = t->node ? gather(&t->node->grad[t->node_output], seed) : leaf_gather(t, seed);
  bool sharing = pg_buckets_any();
  for (int64_t i = 0; i < count && sharing && !status; i++)
    for (int32_t k = 0; k < nodes[i]->n_in; k++)
      if (nodes[i]->edges[k].leaf) pg_buckets_expect(nodes[i]->edges[k].leaf);
  for (int64_t i = 0; i < count; i++) {
    pg_node *n = nodes[i];
    if (!status && !pg_stopping()) status = run_node(n);
    if (sharing) pg_buckets_progress();
    status = pg_unless_stopped(status);
    for (int32_t k = 0; k < n->n_out; k++) pg_release(n->grad[k]), n->grad[k] = NULL;
    if (!retain && !status) {
      node_spend(n);
      unlink_edges(n, NULL); /* none of them dies here: this pass still holds every node */
    }
  }
  if (sharing) status = pg_buckets_end(status);
  for (int64_t i = 0; i < count; i++) pg_node_release(nodes[i]);
  free(nodes);
  return status;
}

/* ---- leaves ----------------------------------------------------------------------------------------------------- */

int pg_set_requires_grad(pg_tensor *t, int32_t on) {
  if (on && !pg_is_float(t->dtype))
    return pg_fail(PG_ERR_DTYPE, "requires_grad_: only float32 and float64 tensors have gradients, this one is %s",
                   pg_dtype_name(t->dtype));
  if (t->node) return on ? PG_OK : pg_fail(PG_ERR_STATE, "requires_grad_(false): only a leaf can stop; use detach()");
  t->requires_grad = on != 0;
  return PG_OK;
}

int32_t pg_requires_grad(const pg_tensor *t) { return t->requires_grad; }

int32_t pg_is_leaf(const pg_tensor *t) { return t->node == NULL; }

pg_tensor *pg_grad(pg_tensor *t) { return t->grad; }

int pg_set_grad(pg_tensor *t, pg_tensor *grad) {
  char a[128], b[128];
  if (grad && (!pg_same_shape(t, grad) || grad->dtype != t->dtype))
    return pg_fail(PG_ERR_SHAPE, "grad: %s %s does not fit the tensor %s %s", pg_dtype_name(grad->dtype),
                   pg_shape_text(grad, a), pg_dtype_name(t->dtype), pg_shape_text(t, b));
  pg_tensor *own = NULL; /* over the same memory: who frees the handle that was given frees no gradient */
  if (grad) PG_TRY(pg_check_live(grad, "grad"));
  if (grad) PG_TRY(pg_alias(grad, &own));
  pg_release(t->grad);
  t->grad = own;
  return PG_OK;
}
