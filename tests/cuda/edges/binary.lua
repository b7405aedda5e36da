-- Sizes around the edges of packs and blocks for binary.cu; N is 1, 31, 32, 33, 127, 128, 129, 1000. One shape, a
-- last-dimension vector, a column, a number, both stretched, middle dimensions, and nothing at all.
local both = {
  "{a = randn(N), b = randn(N)}", "{a = randn(3, N), b = randn(N)}", "{a = randn(2, N), b = randn(2, 1)}",
  "{a = randn(N), b = randn(1)}", "{a = randn(N, 1), b = randn(1, 4)}", "{a = randn(1, 3, N), b = randn(2, 1, N)}",
}
return {
  add = { "{a = randn(N), b = randn(N)}", "{a = randn(2, N), b = randn(2, 1)}", "{a = randn(3, N), b = randn(N)}",
    "{a = ints(9, 3, N), b = ints(9, N)}", "{a = bytes(256, 2, N), b = bytes(256, 2, N)}",
    "{a = randn(0, N), b = randn(N)}", "{a = randn(2, 0), b = randn(2, 1)}" },
  sub = { "{a = randn(N), b = randn(N)}", "{a = randn(N), b = randn(3, N)}", "{a = randn(2, 3, N), b = randn(3, 1)}",
    "{a = ints(9, N), b = ints(9, N)}", "{a = bytes(256, N), b = bytes(256, N)}", "{a = randn(0), b = randn(1)}" },
  mul = { both[1], both[2], both[3], both[4], both[5], both[6], "{a = ints(9, N), b = ints(9, N)}",
    "{a = bytes(256, N), b = bytes(256, N)}", "{a = randn(0, 4), b = randn(4)}", "{a = randn(2, 4, 4), b = randn(4, 1)}",
    "{a = randn(4, 2, 1, 8), b = randn(2, 3, 1)}" },
  div = { "{a = randn(3, N), b = uniform(0.5, 2, N)}", "{a = randn(1), b = uniform(0.5, 2, N)}",
    "{a = ints(99, N), b = ints(9, N)}", "{a = bytes(256, 2, N), b = bytes(200, N):clone() + 1}" },
  pow = { "{a = uniform(0.5, 2, 3, N), b = randn(N)}", "{a = uniform(0.5, 2, N), b = zeros(1)}",
    "{a = ints(9, 2, N), b = ints(12, 2, 1)}", "{a = bytes(256, N), b = bytes(9, N)}" },
  maximum = { both[1], both[2], "{a = ints(9, N), b = ints(9, N)}", "{a = zeros(3, N), b = zeros(N)}" },
  minimum = { both[1], both[3], "{a = bytes(9, N), b = bytes(9, N)}", "{a = zeros(3, N), b = zeros(N)}" },
  add_scalar = { "{x = randn(N), value = 2.5}", "{x = ints(9, N), value = -7}", "{x = bytes(256, N), value = 200}" },
  mul_scalar = { "{x = randn(N), value = -3}", "{x = ints(9, N), value = 70000}", "{x = randn(0), value = 2}" },
  pow_scalar = { "{x = uniform(0.5, 2, N), value = 1.7}", "{x = randn(N), value = 2}", "{x = randn(N), value = 0}",
    "{x = bytes(256, N), value = 3}" },
}
