-- forgetting.lua - what a fine-tuning run prints and draws: the table of A_LP and Delta_LP, the change of every task, the
-- task losses, and anchors with their neighbours before and after.

local forgetting = {}
local function pg() return require "perigee" end

local function others(bench, task)
  local list = {}
  for _, name in ipairs(bench.options.tasks) do
    if name ~= task then list[#list + 1] = name end
  end
  return list
end

-- "fda 10" when a method has several rows of one task, else its name.
local function titles(rows)
  local count, list = {}, {}
  for _, row in ipairs(rows) do
    local key = row.method .. " " .. row.task
    count[key] = (count[key] or 0) + 1
  end
  for i, row in ipairs(rows) do
    list[i] = count[row.method .. " " .. row.task] > 1 and ("%s %g"):format(row.method, row.weight or 0) or row.method
  end
  return list
end

-- ---- neighbours ---------------------------------------------------------------------------------------------------------

local ANCHORS, AMONG = 6, 200

-- Pictures of a task that was not trained on.
local function shown(bench, task)
  local names = others(bench, task)
  local name = names[1]
  for _, other in ipairs(names) do name = other == "openclipart" and other or name end
  local images = bench:images(name)
  return images:narrow(1, 1, math.min(AMONG, images:size(1))):contiguous()
end

--- The five nearest neighbours of the first anchors among pictures of a task that was not trained on.
-- @param encode  function: uint8 (N, H, W, 3) -> (N, D)
-- @param bench   from pg.benchmark.new
-- @param task    the fine-tuned one
-- @return a list of lists of positions
function forgetting.neighbours(encode, bench, task)
  local images = shown(bench, task)
  local f = pg().no_grad(function() return encode(images) end)
  local _, index = pg().knn(f, f, { k = math.min(5, images:size(1) - 1), exclude_self = true })
  return index:narrow(1, 1, math.min(ANCHORS, images:size(1))):totable()
end

-- A line an anchor: it (framed black) and its neighbours before, then after each method; green: it was one before.
local function draw_neighbours(run, bench, task, rows)
  local images, before = shown(bench, task), forgetting.neighbours(bench.options.encode, bench, task)
  local views, grid, borders = { before }, {}, {}
  for i, row in ipairs(rows) do views[i + 1] = row.neighbours end
  local function picture(i) return pg().image.resize(images:select(1, i):to("cpu"):contiguous(), 64, 64, "bilinear") end
  for anchor = 1, #before do
    local line, frames, kept = {}, {}, {}
    for _, j in ipairs(before[anchor]) do kept[j] = true end
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

-- ---- one task -----------------------------------------------------------------------------------------------------------

local function tell(run, bench, task, rows, names)
  run:say("%-16s %8s %15s %9s", "method", "A_LP", "mean Delta_LP", "seconds")
  run:say("%-16s %7.1f%%", "pre-trained", 100 * bench:before(task, true).accuracy)
  for i, row in ipairs(rows) do
    run:say("%-16s %7.1f%% %+14.2f  %8.1f", names[i], 100 * row.a_lp, 100 * row.delta_lp, row.seconds)
  end
  run:say("")
  local head = ("%-18s %8s"):format("Delta_LP by task", "before")
  for _, name in ipairs(names) do head = head .. (" %13s"):format(name) end
  run:say("%s", head)
  for _, other in ipairs(others(bench, task)) do
    local line = ("%-18s %7.1f%%"):format(other, 100 * bench:before(other).accuracy)
    for _, row in ipairs(rows) do line = line .. (" %+13.1f"):format(100 * row.tasks[other]) end
    run:say("%s", line)
  end
end

local function draw(run, bench, task, rows, names, curves)
  local tasks, bars = others(bench, task), {}
  for i, row in ipairs(rows) do
    bars[i] = { name = names[i], y = {} }
    for k, other in ipairs(tasks) do bars[i].y[k] = 100 * row.tasks[other] end
  end
  run:plot("bars", "delta_lp", { title = "What fine-tuning on " .. task .. " did to the other tasks",
    ylabel = "Delta LP (points)", groups = tasks, series = bars })
  if #curves > 0 then
    run:plot("lines", "task_loss", { title = "Fine-tuning on " .. task, xlabel = "step", ylabel = "task loss",
      series = curves })
  end
  draw_neighbours(run, bench, task, rows)
end

-- ---- several tasks --------------------------------------------------------------------------------------------------------

-- A line a method: A_LP and mean Delta_LP over the tasks, then mean Delta_LP by the task that was fine-tuned on.
local function tell_all(run, tasks, rows, names)
  local lines, order = {}, {}
  for i, row in ipairs(rows) do
    local line = lines[names[i]]
    if not line then
      line = { a_lp = 0, delta_lp = 0, n = 0, by = {} }
      lines[names[i]], order[#order + 1] = line, names[i]
    end
    line.a_lp, line.delta_lp, line.n = line.a_lp + row.a_lp, line.delta_lp + row.delta_lp, line.n + 1
    line.by[row.task] = row.delta_lp
  end
  local head = ("%-16s %8s %9s"):format("method", "A_LP", "Delta_LP")
  for _, task in ipairs(tasks) do head = head .. (" %9s"):format(task:sub(1, 9)) end
  run:say("mean Delta_LP by the task that was fine-tuned on:")
  run:say("%s", head)
  for _, name in ipairs(order) do
    local line = lines[name]
    local text = ("%-16s %7.1f%% %+9.2f"):format(name, 100 * line.a_lp / line.n, 100 * line.delta_lp / line.n)
    for _, task in ipairs(tasks) do text = text .. (line.by[task] and (" %+9.2f"):format(100 * line.by[task]) or "") end
    run:say("%s", text)
  end
end

--- Prints the table, draws plots/delta_lp.png, task_loss.png and neighbours.png, writes result.json. Where several tasks
-- were fine-tuned on, the table is of all and the pictures of the first.
-- @param run   from pg.run.open
-- @param spec  {tasks = the fine-tuned ones, bench = from pg.benchmark.new, rows = list of {task, method, weight, a_lp,
--   delta_lp, tasks = task -> change, seconds, neighbours}, curves = list of {row = its number, x, y} of task losses};
--   accuracies and changes are shares, and printed in points
function forgetting.report(run, spec)
  local tasks, rows, bench, names = spec.tasks, spec.rows, spec.bench, titles(spec.rows)
  local mine, mine_names, curves, before = {}, {}, {}, {}
  for i, row in ipairs(rows) do
    if row.task == tasks[1] then mine[#mine + 1], mine_names[#mine_names + 1] = row, names[i] end
  end
  for _, curve in ipairs(spec.curves) do
    if rows[curve.row].task == tasks[1] then
      curve.name = names[curve.row]
      curves[#curves + 1] = curve
    end
  end
  if #tasks == 1 then tell(run, bench, tasks[1], rows, names) else tell_all(run, tasks, rows, names) end
  draw(run, bench, tasks[1], mine, mine_names, curves)
  run:say("pictures: %s/plots", run.folder)
  for _, name in ipairs(bench.options.tasks) do before[name] = bench:before(name).accuracy end
  for _, row in ipairs(rows) do
    row.neighbours, row.regularizer, row.head = nil, nil, nil
    row.before = bench:before(row.task, true).accuracy
  end
  run:finish { tasks = tasks, before = before, rows = rows }
end

return forgetting
