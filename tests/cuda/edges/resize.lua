-- Rows of whole fours and others, one axis and both, growing and shrinking; columns past one block. resize is to the bit,
-- since a byte that differs is off by far more than the tolerance.
return {
  resize = {
    "{x = bytes(256, 5, N, 3), height = 3, width = 7}", "{x = bytes(256, N, 3, 4), height = 5, width = 6}",
    "{x = bytes(256, 2, 4, 5, 1), height = 3, width = N}", "{x = bytes(256, 6, 4, 3), height = N, width = 4}",
    "{x = bytes(256, 3, N, 4), height = 2, width = N, mode = 'bilinear'}",
    "{x = bytes(256, 3, N, 1), height = 3, width = 40, mode = 'bilinear'}",
    "{x = bytes(256, 3, N, 2), height = 3, width = N}", "{x = bytes(256, 0, N, 2, 3), height = 3, width = 5}",
    "{x = bytes(256, 2, N, 2, 0), height = 3, width = 5}",
  },
  crop = {
    "{x = randn(2, 5, N, 3), top = 2, left = 1, height = 3, width = N}",
    "{x = randn(N, 4, 1), top = -1, left = 3, height = 1, width = 2}",
    "{x = randn(N, 4, 1), top = 1, left = 3, height = 0, width = 2}",
  },
  flip = {
    "{x = randn(N)}", "{x = randn(3, N), dims = {1}}", "{x = randn(3, N), dims = {2}}", "{x = randn(2, N, 3)}",
    "{x = randn(2, N, 3), dims = {3, 1}}", "{x = bytes(256, 3, N, 2), dims = {2}}", "{x = ints(9, N, 2), dims = {1}}",
    "{x = randn(0, N)}",
  },
}
