/* resize.cu - geometry of pictures: resize (bytes, to the bit as Pillow), crop and flip (any dtype).
 *
 * resize.c makes the weights in double precision on the host, so that they are the same bits, and they follow the call
 * to the device. Columns are resampled first: a thread a byte of the new row. Then rows: a thread four neighbouring
 * bytes, where the rows hold whole fours. A block stays within one row, so that only it divides large numbers. */
#include "../cuda/cuda.h"

extern "C" {
#include "resize.h"
}

/* ---- resize ---- */

enum { GROUP_BYTES = 1 << 26 }; /* about so much lies between the two passes */

typedef struct weights { /* pg_axis on the device */
  int64_t in, out, taps;
  const int32_t *weight, *first, *count;
} weights;

static __device__ __forceinline__ uint8_t to_byte(int32_t sum) {
  sum >>= PG_FRACTION;
  return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* Rows of a.in pixels become rows of a.out; `tiles` blocks a row. */
static __global__ void across_kernel(weights a, unsigned tiles, int64_t channels, const uint8_t *x, uint8_t *y) {
  int64_t row = blockIdx.x / tiles;
  int64_t q = (int64_t)(blockIdx.x % tiles) * blockDim.x + threadIdx.x;
  if (q >= a.out * channels) return;
  int64_t i = q / channels;
  int count = a.count[i];
  const int32_t *w = a.weight + i * a.taps;
  const uint8_t *from = x + (row * a.in + a.first[i]) * channels + q % channels;
  int32_t sum = 1 << (PG_FRACTION - 1);
  for (int j = 0; j < count; j++, from += channels) sum += w[j] * *from;
  y[row * a.out * channels + q] = to_byte(sum);
}

template <int N> struct alignas(N) bytes { uint8_t v[N]; };

/* a.in rows of `width` groups of N bytes become a.out; `tiles` blocks a row. */
template <int N>
static __global__ void down_kernel(weights a, unsigned tiles, int64_t width, const bytes<N> *x, bytes<N> *y) {
  int64_t row = blockIdx.x / tiles, i = row % a.out;
  int64_t q = (int64_t)(blockIdx.x % tiles) * blockDim.x + threadIdx.x;
  if (q >= width) return;
  int count = a.count[i];
  const int32_t *w = a.weight + i * a.taps;
  const bytes<N> *from = x + (row / a.out * a.in + a.first[i]) * width + q;
  int32_t sum[N];
#pragma unroll
  for (int k = 0; k < N; k++) sum[k] = 1 << (PG_FRACTION - 1);
  for (int j = 0; j < count; j++, from += width) {
    bytes<N> b = *from;
#pragma unroll
    for (int k = 0; k < N; k++) sum[k] += w[j] * b.v[k];
  }
  bytes<N> out;
#pragma unroll
  for (int k = 0; k < N; k++) out.v[k] = to_byte(sum[k]);
  y[row * width + q] = out;
}

static int across(pg_call *c, const weights &a, int64_t rows, int64_t channels, const uint8_t *x, uint8_t *y) {
  unsigned tiles = pg_blocks(a.out * channels);
  PG_LAUNCH(c, across_kernel, pg_blocks(rows * tiles, 1), PG_BLOCK, a, tiles, channels, x, y);
  return PG_OK;
}

template <int N>
static int down(pg_call *c, const weights &a, int64_t images, int64_t width, const uint8_t *x, uint8_t *y) {
  unsigned tiles = pg_blocks(width / N);
  PG_LAUNCH(c, down_kernel<N>, pg_blocks(images * a.out * tiles, 1), PG_BLOCK, a, tiles, width / N, (const bytes<N> *)x,
            (bytes<N> *)y);
  return PG_OK;
}

/* Where the weights lie once they have followed. */
static weights at_device(const pg_axis &a, const int32_t *weight) {
  const int32_t *first = weight + a.out * a.taps;
  return {a.in, a.out, a.taps, weight, first, first + a.out};
}

/* The passes over a group of pictures; an axis that keeps its size has no weights. */
static int resample(pg_call *c, const weights &rows, const weights &columns, int64_t images, int64_t channels,
                    const uint8_t *x, uint8_t *middle, uint8_t *y) {
  if (columns.weight) PG_TRY(across(c, columns, images * rows.in, channels, x, rows.weight ? middle : y));
  if (!rows.weight) return PG_OK;
  if (columns.weight) x = middle;
  int64_t width = columns.out * channels;
  bool fours = (((uintptr_t)x | (uintptr_t)y | (uintptr_t)width) & 3) == 0;
  return fours ? down<4>(c, rows, images, width, x, y) : down<1>(c, rows, images, width, x, y);
}

static int resize_forward(pg_call *c) {
  const pg_tensor *t = c->in[0];
  int32_t h = t->ndim - 3;
  int64_t images = h ? t->shape[0] : 1, channels = t->shape[h + 2], mode = c->p[PG_RESIZE_MODE].ints[0];
  int64_t height = c->p[PG_RESIZE_HEIGHT].ints[0], width = c->p[PG_RESIZE_WIDTH].ints[0];
  if (!pg_numel(t)) return PG_OK;
  if (height == t->shape[h] && width == t->shape[h + 1]) return pg_copy(c->out[0], t);

  pg_axis rows = {}, columns = {};
  int status = pg_axis_make(&rows, t->shape[h], height, mode);
  if (!status) status = pg_axis_make(&columns, t->shape[h + 1], width, mode);
  pg_scratch table(rows.bytes + columns.bytes);
  if (!status) status = table.status;
  auto from_host = pg_device_get(PG_CUDA)->from_host;
  if (!status) status = from_host(table.at<char>(), rows.weight, rows.bytes);
  if (!status) status = from_host(table.at<char>(rows.bytes), columns.weight, columns.bytes);
  pg_scratch_free(rows.weight, rows.bytes), pg_scratch_free(columns.weight, columns.bytes);
  if (status) return status;
  weights for_rows = at_device(rows, rows.bytes ? table.at<int32_t>() : NULL);
  weights for_columns = at_device(columns, columns.bytes ? table.at<int32_t>(rows.bytes) : NULL);

  int64_t between = rows.in * columns.out * channels; /* bytes of one picture after the first pass */
  int64_t group = PG_MIN(images, PG_MAX(1, GROUP_BYTES / between));
  pg_scratch middle(rows.bytes && columns.bytes ? (size_t)(group * between) : 0);
  if (middle.status) return middle.status;
  for (int64_t i = 0; i < images; i += group)
    PG_TRY(resample(c, for_rows, for_columns, PG_MIN(group, images - i), channels,
                    PG_AT(const uint8_t, t) + i * rows.in * columns.in * channels, middle.at<uint8_t>(),
                    PG_AT(uint8_t, c->out[0]) + i * rows.out * columns.out * channels));
  return PG_OK;
}

PG_CUDA_OP(resize, {NULL, NULL, NULL, resize_forward})

/* ---- crop: a view, whose gradient resize.c puts into a frame of zeros wherever the tensors are ---- */

static int crop_backward(pg_call *c) { return c->op->backward[PG_FLOAT32](c); }

PG_CUDA_OP(crop, {}, {crop_backward, crop_backward})

/* ---- flip: a copy of x seen from the other end, with strides below zero ---- */

static int flip(const pg_call *c, const pg_tensor *x, pg_tensor *y) {
  if (!pg_numel(x)) return PG_OK;
  pg_tensor seen = *x;
  for (int32_t i = 0; i < (c->p[0].len ? c->p[0].len : x->ndim); i++) {
    int32_t dim = i;
    if (c->p[0].len) PG_TRY(pg_dim(c, x, c->p[0].ints[i], &dim));
    seen.offset += (seen.shape[dim] - 1) * seen.stride[dim], seen.stride[dim] *= -1;
  }
  return pg_cuda_assign(y, &seen);
}

static int flip_forward(pg_call *c) { return flip(c, c->in[0], c->out[0]); }
static int flip_backward(pg_call *c) { return flip(c, c->grad_out[0], c->grad_in[0]); }

PG_CUDA_OP(flip, {flip_forward, flip_forward, flip_forward, flip_forward}, {flip_backward, flip_backward})
