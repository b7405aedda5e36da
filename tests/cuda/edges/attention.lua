-- Tiles of queries and keys, widths of heads around 32, 64 and 128 and beyond, masks and what sees nothing, for
-- attention.cu; N is 1, 31, 32, 33, 127, 128, 129, 1000.
return {
  attention = {
    "{q = randn(1, 1, N, 4), k = randn(1, 1, 5, 4), v = randn(1, 1, 5, 4), causal = true}",
    "{q = randn(1, 2, 70, 6), k = randn(1, 2, N, 6), v = randn(1, 2, N, 5), causal = true}",
    "{q = randn(1, 1, 3, N), k = randn(1, 1, 4, N), v = randn(1, 1, 4, 33)}",
    "{q = randn(1, 2, 3, 9), k = randn(1, 2, 67, 9), v = randn(1, 2, 67, N), causal = true, scale = 0.4}",
    "{q = randn(2, 1, N, 2), k = randn(2, 1, 3, 2), v = randn(2, 1, 3, 2), mask = randn(2, 1, N, 3):relu():log()}",
    "{q = randn(1, 2, 3, 2), k = randn(1, 2, N, 2), v = randn(1, 2, N, 2), mask = randn(1, 2, 3, N):relu():log()}",
    "{q = randn(1, 2, 3, 2), k = randn(1, 2, N, 2), v = randn(1, 2, N, 2), mask = zeros(3, N) - inf}",
    "{q = randn(1, 1, N, 0), k = randn(1, 1, 3, 0), v = randn(1, 1, 3, 4)}",
    "{q = randn(1, 1, N, 4), k = randn(1, 1, 0, 4), v = randn(1, 1, 0, 4)}",
    "{q = randn(1, 1, 0, 4), k = randn(1, 1, N, 4), v = randn(1, 1, N, 4)}",
    "{q = randn(0, 1, N, 4), k = randn(0, 1, 2, 4), v = randn(0, 1, 2, 4)}",
  },
  self_attention = { -- the same kernels: what differs is where heads stand
    "{qkv = randn(2, 3, 3 * N), heads = 1}",
    "{qkv = randn(2, 3, 24), mask = randn(1, 4, 3, 3):relu():log(), heads = 4, scale = 0.4}",
    "{qkv = randn(1, 37, 3 * 2 * 5), heads = 2, causal = true}",
    "{qkv = randn(1, 5, 3 * 8 * 33), heads = 8}",
    "{qkv = randn(N, 0, 12), heads = 2}",
  },
}
