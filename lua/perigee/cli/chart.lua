-- chart.lua - curves in characters, for a terminal: dots of Braille where colours tell curves apart, else a mark for
-- each.

local chart = {}

local MARKS = { "*", "+", "o", "x", "#", "@" }
local COLORS = { 34, 33, 32, 35, 36, 31 } -- of the terminal, by number: blue, yellow, green, magenta, cyan, red
local DOTS = { { 0x01, 0x02, 0x04, 0x40 }, { 0x08, 0x10, 0x20, 0x80 } } -- bits of a Braille cell, by column and row

local function number(x) return ("%.4g"):format(x) end

local function limits(series)
  local x0, x1, y0, y1 = math.huge, -math.huge, math.huge, -math.huge
  for _, s in ipairs(series) do
    for i = 1, #s.x do
      x0, x1 = math.min(x0, s.x[i]), math.max(x1, s.x[i])
      y0, y1 = math.min(y0, s.y[i]), math.max(y1, s.y[i])
    end
  end
  if x0 > x1 then return nil end
  if x0 == x1 then x1 = x0 + 1 end
  if y0 == y1 then y0, y1 = y0 - math.max(1e-9, math.abs(y0) * 0.1), y1 + math.max(1e-9, math.abs(y1) * 0.1) end
  return { x0 = x0, x1 = x1, y0 = y0, y1 = y1 }
end

-- Calls dot(column, row), from 0, along a curve on a raster of w by h.
local function trace(s, range, w, h, dot)
  local last_c, last_r
  for i = 1, #s.x do
    local c = math.floor((s.x[i] - range.x0) / (range.x1 - range.x0) * (w - 1) + 0.5)
    local r = math.floor((range.y1 - s.y[i]) / (range.y1 - range.y0) * (h - 1) + 0.5)
    local steps = last_c and math.max(math.abs(c - last_c), math.abs(r - last_r), 1) or 1
    for k = last_c and 1 or steps, steps do
      local share = k / steps
      dot(math.floor((last_c or c) + (c - (last_c or c)) * share + 0.5),
        math.floor((last_r or r) + (r - (last_r or r)) * share + 0.5))
    end
    last_c, last_r = c, r
  end
end

local function braille(mask)
  return string.char(0xE2, 0xA0 + bit.rshift(mask, 6), 0x80 + bit.band(mask, 63))
end

-- The raster as rows of {text, curve}: cells that no curve meets are blank.
local function raster(series, range, width, height, dots)
  local cells = {}
  for r = 1, height do cells[r] = {} end
  for i, s in ipairs(series) do
    local function mark(c, r)
      local column, row = dots and math.floor(c / 2) + 1 or c + 1, dots and math.floor(r / 4) + 1 or r + 1
      local old = cells[row][column]
      local bits = dots and DOTS[c % 2 + 1][r % 4 + 1]
      cells[row][column] = { mask = dots and bit.bor(old and old.mask or 0, bits), curve = i }
    end
    trace(s, range, dots and 2 * width or width, dots and 4 * height or height, mark)
  end
  return cells
end

--- The mark of a curve in a legend. @param i, color  its place; whether colours are used @return text
function chart.mark(i, color)
  local mark = MARKS[(i - 1) % #MARKS + 1]
  return color and ("\27[%dm%s\27[0m"):format(COLORS[(i - 1) % #COLORS + 1], "--") or mark
end

--- Draws curves.
-- @param series   list of {x =, y =}
-- @param options  {width, height = characters in all, color = boolean, unicode = boolean}
-- @return list of lines; none when there is no point
function chart.lines(series, options)
  local range = limits(series)
  if not range then return {} end
  local labels = { number(range.y1), number((range.y0 + range.y1) / 2), number(range.y0) }
  local left = math.max(#labels[1], #labels[2], #labels[3])
  local width, height = math.max(8, options.width - left - 2), math.max(3, options.height - 1)
  local dots = options.unicode and (options.color or #series == 1)
  local cells, lines = raster(series, range, width, height, dots), {}
  for r = 1, height do
    local label = r == 1 and labels[1] or r == math.ceil(height / 2) and labels[2] or r == height and labels[3] or ""
    local parts, color = { (" "):rep(left - #label), label, " ", options.unicode and "│" or "|" }, nil
    for c = 1, width do
      local cell = cells[r][c]
      local wanted = cell and options.color and COLORS[(cell.curve - 1) % #COLORS + 1] or nil
      if wanted ~= color then parts[#parts + 1] = wanted and ("\27[%dm"):format(wanted) or "\27[0m" end
      color = wanted
      parts[#parts + 1] = not cell and " " or dots and braille(cell.mask) or MARKS[(cell.curve - 1) % #MARKS + 1]
    end
    if color then parts[#parts + 1] = "\27[0m" end
    lines[r] = (table.concat(parts):gsub(" +$", ""))
  end
  local from, to = number(range.x0), number(range.x1)
  lines[height + 1] = (" "):rep(left + 2) .. from .. (" "):rep(math.max(1, width - #from - #to)) .. to
  return lines
end

return chart
