-- collect.lua - what the runs of run.lua say together: mean and 95% interval over seeds of A_LP and mean Delta_LP for
-- every method and weight, as results.md, results.json and the trade-off curves in curves.png.

local pg = require "perigee"
local lfs = require "lfs"
local json = require "cjson"

local opt = pg.recipe {
  name = "collect",
  help = "Gather the run folders of the trade-off experiment into a table and a picture.",
  options = {
    { "folder", "runs/trade_off", help = "where the run folders are" },
    { "into", "experiments/trade_off", help = "where results.md, results.json and curves.png go" },
    { "least", 30, help = "a task counts when its probe before lies between these, in percent, on average over seeds" },
    { "most", 95, help = "see least" },
  },
}
pg.run.open(opt)

-- ---- the runs -----------------------------------------------------------------------------------------------------------

local cells, order, before, seeds, task = {}, {}, {}, {}, nil
local function read(path)
  local file = io.open(path, "rb")
  local text = file and file:read "*a"
  if file then file:close() end
  return text and json.decode(text)
end
local folders = {}
for name in lfs.dir(opt.folder) do
  if name:match "^[%w_]+%-%d+$" then folders[#folders + 1] = name end
end
table.sort(folders)
for _, name in ipairs(folders) do
  local group, seed = name:match "^([%w_]+)%-(%d+)$"
  local result = read(opt.folder .. "/" .. name .. "/result.json")
  if result then
    task = result.tasks[1]
    if not before[seed] then before[seed], seeds[#seeds + 1] = result.before, seed end
    for _, row in ipairs(result.rows) do
      local method = group:sub(1, #row.method + 1) == row.method .. "_" and group or row.method
      local key = method .. (row.weight and " " .. row.weight or "")
      if not cells[key] then
        cells[key] = { method = method, weight = row.weight, runs = {} }
        order[#order + 1] = key
      end
      table.insert(cells[key].runs, row)
    end
  end
end
pg.util.check(task, "collect: there is no finished run in %s", opt.folder)

-- ---- which tasks count; means and intervals -----------------------------------------------------------------------------

local counted, told = {}, {}
for _, t in ipairs(pg.data.tasks()) do
  local values = {}
  for _, seed in ipairs(seeds) do values[#values + 1] = 100 * before[seed][t.name] end
  local mean, half = pg.stats.interval(values)
  local counts = t.name ~= task and mean >= opt.least and mean <= opt.most
  if counts then counted[#counted + 1] = t.name end
  told[#told + 1] = ("| %s | %.1f ± %.1f | %s |"):format(t.name, mean, half,
    t.name == task and "fine-tuned" or counts and "yes" or "no: saturated or near chance")
end

local function summary(cell)
  local a, d, all, drift = {}, {}, {}, {}
  for i, row in ipairs(cell.runs) do
    local sum = 0
    for _, name in ipairs(counted) do sum = sum + 100 * row.tasks[name] end
    a[i], d[i], all[i], drift[i] = 100 * row.a_lp, sum / #counted, 100 * row.delta_lp, row.l2[task]
  end
  local s = { method = cell.method, weight = cell.weight, seeds = #cell.runs, a = a, d = d }
  s.a_lp, s.a_lp_half = pg.stats.interval(a)
  s.delta_lp, s.delta_lp_half = pg.stats.interval(d)
  s.delta_all = pg.stats.interval(all)
  s.l2_drift = pg.stats.interval(drift)
  return s
end

local rows, rank = {}, { linear_probe = 1, naive = 2, lp_ft = 3, l2sp = 4, ldifs_token = 5, ldifs_channel = 6 }
for _, key in ipairs(order) do rows[#rows + 1] = summary(cells[key]) end
table.sort(rows, function(x, y)
  local p, q = rank[x.method] or 9, rank[y.method] or 9
  if p ~= q then return p < q end
  if x.method ~= y.method then return x.method < y.method end
  return (x.weight or 0) < (y.weight or 0)
end)

-- ---- the table and the picture --------------------------------------------------------------------------------------------

local lines = { ("Fine-tuned on `%s`; %d seeds; mean and 95%% interval (Student's t) over seeds."):format(task, #seeds), "",
  "| method | weight | seeds | A_LP (%) | mean Delta_LP (points) | over all tasks | L2 drift |",
  "| --- | --- | --- | --- | --- | --- | --- |" }
for _, s in ipairs(rows) do
  lines[#lines + 1] = ("| %s | %s | %d | %.1f ± %.1f | %+.2f ± %.2f | %+.2f | %.2f |"):format(s.method,
    s.weight and ("%g"):format(s.weight) or "", s.seeds, s.a_lp, s.a_lp_half, s.delta_lp, s.delta_lp_half, s.delta_all,
    s.l2_drift)
end
lines[#lines + 1] = "\nProbes before fine-tuning; a task counts in the mean when its probe lies between "
  .. ("%g%% and %g%%.\n\n| task | linear probe (%%) | counts |\n| --- | --- | --- |"):format(opt.least, opt.most)
for _, line in ipairs(told) do lines[#lines + 1] = line end
local text = table.concat(lines, "\n") .. "\n"
io.write(text)
pg.util.write_file(opt.into .. "/results.md", text)
pg.util.write_file(opt.into .. "/results.json", pg.run.encode({ task = task, counted = counted, rows = rows }, "") .. "\n")

local series, at = {}, {}
for _, s in ipairs(rows) do
  if s.method ~= "linear_probe" then
    if not at[s.method] then
      at[s.method] = { name = s.method, x = {}, y = {}, xerr = {}, yerr = {} }
      series[#series + 1] = at[s.method]
    end
    local one = at[s.method]
    one.x[#one.x + 1], one.y[#one.y + 1] = s.a_lp, s.delta_lp
    one.xerr[#one.xerr + 1], one.yerr[#one.yerr + 1] = s.a_lp_half, s.delta_lp_half
  end
end
pg.plot.scatter_curves(opt.into .. "/curves.png", { title = "Fine-tuning on " .. task .. ": what was learnt, what was forgotten",
  xlabel = "A_LP (%)", ylabel = "mean Delta_LP (points)", series = series })
