-- nn.lua - layers. A module is a Lua table with parameters (tensors that require grad), children (other modules) and a
-- `forward`; calling the module calls it.
--
-- A field that is assigned a tensor is a parameter, a field that is assigned a module is a child, in the order of
-- assignment (one a line: Lua assigns `a, b = ...` from the right); nothing else is registered. A layer of one's own:
--
--   local Net = nn.class "Net"
--   function Net:init(width) self.fc = nn.Linear(width, 10) end
--   function Net:forward(x) return self.fc(x):relu() end
--   local net = Net(128)

local ffi = require "ffi"
local pg = require "perigee"
local util = require "perigee.util"

local nn = {}

-- ---- Module -----------------------------------------------------------------------------------------------------------

local Module = {}
nn.Module = Module

--- True for an instance of any class made by nn.class. @return boolean
function nn.is_module(value) return type(value) == "table" and rawget(value, "_order") ~= nil end

local function register(self, name, value)
  if pg.is_tensor(value) or nn.is_module(value) then
    util.check(type(name) == "number" or not name:find(".", 1, true), "nn: the name '%s' of a parameter has a dot", name)
    if pg.is_tensor(value) and value:is_leaf() then value:requires_grad_(true) end
    self._order[#self._order + 1] = name
  end
  rawset(self, name, value)
end

--- A new class of modules. Give it `forward(self, ...)`, and `init(self, ...)` where it has something to set up.
-- @param name  shown by tostring, "Module" if not given
-- @return the class; Class(...) or Class.new(...) makes an instance
function nn.class(name)
  local class = setmetatable({}, { __index = Module, __call = function(class, ...) return class.new(...) end })
  function class.new(...)
    local self = setmetatable({ _order = {}, training = true }, class)
    if class.init then self:init(...) end
    return self
  end
  class.__index, class.__newindex = class, register
  class.__call = function(self, ...) return self:forward(...) end
  class.__tostring = function(self) return ("%s (%d parameters)"):format(name or "Module", self:count()) end
  return class
end

local function address_of(t) return tonumber(ffi.cast("intptr_t", t)) end

-- Calls fn(owner, key, full name, tensor) for each parameter below `self`, in order of registration.
local function walk(self, fn, prefix)
  for _, key in ipairs(self._order) do
    local value, name = self[key], prefix .. key
    if nn.is_module(value) then walk(value, fn, name .. ".")
    elseif value ~= nil then fn(self, key, name, value) end
  end
end

--- The parameters in order of registration; a tensor shared by two layers stands there once. @return a list of tensors
function Module:parameters()
  local list, seen = {}, {}
  walk(self, function(_, _, _, p)
    local address = address_of(p)
    if not seen[address] then list[#list + 1] = p end
    seen[address] = true
  end, "")
  return list
end

--- for name, parameter in module:named_parameters() do ... end; names are dotted paths, such as "blocks.1.norm1.weight".
-- @return an iterator
function Module:named_parameters()
  local names, tensors, at = {}, {}, 0
  walk(self, function(_, _, name, p) names[#names + 1], tensors[#tensors + 1] = name, p end, "")
  return function()
    at = at + 1
    return names[at], tensors[at]
  end
end

--- The child modules in order of registration. @return a list of modules
function Module:children()
  local list = {}
  for _, key in ipairs(self._order) do
    if nn.is_module(self[key]) then list[#list + 1] = self[key] end
  end
  return list
end

--- How many numbers the parameters hold. @return a number
function Module:count()
  local total = 0
  for _, p in ipairs(self:parameters()) do total = total + p:numel() end
  return total
end

--- The parameters by name, sharing memory with the module; clone them to keep a moment. @return {name = tensor}
function Module:state_dict()
  local dict = {}
  for name, p in self:named_parameters() do dict[name] = p:detach() end
  return dict
end

local function size_text(t) return "(" .. table.concat(t:shape(), ", ") .. ")" end

--- Copies tensors into the parameters of the same names.
-- @param dict     {name = tensor}, as of state_dict
-- @param options  {strict = true}; false lets names be missing or extra, but never mis-shaped
-- @return the module
-- @raises one line that lists what is missing, extra and mis-shaped; the module is then unchanged
function Module:load_state_dict(dict, options)
  util.check(type(dict) == "table", "load_state_dict: expected a table of tensors by name, got %s", type(dict))
  options = util.options("load_state_dict", options, { strict = true })
  local missing, extra, shapes, known = {}, {}, {}, {}
  for name, p in self:named_parameters() do
    known[name] = true
    local source = dict[name]
    if source == nil then missing[#missing + 1] = name
    elseif not pg.is_tensor(source) then shapes[#shapes + 1] = name .. " is no tensor"
    elseif size_text(source) ~= size_text(p) then
      shapes[#shapes + 1] = ("%s is %s, the module's %s"):format(name, size_text(source), size_text(p))
    end
  end
  for name in pairs(dict) do
    if not known[name] then extra[#extra + 1] = tostring(name) end
  end
  table.sort(extra)
  local wrong = {}
  if options.strict and #missing > 0 then wrong[#wrong + 1] = "missing: " .. table.concat(missing, ", ") end
  if options.strict and #extra > 0 then wrong[#wrong + 1] = "extra: " .. table.concat(extra, ", ") end
  if #shapes > 0 then wrong[#wrong + 1] = "mis-shaped: " .. table.concat(shapes, ", ") end
  util.check(#wrong == 0, "load_state_dict: %s", table.concat(wrong, "; "))
  pg.no_grad(function()
    for name, p in self:named_parameters() do
      if dict[name] then p:copy_(dict[name]:to(p:dtype()):to(p:device())) end
    end
  end)
  return self
end

--- Training mode here and below, in which dropout acts. @param on default true @return the module
function Module:train(on)
  rawset(self, "training", on ~= false)
  for _, child in ipairs(self:children()) do child:train(on) end
  return self
end
--- train(false). @return the module
function Module:eval() return self:train(false) end

--- Freezes (false) or frees (true, the default) every parameter. @return the module
function Module:requires_grad_(on)
  for _, p in ipairs(self:parameters()) do p:requires_grad_(on) end
  return self
end

--- Moves the parameters to a dtype or a device. Make the optimiser afterwards: the parameters are new tensors.
-- @param word  as t:to
-- @return the module
function Module:to(word)
  local moved = {} -- one new tensor a parameter, so that sharing survives
  walk(self, function(owner, key, _, p)
    local address = address_of(p)
    moved[address] = moved[address] or p:detach():to(word):requires_grad_(p:requires_grad())
    rawset(owner, key, moved[address])
  end, "")
  return self
end

--- A copy as the module stands now, with parameters of its own that are frozen; what is no parameter is shared.
-- @return a module of the same class
function Module:frozen()
  local copies = {} -- one a parameter, so that sharing survives
  local function copy(module)
    local twin = setmetatable({}, getmetatable(module))
    for key, value in pairs(module) do
      if nn.is_module(value) then value = copy(value)
      elseif pg.is_tensor(value) then
        local address = address_of(value)
        copies[address] = copies[address] or value:detach():clone()
        value = copies[address]
      end
      rawset(twin, key, value)
    end
    rawset(twin, "_order", { unpack(module._order) })
    return twin
  end
  return copy(self)
end

--- Lets go of every gradient.
function Module:zero_grad()
  for _, p in ipairs(self:parameters()) do p.grad = nil end
end

-- ---- initial values ---------------------------------------------------------------------------------------------------

nn.init = {}

--- Normal(0, std) cut at two standard deviations; the draws beyond stand at the cut. From the global generator.
-- @param sizes  list of sizes
-- @param std    default 0.02, as ViT
-- @return float32 tensor
function nn.init.normal(sizes, std) return pg.randn(sizes):clamp(-2, 2) * (std or 0.02) end

--- Uniform on [-bound, bound). @param sizes list of sizes @param bound number @return float32 tensor
function nn.init.uniform(sizes, bound) return (pg.rand(sizes) - 0.5) * (2 * bound) end

local function whole(where, name, value)
  util.check(type(value) == "number" and value >= 1 and value % 1 == 0, "%s: %s must be a whole number, 1 or more, got %s",
    where, name, tostring(value))
  return value
end

-- The weight and bias of a layer with `fan_in` inputs a unit: "uniform" is U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for both,
-- "normal" is nn.init.normal with a zero bias, "zero" is zero. A std given asks for "normal".
local function initialise(self, where, sizes, fan_in, options)
  local bound, kind = 1 / math.sqrt(fan_in), options.init or (options.std and "normal" or "uniform")
  util.check(kind == "uniform" or kind == "normal" or kind == "zero",
    "%s: init is 'uniform', 'normal' or 'zero', got '%s'", where, tostring(kind))
  if kind == "uniform" then self.weight = nn.init.uniform(sizes, bound)
  elseif kind == "normal" then self.weight = nn.init.normal(sizes, options.std)
  else self.weight = pg.zeros(sizes) end
  if options.bias then
    self.bias = kind == "uniform" and nn.init.uniform({ sizes[1] }, bound) or pg.zeros(sizes[1])
  end
end

-- ---- layers -----------------------------------------------------------------------------------------------------------

--- nn.Linear(inputs, outputs, {bias = true, init = "uniform"|"normal"|"zero", std = 0.02}): x W^T + b. The initial values
-- are "uniform", or "normal" where a std is given.
-- @return forward: (..., inputs) -> (..., outputs)
nn.Linear = nn.class "Linear"
function nn.Linear:init(inputs, outputs, options)
  options = util.options("nn.Linear", options, { bias = true, init = util.none, std = util.none })
  whole("nn.Linear", "inputs", inputs)
  initialise(self, "nn.Linear", { whole("nn.Linear", "outputs", outputs), inputs }, inputs, options)
end
function nn.Linear:forward(x) return pg.linear(x, self.weight, self.bias) end

--- nn.LayerNorm(width, {eps = 1e-5}): over the last dimension, with a scale and a shift (Ba, Kiros, Hinton,
-- arXiv 1607.06450).
-- @return forward: (..., width) -> (..., width)
nn.LayerNorm = nn.class "LayerNorm"
function nn.LayerNorm:init(width, options)
  self.eps = util.options("nn.LayerNorm", options, { eps = 1e-5 }).eps
  self.weight = pg.ones(whole("nn.LayerNorm", "width", width))
  self.bias = pg.zeros(width)
end
function nn.LayerNorm:forward(x) return pg.layer_norm(x, self.weight, self.bias, { eps = self.eps }) end

--- nn.Embedding(entries, width, {std = 0.02}): rows of a table by position, counted from 1.
-- @return forward: int32 of any shape -> the same shape with a last dimension of width
nn.Embedding = nn.class "Embedding"
function nn.Embedding:init(entries, width, options)
  options = util.options("nn.Embedding", options, { std = 0.02 })
  self.weight = nn.init.normal({ whole("nn.Embedding", "entries", entries), whole("nn.Embedding", "width", width) },
    options.std)
end
function nn.Embedding:forward(positions)
  local sizes = positions:shape()
  sizes[#sizes + 1] = self.weight:size(2)
  return self.weight:index(1, positions:reshape(positions:numel())):reshape(sizes)
end

--- nn.Conv2d(in_channels, out_channels, kernel, {stride = 1, padding = 0, bias = true, init = "uniform", std = 0.02}).
-- A square kernel over pg.conv2d.
-- @return forward: (B, in, H, W) -> (B, out, H', W') with H' = floor((H + 2 padding - kernel) / stride) + 1
nn.Conv2d = nn.class "Conv2d"
function nn.Conv2d:init(in_channels, out_channels, kernel, options)
  options = util.options("nn.Conv2d", options, { stride = 1, padding = 0, bias = true, init = util.none,
    std = util.none })
  whole("nn.Conv2d", "in_channels", in_channels)
  whole("nn.Conv2d", "out_channels", out_channels)
  self.kernel, self.stride = whole("nn.Conv2d", "kernel", kernel), whole("nn.Conv2d", "stride", options.stride)
  self.padding = whole("nn.Conv2d", "padding + 1", options.padding + 1) - 1
  initialise(self, "nn.Conv2d", { out_channels, in_channels, kernel, kernel }, in_channels * kernel * kernel, options)
end

function nn.Conv2d:forward(x)
  util.check(x:dim() == 4 and x:size(2) == self.weight:size(2), "nn.Conv2d: needs images (B, %d, H, W), got %s",
    self.weight:size(2), size_text(x))
  return pg.conv2d(x, self.weight, self.bias, { stride = { self.stride }, padding = { self.padding } })
end

--- nn.Dropout(p): zeroes each element with probability p while training, scales the others by 1 / (1 - p).
-- @return forward: any shape -> the same
-- @raises when p is not in 0..1
nn.Dropout = nn.class "Dropout"
function nn.Dropout:init(p)
  util.check(type(p) == "number" and p >= 0 and p <= 1, "nn.Dropout: p must be from 0 to 1, got %s", tostring(p))
  self.p = p
end
function nn.Dropout:forward(x)
  if not self.training or self.p == 0 then return x end
  return x:dropout(self.p)
end

--- Token `at` of each sequence.
-- @param x   (B, T, D)
-- @param at  its place, from 1 to T: a number, or int32 (B), one for each, which is not checked
-- @return (B, 1, D)
function nn.token(x, at)
  if type(at) == "number" then return x:narrow(2, at, 1) end
  local batch, length, width = unpack(x:shape())
  local rows = (pg.arange(batch, { device = at:device() }) - 1) * length + at
  return x:reshape(batch * length, width):index(1, rows):reshape(batch, 1, width)
end

-- Scores' mask (B, 1, 1, before + T) for token `at` of T, which sees itself and what stands before it.
local function past(x, at, before)
  local batch, length = x:size(1), x:size(2)
  local places = pg.arange(before + length, { device = x:device() }):reshape(1, before + length) - before
  if type(at) == "number" then at = pg.full({ batch }, at, { dtype = "int32", device = x:device() }) end
  local future = pg.gt(places, at:reshape(batch, 1)):reshape(batch, 1, 1, before + length)
  local function scalar(value) return pg.full({ 1 }, value, { dtype = x:dtype(), device = x:device() }) end
  return pg.where(future, scalar(-math.huge), scalar(0))
end

--- nn.Attention(width, heads, {causal = false, bias = true, init = "normal", std = 0.02}): multi-head self-attention with
-- one packed projection for queries, keys and values (rows in that order). Vaswani et al., arXiv 1706.03762, section 3.2.
-- @return forward(x, mask, prefix, at): (B, T, width) -> (B, T, width); mask, (T, T) or (1 or B, 1 or heads, T, T), is
--   added to the scores; prefix = {keys, values}, each (B, L, width), stand before the projected ones (prefix tuning: Li
--   and Liang, arXiv 2101.00190); with `at`, as nn.token takes it, that token alone asks, and the result is (B, 1, width)
-- @raises when the width does not divide by the heads; forward: on a mask together with `at`
nn.Attention = nn.class "Attention"
function nn.Attention:init(width, heads, options)
  options = util.options("nn.Attention", options, { causal = false, bias = true, init = "normal", std = 0.02 })
  whole("nn.Attention", "heads", heads)
  util.check(whole("nn.Attention", "width", width) % heads == 0, "nn.Attention: width %d does not divide by %d heads",
    width, heads)
  self.heads, self.causal = heads, options.causal
  local layer = { bias = options.bias, init = options.init, std = options.std }
  self.qkv = nn.Linear(width, 3 * width, layer)
  self.proj = nn.Linear(width, width, layer)
end
-- Projections first..last of queries, keys and values: each (B, heads, T, width / heads).
function nn.Attention:project(x, first, last)
  local batch, length, width = unpack(x:shape())
  local parts, list = last - first + 1, {}
  local function rows(t) return t and t:narrow(1, (first - 1) * width + 1, parts * width) end
  local all = parts == 3 and self.qkv(x) or pg.linear(x, rows(self.qkv.weight), rows(self.qkv.bias))
  all = all:reshape(batch, length, parts, self.heads, width / self.heads):permute(3, 1, 4, 2, 5)
  for i = 1, parts do list[i] = all:select(1, i) end
  return unpack(list)
end
-- What q, k and v give, k and v after those of the prefix, projected back: (B, queries, width).
function nn.Attention:attend(q, k, v, mask, prefix, causal)
  local batch, heads, length, width = unpack(q:shape())
  if prefix then
    local function split(t) return t:reshape(batch, t:size(2), heads, width):transpose(2, 3) end
    k, v = pg.cat({ split(prefix[1]), k }, 3), pg.cat({ split(prefix[2]), v }, 3)
  end
  local y = pg.attention(q, k, v, mask, { causal = causal })
  return self.proj(y:transpose(2, 3):reshape(batch, length, heads * width))
end
function nn.Attention:forward(x, mask, prefix, at)
  if at then
    util.check(not mask, "nn.Attention: takes a mask or a single token, not both")
    local q, k, v = self:project(nn.token(x, at), 1, 1), self:project(x, 2, 3)
    return self:attend(q, k, v, self.causal and past(x, at, prefix and prefix[1]:size(2) or 0) or nil, prefix, false)
  elseif prefix then
    local q, k, v = self:project(x, 1, 3)
    return self:attend(q, k, v, mask, prefix, self.causal)
  end
  return self.proj(pg.self_attention(self.qkv(x), mask, { heads = self.heads, causal = self.causal }))
end

--- nn.MLP(width, hidden, {act = "gelu", outputs = width, bias = true, init = "normal", std = 0.02}): two linear layers
-- with an activation between; act is the name of an op (gelu, quick_gelu, relu, silu, tanh).
-- @return forward: (..., width) -> (..., outputs)
nn.MLP = nn.class "MLP"
function nn.MLP:init(width, hidden, options)
  options = util.options("nn.MLP", options, { act = "gelu", outputs = width, bias = true, init = "normal", std = 0.02 })
  local op = pg.ops[options.act]
  util.check(op and op.method and #op.inputs == 1, "nn.MLP: there is no activation '%s'", tostring(options.act))
  local layer = { bias = options.bias, init = options.init, std = options.std }
  self.act = options.act
  self.fc1 = nn.Linear(width, hidden, layer)
  self.fc2 = nn.Linear(hidden, options.outputs, layer)
end
function nn.MLP:forward(x) return self.fc2(pg[self.act](self.fc1(x))) end

--- nn.Sequential(a, b, ...) or nn.Sequential{a, b, ...}: each takes what the one before gave. A step is a module or a
-- plain function. The modules are named "1", "2", ... and stand at seq[1], seq[2], ...; more may be assigned later.
-- @return forward: what the last step gives
-- @raises on a step that is neither
nn.Sequential = nn.class "Sequential"
function nn.Sequential:init(...)
  local steps = { ... }
  if #steps == 1 and type(steps[1]) == "table" and not nn.is_module(steps[1]) then steps = steps[1] end
  for i, step in ipairs(steps) do
    util.check(nn.is_module(step) or type(step) == "function",
      "nn.Sequential: step %d is neither a module nor a function, but a %s", i, type(step))
    self[i] = step
  end
end
function nn.Sequential:forward(x)
  for _, step in ipairs(self) do x = step(x) end
  return x
end

return nn
