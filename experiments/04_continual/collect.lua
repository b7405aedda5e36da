-- collect.lua - what the runs of sweep.lua say together: for each setting and method the figures of the matrix R with 95%
-- intervals over seeds, what Proxy-FDA gains on every other method (paired by seed), accuracy against step, and each mean
-- matrix. Writes results.md, results.json, the pictures, and rows.jsonl, every row of every run, from which all of it can
-- be made again.

local pg = require "perigee"
local lfs = require "lfs"
local gather = dofile "experiments/gather.lua"

local opt = pg.recipe {
  name = "collect",
  help = "Gather the run folders of the continual experiment into tables and pictures.",
  options = {
    { "folders", "runs/04_continual", help = "of the sweep, comma-separated" },
    { "into", "experiments/04_continual", help = "where results.md, results.json, rows.jsonl and the pictures go" },
  },
}
pg.run.open(opt)

local SETTINGS = { "tasks", "classes" }
local TITLES = { tasks = "Five tasks, a head each", classes = "Fashion-MNIST, two classes a step, one growing head" }
local ORDER = { "pre-trained", "naive", "naive, current", "joint", "ewc", "lwf", "icarl", "l2p", "dual_prompt",
  "coda_prompt", "slca", "zscl", "l2sp", "ldifs", "fda", "fda, pretrained", "proxy_fda", "proxy_fda, pretrained",
  "lwf+proxy_fda", "icarl+proxy_fda", "slca+proxy_fda", "coda_prompt+proxy_fda" }
local FIGURES = { "last", "incremental", "forgetting", "backward", "forward", "transfer", "avg", "probe" }
local PICTURES = { -- which curves share a picture, at most eight
  methods = { "naive", "joint", "ewc", "lwf", "icarl", "slca", "zscl", "proxy_fda" },
  prompts = { "naive", "joint", "l2p", "dual_prompt", "coda_prompt", "slca", "proxy_fda" },
  regularizers = { "naive", "l2sp", "ldifs", "fda", "fda, pretrained", "proxy_fda", "proxy_fda, pretrained" },
}
PICTURES.classes_regularizers = { "naive", "naive, current", "l2sp", "ldifs", "fda", "fda, pretrained", "proxy_fda",
  "proxy_fda, pretrained" }

-- ---- the runs -----------------------------------------------------------------------------------------------------------

-- A row's name in the tables: its title, and what sets it apart from the sweep's main list.
local function name_of(title, options)
  if options.lr == 1e-12 then return "pre-trained" end -- a rate at which nothing moves
  if options.reference == "pretrained" then return title .. ", pretrained" end
  return options.logits == "current" and title .. ", current" or title
end

local entries = gather.rows(opt.into, opt.folders, function(config, row, result)
  return { setting = config.options.setting, seed = config.seed,
    row = { method = name_of(row.title, config.options), R = row.R, probe = row.probe, seconds = row.seconds,
      chance = result.chance, tasks = result.tasks } }
end)

local cells = { tasks = {}, classes = {} } -- cells[setting][method][seed] = {R, figures, names}
for _, entry in ipairs(entries) do
  local row = entry.row
  local figures = pg.metrics.continual(row.R, { chance = row.chance })
  figures.probe = pg.stats.interval(row.probe)
  local seeds = cells[entry.setting][row.method] or {}
  cells[entry.setting][row.method] = seeds
  seeds[entry.seed] = { R = row.R, figures = figures, names = row.tasks }
end

-- ---- means and intervals ------------------------------------------------------------------------------------------------

-- What pick says of each seed.
local function of_seeds(cell, pick)
  local values = {}
  for seed, entry in pairs(cell) do values[#values + 1] = pick(entry, seed) end
  return values
end

local function summary(setting, name)
  local cell = cells[setting][name]
  local s = { setting = setting, method = name, seeds = #of_seeds(cell, function() return 1 end) }
  for _, figure in ipairs(FIGURES) do
    local values = of_seeds(cell, function(entry) return entry.figures[figure] and 100 * entry.figures[figure] end)
    if #values > 0 then s[figure] = { pg.stats.interval(values) } end
  end
  return s
end

-- The mean and interval of one method's figure less another's, over the seeds that both have.
local function gain(setting, name, other, figure)
  local values = of_seeds(cells[setting][name], function(entry, seed)
    local rival = cells[setting][other][seed]
    return rival and rival.figures[figure] and 100 * (entry.figures[figure] - rival.figures[figure])
  end)
  return #values > 0 and { pg.stats.interval(values) } or nil
end

-- ---- the tables ---------------------------------------------------------------------------------------------------------

local lines, results = {}, { rows = {}, gains = {} }
local function say(format, ...) lines[#lines + 1] = format:format(...) end

local function pair(format, value) return value and gather.pair(format, value[1], value[2]) or "" end

-- Better, worse, or within the interval.
local function verdict(value, sign)
  if not value or value[2] ~= value[2] then return "" end
  if math.abs(value[1]) <= value[2] then return "undecided" end
  return sign * value[1] > 0 and "better" or "worse"
end

for _, setting in ipairs(SETTINGS) do
  local known = {}
  for _, name in ipairs(ORDER) do known[#known + 1] = cells[setting][name] and name end
  say("## %s\n", TITLES[setting])
  say("Points, mean and 95%% interval over seeds (Student's t). probe: linear probes of the last encoder, each among the")
  say("classes of its own task or step, mean over them.\n")
  say("| method | seeds | last | incremental | forgetting | backward | forward | transfer | avg | probe |")
  say("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
  for _, name in ipairs(known) do
    local s, line = summary(setting, name), ""
    results.rows[#results.rows + 1] = s
    for _, figure in ipairs(FIGURES) do line = line .. " " .. pair("%.1f", s[figure]) .. " |" end
    say("| %s | %d |%s", name, s.seeds, line)
  end
  say("\nWhat Proxy-FDA gains: one row less the other, paired by seed; forgetting is better when it is lower.\n")
  say("| | less | last | | forgetting | | probe | |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
  for _, subject in ipairs(known) do
    local plain = subject:match "^([%w_]+)%+proxy_fda$"
    for _, other in ipairs(known) do
      local alone = subject:match "^proxy_fda" and not other:match "proxy_fda" -- none of itself, nor where it is added
      if plain and other == plain or alone then
        local line, differences = "", {}
        for _, figure in ipairs { "last", "forgetting", "probe" } do
          local d = gain(setting, subject, other, figure)
          differences[figure] = d
          line = line .. (" %s | %s |"):format(pair("%+.1f", d), verdict(d, figure == "forgetting" and -1 or 1))
        end
        say("| %s | %s |%s", subject, other, line)
        table.insert(results.gains, { setting = setting, method = subject, over = other, last = differences.last,
          forgetting = differences.forgetting, probe = differences.probe })
      end
    end
  end
  say("")
end

local text = table.concat(lines, "\n")
io.write(text)
pg.util.write_file(opt.into .. "/results.md", text)
pg.util.write_file(opt.into .. "/results.json", pg.run.encode(results, "") .. "\n")
gather.keep(opt.into, entries)

-- ---- the pictures -------------------------------------------------------------------------------------------------------

local function curve(setting, name)
  local series = { name = name, x = {}, y = {} }
  local _, any = next(cells[setting][name])
  for t = 1, #any.R do
    series.x[t] = t
    series.y[t] = pg.stats.interval(of_seeds(cells[setting][name], function(e) return 100 * e.figures.average[t] end))
  end
  return series
end

local function matrix(setting, name)
  local _, any = next(cells[setting][name])
  local rows, columns, values = {}, {}, {}
  for t = 1, #any.R do
    columns[t] = setting == "tasks" and ("%d %s"):format(t, any.names[t]) or ("step %d"):format(t) -- seeds shuffle classes
    rows[t], values[t] = "after " .. columns[t], {}
    for i = 1, #any.R do
      values[t][i] = pg.stats.interval(of_seeds(cells[setting][name], function(e) return e.R[t][i] and 100 * e.R[t][i] end))
    end
  end
  pg.plot.heat_table(("%s/matrices/%s_%s.png"):format(opt.into, setting, name:gsub("[^%w]+", "_")), {
    title = name .. ": accuracy (%)", rows = rows, columns = columns, values = values, decimals = 1 })
end

lfs.mkdir(opt.into .. "/matrices")
for _, setting in ipairs(SETTINGS) do
  for _, picture in ipairs { "methods", "prompts", "regularizers" } do
    local series = {}
    for _, name in ipairs(PICTURES[setting .. "_" .. picture] or PICTURES[picture]) do
      if cells[setting][name] then series[#series + 1] = curve(setting, name) end
    end
    if #series > 0 then
      pg.plot.lines(("%s/%s_%s.png"):format(opt.into, setting, picture), { title = TITLES[setting],
        xlabel = "step", ylabel = "average accuracy on the tasks so far (%)", series = series })
    end
  end
  for _, name in ipairs(ORDER) do
    if cells[setting][name] then matrix(setting, name) end
  end
end
