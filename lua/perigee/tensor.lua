-- tensor.lua - the tensor as Lua sees it: a handle of the core with methods and operators. Ops come from the op table
-- (call.lua); what stands here is what is not an op.

local ffi = require "ffi"
local lib = require "perigee.ffi"
local call = require "perigee.call"
local util = require "perigee.util"

local tensor, methods = {}, {}
local check, own, is_tensor = call.check, call.own, call.is_tensor
local Out, Shape = ffi.typeof "pg_tensor *[1]", ffi.typeof "int64_t[?]"
local DTYPE = { float32 = lib.PG_FLOAT32, float64 = lib.PG_FLOAT64, int32 = lib.PG_INT32, uint8 = lib.PG_UINT8 }
local CTYPE = { float32 = "float", float64 = "double", int32 = "int32_t", uint8 = "uint8_t" }
local DEVICE = { cpu = lib.PG_CPU, cuda = lib.PG_CUDA }

local function code(kind, map, word)
  local value = map[word]
  if value then return value end
  local known = {}
  for name in pairs(map) do known[#known + 1] = name end
  table.sort(known)
  util.fail(0, "unknown %s '%s': it is one of %s", kind, tostring(word), table.concat(known, ", "))
end

-- ---- making ---------------------------------------------------------------------------------------------------------------

-- Splits (2, 3, {dtype=}) or ({2, 3}, {dtype=}) into sizes and options.
local function sizes_of(where, ...)
  local n, args, options, sizes = select("#", ...), { ... }, nil, {}
  if type(args[n]) == "table" and args[n][1] == nil and (n > 1 or next(args[n]) ~= nil) then
    options, n = args[n], n - 1
  end
  if n == 1 and type(args[1]) == "table" then args = args[1] n = #args end
  for i = 1, n do
    local size = args[i]
    util.check(type(size) == "number" and size >= 0 and size % 1 == 0, "%s: size %d must be a whole number, got %s",
      where, i, tostring(size))
    sizes[i] = size
  end
  return sizes, util.options(where, options, { dtype = "float32", device = "cpu" })
end

local function new(sizes, dtype, device)
  local out = Out()
  check(lib.pg_new(code("dtype", DTYPE, dtype), code("device", DEVICE, device), #sizes,
    Shape(math.max(#sizes, 1), sizes), out))
  return own(out[0])
end

local function filled(where, value)
  return function(...)
    local sizes, options = sizes_of(where, ...)
    local t = new(sizes, options.dtype, options.device)
    check(lib.pg_fill(t, value))
    return t
  end
end

--- pg.zeros(2, 3, {dtype = "float32", device = "cpu"}); so too pg.ones. Sizes may also be one list.
tensor.zeros, tensor.ones = filled("zeros", 0), filled("ones", 1)

--- Memory as it comes: the values are whatever stood there.
function tensor.empty(...)
  local sizes, options = sizes_of("empty", ...)
  return new(sizes, options.dtype, options.device)
end

--- pg.full({2, 3}, value, options)
function tensor.full(sizes, value, options)
  util.check(type(value) == "number", "full: the value must be a number, got %s", type(value))
  local t = tensor.empty(sizes, options or {})
  check(lib.pg_fill(t, value))
  return t
end

local function random(where, draw)
  return function(...)
    local sizes, options = sizes_of(where, ...)
    local t = new(sizes, options.dtype, "cpu")
    check(draw(t))
    return options.device == "cpu" and t or t:to(options.device)
  end
end

--- Normal(0, 1) and uniform [0, 1) draws of the global generator (pg.seed), the same on every device.
tensor.randn, tensor.rand = random("randn", lib.pg_randn), random("rand", lib.pg_rand)

--- pg.arange(n) is 1..n; pg.arange(first, last, step) includes `last` when the steps meet it.
function tensor.arange(first, last, step, options)
  if type(last) == "table" then options, last = last, nil end
  if type(step) == "table" then options, step = step, nil end
  if not last then first, last = 1, first end
  step = step or 1
  util.check(step ~= 0, "arange: the step is 0")
  local values = {}
  for v = first, last, step do values[#values + 1] = v end
  return tensor.tensor(values, options or { dtype = "int32" })
end

--- The (n, n) identity.
function tensor.eye(n, options)
  local flat = {}
  for i = 1, n * n do flat[i] = (i - 1) % (n + 1) == 0 and 1 or 0 end
  return tensor.tensor(flat, options):reshape(n, n)
end

local function measure(value, sizes, depth)
  if type(value) ~= "table" then return end
  sizes[depth] = #value
  if #value > 0 then measure(value[1], sizes, depth + 1) end
end

local function pour(value, sizes, depth, data, at)
  if depth > #sizes then
    util.check(type(value) == "number", "tensor: expected a number, got %s", type(value))
    data[at] = value
    return at + 1
  end
  util.check(type(value) == "table" and #value == sizes[depth],
    "tensor: lists of unequal length: dimension %d has %d elements elsewhere", depth, sizes[depth])
  for i = 1, #value do at = pour(value[i], sizes, depth + 1, data, at) end
  return at
end

--- A tensor from nested lists, or from one number (0-dimensional).
function tensor.tensor(value, options)
  options = util.options("tensor", options, { dtype = "float32", device = "cpu" })
  local sizes = {}
  measure(value, sizes, 1)
  local t = new(sizes, options.dtype, "cpu")
  pour(value, sizes, 1, t:data(), 0)
  return options.device == "cpu" and t or t:to(options.device)
end

--- A random order of 1..n, int32.
function tensor.randperm(n)
  local t = new({ n }, "int32", "cpu")
  check(lib.pg_randperm(t:data(), n))
  return t + 1
end

-- ---- asking -----------------------------------------------------------------------------------------------------------------

--- The sizes, as a list. methods.dim: how many there are. methods.size(d): one of them; -1 is the last.
function methods:shape()
  local sizes = {}
  for i = 1, lib.pg_ndim(self) do sizes[i] = tonumber(lib.pg_size(self, i - 1)) end
  return sizes
end
function methods:dim() return lib.pg_ndim(self) end
function methods:size(d)
  if d == nil then return self:shape() end
  local n = lib.pg_ndim(self)
  local at = d < 0 and d + n or d - 1
  util.check(at >= 0 and at < n, "size: dimension %d does not exist in a tensor of %d dimensions", d, n)
  return tonumber(lib.pg_size(self, at))
end
function methods:numel() return tonumber(lib.pg_numel(self)) end
function methods:dtype() return ffi.string(lib.pg_dtype_name(lib.pg_dtype(self))) end
function methods:device() return ffi.string(lib.pg_device_name(lib.pg_device(self))) end
function methods:is_contiguous() return lib.pg_is_contiguous(self) ~= 0 end
function methods:stride(d) return tonumber(lib.pg_stride(self, d - 1)) end
--- A C pointer to the first element (float *, double *, int32_t * or uint8_t *); valid while the tensor lives.
function methods:data()
  local p = lib.pg_data(self)
  util.check(p ~= nil, "data: the tensor's memory was released by free()")
  return ffi.cast(CTYPE[self:dtype()] .. " *", p)
end

local function values(t)
  local n = t:numel()
  local host = ffi.new(CTYPE[t:dtype()] .. "[?]", math.max(n, 1))
  check(lib.pg_download(t, host, ffi.sizeof(CTYPE[t:dtype()]) * n))
  return host
end

--- The one value of a one-element tensor.
function methods:item()
  util.check(self:numel() == 1, "item: needs a tensor of one element, this one has %d", self:numel())
  return tonumber(values(self)[0])
end

--- Nested Lua lists of the values.
function methods:totable()
  local host, sizes, at = values(self), self:shape(), 0
  local function take(depth)
    if depth > #sizes then
      at = at + 1
      return tonumber(host[at - 1])
    end
    local list = {}
    for i = 1, sizes[depth] do list[i] = take(depth + 1) end
    return list
  end
  return take(1)
end

--- One element: t:get(2, 3).
function methods:get(...)
  local t, position = self, { ... }
  util.check(#position == self:dim(), "get: %d positions for a tensor of %d dimensions", #position, self:dim())
  for _, i in ipairs(position) do t = t:select(1, i) end
  return t:item()
end

-- ---- changing ------------------------------------------------------------------------------------------------------------------

local function writable(t, where)
  util.check(not (lib.pg_grad_enabled(-1) ~= 0 and lib.pg_requires_grad(t) ~= 0),
    "%s: the tensor requires grad and would be changed in place; do it inside pg.no_grad", where)
end
function methods:copy_(source)
  writable(self, "copy_")
  check(lib.pg_copy(self, source))
  return self
end
function methods:fill_(value)
  writable(self, "fill_")
  check(lib.pg_fill(self, value))
  return self
end
function methods:zero_() return self:fill_(0) end

--- t:to("float64") or t:to("cuda"): another dtype or device; the same tensor when nothing changes. Recorded.
function methods:to(word)
  if DTYPE[word] then
    if word == self:dtype() then return self end
    if call.ops.to and lib.pg_requires_grad(self) ~= 0 then return call.ops.to.call(self, { dtype = word }) end
    local out = Out()
    check(lib.pg_convert(self, DTYPE[word], lib.pg_device(self), out))
    return own(out[0])
  end
  local device = DEVICE[word]
  util.check(device, "to: '%s' is neither a dtype (float32, float64, int32, uint8) nor a device (cpu, cuda)", tostring(word))
  if device == lib.pg_device(self) then return self end
  local out = Out()
  check(lib.pg_convert(self, lib.pg_dtype(self), device, out))
  return own(out[0])
end

--- Lets go of the memory at once; reading the tensor afterwards is an error.
function methods:free() lib.pg_free(self) end

-- ---- autograd -------------------------------------------------------------------------------------------------------------------

function methods:requires_grad_(on)
  check(lib.pg_set_requires_grad(self, on == false and 0 or 1))
  return self
end
function methods:requires_grad() return lib.pg_requires_grad(self) ~= 0 end
function methods:is_leaf() return lib.pg_is_leaf(self) ~= 0 end
function methods:detach()
  local out = Out()
  check(lib.pg_detach(self, out))
  return own(out[0])
end

--- Gradients of this scalar for every leaf that it depends on, added to their `.grad`.
-- @param options {grad = tensor, for a result that is not a scalar; retain = true keeps the graph for another pass}
function methods:backward(options)
  if is_tensor(options) then options = { grad = options } end
  options = util.options("backward", options, { grad = util.none, retain = false })
  check(lib.pg_backward(self, options.grad, options.retain and 1 or 0))
end

--- Runs fn without recording; returns what it returns, and restores recording even when it raises.
function tensor.no_grad(fn, ...)
  local before = lib.pg_grad_enabled(0)
  local results = { pcall(fn, ...) }
  lib.pg_grad_enabled(before)
  if not results[1] then error(results[2], 0) end
  return unpack(results, 2)
end

-- ---- operators and the metatype --------------------------------------------------------------------------------------------------

local function binary(name, scalar_name)
  return function(a, b)
    local ops = call.ops
    if scalar_name and type(b) == "number" then return ops[scalar_name].call(a, b) end
    if scalar_name and type(a) == "number" and name ~= "sub" then return ops[scalar_name].call(b, a) end
    if type(a) == "number" then a = call.scalar(a, b) end
    return ops[name].call(a, b)
  end
end

local subtract = binary("sub")
local meta = {
  __add = binary("add", "add_scalar"), __mul = binary("mul", "mul_scalar"), __div = binary("div"),
  __sub = function(a, b)
    if type(b) == "number" then return call.ops.add_scalar.call(a, -b) end
    return subtract(a, b)
  end,
  __pow = function(a, b)
    if type(b) == "number" then return call.ops.pow_scalar.call(a, b) end
    if type(a) == "number" then a = call.scalar(a, b) end
    return call.ops.pow.call(a, b)
  end,
  __unm = function(a) return call.ops.neg.call(a) end,
  __tostring = function(t) return require("perigee.print")(t) end,
  __index = function(t, key)
    if key == "grad" then
      local grad = lib.pg_grad(t)
      if grad == nil then return nil end
      return own(lib.pg_retain(grad))
    end
    local method = methods[key]
    if method == nil then util.fail(0, "a tensor has no method '%s'", tostring(key)) end
    return method
  end,
  __newindex = function(t, key, value)
    if key ~= "grad" then util.fail(0, "a tensor has no field '%s'; only .grad can be assigned", tostring(key)) end
    check(lib.pg_set_grad(t, value))
  end,
}

for name, op in pairs(call.ops) do
  if op.method and not methods[name] then methods[name] = op.call end
end
--- t:index(dim, positions): the op takes its tensors first, the method reads as the field writes it.
function methods:index(dim, positions) return call.ops.index.call(self, positions, dim) end
function methods:gather(dim, positions) return call.ops.gather.call(self, positions, dim) end
--- The transpose of a matrix.
function methods:t() return self:transpose(1, 2) end
--- Pieces of `size` along `dim`, the last maybe shorter.
function methods:split(size, dim)
  local pieces, n = {}, self:size(dim or 1)
  for start = 1, n, size do pieces[#pieces + 1] = self:narrow(dim or 1, start, math.min(size, n - start + 1)) end
  return pieces
end
tensor.methods = methods

ffi.metatype("pg_tensor", meta)

return tensor
