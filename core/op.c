/* op.c - the op table and the one path that every call takes: validate -> shape -> dispatch -> record. */
#include "tape.h"
#include <stdarg.h>

#define OP(name) extern const pg_op pg_op_##name;
#include "ops.def"
#undef OP

static const pg_op *const table[] = {
#define OP(name) &pg_op_##name,
#include "ops.def"
#undef OP
};
enum { OPS = sizeof table / sizeof *table };

static struct {
  pg_kernel forward[OPS][PG_DTYPES], backward[OPS][PG_DTYPES];
} plugged[PG_DEVICES]; /* what a device plug-in registered; the CPU's are in the descriptors */

void pg_op_plug(int32_t device, int32_t op, const pg_kernel *forward, const pg_kernel *backward) {
  memcpy(plugged[device].forward[op], forward, sizeof plugged[device].forward[op]);
  memcpy(plugged[device].backward[op], backward, sizeof plugged[device].backward[op]);
}

int32_t pg_op_count(void) { return OPS; }

const pg_op_info *pg_op_get(int32_t op) { return op >= 0 && op < OPS ? &table[op]->info : NULL; }

static pg_kernel kernel_of(int32_t op, int32_t device, int32_t dtype, bool backward) {
  if (device == PG_CPU) return backward ? table[op]->backward[dtype] : table[op]->forward[dtype];
  return backward ? plugged[device].backward[op][dtype] : plugged[device].forward[op][dtype];
}

int32_t pg_op_has_kernel(int32_t op, int32_t device, int32_t dtype, int32_t backward) {
  if (op < 0 || op >= OPS || device < 0 || device >= PG_DEVICES || dtype < 0 || dtype >= PG_DTYPES) return 0;
  if (table[op]->flags & PG_F_VIEW && !backward) return 1;
  return kernel_of(op, device, dtype, backward) != NULL;
}

/* ---- messages --------------------------------------------------------------------------------------------------- */

/* "op: <text>: x (2, 3), y (4, 5)": every input by name and shape. */
static int fail_with_shapes(int code, const pg_call *c, const char *format, va_list args) {
  char text[768], shape[128];
  int room = (int)sizeof text, used = vsnprintf(text, sizeof text, format, args);
  const pg_arg_info *info = c->op->info.inputs;
  for (int32_t i = 0; i < c->n_in && used < room; i++) {
    if (c->in[i])
      used += snprintf(text + used, (size_t)(room - used), "%s %s %s", i ? "," : ":", info->name,
                       pg_shape_text(c->in[i], shape));
    if (!(info->flags & PG_LIST))
      info++;
    else if (i >= 5 && i < c->n_in - 1) {
      if (used < room) snprintf(text + used, (size_t)(room - used), " and %d more", c->n_in - 1 - i);
      break;
    }
  }
  return pg_fail(code, "%s: %s", c->op->info.name, text);
}

int pg_op_fail(const pg_call *c, const char *format, ...) {
  va_list args;
  va_start(args, format);
  int code = fail_with_shapes(PG_ERR_SHAPE, c, format, args);
  va_end(args);
  return code;
}

static int argument_fail(const pg_call *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int argument_fail(const pg_call *c, const char *format, ...) {
  va_list args;
  va_start(args, format);
  int code = fail_with_shapes(PG_ERR_ARGUMENT, c, format, args);
  va_end(args);
  return code;
}

char *pg_place_text(const pg_tensor *t, int64_t i, char buffer[128]) {
  int64_t place[PG_MAX_DIMS];
  int used = snprintf(buffer, 128, t->ndim ? "[" : "");
  for (int32_t d = t->ndim - 1; d >= 0; i /= t->shape[d], d--) place[d] = i % t->shape[d];
  for (int32_t d = 0; d < t->ndim && used < 128; d++)
    used += snprintf(buffer + used, (size_t)(128 - used), d ? ", %lld" : "%lld", (long long)pg_shown(place[d]));
  if (t->ndim && used < 128) snprintf(buffer + used, (size_t)(128 - used), "]");
  return buffer;
}

/* ---- for shape rules -------------------------------------------------------------------------------------------- */

int pg_out(pg_call *c, int i, int32_t dtype, int32_t ndim, const int64_t *shape) {
  int32_t device = PG_CPU;
  for (int32_t k = 0; k < c->n_in; k++)
    if (c->in[k]) {
      device = c->in[k]->device;
      break;
    }
  return pg_new(dtype, device, ndim, shape, &c->out[i]);
}

int pg_out_like(pg_call *c, int i, const pg_tensor *t) { return pg_out(c, i, t->dtype, t->ndim, t->shape); }

int pg_dim(const pg_call *c, const pg_tensor *t, int64_t dim, int32_t *out) {
  int32_t n = PG_MAX(t->ndim, 1);
  if (dim < -n || dim >= n) return pg_op_fail(c, "dimension %lld does not exist", (long long)pg_position(dim));
  *out = (int32_t)(dim < 0 ? dim + n : dim);
  return PG_OK;
}

int pg_check_indices(const pg_call *c, const pg_tensor *index, int64_t n, const char *what) {
  if (index->device != PG_CPU) return PG_OK; /* a device checks in its kernel */
  char place[128];
  pg_tensor *flat;
  PG_TRY(pg_contiguous((pg_tensor *)index, &flat));
  const int32_t *at = PG_AT(int32_t, flat);
  int64_t count = pg_numel(flat), bad = -1;
  for (int64_t i = 0; i < count && bad < 0; i++)
    if (at[i] < 0 || at[i] >= n) bad = i;
  int32_t value = bad < 0 ? 0 : at[bad];
  pg_release(flat);
  if (bad < 0) return PG_OK;
  return argument_fail(c, "%s%s = %lld is outside %lld..%lld", what, pg_place_text(index, bad, place),
                       (long long)pg_shown(value), (long long)pg_shown(0), (long long)pg_shown(n - 1));
}

int pg_check_value(const pg_call *c, const pg_tensor *t, double value) {
  double lo = t->dtype == PG_UINT8 ? 0 : INT32_MIN, hi = t->dtype == PG_UINT8 ? UINT8_MAX : INT32_MAX;
  if (pg_is_float(t->dtype) || (value == floor(value) && value >= lo && value <= hi)) return PG_OK;
  return pg_fail(PG_ERR_ARGUMENT, "%s: value = %.17g is no %s; convert %s to a floating dtype first", c->op->info.name,
                 value, pg_dtype_name(t->dtype), c->op->info.inputs[0].name);
}

/* ---- validation ------------------------------------------------------------------------------------------------- */

static int check_inputs(pg_call *c, int32_t *dtype, int32_t *device) {
  const char *name = c->op->info.name;
  const pg_arg_info *info = c->op->info.inputs;
  pg_tensor *first = NULL, *first_float = NULL;
  const char *first_name = "", *float_name = "";
  int32_t declared = 0, is_list = 0;
  for (const pg_arg_info *a = info; a->name; a++) declared++, is_list = a->flags & PG_LIST;
  if (c->n_in > declared && !is_list)
    return pg_fail(PG_ERR_ARGUMENT, "%s: takes %d tensors, got %d", name, declared, c->n_in);
  for (int32_t i = 0; i < PG_MAX(c->n_in, declared); i++) {
    const pg_arg_info *a = &info[PG_MIN(i, declared - 1)];
    pg_tensor *t = i < c->n_in ? c->in[i] : NULL;
    if (!t) {
      if (a->flags & PG_OPTIONAL) continue;
      return pg_fail(PG_ERR_ARGUMENT, "%s: %s is missing: %s", name, a->name, a->help);
    }
    PG_TRY(pg_check_live(t, name));
    if (a->flags & PG_INDEX && t->dtype != PG_INT32)
      return pg_fail(PG_ERR_DTYPE, "%s: %s must be int32, it is %s", name, a->name, pg_dtype_name(t->dtype));
    if (!first) first = t, first_name = a->name;
    if (t->device != first->device)
      return pg_fail(PG_ERR_DEVICE, "%s: devices differ: %s is on %s, %s on %s", name, first_name,
                     pg_device_name(first->device), a->name, pg_device_name(t->device));
    if (!pg_is_float(t->dtype)) continue;
    if (!first_float) first_float = t, float_name = a->name;
    if (t->dtype != first_float->dtype && !(c->op->flags & PG_F_MIXED))
      return pg_fail(PG_ERR_DTYPE, "%s: dtypes differ: %s is %s, %s is %s", name, float_name,
                     pg_dtype_name(first_float->dtype), a->name, pg_dtype_name(t->dtype));
  }
  if (!first) return pg_fail(PG_ERR_ARGUMENT, "%s: needs at least one tensor", name);
  return *dtype = first->dtype, *device = first->device, PG_OK;
}

/* Fills defaults in and checks ranges; the given values are the caller's, so the checked copy is ours. */
static int check_params(const pg_op *op, const pg_value *given, pg_value *checked, int *count) {
  *count = 0;
  for (const pg_param_info *p = op->info.params; p && p->name; p++) {
    pg_value v = given ? given[*count] : (pg_value){0};
    bool is_list = p->kind == PG_P_DIMS || p->kind == PG_P_INTS;
    int32_t most = p->kind == PG_P_INTS ? PG_MAX_VALUES : PG_MAX_DIMS;
    if (v.len < 0 || v.len > most)
      return pg_fail(PG_ERR_ARGUMENT, "%s: %s has %d values, at most %d", op->info.name, p->name, v.len, most);
    if (v.len == 0 && !is_list) {
      if (isnan(p->def)) return pg_fail(PG_ERR_ARGUMENT, "%s: %s is missing: %s", op->info.name, p->name, p->help);
      v.num = p->def;
      v.ints[0] = isfinite(p->def) ? (int64_t)p->def : 0;
      v.len = 1;
    }
    double x = p->kind == PG_P_NUMBER ? v.num : (double)v.ints[0];
    if (!is_list && p->lo < p->hi && !(x >= p->lo && x <= p->hi))
      return pg_fail(PG_ERR_ARGUMENT, "%s: %s = %g is outside %g..%g", op->info.name, p->name, x, p->lo, p->hi);
    checked[(*count)++] = v;
  }
  return PG_OK;
}

/* ---- the call --------------------------------------------------------------------------------------------------- */

static int flatten_inputs(pg_call *c, pg_tensor *const *in) {
  const pg_arg_info *info = c->op->info.inputs;
  for (int32_t i = 0; i < c->n_in; i++) {
    bool strided = info->flags & PG_STRIDED || !in[i] || pg_is_contiguous(in[i]) || c->op->flags & PG_F_VIEW;
    if (!strided && info->flags & PG_WRITTEN)
      return pg_fail(PG_ERR_STATE, "%s: %s is changed in place and must be contiguous", c->op->info.name, info->name);
    if (strided)
      c->in[i] = pg_retain(in[i]);
    else
      PG_TRY(pg_contiguous(in[i], &c->in[i]));
    if (!(info->flags & PG_LIST)) info++;
  }
  return PG_OK;
}

/* An op that writes to its inputs has no gradient, so nothing that records may pass through it. */
static int before_writing(const pg_call *c, bool *writes) {
  const pg_arg_info *info = c->op->info.inputs;
  for (int32_t i = 0; i < c->n_in; i++) {
    if (c->in[i] && info->flags & PG_WRITTEN) {
      *writes = true;
      if (pg_recording() && c->in[i]->requires_grad)
        return pg_fail(PG_ERR_STATE, "%s: %s requires grad and is changed in place; call it inside no_grad",
                       c->op->info.name, info->name);
    }
    if (!(info->flags & PG_LIST)) info++;
  }
  return PG_OK;
}

static void after_writing(const pg_call *c) {
  const pg_arg_info *info = c->op->info.inputs;
  for (int32_t i = 0; i < c->n_in; i++) {
    if (c->in[i] && info->flags & PG_WRITTEN) c->in[i]->storage->version++;
    if (!(info->flags & PG_LIST)) info++;
  }
}

static bool wants_gradient(const pg_call *c, pg_tensor *const *in) {
  const pg_arg_info *info = c->op->info.inputs;
  for (int32_t i = 0; i < c->n_in; i++) {
    if (in[i] && in[i]->requires_grad && pg_is_float(in[i]->dtype) && !(info->flags & (PG_NO_GRAD | PG_INDEX)))
      return true;
    if (!(info->flags & PG_LIST)) info++;
  }
  return false;
}

static int run_forward(pg_call *c, int32_t op, int32_t device, int32_t dtype, pg_kernel kernel) {
  if (c->op->shape) PG_TRY(c->op->shape(c));
  if (c->op->flags & PG_F_VIEW) return c->op->view(c);
  if (kernel) {
    if (c->op->flags & PG_F_RANDOM) pg_rng_reserve((uint64_t)pg_numel(c->in[0]), &c->seed, &c->offset);
    return pg_unless_stopped(kernel(c));
  }
  char list[64] = "";
  for (int32_t i = 0; i < PG_DTYPES; i++)
    if (kernel_of(op, device, i, false)) strcat(strcat(list, *list ? ", " : ""), pg_dtype_name(i));
  return pg_fail(PG_ERR_DTYPE, "%s: %s is not supported on %s; it takes %s", c->op->info.name, pg_dtype_name(dtype),
                 pg_device_name(device), *list ? list : "nothing there");
}

/* PERIGEE_DEBUG=1: waits for the device after every op and looks at what it gave, so that an error is named where it
 * arises and not where a value is first read. */
static int check_outputs(const pg_call *c, int32_t device) {
  static int on = -1;
  if (on < 0) {
    const char *text = getenv("PERIGEE_DEBUG");
    on = text && !strcmp(text, "1");
  }
  if (!on) return PG_OK;
  PG_TRY(pg_synchronize(device));
  int64_t bad = 0, before = 0, some;
  for (int32_t i = 0; i < c->n_in && !before; i++) {
    if (!c->in[i]) continue;
    PG_TRY(pg_count_nonfinite(c->in[i], &some));
    before += some;
  }
  for (int32_t i = 0; i < c->n_out && !bad; i++) {
    if (c->op->info.outputs[i].flags & PG_HIDDEN) continue;
    PG_TRY(pg_count_nonfinite(c->out[i], &bad));
  }
  if (!bad || before) return PG_OK;
  return argument_fail(c, "%lld values are not finite, though all inputs are (PERIGEE_DEBUG)", (long long)bad);
}

static bool autocast = false;

int32_t pg_autocast(int32_t on) {
  bool before = autocast;
  if (on >= 0) autocast = on != 0;
  return before;
}

int pg_apply(int32_t op, pg_tensor *const *in, int32_t n_in, const pg_value *params, pg_tensor **out) {
  if (op < 0 || op >= OPS) return pg_fail(PG_ERR_ARGUMENT, "there is no op number %d", op);
  pg_call c = {.op = table[op], .n_in = n_in, .bf16 = autocast};
  pg_value checked[PG_MAX_PARAMS];
  int32_t dtype = 0, device = 0;
  int n_params = 0;
  bool writes = false;
  pg_tensor *few[8] = {0}, *padded[8] = {0};
  int32_t declared = 0;
  while (c.op->info.inputs[declared].name) declared++;
  if (n_in < declared) { /* absent ones at the end are NULL like the others */
    memcpy(padded, in, sizeof *in * (size_t)n_in);
    in = padded, c.n_in = n_in = declared;
  }
  c.in = (pg_tensor **)in;
  PG_TRY(check_inputs(&c, &dtype, &device));
  PG_TRY(check_params(c.op, params, checked, &n_params));
  PG_TRY(before_writing(&c, &writes));
  while (c.op->info.outputs[c.n_out].name) c.n_out++;
  c.p = checked;
  c.in = n_in > 8 ? calloc((size_t)n_in, sizeof *c.in) : few;
  if (!c.in) return pg_fail(PG_ERR_MEMORY, "out of memory");
  int status = flatten_inputs(&c, in);
  pg_kernel forward = kernel_of(op, device, dtype, false);
  if (!status) status = run_forward(&c, op, device, dtype, forward);
  if (!status && writes) after_writing(&c);
  if (!status) status = check_outputs(&c, device);
  if (!status && pg_recording() && !c.op->info.no_backward && wants_gradient(&c, in)) {
    pg_kernel backward = kernel_of(op, device, dtype, true);
    status = backward ? pg_record(&c, in, forward, backward, n_params)
                      : pg_fail(PG_ERR_DTYPE, "%s: no gradient for %s on %s", c.op->info.name, pg_dtype_name(dtype),
                                pg_device_name(device));
  }
  for (int32_t i = 0; i < n_in; i++) pg_release(c.in[i]);
  if (c.in != few) free(c.in);
  for (int32_t i = 0, at = 0; i < c.n_out; i++) {
    if (!status && !(c.op->info.outputs[i].flags & PG_HIDDEN))
      out[at++] = c.out[i];
    else
      pg_release(c.out[i]);
  }
  return status;
}
