-- For dropout.cu: the last block of the generator whole and in part; nothing kept; nothing dropped.
return {
  dropout = {
    "{x = randn(N), p = 0.3}",
    "{x = randn(3, N)}",
    "{x = randn(N), p = 1}",
    "{x = randn(N), p = 0.5, training = false}",
    "{x = zeros(0, N)}",
  },
}
