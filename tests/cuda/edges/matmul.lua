-- Shapes that stack, batch, repeat or sum in matmul.cu; N is 1, 31, 32, 33, 127, 128, 129, 1000.
return {
  matmul = {
    "{a = randn(N, 3), b = randn(3, 4)}",
    "{a = randn(3, N), b = randn(N, 2)}",
    "{a = randn(4, 2, 3), b = randn(3, N)}", -- rows stacked
    "{a = randn(2, 3, 4), b = randn(N, 2, 4, 2)}", -- a shared along the first of two dimensions
    "{a = randn(N, 1, 2, 3), b = randn(3, 3, 2)}", -- each shared along one
    "{a = randn(256, 257), b = randn(3, 257, 1)}", -- a gradient too large to be made three times (FILLS)
    "{a = randn(0, 2, 3), b = randn(3, N)}",
    "{a = randn(2, 0), b = randn(0, N)}",
    "{a = randn(3, 2, N), b = randn(3, N, 0)}",
  },
}
