-- Sizes around the edges of packs, tiles and blocks for gradients of views, and copies of what they make.
return {
  reshape = { "{x = randn(4, N), shape = {-1, 2}}", "{x = randn(0, 3), shape = {3, 0}}" },
  transpose = { "{x = randn(3, N), dim0 = 1, dim1 = 2}", "{x = randn(N, 2, 3), dim0 = 1, dim1 = 3}",
    "{x = randn(33, 65), dim0 = 1, dim1 = 2}" },
  permute = { "{x = randn(2, N, 3), dims = {3, 1, 2}}" },
  narrow = { "{x = randn(3, 2 + N), dim = 2, start = 2, length = N}", "{x = randn(4), dim = 1, start = 2, length = 0}" },
  select = { "{x = randn(3, N), dim = 1, index = 2}", "{x = randn(N, 3), dim = -1, index = -1}" },
  unsqueeze = { "{x = randn(N), dim = 2}" }, squeeze = { "{x = randn(N, 1), dim = 2}" },
  expand = { "{x = randn(N, 1), shape = {N, 3}}", "{x = randn(1), shape = {N}}", "{x = randn(N), shape = {5, N}}",
    "{x = randn(1, 3), shape = {0, 3}}" },
}
