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
local PIECE = 4096 -- elements between two looks at whether Ctrl-C was pressed
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
    util.check(type(size) == "number" and size >= 0 and size % 1 == 0 and size <= 2 ^ 53,
      "%s: size %d must be a whole number, got %s", where, i, call.describe(size))
    sizes[i] = size
  end
  return sizes, util.options(where, options, { dtype = "float32", device = "cpu" })
end

local function new(sizes, dtype, device)
  local out, kind, place, shape = Out(), code("dtype", DTYPE, dtype), code("device", DEVICE, device),
    Shape(math.max(#sizes, 1), sizes)
  local status = lib.pg_new(kind, place, #sizes, shape, out)
  if status == lib.PG_ERR_MEMORY then -- the collector may hold what is missing
    require("perigee.memory").collect()
    status = lib.pg_new(kind, place, #sizes, shape, out)
  end
  check(status)
  return own(out[0])
end

-- Memory and no values yet.
local function empty(where, ...)
  local sizes, options = sizes_of(where, ...)
  return new(sizes, options.dtype, options.device)
end

local function filled(where, value)
  return function(...)
    local t = empty(where, ...)
    check(lib.pg_fill_new(t, value))
    return t
  end
end

--- pg.zeros(2, 3, options) or pg.zeros({2, 3}, options); so too pg.ones. Without sizes: 0-dimensional.
-- @param options {dtype = "float32" ("float64", "int32", "uint8"), device = "cpu"}
-- @return a new contiguous tensor
-- @raises on a size that is no whole number, an unknown option, dtype or device
tensor.zeros, tensor.ones = filled("zeros", 0), filled("ones", 1)

--- pg.empty(2, 3, options): memory as it comes; the values are whatever stood there. Sizes and options as pg.zeros.
-- @return a new contiguous tensor
function tensor.empty(...) return empty("empty", ...) end

--- pg.full({2, 3}, value, options): every element the same.
-- @param sizes    one list of whole numbers
-- @param value    number
-- @param options  as pg.zeros
-- @return a new contiguous tensor
-- @raises when the value is no number, or one that an integer dtype cannot hold
function tensor.full(sizes, value, options)
  util.check(type(sizes) == "table" and (options == nil or type(options) == "table"),
    "full: takes a list of sizes, a value and options; got %s, %s, %s", call.describe(sizes), call.describe(value),
    call.describe(options))
  local t = empty("full", sizes, options or {})
  call.fits("full", value, lib.pg_dtype(t))
  check(lib.pg_fill_new(t, value))
  return t
end

local function random(where, draw)
  return function(...)
    local t = empty(where, ...)
    check(draw(t))
    return t
  end
end

--- pg.randn(2, 3, options) and pg.rand: normal(0, 1) and uniform [0, 1) draws of the global generator (pg.seed), the same
-- on every device. Sizes and options as pg.zeros; float32 or float64.
-- @return a new contiguous tensor
tensor.randn, tensor.rand = random("randn", lib.pg_randn), random("rand", lib.pg_rand)

--- pg.arange(n) is 1..n; pg.arange(first, last, step, options) includes `last` when the steps meet it.
-- @param first, last  numbers
-- @param step         number, default 1; may be negative
-- @param options      {dtype = "int32" where first and step are whole, else "float32"; device = "cpu"}
-- @return a tensor of one dimension
-- @raises when the step is 0, on a number that is not finite or that the dtype cannot hold
function tensor.arange(first, last, step, options)
  if type(last) == "table" then options, last = last, nil end
  if type(step) == "table" then options, step = step, nil end
  if not last then first, last = 1, first end
  step = step or 1
  for _, number in ipairs { first, last, step } do
    util.check(type(number) == "number" and math.abs(number) < math.huge, "arange: expected a finite number, got %s",
      call.describe(number))
  end
  util.check(step ~= 0, "arange: the step is 0")
  local dtype = first % 1 == 0 and step % 1 == 0 and "int32" or "float32"
  options = util.options("arange", options, { dtype = dtype, device = "cpu" })
  local count = math.max(0, math.floor((last - first) / step + 1e-9) + 1) -- so that 0, 0.3, 0.1 meets 0.3
  local t = empty("arange", { count }, { dtype = options.dtype })
  if count > 0 then
    for _, v in ipairs { first, first + step, first + (count - 1) * step } do call.fits("arange", v, lib.pg_dtype(t)) end
  end
  local data = t:data()
  for begin = 0, count - 1, PIECE do
    call.heed()
    for i = begin, math.min(begin + PIECE, count) - 1 do data[i] = first + i * step end
  end
  return options.device == "cpu" and t or t:to(options.device)
end

--- The identity.
-- @param n whole number
-- @param options as pg.zeros
-- @return (n, n)
function tensor.eye(n, options)
  options = util.options("eye", options, { dtype = "float32", device = "cpu" })
  local t = empty("eye", { n, n }, { dtype = options.dtype })
  check(lib.pg_fill_new(t, 0))
  local data = t:data()
  for i = 0, n - 1 do data[i * (n + 1)] = 1 end
  return options.device == "cpu" and t or t:to(options.device)
end

local function measure(value, sizes, depth)
  if type(value) ~= "table" then return end
  sizes[depth] = #value
  if #value > 0 then measure(value[1], sizes, depth + 1) end
end

local function pour(value, sizes, depth, data, at, dtype)
  if depth > #sizes then
    call.fits("tensor", value, dtype)
    data[at] = value
    return at + 1
  end
  util.check(type(value) == "table" and #value == sizes[depth],
    "tensor: lists of unequal length: dimension %d has %d elements elsewhere", depth, sizes[depth])
  for i = 1, #value do at = pour(value[i], sizes, depth + 1, data, at, dtype) end
  return at
end

--- A tensor from nested lists, or from one number (0-dimensional).
-- @param value    a number, or lists of lists of numbers, all of one length at each depth
-- @param options  as pg.zeros
-- @return a new contiguous tensor
-- @raises on lists of unequal length, on what is no number, and on a number that an integer dtype cannot hold
function tensor.tensor(value, options)
  options = util.options("tensor", options, { dtype = "float32", device = "cpu" })
  local sizes = {}
  measure(value, sizes, 1)
  local t = new(sizes, options.dtype, "cpu")
  pour(value, sizes, 1, t:data(), 0, lib.pg_dtype(t))
  return options.device == "cpu" and t or t:to(options.device)
end

--- A random order of 1..n, from the global generator.
-- @param n whole number
-- @return (n) int32
function tensor.randperm(n)
  local t = empty("randperm", { n }, { dtype = "int32" })
  check(lib.pg_randperm(t:data(), n))
  return t + 1
end

-- ---- asking ---------------------------------------------------------------------------------------------------------------

--- The sizes.
-- @return a list of numbers
function methods:shape()
  local sizes = {}
  for i = 1, lib.pg_ndim(self) do sizes[i] = tonumber(lib.pg_size(self, i - 1)) end
  return sizes
end
--- How many dimensions there are.
-- @return a number
function methods:dim() return lib.pg_ndim(self) end
local function dimension(where, t, d) -- from 0
  local n = lib.pg_ndim(t)
  util.check(type(d) == "number" and d % 1 == 0 and d ~= 0 and d >= -n and d <= n,
    "%s: dimension %s does not exist: %s", where, call.describe(d), call.describe(t))
  return d < 0 and d + n or d - 1
end
--- One size; without d the list of all.
-- @param d  dimension from 1; -1 is the last
-- @return a number
-- @raises when there is no such dimension
function methods:size(d)
  if d == nil then return self:shape() end
  return tonumber(lib.pg_size(self, dimension("size", self, d)))
end
--- How many elements there are.
-- @return a number
function methods:numel() return tonumber(lib.pg_numel(self)) end
--- The dtype.
-- @return "float32", "float64", "int32" or "uint8"
function methods:dtype() return ffi.string(lib.pg_dtype_name(lib.pg_dtype(self))) end
--- The device.
-- @return "cpu" or "cuda"
function methods:device() return ffi.string(lib.pg_device_name(lib.pg_device(self))) end
--- Whether the elements lie row by row without gaps.
-- @return boolean
function methods:is_contiguous() return lib.pg_is_contiguous(self) ~= 0 end
--- Elements between neighbours along a dimension.
-- @param d dimension from 1
-- @return a number
function methods:stride(d) return tonumber(lib.pg_stride(self, dimension("stride", self, d))) end
--- A C pointer to the first element, counted from 0; valid while the tensor lives.
-- @return float *, double *, int32_t * or uint8_t *
-- @raises after t:free(), and for a tensor that is not on the cpu
function methods:data()
  util.check(lib.pg_device(self) == lib.PG_CPU, "data: the tensor is on %s, which the host cannot read; use to(\"cpu\") first",
    self:device())
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
-- @return a number
-- @raises when there are more or none
function methods:item()
  util.check(self:numel() == 1, "item: needs a tensor of one element, got %s", call.describe(self))
  return tonumber(values(self)[0])
end

--- Nested Lua lists of the values; of a 0-dimensional tensor, its number.
-- @return lists of lists of numbers
function methods:totable()
  local host, sizes, at = values(self), self:shape(), 0
  local function take(depth)
    if depth > #sizes then
      at = at + 1
      return tonumber(host[at - 1])
    end
    local list = {}
    for i = 1, sizes[depth] do
      if i % PIECE == 1 then call.heed() end
      list[i] = take(depth + 1)
    end
    return list
  end
  return take(1)
end

--- One element: t:get(2, 3), a position for each dimension; negative ones count from the end.
-- @return a number
-- @raises on another number of positions, or one that does not exist
function methods:get(...)
  local t, n = self, select("#", ...)
  util.check(n == self:dim(), "get: %d positions for %s", n, call.describe(self))
  for d = 1, n do
    local i, size = select(d, ...), self:size(d)
    util.check(type(i) == "number" and i % 1 == 0 and i ~= 0 and i >= -size and i <= size,
      "get: position %s is outside 1..%d of dimension %d: %s", call.describe(i), size, d, call.describe(self))
    t = t:select(1, i)
  end
  return t:item()
end

-- ---- changing -------------------------------------------------------------------------------------------------------------

local function needs_tensor(where, value)
  util.check(is_tensor(value), "%s: expected a tensor, got %s", where, call.describe(value))
end
local function writable(t, where)
  util.check(not (lib.pg_grad_enabled(-1) ~= 0 and lib.pg_requires_grad(t) ~= 0),
    "%s: the tensor requires grad and would be changed in place; do it inside pg.no_grad", where)
end

--- Takes the values of a tensor of the same shape, in place, converted to this tensor's dtype.
-- @param source  a tensor
-- @return the tensor itself
-- @raises when shapes differ, or when the tensor requires grad outside pg.no_grad
function methods:copy_(source)
  writable(self, "copy_")
  needs_tensor("copy_", source)
  check(lib.pg_copy(self, source))
  return self
end
--- Sets every element to a number, in place.
-- @return the tensor itself
-- @raises when the dtype cannot hold the number, or the tensor requires grad outside pg.no_grad
function methods:fill_(value)
  writable(self, "fill_")
  call.fits("fill_", value, lib.pg_dtype(self))
  check(lib.pg_fill(self, value))
  return self
end
--- fill_(0).
function methods:zero_() return self:fill_(0) end

--- t:to("float64"): another dtype, or another device; the same tensor when nothing changes. A change of dtype between
-- floats is recorded for backward.
-- @param word  a dtype or a device
-- @return a tensor
-- @raises on a word that is neither
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

--- Lets go of the memory at once instead of when the collector comes by; reading the tensor afterwards is an error.
function methods:free() lib.pg_free(self) end

-- ---- autograd -------------------------------------------------------------------------------------------------------------

--- Marks a leaf whose gradient backward() fills in (on = true, the default), or no longer (false). t.grad reads it, and may
-- be assigned a tensor of the same shape and dtype, or nil.
-- @return the tensor itself
-- @raises on int32 and uint8, and on false for a tensor that was computed: use detach()
function methods:requires_grad_(on)
  check(lib.pg_set_requires_grad(self, on == false and 0 or 1))
  return self
end
--- Whether backward reaches this tensor.
-- @return boolean
function methods:requires_grad() return lib.pg_requires_grad(self) ~= 0 end
--- Whether the tensor was made, not computed from one that requires grad.
-- @return boolean
function methods:is_leaf() return lib.pg_is_leaf(self) ~= 0 end

--- The same values, sharing memory, without history.
-- @return a tensor that does not require grad
function methods:detach()
  local out = Out()
  check(lib.pg_detach(self, out))
  return own(out[0])
end

--- Gradients of this scalar for every leaf that it depends on, added to their `.grad`, which is a tensor or nil and may be
-- assigned. What backward needs is let go of as it passes.
-- @param options {grad = tensor of this one's shape, for a result that is not a scalar; retain = true keeps the graph for
--   another pass}, or the grad alone
-- @raises when nothing was recorded, when the graph was let go of, when an op on the way has no backward (with the reason),
--   or when a value that it needs was changed in place
function methods:backward(options)
  if is_tensor(options) then options = { grad = options } end
  options = util.options("backward", options, { grad = util.none, retain = false })
  if options.grad ~= nil then needs_tensor("backward: grad", options.grad) end
  check(lib.pg_backward(self, options.grad, options.retain and 1 or 0))
end

local function restore(before, ok, ...)
  lib.pg_grad_enabled(before)
  if not ok then error((...), 0) end
  return ...
end

--- Runs fn(...) without recording; recording is restored even when fn raises.
-- @param fn  a function; further arguments are passed to it
-- @return what fn returns
function tensor.no_grad(fn, ...)
  return restore(lib.pg_grad_enabled(0), pcall(fn, ...))
end

--- Runs fn in mixed precision: under "bf16" pg.linear, where nearly all of a transformer's time goes, rounds the operands
-- of its products to bfloat16 and adds up in float32, forward and in the backward pass of what was recorded. Weights,
-- gradients and every other op stay float32, and float64 stays as it is. A CPU without AVX-512 BF16 rounds to the same
-- numbers, at the speed of float32. After Micikevicius et al., arXiv 1710.03740; Kalamkar et al., arXiv 1905.12322.
-- @param precision  "fp32" or "bf16"
-- @param fn, ...    a function and its arguments
-- @return what fn returns
-- @raises on another precision, and what fn raises
function tensor.autocast(precision, fn, ...)
  util.check(precision == "fp32" or precision == "bf16", "autocast: the precision is fp32 or bf16, got '%s'",
    tostring(precision))
  local before = lib.pg_autocast(precision == "bf16" and 1 or 0)
  local results = { pcall(fn, ...) }
  lib.pg_autocast(before)
  if not results[1] then error(results[2], 0) end
  return unpack(results, 2)
end

--- Activation checkpointing (Chen et al., arXiv 1604.06174): runs fn(...), and of what it computes keeps only what came
-- from outside. backward() computes the rest again, with the random numbers that were drawn then, and gives the same
-- gradients, bit for bit, in memory of one such call at a time and about a quarter more time: what nothing reads is not
-- computed again. Inside another checkpoint this changes nothing. Every tensor that fn makes, but for those that it
-- returns, lets go of its memory, as in pg.scope.
-- @param fn  a function; further arguments are passed to it
-- @return what fn returns
-- @raises what fn raises
function tensor.checkpoint(fn, ...)
  local arguments, n = { ... }, select("#", ...)
  local before = lib.pg_checkpoint(1)
  local results = { pcall(call.scope, function() return fn(unpack(arguments, 1, n)) end) }
  if before == 0 then lib.pg_checkpoint(0) end
  if not results[1] then error(results[2], 0) end
  return unpack(results, 2)
end

-- ---- operators and the metatype -------------------------------------------------------------------------------------------

local function binary(name, scalar_name)
  return function(a, b)
    local ops = call.ops
    if scalar_name and type(b) == "number" then return ops[scalar_name].call(a, b) end
    if scalar_name and type(a) == "number" and name ~= "sub" then return ops[scalar_name].call(b, a) end
    if type(a) == "number" then a = call.scalar(a, b, name) end
    return ops[name].call(a, b)
  end
end

local subtract = binary("sub")
local meta = {
  __add = binary("add", "add_scalar"), __mul = binary("mul", "mul_scalar"), __div = binary("div"),
  __sub = function(a, b)
    if type(b) == "number" and lib.pg_dtype(a) ~= lib.PG_UINT8 then return call.ops.add_scalar.call(a, -b) end
    return subtract(a, b)
  end,
  __pow = function(a, b)
    if type(b) == "number" then return call.ops.pow_scalar.call(a, b) end
    if type(a) == "number" then a = call.scalar(a, b, "pow") end
    return call.ops.pow.call(a, b)
  end,
  __unm = function(a) return call.ops.neg.call(a) end,
  __tostring = function(t) return require("perigee.print")(t) end,
  __index = function(t, key)
    if key == "grad" then
      local grad = lib.pg_grad(t)
      if grad == nil then return nil end
      return ffi.gc(lib.pg_retain(grad), lib.pg_release) -- the tensor's own: a scope's end must not free it
    end
    local method = methods[key]
    if method ~= nil then return method end
    local names = {}
    for name in pairs(methods) do names[#names + 1] = name end
    table.sort(names)
    local nearest, distance = util.nearest(tostring(key), names)
    util.fail(0, "a tensor has no method '%s'%s", tostring(key),
      distance <= 2 and (" (did you mean '" .. nearest .. "'?)") or "")
  end,
  __newindex = function(t, key, value)
    if key ~= "grad" then util.fail(0, "a tensor has no field '%s'; only .grad can be assigned", tostring(key)) end
    if value ~= nil then needs_tensor("grad", value) end
    check(lib.pg_set_grad(t, value))
  end,
}

for name, op in pairs(call.ops) do
  if op.method and not methods[name] then methods[name] = op.call end
end

--- Elements along a dimension by position: the op pg.index(t, positions, dim), which takes its tensors first, as a method.
-- @param dim        dimension from 1
-- @param positions  (n) int32 from 1
-- @return the tensor's shape with n at dim
function methods:index(dim, positions) return call.ops.index.call(self, positions, dim) end
--- One element for each position: the op pg.gather(t, positions, dim) as a method.
-- @return the shape of positions
function methods:gather(dim, positions) return call.ops.gather.call(self, positions, dim) end
--- The op pg.scatter_add(t, positions, source, dim) as a method.
-- @return the tensor's shape
function methods:scatter_add(dim, positions, source)
  return call.ops.scatter_add.call(self, positions, source, dim)
end

--- The transpose of a matrix, a view.
-- @return (m, n) from (n, m)
function methods:t()
  util.check(self:dim() == 2, "t: takes a matrix (transpose names two dimensions of others), got %s", call.describe(self))
  return self:transpose(1, 2)
end

--- Pieces along a dimension; gradients flow through each.
-- @param sizes  one size for all pieces, the last maybe shorter, or a list of sizes that add up to the dimension's
-- @param dim    dimension, default 1
-- @return a list of views
-- @raises when a size is not a whole number of 1 or more (0 or more in a list), or the list does not add up
function methods:split(sizes, dim)
  dim = dim or 1
  dimension("split", self, dim)
  local n, pieces, start = self:size(dim), {}, 1
  local one = type(sizes) ~= "table"
  for i, size in ipairs(one and { sizes } or sizes) do
    util.check(type(size) == "number" and size % 1 == 0 and size >= (one and 1 or 0),
      "split: size %d must be a whole number of %d or more, got %s", i, one and 1 or 0, call.describe(size))
  end
  if one then
    local size = sizes
    sizes = {}
    for at = 0, n - 1, size do sizes[#sizes + 1] = math.min(size, n - at) end
  end
  local total = 0
  for _, size in ipairs(sizes) do total = total + size end
  util.check(total == n, "split: sizes {%s} add up to %d, dimension %d has %d: %s", table.concat(sizes, ", "), total, dim, n,
    call.describe(self))
  for i, size in ipairs(sizes) do
    pieces[i], start = self:narrow(dim, start, size), start + size
  end
  return pieces
end

--- pg.where(cond, a, b), also cond:where(a, b): a where cond is not 0, else b. Two numbers make a float32 result.
-- @param cond, a, b  tensors that broadcast together; a and b may be numbers
-- @return a tensor of the common shape
function tensor.where(cond, a, b, ...)
  if type(a) == "number" and type(b) == "number" then a = tensor.tensor(a) end
  return call.ops.where.call(cond, a, b, ...)
end
methods.where = tensor.where
tensor.methods = methods

ffi.metatype("pg_tensor", meta)

return tensor
