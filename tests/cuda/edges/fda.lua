-- Batches and lists around the edges of tiles (32 and 64) and of a block's 32 pairs; widths with and without packs.
return {
  fda_weights = {
    "{unit = randn(N, 5):normalize(), neighbors = ints(N, N, 1), nearest = randn(N, 1)}",
    "{unit = randn(3, N):normalize(), neighbors = ints(3, 3, 1), nearest = randn(3, 1), negative = \"one\"}",
  },
  fda_loss = {
    "{x = randn(N == 1 and 770 or 2, 2), weights = randn(N == 1 and 770 or 2, N == 1 and 770 or 2)}",
    "{x = randn(math.min(N, 129) + 1, 5), weights = randn(math.min(N, 129) + 1, math.min(N, 129) + 1), tau = 0.5}",
    "{x = randn(9, N), weights = randn(9, 9), scale = uniform(1, 2, 1), bias = randn(1)}",
  },
  fda_pairs = {
    "{x = randn(2, 8), y = randn(2, N, 8), weights = randn(2, N), tau = 0.5, bias_value = 0.3, normalizer = N}",
    "{x = randn(3, N), y = randn(3, 4, N), weights = randn(3, 4), scale = uniform(1, 2, 1), bias = randn(1), "
      .. "normalizer = 4}",
    "{x = randn(2, 4), y = zeros(2, 0, 4), weights = zeros(2, 0), normalizer = 1}",
  },
}
