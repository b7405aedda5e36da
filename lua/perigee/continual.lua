-- continual.lua - learning tasks one after the other: an encoder that is carried over, a head a task, and a method that
-- keeps what was learnt.
--
-- A method is a file of the folder continual, anywhere on package.path: writing it is all that adding one takes. It
-- returns {help = one line, source = paper, options = list (regularize.lua), new = function(learner, options) ->
-- hooks}. A hook that is not there does what naive fine-tuning does:
--
--   begin()           before a task: learner.t is its number, .task itself, .reference the model before it
--   images(t)         list of {task's number, positions or nil} to train on         (default: all images of task t)
--   groups(lr)        parameter groups for the optimiser                            (encoder and heads, at lr)
--   encode(images, before) -> features (B, D), maps at hooks.depths                 (the encoder)
--   task_loss(batch)  -> scalar                                                     (cross-entropy; continual.logits)
--   penalty(batch)    -> scalar or nil, added to it
--   step(number)      after an optimiser's step
--   finish()          after a task
--   scores(features, first, last) -> (N, classes of tasks first..last), or nil      (the heads)
--
-- hooks.modules (name -> module) are saved with the learner, as is what a method puts into learner.kept (name ->
-- tensor) and learner.notes (plain data). wants_reference = true asks for the frozen model before the task; all_heads =
-- true trains the heads of earlier tasks too where each task has its own.
--
-- batch: {images (B, C, S, S), labels (B) that run through the sequence, positions, features (B, D), tokens = maps,
-- before = (B, D) pre-trained features}.

local util = require "perigee.util"
local pg = require "perigee"
local nn = require "perigee.nn"

local registry = require("perigee.registry").new "continual"
local continual, Learner = {}, {}
Learner.__index = Learner

-- ---- methods are files ---------------------------------------------------------------------------------------------

--- The names that continual.new takes: every file perigee/continual/NAME.lua on package.path. @return a sorted list
function continual.names() return registry.names() end

--- What a method can be told. @param name a method @return a list, as regularize.options gives it
-- @raises on an unknown method, naming the nearest
function continual.options(name) return registry.options(name) end

--- One line about a method, and where it comes from. @param name a method @return two strings
function continual.help(name) return registry.known(name).help, registry.known(name).source end

--- The start of the head that a method is made for: "text", "random", or nil where any does.
-- @param name  a method
-- @return text or nil
function continual.head(name) return registry.known(name).head end

--- As regularize.recipe_options. @param names, except as there @return a list for pg.recipe
function continual.recipe_options(names, except) return registry.recipe_options(names, except) end

--- As regularize.pick. @param name, opt as there @return a table of options for continual.new
function continual.pick(name, opt) return registry.pick(name, opt) end

-- The parts of "slca+proxy_fda:3": the method, FDA's name or nil, a weight or nil, which is FDA's where it is added.
local function entry_of(text)
  local name, plug, weight = tostring(text):match "^([^:+]*)%+?([^:]*):?(.*)$"
  local method = registry.known(name)
  local takes = plug ~= ""
  for _, option in ipairs(method.options) do
    takes = takes or option[1] == "weight"
    util.check(plug == "" or option[1] ~= "reference", "continual: %s is a regulariser itself, got %s", name, text)
  end
  util.check(plug == "" or plug == "fda" or plug == "proxy_fda",
    "continual: '+%s' cannot be added (did you mean '+%s'?)", plug, util.nearest(plug, { "fda", "proxy_fda" }))
  util.check(weight == "" or takes, "continual: %s takes no weight, got %s", name, text)
  util.check(weight == "" or tonumber(weight), "continual: the weight of %s is not a number", text)
  return name, plug ~= "" and plug or nil, tonumber(weight)
end

--- What a run does, one method after the other.
-- @param text  comma-separated methods, with +fda or +proxy_fda where it is to be added, each with a weight where it is
--   wanted, as in "naive,fda:10,slca+proxy_fda:3"
-- @return a list of {method, plug = "fda", "proxy_fda" or nil, title = as it was written, weight or nil: of the plug
--   where there is one}
-- @raises on an unknown method, naming the nearest; on a weight that is no number or that the method does not take
function continual.plan(text)
  local plan = {}
  for entry in text:gmatch "[^,%s]+" do
    local name, plug, weight = entry_of(entry)
    plan[#plan + 1] = { method = name, plug = plug, title = entry, weight = weight }
  end
  util.check(#plan > 0, "continual: method names nothing")
  return plan
end

--- An option of methods that leave the task's loss to the learner: what one growing head is trained on. Over all
-- classes so far, cross-entropy pushes down the logits of old classes, of which no image comes any more, until none is
-- answered; over the task's own classes it leaves them alone. Where each task has a head, both are the same.
-- @param default  "all" or "current"
-- @return an option
function continual.logits(default)
  return { "logits", default, choices = { "all", "current" },
    help = "one growing head: the cross-entropy is over all classes so far, or over the task's" }
end

--- The method that adds a regulariser to the task's loss; its reference is the model before the task, as in LDIFS'
-- code, or the pre-trained one.
-- @param name    a regulariser
-- @param weight  its default here, which is not that of fine-tuning on one task
-- @return a method, for a file of the folder continual
function continual.regularized(name, weight)
  local help, source = pg.regularize.help(name)
  local method = { help = help, source = source, options = {
    { "reference", "previous", choices = { "previous", "pretrained" }, help = "the model that is kept to" },
    continual.logits "current" } }
  for _, option in ipairs(pg.regularize.options(name)) do
    if option[1] == "weight" then option[2] = weight end
    if option[1] ~= "batch" and option[1] ~= "dim" then table.insert(method.options, option) end
  end
  function method.new(learner, o)
    local hooks, settings = { wants_reference = o.reference == "previous" }, {}
    for key, value in pairs(o) do
      if key ~= "reference" and key ~= "logits" then settings[key] = value end
    end
    function hooks.begin()
      local reference = o.reference == "previous" and learner.reference.model or learner.pretrained
      if name == "proxy_fda" then settings.batch = learner.batch end
      hooks.regularizer = pg.regularize.new(name, reference, settings)
      hooks.depths, hooks.modules = hooks.regularizer.depths, { regularizer = hooks.regularizer }
      local moved = o.reference == "previous" and learner.t > 1
      hooks.before = moved and not hooks.depths and learner:features(reference) or nil
    end
    function hooks.penalty(batch)
      local before = hooks.before and hooks.before:index(1, batch.positions) or batch.before
      if hooks.depths then before = nil end -- maps, by a pass of the reference
      return hooks.regularizer.loss { model = learner.model, images = batch.images, features = batch.features,
        tokens = batch.tokens, before = before }
    end
    function hooks.step() hooks.regularizer.step() end
    return hooks
  end
  return method
end

-- ---- the heads -----------------------------------------------------------------------------------------------------

local Heads = nn.class "Heads" -- self[t] is the head of task t

--- The logits of some heads side by side. @param features (B, D) @param first, last tasks @return (B, their classes)
function Heads:forward(features, first, last)
  local list = {}
  for t = first or 1, last or #self do list[#list + 1] = self[t](features) end
  return #list > 1 and pg.cat(list, 2) or list[1]
end

-- ---- a learner -----------------------------------------------------------------------------------------------------

-- The hooks of a method with those of a regulariser added.
local function plugged(name, base, plug)
  local hooks = setmetatable({ wants_reference = base.wants_reference or plug.wants_reference }, { __index = base })
  function hooks.begin()
    if base.begin then base.begin() end
    plug.begin()
    util.check(not (plug.depths and base.encode),
      "continual: %s has a way of its own through the blocks: what is added takes depths=final", name)
    hooks.depths, hooks.modules = plug.depths, { plug = plug.modules.regularizer }
    for key, module in pairs(base.modules or {}) do hooks.modules[key] = module end
  end
  function hooks.penalty(batch)
    local own, kept = base.penalty and base.penalty(batch), plug.penalty(batch)
    return own and own + kept or kept
  end
  function hooks.step(number)
    if base.step then base.step(number) end
    plug.step()
  end
  return hooks
end

--- Makes a learner; continual.NAME(spec, options) is the same.
-- @param text     a method, such as "slca"; "slca+proxy_fda" adds Proxy-FDA to its loss, "slca+fda:3" FDA with a weight
-- @param spec     {model = the encoder, which is trained, pretrained = the same, frozen, tasks = from pg.data.sequence,
--   head = function(task, features of its images or a function that gives them) -> module, the head of a task;
--   zero_shot = true: heads need no images, so that tasks to come can be tested; classes = 16, per_class = 4 a batch;
--   clip, tokenizer = of the pre-trained model, for methods that use its text tower}
-- @param options  as continual.options(name) lists them; fda = options of what is added
-- @return a learner: :begin(t), :loss() -> scalar, its terms by name, :step(number), :finish(), :evaluate() -> the row
--   R[t]; :groups(lr) for the optimiser, .sampler, :state(), :restore(state); .settings holds every option's value
-- @raises on an unknown method or option, naming the nearest, and on a value out of range
function continual.new(text, spec, options)
  local name, plug, weight = entry_of(text)
  local given = {}
  for key, value in pairs(options or {}) do given[key] = value end
  local added = given.fda or {}
  given.fda = nil
  if not plug and weight then given.weight = weight end
  local settings = registry.settle(name, given)
  local o = util.options("continual", spec, { model = util.none, pretrained = util.none, tasks = util.none,
    head = util.none, zero_shot = false, classes = 16, per_class = 4, clip = util.none, tokenizer = util.none })
  for _, key in ipairs { "model", "pretrained", "tasks", "head" } do util.check(o[key], "continual: needs %s", key) end
  local self = setmetatable({ name = name, settings = settings, model = o.model, pretrained = o.pretrained,
    tasks = o.tasks, setting = o.tasks.setting, make_head = o.head, zero_shot = o.zero_shot and {}, heads = Heads(),
    kept = {}, notes = {}, t = 0, seen = {},
    wanted = { classes = o.classes, per_class = o.per_class }, clip = o.clip, tokenizer = o.tokenizer }, Learner)
  self.hooks = registry.known(name).new(self, settings)
  if plug then
    local own = { weight = weight }
    for key, value in pairs(added) do own[key] = value end
    settings.fda = registry.settle(plug, own)
    self.hooks = plugged(name, self.hooks, registry.known(plug).new(self, settings.fda))
  end
  return self
end

setmetatable(continual, { __index = function(_, name)
  return registry.find(name) and function(spec, options) return continual.new(name, spec, options) end
end })

local function encoder(model)
  return function(images) return (model:forward_features(pg.models.pixels(model, images))) end
end

-- The pre-trained features of a task's training images, computed once.
local function seen(self, i)
  self.seen[i] = self.seen[i] or pg.metrics.encode(encoder(self.pretrained), self.tasks[i].train.images)
  return self.seen[i]
end

-- What the method trains on: images, labels, their pre-trained features, and the batches of them.
local function gather(self)
  local images, labels, before = {}, {}, {}
  for _, part in ipairs(self.hooks.images and self.hooks.images(self.t) or { { self.t } }) do
    local set, features, index = self.tasks[part[1]].train, seen(self, part[1]), part[2]
    if index then index = pg.tensor(index, { dtype = "int32" }):to(set.labels:device()) end
    images[#images + 1] = index and set.images:index(1, index) or set.images
    labels[#labels + 1] = index and set.labels:index(1, index) or set.labels
    before[#before + 1] = index and features:index(1, index) or features
  end
  self.train = { images = pg.cat(images, 1), labels = pg.cat(labels, 1), before = pg.cat(before, 1) }
  self.sampler = pg.fda.HardClassSampler { labels = self.train.labels, features = self.train.before,
    classes = self.wanted.classes, per_class = self.wanted.per_class }
  self.batch = self.sampler.classes * self.sampler.per_class
end

-- Of which task a class is, and a mask that leaves a row the classes of its own task alone.
local function mask_of(self)
  local owner, rows = {}, {}
  for t = 1, self.t do
    for _ = 1, #self.tasks[t].classes do owner[#owner + 1] = t end
  end
  for a = 1, #owner do
    rows[a] = {}
    for b = 1, #owner do rows[a][b] = owner[a] == owner[b] and 0 or -1e9 end
  end
  return pg.tensor(rows):to(self.train.labels:device())
end

-- The head of task t as it starts.
local function new_head(self, t)
  if self.zero_shot then return self:unseen_head(t) end
  return self.make_head(self.tasks[t], function()
    return pg.metrics.encode(self:encoder(), self.tasks[t].train.images)
  end)
end

--- Begins task t: its head, the images to train on, and what the method prepares.
-- @param t  its number
function Learner:begin(t)
  self.t, self.task = t, self.tasks[t]
  if self.hooks.wants_reference then
    self.reference = { model = self.model:frozen(), heads = self.heads:frozen() }
  end
  self.heads[t] = new_head(self, t)
  gather(self)
  self.mask = self.setting == "tasks" and mask_of(self) or nil
  if self.hooks.begin then self.hooks.begin() end
end

--- The head that task t starts from, where it needs no images. @param t its number @return a module
function Learner:unseen_head(t)
  self.zero_shot[t] = self.zero_shot[t] or self.make_head(self.tasks[t])
  return self.zero_shot[t]:frozen():requires_grad_(true)
end

--- Features of everything that is trained on. @param model an encoder @return (N, D)
function Learner:features(model) return pg.metrics.encode(encoder(model), self.train.images) end

--- The model as it is tested. @return function: uint8 (N, H, W, 3) -> (N, D)
function Learner:encoder()
  local encode = self.hooks.encode
  return function(images)
    local x = pg.models.pixels(self.model, images)
    return (encode and encode(x, (self.pretrained(x))) or (self.model:forward_features(x)))
  end
end

--- Logits of the heads so far; where each task has its own head, other tasks' classes are put out of reach.
-- @param features  (B, D)
-- @param labels    (B) that run through the sequence
-- @return (B, classes so far)
function Learner:logits(features, labels)
  local logits = self.heads(features)
  return self.mask and logits + self.mask:to(logits:dtype()):index(1, labels) or logits
end

--- Cross-entropy over the classes of the current task alone. @param batch as above @param options of pg.cross_entropy
-- @return a scalar
function Learner:current_loss(batch, options)
  return pg.cross_entropy(self.heads[self.t](batch.features), batch.labels - self.task.first, options)
end

--- The encoder and the heads that a task trains. @param lr the rate @return a list of groups for an optimiser
function Learner:groups(lr)
  return self.hooks.groups and self.hooks.groups(lr) or { { params = self.model:parameters() },
    { params = self:head_parameters() } }
end

--- The parameters of the heads that learn now. @return a list of tensors
function Learner:head_parameters()
  local all = self.setting == "classes" or self.hooks.all_heads
  return (all and self.heads or self.heads[self.t]):parameters()
end

--- The loss of the next batch.
-- @return a scalar, and {task_loss =, kept = the method's own or nil}
function Learner:loss()
  local positions = self.sampler:next():to(self.train.labels:device())
  local batch = { positions = positions, images = pg.models.pixels(self.model, self.train.images:index(1, positions)),
    labels = self.train.labels:index(1, positions), before = self.train.before:index(1, positions) }
  return self:loss_of(batch)
end

--- The loss of a batch whose images and labels are there.
-- @param batch  as above, without features
-- @return as :loss()
function Learner:loss_of(batch)
  local hooks = self.hooks
  if hooks.encode then batch.features, batch.tokens = hooks.encode(batch.images, batch.before, batch)
  else batch.features, batch.tokens = self.model:forward_features(batch.images, hooks.depths) end
  local task_loss = hooks.task_loss and hooks.task_loss(batch)
    or self.settings.logits == "current" and self:current_loss(batch)
    or pg.cross_entropy(self:logits(batch.features, batch.labels), batch.labels)
  local kept = hooks.penalty and hooks.penalty(batch) or nil
  return kept and task_loss + kept or task_loss, { task_loss = task_loss, kept = kept }
end

--- After the optimiser's step. @param number of it, from 1
function Learner:step(number)
  if self.hooks.step then self.hooks.step(number) end
end

--- Ends a task.
function Learner:finish()
  if self.hooks.finish then self.hooks.finish() end
end

-- ---- tests ---------------------------------------------------------------------------------------------------------

-- Scores of features for the classes of tasks first..last; those to come by their zero-shot heads, or nil.
local function scores(self, features, first, last)
  if self.hooks.scores then return self.hooks.scores(features, first, last) end
  if last > self.t and not self.zero_shot then return nil end
  local list = {}
  for t = first, last do
    list[#list + 1] = t <= self.t and self.heads[t](features) or self:unseen_head(t)(features)
  end
  return pg.cat(list, 2)
end

--- The row R[t] after task t: the accuracy on every task's test images. Where each task has a head, among its own
-- classes; else among all classes so far, and those of the task itself and before it where it is still to come.
-- @param options  {probe = nil: steps of a linear probe that takes the heads' place, trained on the task's images}
-- @return a list of shares, of all tasks, or of those so far where the others cannot be tested
function Learner:evaluate(options)
  local o, row, encode = util.options("evaluate", options, { probe = util.none }), {}, self:encoder()
  for i, task in ipairs(self.tasks) do
    local features = pg.metrics.encode(encode, task.test.images)
    local first = self.setting == "tasks" and i or 1
    local last = self.setting == "tasks" and i or math.max(i, self.t)
    if o.probe then
      local kept = pg.rng_state()
      pg.seed(i)
      row[i] = pg.metrics.linear_probe(pg.metrics.encode(encode, task.train.images), task.train.labels - task.first,
        features, task.test.labels - task.first, { steps = o.probe, lrs = { 0.1 } })
      pg.rng_state(kept)
    else
      local found = pg.no_grad(function() return scores(self, features, first, last) end)
      if not found then break end
      row[i] = pg.metrics.accuracy(found, task.test.labels - self.tasks[first].first)
    end
  end
  return row
end

-- ---- checkpoints ---------------------------------------------------------------------------------------------------

-- Everything with tensors of its own, by the name that it is saved under.
local function parts_of(self)
  local parts = { model = self.model, heads = self.heads }
  if self.reference then
    parts.reference_model, parts.reference_heads = self.reference.model, self.reference.heads
  end
  for name, module in pairs(self.hooks.modules or {}) do parts["own_" .. name] = module end
  return parts
end

--- What a checkpoint needs, the optimiser and the sampler aside. The tensors are the learner's own.
-- @return {tensors = name -> tensor, scalars = plain data}
function Learner:state()
  local state = { tensors = {}, scalars = { t = self.t, notes = self.notes, own = {} } }
  for name, part in pairs(parts_of(self)) do
    local inner = part.state_dict and { tensors = part:state_dict() } or part:state()
    for key, t in pairs(inner.tensors) do state.tensors[name .. "." .. key] = t end
    state.scalars.own[name] = inner.scalars
  end
  for key, t in pairs(self.kept) do state.tensors["kept." .. key] = t end
  return state
end

--- Goes on in the middle of a task; optimiser and sampler are made and restored afterwards.
-- @param state  what :state() gave, as saved:part gives it back
function Learner:restore(state)
  local function part(prefix)
    local tensors = {}
    for key, t in pairs(state.tensors) do
      if key:sub(1, #prefix + 1) == prefix .. "." then tensors[key:sub(#prefix + 2)] = t end
    end
    return tensors
  end
  self.notes = state.scalars.notes
  for key, t in pairs(part "kept") do self.kept[key] = t:clone() end
  for t = 1, state.scalars.t - 1 do self.heads[t] = new_head(self, t) end
  local reference = part "reference_model"
  if next(reference) then self.model:load_state_dict(reference) end -- the model as the task began with it
  if next(part "reference_heads") then self.heads:load_state_dict(part "reference_heads") end
  self:begin(state.scalars.t)
  for name, object in pairs(parts_of(self)) do
    if object.load_state_dict then object:load_state_dict(part(name))
    else object:restore { tensors = part(name), scalars = state.scalars.own[name] } end
  end
end

return continual
