-- continual.lua - what the matrix of a task sequence says: R[t][i] is the accuracy on task i after training on task t.

local util = require "perigee.util"

local function mean(list)
  local sum = 0
  for _, value in ipairs(list) do sum = sum + value end
  return #list > 0 and sum / #list or nil
end

local function check_matrix(R, chance)
  util.check(type(R) == "table" and #R > 0, "metrics.continual: needs a matrix, a list of rows, one a step")
  for t, row in ipairs(R) do
    util.check(type(row) == "table" and (#row == t or #row == #R),
      "metrics.continual: row %d has %s entries: %d (the tasks so far) or %d (all) are right", t,
      type(row) == "table" and #row or "no", t, #R)
    for i, value in ipairs(row) do
      util.check(type(value) == "number" and value == value, "metrics.continual: R[%d][%d] is %s, not a number", t, i,
        tostring(value))
    end
  end
  util.check(chance == nil or #chance == #R, "metrics.continual: %d chances for %d tasks", chance and #chance or 0, #R)
end

-- fn(i) for tasks first..last, averaged; nil when one of them is not known.
local function over(first, last, fn)
  local list = {}
  for i = first, last do
    local value = fn(i)
    if value == nil then return nil end
    list[#list + 1] = value
  end
  return mean(list)
end

return function(metrics)
  --- What follows from the accuracies of a sequence of T tasks, with R[t][i] that of task i after training on task t:
  --   average[t] = mean over i <= t of R[t][i];  incremental = mean over t of average[t];  last = average[T]
  --   forgetting = mean over i < T of (max over t < T of R[t][i]) - R[T][i]        (Chaudhry et al., arXiv 1801.10112)
  --   backward = mean over i < T of R[T][i] - R[i][i]                    (Lopez-Paz and Ranzato, arXiv 1706.08840)
  --   forward = mean over i > 1 of R[i-1][i] - chance[i]                 (the same)
  --   transfer = mean over i > 1 of (mean over j < i of R[j][i])         (ZSCL: Zheng et al., arXiv 2303.06628)
  --   avg = mean of all R                                                (the same)
  -- ZSCL's last is `last`. mammoth's forgetting takes the maximum over the last step too: it is never below 0.
  -- @param R        list of T rows, each of the tasks so far or of all T; what needs the entries of tasks to come is
  --   nil where they are not there
  -- @param options  {chance = list of T accuracies before anything was learnt, for `forward`; clip = false: true counts
  --   a task's negative forgetting as 0, as mammoth does}
  -- @return {average = list, incremental, last, forgetting, backward, forward, transfer, avg}; of one task alone
  --   forgetting and transfers are nil
  -- @raises on rows of another length, on entries that are no numbers
  function metrics.continual(R, options)
    local o = util.options("metrics.continual", options, { chance = util.none, clip = false })
    check_matrix(R, o.chance)
    local T, average = #R, {}
    for t = 1, T do average[t] = over(1, t, function(i) return R[t][i] end) end
    local function forgotten(i)
      local best = -math.huge
      for t = 1, o.clip and T or T - 1 do best = math.max(best, R[t][i] or best) end
      return best - R[T][i]
    end
    return {
      average = average, incremental = mean(average), last = average[T],
      forgetting = over(1, T - 1, forgotten),
      backward = over(1, T - 1, function(i) return R[T][i] - R[i][i] end),
      forward = o.chance and over(2, T, function(i) return R[i - 1][i] and R[i - 1][i] - o.chance[i] end),
      transfer = over(2, T, function(i) return over(1, i - 1, function(j) return R[j][i] end) end),
      avg = over(1, T, function(t) return over(1, T, function(i) return R[t][i] end) end),
    }
  end
end
