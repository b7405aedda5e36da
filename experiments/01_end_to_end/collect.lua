-- collect.lua - what the runs of run.lua say together: for every method and weight the mean over the ten fine-tuned tasks
-- of A_LP and Delta_LP, with 95% intervals over seeds; and, of each method, the weight that forgets least among those that
-- learn as much. Writes results.md, results.json, curves.png and rows.jsonl, every row of every run, from which the tables can
-- be made again, which experiments/02_forgetting_and_distance reads, and which tells run.lua what need not be run again.

local pg = require "perigee"
local lfs = require "lfs"
local json = require "cjson"

local opt = pg.recipe {
  name = "collect",
  help = "Gather the run folders of the benchmark into a table and a picture.",
  options = {
    { "folder", "runs/01_end_to_end", help = "where the run folders are" },
    { "into", "experiments/01_end_to_end", help = "where results.md, results.json, rows.jsonl and curves.png go" },
    { "matched", 1.0, min = 0, real = true, help = "points of A_LP below LP-FT that still count as learning as much" },
  },
}
pg.run.open(opt)

-- ---- the runs -----------------------------------------------------------------------------------------------------------

local tasks, cells, order, before, all = {}, {}, {}, {}, {}
for i, task in ipairs(pg.data.tasks()) do tasks[i], before[task.name] = task.name, {} end

local function add(group, seed, row)
  local method = group == "levers" and row.method .. ", all depths" or row.method
  local key = method .. (row.weight and " " .. row.weight or "")
  if not cells[key] then
    cells[key] = { method = method, weight = row.weight, seeds = {} }
    order[#order + 1] = key
  end
  local seeds = cells[key].seeds
  seeds[seed] = seeds[seed] or {}
  if seeds[seed][row.task] then return end -- kept from an earlier collection
  seeds[seed][row.task], before[row.task][seed] = row, 100 * row.before
  all[#all + 1] = { group = group, seed = seed, row = row }
end

local kept = io.open(opt.into .. "/rows.jsonl", "rb")
if kept then
  for line in kept:lines() do
    local entry = json.decode(line)
    add(entry.group, entry.seed, entry.row)
  end
  kept:close()
end

local folders = {}
if lfs.attributes(opt.folder, "mode") == "directory" then
  for name in lfs.dir(opt.folder) do folders[#folders + 1] = name end
end
table.sort(folders)
for _, name in ipairs(folders) do
  local group, _, seed = name:match "^(%a+)%-([%w_]+)%-(%d+)$"
  local file = group and io.open(("%s/%s/result.json"):format(opt.folder, name), "rb")
  if file then
    for _, row in ipairs(json.decode(file:read "*a").rows) do add(group, tonumber(seed), row) end
    file:close()
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

-- "62.9 ± 0.4", or the mean alone of a single seed.
local function pair(format, mean, half)
  return format:format(mean) .. (half == half and (" ± " .. format:gsub("%+", "")):format(half) or "")
end

say("Every method at its best weight: the one that forgets least among those whose A_LP lies within %g points of LP-FT's.",
  opt.matched)
say("Mean Delta_LP by the task that was fine-tuned on (points; over the nine others, then over seeds), and over all ten")
say("fine-tuned tasks with a 95%% interval over seeds (Student's t).\n")
local head, rule = "| method | weight | seeds | A_LP | mean Delta_LP |", "| --- | --- | --- | --- | --- |"
for _, task in ipairs(tasks) do head, rule = head .. " " .. task .. " |", rule .. " --- |" end
say("%s\n%s", head, rule)
for _, s in ipairs(rows) do
  if best[s.method] == s then
    local line = ("| %s | %s | %d | %s | %s |"):format(s.method, s.weight and ("%g"):format(s.weight) or "", s.seeds,
      pair("%.1f", s.a_lp, s.a_half), pair("%+.2f", s.delta_lp, s.delta_half))
    for _, task in ipairs(tasks) do line = line .. (s.by[task] and (" %+.1f |"):format(s.by[task][1]) or " |") end
    say("%s", line)
  end
end

say("\nEvery weight:\n\n| method | weight | seeds | A_LP | mean Delta_LP | learns as much |")
say("| --- | --- | --- | --- | --- | --- |")
for _, s in ipairs(rows) do
  say("| %s | %s | %d | %s | %s | %s |", s.method, s.weight and ("%g"):format(s.weight) or "", s.seeds,
    pair("%.1f", s.a_lp, s.a_half), pair("%+.2f", s.delta_lp, s.delta_half), s.matched and "yes" or "no")
end

say("\nThe tasks before any fine-tuning: linear probe with as many labels as fine-tuning sees.\n\n| task | A_LP |\n| --- | --- |")
for _, task in ipairs(tasks) do
  local values = {}
  for _, value in pairs(before[task]) do values[#values + 1] = value end
  if #values > 0 then say("| %s | %s |", task, pair("%.1f", pg.stats.interval(values))) end
end

local text = table.concat(lines, "\n") .. "\n"
io.write(text)
pg.util.write_file(opt.into .. "/results.md", text)
pg.util.write_file(opt.into .. "/results.json", pg.run.encode({ rows = rows }, "") .. "\n")
local function short(value) -- six digits are enough to make the tables again
  if type(value) == "number" then return tonumber(("%.6g"):format(value)) end
  if type(value) ~= "table" then return value end
  local copy = {}
  for key, inner in pairs(value) do copy[key] = short(inner) end
  return copy
end
for i, entry in ipairs(all) do all[i] = pg.run.encode(short(entry)) end
table.sort(all)
pg.util.write_file(opt.into .. "/rows.jsonl", table.concat(all, "\n") .. "\n")

-- ---- the curves -----------------------------------------------------------------------------------------------------------

local series, at = {}, {}
for _, s in ipairs(rows) do
  if not at[s.method] then
    at[s.method] = { name = s.method, x = {}, y = {}, xerr = {}, yerr = {} }
    series[#series + 1] = at[s.method]
  end
  local one = at[s.method]
  one.x[#one.x + 1], one.y[#one.y + 1] = s.a_lp, s.delta_lp
  one.xerr[#one.xerr + 1], one.yerr[#one.yerr + 1] = s.a_half == s.a_half and s.a_half or 0, s.delta_half == s.delta_half
    and s.delta_half or 0
end
pg.plot.scatter_curves(opt.into .. "/curves.png", { title = "Perigee-10: what was learnt, what was forgotten",
  xlabel = "A_LP (%), mean of ten tasks", ylabel = "mean Delta_LP (points)", series = series })
