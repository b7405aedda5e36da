-- Planes around the edges of warps and blocks, groups, steps and taps for conv2d.cu; N is 1, 31, 32, 33, 127, 128, 129,
-- 1000.
return {
  conv2d = {
    "{x = randn(2, 2, 3, N), weight = randn(3, 2, 3, 1), bias = randn(3), padding = {1}}",
    "{x = randn(1, 4, 3, N), weight = randn(4, 1, 2, 3), bias = randn(4), groups = 4, padding = {0, 1}}",
    "{x = randn(1, 2, N, 5), weight = randn(2, 2, 2, 2), stride = {2, 3}, padding = {1, 2}, dilation = {1, 2}}",
    "{x = randn(2, 1, N, 4), weight = randn(1, 1, 3, 3), stride = {4}, padding = {5}, dilation = {3}}",
    "{x = randn(N, 2, 3, 3), weight = randn(3, 2, 1, 1), bias = randn(3)}",
    "{x = randn(1, N, 2, 2), weight = randn(N, 1, 2, 2), bias = randn(N), groups = N}",
    "{x = randn(2, 3, 8, 8), weight = randn(N, 3, 4, 4), bias = randn(N), stride = {4}}",
    "{x = randn(0, 2, 3, 3), weight = randn(N, 2, 2, 2), bias = randn(N)}",
    "{x = randn(2, 2, 3, 3), weight = randn(0, 2, 2, 2), bias = randn(0)}",
    "{x = randn(2, 2, 0, 3), weight = randn(3, 2, 2, 2), padding = {1}}",
  },
}
