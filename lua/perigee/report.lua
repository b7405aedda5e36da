-- report.lua - what many runs say together: a table of options and results, groups over seeds, curves and pictures, as
-- one HTML file, as PNG files, as Markdown and as CSV. `perigee report` is its command line.
--
--   local report = pg.report.collect { "runs" }
--   pg.util.write_file("report.html", pg.report.html(report))
--
-- A line of the report is a run, or, where result.json has a list `rows`, one of its rows: a recipe that tries several
-- methods gives a line each. A column is an option, or a figure of the results; what is nested is named with a dot, and
-- the figures below one name, such as tasks.color and tasks.shape, are a family: the columns of a heat map.

local util = require "perigee.util"
local runs = require "perigee.report.runs"
local stats = require "perigee.stats"

local report = { stats = stats }

local NESTED = 4    -- levels of a result that are followed
local FIGURES = 500 -- columns of figures
local WIDE = 12     -- columns that a table shows by itself

-- Columns that are shown only when they are asked for, though they differ.
local ASIDE = { git = true, perigee = true }

-- ---- lines: the options and the figures of a run ------------------------------------------------------------------

local function is_list(value) return #value > 0 end

-- Numbers of a nested result as prefix.name; text only of the first level. Lists are left to result.json.
local function flatten(value, prefix, into, level)
  for key, v in pairs(value) do
    local name = prefix .. runs.utf8(tostring(key))
    if type(v) == "number" and v - v == 0 then into[name] = v
    elseif type(v) == "boolean" or type(v) == "string" and prefix == "" then
      into[name] = type(v) == "string" and runs.utf8(v) or v
    elseif type(v) == "table" and not is_list(v) and level < NESTED then
      flatten(v, name .. ".", into, level + 1)
    end
  end
  return into
end

-- A result that has an option's name is that option where they are equal, and stands beside it where not.
local function add_results(line, results)
  for name, value in pairs(results) do
    if line.options[name] == nil then line.results[name] = value
    elseif line.options[name] ~= value then line.results["result." .. name] = value end
  end
end

local function new_line(run, index)
  local line = { run = index, name = run.name, status = run.status, options = {}, results = {}, curves = {} }
  for key, value in pairs(run.options) do line.options[key] = value end
  return line
end

-- The list result.rows, when each of them is a record.
local function rows_of(result)
  if type(result) ~= "table" or type(result.rows) ~= "table" or not is_list(result.rows) then return nil end
  for _, row in ipairs(result.rows) do
    if type(row) ~= "table" or is_list(row) then return nil end
  end
  return result.rows
end

-- What a row says of an option replaces it: method=naive,fda has become two lines.
local function line_of_row(run, index, row, shared)
  local line, own = new_line(run, index), flatten(row, "", {}, 1)
  line.row, line.words = row, {}
  for name, value in pairs(own) do
    if type(value) == "string" or run.options[name] ~= nil then
      line.options[name], own[name] = value, nil
      if type(value) == "string" then line.words[#line.words + 1] = value end
    end
  end
  table.sort(line.words)
  local rest = {}
  for name, value in pairs(shared) do
    if own[name] == nil then rest[name] = value end
  end
  for name, value in pairs(own) do line.results[name] = value end
  add_results(line, rest)
  return line
end

-- Several rows of one run are told apart by their text, and by their weight or place where that is the same.
local function name_rows(lines)
  local count, place = {}, {}
  for _, line in ipairs(lines) do
    local words = table.concat(line.words, " ")
    count[words] = (count[words] or 0) + 1
  end
  for _, line in ipairs(lines) do
    local words = table.concat(line.words, " ")
    place[words] = (place[words] or 0) + 1
    local number = type(line.row.weight) == "number" and ("%g"):format(line.row.weight) or tostring(place[words])
    line.name = line.name .. ": " .. (count[words] > 1 and words .. " " .. number or words)
  end
end

-- A pass of the metrics belongs to the first row of the same text fields that has none yet.
local function belongs(line, pass)
  if line.passed then return false end
  for key, value in pairs(pass.fields) do
    if line.row[key] ~= nil and line.row[key] ~= value then return false end
  end
  return true
end

local function give_curves(lines, passes)
  for _, pass in ipairs(passes) do
    local owner, single = lines[1], #lines == 1
    if not single then
      for i = #lines, 1, -1 do owner = belongs(lines[i], pass) and lines[i] or owner end
      owner.passed = true
    end
    for name, series in pairs(pass.metrics) do
      local label = single and #passes > 1 and pass.label or ""
      owner.curves[#owner.curves + 1] = { metric = name, label = label, x = series.x, y = series.y }
    end
  end
  for _, line in ipairs(lines) do
    table.sort(line.curves, function(a, b) return a.metric ~= b.metric and a.metric < b.metric or a.label < b.label end)
  end
end

local function lines_of(run, index)
  local lines, rows = {}, rows_of(run.result)
  local shared = flatten(run.result or {}, "", {}, 1)
  if rows then
    for i, row in ipairs(rows) do lines[i] = line_of_row(run, index, row, shared) end
    if #rows > 1 then name_rows(lines) end
  else
    lines[1] = new_line(run, index)
    add_results(lines[1], shared)
  end
  give_curves(lines, run.passes)
  for _, line in ipairs(lines) do line.passed, line.row, line.words = nil, nil, nil end
  return lines
end

-- ---- columns ------------------------------------------------------------------------------------------------------

-- Decimals that show four digits of the largest value and keep a column of numbers in line; nil where values are too
-- far apart for that, or too large or small: then each is written for itself.
local function decimals_of(values)
  local most, least, whole = 0, math.huge, true
  for _, v in ipairs(values) do
    local size = math.abs(v)
    most = math.max(most, size)
    if size > 0 then least = math.min(least, size) end
    whole = whole and v % 1 == 0
  end
  if most >= 1e7 or most > 0 and most < 1e-3 then return nil end
  if whole then return 0 end
  local digits = math.max(0, 3 - math.floor(math.log10(most)))
  return least >= 10 ^ -digits and digits or nil
end

-- An option that takes a number or a word is text, "10" too; where every run gave a number, it is one.
local function as_numbers(lines, key)
  for _, line in ipairs(lines) do
    local value = line.options[key]
    if value ~= nil and (type(value) == "boolean" or not tonumber(value)) then return end
  end
  for _, line in ipairs(lines) do
    if line.options[key] ~= nil then line.options[key] = tonumber(line.options[key]) end
  end
end

local function column_of(lines, kind, key)
  if kind == "options" then as_numbers(lines, key) end
  local column = { key = key, kind = kind, family = kind == "results" and key:match "^(.*)%.[^.]*$" or nil }
  local numbers, first, has = {}, nil, {} -- has: the recipes that have it
  column.numeric = true
  for _, line in ipairs(lines) do
    local value = line[kind][key]
    if value ~= nil then
      has[line.options.recipe or ""] = true
      if type(value) == "number" then numbers[#numbers + 1] = value else column.numeric = false end
      if first == nil then first = value
      elseif value ~= first then column.differs = true end
    end
  end
  for _, line in ipairs(kind == "options" and lines or {}) do -- that another recipe lacks it, the column `recipe` says
    if line.options[key] == nil and has[line.options.recipe or ""] then column.differs = true end
  end
  column.decimals = kind == "results" and column.numeric and decimals_of(numbers) or nil
  return column
end

-- Options that differ, then figures, the first WIDE of them; then families that fit beside them as a whole.
local function choose_shown(columns)
  local room, families = WIDE, {}
  local function show(list)
    for _, column in ipairs(list) do
      column.shown = room > 0 or nil
      room = room - 1
    end
  end
  local options, figures = {}, {}
  for _, column in ipairs(columns) do
    if column.kind == "options" then options[#options + 1] = column.differs and not ASIDE[column.key] and column or nil
    elseif not column.family then figures[#figures + 1] = (column.numeric or column.differs) and column or nil
    else
      local family = families[#families]
      if not family or family[1].family ~= column.family then
        family = {}
        families[#families + 1] = family
      end
      family[#family + 1] = column
    end
  end
  show(options)
  show(figures)
  for _, family in ipairs(families) do
    if #family <= room then show(family) end
  end
end

-- The columns of a family show as many decimals as the one with the largest values.
local function align_families(columns)
  local fewest = {}
  for _, column in ipairs(columns) do
    if column.family and column.decimals then
      fewest[column.family] = math.min(fewest[column.family] or math.huge, column.decimals)
    end
  end
  for _, column in ipairs(columns) do
    if column.family and column.numeric then column.decimals = fewest[column.family] end
  end
end

local function columns_of(lines, warnings)
  local columns, left = {}, 0
  for _, kind in ipairs { "options", "results" } do
    local keys, seen = {}, {}
    for _, line in ipairs(lines) do
      if line.status ~= "broken" then
        for key in pairs(line[kind]) do
          if not seen[key] then seen[key], keys[#keys + 1] = true, key end
        end
      end
    end
    table.sort(keys, function(a, b) -- figures before families, so that what is left out is of these
      local deep_a, deep_b = a:find(".", 1, true) ~= nil, b:find(".", 1, true) ~= nil
      if kind == "results" and deep_a ~= deep_b then return deep_b end
      return a < b
    end)
    local known = {}
    for _, line in ipairs(lines) do
      if line.status ~= "broken" then known[#known + 1] = line end
    end
    for i, key in ipairs(keys) do
      if i <= FIGURES then columns[#columns + 1] = column_of(known, kind, key) else left = left + 1 end
    end
  end
  if left > 0 then warnings[#warnings + 1] = ("%d columns beyond the first %d are left out"):format(left, FIGURES) end
  align_families(columns)
  choose_shown(columns)
  return columns
end

--- Reads runs and lays them out as a table.
-- @param paths    list of run folders, and of folders that hold them; a single path may stand alone
-- @param options  {program = "perigee", how the repeating commands start Perigee; metrics = false leaves the curves
--   out}
-- @return {runs = list of runs, each with name, folder, status, error, command, pictures and config; lines = list of
--   {run = its place in runs, name, status, options, results, curves}; columns = list of {key, kind = "options" or
--   "results", family, numeric, differs, shown, decimals}; warnings = list of text, each naming its folder}
-- @raises when a path does not exist; a damaged run is a warning and a line with the status "broken"
function report.collect(paths, options)
  options = util.options("report.collect", options, { program = "perigee", metrics = true })
  local list = runs.collect(type(paths) == "string" and { paths } or paths, options)
  local lines, warnings = {}, {}
  for i, run in ipairs(list) do
    for _, line in ipairs(lines_of(run, i)) do lines[#lines + 1] = line end
    for _, text in ipairs(run.warnings) do warnings[#warnings + 1] = runs.utf8(run.folder) .. ": " .. text end
    run.passes, run.warnings = nil, nil
  end
  return { runs = list, lines = lines, columns = columns_of(lines, warnings), warnings = warnings }
end

-- ---- groups -------------------------------------------------------------------------------------------------------

local function column_named(collected, key)
  for _, column in ipairs(collected.columns) do
    if column.key == key and column.kind == "options" then return column end
  end
end

--- The options by which runs differ: these, the seed aside, are one configuration.
-- @param collected  from report.collect
-- @return list of names
function report.differing(collected)
  local list = {}
  for _, column in ipairs(collected.columns) do
    if column.kind == "options" and column.differs and column.key ~= "seed" and not ASIDE[column.key] then
      list[#list + 1] = column.key
    end
  end
  return list
end

-- What a group is called: its values, with the options' names where there are several; an option that it has not is left
-- out.
local function name_of(by, values)
  local words = {}
  for i, key in ipairs(by) do
    local value = values[i]
    local text = type(value) == "number" and ("%.6g"):format(value) or value ~= nil and tostring(value)
    words[#words + 1] = text and (#by > 1 and key .. "=" or "") .. text or nil
  end
  if #words > 0 then return table.concat(words, " ") end
  return #by == 1 and "-" or "all runs"
end

--- Lines of one configuration, seed by seed, as mean and 95% interval (Student's t over n - 1).
-- @param collected     from report.collect
-- @param by       list of options; nil or "all" is every one that differs but the seed
-- @return list of {name, values = the options' values, count = lines, figures = key -> {mean =, half =, n =}}: half is
--   half the interval's width, NaN for a single value. Order is that of the first line of each
-- @raises when there is no such option
function report.groups(collected, by)
  by = (by == nil or by == "all") and report.differing(collected) or by
  local known = {}
  for _, column in ipairs(collected.columns) do known[#known + 1] = column.kind == "options" and column.key or nil end
  for _, key in ipairs(by) do
    util.check(column_named(collected, key), "report: no run has an option '%s' (did you mean '%s'?)", key,
      util.nearest(key, known) or "none")
  end
  local groups, found = {}, {}
  for _, line in ipairs(collected.lines) do
    if line.status ~= "broken" then
      local values = {}
      for i, key in ipairs(by) do values[i] = line.options[key] end
      local name = name_of(by, values)
      local group = found[name]
      if not group then
        group = { name = name, values = values, count = 0, figures = {} }
        found[name], groups[#groups + 1] = group, group
      end
      group.count = group.count + 1
      for key, value in pairs(line.results) do
        if type(value) == "number" then
          group.figures[key] = group.figures[key] or {}
          table.insert(group.figures[key], value)
        end
      end
    end
  end
  for _, group in ipairs(groups) do
    for key, values in pairs(group.figures) do
      local mean, half = stats.interval(values)
      group.figures[key] = { mean = mean, half = half, n = #values }
    end
  end
  return groups
end

--- The families of figures: names that stand before a dot, with what stands behind it.
-- @param collected  from report.collect
-- @return list of {name, keys = the columns' keys, members = their last parts}
function report.families(collected)
  local list, found = {}, {}
  for _, column in ipairs(collected.columns) do
    if column.family and column.numeric then
      local family = found[column.family]
      if not family then
        family = { name = column.family, keys = {}, members = {} }
        found[column.family], list[#list + 1] = family, family
      end
      family.keys[#family.keys + 1] = column.key
      family.members[#family.members + 1] = column.key:sub(#column.family + 2)
    end
  end
  return list
end

-- ---- ways to write it ---------------------------------------------------------------------------------------------

--- The report as one HTML file that needs nothing else.
-- @param collected     from report.collect
-- @param options  {title = "Perigee report", pictures = 20, megabytes of pictures that are embedded at most, group =
--   "all", an option, or several with commas: what the page groups by at first}
-- @return text
function report.html(collected, options) return require("perigee.report.page").write(report, collected, options) end

--- The report as Markdown: the table, the groups, a table of each family.
-- @param collected     from report.collect
-- @param options  {title =, group =} as report.html
-- @return text
function report.markdown(collected, options)
  return require("perigee.report.tables").markdown(report, collected, options)
end

--- Every option and figure of every line, and the command that repeats it, as CSV (RFC 4180). Text that a spreadsheet
-- would take for a formula begins with an apostrophe.
-- @param collected  from report.collect
-- @return text
function report.csv(collected) return require("perigee.report.tables").csv(collected) end

--- The report's charts as PNG files: curves-METRIC, groups-FIGURE, heat-FAMILY and parallel.
-- @param collected     from report.collect
-- @param folder   where they go; it is made
-- @param options  {title =, group =} as report.html
-- @return list of the paths written; empty, with one warning, where gnuplot is missing
function report.png(collected, folder, options)
  return require("perigee.report.charts").write(report, collected, folder, options)
end

return report
