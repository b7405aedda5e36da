-- call.lua - turns the op table into Lua functions. Nothing about any op is written here: names, arguments, parameters
-- and outputs come from the descriptors.
--
-- This is also the one place where indices shift: Lua counts dimensions, positions and labels from 1, the core from 0.

local ffi = require "ffi"
local lib = require "perigee.ffi"
local util = require "perigee.util"
local memory = require "perigee.memory"

local call = { ops = {}, names = {} }

local Value, Handles = ffi.typeof "pg_value[?]", ffi.typeof "pg_tensor *[?]"
local Tensor = ffi.typeof "pg_tensor *"
local bit_has = require("bit").band

local function is_tensor(x) return ffi.istype(Tensor, x) end
--- pg.is_tensor(x): whether x is a tensor. @return boolean
call.is_tensor = is_tensor

--- Raises the core's last error at the user's line when `status` is not 0.
function call.check(status)
  if status == 0 then return end
  local message = ffi.string(lib.pg_last_error())
  if status == lib.PG_ERR_INTERRUPTED then error(message, 0) end -- where it happened is chance
  util.raise(message)
end

--- For the package's own long loops, between pieces of their work: raises "interrupted" when Ctrl-C was pressed. LuaJIT
-- compiles them, and what is compiled calls no hook.
function call.heed()
  if lib.pg_stop_flag()[0] ~= 0 then error("interrupted", 0) end
end

local over = memory.flag
local tracked -- the innermost pg.scope's list of new handles

--- Takes ownership of a handle that the core gave out.
function call.own(handle)
  if over[0] ~= 0 then memory.heed() end
  local t = ffi.gc(handle, lib.pg_release)
  if tracked then tracked[#tracked + 1] = t end
  return t
end

local function leave(outer, mine, ok, ...)
  tracked = outer
  local kept = {}
  for i = 1, select("#", ...) do -- any of them may be nil
    local result = select(i, ...)
    if is_tensor(result) then kept[tonumber(ffi.cast("intptr_t", result))] = true end
  end
  for _, t in ipairs(mine) do
    if not kept[tonumber(ffi.cast("intptr_t", t))] then lib.pg_free(t)
    elseif outer then outer[#outer + 1] = t end
  end
  if not ok then error((...), 0) end
  return ...
end

--- Runs fn; every tensor made meanwhile lets go of its memory at the end, but for those that fn returns. A tensor that
-- fn keeps in a table or an upvalue is let go of too. Scopes nest.
-- @param fn  a function without arguments
-- @return what fn returns
-- @raises what fn raises, after letting go
function call.scope(fn)
  local outer, mine = tracked, {}
  tracked = mine
  return leave(outer, mine, pcall(fn))
end

--- Runs fn outside every pg.scope: what it makes lives as long as somebody holds it.
-- @param fn  a function without arguments
-- @return what fn returns
-- @raises what fn raises
function call.outside(fn)
  local outer = tracked
  tracked = nil
  return leave(outer, {}, pcall(fn))
end

--- What a message calls a value: never a screenful of a tensor.
function call.describe(value)
  if value == nil then return "nothing" end
  if type(value) == "table" then return "a table" end
  if type(value) == "string" then return "'" .. value .. "'" end
  if not is_tensor(value) then return tostring(value) end
  local sizes = {}
  for i = 1, lib.pg_ndim(value) do sizes[i] = ("%d"):format(tonumber(lib.pg_size(value, i - 1))) end
  return ("a tensor (%s) %s"):format(table.concat(sizes, ", "), ffi.string(lib.pg_dtype_name(lib.pg_dtype(value))))
end

local LIMITS = { [lib.PG_INT32] = { -2 ^ 31, 2 ^ 31 - 1 }, [lib.PG_UINT8] = { 0, 255 } }

--- Raises unless `value` is a number that the dtype (its code) holds without a change.
function call.fits(where, value, dtype)
  if type(value) ~= "number" then util.fail(0, "%s: expected a number, got %s", where, call.describe(value)) end
  local limits = LIMITS[dtype]
  if limits and not (value % 1 == 0 and value >= limits[1] and value <= limits[2]) then
    util.fail(0, "%s: %.14g is no %s", where, value, ffi.string(lib.pg_dtype_name(dtype)))
  end
end

--- A 0-dimensional tensor of the dtype and device of `like`; `where` is named when the dtype cannot hold the value.
function call.scalar(value, like, where)
  call.fits(where, value, lib.pg_dtype(like))
  local out = ffi.new "pg_tensor *[1]"
  call.check(lib.pg_new(lib.pg_dtype(like), lib.pg_device(like), 0, nil, out))
  local t = call.own(out[0])
  call.check(lib.pg_fill(t, value))
  return t
end

-- ---- descriptors, read once ---------------------------------------------------------------------------------------------

local function each(list)
  local result, i = {}, 0
  while list ~= nil and list[i].name ~= nil do result[#result + 1], i = list[i], i + 1 end
  return result
end

local function has(flags, bit) return bit_has(flags, bit) ~= 0 end

local function words(text)
  local list = {}
  for word in text:gmatch "%S+" do list[word], list[#list + 1] = #list, word end
  return list
end

local function describe(id)
  local info = lib.pg_op_get(id)
  local op = { id = id, name = ffi.string(info.name), inputs = {}, outputs = {}, params = {}, method = info.method ~= 0 }
  for _, a in ipairs(each(info.inputs)) do
    op.inputs[#op.inputs + 1] = { name = ffi.string(a.name), help = a.help ~= nil and ffi.string(a.help) or "",
      optional = has(a.flags, lib.PG_OPTIONAL), index = has(a.flags, lib.PG_INDEX), list = has(a.flags, lib.PG_LIST),
      written = has(a.flags, lib.PG_WRITTEN), no_grad = has(a.flags, lib.PG_NO_GRAD) }
    op.indexed = op.indexed or has(a.flags, lib.PG_INDEX)
  end
  for _, a in ipairs(each(info.outputs)) do
    op.outputs[#op.outputs + 1] = { name = ffi.string(a.name), help = a.help ~= nil and ffi.string(a.help) or "",
      index = has(a.flags, lib.PG_INDEX), hidden = has(a.flags, lib.PG_HIDDEN) }
  end
  for i, p in ipairs(each(info.params)) do
    local param = { name = ffi.string(p.name), kind = p.kind, def = p.def, lo = p.lo, hi = p.hi,
      help = p.help ~= nil and ffi.string(p.help) or "",
      words = p.choices ~= nil and words(ffi.string(p.choices)) or nil }
    op.params[i], op.params[param.name] = param, param
    param.number = i
  end
  local shown = {}
  for _, output in ipairs(op.outputs) do if not output.hidden then shown[#shown + 1] = output end end
  op.one = #shown == 1 and not shown[1].index -- one result, as it is
  op.doc = ffi.string(info.doc)
  op.source = info.source ~= nil and ffi.string(info.source) or nil
  op.no_backward = info.no_backward ~= nil and ffi.string(info.no_backward) or nil
  op.samples = {}
  local i = 0
  while info.samples ~= nil and info.samples[i] ~= nil do
    op.samples[i + 1], i = ffi.string(info.samples[i]), i + 1
  end
  return op
end

-- ---- parameters ------------------------------------------------------------------------------------------------------------

local KIND = { NUMBER = lib.PG_P_NUMBER, INTEGER = lib.PG_P_INTEGER, BOOLEAN = lib.PG_P_BOOLEAN, DIM = lib.PG_P_DIM,
  DIMS = lib.PG_P_DIMS, INTS = lib.PG_P_INTS, INDEX = lib.PG_P_INDEX, CHOICE = lib.PG_P_CHOICE }

local function wrong(op, param, value, wanted)
  util.fail(0, "%s: %s must be %s, got %s", op.name, param.name, wanted, call.describe(value))
end

local function whole(value) return type(value) == "number" and value % 1 == 0 and math.abs(value) <= 2 ^ 53 end

local function shift(op, param, value) -- 1-based to 0-based; negative ones count from the end in both
  if not whole(value) then wrong(op, param, value, "a whole number") end
  if value == 0 then wrong(op, param, value, "1 or more, or negative to count from the end") end
  return value > 0 and value - 1 or value
end

local function set_list(op, param, slot, value)
  if type(value) == "number" then value = { value } end
  if type(value) ~= "table" then wrong(op, param, value, "a number or a list of numbers") end
  local most = param.kind == KIND.DIMS and lib.PG_MAX_DIMS or lib.PG_MAX_VALUES
  if #value > most then util.fail(0, "%s: %s takes at most %d numbers, got %d", op.name, param.name, most, #value) end
  for i, v in ipairs(value) do
    if param.kind == KIND.DIMS then v = shift(op, param, v)
    elseif not whole(v) then wrong(op, param, v, "a list of whole numbers") end
    slot.ints[i - 1] = v
  end
  slot.len = #value
end

local function set(op, param, slot, value)
  local kind = param.kind
  if kind == KIND.DIMS or kind == KIND.INTS then return set_list(op, param, slot, value) end
  slot.len = 1
  if kind == KIND.NUMBER then
    if type(value) ~= "number" then wrong(op, param, value, "a number") end
    slot.num = value
  elseif kind == KIND.DIM or kind == KIND.INDEX then slot.ints[0] = shift(op, param, value)
  elseif kind == KIND.BOOLEAN then
    if type(value) ~= "boolean" then wrong(op, param, value, "true or false") end
    slot.ints[0] = value and 1 or 0
  elseif kind == KIND.CHOICE then
    local number = type(value) == "string" and param.words[value]
    if not number then wrong(op, param, value, "one of " .. table.concat(param.words, ", ")) end
    slot.ints[0] = number
  else
    if not whole(value) then wrong(op, param, value, "a whole number") end
    slot.ints[0] = value
  end
end

local function set_options(op, values, options)
  for key, value in pairs(options) do
    local param = op.params[key]
    if not param or type(key) == "number" then
      local known = {}
      for i, p in ipairs(op.params) do known[i] = p.name end
      local nearest = util.nearest(tostring(key), known)
      util.fail(0, "%s: unknown parameter '%s'%s", op.name, tostring(key),
        nearest and (" (did you mean '" .. nearest .. "'?)") or ": it takes none")
    end
    set(op, param, values[param.number - 1], value)
  end
end

-- Parameters from args[at..n]: in order, or by name in one last table.
local function read_params(op, args, at, n)
  if at > n then return nil end
  local values = Value(math.max(#op.params, 1))
  for _, param in ipairs(op.params) do
    if at > n then break end
    local value = args[at]
    local is_list = param.kind == KIND.DIMS or param.kind == KIND.INTS
    if type(value) == "table" and not (is_list and (value[1] ~= nil or next(value) == nil)) then break end
    if is_list and type(value) == "number" then -- reshape(2, 3) reads as reshape{2, 3}
      local numbers = {}
      while at <= n and type(args[at]) == "number" do numbers[#numbers + 1], at = args[at], at + 1 end
      set_list(op, param, values[param.number - 1], numbers)
    else
      if value ~= nil then set(op, param, values[param.number - 1], value) end
      at = at + 1
    end
  end
  if at == n and type(args[at]) == "table" then
    set_options(op, values, args[at])
  elseif at <= n then
    util.fail(0, "%s: too many arguments (%d)", op.name, n)
  end
  return values
end

-- ---- the call -----------------------------------------------------------------------------------------------------------------

local apply_id -- op numbers by name, for the shift itself
local function shifted(t, by) -- an int32 tensor moved between the two index bases; the core refuses other dtypes
  if lib.pg_dtype(t) ~= lib.PG_INT32 then return t end
  local values = Value(1)
  values[0].num, values[0].len = by, 1
  local input, out = Handles(1, t), Handles(1)
  call.check(lib.pg_apply(apply_id.add_scalar, input, 1, values, out))
  return call.own(out[0])
end

--- 1-based positions, an int32 tensor, as the core counts them.
function call.zero_based(t) return shifted(t, -1) end

-- Positions are often made on the host, for data that is elsewhere: they follow the op's other tensors.
local function follow(op, handles, count)
  local device
  for i, input in ipairs(op.inputs) do
    if not input.index and handles[i] then device = lib.pg_device(handles[i]) break end
  end
  for i, input in ipairs(op.inputs) do
    local t = handles[i]
    if input.index and i <= count and t and device and lib.pg_device(t) ~= device then
      local out = Handles(1)
      call.check(lib.pg_convert(t, lib.pg_dtype(t), device, out))
      handles[i] = call.own(out[0])
    end
  end
end

local function missing(op, input, value)
  util.fail(0, "%s: %s must be %s: %s; got %s", op.name, input.name, input.list and "a list of tensors" or "a tensor",
    input.help, call.describe(value))
end

-- The tensor whose dtype a number takes: the first floating one, else the first int32 one, else the first.
local function companion(args, n)
  local best
  for i = 1, n do
    local t = args[i]
    if is_tensor(t) then
      local dtype = lib.pg_dtype(t)
      if dtype == lib.PG_FLOAT32 or dtype == lib.PG_FLOAT64 then return t end
      if not best or (dtype == lib.PG_INT32 and lib.pg_dtype(best) ~= dtype) then best = t end
    end
  end
  return best
end

-- Which args are inputs: returns the handles, how many, and where the parameters begin.
local function read_inputs(op, args, n)
  local handles, count, at = {}, 0, 1
  for _, input in ipairs(op.inputs) do
    local value = args[at]
    if input.list then
      if type(value) ~= "table" then missing(op, input, value) end
      for _, t in ipairs(value) do
        if not is_tensor(t) then missing(op, input, t) end
        count = count + 1
        handles[count] = t
      end
      at = at + 1
    else
      count = count + 1
      if is_tensor(value) then
        handles[count], at = input.index and shifted(value, -1) or value, at + 1
      elseif input.optional then
        if value == nil then at = at + 1 end
      elseif type(value) == "number" and not input.index and companion(args, n) then
        handles[count], at = call.scalar(value, companion(args, n), op.name), at + 1
      else
        missing(op, input, value)
      end
    end
  end
  return handles, count, at
end

local few, made = Handles(8), Handles(1) -- for most calls: read before the collector, or anybody, makes another
local function run(op, handles, count, values)
  local input, out = count <= 8 and few or Handles(count), op.one and made or Handles(4)
  for i = 1, count do input[i - 1] = handles[i] end
  local status = lib.pg_apply(op.id, input, count, values, out)
  if status == lib.PG_ERR_MEMORY then -- the collector may hold what is missing
    memory.collect()
    status = lib.pg_apply(op.id, input, count, values, out)
  end
  if status ~= 0 then call.check(status) end
  if op.one then return call.own(out[0]) end
  local results, at = {}, 0
  for _, output in ipairs(op.outputs) do
    if not output.hidden then
      local t = call.own(out[at])
      at = at + 1
      results[at] = output.index and shifted(t, 1) or t
    end
  end
  if at <= 1 then return results[1] end -- one value and no nils behind it, so that {f(x)} has one element
  if at == 2 then return results[1], results[2] end
  return results[1], results[2], results[3], results[4]
end

local function wrapper(op)
  return function(...)
    local n, args = select("#", ...), { ... }
    while n > 0 and args[n] == nil do n = n - 1 end
    local handles, count, at = read_inputs(op, args, n)
    if op.indexed then follow(op, handles, count) end
    return run(op, handles, count, read_params(op, args, at, n))
  end
end

--- Calls an op with named arguments, as the descriptors' samples are written: call.named("narrow", {x = t, dim = 1, ...}).
function call.named(name, arguments)
  local op = util.check(call.ops[name], "there is no op '%s'", tostring(name))
  local handles, count, options = {}, 0, {}
  for key, value in pairs(arguments) do options[key] = value end
  for _, input in ipairs(op.inputs) do
    local value = options[input.name]
    options[input.name] = nil
    if input.list then
      for _, t in ipairs(value or {}) do count = count + 1 handles[count] = t end
    else
      count = count + 1
      if value == nil and not input.optional then missing(op, input, value) end
      handles[count] = value ~= nil and input.index and shifted(value, -1) or value
    end
  end
  local values = Value(math.max(#op.params, 1))
  set_options(op, values, options)
  return run(op, handles, count, values)
end

apply_id = {}
for id = 0, lib.pg_op_count() - 1 do
  local op = describe(id)
  apply_id[op.name] = id
  call.ops[op.name], call.names[#call.names + 1] = op, op.name
  op.call = wrapper(op)
  jit.off(op.call) -- LuaJIT 2.1.0-beta3 (Debian 12) compiles side traces through this vararg function that crash
end

return call
