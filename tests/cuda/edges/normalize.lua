-- For normalize.cu: the last dimension and one in the middle, lines below eps, of no elements, and longer than registers.
return {
  normalize = {
    "{x = randn(3, N)}",
    "{x = randn(2, N, 3), dim = 2}",
    "{x = randn(N, 40), dim = 1}",
    "{x = randn(3, N), eps = 0.9}",
    "{x = randn(1, N * 8 + 1)}",
    "{x = zeros(3, N)}",
    "{x = zeros(N, 0)}",
    "{x = zeros(0, N)}",
  },
}
