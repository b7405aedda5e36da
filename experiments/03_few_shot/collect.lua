-- collect.lua - what the runs of sweep.lua and weights.lua say together: base and new accuracy, their harmonic mean H and
-- Delta_New of every method, averaged over the tasks and for each, with 95% intervals over draws of the shots; and what FDA and
-- Proxy-FDA change, as differences from the method alone on the same draws. Writes results.md, results.json, four pictures and
-- rows.jsonl, from which all can be made again.

local pg = require "perigee"
local gather = dofile "experiments/gather.lua"
local experiment = dofile "experiments/03_few_shot/methods.lua"

local opt = pg.recipe {
  name = "collect",
  help = "Gather the run folders of the few-shot experiment into tables and pictures.",
  options = {
    { "folders", "runs/03_few_shot,runs/03_weights", help = "of the sweeps, comma-separated" },
    { "into", "experiments/03_few_shot", help = "where results.md, results.json, rows.jsonl and the pictures go" },
  },
}
pg.run.open(opt)

local METHODS = { "zero_shot", "linear_probe", "tip_adapter", "tip_adapter_f", "clap", "coop", "cocoop", "kgcoop", "prograd",
  "maple", "prompt_src", "clipood", "fd_align" }
local VARIANTS = { "", "+fda:0", "+fda", "+proxy_fda" } -- "+fda:0" has FDA's batches without its loss
local TASKS, KIND, SHOTS = {}, { experiment.kind }, { 1, 4, 16 }
for task in experiment.tasks:gmatch "[^,]+" do TASKS[#TASKS + 1] = task end
local SWEPT = 100 -- draws above are those of weights.lua

-- ---- the runs -------------------------------------------------------------------------------------------------------------

local entries = gather.rows(opt.into, opt.folders, function(_, row) return { row = row } end)
local cells, swept, zero_shot = {}, {}, {} -- cells[shots][method][seed][task] = row; swept[method][weight] likewise

local function file(into, key, seed, row)
  into[key] = into[key] or {}
  into[key][seed] = into[key][seed] or {}
  into[key][seed][row.task] = row
end
for _, entry in ipairs(entries) do
  local row = entry.row
  local method, weight = row.method:match "^([^:]+):?(.*)$"
  if row.seed > SWEPT then
    swept[method] = swept[method] or {}
    file(swept[method], tonumber(weight), row.seed, row)
  else
    cells[row.shots] = cells[row.shots] or {}
    file(cells[row.shots], weight == "0" and method .. ":0" or method, row.seed, row)
    if method == "zero_shot" then zero_shot[row.task] = row end
  end
end

-- ---- means and intervals --------------------------------------------------------------------------------------------------

local MEASURES = { "base", "new", "h", "delta_new" }

-- {base, new, h, delta_new} in percent of one draw: means over tasks, and H of these. Nil where a task is missing.
local function figures(rows, tasks)
  local base, new, change = 0, 0, 0
  for _, task in ipairs(tasks) do
    local row = rows[task]
    if not row or not zero_shot[task] then return nil end
    base, new = base + 100 * row.base / #tasks, new + 100 * row.new / #tasks
    change = change + 100 * (row.new - zero_shot[task].new) / #tasks
  end
  return { base = base, new = new, h = 100 * pg.base_to_new.harmonic(base / 100, new / 100), delta_new = change }
end

local function draws(by, tasks)
  local list, seeds = {}, {}
  for seed in pairs(by or {}) do seeds[#seeds + 1] = seed end
  table.sort(seeds)
  for _, seed in ipairs(seeds) do list[#list + 1] = figures(by[seed], tasks) end
  return list
end

-- Of each measure the mean and half the 95% interval over draws; nil where there is none.
local function summary(by, tasks)
  local list, s = draws(by, tasks), {}
  if #list == 0 then return nil end
  for _, name in ipairs(MEASURES) do
    local values = {}
    for i, one in ipairs(list) do values[i] = one[name] end
    s[name], s[name .. "_half"] = pg.stats.interval(values)
  end
  s.draws = #list
  return s
end

-- The same of the differences from another method on the same draws.
local function difference(by, other, tasks)
  local paired = {}
  for seed, rows in pairs(by or {}) do
    local a, b = figures(rows, tasks), other and other[seed] and figures(other[seed], tasks)
    if a and b then
      for _, name in ipairs(MEASURES) do
        paired[name] = paired[name] or {}
        table.insert(paired[name], a[name] - b[name])
      end
    end
  end
  if not paired.h then return nil end
  local s = { draws = #paired.h }
  for name, values in pairs(paired) do s[name], s[name .. "_half"] = pg.stats.interval(values) end
  return s
end

-- ---- the tables -------------------------------------------------------------------------------------------------------------

local lines, result = {}, { average = {}, tasks = {}, differences = {}, by_task = {}, sweep = {} }
local function say(format, ...) lines[#lines + 1] = format:format(...) end
local function cell(s, name)
  local still = s[name .. "_half"] and s[name .. "_half"] < 5e-3 -- the same on every draw
  return gather.pair(name == "delta_new" and "%+.2f" or "%.2f", s[name], not still and s[name .. "_half"] or nil)
end

local function base_to_new(shots, tasks, into)
  say("| method | Base | New | H | Delta_New |\n| --- | --- | --- | --- | --- |")
  for _, method in ipairs(METHODS) do
    for _, variant in ipairs(VARIANTS) do
      local s = summary(cells[shots] and cells[shots][method .. variant], tasks)
      if s then
        s.method, s.shots = method .. variant, shots
        into[#into + 1] = s
        say("| %s | %s | %s | %s | %s |", s.method, cell(s, "base"), cell(s, "new"), cell(s, "h"), cell(s, "delta_new"))
      end
    end
  end
end

say("Base and new accuracy, their harmonic mean and the change of the new one from zero-shot, in percent and points; 16 shots,")
say("mean of five tasks (%s), 95%% interval over draws of the shots (Student's t). H is of the", table.concat(TASKS, ", "))
say("averages. Where nothing varies no interval stands. `+fda:0` has FDA's batches without its loss.\n")
base_to_new(16, TASKS, result.average)

-- Which of an interval's ends is on which side of zero.
local function verdict(s, name)
  local half = s[name .. "_half"]
  if half ~= half then return "" end
  return s[name] - half > 0 and "better" or s[name] + half < 0 and "worse" or ""
end
local function differences(shots, tasks, label)
  say("| method | draws | Base | New | H | H is |\n| --- | --- | --- | --- | --- | --- |")
  for _, method in ipairs(METHODS) do
    for _, pair in ipairs { { "+fda:0", "" }, { "+fda", "" }, { "+fda", "+fda:0" }, { "+proxy_fda", "" },
      { "+proxy_fda", "+fda:0" }, { "+proxy_fda", "+fda" } } do
      local of, from = method .. pair[1], method .. pair[2]
      local s = difference(cells[shots] and cells[shots][of], cells[shots] and cells[shots][from], tasks)
      if s then
        s.method, s.from, s.shots, s.tasks, s.verdict = of, from, shots, label, verdict(s, "h")
        result.differences[#result.differences + 1] = s
        local function signed(name) return gather.pair("%+.2f", s[name], s[name .. "_half"]) end
        say("| %s - %s | %d | %s | %s | %s | %s |", of, from, s.draws, signed "base", signed "new", signed "h", s.verdict)
      end
    end
  end
end
say("\n## What FDA and Proxy-FDA change\n\nDifferences on the same draws, 16 shots, mean of the five tasks, in points; better or")
say("worse where the 95%% interval of H over draws leaves out zero. Among so many rows one in twenty does by chance.\n")
differences(16, TASKS, "average")

local COLUMNS = { unpack(TASKS) } -- and clipart_kind, of fewer shots
COLUMNS[#COLUMNS + 1] = KIND[1]
local function by_task(method, variant, task)
  local at = cells[task == KIND[1] and 4 or 16] or {}
  return difference(at[method .. variant], at[method], { task })
end
for _, variant in ipairs { "+fda", "+proxy_fda" } do
  say("\nH with `%s` less H without it, task by task (clipart_kind with 4 shots); in bold where the interval leaves out", variant)
  say("zero.\n\n| method | %s |\n| ---%s |", table.concat(COLUMNS, " | "), (" | ---"):rep(#COLUMNS))
  for _, method in ipairs(METHODS) do
    local row, any = "", false
    for _, task in ipairs(COLUMNS) do
      local s = by_task(method, variant, task)
      local text = s and gather.pair("%+.1f", s.h, s.h_half) or ""
      any, row = any or s, row .. (s and verdict(s, "h") ~= "" and " **%s** |" or " %s |"):format(text)
      if s then
        s.method, s.task, s.verdict = method .. variant, task, verdict(s, "h")
        table.insert(result.by_task, s)
      end
    end
    if any then say("| %s |%s", method, row) end
  end
end

say("\n## Task by task")
for _, group in ipairs { { 16, TASKS }, { 4, KIND } } do
  for _, task in ipairs(group[2]) do
    result.tasks[task] = {}
    say("\n%s, %d shots:\n", task, group[1])
    base_to_new(group[1], { task }, result.tasks[task])
  end
end
say("\nclipart_kind, 4 shots, differences:\n")
differences(4, KIND, "clipart_kind")

say("\n## Fewer shots\n\nH of the averages over the five tasks.\n")
say("| method | 1 shot | 4 shots | 16 shots |\n| --- | --- | --- | --- |")
for _, method in ipairs(METHODS) do
  for _, variant in ipairs(VARIANTS) do
    local row, any = "", false
    for _, shots in ipairs(SHOTS) do
      local s = summary(cells[shots] and cells[shots][method .. variant], TASKS)
      any = any or s and shots < 16
      row = row .. " " .. (s and cell(s, "h") .. (s.draws < 5 and (" (%d draws)"):format(s.draws) or "") or "") .. " |"
    end
    if any then say("| %s%s |%s", method, variant, row) end
  end
end

for _, shots in ipairs { 1, 4 } do
  say("\nDifferences on the same draws, %d shot%s:\n", shots, shots > 1 and "s" or "")
  differences(shots, TASKS, "average")
end

say("\n## The weights\n\nH of the averages over the five tasks, 16 shots, draws 101 and 102, of which no other table has a row.")
say("The best of each line is what sweep.lua uses.\n\n| method | 0.1 | 1 | 10 |\n| --- | --- | --- | --- |")
for _, method in ipairs(METHODS) do
  for _, variant in ipairs(VARIANTS) do
    local weights, best, row = swept[method .. variant], nil, ""
    for _, weight in ipairs(weights and { 0.1, 1, 10 } or {}) do
      local s = summary(weights[weight], TASKS)
      if s then
        s.method, s.weight = method .. variant, weight
        result.sweep[#result.sweep + 1] = s
        best = (not best or s.h > best.h) and s or best
      end
    end
    for _, s in ipairs(result.sweep) do
      if s.method == method .. variant then row = row .. (s == best and " **%.2f** |" or " %.2f |"):format(s.h) end
    end
    if best then say("| %s%s |%s", method, variant, row) end
  end
end

local text = table.concat(lines, "\n") .. "\n"
io.write(text)
pg.util.write_file(opt.into .. "/results.md", text)
pg.util.write_file(opt.into .. "/results.json", pg.run.encode(result, "") .. "\n")
gather.keep(opt.into, entries)

-- ---- the pictures -----------------------------------------------------------------------------------------------------------

local found = {}
for _, s in ipairs(result.average) do found[s.method] = s end
local groups, series = {}, { { name = "alone", y = {}, err = {} }, { name = "+fda", y = {}, err = {} },
  { name = "+proxy_fda", y = {}, err = {} } }
for _, method in ipairs(METHODS) do
  if found[method] and method ~= "zero_shot" then
    groups[#groups + 1] = method
    for i, variant in ipairs { "", "+fda", "+proxy_fda" } do
      local s = found[method .. variant]
      series[i].y[#groups], series[i].err[#groups] = s and s.h - found.zero_shot.h or 0 / 0, s and s.h_half or 0 / 0
    end
  end
end
pg.plot.bars(opt.into .. "/h.png", { title = "Harmonic mean of base and new against zero-shot's, 16 shots, mean of five tasks",
  ylabel = "H - H of zero-shot (points)", groups = groups, series = series, width = 1300 })

local names, mean, half, rows, values = {}, {}, {}, {}, {}
for _, s in ipairs(result.differences) do
  if s.tasks == "average" and s.shots == 16 and s.from == s.method:match "^[%w_]+" and not s.method:find ":0" then
    names[#names + 1], mean[#mean + 1], half[#half + 1] = s.method, s.h, s.h_half
  end
end
pg.plot.intervals(opt.into .. "/differences.png", { title = "What FDA and Proxy-FDA change, 16 shots, same draws",
  xlabel = "difference of H from the method alone (points)", names = names, mean = mean, half = half })

for _, method in ipairs(METHODS) do
  local list = {}
  for i, task in ipairs(COLUMNS) do
    local s = by_task(method, "+proxy_fda", task)
    list[i] = s and s.h or 0 / 0
  end
  if list[1] == list[1] then rows[#rows + 1], values[#values + 1] = method, list end
end
pg.plot.heat_table(opt.into .. "/tasks.png", { title = "What Proxy-FDA changes: H (points), 16 shots; clipart_kind 4",
  rows = rows, columns = COLUMNS, values = values })

local curves = {}
for _, method in ipairs { "zero_shot", "tip_adapter_f", "coop", "kgcoop", "maple", "prompt_src", "clipood", "fd_align" } do
  local curve = { name = method, x = {}, y = {} }
  for _, shots in ipairs(SHOTS) do
    local s = summary(cells[shots] and cells[shots][method], TASKS)
    if s then curve.x[#curve.x + 1], curve.y[#curve.y + 1] = shots, s.h end
  end
  if #curve.x > 1 then curves[#curves + 1] = curve end
end
if #curves > 0 then
  pg.plot.lines(opt.into .. "/shots.png", { title = "Harmonic mean against shots, mean of five tasks", xlabel = "shots",
    ylabel = "H (%)", logx = true, series = curves })
end
