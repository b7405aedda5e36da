-- Many columns (a thread walks each), and few long ones (sorted: over 256 to a column, up to several tiles of 2048).
return {
  gather = {
    "{x = randn(N, 5), index = ints(5, N, 2)}", "{x = randn(3, N), index = ints(N, 3, 2 * N)}",
    "{x = randn(N, 2), index = ints(N, 2 * N, 2), dim = 1}", "{x = randn(N), index = ints(N, 5 * N)}",
    "{x = ints(9, 3, N), index = ints(N, 3, 7)}", "{x = bytes(256, 3, N), index = ints(N, 3, 7)}",
    "{x = randn(N, 4), index = ints(4, N, 0)}",
  },
  scatter_add = {
    "{x = randn(N, 5), index = ints(5, N, 2), src = randn(N, 2)}",
    "{x = randn(3, N), index = ints(N, 3, 2 * N), src = randn(3, 2 * N)}",
    "{x = randn(2), index = ints(2, 5 * N), src = randn(5 * N)}",
    "{x = randn(N, 4), index = ints(4, N, 0), src = randn(N, 0)}",
  },
}
