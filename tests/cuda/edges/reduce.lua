-- For reduce.cu: reduced dimensions that are the last, the first, in the middle, all and several; rows over the edges of
-- packs and of a warp's share; long rows in several chunks; few and many neighbours.
local shapes = {
  "{x = randn(3, N), dim = 2}",
  "{x = randn(N, 33), dim = 1}",
  "{x = randn(2, N, 3), dim = 2}",
  "{x = randn(N * 9)}",
}
local function with(more, list)
  local out = {}
  for i, text in ipairs(list or shapes) do out[i] = text:gsub("}$", more .. "}") end
  return out
end
local function join(a, b)
  local out = {}
  for _, list in ipairs { a, b } do
    for _, text in ipairs(list) do out[#out + 1] = text end
  end
  return out
end
return {
  sum = join(shapes, {
    "{x = randn(2, N, 3, 2), dim = {1, 3}}",
    "{x = randn(N, 2, 5), dim = {1, 3}, keepdim = true}",
    "{x = bytes(256, 3, N), dim = 2}",
    "{x = ints(9, N, 3), dim = 1}",
    "{x = bytes(256, N * 16)}",
    "{x = zeros(N, 0), dim = 2}",
    "{x = zeros(0, N), dim = 1}",
    "{x = zeros(0, N), dim = 2}",
    "{x = randn(N):select(1, 1)}",
    "{x = randn(5, 1):expand(5, N), dim = 2}",
  }),
  mean = shapes,
  max = join(shapes, { "{x = ints(3, 5, N), dim = 2}", "{x = bytes(9, N, 5), dim = 1}", "{x = zeros(3, N)}" }),
  min = { shapes[1], shapes[3], "{x = ints(3, N * 9)}", "{x = bytes(9, 5, N), dim = 2}" },
  argmax = join(shapes, { "{x = ints(3, 5, N), dim = 2}", "{x = bytes(9, N, 5), dim = 1}", "{x = zeros(N * 9)}" }),
  argmin = { shapes[2], shapes[4], "{x = ints(3, N * 9)}", "{x = ints(3, 2, N, 2), dim = {1, 3}}" },
  var = with(", unbiased = false"),
  logsumexp = join(shapes, { "{x = zeros(N, 0), dim = 2}", "{x = randn(2, N) * 100}", "{x = zeros(3, N) / 0}" }),
  norm = join(with("", { shapes[1], shapes[2], shapes[4], "{x = zeros(N, 0), dim = 2}" }),
    join(with(", p = inf", { shapes[1], shapes[3] }), with(", p = 1.5", { shapes[1], "{x = zeros(2, N), dim = 2}" }))),
}
