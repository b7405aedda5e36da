-- collect.lua - does forgetting follow how far the labelled features moved as a distribution (OTDD), or how far each feature
-- moved by itself (L2)? Correlates both with Delta_LP over the points of experiment 01: one for each method, fine-tuned task,
-- probed task and seed. Writes results.md and one scatter for each distance.

local pg = require "perigee"

local opt = pg.recipe {
  name = "collect",
  help = "Correlate Delta_LP with OTDD and with L2 drift.",
  options = {
    { "rows", "experiments/01_end_to_end/rows.jsonl", help = "what collect.lua of experiment 01 wrote" },
    { "into", "experiments/02_forgetting_and_distance", help = "where results.md, otdd.png and l2.png go" },
    { "draws", 2000, min = 100, help = "bootstrap draws" },
  },
}
pg.run.open(opt)

local file = pg.util.check(io.open(opt.rows, "rb"), "%s is not there: run experiments/01_end_to_end/collect.lua first", opt.rows)
local points = {}
for line in file:lines() do
  local entry = require("cjson").decode(line)
  local row = entry.row
  for task, otdd in pairs(row.otdd or {}) do
    if task ~= row.task then
      points[#points + 1] = { method = row.method, tuned = row.task, task = task, seed = entry.seed,
        delta_lp = 100 * row.tasks[task], otdd = otdd, l2 = row.l2[task] }
    end
  end
end
file:close()
table.sort(points, function(a, b) -- the bootstrap draws from them in this order
  for _, field in ipairs { "method", "tuned", "seed" } do
    if a[field] ~= b[field] then return a[field] < b[field] end
  end
  return a.task < b.task
end)

local lines = {}
local function say(format, ...) lines[#lines + 1] = format:format(...) end

-- r [low, high] of Delta_LP against a distance. A run's nine points are drawn together: they share an encoder.
local function correlate(chosen, distance, statistic)
  local x, y, clusters = {}, {}, {}
  for i, p in ipairs(chosen) do
    x[i], y[i], clusters[i] = p[distance], p.delta_lp, ("%s/%s/%d"):format(p.method, p.tuned, p.seed)
  end
  local low, high = pg.stats.bootstrap(statistic, x, y, { clusters = clusters, draws = opt.draws })
  return ("%+.2f [%+.2f, %+.2f]"):format(statistic(x, y), low, high)
end

local function row(name, chosen)
  say("| %s | %d | %s | %s | %s | %s |", name, #chosen, correlate(chosen, "otdd", pg.stats.pearson),
    correlate(chosen, "otdd", pg.stats.spearman), correlate(chosen, "l2", pg.stats.pearson),
    correlate(chosen, "l2", pg.stats.spearman))
end

local function group_by(field)
  local groups, names = {}, {}
  for _, p in ipairs(points) do
    if not groups[p[field]] then groups[p[field]], names[#names + 1] = {}, p[field] end
    table.insert(groups[p[field]], p)
  end
  return groups, names
end

local HEAD = "| | points | OTDD, Pearson | OTDD, Spearman | L2, Pearson | L2, Spearman |\n| --- | --- | --- | --- | --- | --- |"
local by_method, methods = group_by "method"
local by_task, tasks = group_by "task"
say("Correlation with Delta_LP over %d points; 95%% bootstrap intervals over runs.\n\n%s", #points, HEAD)
row("all", points)
say("\nWithin a method:\n\n%s", HEAD)
for _, name in ipairs(methods) do row(name, by_method[name]) end
say("\nWithin a probed task:\n\n%s", HEAD)
for _, name in ipairs(tasks) do row(name, by_task[name]) end

local text = table.concat(lines, "\n") .. "\n"
io.write(text)
pg.util.write_file(opt.into .. "/results.md", text)

local LABELS = { otdd = "OTDD between the features before and after", l2 = "mean L2 distance that features moved" }
for distance, label in pairs(LABELS) do
  local series = {}
  for i, name in ipairs(methods) do
    series[i] = { name = name, x = {}, y = {} }
    for k, p in ipairs(by_method[name]) do series[i].x[k], series[i].y[k] = p[distance], p.delta_lp end
  end
  pg.plot.scatter(("%s/%s.png"):format(opt.into, distance), { title = "Forgetting against distance", xlabel = label,
    ylabel = "Delta_LP (points)", series = series })
end
