-- Sizes around the edges of packs, strips of columns and stretches of rows for linear.cu; N is 1, 31, 32, 33, 127, 128,
-- 129, 1000.
return {
  linear = {
    "{x = randn(N, 4), weight = randn(5, 4), bias = randn(5)}",
    "{x = randn(3, 4), weight = randn(N, 4), bias = randn(N)}",
    "{x = randn(2, 3, N), weight = randn(8, N), bias = randn(8)}",
    "{x = randn(N, 2), weight = randn(8, 2), bias = randn(8)}",
    "{x = randn(0, N), weight = randn(4, N), bias = randn(4)}",
    "{x = randn(N, 0), weight = randn(4, 0), bias = randn(4)}",
    "{x = randn(3, N), weight = randn(0, N), bias = randn(0)}",
  },
}
