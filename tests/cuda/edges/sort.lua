-- Lines around the edges of runs, of the pieces that a block sorts (2,048) and of several pieces; equal values, NaN and
-- both zeros; whole numbers; dimensions in the middle.
local long = "randn(2, N == 1 and 2049 or N == 33 and 6150 or N)" -- several pieces in two of the sizes, one in the others
return {
  sort = {
    "{x = " .. long .. "}", "{x = ints(5, 3, N), descending = true}", "{x = bytes(7, N)}",
    "{x = randn(2, N, 3), dim = 2, descending = true}",
    "{x = (ints(5, 2, N):to('float32') - 3):sqrt() * -1}", -- NaN where negative; -0
    "{x = ints(5, N == 1 and 4100 or N):to('float32'), descending = true}", "{x = zeros(0, N)}", "{x = zeros(N, 0)}",
  },
  topk = {
    "{x = " .. long .. ", k = 1}", "{x = " .. long .. ", k = math.max(1, math.floor(N / 3)), largest = false}",
    "{x = ints(3, N == 1 and 5000 or N), k = N == 1 and 2000 or N}", "{x = randn(2, N, 33), dim = 2, k = N}",
    "{x = (ints(9, 2, N == 1 and 3000 or N):to('float32') - 3):sqrt(), k = N}", "{x = bytes(9, 4, N), k = 1}",
  },
}
