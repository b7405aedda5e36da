-- forgetting.lua - what a fine-tuning run prints and draws: the table of A_LP and Delta_LP, the change of every task, the
-- task losses, and anchors with their neighbours before and after.

local forgetting = {}
local function pg() return require "perigee" end

local function others(spec)
  local list = {}
  for _, name in ipairs(spec.names) do
    if name ~= spec.task then list[#list + 1] = name end
  end
  return list
end

-- "fda 10" when a method has several rows, else its name.
local function titles(rows)
  local count, list = {}, {}
  for _, row in ipairs(rows) do count[row.method] = (count[row.method] or 0) + 1 end
  for i, row in ipairs(rows) do
    list[i] = count[row.method] > 1 and ("%s %g"):format(row.method, row.weight or 0) or row.method
  end
  return list
end

local function tell(run, spec, names)
  run:say("%-16s %8s %15s %9s", "method", "A_LP", "mean Delta_LP", "seconds")
  run:say("%-16s %7.1f%%", "pre-trained", 100 * spec.before[spec.task])
  for i, row in ipairs(spec.rows) do
    run:say("%-16s %7.1f%% %+14.2f  %8.1f", names[i], 100 * row.a_lp, 100 * row.delta_lp, row.seconds)
  end
  run:say("")
  local head = ("%-18s %8s"):format("Delta_LP by task", "before")
  for _, name in ipairs(names) do head = head .. (" %13s"):format(name) end
  run:say("%s", head)
  for _, task in ipairs(others(spec)) do
    local line = ("%-18s %7.1f%%"):format(task, 100 * spec.before[task])
    for _, row in ipairs(spec.rows) do line = line .. (" %+13.1f"):format(100 * row.tasks[task]) end
    run:say("%s", line)
  end
end

local function draw(run, spec, names)
  local tasks, bars = others(spec), {}
  for i, row in ipairs(spec.rows) do
    bars[i] = { name = names[i], y = {} }
    for k, task in ipairs(tasks) do bars[i].y[k] = 100 * row.tasks[task] end
  end
  run:plot("bars", "delta_lp", { title = "What fine-tuning on " .. spec.task .. " did to the other tasks",
    ylabel = "Delta LP (points)", groups = tasks, series = bars })
  if #spec.curves > 0 then
    run:plot("lines", "task_loss", { title = "Fine-tuning on " .. spec.task, xlabel = "step", ylabel = "task loss",
      series = spec.curves })
  end
  -- A line an anchor: it (framed black) and its neighbours before, then after each method; green: it was one before.
  local views, grid, borders = { spec.neighbours }, {}, {}
  for i, row in ipairs(spec.rows) do views[i + 1] = row.neighbours end
  local function picture(i) return pg().image.resize(spec.shown:select(1, i):contiguous(), 64, 64, "bilinear") end
  for anchor = 1, #spec.neighbours do
    local line, frames, kept = {}, {}, {}
    for _, j in ipairs(spec.neighbours[anchor]) do kept[j] = true end
    for v, index in ipairs(views) do
      line[#line + 1], frames[#line + 1] = picture(anchor), "#000000"
      for _, j in ipairs(index[anchor]) do
        line[#line + 1] = picture(j)
        frames[#line] = v > 1 and kept[j] and "#2a9d3a" or nil
      end
    end
    grid[anchor], borders[anchor] = line, frames
  end
  run:plot("grid", "neighbours", grid, { borders = borders })
end

--- Prints the table, draws plots/delta_lp.png, task_loss.png and neighbours.png, writes result.json.
-- @param run   from pg.run.open
-- @param spec  {task = the fine-tuned one, names = every task, before = task -> accuracy, rows = list of {method, weight,
--   a_lp, delta_lp, tasks = task -> change, seconds, neighbours}, curves = list of {name, x, y}, shown = uint8 images,
--   neighbours = list of lists of positions among them, for the first anchors, by the pre-trained model}; accuracies and
--   changes are shares, and printed in points
function forgetting.report(run, spec)
  local names = titles(spec.rows)
  tell(run, spec, names)
  for i, curve in ipairs(spec.curves) do curve.name = curve.row and names[curve.row] or names[i] end
  draw(run, spec, names)
  run:say("pictures: %s", run:path "plots")
  for _, row in ipairs(spec.rows) do row.neighbours, row.regularizer = nil, nil end
  run:finish { task = spec.task, before = spec.before, rows = spec.rows }
end

return forgetting
