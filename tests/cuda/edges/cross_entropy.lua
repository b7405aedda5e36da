-- For cross_entropy.cu: few and many rows and classes.
return {
  cross_entropy = {
    "{logits = randn(3, N), labels = ints(N, 3)}",
    "{logits = randn(N, 5), labels = ints(5, N), label_smoothing = 0.1}",
    "{logits = randn(2, N * 4 + 1), labels = ints(N * 4 + 1, 2), label_smoothing = 0.3}",
  },
}
