-- charts.lua - a report's charts as PNG files, drawn by gnuplot (pg.plot): curves, means with intervals, a heat
-- table of each family, parallel coordinates.

local util = require "perigee.util"
local tables = require "perigee.report.tables"
local plot = require "perigee.plot"

local charts = {}

local CURVES, METRICS, ROWS, AXES, TICKS = 8, 12, 40, 10, 12 -- at most, of each in a picture
local LONG = 44    -- bytes of a group's name
local RESULTS = 4  -- axes that are kept for figures

-- A file's name from a column's: nothing in it leaves the folder.
local function file_name(kind, key)
  return kind .. "-" .. key:gsub("[^%w_.-]", "_"):sub(1, 80) .. ".png"
end

local function first_of(count, all, what)
  return count < all and (" (the first %d of %d %s)"):format(count, all, what) or ""
end

-- Names that leave room for what they name: of options alone in which the groups of a picture differ; what is long all the
-- same is cut, and numbered as the tables order them.
local function short_names(groups, by)
  local names, differing = {}, {}
  for i = 1, #by do
    for _, group in ipairs(groups) do differing[i] = differing[i] or group.values[i] ~= groups[1].values[i] end
  end
  for g, group in ipairs(groups) do
    local words = {}
    for i, key in ipairs(by) do
      local value = group.values[i]
      if differing[i] and value ~= nil then words[#words + 1] = key .. "=" .. tables.text(value) end
    end
    names[g] = #by > 1 and #words > 0 and table.concat(words, " ") or group.name
    if #names[g] > LONG then
      names[g] = ("%d: %s…"):format(group.place, names[g]:sub(1, LONG - 6):gsub("[\192-\255][\128-\191]*$", ""))
    end
  end
  return names
end

-- The first ROWS of the groups for which has(group), and how many there are.
local function drawn(groups, has)
  local list, all = {}, 0
  for _, group in ipairs(groups) do
    if has(group) then
      all = all + 1
      if all <= ROWS then list[all] = group end
    end
  end
  return list, all
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

local function intervals(collected, groups, by, title, save)
  for _, column in ipairs(collected.columns) do
    if column.kind == "results" and column.numeric and not column.family then
      local mean, half = {}, {}
      local list, all = drawn(groups, function(group) return group.figures[column.key] end)
      for g, group in ipairs(list) do
        mean[g], half[g] = group.figures[column.key].mean, group.figures[column.key].half
      end
      if all > 0 then
        save("intervals", file_name("groups", column.key), { title = title .. first_of(#list, all, "groups"),
          xlabel = column.key .. ", mean and 95% interval", names = short_names(list, by), mean = mean, half = half })
      end
    end
  end
end

local function heat(report, collected, groups, by, title, save)
  for _, family in ipairs(report.families(collected)) do
    local values, decimals = {}, 2
    local list, all = drawn(groups, function(group) return tables.has_any(group, family.keys) end)
    for g, group in ipairs(list) do
      values[g] = {}
      for k, key in ipairs(family.keys) do values[g][k] = group.figures[key] and group.figures[key].mean or 0 / 0 end
    end
    for _, column in ipairs(collected.columns) do
      if column.key == family.keys[1] then decimals = math.min(3, column.decimals or 3) end
    end
    save("heat_table", file_name("heat", family.name), {
      title = title .. ": " .. family.name .. first_of(#list, all, "groups"),
      rows = short_names(list, by), columns = family.members, values = values, decimals = decimals })
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
  local by, written = tables.group_by(report, collected, options.group), {}
  local groups = report.groups(collected, by)
  for place, group in ipairs(groups) do group.place = place end
  util.make_folder(folder)
  local function save(kind, name, spec)
    local path = folder .. "/" .. name
    if plot[kind](path, spec) then written[#written + 1] = path end
  end
  curves(collected, options.title, save)
  intervals(collected, groups, by, options.title, save)
  heat(report, collected, groups, by, options.title, save)
  parallel(collected, options.title, save)
  return written
end

return charts
