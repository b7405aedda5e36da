-- Rows of either side around the edges of tiles (32 and 64), widths with and without packs; nothing at all.
return {
  squared_distances = {
    "{x = randn(N, 3), y = randn(5, 3)}", "{x = randn(3, 8), y = randn(N, 8)}", "{x = randn(4, N), y = randn(66, N)}",
    "{x = randn(0, N), y = randn(3, N)}", "{x = randn(N, 0), y = randn(2, 0)}",
  },
}
