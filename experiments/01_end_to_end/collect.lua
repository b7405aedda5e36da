-- collect.lua - what the runs of sweep.lua, levers.lua and gentle.lua say together: for every method and weight the mean over
-- the ten fine-tuned tasks of A_LP and Delta_LP, with 95% intervals over seeds; of each method the weight that forgets least
-- among those that learn as much; and what each lever changes. Writes results.md, results.json, curves.png and rows.jsonl,
-- every row of every run, from which all of it can be made again, and which experiments/02_forgetting_and_distance reads.

local pg = require "perigee"
local gather = dofile "experiments/gather.lua"

local opt = pg.recipe {
  name = "collect",
  help = "Gather the run folders of the benchmark into a table and a picture.",
  options = {
    { "folders", "runs/01_end_to_end,runs/01_levers,runs/01_gentle", help = "of the sweeps, comma-separated" },
    { "into", "experiments/01_end_to_end", help = "where results.md, results.json, rows.jsonl and curves.png go" },
    { "matched", 1.0, min = 0, real = true, help = "points of A_LP below LP-FT that still count as learning as much" },
  },
}
pg.run.open(opt)

-- ---- the runs -----------------------------------------------------------------------------------------------------------

local USUAL = { depths = "own", k = 8, negative = "similarity", tau = 0.1, lr = 1e-3, steps = 60 }

-- What a run has that sweep.lua's have not: "depths=all"; nothing for those of sweep.lua.
local function setting_of(options)
  local parts = {}
  for name, value in pairs(USUAL) do
    if options[name] ~= value then parts[#parts + 1] = ("%s=%s"):format(name, options[name]) end
  end
  table.sort(parts)
  return table.concat(parts, " ")
end

local tasks, cells, order, before = {}, {}, {}, {}
for i, task in ipairs(pg.data.tasks()) do tasks[i], before[task.name] = task.name, {} end

local function key_of(setting, method, weight) return table.concat({ setting, method, weight or "" }, " ") end

local entries = gather.rows(opt.into, opt.folders, function(config, row)
  return { setting = setting_of(config.options), seed = config.seed, row = row }
end)
for _, entry in ipairs(entries) do
  local row = entry.row
  local key = key_of(entry.setting, row.method, row.weight)
  if not cells[key] then
    cells[key] = { setting = entry.setting, method = row.method, weight = row.weight, seeds = {} }
    order[#order + 1] = key
  end
  local seeds = cells[key].seeds
  seeds[entry.seed] = seeds[entry.seed] or {}
  seeds[entry.seed][row.task], before[row.task][entry.seed] = row, 100 * row.before
end

-- ---- means and intervals ------------------------------------------------------------------------------------------------

-- The mean over the tasks of one seed, in points; nil unless the seed has all of them.
local function seed_mean(cell, seed, field)
  local sum = 0
  for _, task in ipairs(tasks) do
    local row = cell and cell.seeds[seed] and cell.seeds[seed][task]
    if not row then return nil end
    sum = sum + 100 * row[field]
  end
  return sum / #tasks
end

-- Over the seeds that have every task: mean and half an interval of a field, or of its difference to another cell's.
local function over_seeds(cell, field, other)
  local values = {}
  for seed in pairs(cell.seeds) do
    local value, base = seed_mean(cell, seed, field), other and seed_mean(other, seed, field)
    if value and (base or not other) then values[#values + 1] = value - (base or 0) end
  end
  local mean, half = pg.stats.interval(values)
  return mean, half, #values
end

-- The same for every run by itself: differences to the other cell in the same task and seed, of which there are more.
local function over_runs(cell, field, other)
  local values = {}
  for seed, rows in pairs(cell.seeds) do
    for task, row in pairs(rows) do
      local base = other.seeds[seed] and other.seeds[seed][task]
      if base then values[#values + 1] = 100 * (row[field] - base[field]) end
    end
  end
  local mean, half = pg.stats.interval(values)
  return mean, half, #values
end

local RANK = { naive = 1, lp_ft = 2, flyp = 3, wise_ft = 4, l2sp = 5, ldifs = 6, fda = 7, proxy_fda = 8 }
table.sort(order, function(a, b)
  local x, y = cells[a], cells[b]
  if x.setting ~= y.setting then return x.setting < y.setting end
  if x.method ~= y.method then return RANK[x.method] < RANK[y.method] end
  return (x.weight or 0) < (y.weight or 0)
end)

local lp_ft = pg.util.check(cells[key_of("", "lp_ft")], "collect: there is no run of lp_ft, which the others are held against")
local rows, best = {}, {}
local bar = over_seeds(lp_ft, "a_lp") - opt.matched
for _, key in ipairs(order) do
  local cell = cells[key]
  local s = { method = cell.method, weight = cell.weight, setting = cell.setting, cell = cell }
  s.a_lp, s.a_half, s.seeds = over_seeds(cell, "a_lp")
  s.delta_lp, s.delta_half = over_seeds(cell, "delta_lp")
  if cell.setting == "" and s.seeds > 0 then
    s.saved, s.saved_half = over_seeds(cell, "delta_lp", lp_ft)
    s.matched = s.a_lp >= bar
    local other = best[s.method] -- a weight that few seeds have yet is not held against one that more have
    if not other or s.seeds > other.seeds or s.seeds == other.seeds and s.matched
      and (not other.matched or s.delta_lp > other.delta_lp) then best[s.method] = s end
  end
  if s.seeds > 0 then rows[#rows + 1] = s end
end

-- ---- the tables -----------------------------------------------------------------------------------------------------------

local lines = {}
local function say(format, ...) lines[#lines + 1] = format:format(...) end
local function table_head(names) say("| %s |\n|%s", table.concat(names, " | "), (" --- |"):rep(#names)) end
local pair = gather.pair
local function saved(s) return s.method == "lp_ft" and "" or pair("%+.2f", s.saved, s.saved_half) end
local function weight_of(s) return s.weight and ("%g"):format(s.weight) or "" end

say("Every method at its best weight: of those with the most seeds, the one that forgets least while its A_LP lies within %g",
  opt.matched)
say "points of LP-FT's."
say("Mean Delta_LP (points; over the nine other tasks, the ten fine-tuned ones, then seeds), its difference to LP-FT's of the")
say("same seed, both with a 95%% interval over seeds (Student's t), and by the task that was fine-tuned on.\n")
local head = { "method", "weight", "seeds", "A_LP", "mean Delta_LP", "against LP-FT" }
for _, task in ipairs(tasks) do head[#head + 1] = task end
table_head(head)
for _, s in ipairs(rows) do
  if best[s.method] == s then
    local line = ("| %s | %s | %d | %s | %s | %s |"):format(s.method, weight_of(s), s.seeds, pair("%.1f", s.a_lp, s.a_half),
      pair("%+.2f", s.delta_lp, s.delta_half), saved(s))
    for _, task in ipairs(tasks) do
      local values = {}
      for _, by_task in pairs(s.cell.seeds) do values[#values + 1] = by_task[task] and 100 * by_task[task].delta_lp end
      line = line .. (" %+.1f |"):format((pg.stats.interval(values)))
    end
    say("%s", line)
  end
end

say "\nEvery weight:\n"
table_head { "method", "weight", "seeds", "A_LP", "mean Delta_LP", "against LP-FT", "learns as much" }
for _, s in ipairs(rows) do
  if s.setting == "" then
    say("| %s | %s | %d | %s | %s | %s | %s |", s.method, weight_of(s), s.seeds, pair("%.1f", s.a_lp, s.a_half),
      pair("%+.2f", s.delta_lp, s.delta_half), saved(s), s.matched and "yes" or "no")
  end
end

local function say_settings(title, columns, wanted, line)
  local any = false
  for _, s in ipairs(rows) do
    if wanted(s) then
      if not any then say("\n%s\n", title) table_head(columns) end
      any = true
      say("%s", line(s))
    end
  end
end

local function is_gentle(s) return s.setting:find "lr=" ~= nil end
say_settings("Levers: what changes against the usual setting, over runs of the same task and seed, with a 95% interval.",
  { "lever", "method", "weight", "runs", "A_LP", "mean Delta_LP" },
  function(s) return s.setting ~= "" and not is_gentle(s) and cells[key_of("", s.method, s.weight)] end,
  function(s)
    local usual = cells[key_of("", s.method, s.weight)]
    local a, a_half, n = over_runs(s.cell, "a_lp", usual)
    return ("| %s | %s | %s | %d | %s | %s |"):format(s.setting, s.method, weight_of(s), n, pair("%+.1f", a, a_half),
      pair("%+.2f", over_runs(s.cell, "delta_lp", usual)))
  end)
say_settings("A gentler fine-tuning, and what each method changes against LP-FT's run of the same task and seed.",
  { "setting", "method", "weight", "seeds", "A_LP", "mean Delta_LP", "against LP-FT" }, is_gentle,
  function(s)
    local base = cells[key_of(s.setting, "lp_ft")]
    return ("| %s | %s | %s | %d | %s | %s | %s |"):format(s.setting, s.method, weight_of(s), s.seeds,
      pair("%.1f", s.a_lp, s.a_half), pair("%+.2f", s.delta_lp, s.delta_half),
      s.method ~= "lp_ft" and base and pair("%+.2f", over_runs(s.cell, "delta_lp", base)) or "")
  end)

say "\nThe tasks before any fine-tuning: linear probe with as many labels as fine-tuning sees.\n"
table_head { "task", "A_LP" }
for _, task in ipairs(tasks) do
  local values = {}
  for _, value in pairs(before[task]) do values[#values + 1] = value end
  if #values > 0 then say("| %s | %s |", task, pair("%.1f", pg.stats.interval(values))) end
end

local text = table.concat(lines, "\n") .. "\n"
io.write(text)
pg.util.write_file(opt.into .. "/results.md", text)
for _, s in ipairs(rows) do s.cell = nil end
pg.util.write_file(opt.into .. "/results.json", pg.run.encode({ rows = rows }, "") .. "\n")
gather.keep(opt.into, entries)

-- ---- the curves -----------------------------------------------------------------------------------------------------------

local series, at = {}, {}
local function width(s, half) return s.seeds > 2 and half or 0 end -- two seeds have a bar as wide as the picture
for _, s in ipairs(rows) do
  if s.setting == "" then
    local one = at[s.method]
    if not one then
      one = { name = s.method, x = {}, y = {}, xerr = {}, yerr = {} }
      at[s.method], series[#series + 1] = one, one
    end
    one.x[#one.x + 1], one.xerr[#one.xerr + 1] = s.a_lp, width(s, s.a_half)
    one.y[#one.y + 1], one.yerr[#one.yerr + 1] = s.delta_lp, width(s, s.delta_half)
  end
end
pg.plot.scatter_curves(opt.into .. "/curves.png", { title = "Perigee-10: what was learnt, what was forgotten",
  xlabel = "A_LP (%), mean of ten tasks", ylabel = "mean Delta_LP (points)", series = series })
