-- Sizes around the edges of packs and blocks for compare.cu, with ties and NaN (0 / 0).
local list = {
  "{a = ints(3, N), b = ints(3, N)}", "{a = bytes(3, 2, N), b = bytes(3, 2, 1)}",
  "{a = zeros(N) / bytes(3, N):to('float32'), b = bytes(3, N):to('float32') - 1}",
  "{a = randn(3, N):to('float64'), b = randn(N):to('float64')}", "{a = randn(0, N), b = randn(N)}",
}
return { eq = list, ne = list, lt = list, le = list, gt = list, ge = list }
