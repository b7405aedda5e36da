/* fda_weights.c - the weights of a batch's neighbour graph (Proxy-FDA, arXiv 2505.24088; docs/method.md, section 1.2a).
 *
 *   w_ij = s_ij  for the k nearest others j of anchor i, s = cos;   -s_ij, -1 or s_ij - 1  for the rest;   w_ii = 0
 *
 * The cosines are computed in the weights' own place, so that one (B, B) matrix is all that a graph takes. */
#ifdef REAL

PG_SIMD static void K(weigh_others)(int64_t n, real least, real slope, real shift, real *restrict s) {
  for (int64_t j = 0; j < n; j++) s[j] = slope * (s[j] > least ? s[j] : s[j] != s[j] ? s[j] : least) + shift;
}

static int K(fda_weights_forward)(pg_call *c) {
  int64_t b = c->in[0]->shape[0], d = c->in[0]->shape[1], k = c->in[1]->shape[1];
  const real *unit = PG_AT(real, c->in[0]), *nearest = PG_AT(real, c->in[2]);
  const int32_t *neighbors = PG_AT(int32_t, c->in[1]);
  real *w = PG_AT(real, c->out[0]), least = c->p[1].ints[0] ? 0 : -INFINITY;
  rest_weight rest = rests[c->p[0].ints[0]];
  PG_TRY(K(pg_syrk)(b, d, unit, d, w, b));
#pragma omp parallel for schedule(static) if (b > 96)
  for (int64_t i = 0; i < b; i++) {
    real *row = w + i * b;
    if (pg_stopping()) continue;
    K(weigh_others)(b, least, (real)rest.slope, (real)rest.shift, row);
    row[i] = 0;
    for (int64_t t = i * k; t < (i + 1) * k; t++) row[neighbors[t]] = nearest[t] < least ? least : nearest[t];
  }
  return PG_OK;
}

#else
#include "../op.h"
#include "fda_weights.h"
#define REALS_FILE "ops/fda_weights.c"
#include "../reals.h"

static int fda_weights_shape(pg_call *c) {
  const pg_tensor *unit = c->in[0], *neighbors = c->in[1], *nearest = c->in[2];
  if (nearest->dtype != unit->dtype)
    return pg_fail(PG_ERR_DTYPE, "fda_weights: dtypes differ: unit is %s, nearest is %s", pg_dtype_name(unit->dtype),
                   pg_dtype_name(nearest->dtype));
  if (unit->ndim != 2 || neighbors->ndim != 2 || neighbors->shape[0] != unit->shape[0] ||
      !pg_same_shape(neighbors, nearest))
    return pg_op_fail(c, "takes unit features (B, D), their neighbours (B, k) and how near these are (B, k)");
  PG_TRY(pg_check_indices(c, neighbors, unit->shape[0], "neighbors"));
  int64_t square[2] = {unit->shape[0], unit->shape[0]};
  return pg_out(c, 0, unit->dtype, 2, square);
}

const pg_op pg_op_fda_weights = {
    .info = {.name = "fda_weights",
             .doc = "the signed weights of a neighbour graph: cosines of neighbours, negative ones of the rest",
             .source = "Proxy-FDA, arXiv 2505.24088, section 3; docs/method.md",
             .inputs = PG_ARGS({"unit", 0, "(B, D) features of length 1"},
                               {"neighbors", PG_INDEX, "(B, k) int32, all different in a row, without the anchor"},
                               {"nearest", 0, "(B, k) their cosines"}),
             .outputs = PG_ARGS({"weights", 0, "(B, B), zero diagonal"}),
             .params = PG_PARAMS(PG_WORD("negative", 0, "similarity one complement",
                                         "the weight of a non-neighbour of cosine s: -s, -1 or s - 1"),
                                 PG_FLAG("clamp", 1, "cosines below 0 count as 0")),
             .no_backward = "the graph belongs to the pre-trained model, which is not trained",
             .samples = PG_SAMPLES("{unit = randn(5, 4):normalize(), neighbors = ints(5, 5, 1), nearest = randn(5, 1)}",
                                   "{unit = randn(4, 6):normalize(), neighbors = ints(4, 4, 1), nearest = randn(4, 1), "
                                   "negative = \"complement\", clamp = false}")},
    .shape = fda_weights_shape,
    .forward = PG_REALS(fda_weights_forward)};
#endif
