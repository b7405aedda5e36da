-- Sizes around the edges of packs, warps and blocks for unary.cu; N is 1, 31, 32, 33, 127, 128, 129, 1000.
return {
  gelu = { "{x = randn(N)}", "{x = randn(3, N)}" },
  exp = { "{x = randn(N)}" }, log = { "{x = uniform(0.5, 2, N)}" }, sqrt = { "{x = uniform(0.5, 2, N)}" },
  rsqrt = { "{x = uniform(0.5, 2, N)}" }, tanh = { "{x = randn(N)}" }, sigmoid = { "{x = randn(N)}" },
  silu = { "{x = randn(N)}" }, relu = { "{x = randn(N)}" }, quick_gelu = { "{x = randn(N)}" },
  softplus = { "{x = randn(N)}" }, neg = { "{x = randn(N)}", "{x = ints(9, N)}" }, abs = { "{x = randn(N)}" },
  clamp = { "{x = randn(N), lo = -0.5, hi = 0.5}" },
}
