-- summary.lua - what a sweep has found: its best points, mean and 95% interval over seeds, and where they are.

local folder = require "perigee.sweep.folder"
local util = require "perigee.util"

local summary = {}

local SHOWN = 10 -- points in the table

-- Student's t, 97.5%, for 1, 2, ... degrees of freedom; then for 40, 60, 120 and more.
local T = { 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
  2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042 }

local function student(freedom)
  return T[freedom] or freedom <= 40 and 2.042 or freedom <= 60 and 2.021 or freedom <= 120 and 2.000 or 1.980
end

--- Mean and half of the 95% interval (Student's t) of a list of numbers. @return mean, half; no half for one number
function summary.interval(values)
  local n, sum, square = #values, 0, 0
  for _, v in ipairs(values) do sum = sum + v end
  local mean = sum / n
  for _, v in ipairs(values) do square = square + (v - mean) ^ 2 end
  return mean, n > 1 and student(n - 1) * math.sqrt(square / (n - 1) / n) or nil
end

--- The states of all planned runs, and the metrics of those that are done.
-- @return {done =, stopped =, failed =, unfinished =, new =} counts; name -> {state =, about =, metric =}
function summary.scan(plan)
  local counts, runs = { done = 0, stopped = 0, failed = 0, unfinished = 0, new = 0 }, {}
  for _, planned in ipairs(plan.runs) do
    local path = plan.folder .. "/" .. planned.name
    local state, about = folder.state(path)
    counts[state] = counts[state] + 1
    runs[planned.name] = { state = state, about = about,
      metric = state == "done" and folder.metric(path, about, plan.metric) or nil }
  end
  return counts, runs
end

--- Whether a is better than b in the plan's direction.
function summary.better(plan, a, b)
  if plan.direction == "max" then return a > b end
  return a < b
end

--- A number as people read it. @return text
function summary.short(x) return (("%.4g"):format(x)) end

-- The options that differ between runs, sorted: the others are the same in every row and say nothing.
local function varying(plan)
  local first, differs, names = plan.runs[1].options, {}, {}
  for _, planned in ipairs(plan.runs) do
    for name, value in pairs(planned.options) do differs[name] = differs[name] or first[name] ~= value end
    for name in pairs(first) do differs[name] = differs[name] or planned.options[name] == nil end
  end
  for name, yes in pairs(differs) do
    if yes then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

--- A run's options that differ from other runs', as text. @param names what summary.varying returned
function summary.words(names, options)
  local list = {}
  for _, name in ipairs(names) do
    local value = options[name]
    if value ~= nil then
      list[#list + 1] = name .. "=" .. (type(value) == "number" and util.number(value) or tostring(value))
    end
  end
  return #list > 0 and table.concat(list, " ") or "(the recipe's defaults)"
end
summary.varying = varying

-- Points with all their seeds: {id, options, values, best = {name, metric}}, the best mean first.
local function points(plan, runs)
  local by_id, list = {}, {}
  for _, planned in ipairs(plan.runs) do
    local metric = runs[planned.name].metric
    if metric then
      local point = by_id[planned.id]
      if not point then
        point = { id = planned.id, options = planned.options, values = {}, names = {} }
        by_id[planned.id], list[#list + 1] = point, point
      end
      point.values[#point.values + 1] = metric
      if not point.best or summary.better(plan, metric, point.best) then point.best, point.path = metric, planned.name end
    end
  end
  for i, point in ipairs(list) do
    point.mean, point.half = summary.interval(point.values)
    point.order = i
  end
  table.sort(list, function(a, b)
    if a.mean ~= b.mean then return summary.better(plan, a.mean, b.mean) end
    return a.order < b.order
  end)
  return list
end

-- Rows of text in columns, the numbers to the right.
local function columns(rows, right)
  local widths, lines = {}, {}
  local function width(text) return #text:gsub("[\128-\191]", "") end -- a character of UTF-8 counts once
  for _, row in ipairs(rows) do
    for i, cell in ipairs(row) do widths[i] = math.max(widths[i] or 0, width(cell)) end
  end
  for _, row in ipairs(rows) do
    local cells = {}
    for i, cell in ipairs(row) do
      local space = (" "):rep(widths[i] - width(cell))
      cells[i] = right[i] and space .. cell or cell .. space
    end
    lines[#lines + 1] = (table.concat(cells, "  "):gsub(" +$", ""))
  end
  return lines
end

-- Why there is nothing to compare: the nearest path that a result does have.
local function no_metric(plan, runs)
  for _, planned in ipairs(plan.runs) do
    local found = runs[planned.name]
    if found.state == "done" then
      local known = {}
      for _, leaf in ipairs(folder.leaves(found.about)) do
        if type(leaf[2]) == "number" then known[#known + 1] = leaf[1] end
      end
      local near = util.nearest(plan.metric, known)
      return ("no finished run has a '%s'%s"):format(plan.metric, near and (" (did you mean '%s'?)"):format(near) or "")
    end
  end
  return "no run is finished"
end

--- The summary as lines of text: counts, the best points, what failed.
function summary.lines(plan)
  local counts, runs = summary.scan(plan)
  local lines, names = {}, varying(plan)
  local words = { ("%d of %d runs done"):format(counts.done, #plan.runs) }
  for _, state in ipairs { "stopped", "failed", "unfinished", "new" } do
    local said = state == "stopped" and "stopped early" or state == "new" and "not begun" or state
    if counts[state] > 0 then words[#words + 1] = ("%d %s"):format(counts[state], said) end
  end
  lines[1] = ("%s: %s"):format(plan.name, table.concat(words, ", "))
  local list = plan.metric and points(plan, runs) or {}
  if #list > 0 then
    local rows = { { "", plan.metric, "95%", "seeds", "options", "best run" } }
    for i = 1, math.min(#list, SHOWN) do
      local point = list[i]
      rows[#rows + 1] = { tostring(i), summary.short(point.mean), point.half and "± " .. summary.short(point.half) or "",
        tostring(#point.values), summary.words(names, point.options), plan.folder .. "/" .. point.path }
    end
    lines[#lines + 1] = ""
    for _, line in ipairs(columns(rows, { true, true, true, true })) do lines[#lines + 1] = line end
    if #list > SHOWN then lines[#lines + 1] = ("... and %d more"):format(#list - SHOWN) end
  elseif plan.metric then
    lines[#lines + 1] = no_metric(plan, runs)
  end
  local said = 0
  for _, planned in ipairs(plan.runs) do
    local found = runs[planned.name]
    if found.state == "failed" and said < SHOWN then
      if said == 0 then lines[#lines + 1] = "" end
      said = said + 1
      lines[#lines + 1] = ("failed: %s/%s: %s"):format(plan.folder, planned.name, tostring(found.about.error))
    end
  end
  if counts.failed > said then lines[#lines + 1] = ("... and %d more that failed"):format(counts.failed - said) end
  return lines, counts
end

return summary
