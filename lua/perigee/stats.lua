-- stats.lua - what experiments and reports say of their seeds: means with intervals, correlations with bootstrap intervals.

local ffi = require "ffi"
local util = require "perigee.util"
ffi.cdef "double lgamma(double x);"

local stats = {}

-- The regularised incomplete beta function I_x(a, b) for x < (a + 1) / (a + b + 2), by its continued fraction
-- (Abramowitz and Stegun 26.5.8), evaluated as Lentz does.
local function beta_fraction(a, b, x)
  local tiny = 1e-300
  local c, d = 1, 1 - (a + b) * x / (a + 1)
  d = 1 / (math.abs(d) < tiny and tiny or d)
  local h = d
  for m = 1, 300 do
    local step = 1
    for _, term in ipairs { m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
      -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)) } do
      d, c = 1 + term * d, 1 + term / c
      d = 1 / (math.abs(d) < tiny and tiny or d)
      c = math.abs(c) < tiny and tiny or c
      step = d * c
      h = h * step
    end
    if math.abs(step - 1) < 1e-15 then break end
  end
  local log = ffi.C.lgamma(a + b) - ffi.C.lgamma(a) - ffi.C.lgamma(b) + a * math.log(x) + b * math.log(1 - x)
  return math.exp(log) * h / a
end

-- P(|T| > t) for Student's t with `df` degrees of freedom (Abramowitz and Stegun 26.7.1).
local function two_tails(t, df)
  local a, b, x = df / 2, 0.5, df / (df + t * t)
  if x < (a + 1) / (a + b + 2) then return beta_fraction(a, b, x) end
  return 1 - beta_fraction(b, a, 1 - x)
end

local quantiles = {}

--- The 97.5% quantile of Student's t. @param df  degrees of freedom, 1 or more @return a number, right to twelve digits
function stats.t(df)
  if not quantiles[df] then
    local low, high = 1.9, quantiles[df - 1] or 13 -- 1.96 for infinitely many, 12.71 for one; it falls in between
    while high - low > 1e-12 do
      local middle = (low + high) / 2
      if two_tails(middle, df) > 0.05 then low = middle else high = middle end
    end
    quantiles[df] = (low + high) / 2
  end
  return quantiles[df]
end

--- Mean and half the width of its 95% interval, Student's: t s / sqrt(n), where s is the sample's standard deviation.
-- @param values  list of numbers
-- @return the mean, NaN when there is no value; half the width, NaN for fewer than two values
function stats.interval(values)
  local n, sum, squares = #values, 0, 0
  for _, v in ipairs(values) do sum = sum + v end
  if n == 0 then return 0 / 0, 0 / 0 end
  local mean = sum / n
  for _, v in ipairs(values) do squares = squares + (v - mean) ^ 2 end
  if n < 2 then return mean, 0 / 0 end
  return mean, stats.t(n - 1) * math.sqrt(squares / (n - 1) / n)
end

--- Pearson's correlation. @param x, y lists of one length, two or more @return a number in -1..1; 0 where one is constant
function stats.pearson(x, y)
  util.check(#x == #y and #x >= 2, "stats.pearson: needs two lists of one length, two or more, got %d and %d", #x, #y)
  local n, mx, my, xx, yy, xy = #x, 0, 0, 0, 0, 0
  for i = 1, n do mx, my = mx + x[i] / n, my + y[i] / n end
  for i = 1, n do
    local a, b = x[i] - mx, y[i] - my
    xx, yy, xy = xx + a * a, yy + b * b, xy + a * b
  end
  return xx * yy > 0 and xy / math.sqrt(xx * yy) or 0
end

-- Ranks from 1; equal values share the mean of theirs.
local function ranks(values)
  local order, rank = {}, {}
  for i = 1, #values do order[i] = i end
  table.sort(order, function(a, b) return values[a] < values[b] end)
  local i = 1
  while i <= #order do
    local j = i
    while j < #order and values[order[j + 1]] == values[order[i]] do j = j + 1 end
    for k = i, j do rank[order[k]] = (i + j) / 2 end
    i = j + 1
  end
  return rank
end

--- Spearman's rank correlation; ties share their mean rank. @param x, y as stats.pearson @return a number in -1..1
function stats.spearman(x, y) return stats.pearson(ranks(x), ranks(y)) end

--- A percentile bootstrap interval of a correlation (Efron 1979): whole clusters are drawn with replacement, since points of
-- one run are not independent.
-- @param statistic  function(x, y), such as stats.pearson
-- @param x, y       lists of one length
-- @param options    {clusters = list: which cluster a point belongs to (default: each its own), draws = 2000, seed = 0}
-- @return the lower and upper bounds of the 95% interval
function stats.bootstrap(statistic, x, y, options)
  local o = util.options("stats.bootstrap", options, { clusters = util.none, draws = 2000, seed = 0 })
  local members, names = {}, {}
  for i = 1, #x do
    local name = o.clusters and o.clusters[i] or i
    if not members[name] then members[name], names[#names + 1] = {}, name end
    table.insert(members[name], i)
  end
  local random, values = require("perigee.data.random").new(o.seed), {}
  for d = 1, o.draws do
    local a, b = {}, {}
    for _ = 1, #names do
      for _, i in ipairs(members[names[random:below(#names)]]) do a[#a + 1], b[#b + 1] = x[i], y[i] end
    end
    values[d] = statistic(a, b)
  end
  table.sort(values)
  return values[math.max(1, math.floor(0.025 * o.draws))], values[math.ceil(0.975 * o.draws)]
end

return stats
