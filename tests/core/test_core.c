/* test_core.c - the core's own parts that Lua does not reach, built with AddressSanitizer and UndefinedBehaviorSanitizer.
 * Prints each failure and ends with "N passed, N failed". */
#include "comm.h"
#include "io/io.h"
#include <png.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

static int passed, failed;

static void check(bool ok, const char *what) {
  if (ok) passed++;
  else failed++, printf("FAILED: %s\n", what);
}

/* ---- generator: the Random123 distribution's known answers for philox4x32-10 ---- */

static void test_philox(void) {
  static const uint32_t vectors[3][10] = {
      {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
      {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
      {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}};
  for (int i = 0; i < 3; i++) {
    uint32_t out[4];
    pg_philox(vectors[i], vectors[i] + 4, out);
    check(!memcmp(out, vectors[i] + 6, sizeof out), "philox known answers");
  }
}

static pg_tensor *make(int32_t dtype, int64_t rows, int64_t cols) {
  pg_tensor *t = NULL;
  int64_t shape[2] = {rows, cols};
  check(pg_new(dtype, PG_CPU, 2, shape, &t) == PG_OK, "new tensor");
  return t;
}

/* ---- memory: alignment, reuse, counts ---- */

static void test_memory(void) {
  pg_memory before, after;
  pg_memory_stats(PG_CPU, &before);
  for (int64_t n = 1; n < 5000; n = n * 3 / 2 + 1) {
    pg_tensor *t = make(PG_UINT8, n, 1);
    check((uintptr_t)pg_data(t) % 64 == 0, "64-byte alignment");
    memset(pg_data(t), 1, (size_t)n);
    void *first = pg_data(t);
    pg_release(t);
    t = make(PG_UINT8, n, 1);
    check(pg_data(t) == first, "a freed block is used again");
    pg_release(t);
  }
  pg_memory_stats(PG_CPU, &after);
  check(after.live == before.live && after.tensors == before.tensors, "live bytes return to where they were");
  pg_memory_trim(PG_CPU);
  pg_memory_stats(PG_CPU, &after);
  check(after.cached == 0, "trim empties the cache");
  int64_t huge[2] = {(int64_t)1 << 40, (int64_t)1 << 20};
  pg_tensor *t = NULL;
  check(pg_new(PG_FLOAT32, PG_CPU, 2, huge, &t) == PG_ERR_MEMORY, "an absurd size is an error");
}

/* The cache gives back what was unused longest, not what is in use. */
static void test_cache_order(void) {
  pg_memory_trim(PG_CPU);
  pg_memory_reset_peak(PG_CPU);
  pg_tensor *small[24], *large;
  for (int i = 0; i < 24; i++) small[i] = make(PG_UINT8, 1 << 20, 1);
  for (int i = 0; i < 24; i++) pg_release(small[i]);
  pg_release(make(PG_UINT8, 20 << 20, 1));
  pg_memory stats;
  pg_memory_stats(PG_CPU, &stats);
  check(stats.cached + stats.live <= stats.peak + stats.peak / 4 && stats.cached >= 20 << 20,
        "live and cached bytes stay within 5/4 of the peak, and the newest is kept");
  large = make(PG_UINT8, 20 << 20, 1);
  int64_t before = stats.cached;
  pg_memory_stats(PG_CPU, &stats);
  check(stats.cached <= before - (20 << 20), "the large block came from the cache");
  pg_release(large);
  pg_memory_trim(PG_CPU);
}

/* ---- products: a size that BLAS's int cannot hold is an error, and nothing is read ---- */

static void test_blas_sizes(void) {
  int64_t over = (int64_t)INT32_MAX + 1;
  float one = 1, c = 0;
  check(pg_gemm_f32(0, 0, over, 1, 1, 1, &one, 1, &one, 1, 0, &c, 1) == PG_ERR_SHAPE, "gemm: too many rows");
  check(pg_gemm_f32(0, 0, 1, 1, 1, 1, &one, over, &one, 1, 0, &c, 1) == PG_ERR_SHAPE, "gemm: too long a row");
  check(strstr(pg_last_error(), "2147483648") != NULL, "gemm: the message says the size");
  check(pg_syrk_f32(1, over, &one, over, &c, 1) == PG_ERR_SHAPE, "syrk: too many columns");
  check(pg_gemm_f32(0, 0, 1, 1, 1, 1, &one, 1, &one, 1, 0, &c, 1) == PG_OK && c == 1, "gemm: one by one");
}

/* ---- products in bfloat16: the operands end where a page begins that nobody may touch */

typedef struct fenced {
  float *at; /* count floats before the fence */
  char *pages;
  size_t bytes;
} fenced;

static fenced fence(int64_t count) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), used = ((size_t)count * sizeof(float) + page - 1) / page * page;
  char *pages = mmap(NULL, used + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED || mprotect(pages + used, page, PROT_NONE)) abort();
  return (fenced){(float *)(pages + used) - count, pages, used + page};
}

/* Small whole numbers: their products and sums are exact, whatever the order. */
static float small_number(int64_t i) { return (float)(i * 7919 % 17 - 8); }

static bool product_is_right(int ta, int tb, int64_t m, int64_t n, int64_t k, float beta) {
  fenced a = fence(m * k), b = fence(k * n), c = fence(m * n);
  for (int64_t i = 0; i < m * k; i++) a.at[i] = small_number(i);
  for (int64_t i = 0; i < k * n; i++) b.at[i] = small_number(3 * i + 1);
  for (int64_t i = 0; i < m * n; i++) c.at[i] = beta ? 1 : NAN; /* what is not asked for is not read */
  int64_t lda = ta ? m : k, ldb = tb ? k : n;
  bool right = pg_gemm_bf16(ta, tb, m, n, k, 0.5f, a.at, lda, b.at, ldb, beta, c.at, n) == PG_OK;
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      float sum = 0;
      for (int64_t p = 0; p < k; p++) sum += a.at[ta ? p * lda + i : i * lda + p] * b.at[tb ? j * ldb + p : p * ldb + j];
      right = right && c.at[i * n + j] == 0.5f * sum + beta;
    }
  munmap(a.pages, a.bytes), munmap(b.pages, b.bytes), munmap(c.pages, c.bytes);
  return right;
}

static void test_bf16_products(void) {
  static const int64_t sizes[] = {1, 2, 15, 16, 17, 31, 33, 48, 49, 97};
  enum { SIZES = sizeof sizes / sizeof *sizes };
  for (int32_t native = pg_bf16_native(-1); native >= 0; native--) {
    pg_bf16_native(native);
    int wrong = 0;
    for (int i = 0; i < SIZES * SIZES; i++)
      for (int form = 0; form < 4; form++) {
        int64_t m = sizes[i % SIZES], n = sizes[i / SIZES], k = sizes[(i + form) % SIZES];
        wrong += !product_is_right(form & 1, form >> 1, m, n, k, i % 2 ? 2.0f : 0.0f);
      }
    check(!wrong, native ? "products by AVX-512 BF16" : "products in bfloat16, emulated");
  }
  pg_bf16_native(1);
}

/* ---- layouts: copies through every pair of dtypes and through transposed views ---- */

static void test_copy(void) {
  for (int32_t from = 0; from < PG_DTYPES; from++)
    for (int32_t to = 0; to < PG_DTYPES; to++) {
      pg_tensor *a = make(from, 3, 5), *view = NULL, *b = NULL, *wide = NULL;
      int64_t shape[2] = {5, 3}, stride[2] = {1, 5};
      check(pg_fill(a, 7) == PG_OK, "fill");
      check(pg_view(a, 2, shape, stride, 0, &view) == PG_OK, "view");
      check(pg_convert(view, to, PG_CPU, &b) == PG_OK && pg_size(b, 0) == 5, "convert");
      check(pg_convert(b, PG_FLOAT64, PG_CPU, &wide) == PG_OK, "to float64");
      for (int i = 0; i < 15; i++) check(PG_AT(double, wide)[i] == 7, "value survives");
      pg_release(a), pg_release(view), pg_release(b), pg_release(wide);
    }
}

/* ---- tape: a chain far deeper than the C stack would allow for recursion ---- */

static int op_named(const char *name) {
  for (int32_t i = 0; i < pg_op_count(); i++)
    if (!strcmp(pg_op_get(i)->name, name)) return i;
  return -1;
}

static void test_deep_chain(void) {
  enum { DEPTH = 200000 };
  int add = op_named("add_scalar");
  pg_value one = {.num = 1, .len = 1};
  pg_tensor *x = make(PG_FLOAT32, 1, 1), *y = pg_retain(x);
  pg_fill(x, 0);
  pg_set_requires_grad(x, 1);
  for (int i = 0; i < DEPTH; i++) {
    pg_tensor *next = NULL;
    if (pg_apply(add, &y, 1, &one, &next)) break;
    pg_release(y), y = next;
  }
  check(PG_AT(float, y)[0] == DEPTH, "deep chain, forward");
  check(pg_backward(y, NULL, 0) == PG_OK && PG_AT(float, pg_grad(x))[0] == 1, "deep chain, backward");
  check(pg_backward(y, NULL, 0) == PG_ERR_STATE, "a second backward pass is refused");
  pg_release(y);
  y = pg_retain(x);
  for (int i = 0; i < DEPTH; i++) {
    pg_tensor *next = NULL;
    if (pg_apply(add, &y, 1, &one, &next)) break;
    pg_release(y), y = next;
  }
  pg_release(y), pg_release(x); /* never differentiated: dropping it must not recurse either */
}

/* ---- versions: an overwritten saved tensor is an error, and nothing was accumulated before it was found ---- */

static void test_versions(void) {
  pg_tensor *x = make(PG_FLOAT32, 2, 2), *y = NULL, *sum = NULL;
  pg_fill(x, 1);
  pg_set_requires_grad(x, 1);
  check(pg_apply(op_named("exp"), &x, 1, NULL, &y) == PG_OK, "exp");
  check(pg_apply(op_named("sum"), &y, 1, NULL, &sum) == PG_OK, "sum");
  pg_fill(y, 3);
  check(pg_backward(sum, NULL, 0) == PG_ERR_STATE, "in-place write is found");
  check(strstr(pg_last_error(), "changed in place") != NULL, "and named");
  check(pg_grad(x) == NULL, "no gradient was written");
  pg_release(x), pg_release(y), pg_release(sum);
}

/* ---- buckets: two processes, of which the other has zeros for gradients ---- */

static pg_tensor *weight[4];
static struct begun {
  int32_t slot, filled; /* how many of the weights had a gradient when it began */
  float *data;
  int64_t n;
} begun[8];
static int begun_count, ended_count;

static int fake_begin(int32_t slot, void *data, int64_t n, int32_t dtype, int32_t mean) {
  int32_t filled = 0;
  for (int i = 0; i < 4; i++) filled += pg_grad(weight[i]) != NULL;
  check(dtype == PG_FLOAT32 && mean, "a bucket asks for a mean");
  begun[begun_count++] = (struct begun){slot, filled, data, n};
  return PG_OK;
}

static int fake_end(int32_t slot) {
  struct begun *b = &begun[ended_count++];
  check(b->slot == slot, "what began first ends first");
  for (int64_t i = 0; i < b->n; i++) b->data[i] /= 2;
  return PG_OK;
}

static int fake_broadcast(void *data, int64_t bytes) { return PG_OK; }

/* sum(x w0 w1 w2 w0), shared in the order given; w3 is in no graph. @return the status of backward */
static int shared_pass(const int *order, int64_t most) {
  int32_t groups[4] = {0};
  pg_tensor *list[4], *x = make(PG_FLOAT32, 2, 2), *y = pg_retain(x);
  pg_fill(x, 1);
  for (int i = 0; i < 4; i++) {
    list[i] = weight[order[i]], pg_set_grad(list[i], NULL), pg_fill(list[i], i + 2);
    pg_set_requires_grad(list[i], 1);
  }
  check(pg_comm_share(list, groups, 4, most) == PG_OK, "share");
  begun_count = ended_count = 0;
  for (int i = 0; i < 4; i++) {
    pg_tensor *two[2] = {y, weight[i % 3]}, *next = NULL;
    check(pg_apply(op_named("mul"), two, 2, NULL, &next) == PG_OK, "mul");
    pg_release(y), y = next;
  }
  pg_tensor *sum = NULL;
  check(pg_apply(op_named("sum"), &y, 1, NULL, &sum) == PG_OK, "sum");
  int status = pg_backward(sum, NULL, 0);
  pg_release(sum), pg_release(y), pg_release(x);
  return status;
}

static void test_buckets(void) {
  static const pg_comm_vtable fake = {fake_begin, fake_end, NULL, NULL, NULL, fake_broadcast};
  for (int i = 0; i < 4; i++) weight[i] = make(PG_FLOAT32, 2, 2);
  pg_comm_use(&(pg_comm_world){.size = 2, .local_size = 2}, PG_CPU, &fake);
  check(shared_pass((int[]){0, 1, 2, 3}, 16) == PG_OK, "one leaf a bucket");
  check(begun_count == 3 && ended_count == 3, "a bucket that no edge leads to takes no part");
  /* backward reaches w0, w2, w1, w0: the second w0 completes its gradient */
  check(begun[0].slot == 2 && begun[0].filled == 2, "w2 is on its way while backward has yet to reach w1");
  check(begun[1].filled == 3 && begun[2].filled == 3, "w1, and at last w0");
  /* weights are 2, 3, 4: d/dw0 = 2 w0 w1 w2 = 48, halved; d/dw1 = w0 w0 w2 = 16, d/dw2 = w0 w0 w1 = 12 */
  check(PG_AT(float, pg_grad(weight[0]))[3] == 24, "the mean of a gradient of two edges");
  check(PG_AT(float, pg_grad(weight[1]))[0] == 8 && PG_AT(float, pg_grad(weight[2]))[0] == 6, "means");
  check(!pg_grad(weight[3]), "a leaf that is in no graph gets no gradient");
  check(shared_pass((int[]){2, 1, 3, 0}, 16) == PG_OK && begun_count == 3 && begun[0].filled == 3,
        "buckets begin in their order: w0's holds the others back");
  check(begun[0].slot == 1 && begun[1].slot == 3 && begun[2].slot == 4, "on every process the same");
  check(shared_pass((int[]){0, 1, 2, 3}, 1000) == PG_OK && begun_count == 1 && begun[0].n == 16, "all in one bucket");
  check(begun[0].data[0] == 0 && !pg_grad(weight[3]), "where the leaf in no graph counts as zero");
  pg_comm_use(&(pg_comm_world){.size = 1, .local_size = 1}, PG_CPU, NULL);
  check(shared_pass((int[]){0, 1, 2, 3}, 16) == PG_OK && begun_count == 0, "one process shares nothing");
  check(PG_AT(float, pg_grad(weight[0]))[0] == 48, "and has its own gradient");
  for (int i = 0; i < 4; i++) pg_release(weight[i]);
}

/* ---- computing again: nothing is used after it was let go of, whichever way a graph ends ---- */

static pg_tensor *call(const char *op, pg_tensor *a, pg_tensor *b) {
  pg_tensor *in[2] = {a, b}, *out = NULL;
  check(pg_apply(op_named(op), in, b ? 2 : 1, NULL, &out) == PG_OK, op);
  return out;
}

/* sum(linear(gelu(x), w)), with nothing but its result left to the caller. */
static pg_tensor *activated(pg_tensor *x, pg_tensor *w) {
  pg_tensor *a = call("gelu", x, NULL), *y = call("linear", a, w), *sum = call("sum", y, NULL);
  pg_free(a), pg_release(a), pg_release(y);
  return sum;
}

static void test_again(void) {
  pg_tensor *x = make(PG_FLOAT32, 256, 128), *w = make(PG_FLOAT32, 4, 128), *y[3];
  float slope[3];
  pg_fill(x, 1), pg_fill(w, 2);
  pg_set_requires_grad(x, 1), pg_set_requires_grad(w, 1);
  for (int way = 0; way < 3; way++) { /* a cheap call; a whole checkpoint; a checkpoint and a second pass */
    check(pg_checkpoint(-1) == 0 && pg_checkpoint(way > 0) == 0, "no checkpoint is open");
    pg_tensor *loss = activated(x, w), *dropped = activated(x, w);
    check(pg_checkpoint(1) == (way > 0) && pg_checkpoint(0) == 1, "one is");
    pg_release(dropped); /* never differentiated */
    if (way == 2) check(pg_backward(loss, NULL, 1) == PG_OK, "the first of two passes");
    pg_set_grad(x, NULL), pg_set_grad(w, NULL);
    check(pg_backward(loss, NULL, 0) == PG_OK, "backward that computes again");
    check(pg_backward(loss, NULL, 0) == PG_ERR_STATE, "and is refused a second time");
    y[way] = loss;
    slope[way] = PG_AT(float, pg_grad(w))[0];
  }
  check(fabsf(slope[0] - 256 * 0.841344746f) < 1e-3f, "the gradient of w is the sum of gelu(1)");
  check(slope[0] == slope[1] && slope[1] == slope[2], "the same bits every way");
  for (int way = 0; way < 3; way++) pg_release(y[way]);
  pg_release(x), pg_release(w);
}

static void test_errors(void) {
  pg_tensor *a = make(PG_FLOAT32, 2, 3), *b = make(PG_FLOAT32, 4, 5), *out = NULL, *two[2] = {a, b};
  check(pg_apply(op_named("matmul"), two, 2, NULL, &out) == PG_ERR_SHAPE, "shape error");
  check(strstr(pg_last_error(), "matmul") && strstr(pg_last_error(), "a (2, 3)") && strstr(pg_last_error(), "b (4, 5)"),
        "names the op, the arguments and both shapes");
  check(pg_apply(-1, two, 2, NULL, &out) == PG_ERR_ARGUMENT, "unknown op");
  pg_free(a);
  check(pg_apply(op_named("exp"), &a, 1, NULL, &out) == PG_ERR_STATE, "a freed tensor is an error");
  pg_release(a), pg_release(b);
}

static int64_t read_all(const char *path, uint8_t *bytes, size_t most) {
  FILE *f = fopen(path, "rb");
  size_t n = f ? fread(bytes, 1, most, f) : 0;
  if (f) fclose(f);
  return (int64_t)n;
}

static void write_all(const char *path, const uint8_t *bytes, int64_t n) {
  FILE *f = fopen(path, "wb");
  check(f && fwrite(bytes, 1, (size_t)n, f) == (size_t)n && !fclose(f), "write");
}

/* ---- loader: the same bits for any number of threads; freed, cleared and broken at any moment without a leak ---- */

static const pg_loader_options plain = {.size = 16,     .workers = 1,        .capacity = 3, .crop_min = 0.2f,
                                        .crop_max = 1,  .flip = 0.5f,        .pad = 2,      .jitter = {0.2f, 0.2f, 0.2f},
                                        .mean = {0.5f}, .std = {1, 1, 1}};

static pg_loader *start_loader(int32_t workers, pg_tensor *images, const char *const *files, int64_t n) {
  pg_loader_options o = plain;
  pg_loader *l = NULL;
  o.workers = workers;
  check(pg_loader_new(&o, images, files, n, &l) == PG_OK, "loader starts");
  return l;
}

static pg_tensor *numbered(int64_t n, int64_t count) { /* int32 (count): 0, 1, .. n - 1, 0, .. */
  pg_tensor *t = NULL;
  check(pg_new(PG_INT32, PG_CPU, 1, &count, &t) == PG_OK, "positions");
  for (int64_t i = 0; i < count; i++) PG_AT(int32_t, t)[i] = (int32_t)(i % n);
  return t;
}

static void test_loader(void) {
  enum { IMAGES = 5, BATCH = 37 };
  int64_t shape[4] = {IMAGES, 23, 31, 3};
  pg_tensor *images = NULL, *batch = NULL, *first[3] = {0}, *positions = numbered(IMAGES, BATCH);
  check(pg_new(PG_UINT8, PG_CPU, 4, shape, &images) == PG_OK, "images");
  for (int64_t i = 0; i < pg_numel(images); i++) PG_AT(uint8_t, images)[i] = (uint8_t)pg_rng_bits(1, (uint64_t)i);
  for (int32_t workers = 1; workers <= 7; workers += 3) {
    pg_loader *l = start_loader(workers, images, NULL, IMAGES);
    check(pg_loader_next(l, 0, &batch) == PG_ERR_STATE, "nothing to take is an error");
    for (int b = 0; b < 3; b++) check(pg_loader_push(l, positions, 11, (uint64_t)b * BATCH) == PG_OK, "push");
    check(pg_loader_push(l, positions, 11, 0) == PG_ERR_STATE, "a full ring is an error");
    for (int b = 0; b < 3; b++) {
      check(pg_loader_next(l, 60, &batch) == PG_OK && batch && pg_size(batch, 0) == BATCH, "next");
      if (workers == 1)
        first[b] = batch;
      else {
        check(!memcmp(pg_data(first[b]), pg_data(batch), sizeof(float) * (size_t)pg_numel(batch)), "workers' number");
        pg_release(batch);
      }
    }
    for (int b = 0; b < 3; b++) check(pg_loader_push(l, positions, 12, 0) == PG_OK, "push again");
    if (workers > 1) pg_loader_clear(l);
    if (workers > 1) check(pg_loader_push(l, positions, 12, 0) == PG_OK, "push after clear");
    pg_loader_free(l); /* with batches under way */
  }
  for (int b = 0; b < 3; b++) pg_release(first[b]);
  PG_AT(int32_t, positions)[3] = IMAGES;
  pg_loader *l = start_loader(2, images, NULL, IMAGES);
  check(pg_loader_push(l, positions, 0, 0) == PG_ERR_ARGUMENT, "a position out of range");
  pg_loader_free(l);
  pg_loader_options o = plain;
  o.std[1] = 0;
  check(pg_loader_new(&o, images, NULL, IMAGES, &l) == PG_ERR_ARGUMENT, "std 0");
  check(pg_loader_new(&plain, positions, NULL, IMAGES, &l) == PG_ERR_SHAPE, "images of another shape");
  check(pg_loader_new(&plain, NULL, NULL, 0, &l) == PG_ERR_ARGUMENT, "no images");
  pg_release(images), pg_release(positions);
}

static void test_loader_files(void) {
  const char *files[4] = {"build/test-loader.png", "build/no-such.png", "build/test-loader.cut", "build"};
  int64_t shape[3] = {40, 30, 3}, bytes;
  pg_tensor *picture = NULL, *batch = NULL, *positions = numbered(4, 12), *good = numbered(1, 12);
  check(pg_new(PG_UINT8, PG_CPU, 3, shape, &picture) == PG_OK, "picture");
  for (int64_t i = 0; i < pg_numel(picture); i++) PG_AT(uint8_t, picture)[i] = (uint8_t)pg_rng_bits(2, (uint64_t)i);
  check(pg_image_save(files[0], picture) == PG_OK, "save");
  uint8_t head[1000];
  bytes = read_all(files[0], head, sizeof head);
  write_all(files[2], head, bytes);
  pg_loader *l = start_loader(3, NULL, files, 4);
  for (int i = 0; i < 5; i++) {
    check(pg_loader_push(l, positions, 0, 0) == PG_OK && pg_loader_push(l, good, 0, 0) == PG_OK, "push files");
    check(pg_loader_next(l, 60, &batch) == PG_ERR_FILE && !batch, "a broken file is an error");
    check(strstr(pg_last_error(), "no-such.png") != NULL, "of the first such file, by name");
    check(pg_loader_next(l, 60, &batch) == PG_OK && batch, "and the next batch follows");
    pg_release(batch);
  }
  check(pg_loader_push(l, positions, 0, 0) == PG_OK, "push files");
  pg_loader_free(l);
  pg_release(picture), pg_release(positions), pg_release(good);
  remove(files[0]), remove(files[2]);
}

/* ---- PNG: the quick reader gives libpng's bytes, or leaves the file to libpng ---- */

typedef struct kind {
  int color, channels, filters, depth, interlace;
  bool alpha, quick; /* a tRNS chunk; whether the quick reader takes it */
} kind;

static void write_png(const char *path, const kind *k, int w, int h, uint64_t seed) {
  png_color palette[200];
  uint8_t alpha[150], row[4096];
  FILE *f = fopen(path, "wb");
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
  png_infop info = png_create_info_struct(png);
  if (!f || setjmp(png_jmpbuf(png))) {
    check(false, "writing a PNG");
    return;
  }
  png_init_io(png, f);
  png_set_IHDR(png, info, (png_uint_32)w, (png_uint_32)h, k->depth, k->color, k->interlace, 0, 0);
  png_set_filter(png, 0, k->filters);
  png_set_compression_buffer_size(png, 100); /* many IDAT chunks */
  for (int i = 0; i < 200; i++) {
    uint32_t bits = pg_rng_bits(seed + 1, (uint64_t)i);
    palette[i] = (png_color){(uint8_t)bits, (uint8_t)(bits >> 8), (uint8_t)(bits >> 16)};
    if (i < 150) alpha[i] = (uint8_t)(bits >> 24);
  }
  if (k->color == PNG_COLOR_TYPE_PALETTE) png_set_PLTE(png, info, palette, 200);
  if (k->alpha) png_set_tRNS(png, info, alpha, k->color == PNG_COLOR_TYPE_PALETTE ? 150 : 0, &(png_color_16){0, 5, 5, 5, 5});
  png_text text = {.compression = PNG_TEXT_COMPRESSION_NONE, .key = "Title", .text = "a test"};
  png_set_text(png, info, &text, 1);
  png_write_info(png, info);
  int passes = png_set_interlace_handling(png);
  for (int pass = 0; pass < passes; pass++)
    for (int y = 0; y < h; y++) {
      for (int i = 0; i < w * k->channels * k->depth / 8; i++) { /* smooth and rough parts: every branch of a filter */
        uint32_t bits = pg_rng_bits(seed, (uint64_t)(y * 4096 + i));
        row[i] = (uint8_t)(bits & 256 ? bits : (unsigned)(y * 3 + i));
        if (k->color == PNG_COLOR_TYPE_PALETTE) row[i] %= 200;
      }
      png_write_row(png, row);
    }
  png_write_end(png, info);
  png_destroy_write_struct(&png, &info);
  fclose(f);
}

static void check_same(const char *path, bool must_load, const char *what) {
  pg_tensor *a = NULL, *b = NULL;
  char reason[1024];
  int quick = pg_png_load(path, true, &a);
  snprintf(reason, sizeof reason, "%s", pg_last_error());
  int slow = pg_png_load(path, false, &b);
  check(quick == slow && (!must_load || !slow), what);
  if (quick && slow) check(!strcmp(reason, pg_last_error()) && !strchr(reason, '\n'), "the same one line of error");
  if (!quick && !slow)
    check(pg_same_shape(a, b) && !memcmp(pg_data(a), pg_data(b), (size_t)pg_numel(a)), what);
  pg_release(a), pg_release(b);
}

static void test_png(void) {
  enum { ROOM = 1 << 17 };
  static uint8_t bytes[ROOM], copy[ROOM];
  static const char path[] = "build/test-quick.png";
  static const int filters[6] = {PNG_FILTER_NONE, PNG_FILTER_SUB,   PNG_FILTER_UP,
                                 PNG_FILTER_AVG,  PNG_FILTER_PAETH, PNG_ALL_FILTERS};
  const kind kinds[] = {{PNG_COLOR_TYPE_GRAY, 1, 0, 8, 0, false, true},
                        {PNG_COLOR_TYPE_RGB, 3, 0, 8, 0, false, true},
                        {PNG_COLOR_TYPE_PALETTE, 1, 0, 8, 0, false, true},
                        {PNG_COLOR_TYPE_PALETTE, 1, 0, 8, 0, true, true},
                        {PNG_COLOR_TYPE_GRAY_ALPHA, 2, 0, 8, 0, false, true},
                        {PNG_COLOR_TYPE_RGB_ALPHA, 4, 0, 8, 0, false, true},
                        {PNG_COLOR_TYPE_RGB, 3, 0, 8, 0, true, false},
                        {PNG_COLOR_TYPE_RGB, 3, 0, 16, 0, false, false},
                        {PNG_COLOR_TYPE_RGB_ALPHA, 4, 0, 8, PNG_INTERLACE_ADAM7, false, false}};
  for (int i = 0; i < (int)(sizeof kinds / sizeof *kinds); i++)
    for (int f = 0; f < 6; f++)
      for (int size = 0; size < 3; size++) {
        kind k = kinds[i];
        k.filters = filters[f];
        int w = (int[]){1, 37, 64}[size], h = (int[]){5, 29, 1}[size];
        write_png(path, &k, w, h, (uint64_t)(i * 100 + f * 10 + size));
        check_same(path, true, "the quick reader's bytes are libpng's");
        int64_t n = read_all(path, bytes, ROOM);
        pg_tensor *t = NULL;
        memcpy(copy, bytes, (size_t)n);
        check(pg_png_quick(copy, n, 1000, &t) == k.quick, "the quick reader takes the common kinds");
        if (t) pg_release(t), t = NULL;
        memcpy(copy, bytes, (size_t)n);
        check(!pg_png_quick(copy, n, PG_MAX(w, h) - 1, &t), "and none with a longer side");
        for (uint64_t m = 0; m < 12; m++) { /* damage: a byte, or the end */
          uint64_t where = pg_rng_bits((uint64_t)i, m * 2 + 1) % (uint64_t)n;
          memcpy(copy, bytes, (size_t)n);
          copy[where] ^= (uint8_t)(1 << m % 8);
          int64_t kept = m % 4 == 3 ? (int64_t)where : n;
          write_all(path, copy, kept); /* not pg_file_write: flushing 2,000 files to the disk takes long */
          check_same(path, false, "a damaged file is libpng's");
        }
      }
  remove(path);
}

/* ---- values in files: all 65,536 bit patterns of both half types, by arithmetic; and files that end early ---- */

static double half_value(int bits, int fraction_bits, int bias) {
  int exponent = bits >> fraction_bits & ((1 << (15 - fraction_bits)) - 1), fraction = bits & ((1 << fraction_bits) - 1);
  bool last = exponent == (1 << (15 - fraction_bits)) - 1;
  double size = last       ? fraction ? NAN : INFINITY
                : exponent ? ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits)
                           : ldexp(fraction, 1 - bias - fraction_bits);
  return bits >> 15 ? -size : size;
}

static void test_values(void) {
  FILE *f = tmpfile();
  for (int bits = 0; bits < 65536; bits++) fwrite((uint16_t[]){(uint16_t)bits}, 2, 1, f);
  fflush(f);
  pg_tensor *t = make(PG_FLOAT32, 65536, 1), *packed = NULL;
  for (int32_t kind = PG_FLOAT16; kind <= PG_BFLOAT16; kind++) {
    bool half = kind == PG_FLOAT16;
    int wrong = 0, changed = 0;
    check(pg_values_read(fileno(f), 0, kind, t) == PG_OK, "half types are read");
    for (int i = 0; i < 65536; i++) {
      double expected = half_value(i, half ? 10 : 7, half ? 15 : 127), v = PG_AT(float, t)[i];
      wrong += isnan(expected) ? !isnan(v) : expected != v || signbit(expected) != signbit(v);
    }
    check(wrong == 0, "every half is its float32");
    check(pg_values_pack(t, kind, &packed) == PG_OK, "half types are packed");
    for (int i = 0; i < 65536; i++) changed += !isnan(PG_AT(float, t)[i]) && PG_AT(uint16_t, packed)[i] != i;
    check(changed == 0, "every half comes back from its float32");
    pg_release(packed);
  }
  check(pg_values_read(fileno(f), 2, PG_FLOAT16, t) == PG_ERR_FILE && strstr(pg_last_error(), "end early"),
        "a file that ends early is an error");
  check(pg_values_read(fileno(f), 0, PG_FLOAT64, t) == PG_ERR_DTYPE, "a kind needs a tensor of its dtype");
  check(pg_values_read(fileno(f), 0, PG_KINDS, t) == PG_ERR_ARGUMENT, "an unknown kind is an error");
  fclose(f);
  pg_release(t);
}

/* ---- other programs and locks ---- */

static int run_shell(const char *script, const char *output, int32_t *signal_number) {
  const char *argv[] = {"sh", "-c", script, NULL}, *env[] = {"PG_TEST=a b", "HOME=nowhere", NULL};
  pg_spawn_options options = {.argv = argv, .env = env, .output = output, .orphan_signal = 9, .cpu = 0, .cpus = 1};
  int32_t pid = 0, ended = 0, status = 0;
  check(pg_process_spawn(&options, &pid) == PG_OK, "a program starts");
  while (!ended && !pg_process_wait(pid, &ended, &status, signal_number)) pg_sleep(0.001);
  return status;
}

static void test_process(void) {
  char path[] = "/tmp/pg_test_processXXXXXX", text[64] = "";
  int32_t signal_number = 0, fd = -1, again = 0, pid;
  close(mkstemp(path));
  check(run_shell("echo $PG_TEST $HOME; exit 7", path, &signal_number) == 7 && !signal_number, "its exit status");
  FILE *f = fopen(path, "r");
  check(f && fgets(text, sizeof text, f) && !strcmp(text, "a b nowhere\n"), "its output and environment");
  if (f) fclose(f);
  check(run_shell("kill -15 $$", NULL, &signal_number) == -1 && signal_number == 15, "the signal that ended it");
  const char *missing[] = {"/no/such/program", NULL};
  check(pg_process_spawn(&(pg_spawn_options){.argv = missing}, &pid) == PG_ERR_STATE, "what is not there is an error");
  check(!pg_lock(path, &fd) && fd >= 0, "a file is locked");
  check(!pg_lock(path, &again) && again == -1, "once");
  pg_unlock(fd);
  check(!pg_lock(path, &again) && again >= 0, "and again after it was let go");
  pg_unlock(again);
  check(pg_lock("/no/such/folder/x", &fd) == PG_ERR_FILE && fd == -1, "a lock in no folder is an error");
  check(pg_processors() >= 1 && pg_disk_free("/tmp") >= 0 && pg_disk_free("/no/such/folder") == -1, "the system");
  remove(path);
}

/* ---- eigh, told to stop at any of its stages from another thread: the part of LAPACK in the middle is left behind ---- */

static useconds_t delay;

static void *stop_soon(void *unused) {
  usleep(delay);
  *pg_stop_flag() = 1;
  return unused;
}

static void test_eigh_stops(void) {
  enum { N = 700 };
  pg_tensor *a = make(PG_FLOAT64, N, N), *w = NULL, *v = NULL;
  double *x = PG_AT(double, a);
  for (int i = 0; i < N; i++)
    for (int j = 0; j <= i; j++) x[i * N + j] = x[j * N + i] = (i * 7 + j * 13) % 101 / 101.0 - 0.5 + (i == j);
  pg_memory before, after;
  pg_memory_stats(PG_CPU, &before);
  static double product[150 * 150];
  int stopped = 0, others = 0;
  bool check_blas = true;
  bool finished = false;
  for (delay = 1000; !finished; delay += delay / 8 + 1000) {
    pthread_t thread;
    pthread_create(&thread, NULL, stop_soon, NULL);
    int status = pg_eigh(a, &w, &v);
    pthread_join(thread, NULL);
    *pg_stop_flag() = 0;
    if (status) { /* products are right meanwhile */
      check_blas = check_blas && !pg_gemm_f64(0, 1, 150, 150, 150, 1, x, N, x, N, 0, product, 150);
      for (int i = 0; i < 150; i++) {
        double sum = 0;
        for (int k = 0; k < 150; k++) sum += x[i * N + k] * x[(149 - i) * N + k];
        check_blas = check_blas && fabs(product[i * 150 + 149 - i] - sum) < 1e-10;
      }
    }
    stopped += status == PG_ERR_INTERRUPTED, others += status && status != PG_ERR_INTERRUPTED;
    if (!status) finished = true, pg_release(w), pg_release(v);
  }
  check(check_blas, "products after an interrupted eigh");
  check(stopped > 0 && !others, "eigh was stopped until it was given the time that it takes");
  for (int i = 0; i < 5000; i++) { /* what was left behind lets go when it has ended */
    pg_memory_stats(PG_CPU, &after);
    if (after.live == before.live) break;
    usleep(1000);
  }
  check(after.live == before.live && after.tensors == before.tensors, "and nothing is kept");
  pg_release(a);
}

int main(void) {
  test_philox();
  test_eigh_stops();
  test_memory();
  test_cache_order();
  test_blas_sizes();
  test_bf16_products();
  test_copy();
  test_deep_chain();
  test_versions();
  test_buckets();
  test_again();
  test_errors();
  test_values();
  test_png();
  test_loader();
  test_loader_files();
  test_process();
  pg_memory_trim(PG_CPU);
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
