-- otdd.lua - the distance between two sets of 2,000 points, 10 classes each, at width 512, whole: distances of classes
-- too. At most 3 s. And what most of it stands on: 100 iterations of Sinkhorn in the log domain on 2,000 x 2,000.
--
--   LUA_PATH='lua/?.lua;lua/?/init.lua;;' OMP_NUM_THREADS=2 luajit tests/bench/otdd.lua [TIMES]     best of TIMES (5)
--   OMP_NUM_THREADS=2 python3 tests/bench/otdd_pot.py [TIMES]     the same by NumPy and POT, and by PyTorch

local pg = require "perigee"
pg.seed(1)
local N, D, CLASSES, TIMES = 2000, 512, 10, tonumber(arg and arg[1]) or 5

-- Features of length one around ten means, as an encoder gives them; `shift` moves the means.
local function set(means, shift)
  local labels = {}
  for i = 1, N do labels[i] = (i - 1) % CLASSES + 1 end
  labels = pg.tensor(labels, { dtype = "int32" })
  local moved = means + pg.randn(CLASSES, D) * shift
  return (moved:index(1, labels) + pg.randn(N, D) * 0.7):normalize(), labels
end

local function best(what, limit, fn)
  local least, work, result = math.huge, math.huge, nil
  for _ = 1, TIMES do
    local began, clock = pg.now(), os.clock()
    result = fn()
    least, work = math.min(least, pg.now() - began), math.min(work, os.clock() - clock)
  end
  print(("%-58s %7.3f s, %7.3f s of CPU   at most %g s  %s"):format(what, least, work, limit,
    least <= limit and "ok" or "MISSED"))
  return result
end

local means = pg.randn(CLASSES, D)
local xa, la = set(means, 0)
local xb, lb = set(means, 0.3)
local cost = pg.squared_distances(xa, xb) / 2
for _, dtype in ipairs { "float32", "float64" } do
  local c = cost:to(dtype)
  best("100 iterations of Sinkhorn, 2,000 x 2,000, " .. dtype, dtype == "float32" and 0.2 or 0.8, function()
    return pg.metrics.sinkhorn(c, { eps = 0.1, n_iter = 100, tolerance = 0 })
  end)
end
for _, inner in ipairs { "gaussian", "diagonal", "exact" } do
  local r = best("otdd, 2,000 and 2,000 points, 10 + 10 classes, " .. inner, 3, function()
    return pg.metrics.otdd(xa, la, xb, lb, { inner = inner })
  end)
  print(("  raw %.6f, rooted %.6f, eps %g, mean cost %.3f + %.3f, %d iterations, error %.1e"):format(r.raw, r.rooted, r.eps,
    r.scale.points, r.scale.labels, r.iterations, r.error))
end
local raw_a, raw_b = xa * 20, xb * 20
best("otdd, features of length 20: eps is 400 times smaller", 3, function() return pg.metrics.otdd(raw_a, la, raw_b, lb) end)
