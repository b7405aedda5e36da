-- Rows of every width (packs, warps), lists longer than a block sorts at once (2048), one row named by all.
return {
  index = {
    "{x = randn(5, N), index = ints(5, 9)}", "{x = randn(2, N, 3), index = ints(N, 2 * N + 100), dim = 2}",
    "{x = randn(3, N), index = ints(N, N), dim = 2}", "{x = randn(7, 4), index = ints(7, 5 * N)}",
    "{x = randn(3, 2), index = ints(1, N)}", "{x = bytes(256, 6, N), index = ints(6, 4)}",
    "{x = ints(9, 6, N), index = ints(6, 4)}", "{x = randn(3, N), index = ints(3, 0)}",
    "{x = randn(0, 3, N), index = ints(3, 4), dim = 2}",
  },
}
