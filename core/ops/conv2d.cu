/* conv2d.cu - convolution as products of matrices by cuBLAS, for stretches of images whose patches fit a limit.
 *
 * Patches become the rows of a matrix (C kh kw), a column an output place. Forward: y = W cols, image by image in one
 * batched call (or group by group, where those are more); a 1 x 1 kernel at stride 1 reads x itself. Backward: dy and
 * the patches of all images of a stretch stand side by side, (O, images * places) and (C kh kw, images * places), so
 * that dW = dy cols^T and dcols = W^T dy are one product a group; dx gathers, for each of its elements, the dcols that
 * were read from it, taps in order. dbias: a block an output channel. */
#include "../cuda/cuda.h"

enum { ROWS, COLUMNS }; /* of a pair */

typedef struct conv {
  int64_t images, channels, outputs, groups, depth, rows, places; /* depth: C / groups * kh * kw; rows: C * kh * kw */
  int32_t in[2], kernel[2], out[2], stride[2], pad[2], dilation[2];
} conv;

static int32_t one_of(const pg_value *v, int axis, int32_t otherwise) { /* of a parameter with no, one or two values */
  return v->len ? (int32_t)v->ints[PG_MIN(axis, v->len - 1)] : otherwise;
}

static int conv_read(const pg_call *c, conv *out) {
  const pg_tensor *x = c->in[0], *w = c->in[1];
  int64_t most = x->shape[2] * x->shape[3]; /* of what kernels count in 32 bits */
  for (int i = 0; i < 2; i++) most = PG_MAX(most, x->shape[2 + i] + 2 * one_of(&c->p[1], i, 0));
  for (int i = 0; i < c->n_out && c->out[i]; i++) most = PG_MAX(most, c->out[i]->shape[2] * c->out[i]->shape[3]);
  if (most > 1 << 30) return pg_op_fail(c, "an image on cuda has at most 2^30 places");
  conv g = {};
  g.images = x->shape[0], g.channels = x->shape[1], g.outputs = w->shape[0], g.groups = c->p[3].ints[0];
  for (int i = 0; i < 2; i++) {
    g.in[i] = (int32_t)x->shape[2 + i], g.kernel[i] = (int32_t)w->shape[2 + i];
    g.stride[i] = one_of(&c->p[0], i, 1), g.pad[i] = one_of(&c->p[1], i, 0), g.dilation[i] = one_of(&c->p[2], i, 1);
    g.out[i] = (g.in[i] + 2 * g.pad[i] - g.dilation[i] * (g.kernel[i] - 1) - 1) / g.stride[i] + 1;
  }
  g.depth = w->shape[1] * g.kernel[ROWS] * g.kernel[COLUMNS], g.rows = g.depth * g.groups;
  g.places = (int64_t)g.out[ROWS] * g.out[COLUMNS];
  return *out = g, PG_OK;
}

/* ---- planes: what neighbouring threads walk --------------------------------------------------------------------- */

typedef struct planes { /* blocks for `count` planes of `size` elements; a block has a part of one plane */
  int64_t parts;
  unsigned blocks, threads;
} planes;

enum { PART = 4 * PG_BLOCK };

static planes planes_of(int64_t count, int64_t size) {
  planes p;
  p.parts = (size + PART - 1) / PART;
  p.blocks = (unsigned)(count * p.parts);
  p.threads = (unsigned)PG_MIN((int64_t)PG_BLOCK, (size + PG_WARP - 1) / PG_WARP * PG_WARP);
  return p;
}

/* The body for each element i, 0..size-1, of the block's part of its plane. */
#define EACH_OF_PLANE(i, size)                                                                                         \
  for (int32_t i = (int32_t)(blockIdx.x % parts * PART + threadIdx.x),                                                 \
               last_ = (int32_t)((blockIdx.x % parts + 1) * PART < (size) ? (blockIdx.x % parts + 1) * PART : (size)); \
       i < last_; i += (int32_t)blockDim.x)

/* ---- patches ---------------------------------------------------------------------------------------------------- */

/* A plane: the places of one row of one image's patches. Images and rows of cols are so many elements apart. */
template <class T>
static __global__ void patches_kernel(conv g, int64_t parts, const T *x, T *cols, int64_t image_step,
                                      int64_t row_step) {
  int64_t plane = blockIdx.x / parts, row = plane % g.rows, image = plane / g.rows;
  int32_t taps = g.kernel[ROWS] * g.kernel[COLUMNS], tap = (int32_t)(row % taps);
  int32_t down = tap / g.kernel[COLUMNS] * g.dilation[ROWS] - g.pad[ROWS],
          right = tap % g.kernel[COLUMNS] * g.dilation[COLUMNS] - g.pad[COLUMNS];
  x += (image * g.channels + row / taps) * g.in[ROWS] * g.in[COLUMNS];
  cols += image * image_step + row * row_step;
  EACH_OF_PLANE(i, g.places) {
    int32_t h = i / g.out[COLUMNS] * g.stride[ROWS] + down, w = i % g.out[COLUMNS] * g.stride[COLUMNS] + right;
    bool inside = h >= 0 && h < g.in[ROWS] && w >= 0 && w < g.in[COLUMNS];
    cols[i] = inside ? x[(int64_t)h * g.in[COLUMNS] + w] : (T)0;
  }
}

/* A plane: one channel of one image of dx. */
template <class T>
static __global__ void gather_kernel(conv g, int64_t parts, const T *cols, int64_t image_step, int64_t row_step,
                                     T *dx) {
  int64_t plane = blockIdx.x / parts, channel = plane % g.channels, image = plane / g.channels;
  int32_t size = g.in[ROWS] * g.in[COLUMNS];
  cols += image * image_step + channel * g.kernel[ROWS] * g.kernel[COLUMNS] * row_step;
  dx += plane * size;
  EACH_OF_PLANE(i, size) {
    int32_t h = i / g.in[COLUMNS] + g.pad[ROWS], w = i % g.in[COLUMNS] + g.pad[COLUMNS];
    int32_t p_last = min(h / g.stride[ROWS], g.out[ROWS] - 1), q_last = min(w / g.stride[COLUMNS], g.out[COLUMNS] - 1);
    T sum = 0;
    for (int32_t p = p_last; p >= 0; p--) { /* taps in rising order */
      int32_t down = h - p * g.stride[ROWS], a = down / g.dilation[ROWS];
      if (a >= g.kernel[ROWS]) break;
      if (down % g.dilation[ROWS]) continue;
      for (int32_t q = q_last; q >= 0; q--) {
        int32_t right = w - q * g.stride[COLUMNS], b = right / g.dilation[COLUMNS];
        if (b >= g.kernel[COLUMNS]) break;
        if (right % g.dilation[COLUMNS]) continue;
        sum += cols[((int64_t)a * g.kernel[COLUMNS] + b) * row_step + (int64_t)p * g.out[COLUMNS] + q];
      }
    }
    dx[i] = sum;
  }
}

/* How many images' patches stand in memory at once: a quarter of a gigabyte of floats, or one image. */
static int64_t stretch_of(const conv *g) {
  int64_t most = ((int64_t)1 << 26) / PG_MAX(g->rows * g->places, (int64_t)1);
  return PG_MAX((int64_t)1, PG_MIN(g->images, most));
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

/* A plane: one output channel of one image. */
template <class T>
static __global__ void lay_kernel(int64_t parts, int64_t outputs, int64_t places, const T *bias, T *y) {
  int64_t plane = blockIdx.x / parts;
  T b = bias[plane % outputs];
  y += plane * places;
  EACH_OF_PLANE(i, places) y[i] = b;
}

template <class T> static int forward(pg_call *c) {
  conv g;
  PG_TRY(conv_read(c, &g));
  const T *x = PG_AT(const T, c->in[0]), *w = PG_AT(const T, c->in[1]);
  T *y = PG_AT(T, c->out[0]);
  if (!g.images || !g.outputs) return PG_OK;
  int64_t part = g.outputs / g.groups, at_once = stretch_of(&g), wide = g.rows * g.places;
  bool as_it_is = g.places == (int64_t)g.in[ROWS] * g.in[COLUMNS] && g.kernel[ROWS] * g.kernel[COLUMNS] == 1 &&
                  g.pad[ROWS] == 0 && g.pad[COLUMNS] == 0; /* then x is its own patches */
  pg_scratch scratch(as_it_is ? 0 : sizeof(T) * (size_t)(at_once * wide));
  if (scratch.status) return scratch.status;
  if (c->in[2]) {
    planes p = planes_of(g.images * g.outputs, g.places);
    PG_LAUNCH(c, lay_kernel<T>, p.blocks, p.threads, p.parts, g.outputs, g.places, PG_AT(const T, c->in[2]), y);
  }
  T beta = c->in[2] ? 1 : 0;
  for (int64_t from = 0; from < g.images; from += at_once) {
    int64_t images = PG_MIN(at_once, g.images - from);
    const T *cols = x + from * wide;
    T *to = y + from * g.outputs * g.places;
    if (!as_it_is) {
      planes p = planes_of(images * g.rows, g.places);
      PG_LAUNCH(c, patches_kernel<T>, p.blocks, p.threads, g, p.parts,
                x + from * g.channels * g.in[ROWS] * g.in[COLUMNS], scratch.at<T>(), wide, g.places);
      cols = scratch.at<const T>();
    }
    if (images >= g.groups) {
      for (int64_t k = 0; k < g.groups; k++)
        PG_TRY(pg_cuda_gemm_batched<T>(0, 0, part, g.places, g.depth, 1, w + k * part * g.depth, g.depth, 0,
                                       cols + k * g.depth * g.places, g.places, wide, beta, to + k * part * g.places,
                                       g.places, g.outputs * g.places, images));
    } else {
      for (int64_t n = 0; n < images; n++)
        PG_TRY(pg_cuda_gemm_batched<T>(0, 0, part, g.places, g.depth, 1, w, g.depth, part * g.depth, cols + n * wide,
                                       g.places, g.depth * g.places, beta, to + n * g.outputs * g.places, g.places,
                                       part * g.places, g.groups));
    }
  }
  return PG_OK;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* The gradient with the images of a stretch side by side in each row. A plane: one output channel of one image. */
template <class T>
static __global__ void beside_kernel(int64_t parts, int64_t images, int64_t outputs, int64_t places, const T *dy,
                                     T *to) {
  int64_t plane = blockIdx.x / parts, output = plane % outputs, image = plane / outputs;
  dy += plane * places, to += (output * images + image) * places;
  EACH_OF_PLANE(i, places) to[i] = dy[i];
}

template <class T>
static __global__ void bias_kernel(int64_t images, int64_t outputs, int64_t places, const T *dy, T *db) {
  T sum = 0;
  for (int64_t n = 0; n < images; n++)
    for (int64_t i = threadIdx.x; i < places; i += blockDim.x) sum += dy[(n * outputs + blockIdx.x) * places + i];
  sum = pg_block_sum(sum);
  if (threadIdx.x == 0) db[blockIdx.x] = sum;
}

template <class T> static int backward(pg_call *c) {
  conv g;
  PG_TRY(conv_read(c, &g));
  T *dx = c->grad_in[0] ? PG_AT(T, c->grad_in[0]) : NULL, *dw = c->grad_in[1] ? PG_AT(T, c->grad_in[1]) : NULL;
  const T *dy = PG_AT(const T, c->grad_out[0]);
  if (c->in[2] && c->grad_in[2] && g.outputs)
    PG_LAUNCH(c, bias_kernel<T>, (unsigned)g.outputs, planes_of(1, g.places).threads, g.images, g.outputs, g.places, dy,
              PG_AT(T, c->grad_in[2]));
  if (dw && !g.images) return pg_fill(c->grad_in[1], 0);
  if ((!dx && !dw) || !g.images) return PG_OK;
  int64_t part = g.outputs / g.groups, at_once = stretch_of(&g);
  pg_scratch scratch(sizeof(T) * (size_t)(at_once * (g.rows + g.outputs) * g.places));
  if (scratch.status) return scratch.status;
  T *cols = scratch.at<T>(), *beside = cols + at_once * g.rows * g.places;
  const T *w = PG_AT(const T, c->in[1]);
  int64_t plane = (int64_t)g.in[ROWS] * g.in[COLUMNS];
  for (int64_t from = 0; from < g.images; from += at_once) {
    int64_t images = PG_MIN(at_once, g.images - from), line = images * g.places;
    if (g.outputs) {
      planes p = planes_of(images * g.outputs, g.places);
      PG_LAUNCH(c, beside_kernel<T>, p.blocks, p.threads, p.parts, images, g.outputs, g.places,
                dy + from * g.outputs * g.places, beside);
    }
    if (dw) {
      planes p = planes_of(images * g.rows, g.places);
      PG_LAUNCH(c, patches_kernel<T>, p.blocks, p.threads, g, p.parts,
                PG_AT(const T, c->in[0]) + from * g.channels * plane, cols, g.places, line);
      PG_TRY(pg_cuda_gemm_batched<T>(0, 1, part, g.depth, line, 1, beside, line, part * line, cols, line,
                                     g.depth * line, from ? 1 : 0, dw, g.depth, part * g.depth, g.groups));
    }
    if (dx) {
      PG_TRY(pg_cuda_gemm_batched<T>(1, 0, g.depth, line, part, 1, w, g.depth, part * g.depth, beside, line,
                                     part * line, 0, cols, line, g.depth * line, g.groups));
      planes p = planes_of(images * g.channels, plane);
      if (plane)
        PG_LAUNCH(c, gather_kernel<T>, p.blocks, p.threads, g, p.parts, (const T *)cols, g.places, line,
                  dx + from * g.channels * plane);
    }
  }
  return PG_OK;
}

PG_CUDA_OP(conv2d, {forward<float>, forward<double>}, {backward<float>, backward<double>})
