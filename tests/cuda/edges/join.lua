-- Sizes around the edges of packs and blocks for join.cu, tensors of different widths, and empty ones among them.
return {
  cat = { "{tensors = {randn(N), randn(3), randn(N)}}", "{tensors = {randn(3, N), randn(3, 1), randn(3, 4)}, dim = 2}",
    "{tensors = {randn(2, N, 2), randn(2, 0, 2), randn(2, 3, 2)}, dim = 2}", "{tensors = {bytes(9, N), bytes(9, 5)}}",
    "{tensors = {ints(9, 2, N), ints(9, 2, N)}, dim = -1}", "{tensors = {randn(0), randn(0)}}" },
  stack = { "{tensors = {randn(N), randn(N)}}", "{tensors = {randn(N), randn(N), randn(N)}, dim = -1}",
    "{tensors = {randn(2, N), randn(2, N)}, dim = 2}", "{tensors = {randn(0), randn(0)}}" },
}
