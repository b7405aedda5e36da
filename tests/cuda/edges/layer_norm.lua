-- For layer_norm.cu: rows over the edges of packs, of a warp's and of a block's registers, and streamed; more rows than
-- one group sums.
return {
  layer_norm = {
    "{x = randn(3, N), weight = randn(N), bias = randn(N)}",
    "{x = randn(N, 9), weight = randn(9)}",
    "{x = randn(5, N), bias = randn(N)}",
    "{x = randn(1, N * 5), weight = randn(N * 5), bias = randn(N * 5)}",
    "{x = randn(1, N * 16 + 500), weight = randn(N * 16 + 500)}",
    "{x = zeros(0, N), weight = randn(N), bias = randn(N)}",
  },
}
