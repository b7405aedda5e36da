-- Widths around packs and warps, and lists longer than a block sorts at once (2048).
return {
  embedding = {
    "{weight = randn(6, N), index = ints(6, 3, 4)}", "{weight = randn(N, 4), index = ints(N, 3, N)}",
    "{weight = randn(2, 3), index = ints(2, N)}", "{weight = randn(3, N), index = ints(3, 0)}",
  },
}
