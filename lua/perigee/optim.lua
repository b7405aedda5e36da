-- optim.lua - AdamW and SGD over parameter lists, learning-rate schedules, gradient clipping. One op call takes a step
-- over the whole list (core/ops/optim.c states the formulas; docs/method.md, section 7).

local ffi = require "ffi"
local pg = require "perigee"
local call = require "perigee.call"
local lib = require "perigee.ffi"
local util = require "perigee.util"

local optim = {}

-- A parameter's gradient as the core holds it, or nil, contiguous. `p.grad` would be a handle of Lua's own, which keeps
-- the gradient alive after zero_grad() until the collector comes by.
local function gradient(p)
  local grad = lib.pg_grad(p)
  if grad == nil then return nil end
  if lib.pg_is_contiguous(grad) ~= 0 then return grad end
  local flat = ffi.new "pg_tensor *[1]"
  call.check(lib.pg_contiguous(grad, flat))
  lib.pg_set_grad(p, flat[0])
  lib.pg_release(flat[0]) -- the parameter holds one of its own over the same memory
  return lib.pg_grad(p)
end

local Optimizer = {}
Optimizer.__index = Optimizer

-- Turns a list of tensors, or of groups {params = list, lr =, weight_decay =}, into entries, one a parameter. A group's
-- own learning rate becomes a ratio to the optimiser's, so that a schedule on opt.lr moves every group.
local function build(where, params, options, buffers)
  util.check(type(params) == "table" and #params > 0, "%s: expected a list of parameters, got %s", where,
    type(params) == "table" and "an empty table" or type(params))
  local groups = pg.is_tensor(params[1]) and { { params = params } } or params
  local entries = {}
  for g, group in ipairs(groups) do
    local own = util.options(where .. ": group " .. g, group,
      { params = util.none, lr = options.lr, weight_decay = options.weight_decay })
    util.check(type(own.params) == "table", "%s: group %d has no list `params`", where, g)
    util.check(own.lr == options.lr or options.lr > 0, "%s: groups with their own lr need an overall lr above 0", where)
    for i, p in ipairs(own.params) do
      util.check(pg.is_tensor(p), "%s: parameter %d is a %s, not a tensor", where, i, type(p))
      util.check(p:requires_grad() and p:is_leaf(), "%s: parameter %d does not require grad, or was computed", where, i)
      local entry = { param = p, steps = 0, weight_decay = own.weight_decay,
        ratio = own.lr == options.lr and 1 or own.lr / options.lr }
      for _, name in ipairs(buffers) do entry[name] = pg.zeros(p:shape(), { dtype = p:dtype(), device = p:device() }) end
      entries[#entries + 1] = entry
    end
  end
  return setmetatable({ lr = options.lr, where = where, entries = entries, buffers = buffers, options = options }, Optimizer)
end

--- Lets go of every gradient.
function Optimizer:zero_grad()
  for _, e in ipairs(self.entries) do e.param.grad = nil end
end

--- One step from the gradients that stand in the parameters; a parameter without one stays as it is.
-- Entries that agree in dtype, device, decay, rate and age go into one op call.
-- @raises when opt.lr is no number of 0 or more
function Optimizer:step()
  util.check(type(self.lr) == "number" and self.lr >= 0, "%s: lr must be a number, 0 or more, got %s", self.where,
    tostring(self.lr))
  local keys, lists = {}, {}
  for _, e in ipairs(self.entries) do
    local grad = gradient(e.param)
    if grad then
      local key = table.concat({ e.steps, e.ratio, e.weight_decay, e.param:dtype(), e.param:device() }, " ")
      if not lists[key] then keys[#keys + 1], lists[key] = key, { entries = {}, grads = {} } end
      local list = lists[key]
      list.entries[#list.entries + 1] = e
      list.grads[#list.grads + 1] = grad
    end
  end
  pg.no_grad(function()
    for _, key in ipairs(keys) do
      local entries, tensors = lists[key].entries, {}
      for _, e in ipairs(entries) do tensors[#tensors + 1] = e.param end
      for _, grad in ipairs(lists[key].grads) do tensors[#tensors + 1] = grad end
      for _, name in ipairs(self.buffers) do
        for _, e in ipairs(entries) do tensors[#tensors + 1] = e[name] end
      end
      self.apply(tensors, self.lr * entries[1].ratio, entries[1], self.options)
      for _, e in ipairs(entries) do e.steps = e.steps + 1 end
    end
  end)
end

--- What a checkpoint needs. The tensors are the optimiser's own; write them out, or clone them, before the next step.
-- @return {tensors = {name = tensor}, scalars = {lr =, steps = list}}
function Optimizer:state()
  local state = { tensors = {}, scalars = { lr = self.lr, steps = {} } }
  for i, e in ipairs(self.entries) do
    state.scalars.steps[i] = e.steps
    for _, name in ipairs(self.buffers) do state.tensors[name .. "." .. i] = e[name] end
  end
  return state
end

--- Puts a state back; the next step is then, bit for bit, the one that would have followed.
-- @param state  as opt:state() gave it, or the same read from a file
-- @raises when the state is of another parameter list; the optimiser is then unchanged
function Optimizer:restore(state)
  local steps = util.check(type(state) == "table" and state.scalars and state.tensors and state.scalars.steps,
    "%s: restore needs what state() returned", self.where)
  util.check(#steps == #self.entries, "%s: the state is of %d parameters, this optimiser has %d", self.where, #steps,
    #self.entries)
  for i, e in ipairs(self.entries) do
    for _, name in ipairs(self.buffers) do
      local source = util.check(state.tensors[name .. "." .. i], "%s: the state lacks '%s.%d'", self.where, name, i)
      local have, want = table.concat(source:shape(), ", "), table.concat(e[name]:shape(), ", ")
      util.check(have == want, "%s: the state's '%s.%d' is (%s), the parameter (%s)", self.where, name, i, have, want)
    end
  end
  for i, e in ipairs(self.entries) do
    e.steps = steps[i]
    for _, name in ipairs(self.buffers) do e[name]:copy_(state.tensors[name .. "." .. i]) end
  end
  self.lr = state.scalars.lr
end

--- Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101; docs/method.md, section 7). A group's own
-- lr keeps its ratio to the optimiser's, so that a schedule on opt.lr moves every group.
-- @param params   tensors that require grad, or groups {params =, lr =, weight_decay =}
-- @param options  {lr = 1e-3, betas = {0.9, 0.999}, eps = 1e-8, weight_decay = 0.01}
-- @return an optimiser: opt.lr is assignable; opt:step(), opt:zero_grad(), opt:state(), opt:restore(state)
-- @raises on an empty list, on a parameter that does not require grad or was computed
function optim.AdamW(params, options)
  options = util.options("optim.AdamW", options, { lr = 1e-3, betas = { 0.9, 0.999 }, eps = 1e-8, weight_decay = 0.01 })
  util.check(type(options.betas) == "table" and #options.betas == 2, "optim.AdamW: betas must be a list of two numbers")
  local self = build("optim.AdamW", params, options, { "m", "v" })
  function self.apply(tensors, lr, entry, o)
    pg.adamw_(tensors, { lr = lr, beta1 = o.betas[1], beta2 = o.betas[2], eps = o.eps, weight_decay = entry.weight_decay,
      step = entry.steps + 1 })
  end
  return self
end

--- Stochastic gradient descent with momentum; the decay is added to the gradient.
-- @param params   as optim.AdamW
-- @param options  {lr = 1e-2, momentum = 0, weight_decay = 0}
-- @return an optimiser, as optim.AdamW
function optim.SGD(params, options)
  options = util.options("optim.SGD", options, { lr = 1e-2, momentum = 0, weight_decay = 0 })
  local self = build("optim.SGD", params, options, { "momentum" })
  function self.apply(tensors, lr, entry, o)
    pg.sgd_(tensors, { lr = lr, momentum = o.momentum, weight_decay = entry.weight_decay, first = entry.steps == 0 })
  end
  return self
end

--- Scales the gradients of `params` in place by min(1, max_norm / (norm + 1e-6)), so that their joint 2-norm is at most
-- `max_norm`.
-- @param params    list of tensors; those without a gradient count nothing
-- @param max_norm  number above 0
-- @return the norm before, a number; one that is not finite scales nothing
function optim.clip_grad_norm(params, max_norm)
  util.check(type(params) == "table", "optim.clip_grad_norm: expected a list of parameters, got %s", type(params))
  local grads = {}
  for _, p in ipairs(params) do grads[#grads + 1] = gradient(p) end
  if #grads == 0 then return 0 end
  return pg.no_grad(function() return pg.clip_grad_norm_(grads, { max_norm = max_norm }) end):item()
end

-- ---- schedules: functions of the step, from 1 -------------------------------------------------------------------------

--- A straight warm-up, then half a cosine down to `final` (docs/method.md, section 2.2):
--   t <= warmup:  base t / warmup;   then  final + (base - final) (1 + cos(pi (t - 1 - warmup) / (steps - warmup))) / 2
-- Step warmup + 1 has the full rate; a run never spends a step at exactly `final`.
-- @param options  {base = rate, steps = total, warmup = 0, final = 0}
-- @return function(step) -> rate
function optim.cosine(options)
  local o = util.options("optim.cosine", options, { base = util.none, steps = util.none, warmup = 0, final = 0 })
  util.check(type(o.base) == "number" and type(o.steps) == "number", "optim.cosine: needs base and steps")
  util.check(o.warmup >= 0 and o.warmup <= o.steps, "optim.cosine: a warm-up of %g steps does not fit in %g", o.warmup, o.steps)
  return function(step)
    if step <= o.warmup then return o.base * step / o.warmup end
    local part = math.min(1, (step - 1 - o.warmup) / math.max(1, o.steps - o.warmup))
    return o.final + (o.base - o.final) * 0.5 * (1 + math.cos(math.pi * part))
  end
end

--- The same rate at every step.
-- @param options  the rate, or {base = rate}
-- @return function(step) -> rate
function optim.constant(options)
  local base = type(options) == "table" and options.base or options
  util.check(type(base) == "number", "optim.constant: needs the rate")
  return function() return base end
end

return optim
