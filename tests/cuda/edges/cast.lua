-- Sizes around the edges of packs and blocks for copies, also of transposed tensors, and of values that saturate.
return {
  clone = { "{x = randn(N)}", "{x = randn(3, N):transpose(1, 2)}", "{x = bytes(9, N, 2):transpose(1, 2)}",
    "{x = randn(3, 2, N):permute(3, 1, 2)}", "{x = randn(3, 2 + N):narrow(2, 2, N)}", "{x = randn(0, 3)}",
    "{x = ints(9, N, 1):expand(N, 3)}", "{x = randn(33, 65):transpose(1, 2)}" },
  contiguous = { "{x = randn(2, N):transpose(1, 2)}", "{x = randn(N)}" },
  to = { "{x = randn(N) * 300, dtype = 'uint8'}", "{x = randn(3, N):transpose(1, 2) * 1e10, dtype = 'int32'}",
    "{x = randn(N) / 0, dtype = 'float64'}", "{x = ints(999, N), dtype = 'uint8'}", "{x = bytes(256, N), dtype = 'float32'}",
    "{x = bytes(256, N), dtype = 'int32'}", "{x = randn(2, N), dtype = 'float64'}" },
}
