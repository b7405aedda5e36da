-- Lists of tensors around the edges of packs and chunks for optim.cu; N is 1, 31, 32, 33, 127, 128, 129, 1000.
return {
  adamw_ = {
    "{tensors = {randn(N), randn(3), randn(N), randn(3), randn(N), randn(3), uniform(0.1, 1, N), uniform(0.1, 1, 3)}, "
      .. "lr = 0.1, step = 3}",
    "{tensors = {randn(0), randn(N, 17), randn(2), randn(0), randn(N, 17), randn(2), randn(0), randn(N, 17), randn(2), "
      .. "randn(0), uniform(0.1, 1, N, 17), uniform(0.1, 1, 2)}, step = 1}",
    "{tensors = {zeros(0), zeros(0), zeros(0), zeros(0)}, step = 1}",
  },
  sgd_ = {
    "{tensors = {randn(N), randn(3), randn(N), randn(3), randn(N), randn(3)}, lr = 0.1, momentum = 0.9, weight_decay = 0.1}",
    "{tensors = {randn(N), randn(0), randn(N), randn(0), zeros(N) / 0, zeros(0)}, momentum = 0.9, first = true}",
  },
  clip_grad_norm_ = {
    "{tensors = {randn(N), randn(2, 2), randn(0)}, max_norm = 1}",
    "{tensors = {randn(N, 17) * 1e20, randn(5)}, max_norm = 1}",
    "{tensors = {randn(N), randn(5) / 0}, max_norm = 1}",
    "{tensors = {randn(N)}, max_norm = 1000}",
    "{tensors = {zeros(0)}, max_norm = 1}",
  },
}
