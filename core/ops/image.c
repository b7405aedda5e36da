/* image.c - pictures as models take them: (N, H, W, C) bytes become (N, C, H, W) float32, (v / 255 - mean_c) / std_c.
 */
#include "../op.h"

static int normalize_image_shape(pg_call *c) {
  const pg_tensor *x = c->in[0], *mean = c->in[1], *std = c->in[2];
  if (x->ndim != 4 || mean->ndim != 1 || std->ndim != 1 || mean->shape[0] != x->shape[3] ||
      std->shape[0] != x->shape[3])
    return pg_op_fail(c, "takes images (N, H, W, C), mean (C) and std (C)");
  if (mean->dtype != PG_FLOAT32) return pg_fail(PG_ERR_DTYPE, "normalize_image: mean and std must be float32");
  int64_t shape[4] = {x->shape[0], x->shape[3], x->shape[1], x->shape[2]};
  return pg_out(c, 0, PG_FLOAT32, 4, shape);
}

static int normalize_image_forward(pg_call *c) {
  int64_t n = c->in[0]->shape[0], pixels = c->in[0]->shape[1] * c->in[0]->shape[2], channels = c->in[0]->shape[3];
  const uint8_t *x = PG_AT(uint8_t, c->in[0]);
  const float *mean = PG_AT(float, c->in[1]), *std = PG_AT(float, c->in[2]);
  float *y = PG_AT(float, c->out[0]);
#pragma omp parallel for schedule(static) if (n > 1)
  for (int64_t i = 0; i < n; i++)
    for (int64_t k = 0; k < channels && !pg_stopping(); k++) {
      float scale = 1 / (255 * std[k]), shift = -mean[k] / std[k];
      for (int64_t p = 0; p < pixels; p++)
        y[(i * channels + k) * pixels + p] = x[(i * pixels + p) * channels + k] * scale + shift;
    }
  return PG_OK;
}

const pg_op pg_op_normalize_image = {
    .info = {.name = "normalize_image",
             .doc = "(v / 255 - mean) / std of byte images, channels brought to the front",
             .inputs = PG_ARGS({"x", 0, "(N, H, W, C) uint8"}, {"mean", 0, "(C) float32, in 0..1"},
                               {"std", 0, "(C) float32"}),
             .outputs = PG_ARGS({"y", 0, "(N, C, H, W) float32"}),
             .no_backward = "its input is bytes",
             .samples = PG_SAMPLES("{x = bytes(256, 2, 3, 4, 3), mean = uniform(0.4, 0.6, 3):to(\"float32\"), std = "
                                   "uniform(0.2, 0.3, 3):to(\"float32\")}")},
    .shape = normalize_image_shape,
    .forward = {[PG_UINT8] = normalize_image_forward}};
