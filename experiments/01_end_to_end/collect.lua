-- collect.lua - what the runs of run.lua say together: for every method and weight the mean over the ten fine-tuned tasks
-- of A_LP and Delta_LP, with 95% intervals over seeds; and, of each method, the weight that forgets least among those that
-- learn as much. Writes results.md, results.json, curves.png and points.json (for experiments/02_forgetting_and_distance).

local pg = require "perigee"
local lfs = require "lfs"
local json = require "cjson"

local opt = pg.recipe {
  name = "collect",
  help = "Gather the run folders of the benchmark into a table and a picture.",
  options = {
    { "folder", "runs/01_end_to_end", help = "where the run folders are" },
    { "into", "experiments/01_end_to_end", help = "where results.md, results.json, points.json and curves.png go" },
    { "matched", 1.0, min = 0, real = true, help = "points of A_LP below LP-FT that still count as learning as much" },
  },
}
pg.run.open(opt)

-- ---- the runs -----------------------------------------------------------------------------------------------------------

local tasks, cells, order, before, points = {}, {}, {}, {}, {}
for i, task in ipairs(pg.data.tasks()) do tasks[i], before[task.name] = task.name, {} end

local function read(path)
  local file = io.open(path, "rb")
  local text = file and file:read "*a"
  if file then file:close() end
  return text and json.decode(text)
end

local function add(group, seed, row)
  local method = group == "levers" and row.method .. ", all depths" or row.method
  local key = method .. (row.weight and " " .. row.weight or "")
  if not cells[key] then
    cells[key] = { method = method, weight = row.weight, seeds = {} }
    order[#order + 1] = key
  end
  cells[key].seeds[seed] = cells[key].seeds[seed] or {}
  cells[key].seeds[seed][row.task] = row
  for name, otdd in pairs(row.otdd or {}) do
    if name ~= row.task then
      points[#points + 1] = { method = row.method, tuned = row.task, task = name, seed = tonumber(seed),
        delta_lp = 100 * row.tasks[name], otdd = otdd, l2 = row.l2[name] }
    end
  end
end

local folders = {}
for name in lfs.dir(opt.folder) do folders[#folders + 1] = name end
table.sort(folders)
for _, name in ipairs(folders) do
  local group, task, seed = name:match "^(%a+)%-([%w_]+)%-(%d+)$"
  local result = group and read(("%s/%s/result.json"):format(opt.folder, name))
  if result then
    before[task][seed] = 100 * result.rows[1].before
    for _, row in ipairs(result.rows) do add(group, seed, row) end
  end
end
pg.util.check(#order > 0, "collect: there is no finished run in %s", opt.folder)

-- ---- means and intervals ------------------------------------------------------------------------------------------------

-- Over the seeds that have every task: the mean over tasks is one number a seed.
local function summary(cell)
  local a, d, by = {}, {}, {}
  for _, rows in pairs(cell.seeds) do
    local whole, sum_a, sum_d = true, 0, 0
    for _, task in ipairs(tasks) do
      local row = rows[task]
      whole = whole and row ~= nil
      if row then
        sum_a, sum_d = sum_a + 100 * row.a_lp, sum_d + 100 * row.delta_lp
        by[task] = by[task] or {}
        table.insert(by[task], 100 * row.delta_lp)
      end
    end
    if whole then a[#a + 1], d[#d + 1] = sum_a / #tasks, sum_d / #tasks end
  end
  if #a == 0 then return nil end
  local s = { method = cell.method, weight = cell.weight, seeds = #a, by = {} }
  s.a_lp, s.a_half = pg.stats.interval(a)
  s.delta_lp, s.delta_half = pg.stats.interval(d)
  for task, values in pairs(by) do s.by[task] = { pg.stats.interval(values) } end
  return s
end

local RANK = { naive = 1, lp_ft = 2, flyp = 3, wise_ft = 4, l2sp = 5, ldifs = 6, fda = 7, proxy_fda = 8 }
local rows, best, bar = {}, {}, -math.huge
for _, key in ipairs(order) do rows[#rows + 1] = summary(cells[key]) end
table.sort(rows, function(x, y)
  local p, q = RANK[x.method] or 9, RANK[y.method] or 9
  if p ~= q then return p < q end
  if x.method ~= y.method then return x.method < y.method end
  return (x.weight or 0) < (y.weight or 0)
end)
for _, s in ipairs(rows) do bar = s.method == "lp_ft" and s.a_lp - opt.matched or bar end
for _, s in ipairs(rows) do
  s.matched = s.a_lp >= bar
  local other = best[s.method]
  if not other or s.matched and (not other.matched or s.delta_lp > other.delta_lp) then best[s.method] = s end
end

-- ---- the tables -----------------------------------------------------------------------------------------------------------

local lines = {}
local function say(format, ...) lines[#lines + 1] = format:format(...) end

say("Every method at its best weight: the one that forgets least among those whose A_LP lies within %g points of LP-FT's.",
  opt.matched)
say("Mean Delta_LP by the task that was fine-tuned on (points; over the nine others, then over seeds), and over all ten")
say("fine-tuned tasks with a 95%% interval over seeds (Student's t).\n")
local head, rule = "| method | weight | seeds | A_LP | mean Delta_LP |", "| --- | --- | --- | --- | --- |"
for _, task in ipairs(tasks) do head, rule = head .. " " .. task .. " |", rule .. " --- |" end
say("%s\n%s", head, rule)
for _, s in ipairs(rows) do
  if best[s.method] == s then
    local line = ("| %s | %s | %d | %.1f ± %.1f | %+.2f ± %.2f |"):format(s.method, s.weight and ("%g"):format(s.weight) or "",
      s.seeds, s.a_lp, s.a_half, s.delta_lp, s.delta_half)
    for _, task in ipairs(tasks) do line = line .. (s.by[task] and (" %+.1f |"):format(s.by[task][1]) or " |") end
    say("%s", line)
  end
end

say("\nEvery weight:\n\n| method | weight | seeds | A_LP | mean Delta_LP | learns as much |")
say("| --- | --- | --- | --- | --- | --- |")
for _, s in ipairs(rows) do
  say("| %s | %s | %d | %.1f ± %.1f | %+.2f ± %.2f | %s |", s.method, s.weight and ("%g"):format(s.weight) or "", s.seeds,
    s.a_lp, s.a_half, s.delta_lp, s.delta_half, s.matched and "yes" or "no")
end

say("\nThe tasks before any fine-tuning: linear probe with as many labels as fine-tuning sees.\n\n| task | A_LP |\n| --- | --- |")
for _, task in ipairs(tasks) do
  local values = {}
  for _, value in pairs(before[task]) do values[#values + 1] = value end
  if #values > 0 then say("| %s | %.1f ± %.1f |", task, pg.stats.interval(values)) end
end

local text = table.concat(lines, "\n") .. "\n"
io.write(text)
pg.util.write_file(opt.into .. "/results.md", text)
pg.util.write_file(opt.into .. "/results.json", pg.run.encode({ rows = rows }, "") .. "\n")
pg.util.write_file(opt.into .. "/points.json", json.encode(points) .. "\n")

-- ---- the curves -----------------------------------------------------------------------------------------------------------

local series, at = {}, {}
for _, s in ipairs(rows) do
  if not at[s.method] then
    at[s.method] = { name = s.method, x = {}, y = {}, xerr = {}, yerr = {} }
    series[#series + 1] = at[s.method]
  end
  local one = at[s.method]
  one.x[#one.x + 1], one.y[#one.y + 1] = s.a_lp, s.delta_lp
  one.xerr[#one.xerr + 1], one.yerr[#one.yerr + 1] = s.a_half, s.delta_half
end
pg.plot.scatter_curves(opt.into .. "/curves.png", { title = "Perigee-10: what was learnt, what was forgotten",
  xlabel = "A_LP (%), mean of ten tasks", ylabel = "mean Delta_LP (points)", series = series })
