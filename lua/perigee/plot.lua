-- plot.lua - the figures of a run, drawn by gnuplot as png: lines, bars with error bars, forgetting curves, image grids.
--
-- Each function returns true when the picture was made. Without gnuplot one warning is printed and the run goes on.
-- Colours are Okabe and Ito's eight, which people with colour-blind eyes tell apart.

local util = require "perigee.util"

local plot = {}

local COLORS = { "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#b0a000" }

-- ---- gnuplot --------------------------------------------------------------------------------------------------------

local STYLE = [[
set encoding utf8
set terminal pngcairo size %d,%d enhanced font "DejaVu Sans,12" linewidth 1.2 background "#ffffff"
set border 3 linecolor "#606060"
set tics nomirror out scale 0.5 textcolor "#303030"
set grid linetype 1 linecolor "#e4e4e4" linewidth 0.8
set key outside right top vertical Left reverse noenhanced samplen 2 spacing 1.25 textcolor "#303030"
set datafile missing "NaN"
]]

local available -- nil: not asked yet
local function has_gnuplot()
  if available == nil then
    local pipe = io.popen "gnuplot --version 2>/dev/null"
    available = pipe and pipe:read "*l" ~= nil or false
    if pipe then pipe:close() end
    if not available then
      io.stderr:write "perigee: gnuplot is not installed, so no charts are drawn (apt-get install gnuplot-nox)\n"
    end
  end
  return available
end

local function text(s) -- a double-quoted gnuplot string
  return '"' .. tostring(s or ""):gsub('[\\"`]', "\\%0"):gsub("[%c]", " ") .. '"'
end

local function value(x) return (x == nil or x - x ~= 0) and "NaN" or ("%.9g"):format(x) end

-- Runs a script that draws to a temporary name, then renames: a kill leaves the picture of before.
local function draw(path, width, height, body)
  if not has_gnuplot() then return false end
  local temporary, script_path = path .. ".tmp", path .. ".gp"
  util.write_file(script_path, STYLE:format(width, height) .. "set output " .. text(temporary) .. "\n" .. body
    .. "\nunset output\n")
  local function shell(word) return "'" .. word:gsub("'", "'\\''") .. "'" end
  local pipe = io.popen("gnuplot " .. shell(script_path) .. " 2>&1")
  local said = pipe and pipe:read "*a" or ""
  if pipe then pipe:close() end
  os.remove(script_path)
  local made = io.open(temporary, "rb")
  local size = made and made:seek "end" or 0
  if made then made:close() end
  if size == 0 or not os.rename(temporary, path) then
    os.remove(temporary)
    io.stderr:write("perigee: gnuplot could not draw ", path, ": ",
      (said:match "[^\n]*line %d+:[^\n]*" or "no reason given"), "\n")
    return false
  end
  return true
end

local function head(spec)
  local lines = {
    "set title " .. text(spec.title) .. ' noenhanced font "DejaVu Sans,14" textcolor "#202020"',
    "set xlabel " .. text(spec.xlabel) .. " noenhanced", "set ylabel " .. text(spec.ylabel) .. " noenhanced",
  }
  if spec.logx then lines[#lines + 1] = "set logscale x" end
  if spec.logy then lines[#lines + 1] = "set logscale y" end
  if #(spec.series or {}) < 2 and not (spec.series and spec.series[1] and spec.series[1].name) then
    lines[#lines + 1] = "set key off"
  end
  return lines
end

-- A named block of rows inside the script: no data file is left behind.
local function block(name, columns, n)
  local rows = { "$" .. name .. " << EOD" }
  for i = 1, n do
    local cells = {}
    for c, column in ipairs(columns) do cells[c] = value(column[i]) end
    rows[i + 1] = table.concat(cells, " ")
  end
  rows[n + 2] = "EOD"
  return table.concat(rows, "\n")
end

local function check_series(where, spec)
  util.check(type(spec) == "table" and type(spec.series) == "table" and #spec.series > 0, "%s: needs series = {...}", where)
end

local function color(i) return '"' .. COLORS[(i - 1) % #COLORS + 1] .. '"' end

--- Curves over a common axis.
-- @param path  the png
-- @param spec  {title, xlabel, ylabel, logx, logy, width = 900, height = 540, series = {{name =, x = {..}, y = {..}}, ...}};
--   NaN is a gap
-- @return true when the picture was made
-- @raises when there is no series, or x and y differ in number
function plot.lines(path, spec)
  check_series("plot.lines", spec)
  local script, parts, counted = head(spec), {}, not spec.logx
  for i, s in ipairs(spec.series) do
    util.check(#s.x == #s.y, "plot.lines: series %d has %d x and %d y", i, #s.x, #s.y)
    for _, x in ipairs(s.x) do counted = counted and x % 1 == 0 and math.abs(x) <= 20 end
    script[#script + 1] = block("s" .. i, { s.x, s.y }, #s.x)
    parts[i] = ("$s%d using 1:2 with %s linewidth 2 %slinecolor rgb %s title %s"):format(i,
      #s.x <= 30 and "linespoints" or "lines", #s.x <= 30 and "pointtype 7 pointsize 0.7 " or "", color(i), text(s.name))
  end
  if counted then script[#script + 1] = "set xtics 1" end -- tasks or epochs: there is none between two
  script[#script + 1] = "plot " .. table.concat(parts, ", ")
  return draw(path, spec.width or 900, spec.height or 540, table.concat(script, "\n"))
end

--- Grouped bars, with error bars where a series has `err`.
-- @param path  the png
-- @param spec  {title, ylabel, groups = {"a", ..}, series = {{name =, y = {one a group}, err = {..} or nil}, ...}, width,
--   height}
-- @return true when the picture was made
function plot.bars(path, spec)
  check_series("plot.bars", spec)
  util.check(type(spec.groups) == "table", "plot.bars: needs groups = {...}")
  local script, parts, tics, n = head(spec), {}, {}, #spec.series
  for g, name in ipairs(spec.groups) do tics[g] = text(name) .. " " .. g end
  local width = 0.8 / n
  script[#script + 1] = "set xtics (" .. table.concat(tics, ", ") .. ") noenhanced scale 0 rotate by 30 right\n"
    .. "set grid noxtics ytics"
  script[#script + 1] = ("set xrange [0.4:%g]\nset style fill solid 0.9 noborder\nset boxwidth %g"):format(
    #spec.groups + 0.6, width * 0.92)
  script[#script + 1] = 'set xzeroaxis linetype 1 linecolor "#606060"'
  local lowest = 0
  for i, s in ipairs(spec.series) do
    local x = {}
    for g = 1, #spec.groups do
      x[g] = g + (i - (n + 1) / 2) * width
      lowest = math.min(lowest, (s.y[g] or 0) - (s.err and s.err[g] or 0))
    end
    script[#script + 1] = block("s" .. i, { x, s.y, s.err or {} }, #spec.groups)
    parts[#parts + 1] = ("$s%d using 1:2 with boxes linecolor rgb %s title %s"):format(i, color(i), text(s.name))
  end
  for i, s in ipairs(spec.series) do
    if s.err then -- drawn as capped lines: error bars proper leave a white spot for a point
      parts[#parts + 1] = ("$s%d using 1:($2-$3):(0):(2*$3) with vectors heads size graph 0.006,90 linewidth 1.2 "
        .. 'linecolor rgb "#303030" notitle'):format(i)
    end
  end
  if lowest >= 0 then script[#script + 1] = "set yrange [0:*]" end -- a bar is read from zero
  script[#script + 1] = "plot " .. table.concat(parts, ", ")
  return draw(path, spec.width or 900, spec.height or 540, table.concat(script, "\n"))
end

--- Points, without lines between them.
-- @param path  the png
-- @param spec  {title, xlabel, ylabel, logx, logy, series = {{name =, x = {..}, y = {..}}, ...}, width, height}; NaN is left out
-- @return true when the picture was made
-- @raises when there is no series, or x and y differ in number
function plot.scatter(path, spec)
  check_series("plot.scatter", spec)
  local script, parts = head(spec), {}
  for i, s in ipairs(spec.series) do
    util.check(#s.x == #s.y, "plot.scatter: series %d has %d x and %d y", i, #s.x, #s.y)
    script[#script + 1] = block("s" .. i, { s.x, s.y }, #s.x)
    parts[i] = ("$s%d using 1:2 with points pointtype 7 pointsize %g linecolor rgb %s title %s"):format(i,
      #s.x > 200 and 0.45 or 0.8, color(i), text(s.name))
  end
  script[#script + 1] = "plot " .. table.concat(parts, ", ")
  return draw(path, spec.width or 900, spec.height or 540, table.concat(script, "\n"))
end

--- Curves of points with error bars: downstream accuracy A_LP against what was forgotten, Delta_LP, one curve a method.
-- @param path  the png
-- @param spec  {title, xlabel, ylabel, series = {{name =, x =, y =, xerr = or nil, yerr = or nil}, ...}, width, height}
-- @return true when the picture was made
function plot.scatter_curves(path, spec)
  check_series("plot.scatter_curves", spec)
  local script, parts = head({ title = spec.title, xlabel = spec.xlabel or "A_LP: accuracy on the new task",
    ylabel = spec.ylabel or "Delta_LP: change on the old tasks", series = spec.series }), {}
  for i, s in ipairs(spec.series) do
    util.check(#s.x == #s.y, "plot.scatter_curves: series %d has %d x and %d y", i, #s.x, #s.y)
    local zero = {}
    for k = 1, #s.x do zero[k] = 0 end
    script[#script + 1] = block("s" .. i, { s.x, s.y, s.xerr or zero, s.yerr or zero }, #s.x)
    parts[#parts + 1] = ("$s%d using 1:2:3:4 with xyerrorbars pointtype 0 linewidth 1 linecolor rgb %s notitle")
      :format(i, color(i))
    parts[#parts + 1] = ("$s%d using 1:2 with linespoints pointtype %d pointsize 1.1 linewidth 1.8 linecolor rgb %s title %s")
      :format(i, ({ 7, 5, 9, 11, 13 })[(i - 1) % 5 + 1], color(i), text(s.name))
  end
  script[#script + 1] = "set offsets graph 0.04, graph 0.04, graph 0.06, graph 0.06"
  script[#script + 1] = 'set xzeroaxis linetype 1 linecolor "#b0b0b0"'
  script[#script + 1] = "plot " .. table.concat(parts, ", ")
  return draw(path, spec.width or 900, spec.height or 540, table.concat(script, "\n"))
end

--- Means with their intervals, one under another: a point, and a line from end to end.
-- @param path  the png
-- @param spec  {title, xlabel, names = {"a", ..}, mean = {..}, half = {half the width of each, NaN for none}, width,
--   height}
-- @return true when the picture was made
function plot.intervals(path, spec)
  util.check(type(spec) == "table" and #spec.names > 0 and #spec.mean == #spec.names and #spec.half == #spec.names,
    "plot.intervals: needs names = {...}, and mean and half of as many")
  local script, tics, place = head { title = spec.title, xlabel = spec.xlabel }, {}, {}
  for i, name in ipairs(spec.names) do tics[i], place[i] = text(name) .. " " .. i, i end
  script[#script + 1] = "set ytics (" .. table.concat(tics, ", ") .. ") noenhanced scale 0\nset grid xtics noytics"
  script[#script + 1] = ("set yrange [%g:0.3]\nset offsets graph 0.04, graph 0.04, 0, 0"):format(#spec.names + 0.7)
  script[#script + 1] = 'set yzeroaxis linetype 1 linecolor "#b0b0b0"'
  script[#script + 1] = block("groups", { spec.mean, place, spec.half }, #spec.names)
  script[#script + 1] = ("plot $groups using 1:2:3 with xerrorbars pointtype 0 linewidth 2 linecolor rgb %s, "
    .. "$groups using 1:2 with points pointtype 7 pointsize 1.2 linecolor rgb %s"):format(color(1), color(1))
  return draw(path, spec.width or 800, spec.height or 130 + 26 * #spec.names, table.concat(script, "\n"))
end

--- A table whose cells are coloured by their values, which stand in them: methods by tasks. Blue is above zero, orange
-- below.
-- @param path  the png
-- @param spec  {title, rows = {"a", ..}, columns = {"b", ..}, values = {one list a row}, decimals = 2, width, height};
--   NaN is an empty cell
-- @return true when the picture was made
function plot.heat_table(path, spec)
  util.check(type(spec) == "table" and type(spec.values) == "table" and #spec.values == #spec.rows,
    "plot.heat_table: needs rows = {...}, columns = {...} and values = {a list for each row}")
  local script, x, y, z, most, least = head { title = spec.title }, {}, {}, {}, 1e-300, 0
  for r, row in ipairs(spec.values) do
    for c = 1, #spec.columns do
      local v = row[c]
      if v and v == v then
        x[#x + 1], y[#y + 1], z[#z + 1] = c, r, v
        most, least = math.max(most, math.abs(v)), math.min(least, v)
      end
    end
  end
  util.check(#z > 0, "plot.heat_table: there is no value")
  local function tics(names)
    local list = {}
    for i, name in ipairs(names) do list[i] = text(name) .. " " .. i end
    return table.concat(list, ", ")
  end
  script[#script + 1] = "set xtics (" .. tics(spec.columns) .. ") noenhanced scale 0 rotate by 30 right\nset ytics ("
    .. tics(spec.rows) .. ") noenhanced scale 0\nunset grid\nunset border\nunset colorbox\nset key off"
  script[#script + 1] = ("set xrange [0.5:%g]\nset yrange [%g:0.5]"):format(#spec.columns + 0.5, #spec.rows + 0.5)
  script[#script + 1] = 'set palette defined (-1 "#e08214", 0 "#f7f7f7", 1 "#67a9cf")'
  script[#script + 1] = ("set cbrange [%.9g:%.9g]"):format(-most, most)
  script[#script + 1] = block("cells", { x, y, z }, #z)
  script[#script + 1] = ('plot $cells using 1:2:(0.48):(0.46):3 with boxxyerror fillstyle solid 1 noborder linecolor '
    .. 'palette, $cells using 1:2:(sprintf("%%.%df", $3)) with labels textcolor "#202020"'):format(spec.decimals or 2)
  return draw(path, spec.width or math.max(500, 240 + 90 * #spec.columns), spec.height or 150 + 28 * #spec.rows,
    table.concat(script, "\n"))
end

--- Parallel coordinates: an axis an option or figure, a line a run.
-- @param path  the png
-- @param spec  {title, axes = {{name =, ticks = {{text, share}, ..}}, ..}, lines = {{one share, 0..1, an axis}, ..},
--   colors = {one number a line} or nil, color_name =, width, height}; NaN is a gap
-- @return true when the picture was made
function plot.parallel(path, spec)
  util.check(type(spec) == "table" and type(spec.axes) == "table" and #spec.axes > 1 and #spec.lines > 0,
    "plot.parallel: needs two axes or more, and lines = {...}")
  local script, tics, rows = head { title = spec.title }, {}, { "$lines << EOD" }
  for a, axis in ipairs(spec.axes) do
    tics[a] = text(axis.name) .. " " .. a
    script[#script + 1] = ('set arrow from %d,0 to %d,1 nohead linewidth 1 linecolor "#606060" front'):format(a, a)
    for _, tick in ipairs(axis.ticks) do
      script[#script + 1] = ('set label %s at %d,%.9g left offset 0.6,0 noenhanced font "DejaVu Sans,10" front')
        :format(text(tick[1]), a, tick[2])
    end
  end
  for l, line in ipairs(spec.lines) do
    local shade = value(spec.colors and spec.colors[l] or 0)
    for a = 1, #spec.axes do rows[#rows + 1] = ("%d %s %s"):format(a, value(line[a]), shade) end
    rows[#rows + 1] = ""
  end
  rows[#rows + 1] = "EOD"
  script[#script + 1] = table.concat(rows, "\n")
  script[#script + 1] = "set xtics (" .. table.concat(tics, ", ") .. ") noenhanced scale 0\nunset ytics\nunset grid\n"
    .. "unset border\nset key off\nset cblabel " .. text(spec.color_name) .. " noenhanced"
  script[#script + 1] = ("set xrange [0.8:%g]\nset yrange [-0.03:1.05]"):format(#spec.axes + 0.7)
  script[#script + 1] = 'set palette defined (0 "#b35806", 1 "#9a9a9a", 2 "#2166ac")'
  if not spec.colors then script[#script + 1] = "unset colorbox" end
  script[#script + 1] = "plot $lines using 1:2:3 with lines linewidth 1.2 linecolor palette"
  return draw(path, spec.width or math.max(900, 150 * #spec.axes), spec.height or 480, table.concat(script, "\n"))
end

-- ---- images ---------------------------------------------------------------------------------------------------------

local function rgb(hex)
  local r, g, b = hex:match "^#(%x%x)(%x%x)(%x%x)$"
  util.check(r, "plot.grid: a border is '#rrggbb', got '%s'", hex)
  return tonumber(r, 16), tonumber(g, 16), tonumber(b, 16)
end

--- Images in rows and columns on white, each with a border where one is named.
-- @param path     the png
-- @param rows     list of rows, each a list of uint8 tensors (height, width, 3) of one size
-- @param options  {gap = 6, border = 3, borders = {row -> {column -> "#rrggbb"}}}
-- @return true
-- @raises on images of different sizes, on a border that is no color
function plot.grid(path, rows, options)
  options = util.options("plot.grid", options, { gap = 6, border = 3, borders = util.none })
  local pg = require "perigee"
  local first = util.check(rows[1] and rows[1][1], "plot.grid: there is no image")
  local h, w, columns = first:size(1), first:size(2), 0
  for _, row in ipairs(rows) do columns = math.max(columns, #row) end
  local border, gap = options.border, options.gap
  local cell_h, cell_w = h + 2 * border, w + 2 * border
  local height, width = #rows * (cell_h + gap) + gap, columns * (cell_w + gap) + gap
  local canvas = pg.full({ height, width, 3 }, 255, { dtype = "uint8" })
  local pixels = canvas:data()
  local ffi = require "ffi"
  for r, row in ipairs(rows) do
    for c, image in ipairs(row) do
      local sizes = image:shape()
      util.check(#sizes == 3 and sizes[1] == h and sizes[2] == w and sizes[3] == 3 and image:dtype() == "uint8",
        "plot.grid: image (%d, %d) must be uint8 (%d, %d, 3), is %s (%s)", r, c, h, w, image:dtype(), table.concat(sizes, ", "))
      local top, left = gap + (r - 1) * (cell_h + gap), gap + (c - 1) * (cell_w + gap)
      local frame = options.borders and options.borders[r] and options.borders[r][c]
      if frame then
        local red, green, blue = rgb(frame)
        for y = top, top + cell_h - 1 do
          for x = left, left + cell_w - 1 do
            local p = pixels + (y * width + x) * 3
            p[0], p[1], p[2] = red, green, blue
          end
        end
      end
      local whole = image:is_contiguous() and image or image:contiguous()
      local source = whole:data()
      for y = 0, h - 1 do
        ffi.copy(pixels + ((top + border + y) * width + left + border) * 3, source + y * w * 3, w * 3)
      end
    end
  end
  pg.image.save(path, canvas)
  return true
end

-- ---- tensors --------------------------------------------------------------------------------------------------------

-- A tensor as lists of numbers, at most `most` of each dimension at even distances.
local function numbers(where, t, dims, most)
  util.check(require("perigee.call").is_tensor(t) and t:dim() >= dims[1] and t:dim() <= dims[2] and t:numel() > 0,
    "%s: takes a tensor of %s, got %s", where, dims[3], require("perigee.call").describe(t))
  t = t:detach():to "cpu"
  for d = 1, t:dim() do
    local n = t:size(d)
    if most and n > most then
      local kept = {}
      for i = 1, most do kept[i] = 1 + math.floor((i - 1) * (n - 1) / (most - 1) + 0.5) end
      t = t:index_select(require("perigee").tensor(kept, { dtype = "int32" }), d)
    end
  end
  return t:totable()
end

local function counting(n)
  local list = {}
  for i = 1, n do list[i] = i end
  return list
end

-- Draws to `path`, or to a temporary PNG that is shown in the terminal. Returns the path, nil without a picture.
local function drawn(path, characters, make)
  util.check(path == nil or type(path) == "string", "plot: the path of the png must be a string, got %s", type(path))
  local terminal = require "perigee.terminal"
  local target = path or terminal.temporary()
  local made = make(target)
  if not made and not path then os.remove(target) end
  if not path then terminal.show(target, characters) end
  return made and target or nil
end

--- The values of a tensor in order: one curve, or one for every row. Without a path it is shown in the terminal.
-- @param t     (N) or (K, N), any dtype
-- @param path  the png; by default a new one in TMPDIR or /tmp
-- @return the path, or nil without gnuplot
-- @raises on another shape
function plot.line(t, path)
  local rows = numbers("plot.line", t, { 1, 2, "shape (N) or (K, N)" })
  if type(rows[1]) ~= "table" then rows = { rows } end
  local series = {}
  for k, row in ipairs(rows) do series[k] = { name = #rows > 1 and tostring(k) or nil, x = counting(#row), y = row } end
  return drawn(path, function()
    return require("perigee.terminal").chart(series[1].x, series[1].y, { joined = true })
  end, function(target) return plot.lines(target, { series = series }) end)
end

--- How often values occur. Without a path it is shown in the terminal.
-- @param t     any shape and dtype; what is not finite is left out
-- @param path  the png; by default a new one in TMPDIR or /tmp
-- @param bins  how many bars, 40 by default
-- @return the path, or nil without gnuplot
-- @raises on a tensor without finite values
function plot.hist(t, path, bins)
  bins = bins or 40
  util.check(type(bins) == "number" and bins >= 1 and bins <= 1000 and bins % 1 == 0,
    "plot.hist: bins must be a whole number within 1..1000, got %s", tostring(bins))
  local is_tensor = require("perigee.call").is_tensor(t)
  local list, lo, hi = numbers("plot.hist", is_tensor and t:reshape(-1) or t, { 1, 1, "any shape" }), math.huge, -math.huge
  for _, v in ipairs(list) do
    if v - v == 0 then lo, hi = math.min(lo, v), math.max(hi, v) end
  end
  util.check(lo <= hi, "plot.hist: no value is finite")
  if lo == hi then lo, hi = lo - 0.5, hi + 0.5 end
  local x, count, width = {}, {}, (hi - lo) / bins
  for b = 1, bins do x[b], count[b] = lo + (b - 0.5) * width, 0 end
  for _, v in ipairs(list) do
    local b = v - v == 0 and math.min(bins, math.floor((v - lo) / width) + 1)
    if b then count[b] = count[b] + 1 end
  end
  return drawn(path, function() return require("perigee.terminal").chart(x, count, { joined = true }) end, function(target)
    return draw(target, 900, 540, table.concat({ "set key off", "set style fill solid 0.9 noborder", "set yrange [0:*]",
      ("set boxwidth %.9g"):format(width * 0.95), block("s", { x, count }, bins),
      "plot $s using 1:2 with boxes linecolor rgb " .. color(1) }, "\n"))
  end)
end

--- A matrix as colours, row 1 on top. Without a path it is shown in the terminal.
-- @param t     (N, M), any dtype; of more than 400 rows or columns 400 are drawn
-- @param path  the png; by default a new one in TMPDIR or /tmp
-- @return the path, or nil without gnuplot
-- @raises on another shape
function plot.heatmap(t, path)
  local rows = numbers("plot.heatmap", t, { 2, 2, "shape (N, M)" }, 400)
  local lo, hi = math.huge, -math.huge
  local lines = { "$m << EOD" }
  for r, row in ipairs(rows) do
    local words = {}
    for c, v in ipairs(row) do
      words[c] = value(v)
      if v - v == 0 then lo, hi = math.min(lo, v), math.max(hi, v) end
    end
    lines[r + 1] = table.concat(words, " ")
  end
  lines[#lines + 1] = "EOD"
  local function characters()
    local pg = require "perigee"
    local grey, span = pg.zeros(#rows, #rows[1], { dtype = "uint8" }), hi > lo and hi - lo or 1
    local p = grey:data()
    for r, row in ipairs(rows) do
      for c, v in ipairs(row) do p[(r - 1) * #row + c - 1] = v - v == 0 and (v - lo) / span * 255 or 0 end
    end
    return require("perigee.terminal").characters(grey)
  end
  return drawn(path, characters, function(target)
    return draw(target, 720, 600, table.concat({ "set key off", "unset grid", "set tics out", "set yrange [] reverse",
      "set autoscale xfix", "set autoscale yfix", "set palette defined (0 '#440154', 1 '#3b528b', 2 '#21918c', 3 '#5ec962', "
      .. "4 '#fde725')", table.concat(lines, "\n"), "plot $m matrix using ($1+1):($2+1):3 with image" }, "\n"))
  end)
end

-- plot.scatter and plot.grid take tensors too; the forms above are for files of a run.
local scatter_file, grid_file = plot.scatter, plot.grid

--- Points of two columns. Without a path it is shown in the terminal; plot.scatter(path, spec) draws several series.
-- @param t     (N, 2), any dtype
-- @param path  the png; by default a new one in TMPDIR or /tmp
-- @return the path, or nil without gnuplot
-- @raises on another shape
function plot.scatter(t, path)
  if type(t) == "string" then return scatter_file(t, path) end
  local rows, x, y = numbers("plot.scatter", t, { 2, 2, "shape (N, 2)" }), {}, {}
  util.check(#rows[1] == 2, "plot.scatter: takes two columns, got %d", #rows[1])
  for i, row in ipairs(rows) do x[i], y[i] = row[1], row[2] end
  return drawn(path, function() return require("perigee.terminal").chart(x, y) end, function(target)
    return scatter_file(target, { series = { { x = x, y = y } } })
  end)
end

--- Pictures side by side. Without a path it is shown in the terminal; plot.grid(path, rows, options) arranges them.
-- @param t     uint8 (N, H, W, 3), at most 100 are drawn
-- @param path  the png; by default a new one in TMPDIR or /tmp
-- @return the path
-- @raises on another dtype or shape
function plot.grid(t, path, options)
  if type(t) == "string" then return grid_file(t, path, options) end
  local call = require "perigee.call"
  util.check(call.is_tensor(t) and t:dim() == 4 and t:size(4) == 3 and t:dtype() == "uint8" and t:numel() > 0,
    "plot.grid: takes uint8 (N, H, W, 3), got %s", call.describe(t))
  local n = math.min(t:size(1), 100)
  local across, rows = math.ceil(math.sqrt(n)), {}
  for i = 1, n do
    local row = math.ceil(i / across)
    rows[row] = rows[row] or {}
    table.insert(rows[row], t:select(1, i))
  end
  local image = require "perigee.image"
  return drawn(path, function()
    local file = os.tmpname()
    grid_file(file, rows)
    local whole = image.load(file)
    os.remove(file)
    return require("perigee.terminal").characters(whole)
  end, function(target) return grid_file(target, rows) end)
end

return plot
