-- Sizes around the edges of packs and blocks for where.cu: cond narrower and wider than what it picks from.
return {
  where = { "{cond = bytes(2, N), a = randn(N), b = randn(N)}", "{cond = bytes(2, 3, N), a = randn(N), b = randn(3, 1)}",
    "{cond = bytes(2, 3, 1), a = randn(1), b = randn(3, N)}", "{cond = bytes(2, N), a = ints(9, 2, N), b = ints(9, N)}",
    "{cond = bytes(2, N), a = bytes(9, N), b = bytes(9, 1)}", "{cond = bytes(2, 0, 3), a = randn(3), b = randn(1)}",
    "{cond = bytes(2, N, 1, 4), a = randn(2, 4), b = randn(1, 4)}" },
}
