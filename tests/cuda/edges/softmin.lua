-- For softmin.cu and lines.h: rows and columns over the edges of packs, of a warp's and a block's registers, and
-- streamed; no rows, no columns, no mass.
return {
  softmin = {
    "{cost = uniform(0, 2, 3, N), potential = randn(N), log_weights = randn(N), eps = 0.5}",
    "{cost = uniform(0, 2, N, 3), potential = randn(3), eps = 0.1}",
    "{cost = uniform(0, 2, N, 33), potential = randn(N), log_weights = randn(N), eps = 0.2, transpose = true}",
    "{cost = uniform(0, 2, 2, N), potential = randn(2), eps = 0.5, transpose = true}",
    "{cost = uniform(0, 2, 1, N * 17), potential = randn(N * 17), eps = 0.5}",
    "{cost = uniform(0, 2, N * 9, 2), potential = randn(N * 9), eps = 0.5, transpose = true}",
    "{cost = randn(3, N), potential = randn(N), log_weights = zeros(N) - inf, eps = 1}",
    "{cost = zeros(0, N), potential = randn(N), eps = 1}", "{cost = zeros(N, 0), potential = zeros(0), eps = 1}",
    "{cost = zeros(0, N), potential = zeros(0), eps = 1, transpose = true}",
  },
}
