-- stats.lua - what experiments say of their seeds: means with intervals, correlations with bootstrap intervals.

local util = require "perigee.util"

local stats = {}

-- Student's t at 97.5%, by degrees of freedom.
local T = { 12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.30600, 2.26216, 2.22814 }

--- Student's t at 97.5%: a 95% interval reaches this many standard errors either way. Beyond ten degrees of freedom by the
-- expansion of Cornish and Fisher (Abramowitz and Stegun 26.7.5), good to four digits.
-- @param degrees  of freedom, 1 or more
-- @return a number
function stats.t(degrees)
  if T[degrees] then return T[degrees] end
  local z, n = 1.959964, degrees
  return z + (z ^ 3 + z) / (4 * n) + (5 * z ^ 5 + 16 * z ^ 3 + 3 * z) / (96 * n ^ 2)
    + (3 * z ^ 7 + 19 * z ^ 5 + 17 * z ^ 3 - 15 * z) / (384 * n ^ 3)
end

--- The mean and half of its 95% interval by Student's t.
-- @param values  list of numbers, one or more
-- @return two numbers; the half is 0 for a single value, of which nothing is known
function stats.interval(values)
  local n, sum, square = #values, 0, 0
  util.check(n > 0, "stats.interval: no values")
  for _, v in ipairs(values) do sum = sum + v end
  local mean = sum / n
  for _, v in ipairs(values) do square = square + (v - mean) ^ 2 end
  return mean, n > 1 and stats.t(n - 1) * math.sqrt(square / (n - 1) / n) or 0
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
