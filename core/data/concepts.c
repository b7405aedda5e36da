/* concepts.c - renders small scenes whose every property is known: what the procedural probes look at.
 *
 * A scene is PG_CONCEPT_FIELDS numbers: which shape, colour, texture, cell of the 3x3 grid, how many, how large, before
 * which background. Everything else (exact place, angle, shade, noise, distractors) is drawn from Philox by the scene's
 * index, so that a picture depends on (seed, index, spec) and never on the number of threads.
 *
 * Shapes are signed distance fields in units of their radius r. With d the distance in pixels, negative inside, a pixel
 * is covered by clamp(1/2 - d, 0, 1), which is exact for a straight edge along an axis and close to it elsewhere. */
#include "../core.h"

enum { SHAPES = 8, COLORS = 8, TEXTURES = 4, CELLS = 9, COUNTS = 4, SIZES = 3, BACKGROUNDS = 8, MAX_SIZE = 512 };
enum { CIRCLE, SQUARE, TRIANGLE, STAR, CROSS, RING, DIAMOND, PENTAGON };
enum { SOLID, STRIPES, CHECKS, DOTS };

static const char *const field_name[PG_CONCEPT_FIELDS] = {"shape", "color", "texture",   "position",
                                                          "count", "size",  "background"};
static const int32_t field_values[PG_CONCEPT_FIELDS] = {SHAPES, COLORS, TEXTURES, CELLS, COUNTS, SIZES, BACKGROUNDS};

static const float palette[COLORS][3] = {{0.85f, 0.15f, 0.15f}, {0.15f, 0.65f, 0.2f}, {0.2f, 0.3f, 0.85f},
                                         {0.9f, 0.8f, 0.15f},   {0.6f, 0.2f, 0.7f},   {0.95f, 0.5f, 0.1f},
                                         {0.15f, 0.75f, 0.8f},  {0.95f, 0.55f, 0.75f}};

/* ---- random numbers of one scene -------------------------------------------------------------------------------- */

typedef struct draws {
  uint32_t key[2], counter[4], block[4];
  int used; /* of the four numbers in block */
} draws;

static draws draws_of(uint64_t seed, uint64_t scene) {
  return (draws){.key = {(uint32_t)seed, (uint32_t)(seed >> 32)},
                 .counter = {0, (uint32_t)scene, (uint32_t)(scene >> 32), 0x5ce9eu}, /* apart from the global stream */
                 .used = 4};
}

static float uniform(draws *d, float lo, float hi) {
  if (d->used == 4) {
    pg_philox(d->counter, d->key, d->block);
    d->counter[0]++, d->used = 0;
  }
  return lo + (hi - lo) * (float)(d->block[d->used++] >> 8) * 0x1p-24f;
}

static int below(draws *d, int n) { return PG_MIN((int)uniform(d, 0, (float)n), n - 1); }

/* ---- shapes ----------------------------------------------------------------------------------------------------- */

typedef struct polygon {
  int n;
  float x[12], y[12];
} polygon;

/* The outline of a shape within the unit circle; n = 0 for the round ones. */
static polygon outline(int shape) {
  polygon p = {0};
  int corners = shape == TRIANGLE ? 3 : shape == PENTAGON ? 5 : shape == STAR ? 10 : 0;
  for (int i = 0; i < corners; i++) { /* first corner up; a star's every second corner lies further in */
    float angle = 6.2831853f * (float)i / (float)corners, r = shape == STAR && i % 2 ? 0.42f : 1;
    p.x[i] = r * sinf(angle), p.y[i] = -r * cosf(angle);
  }
  p.n = corners;
  if (shape == SQUARE) p = (polygon){4, {-0.8f, 0.8f, 0.8f, -0.8f}, {-0.8f, -0.8f, 0.8f, 0.8f}};
  if (shape == DIAMOND) p = (polygon){4, {0, 0.62f, 0, -0.62f}, {-1.1f, 0, 1.1f, 0}};
  if (shape == CROSS)
    p = (polygon){12,
                  {-.3f, .3f, .3f, .95f, .95f, .3f, .3f, -.3f, -.3f, -.95f, -.95f, -.3f},
                  {-.95f, -.95f, -.3f, -.3f, .3f, .3f, .95f, .95f, .3f, .3f, -.3f, -.3f}};
  return p;
}

/* Distance to the nearest edge; the sign is the parity of the edges that a ray to the right crosses. */
static float polygon_distance(const polygon *p, float x, float y) {
  float nearest = INFINITY;
  bool inside = false;
  for (int i = 0, j = p->n - 1; i < p->n; j = i++) {
    float ex = p->x[j] - p->x[i], ey = p->y[j] - p->y[i], wx = x - p->x[i], wy = y - p->y[i];
    float along = fminf(fmaxf((wx * ex + wy * ey) / (ex * ex + ey * ey), 0), 1);
    float dx = wx - ex * along, dy = wy - ey * along;
    nearest = fminf(nearest, dx * dx + dy * dy);
    if ((p->y[i] > y) != (p->y[j] > y) && x < ex * (y - p->y[i]) / ey + p->x[i]) inside = !inside;
  }
  return inside ? -sqrtf(nearest) : sqrtf(nearest);
}

static float distance_to(int shape, const polygon *p, float x, float y) {
  if (p->n) return polygon_distance(p, x, y);
  float r = sqrtf(x * x + y * y);
  return shape == RING ? fabsf(r - 0.72f) - 0.24f : r - 0.92f;
}

/* How much of the second shade shows at (x, y), in pixels of a 32-pixel picture from the shape's centre. */
static float texture_at(int texture, float x, float y) {
  const float pi = 3.14159265f, period = 5;
  float sx = sinf(2 * pi * x / period), sy = sinf(2 * pi * y / period);
  float wave = texture == STRIPES ? sy : texture == CHECKS ? 2 * sx * sy : texture == DOTS ? sx + sy - 0.7f : -1;
  return texture == SOLID ? 0 : fminf(fmaxf(0.5f + 1.5f * wave, 0), 1);
}

typedef struct mark { /* one drawn shape */
  int shape, texture;
  float x, y, radius, angle, alpha; /* centre and radius in pixels */
  float color[3], second[3];
} mark;

static void draw_mark(float *canvas, int size, const mark *m) {
  polygon p = outline(m->shape);
  float c = cosf(m->angle), s = sinf(m->angle), reach = 1.2f * m->radius + 1, to32 = 32.0f / (float)size;
  int x0 = PG_MAX(0, (int)(m->x - reach)), x1 = PG_MIN(size - 1, (int)(m->x + reach));
  int y0 = PG_MAX(0, (int)(m->y - reach)), y1 = PG_MIN(size - 1, (int)(m->y + reach));
  for (int y = y0; y <= y1; y++)
    for (int x = x0; x <= x1; x++) {
      float dx = (float)x + 0.5f - m->x, dy = (float)y + 0.5f - m->y, u = c * dx + s * dy, v = c * dy - s * dx;
      float d = m->radius * distance_to(m->shape, &p, u / m->radius, v / m->radius);
      float cover = m->alpha * fminf(fmaxf(0.5f - d, 0), 1), mix = texture_at(m->texture, u * to32, v * to32);
      float *pixel = canvas + 3 * ((int64_t)y * size + x);
      for (int k = 0; k < 3; k++) pixel[k] += cover * (m->color[k] + mix * (m->second[k] - m->color[k]) - pixel[k]);
    }
}

/* ---- scenes ----------------------------------------------------------------------------------------------------- */

/* 0-3 flat: dark, grey, light, tinted; 4, 5 gradients down and across; 6, 7 coarse noise, dark and light. */
static void draw_background(float *canvas, int size, int kind, draws *d) {
  static const float tone[BACKGROUNDS] = {0.12f, 0.42f, 0.85f, 0.6f, 0.3f, 0.65f, 0.25f, 0.7f};
  float from[3], to[3], patch[64];
  float tint = kind == 3 || kind == 4 || kind == 5 ? 0.25f : 0.06f, rise = kind == 4 || kind == 5 ? 0.3f : 0;
  for (int k = 0; k < 3; k++) {
    from[k] = tone[kind] + uniform(d, -tint, tint) - rise * 0.5f;
    to[k] = from[k] + rise;
  }
  for (int i = 0; i < 64; i++) patch[i] = kind >= 6 ? uniform(d, -0.16f, 0.16f) : 0;
  for (int y = 0; y < size; y++)
    for (int x = 0; x < size; x++) {
      float t = kind == 4 ? (float)y / (float)size : (float)x / (float)size;
      for (int k = 0; k < 3; k++)
        canvas[3 * ((int64_t)y * size + x) + k] =
            from[k] + t * (to[k] - from[k]) + patch[8 * (8 * y / size) + 8 * x / size];
    }
}

/* The spec's cell first, then distinct other cells in random order. */
static void choose_cells(int first, int count, draws *d, int *cells) {
  int others[CELLS], n = 0;
  for (int cell = 0; cell < CELLS; cell++)
    if (cell != first) others[n++] = cell;
  cells[0] = first;
  for (int i = 1; i < count; i++) {
    int pick = below(d, n);
    cells[i] = others[pick];
    others[pick] = others[--n];
  }
}

static void distract(float *canvas, int size, draws *d) {
  for (int i = 1 + below(d, 3); i > 0; i--) {
    mark m = {.shape = below(d, SHAPES), .x = uniform(d, 0, (float)size), .y = uniform(d, 0, (float)size)};
    m.radius = uniform(d, 0.035f, 0.06f) * (float)size, m.angle = uniform(d, 0, 6.28f),
    m.alpha = uniform(d, 0.4f, 0.8f);
    for (int k = 0; k < 3; k++) m.color[k] = m.second[k] = uniform(d, 0.05f, 0.95f);
    draw_mark(canvas, size, &m);
  }
}

static void render(const int32_t *spec, int size, draws d, float *canvas, uint8_t *out) {
  static const float radius[SIZES] = {0.15f, 0.215f, 0.29f}, crowded[SIZES] = {0.1f, 0.13f, 0.165f};
  int count = spec[PG_CONCEPT_COUNT] + 1, cells[COUNTS];
  draw_background(canvas, size, spec[PG_CONCEPT_BACKGROUND], &d);
  distract(canvas, size, &d);
  choose_cells(spec[PG_CONCEPT_POSITION], count, &d, cells);
  float shade[3], second[3], light = uniform(&d, -0.15f, 0.15f), contrast = uniform(&d, 0.6f, 0.9f);
  bool whiten = below(&d, 2);
  for (int k = 0; k < 3; k++) {
    shade[k] = palette[spec[PG_CONCEPT_COLOR]][k] + light + uniform(&d, -0.16f, 0.16f);
    second[k] = shade[k] + contrast * ((whiten ? 1.0f : 0.0f) - shade[k]);
  }
  for (int i = 0; i < count; i++) {
    mark m = {.shape = spec[PG_CONCEPT_SHAPE], .texture = spec[PG_CONCEPT_TEXTURE], .alpha = 1};
    float scale = (float)size, step = count > 1 ? 0.29f : 0.25f, spread = count > 1 ? 0.055f : 0.11f;
    m.radius = scale * (count > 1 ? crowded : radius)[spec[PG_CONCEPT_SIZE]] * uniform(&d, 0.88f, 1.12f);
    m.x = scale * (0.5f + step * (float)(cells[i] % 3 - 1) + uniform(&d, -spread, spread));
    m.y = scale * (0.5f + step * (float)(cells[i] / 3 - 1) + uniform(&d, -spread, spread));
    m.angle = uniform(&d, -0.3f, 0.3f);
    memcpy(m.color, shade, sizeof shade), memcpy(m.second, second, sizeof second);
    draw_mark(canvas, size, &m);
  }
  float grain = uniform(&d, 0.02f, 0.07f);
  for (int64_t i = 0; i < 3 * (int64_t)size * size; i++) {
    float value = canvas[i] + uniform(&d, -grain, grain);
    out[i] = (uint8_t)(255 * fminf(fmaxf(value, 0), 1) + 0.5f);
  }
}

static int check_specs(const pg_tensor *specs) {
  if (specs->dtype != PG_INT32 || specs->device != PG_CPU || specs->ndim != 2 || specs->shape[1] != PG_CONCEPT_FIELDS ||
      !pg_is_contiguous(specs)) {
    char text[128];
    return pg_fail(PG_ERR_SHAPE,
                   "concepts_render: specs must be a contiguous int32 (N, %d) tensor on the cpu, got %s %s",
                   PG_CONCEPT_FIELDS, pg_dtype_name(specs->dtype), pg_shape_text(specs, text));
  }
  PG_TRY(pg_check_live(specs, "concepts_render"));
  const int32_t *spec = PG_AT(const int32_t, specs);
  for (int64_t i = 0; i < specs->shape[0]; i++)
    for (int f = 0; f < PG_CONCEPT_FIELDS; f++) {
      int32_t value = spec[i * PG_CONCEPT_FIELDS + f];
      if (value < 0 || value >= field_values[f])
        return pg_fail(PG_ERR_ARGUMENT, "concepts_render: scene %lld: %s is %lld, outside %lld..%lld",
                       (long long)pg_shown(i), field_name[f], (long long)pg_shown(value), (long long)pg_shown(0),
                       (long long)pg_shown(field_values[f] - 1));
    }
  return PG_OK;
}

int pg_concepts_render(const pg_tensor *specs, int32_t size, uint64_t seed, pg_tensor **out) {
  PG_TRY(check_specs(specs));
  if (size < 8 || size > MAX_SIZE)
    return pg_fail(PG_ERR_ARGUMENT, "concepts_render: size %d is outside 8..%d", size, MAX_SIZE);
  int64_t n = specs->shape[0], pixels = 3 * (int64_t)size * size;
  size_t canvas_bytes = (size_t)pixels * sizeof(float);
  pg_tensor *images;
  PG_TRY(pg_new(PG_UINT8, PG_CPU, 4, (int64_t[]){n, size, size, 3}, &images));
  const int32_t *spec = PG_AT(const int32_t, specs);
  uint8_t *data = PG_AT(uint8_t, images);
  int failed = 0;
#pragma omp parallel reduction(| : failed)
  {
    float *canvas = malloc(canvas_bytes); /* one a thread; every thread must reach the loop, with or without */
    failed = !canvas;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; i++)
      if (canvas && !pg_stopping())
        render(spec + i * PG_CONCEPT_FIELDS, size, draws_of(seed, (uint64_t)i), canvas, data + i * pixels);
    free(canvas);
  }
  int status = failed ? pg_fail(PG_ERR_MEMORY, "concepts_render: no memory for a canvas of %zu bytes", canvas_bytes)
                      : pg_unless_stopped(PG_OK);
  if (status) return pg_release(images), status;
  return *out = images, PG_OK;
}
