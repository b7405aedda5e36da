-- print.lua - a tensor as text: shape, dtype and device, then at most a screenful of values. NaN and infinity print.

local EDGE, MOST = 3, 60 -- values kept at each end of a long dimension; more elements than this are shortened

local function number(v, float)
  if v ~= v then return "nan" end
  if v == math.huge or v == -math.huge then return v > 0 and "inf" or "-inf" end
  if not float then return ("%d"):format(v) end
  local size = math.abs(v)
  if v ~= 0 and (size >= 1e5 or size < 1e-4) then return ("%.3e"):format(v) end
  return ("%.4f"):format(v)
end

-- The positions of a dimension that are shown, `edge` at each end; 0 stands for the gap.
local function shown(n, edge)
  local list = {}
  for i = 1, n do
    if not edge or n <= 2 * edge or i <= edge or i > n - edge then list[#list + 1] = i
    elseif list[#list] ~= 0 then list[#list + 1] = 0 end
  end
  return list
end

-- Nested lists of numbers as text; edges[d] values are kept at each end of the d-th dimension from here, nil: all.
local function cells(t, float, edges, d)
  if t:dim() == 0 then return number(t:item(), float) end
  local list = {}
  for _, i in ipairs(shown(t:size(1), edges[d])) do
    list[#list + 1] = i == 0 and "..." or cells(t:select(1, i), float, edges, d + 1)
  end
  return list
end

local function widest(list)
  if type(list) == "string" then return #list end
  local most = 0
  for _, item in ipairs(list) do most = math.max(most, widest(item)) end
  return most
end

local function render(list, width, indent)
  if type(list) == "string" then return (" "):rep(width - #list) .. list end
  local rows, deep = {}, false
  for i, item in ipairs(list) do
    rows[i] = render(item, width, indent + 1)
    deep = deep or type(item) == "table"
  end
  return "[" .. table.concat(rows, deep and (",\n" .. (" "):rep(indent + 1)) or ", ") .. "]"
end

-- How many values are kept at each end of every dimension. A window shows of a row what fits in it, and a dozen or so
-- rows of two dimensions, fewer of each where there are more.
local function edges_of(t, window)
  local edges, d, long = {}, t:dim(), t:numel() > MOST
  for i = 1, d do edges[i] = long and EDGE or nil end
  if not window or d == 0 then return edges end
  for i = 1, d - 1 do edges[i] = long and (d == 2 and 4 or math.max(1, 5 - d)) or nil end
  edges[d] = 9
  return edges
end

--- A tensor as text, which is what tostring gives.
-- @param t       tensor
-- @param window  columns that a row may take; nil: three values at each end of a long dimension, whatever they take
return function(t, window)
  local shape, dtype = t:shape(), t:dtype()
  local head = ("tensor (%s) %s %s"):format(table.concat(shape, ", "), dtype, t:device())
  if require("perigee.ffi").pg_data(t) == nil then return head .. ", freed" end
  if t:numel() == 0 then return head .. "\n[]" end
  local plain, float = t:detach(), dtype:sub(1, 5) == "float"
  if plain:device() ~= "cpu" then plain = plain:to "cpu" end
  local edges, last = edges_of(t, window), t:dim()
  local list = cells(plain, float, edges, 1)
  local width = widest(list)
  if window and last > 0 then
    local fit = math.floor((window - 1 - 2 * last) / (width + 2)) -- brackets and a comma at both ends
    if fit < math.min(shape[last], 2 * edges[last] + 1) then
      edges[last] = math.max(1, math.floor((fit - 1) / 2))
      list = cells(plain, float, edges, 1)
    end
  end
  return head .. "\n" .. render(list, width, 0)
end
