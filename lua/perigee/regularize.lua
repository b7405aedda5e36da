-- regularize.lua - what fine-tuning may add to its loss so that it forgets less. Every method has one interface: made from
-- the pre-trained model and options, called once a batch, it returns a scalar (already weighted) or nil.
--
-- A method is a file of the folder regularize, anywhere on package.path: writing it is all that adding one takes. It
-- returns {help = one line, source = paper, options = list, new = function(pretrained, options) -> regulariser}. An option
-- is {name, default, help =, min =, max =, choices =, real = true, or_number = true, object = "what", required = true}, as
-- pg.recipe declares them: a whole default means whole numbers unless `real`; `or_number` lets a number stand in place of
-- the word; `object` is something that has no text (a module, an iterator).
--
-- A batch is {model, images, features (B, D), tokens = maps (B, T, D) at the regulariser's `depths`}, and may bring what
-- the pre-trained model says of it: before = (B, D) final features, or a list of maps, one a depth, which saves a pass.

local util = require "perigee.util"

local regularize = {}
local function pg() return require "perigee" end
local registry = require("perigee.registry").new "regularize"

-- ---- methods are files -------------------------------------------------------------------------------------------------

--- The names that regularize.new takes: every file perigee/regularize/NAME.lua on package.path. @return a sorted list
function regularize.names() return registry.names() end

-- regularize.NAME(pretrained, options) is regularize.new("NAME", pretrained, options).
setmetatable(regularize, { __index = function(_, name)
  return registry.find(name) and function(pretrained, options) return regularize.new(name, pretrained, options) end
end })

--- What a method can be told, for a recipe to show.
-- @param name  a method
-- @return a list of {name, default, help =, min =, max =, choices =, ...}
-- @raises on an unknown method, naming the nearest
function regularize.options(name) return registry.options(name) end

--- One line about a method, and where it comes from. @param name a method @return two strings
function regularize.help(name) return registry.known(name).help, registry.known(name).source end

--- The options of several methods in one list, for a recipe to declare; where methods differ in a default it is "own",
-- which is each method's own. Objects, which have no text, are left out.
-- @param names   list of methods
-- @param except  set of option names that the recipe gives itself, or nil
-- @return a list, as pg.recipe takes it
function regularize.recipe_options(names, except) return registry.recipe_options(names, except) end

--- What of a recipe's options a method takes; "own" is left to its default.
-- @param name  a method
-- @param opt   what pg.recipe returned
-- @return a table of options for regularize.new
function regularize.pick(name, opt) return registry.pick(name, opt) end

-- ---- a regulariser -----------------------------------------------------------------------------------------------------

--- Makes a regulariser by name; pg.regularize.NAME(pretrained, options) is the same.
-- @param name        a method
-- @param pretrained  a frozen model; it is never changed
-- @param options     table, as regularize.options(name) lists them
-- @return {name, settings = every option's value, loss = function(batch) -> scalar or nil, step = function() after the
--          optimiser's step, depths = list of the token maps that it wants or nil, modules = {generator =, scale =} and
--          optimizer where it trains something itself, :state() -> {tensors, scalars}, :restore(state)}
-- @raises on an unknown method or option, naming the nearest, and on a value out of range
function regularize.new(name, pretrained, options)
  local method = registry.known(name)
  local settings = registry.settle(name, options)
  util.check(#method.options == 0 or type(pretrained) == "table" and pretrained.parameters,
    "regularize: %s needs the pre-trained model, got %s", name, type(pretrained))
  local self = method.new(pretrained, settings)
  self.name, self.settings, self.modules = name, settings, self.modules or {}
  self.step = self.step or function() end

  -- The tensors are its own; write them out, or clone them, before the next step.
  function self.state(_)
    local state = { tensors = {}, scalars = {} }
    for prefix, module in pairs(self.modules) do
      for key, t in pairs(module:state_dict()) do state.tensors[prefix .. "." .. key] = t end
    end
    if self.optimizer then
      local inner = self.optimizer:state()
      for key, t in pairs(inner.tensors) do state.tensors["optimizer." .. key] = t end
      state.scalars = inner.scalars
    end
    return state
  end

  function self.restore(_, state)
    local function part(prefix)
      local tensors = {}
      for key, t in pairs(state.tensors) do
        if key:sub(1, #prefix + 1) == prefix .. "." then tensors[key:sub(#prefix + 2)] = t end
      end
      return tensors
    end
    for prefix, module in pairs(self.modules) do module:load_state_dict(part(prefix)) end
    if self.optimizer then self.optimizer:restore { tensors = part "optimizer", scalars = state.scalars } end
  end
  return self
end

-- ---- what methods share ------------------------------------------------------------------------------------------------

local function field(where, batch, name, what)
  util.check(type(batch) == "table", "%s: loss takes a batch, a table, got %s", where, type(batch))
  return util.check(batch[name], "%s: batch.%s is missing: %s", where, name, what)
end

--- batch.features, for a method's own use.
-- @param where  the method, for messages
-- @param batch  what loss was given
-- @return (B, D)
-- @raises one line about what is missing
function regularize.features(where, batch)
  local x = field(where, batch, "features", "the current model's features (B, D)")
  util.check(pg().is_tensor(x) and x:dim() == 2, "%s: batch.features must be a tensor (B, D)", where)
  return x
end

local function same_shape(where, got, like, what)
  local a, b = pg().is_tensor(got) and table.concat(got:shape(), ", ") or type(got), table.concat(like:shape(), ", ")
  util.check(a == b, "%s: %s is (%s), the current model's (%s)", where, what, a, b)
  return got:detach()
end

--- The pre-trained final features of a batch: batch.before, or a pass of the frozen model.
-- @param where, pretrained, batch  as above
-- @return (B, D), detached
-- @raises on another shape than that of batch.features
function regularize.before(where, pretrained, batch)
  local features, before = regularize.features(where, batch), batch.before
  if not before then
    local images = field(where, batch, "images", "(B, C, H, W), or batch.before, the pre-trained features of them")
    before = pg().no_grad(function() return pretrained(images) end)
  end
  return same_shape(where, before, features, "batch.before")
end

--- The token maps at `depths`: of the current model (batch.tokens), and of the pre-trained one (batch.before, a list, or
-- a pass of it).
-- @param where, pretrained, batch  as above
-- @param depths                    list of blocks
-- @return two lists of (B, T, D), the second detached
-- @raises when maps are missing or differ in number or shape
function regularize.maps(where, pretrained, batch, depths)
  local at = "{" .. table.concat(depths, ", ") .. "}"
  local tokens, before = field(where, batch, "tokens", "token maps at the depths " .. at
    .. ", as model:forward_features(images, regularizer.depths) returns them"), batch.before
  util.check(type(tokens) == "table" and #tokens == #depths, "%s: batch.tokens holds %s maps, the depths are %s", where,
    type(tokens) == "table" and #tokens or "no", at)
  if not before then
    local images = field(where, batch, "images", "(B, C, H, W), or batch.before, the pre-trained maps of them")
    local _, maps = pg().no_grad(function() return pretrained:forward_features(images, depths) end)
    before = maps
  end
  util.check(type(before) == "table" and #before == #depths, "%s: batch.before must be a list of maps at the depths %s",
    where, at)
  local list = {}
  for i, map in ipairs(tokens) do list[i] = same_shape(where, before[i], map, "batch.before[" .. i .. "]") end
  return tokens, list
end

--- Depths as a method's option gives them.
-- @param where       the method, for messages
-- @param value       a list, "all", or text such as "2,4,6"
-- @param pretrained  the model, for its depth
-- @param first       the least depth allowed: 0 is the embedding
-- @return a list of numbers
-- @raises on a depth that does not exist
function regularize.depths(where, value, pretrained, first)
  local deepest, list = pretrained.depth, {}
  if value == "all" then
    for depth = first, deepest do list[#list + 1] = depth end
    return list
  end
  if type(value) == "table" then list = value
  else
    for word in value:gmatch "[^,%s]+" do list[#list + 1] = tonumber(word) or word end
  end
  util.check(#list > 0, "%s: depths is empty", where)
  for _, depth in ipairs(list) do
    util.check(type(depth) == "number" and depth % 1 == 0 and depth >= first and depth <= deepest,
      "%s: depth %s does not exist here: they run from %d to %d", where, tostring(depth), first, deepest)
  end
  return list
end

--- Parameters of batch.model beside the list that was kept of the pre-trained model's.
-- @param where, batch  as above
-- @param start         what was kept, a list
-- @return a list of the same length
-- @raises when there is no model, or one of another number of parameters
function regularize.parameters(where, batch, start)
  local parameters = field(where, batch, "model", "the encoder that is fine-tuned"):parameters()
  util.check(#parameters == #start, "%s: batch.model has %d parameters, the pre-trained one %d", where, #parameters, #start)
  return parameters
end

return regularize
