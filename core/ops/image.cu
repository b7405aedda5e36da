/* image.cu - pictures as models take them: (N, H, W, C) bytes become (N, C, H, W) float32, (v / 255 - mean_c) / std_c.
 *
 * A thread takes a group of neighbouring pixels with all of their channels: four, where a plane holds whole packs, so
 * that each channel is written 16 bytes at a time. */
#include "../cuda/cuda.h"

template <int GROUP> struct alignas(GROUP * sizeof(float)) pixels { float v[GROUP]; };

template <int GROUP>
static __global__ void normalize_kernel(int64_t total, int64_t groups, int64_t channels, const uint8_t *x,
                                        const float *mean, const float *std, pixels<GROUP> *y) {
  int64_t e = pg_thread();
  if (e >= total) return;
  const uint8_t *from = x + e * GROUP * channels;
  y += e / groups * channels * groups + e % groups;
  for (int64_t k = 0; k < channels; k++) {
    float scale = 1 / (255 * std[k]), shift = -mean[k] / std[k];
    pixels<GROUP> out;
#pragma unroll
    for (int q = 0; q < GROUP; q++) out.v[q] = (float)from[q * channels + k] * scale + shift;
    y[k * groups] = out;
  }
}

template <int GROUP> static int normalize(pg_call *c, int64_t images, int64_t plane, int64_t channels) {
  int64_t groups = plane / GROUP, total = images * groups;
  PG_LAUNCH(c, normalize_kernel<GROUP>, pg_blocks(total), PG_BLOCK, total, groups, channels,
            PG_AT(const uint8_t, c->in[0]), PG_AT(const float, c->in[1]), PG_AT(const float, c->in[2]),
            (pixels<GROUP> *)PG_AT(float, c->out[0]));
  return PG_OK;
}

static int normalize_image_forward(pg_call *c) {
  const int64_t *shape = c->in[0]->shape;
  int64_t plane = shape[1] * shape[2];
  return pg_packable<float>(plane, PG_AT(float, c->out[0])) ? normalize<4>(c, shape[0], plane, shape[3])
                                                            : normalize<1>(c, shape[0], plane, shape[3]);
}

PG_CUDA_OP(normalize_image, {NULL, NULL, NULL, normalize_image_forward})
