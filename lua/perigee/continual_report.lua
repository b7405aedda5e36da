-- continual_report.lua - what a continual run prints and draws: the matrix R of each method and what follows from it.

local report = {}
local function pg() return require "perigee" end

local FIGURES = { { "last", "last" }, { "incremental", "average" }, { "forgetting", "forgotten" },
  { "backward", "backward" }, { "forward", "forward" }, { "transfer", "transfer" }, { "avg", "avg" },
  { "probe", "probe" } }

local function percent(value) return value and ("%.1f"):format(100 * value) or "-" end

-- The matrix, a line a step: after each task, the accuracy on every task in points.
local function tell_matrix(run, tasks, row)
  local head = ("%-26s"):format(row.title .. ", after")
  for i in ipairs(tasks) do head = head .. (" %7s"):format("task " .. i) end
  run:say("%s  average", head)
  for t, values in ipairs(row.R) do
    local line = ("%-26s"):format(("%d %s"):format(t, tasks[t].name):sub(1, 26))
    for i in ipairs(tasks) do line = line .. (" %7s"):format(percent(values[i])) end
    run:say("%s %8s", line, percent(row.figures.average[t]))
  end
  run:say("")
end

local function tell_figures(run, rows)
  local head, known = ("%-20s"):format "method", {}
  for _, figure in ipairs(FIGURES) do
    for _, row in ipairs(rows) do
      if row.figures[figure[1]] and known[#known] ~= figure then known[#known + 1] = figure end
    end
  end
  for _, figure in ipairs(known) do head = head .. (" %10s"):format(figure[2]) end
  run:say("%s %9s", head, "seconds")
  for _, row in ipairs(rows) do
    local line = ("%-20s"):format(row.title)
    for _, figure in ipairs(known) do line = line .. (" %10s"):format(percent(row.figures[figure[1]])) end
    run:say("%s %9.1f", line, row.seconds)
  end
end

local function draw(run, tasks, rows)
  local series, names, after, points = {}, {}, {}, {}
  for i, task in ipairs(tasks) do
    names[i] = ("%d %s"):format(i, task.name)
    after[i] = "after " .. names[i]
  end
  for k, row in ipairs(rows) do
    series[k] = { name = row.title, x = {}, y = {} }
    for t, value in ipairs(row.figures.average) do series[k].x[t], series[k].y[t] = t, 100 * value end
    points[k] = {}
    for t, values in ipairs(row.R) do
      points[k][t] = {}
      for i, value in ipairs(values) do points[k][t][i] = 100 * value end
    end
  end
  run:plot("lines", "average", { title = "Accuracy on the tasks so far", xlabel = "task",
    ylabel = "average accuracy (%)", series = series })
  for k, row in ipairs(rows) do
    run:plot("heat_table", "matrix_" .. row.title:gsub("[^%w]+", "_"), { title = row.title .. ": accuracy (%)",
      rows = after, columns = names, values = points[k], decimals = 1 })
  end
end

--- Prints each method's matrix and figures, draws plots/average.png and matrix_METHOD.png, writes result.json.
-- @param run   from pg.run.open
-- @param spec  {tasks = from pg.data.sequence, chance = list of shares, rows = list of {title, method, R, seconds,
--   probe = the tasks' linear probes in the end, or nil}}; each row gets .figures, as pg.metrics.continual gives them,
--   and the mean of its probes
function report.show(run, spec)
  local names = {}
  for i, task in ipairs(spec.tasks) do names[i] = task.name end
  for _, row in ipairs(spec.rows) do
    row.figures = pg().metrics.continual(row.R, { chance = spec.chance })
    if row.probe then row.figures.probe = pg().stats.interval(row.probe) end
  end
  run:say("")
  for _, row in ipairs(spec.rows) do tell_matrix(run, spec.tasks, row) end
  tell_figures(run, spec.rows)
  draw(run, spec.tasks, spec.rows)
  run:say("pictures: %s/plots", run.folder)
  run:finish { tasks = names, setting = spec.tasks.setting, chance = spec.chance, rows = spec.rows }
end

return report
