-- samples.lua - an op's samples as arguments, and what specs do with them: other layouts, copies, comparing.

local pg = require "perigee"

local samples = {}

-- A sample is Lua text; these are the words that it may use. Values come from one seed, so a sample is always the same.
local function environment(dtype)
  local env = { math = math, inf = math.huge }
  function env.randn(...) return pg.randn(...):to(dtype) end
  function env.uniform(lo, hi, ...) return (pg.rand(...) * (hi - lo) + lo):to(dtype) end
  function env.ints(n, ...) return (pg.rand(...) * n):to("int32") + 1 end
  function env.bytes(n, ...) return (pg.rand(...) * n):to("uint8") end
  function env.zeros(...) return pg.zeros(...):to(dtype) end
  function env.ones(...) return pg.ones(...):to(dtype) end
  return env
end

--- The named arguments that a sample's text stands for, on the CPU.
-- @param op     the descriptor
-- @param text   the sample
-- @param dtype  of its floating tensors
function samples.of(op, text, dtype)
  pg.seed(7)
  local chunk = assert(loadstring("return " .. text, op.name .. " sample"))
  return setfenv(chunk, environment(dtype))()
end

local function flat(t) return t:numel() == 0 and {} or t:detach():contiguous():reshape(t:numel()):totable() end

--- The largest |a - b| / max(1, |a|); NaN in one alone counts as infinite.
function samples.largest_difference(a, b)
  if table.concat(a:shape(), " ") ~= table.concat(b:shape(), " ") then return math.huge end
  local x, y, worst = flat(a), flat(b), 0
  for i = 1, #x do
    if x[i] ~= y[i] and not (x[i] ~= x[i] and y[i] ~= y[i]) then
      local difference = math.abs(x[i] - y[i]) / math.max(1, math.abs(x[i]))
      worst = difference == difference and math.max(worst, difference) or math.huge
    end
  end
  return worst
end

--- The same values in another layout: transposed storage, and an offset into a larger tensor.
samples.layouts = {
  transposed = function(t)
    if t:dim() < 2 then return t end
    return t:transpose(1, t:dim()):contiguous():transpose(1, t:dim())
  end,
  offset = function(t)
    if t:dim() < 1 or t:size(1) == 0 then return t end
    return pg.cat({ t, t }, 1):narrow(1, t:size(1) + 1, t:size(1))
  end,
}

--- The arguments with fn applied to each tensor, those of lists too.
function samples.each_tensor(args, fn)
  local changed = {}
  for key, value in pairs(args) do
    if pg.is_tensor(value) then changed[key] = fn(value)
    elseif type(value) == "table" and pg.is_tensor(value[1]) then
      changed[key] = {}
      for i, t in ipairs(value) do changed[key][i] = fn(t) end
    else changed[key] = value end
  end
  return changed
end

--- A fresh copy of the arguments, for ops that write to them.
function samples.fresh(args) return samples.each_tensor(args, function(t) return t:clone() end) end

--- Whether the op changes an input in place.
function samples.writes(op)
  for _, input in ipairs(op.inputs) do
    if input.written then return true end
  end
end

return samples
