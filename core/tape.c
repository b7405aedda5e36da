/* tape.c - reverse-mode automatic differentiation.
 *
 * A recorded call is a node. It holds what its backward reads (and only shapes of the rest), an edge to wherever each
 * input came from, and nothing of its outputs' handles, so that there are no cycles: a tensor owns its node, a node
 * owns the nodes before it. Backward walks the reachable nodes from the newest to the oldest and lets each go as it
 * passes.
 *
 * Saved tensors remember the version of their storage. Before a single gradient is written every version in the graph
 * is checked, so that a tensor overwritten in place is an error and never a wrong gradient.
 *
 * Not everything that backward reads is kept: some is computed again, by the call that made it, from what that call
 * keeps. It is what cheap calls (pg_op.cheap) give to ops that ask for it (pg_op.again), and everything inside a
 * checkpoint (Chen et al., arXiv 1604.06174). The same kernels run on the same values, drawing the same random
 * numbers, so the bits are the same. A call that may run again keeps all its inputs, as values or as the promise of
 * the call that made them.
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
  bool again;             /* a shell: an input's value comes from its edge's node, an output's from this one */
} pg_saved;

struct pg_node {
  int64_t refs;
  uint64_t order;  /* calls are numbered; a node is always newer than what it used */
  uint64_t mark;   /* the backward pass that last saw it */
  uint64_t wanted; /* the turn of make_again that last asked for it */
  const pg_op *op;
  pg_kernel forward, backward;
  int64_t checkpoint;              /* the one that the call was made in; 0: none */
  bool repeats;                    /* it keeps what it takes to run forward again */
  int32_t awaited;                 /* slots that its outputs may be computed again for */
  pg_tensor *made[PG_MAX_OUTPUTS]; /* those outputs, while backward needs them */
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
static uint64_t calls = 0, passes = 0, turns = 0;
static int64_t checkpoint = 0, checkpoints = 0; /* the one that is open; how many there were */

int32_t pg_grad_enabled(int32_t on) {
  bool before = enabled;
  if (on >= 0) enabled = on != 0;
  return before;
}

bool pg_recording(void) { return enabled; }

int32_t pg_checkpoint(int32_t on) {
  bool before = checkpoint != 0;
  if (!on) checkpoint = 0;
  if (on > 0 && !before) checkpoint = ++checkpoints;
  return before;
}

/* ---- dropping: a loop, not a recursion, since a graph may be a hundred thousand calls deep ---------------------- */

static void drop_made(pg_node *n) {
  for (int32_t i = 0; i < n->n_out; i++) pg_release(n->made[i]), n->made[i] = NULL;
}

static void node_spend(pg_node *n) { /* lets go of everything that backward would read */
  for (int32_t i = 0; i < n->n_in; i++) {
    if (n->in[i].again && --n->edges[i].node->awaited == 0) drop_made(n->edges[i].node);
    pg_release(n->in[i].t), n->in[i] = (pg_saved){0};
  }
  for (int32_t i = 0; i < n->n_out; i++) {
    pg_release(n->out[i].t), n->out[i] = (pg_saved){0};
    pg_release(n->grad[i]), n->grad[i] = NULL;
  }
  drop_made(n);
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
    node_spend(n);
    list = unlink_edges(n, n->next);
    free(n);
  }
}

/* ---- recording -------------------------------------------------------------------------------------------------- */

enum { WORTH = 1 << 14 }; /* elements below which keeping a value costs less than a second call */

static int save(pg_saved *slot, pg_tensor *t, bool value) {
  if (!t) return PG_OK;
  slot->version = pg_version_of(t);
  return value ? pg_alias(t, &slot->t) : pg_new_shell(t, &slot->t);
}

static bool reads_input(const pg_op *op, int32_t i) { /* in backward */
  return op->needs == PG_NEED_ALL_IN || (i < 16 && op->needs & PG_NEED_IN(i));
}

/* Whether input i, made by the call `from`, will be computed again. A view of what a cheap call gave stands for it. */
static bool made_again(const pg_node *n, int32_t i, const pg_node *from, const pg_tensor *t) {
  if (!from || !from->repeats) return false;
  if (n->checkpoint || from->checkpoint) return n->checkpoint == from->checkpoint;
  return n->op->flags & PG_F_VIEW || (i < 16 && n->op->again & PG_NEED_IN(i) && pg_numel(t) >= WORTH);
}

static int record_inputs(pg_node *n, const pg_call *c, pg_tensor *const *original_in) {
  const pg_arg_info *info = c->op->info.inputs;
  n->repeats = n->checkpoint || (c->op->cheap && c->op->cheap(c));
  for (int32_t i = 0; i < c->n_in; i++) {
    pg_tensor *t = original_in[i];
    bool flows = t && t->requires_grad && pg_is_float(t->dtype) && !(info->flags & (PG_NO_GRAD | PG_INDEX));
    if (flows && t->node)
      t->node->refs++, n->edges[i] = (pg_edge){t->node, t->node_output, NULL};
    else if (flows)
      n->edges[i].leaf = pg_retain(t);
    bool again = made_again(n, i, n->edges[i].node, t);
    PG_TRY(save(&n->in[i], c->in[i], !again && (n->repeats || reads_input(c->op, i))));
    if (again) n->in[i].again = true, n->edges[i].node->awaited++;
    if (again && c->op->flags & PG_F_VIEW) n->repeats = true;
    if (!(info->flags & PG_LIST)) info++;
  }
  return PG_OK;
}

int pg_record(const pg_call *c, pg_tensor *const *original_in, pg_kernel forward, pg_kernel backward, int n_params) {
  /* the node and its three arrays in one piece: edges, saved inputs, parameters */
  size_t inputs = (size_t)c->n_in, params = sizeof(pg_value) * (size_t)n_params;
  pg_node *n = calloc(1, sizeof *n + inputs * (sizeof *n->edges + sizeof *n->in) + params);
  if (!n) return pg_fail(PG_ERR_MEMORY, "out of memory");
  *n = (pg_node){.refs = 1,
                 .order = ++calls,
                 .op = c->op,
                 .forward = forward,
                 .backward = backward,
                 .checkpoint = checkpoint,
                 .seed = c->seed,
                 .offset = c->offset,
                 .bf16 = c->bf16,
                 .n_in = c->n_in,
                 .n_out = c->n_out};
  n->edges = (pg_edge *)(n + 1), n->in = (pg_saved *)(n->edges + inputs), n->params = (pg_value *)(n->in + inputs);
  if (n_params) memcpy(n->params, c->p, params);
  int status = record_inputs(n, c, original_in);
  for (int32_t i = 0; i < c->n_out && !status; i++) {
    bool needed = (c->op->needs >> 16) & (1u << i);
    bool again = needed && (n->checkpoint || (n->repeats && c->op->again & PG_NEED_OUT(i)));
    status = save(&n->out[i], c->out[i], needed && !again);
    n->out[i].again = again;
    if (again) n->awaited++;
  }
  if (status) return pg_node_release(n), status;
  for (int32_t i = 0; i < c->n_out; i++) {
    if (!c->out[i] || !pg_is_float(c->out[i]->dtype)) continue;
    c->out[i]->node = n, c->out[i]->node_output = i, c->out[i]->requires_grad = true;
    n->refs++;
  }
  pg_node_release(n);
  return PG_OK;
}

/* ---- computing again --------------------------------------------------------------------------------------------- */

static pg_call call_of(const pg_node *n) { /* as it was made, without its tensors */
  return (pg_call){.op = n->op,
                   .n_in = n->n_in,
                   .n_out = n->n_out,
                   .p = n->params,
                   .seed = n->seed,
                   .offset = n->offset,
                   .bf16 = n->bf16};
}

/* Puts what input i held at the call into *out, contiguous where the kernel wants it so, with a reference. */
static int value_of(const pg_node *n, int32_t i, bool strided, pg_tensor **out) {
  if (!n->in[i].again) return *out = pg_retain(n->in[i].t), PG_OK;
  pg_tensor *made = n->edges[i].node->made[n->edges[i].output];
  if (strided || n->op->flags & PG_F_VIEW) return *out = pg_retain(made), PG_OK;
  return pg_contiguous(made, out);
}

static int repeat(pg_node *n) {
  pg_call c = call_of(n);
  const pg_arg_info *info = n->op->info.inputs;
  int status = PG_OK;
  if (!(c.in = calloc((size_t)n->n_in, sizeof *c.in))) return pg_fail(PG_ERR_MEMORY, "out of memory");
  for (int32_t i = 0; i < n->n_in && !status; i++) {
    status = value_of(n, i, info->flags & PG_STRIDED, &c.in[i]);
    if (!(info->flags & PG_LIST)) info++;
  }
  if (!status && n->op->shape) status = n->op->shape(&c);
  if (!status) status = n->op->flags & PG_F_VIEW ? n->op->view(&c) : pg_unless_stopped(n->forward(&c));
  for (int32_t i = 0; i < n->n_in; i++) pg_release(c.in[i]);
  for (int32_t i = 0; i < n->n_out; i++) n->made[i] = c.out[i];
  if (status) drop_made(n);
  return free(c.in), status;
}

typedef struct node_list {
  pg_node **nodes;
  int64_t count, room;
} node_list;

static int list_add(node_list *list, pg_node *n) {
  if (list->count == list->room) {
    int64_t room = PG_MAX(64, 2 * list->room);
    pg_node **more = realloc(list->nodes, sizeof *more * (size_t)room);
    if (!more) return pg_fail(PG_ERR_MEMORY, "out of memory");
    list->nodes = more, list->room = room;
  }
  return list->nodes[list->count++] = n, PG_OK;
}

static int newest_first(const void *a, const void *b) {
  uint64_t x = (*(pg_node *const *)a)->order, y = (*(pg_node *const *)b)->order;
  return x < y ? 1 : x > y ? -1 : 0;
}

/* Adds the calls whose outputs stand for inputs of n: those that its backward reads, or all, for running it again. */
static int want_inputs(node_list *list, const pg_node *n, bool all, uint64_t turn) {
  for (int32_t i = 0; i < n->n_in; i++) {
    pg_node *from = n->edges[i].node;
    if (!n->in[i].again || !(all || reads_input(n->op, i)) || from->made[0] || from->wanted == turn) continue;
    from->wanted = turn;
    PG_TRY(list_add(list, from));
  }
  return PG_OK;
}

/* Runs again whatever n's backward needs and nobody kept, the oldest call first. */
static int make_again(pg_node *n) {
  node_list list = {0};
  uint64_t turn = ++turns;
  int status = want_inputs(&list, n, false, turn);
  for (int32_t i = 0; i < n->n_out && !status; i++)
    if (n->out[i].again && !n->made[0] && n->wanted != turn) n->wanted = turn, status = list_add(&list, n);
  for (int64_t at = 0; at < list.count && !status; at++) status = want_inputs(&list, list.nodes[at], true, turn);
  if (list.count > 1) qsort(list.nodes, (size_t)list.count, sizeof *list.nodes, newest_first);
  for (int64_t at = list.count - 1; at >= 0 && !status; at--) status = repeat(list.nodes[at]);
  return free(list.nodes), status;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* Every node that t depends on, newest first, each with a reference held. */
static int collect(pg_node *root, node_list *list) {
  uint64_t pass = ++passes;
  int status = list_add(list, root);
  if (status) return status;
  root->mark = pass, root->refs++;
  for (int64_t at = 0; at < list->count; at++)
    for (int32_t i = 0; i < list->nodes[at]->n_in; i++) {
      pg_node *from = list->nodes[at]->edges[i].node;
      if (!from || from->mark == pass) continue;
      if ((status = list_add(list, from))) {
        for (int64_t k = 0; k < list->count; k++) pg_node_release(list->nodes[k]);
        return free(list->nodes), status;
      }
      from->mark = pass, from->refs++;
    }
  qsort(list->nodes, (size_t)list->count, sizeof *list->nodes, newest_first);
  return PG_OK;
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

/* A sum's gradient is that of several calls, and the caller's own may be one: nothing is added to those. */
static bool is_shared(const pg_tensor *grad) { return atomic_load(&grad->storage->refs) > 1; }

/* Takes the gradient over: the first one that arrives is kept as it is, and then what came is added up. */
static int gather(pg_tensor **sum, pg_tensor *grad) {
  if (!*sum) return *sum = grad, PG_OK;
  pg_tensor *first = *sum;
  int status = PG_OK;
  if (!is_shared(first) || is_shared(grad)) first = grad, grad = *sum; /* into the one that nobody else reads */
  if (is_shared(grad)) {
    pg_tensor *own;
    if ((status = pg_new_like(grad, &own))) return pg_release(first), *sum = grad, status;
    status = pg_copy(own, grad);
    pg_release(grad), grad = own;
  }
  if (!status) status = pg_add_into(grad, first);
  pg_release(first);
  return *sum = grad, status;
}

static int leaf_gather(pg_tensor *leaf, pg_tensor *grad) {
  if (leaf->grad && !pg_is_contiguous(leaf->grad)) {
    pg_tensor *flat;
    int status = pg_contiguous(leaf->grad, &flat);
    if (status) return pg_release(grad), status;
    pg_release(leaf->grad), leaf->grad = flat;
  }
  if (!leaf->grad) return leaf->grad = grad, PG_OK;
  int status = pg_add_into(leaf->grad, grad); /* also where the caller holds it: that is its .grad */
  return pg_release(grad), status;
}

/* A part's gradient is added where it belongs in the whole's, when that is there already and the part lies in one
 * piece: the parts of a packed projection would each make a whole of zeros otherwise. */
static int add_part(pg_node *n, bool *added) {
  pg_edge *e = &n->edges[0];
  pg_tensor *whole = e->node ? e->node->grad[e->output] : NULL;
  *added = false;
  if (!(n->op->flags & PG_F_VIEW) || !whole || !n->grad[0] || !pg_is_contiguous(whole)) return PG_OK;
  if (pg_numel(n->grad[0]) >= pg_numel(whole) || is_shared(whole)) return PG_OK;
  pg_call c = {.op = n->op, .n_in = 1, .in = &whole, .n_out = 1, .p = n->params};
  PG_TRY(n->op->view(&c));
  int status = PG_OK;
  if (pg_is_contiguous(c.out[0])) *added = true, status = pg_add_into(c.out[0], n->grad[0]);
  return pg_release(c.out[0]), status;
}

static bool is_handed_on(const pg_node *n, int32_t i) {
  return n->op->flags & PG_F_SUM && n->grad[0] && n->edges[i].node && pg_same_shape(n->in[i].t, n->grad[0]);
}

/* Hands a sum's gradient on to the calls whose results have its shape, as it is. What is left to do: *rest. */
static int pass_on(pg_node *n, bool *rest) {
  *rest = !(n->op->flags & PG_F_SUM) || !n->grad[0];
  for (int32_t i = 0; i < n->n_in; i++) {
    pg_edge *e = &n->edges[i];
    if (!is_handed_on(n, i)) {
      *rest |= e->node || e->leaf;
      continue;
    }
    pg_tensor *same;
    PG_TRY(pg_alias(n->grad[0], &same));
    PG_TRY(gather(&e->node->grad[e->output], same));
  }
  return PG_OK;
}

static int run_node(pg_node *n) {
  bool added, rest;
  PG_TRY(add_part(n, &added));
  if (added) return PG_OK;
  PG_TRY(pass_on(n, &rest));
  if (!rest) return PG_OK;
  pg_call c = call_of(n);
  pg_tensor *few[2 * 8] = {0}, **room = few;
  if (n->n_in > 8 && !(room = calloc(2 * (size_t)n->n_in, sizeof *room)))
    return pg_fail(PG_ERR_MEMORY, "out of memory");
  c.in = room, c.grad_in = room + n->n_in;
  const pg_arg_info *info = n->op->info.inputs;
  int status = make_again(n);
  for (int32_t i = 0; i < n->n_out && !status; i++) {
    c.out[i] = n->out[i].again ? n->made[i] : n->out[i].t;
    /* Nobody can use a hidden one: it has no gradient, and none is read. */
    bool hidden = n->op->info.outputs[i].flags & PG_HIDDEN;
    if (!n->grad[i] && !hidden && pg_is_float(c.out[i]->dtype)) { /* nothing flowed back into this output */
      if (!(status = pg_new_like(c.out[i], &n->grad[i]))) status = pg_fill(n->grad[i], 0);
    }
    c.grad_out[i] = n->grad[i];
  }
  for (int32_t i = 0; i < n->n_in && !status; i++) {
    if (reads_input(n->op, i))
      status = value_of(n, i, info->flags & PG_STRIDED, &c.in[i]);
    else
      c.in[i] = pg_retain(n->in[i].t);
    bool flows = (n->edges[i].node || n->edges[i].leaf) && !is_handed_on(n, i);
    if (!status && flows) status = pg_new_like(c.in[i], &c.grad_in[i]);
    if (!(info->flags & PG_LIST)) info++;
  }
  if (!status) status = n->backward(&c);
  for (int32_t i = 0; i < n->n_in; i++) {
    pg_edge *e = &n->edges[i];
    pg_release(c.in[i]);
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
  node_list list = {0};
  if (t->node) PG_TRY(collect(t->node, &list));
  pg_node **nodes = list.nodes;
  int64_t count = list.count;
  int status = check_leaf(t);
  for (int64_t i = 0; i < count && !status; i++) status = check_node(nodes[i]);
  pg_tensor *seed = NULL;
  bool read_once = t->node && !(t->node->op->flags & PG_F_SUM); /* a sum hands it on, and it may be a leaf's .grad */
  if (!status && grad && read_once && pg_is_contiguous(grad)) { /* kernels only read it, and nothing is added to it */
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
    drop_made(n); /* whoever read it is newer, and done */
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
