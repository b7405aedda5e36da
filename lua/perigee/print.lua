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

-- The positions of a dimension that are shown; 0 stands for the gap.
local function shown(n, shorten)
  local list = {}
  for i = 1, n do
    if not shorten or n <= 2 * EDGE or i <= EDGE or i > n - EDGE then list[#list + 1] = i
    elseif list[#list] ~= 0 then list[#list + 1] = 0 end
  end
  return list
end

local function cells(t, float, shorten)
  if t:dim() == 0 then return number(t:item(), float) end
  local list = {}
  for _, i in ipairs(shown(t:size(1), shorten)) do
    list[#list + 1] = i == 0 and "..." or cells(t:select(1, i), float, shorten)
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

return function(t)
  local shape, dtype = t:shape(), t:dtype()
  local head = ("tensor (%s) %s %s"):format(table.concat(shape, ", "), dtype, t:device())
  if require("perigee.ffi").pg_data(t) == nil then return head .. ", freed" end
  if t:numel() == 0 then return head .. "\n[]" end
  local plain = t:detach()
  local list = cells(plain:device() == "cpu" and plain or plain:to("cpu"), dtype:sub(1, 5) == "float", t:numel() > MOST)
  return head .. "\n" .. render(list, widest(list), 0)
end
