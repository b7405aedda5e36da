-- For softmax_regression.cu: few and many rows, features and classes.
return {
  softmax_regression = {
    "{x = randn(N, 5), weight = randn(3, 5), bias = randn(3), labels = ints(3, N)}",
    "{x = randn(7, N), weight = randn(4, N), bias = randn(4), labels = ints(4, 7)}",
    "{x = randn(9, 6), weight = randn(N, 6), bias = randn(N), labels = ints(N, 9)}",
  },
}
