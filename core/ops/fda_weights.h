/* fda_weights.h - what a non-neighbour of cosine s weighs: slope * s + shift, in the order of the op's `negative`. */
typedef struct rest_weight {
  double slope, shift;
} rest_weight;
static const rest_weight rests[] = {{-1, 0}, {0, -1}, {1, -1}};
