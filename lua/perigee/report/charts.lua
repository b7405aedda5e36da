-- charts.lua - a report's charts as PNG files, drawn by gnuplot (pg.plot): curves, means with intervals, a heat
-- table of each family, parallel coordinates.

local util = require "perigee.util"
local tables = require "perigee.report.tables"
local plot = require "perigee.plot"

local charts = {}

local CURVES, METRICS, ROWS, AXES, TICKS = 8, 12, 40, 10, 12 -- at most, of each in a picture
local LONG = 44    -- characters of a group's name
local RESULTS = 4  -- axes that are kept for figures

-- A file's name from a column's: nothing in it leaves the folder.
local function file_name(kind, key)
  return kind .. "-" .. key:gsub("[^%w_.-]", "_"):sub(1, 80) .. ".png"
end

local function first_of(count, all, what)
  return count < all and (" (the first %d of %d %s)"):format(count, all, what) or ""
end

-- A name that leaves room for what it names; the tables have it whole.
local function short(name)
  if #name <= LONG then return name end
  return (name:sub(1, LONG - 2):gsub("[\192-\255][\128-\191]*$", "")) .. "…"
end

-- ---- curves -------------------------------------------------------------------------------------------------------

local function curves(collected, title, save)
  local metrics, by_metric = {}, {}
  for _, line in ipairs(collected.lines) do
    for _, curve in ipairs(line.curves) do
      local list = by_metric[curve.metric]
      if not list then
        list = {}
        by_metric[curve.metric], metrics[#metrics + 1] = list, curve.metric
      end
      local name = line.name .. (curve.label ~= "" and ": " .. curve.label or "")
      list[#list + 1] = { name = name, x = curve.x, y = curve.y }
    end
  end
  table.sort(metrics)
  for i = 1, math.min(#metrics, METRICS) do
    local all, series = by_metric[metrics[i]], {}
    for k = 1, math.min(#all, CURVES) do series[k] = all[k] end
    save("lines", file_name("curves", metrics[i]), { title = title .. first_of(#series, #all, "curves"),
      xlabel = "step", ylabel = metrics[i], series = series })
  end
end

-- ---- groups and families ------------------------------------------------------------------------------------------

local function intervals(collected, groups, title, save)
  for _, column in ipairs(collected.columns) do
    if column.kind == "results" and column.numeric and not column.family then
      local names, mean, half, all = {}, {}, {}, 0
      for _, group in ipairs(groups) do
        local figure = group.figures[column.key]
        all = all + (figure and 1 or 0)
        if figure and all <= ROWS then
          names[#names + 1], mean[#mean + 1], half[#half + 1] = short(group.name), figure.mean, figure.half
        end
      end
      if #names > 0 then
        save("intervals", file_name("groups", column.key), { title = title .. first_of(#names, all, "groups"),
          xlabel = column.key .. ", mean and 95% interval", names = names, mean = mean, half = half })
      end
    end
  end
end

local function heat(report, collected, groups, title, save)
  for _, family in ipairs(report.families(collected)) do
    local names, values, decimals, all = {}, {}, 2, 0
    for _, group in ipairs(groups) do
      local row, any = {}, false
      for k, key in ipairs(family.keys) do
        local figure = group.figures[key]
        row[k], any = figure and figure.mean or 0 / 0, any or figure ~= nil
      end
      all = all + (any and 1 or 0) -- groups that have none of it have no row
      if any and all <= ROWS then names[all], values[all] = short(group.name), row end
    end
    for _, column in ipairs(collected.columns) do
      if column.key == family.keys[1] then decimals = math.min(3, column.decimals or 3) end
    end
    save("heat_table", file_name("heat", family.name), {
      title = title .. ": " .. family.name .. first_of(#names, all, "groups"),
      rows = names, columns = family.members, values = values, decimals = decimals })
  end
end

-- ---- parallel coordinates -----------------------------------------------------------------------------------------

-- {name, ticks, share = value -> 0..1}, or nil for a column in which nothing differs.
local function axis_of(collected, column)
  local values, seen, names = {}, {}, {}
  for _, line in ipairs(collected.lines) do
    local value = line[column.kind][column.key]
    if value ~= nil and not seen[value] then
      seen[value], values[#values + 1] = true, value
      names[#names + 1] = tables.text(value)
    end
  end
  if #values < 2 then return nil end
  if not column.numeric then
    table.sort(names)
    local rank, ticks, every = {}, {}, math.ceil(#names / TICKS)
    for i, name in ipairs(names) do
      rank[name] = (i - 1) / (#names - 1)
      if (i - 1) % every == 0 then ticks[#ticks + 1] = { name, rank[name] } end
    end
    return { name = column.key, ticks = ticks, share = function(value) return rank[tables.text(value)] end }
  end
  table.sort(values)
  local low, high = values[1], values[#values]
  local scale = low > 0 and high / low > 50 and math.log or function(v) return v end
  local function share(value) return (scale(value) - scale(low)) / (scale(high) - scale(low)) end
  local shown, ticks = values, {} -- few values are all named, many by five between the least and the greatest
  if #values > 6 then
    shown = {}
    for i = 0, 4 do
      local v = scale(low) + (scale(high) - scale(low)) * i / 4
      shown[i + 1] = scale == math.log and math.exp(v) or v
    end
  end
  for i, value in ipairs(shown) do ticks[i] = { ("%.3g"):format(value), share(value) } end
  return { name = column.key, ticks = ticks, share = share }
end

-- The columns of a kind that have an axis, with it: {column, axis}.
local function axes_of(collected, kind, wanted)
  local list = {}
  for _, column in ipairs(collected.columns) do
    local axis = column.kind == kind and not column.family and wanted(column) and axis_of(collected, column)
    if axis then list[#list + 1] = { column, axis } end
  end
  return list
end

local function parallel(collected, title, save)
  local options = axes_of(collected, "options", function(column) return column.shown end)
  local figures = axes_of(collected, "results", function(column) return column.shown or column.numeric end)
  local axes, columns, by = {}, {}, nil
  local function take(list, most)
    for i = 1, math.min(#list, most) do
      columns[#columns + 1], axes[#axes + 1] = list[i][1], list[i][2]
      if not by and list == figures and list[i][1].numeric then by = list[i][1] end
    end
  end
  take(options, AXES - math.min(RESULTS, #figures))
  take(figures, AXES - #axes)
  if #axes < 2 then return end
  local lines, colors = {}, {}
  for _, line in ipairs(collected.lines) do
    if line.status ~= "broken" then
      local shares = {}
      for a, axis in ipairs(axes) do
        local value = line[columns[a].kind][columns[a].key]
        shares[a] = value ~= nil and axis.share(value) or 0 / 0
      end
      lines[#lines + 1], colors[#lines + 1] = shares, by and line.results[by.key] or 0 / 0
    end
  end
  save("parallel", "parallel.png", { title = title, axes = axes, lines = lines, colors = by and colors or nil,
    color_name = by and by.key })
end

--- See pg.report.png.
function charts.write(report, collected, folder, options)
  options = util.options("report.png", options, { title = "Perigee report", group = "all" })
  local groups, written = report.groups(collected, tables.group_by(report, collected, options.group)), {}
  util.make_folder(folder)
  local function save(kind, name, spec)
    local path = folder .. "/" .. name
    if plot[kind](path, spec) then written[#written + 1] = path end
  end
  curves(collected, options.title, save)
  intervals(collected, groups, options.title, save)
  heat(report, collected, groups, options.title, save)
  parallel(collected, options.title, save)
  return written
end

return charts
