/* preprocess.c - pictures as a model was trained to see them: resize, centre crop, (v scale - mean) / std, one by one
 * or many files on all threads.
 *
 * Sizes: `shortest` makes the shorter side n and the longer floor(n longer / shorter) (torchvision's and transformers'
 * int(n * longer / shorter)). `cover` and `within` divide both sides by the least or the greatest of h / height and
 * w / width and round halves to even (timm's ResizeKeepRatio, which OpenCLIP uses). A crop of n of H pixels starts at
 * (H - n) / 2: halves go to even, and inwards where the picture is smaller than the crop (torchvision), or always down
 * (transformers). What a crop takes from outside the picture is `fill`, before it is normalised. */
#include "../io/io.h"

enum { MOST_SIDE = 1 << 14, MOST_PIXELS = 1 << 26 };

typedef struct plan {
  pg_resampling r;       /* the resized picture, and the part of it that is seen */
  int64_t rows, columns; /* of the result */
  int64_t above, left;   /* of its rows and columns, how many are fill before that part */
  float value[3][256];   /* a byte to its value in the result */
} plan;

/* ---- sizes ------------------------------------------------------------------------------------------------------ */

static int check(const pg_preprocess *p) {
  const int32_t sides[4] = {p->height, p->width, p->crop_height, p->crop_width};
  bool sized = p->fit != PG_FIT_NONE, cropped = p->crop_height || p->crop_width;
  for (int i = 0; i < 4; i++)
    if ((i < 2 ? sized : cropped) && (sides[i] < 1 || sides[i] > MOST_SIDE))
      return pg_fail(PG_ERR_ARGUMENT, "preprocess: a side must be within 1..%d pixels, got %d", MOST_SIDE, sides[i]);
  for (int c = 0; c < 3; c++)
    if (!isfinite(p->mean[c]) || !isfinite(p->scale) || !isfinite(p->std[c]) || p->std[c] <= 0)
      return pg_fail(PG_ERR_ARGUMENT, "preprocess: scale and mean must be finite and std above 0, got %g, %g and %g",
                     p->scale, p->mean[c], p->std[c]);
  return PG_OK;
}

/* The whole of the resized picture. */
static void resized(const pg_preprocess *p, pg_resampling *r) {
  double ratio_h = (double)r->h / p->height, ratio_w = (double)r->w / p->width;
  double ratio = p->fit == PG_FIT_COVER ? PG_MIN(ratio_h, ratio_w) : PG_MAX(ratio_h, ratio_w);
  int64_t n = p->height;
  switch (p->fit) {
  case PG_FIT_NONE: r->out_h = r->h, r->out_w = r->w; break;
  case PG_FIT_EXACT: r->out_h = n, r->out_w = p->width; break;
  case PG_FIT_SHORTEST:
    r->out_h = r->h <= r->w ? n : n * r->h / r->w;
    r->out_w = r->h <= r->w ? n * r->w / r->h : n;
    break;
  default: r->out_h = llrint((double)r->h / ratio), r->out_w = llrint((double)r->w / ratio);
  }
}

/* Where a crop of n of `all` pixels starts; below 0: so many come from outside. */
static int64_t crop_start(const pg_preprocess *p, int64_t all, int64_t n) {
  int64_t margin = all - n, down = margin >= 0 || margin % 2 == 0 ? margin / 2 : margin / 2 - 1;
  if (p->crop_floor) return down;
  return margin >= 0 ? llrint((double)margin / 2) : margin / 2;
}

/* Along one axis: the seen part of the resized picture, and the result. */
static void place(const pg_preprocess *p, int64_t all, int64_t crop, int64_t *from, int64_t *seen, int64_t *before,
                  int64_t *result) {
  int64_t start = crop ? crop_start(p, all, crop) : 0;
  *result = crop ? crop : all;
  *from = PG_MAX(start, 0), *before = PG_MAX(-start, 0);
  *seen = PG_MIN(all - *from, *result - *before);
}

static int make_plan(const pg_preprocess *p, int64_t h, int64_t w, plan *out) {
  pg_resampling *r = &out->r;
  *r = (pg_resampling){.h = h, .w = w, .channels = 3, .stride = w * 3, .cubic = !p->bilinear};
  r->extent_h = (double)h, r->extent_w = (double)w;
  resized(p, r);
  if (r->out_h < 1 || r->out_w < 1)
    return pg_fail(PG_ERR_SHAPE, "a picture of %lld x %lld pixels would be resized to %lld x %lld", (long long)w,
                   (long long)h, (long long)r->out_w, (long long)r->out_h);
  place(p, r->out_h, p->crop_height, &r->top, &r->rows, &out->above, &out->rows);
  place(p, r->out_w, p->crop_width, &r->left, &r->columns, &out->left, &out->columns);
  if (out->rows > MOST_PIXELS / out->columns)
    return pg_fail(PG_ERR_SHAPE, "a picture of %lld x %lld pixels would become one of %lld x %lld", (long long)w,
                   (long long)h, (long long)out->columns, (long long)out->rows);
  return PG_OK;
}

static void make_values(const pg_preprocess *p, plan *out) {
  for (int c = 0; c < 3; c++)
    for (int v = 0; v < 256; v++) out->value[c][v] = (float)((v * p->scale - p->mean[c]) / p->std[c]);
}

/* ---- one picture ------------------------------------------------------------------------------------------------ */

/* src (h, w, 3) packed -> out (3, rows, columns) */
static int apply(const pg_preprocess *p, const plan *plan, const uint8_t *src, float *out) {
  const pg_resampling *r = &plan->r;
  size_t bytes = (size_t)(r->rows * r->columns * 3);
  uint8_t *seen = pg_scratch_alloc(bytes);
  int status = seen ? pg_resample(src, r, seen, r->columns * 3) : pg_fail(PG_ERR_MEMORY, "out of memory");
  int64_t plane = plan->rows * plan->columns;
  for (int c = 0; !status && c < 3; c++) {
    const float *value = plan->value[c];
    float *to = out + c * plane;
    bool padded = r->rows < plan->rows || r->columns < plan->columns;
    for (int64_t i = 0; padded && i < plane; i++) to[i] = value[p->fill & 255];
    for (int64_t y = 0; y < r->rows; y++) {
      float *row = to + (plan->above + y) * plan->columns + plan->left;
      for (int64_t x = 0; x < r->columns; x++) row[x] = value[seen[(y * r->columns + x) * 3 + c]];
    }
  }
  pg_scratch_free(seen, bytes);
  return status;
}

int pg_preprocess_images(const pg_preprocess *p, pg_tensor *images, pg_tensor **out) {
  char text[128];
  PG_TRY(pg_check_live(images, "preprocess"));
  PG_TRY(check(p));
  int32_t d = images->ndim - 3;
  if (images->dtype != PG_UINT8 || images->device != PG_CPU || (d != 0 && d != 1) || images->shape[d + 2] != 3 ||
      !pg_numel(images))
    return pg_fail(PG_ERR_SHAPE, "preprocess: takes uint8 (H, W, 3) or (N, H, W, 3) on the cpu, got %s %s",
                   pg_dtype_name(images->dtype), pg_shape_text(images, text));
  int64_t n = d ? images->shape[0] : 1, h = images->shape[d], w = images->shape[d + 1];
  plan plan;
  PG_TRY(make_plan(p, h, w, &plan));
  make_values(p, &plan);
  pg_tensor *src, *result = NULL;
  PG_TRY(pg_contiguous(images, &src));
  int status = pg_new(PG_FLOAT32, PG_CPU, 4, (int64_t[]){n, 3, plan.rows, plan.columns}, &result);
  bool failed = false;
#pragma omp parallel for schedule(static) reduction(|| : failed) if (n > 1)
  for (int64_t i = 0; i < (status ? 0 : n); i++) {
    if (pg_stopping()) continue;
    failed = apply(p, &plan, PG_AT(uint8_t, src) + i * h * w * 3,
                   PG_AT(float, result) + i * 3 * plan.rows * plan.columns) != PG_OK ||
             failed;
  }
  if (failed) status = pg_fail(PG_ERR_MEMORY, "preprocess: out of memory");
  status = pg_unless_stopped(status);
  pg_release(src);
  if (status && result) pg_release(result);
  return status ? status : (*out = result, PG_OK);
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

/* The picture of a file and its plan, whose values are made already. */
static int open_file(const pg_preprocess *p, const char *path, pg_picture *picture, plan *plan) {
  *picture = (pg_picture){.path = path, .drop_alpha = p->drop_alpha, .as_stored = p->as_stored};
  PG_TRY(pg_picture_load(picture));
  if (make_plan(p, picture->h, picture->w, plan) == PG_OK) return PG_OK;
  char reason[512];
  snprintf(reason, sizeof reason, "%s", pg_last_error());
  pg_release(picture->pixels);
  return pg_fail(PG_ERR_SHAPE, "%s: %s", path, reason);
}

/* One file into its place among results of (3, rows, columns). */
static int fill(const pg_preprocess *p, const char *path, plan *plan, int64_t rows, int64_t columns, float *out) {
  pg_picture picture;
  PG_TRY(open_file(p, path, &picture, plan));
  int status =
      plan->rows == rows && plan->columns == columns
          ? apply(p, plan, PG_AT(uint8_t, picture.pixels), out)
          : pg_fail(PG_ERR_SHAPE,
                    "%s: becomes %lld x %lld pixels and the first file %lld x %lld; without a centre crop "
                    "pictures of other shapes go one by one",
                    path, (long long)plan->columns, (long long)plan->rows, (long long)columns, (long long)rows);
  pg_release(picture.pixels);
  return status;
}

int pg_preprocess_files(const pg_preprocess *p, const char *const *paths, int64_t n, pg_tensor **out) {
  PG_TRY(check(p));
  if (n < 1) return pg_fail(PG_ERR_ARGUMENT, "preprocess: there are no files");
  plan first;
  int64_t rows = p->crop_height, columns = p->crop_width;
  if (!rows && p->fit == PG_FIT_EXACT) rows = p->height, columns = p->width;
  if (!rows) { /* the first picture says */
    pg_picture picture;
    PG_TRY(open_file(p, paths[0], &picture, &first));
    pg_release(picture.pixels);
    rows = first.rows, columns = first.columns;
  }
  make_values(p, &first);
  pg_tensor *result;
  PG_TRY(pg_new(PG_FLOAT32, PG_CPU, 4, (int64_t[]){n, 3, rows, columns}, &result));
  int64_t failed = n; /* the first of them in the list's order, whichever thread meets it */
  int code = PG_OK;
  char reason[1024];
#pragma omp parallel for schedule(dynamic, 1) firstprivate(first)
  for (int64_t i = 0; i < n; i++) {
    if (pg_stopping()) continue;
    int status = fill(p, paths[i], &first, rows, columns, PG_AT(float, result) + i * 3 * rows * columns);
    if (!status) continue;
#pragma omp critical(preprocess)
    if (i < failed) {
      failed = i, code = status;
      snprintf(reason, sizeof reason, "%s", pg_last_error());
    }
  }
  int status = code ? pg_fail(code, "%s", reason) : PG_OK;
  status = pg_unless_stopped(status);
  if (status) pg_release(result);
  return status ? status : (*out = result, PG_OK);
}
