-- few_shot.lua - CLIP adapted from a few images a class, by learnt prompts, adapters or a fine-tuned image tower. Every
-- method has one interface, made from a task and options; `+fda` and `+proxy_fda` behind its name add those losses.
--
-- A method is a file of the folder few_shot, anywhere on package.path: writing it is all that adding one takes. It
-- returns {help = one line, source = paper, options = list (registry.lua), training = nil where nothing is trained, else
-- {optimizer = "SGD" or "AdamW", lr =, batch =, epochs =, weight_decay =, eps =, schedule = "epoch", "step" or
-- "constant", fine_tunes = true where the tower's own weights are trained}, tower = true where what is trained acts
-- inside the image tower, so that image features are not known in advance, new = function(task, options) -> learner}.
-- A learner is a table:
--   module                 what is trained, a module
--   classes(names, prompt) what it makes of names now: a class set, made anew after training steps
--   logits(batch, set)     (B, C) float
--   loss(batch)            a scalar; the features that training moves, (R, D), and the same before, detached: what FDA
--                          holds together. They are the batch's images where the tower moves, else the classes' texts
--   rows                   R, where it is not the batch's number of images
--   backward(loss)         instead of loss:backward(), where gradients are no gradient of one loss
--   step(t, steps)         after an optimiser step, epoch(e, epochs) after an epoch, finish() after the last one: where
--                          weights are averaged
--   kept                   a module of what these hold, for checkpoints
-- Any but module, classes and logits may be left out. A batch is {features = (B, D) of the frozen tower, images = float
-- (B, 3, S, S) where `tower`, labels}.

local util = require "perigee.util"
local pg = require "perigee"
local registry = require("perigee.registry").new "few_shot"

local few_shot, Task = {}, {}
Task.__index = Task

-- ---- a task ---------------------------------------------------------------------------------------------------------

local function check_names(classes, where)
  util.check(type(classes) == "table" and #classes > 0, "%s: classes must be a list of names", where)
  local last = 0
  for c in pairs(classes) do last = math.max(last, c) end
  for c = 1, last do
    util.check(type(classes[c]) == "string" and classes[c]:find "%S", "%s: class %d has no name", where, c)
  end
end

--- What methods learn from: a CLIP, which is frozen, and labelled images of named classes.
-- @param options {clip = from pg.models, tokenizer, classes = names, prompt = "a photo of a {}", images = uint8
--   (N, S, S, 3), labels = int32 (N) from 1, val = nil or {images, labels} for what is chosen by validation, templates
--   = list of sentences with {} for methods that average many, pixels = function: uint8 images -> the tower's float
--   input, by pg.models.pixels if not given; or features = (N, D) in place of images, of the frozen tower}
-- @return {clip, tokenizer, classes, prompt, templates, images, labels, features = (N, D) of length one, texts = (C, D)
--   zero-shot class vectors, scale = exp(logit_scale)}, and the methods below
-- @raises one line on a class without a name, on a label without a class, on a model without a text tower
function few_shot.task(options)
  local o = util.options("few_shot.task", options, { clip = util.none, tokenizer = util.none, classes = util.none,
    prompt = "a photo of a {}", images = util.none, labels = util.none, val = util.none, features = util.none,
    templates = require("perigee.data.templates").list, pixels = util.none })
  util.check(pg.nn.is_module(o.clip) and o.clip.encode_text and o.tokenizer,
    "few_shot.task: needs a model with a text tower and its tokenizer, such as recipes/clip_small")
  check_names(o.classes, "few_shot.task")
  local self = setmetatable(o, Task)
  self.clip:requires_grad_(false)
  self.pixels = self.pixels or function(images) return pg.models.pixels(self.clip, images) end
  self.features = self.features and self.features:detach():normalize() or self:encode(self.images)
  util.check(self.labels:numel() == self.features:size(1), "few_shot.task: %d labels for %d images",
    self.labels:numel(), self.features:size(1))
  local least, most = self.labels:min():item(), self.labels:max():item()
  util.check(least >= 1 and most <= #self.classes, "few_shot.task: label %d has no name: there are %d classes",
    least < 1 and least or most, #self.classes)
  self.scale = math.exp(self.clip.logit_scale:item())
  self.texts = self:zero_shot(self.classes)
  return self
end

--- The frozen tower's features of images, of length one. @param images uint8 (N, S, S, 3) @return (N, D)
function Task:encode(images)
  return pg.metrics.encode(function(part) return self.clip:encode_image(self.pixels(part)):normalize() end, images)
end

--- Features of sentences, not of length one. @param prompt with {} @param names list @return (C, D)
-- @raises one line on a sentence that is too long for the model
function Task:sentences(prompt, names)
  check_names(names, "few_shot")
  local ids = self.tokenizer:batch(pg.data.captions.prompts(prompt, names))
  return pg.no_grad(function() return self.clip:encode_text(ids:to(self.features:device())) end)
end

--- The zero-shot class vectors. @param names list @param prompt the task's own if not given @return (C, D), length one
function Task:zero_shot(names, prompt) return self:sentences(prompt or self.prompt, names):normalize() end

--- The mean over the task's templates of text features, then of length one. @param names list @return (C, D)
function Task:ensemble(names)
  local total
  for _, template in ipairs(self.templates) do
    local features = self:sentences(template, names)
    total = total and total + features or features
  end
  return total:normalize()
end

--- exp(logit_scale) cos(image, text). @param images (B, D) of length one @param texts (C, D), alike @return (B, C)
function Task:cosines(images, texts) return images:matmul(texts:t()) * self.scale end

--- Rows for names: a name that was trained has its own row, any other the zero-shot one.
-- @param names, prompt  of a class set
-- @param rows           (C, D), one for each of the task's classes
-- @return (#names, D)
function Task:by_name(names, prompt, rows)
  local number, index = {}, {}
  for c, name in ipairs(self.classes) do number[name] = c end
  for i, name in ipairs(names) do index[i] = number[name] or #self.classes + i end
  local all = pg.cat({ rows, self:zero_shot(names, prompt) }, 1)
  return all:index(1, pg.tensor(index, { dtype = "int32", device = rows:device() }))
end

-- ---- batches --------------------------------------------------------------------------------------------------------

local Shuffled = {}
Shuffled.__index = Shuffled

-- Positions of the next batch; what is left over at the end of an epoch waits for another order.
function Shuffled:next()
  if self.position + self.size > self.n then self.epoch, self.position, self.order = self.epoch + 1, 0, nil end
  self.order = self.order or require("perigee.data.random").new(self.seed, self.epoch):permutation(self.n)
  local list = { unpack(self.order, self.position + 1, self.position + self.size) }
  self.position = self.position + self.size
  return pg.tensor(list, { dtype = "int32" })
end
function Shuffled:state() return { seed = self.seed, epoch = self.epoch, position = self.position } end
function Shuffled:restore(state)
  self.seed, self.epoch, self.position, self.order = state.seed, state.epoch, state.position, nil
end

-- Shuffled epochs; or, where FDA aligns images, batches of a few images of each class, in which every image of a class
-- stands once before one comes again (docs/method.md, section 1.2e).
local function batches_of(task, o, balanced, batch)
  if balanced then
    local sampler = pg.fda.HardClassSampler { labels = task.labels, features = task.features, classes = o.classes,
      per_class = o.per_class, seed = o.seed }
    sampler.size = sampler.classes * sampler.per_class
    return sampler
  end
  local n = task.labels:numel()
  return setmetatable({ n = n, size = math.min(batch, n), seed = o.seed, epoch = 1, position = 0 }, Shuffled)
end

-- ---- a learner ------------------------------------------------------------------------------------------------------

--- The names that few_shot.new takes: every file perigee/few_shot/NAME.lua on package.path. @return a sorted list
function few_shot.names() return registry.names() end

--- One line about a method, and where it comes from. @param name a method @return two strings
function few_shot.help(name) return registry.known(name).help, registry.known(name).source end

-- The parts of "coop+proxy_fda:3": method, FDA's name or nil, its weight or nil.
local function parts_of(text)
  local name, plug, weight = tostring(text):match "^([%w_]+)%+?([%w_]*):?(.*)$"
  name = name or tostring(text)
  local method = registry.known(name)
  if not plug or plug == "" then
    util.check(name == text, "few_shot: '%s' is no method: %s takes no weight", tostring(text), name)
    return name, method
  end
  util.check(plug == "fda" or plug == "proxy_fda", "few_shot: '+%s' cannot be added (did you mean '+%s'?)", plug,
    util.nearest(plug, { "fda", "proxy_fda" }))
  util.check(method.training, "few_shot: %s trains nothing that +%s could hold", name, plug)
  util.check(weight == "" or tonumber(weight), "few_shot: the weight of +%s must be a number, got '%s'", plug, weight)
  return name, method, plug, tonumber(weight)
end

--- What a method is. @param text such as "coop", "coop+proxy_fda", "maple+fda:3"
-- @return {name, plug = "fda", "proxy_fda" or nil, weight = or nil, help, source, training = or nil, tower}
-- @raises on an unknown method, naming the nearest
function few_shot.method(text)
  local name, method, plug, weight = parts_of(text)
  return { name = name, plug = plug, weight = weight, help = method.help, source = method.source,
    training = method.training, tower = method.tower or false }
end

--- What a method can be told, for a recipe to show. @param name a method @return a list of {name, default, help =, ...}
-- @raises on an unknown method, naming the nearest
function few_shot.options(name) return registry.options((parts_of(name))) end

--- What of "length=2,depth=4" a method takes.
-- @param text      of few_shot.new
-- @param settings  text, or "none"
-- @return a table of options for few_shot.new
-- @raises one line on a key that no method has, naming the nearest, and on text without "="
function few_shot.pick(text, settings)
  local own, every, picked = {}, {}, {}
  for _, name in ipairs(registry.names()) do
    for _, option in ipairs(registry.options(name)) do every[#every + 1] = option[1] end
  end
  for _, option in ipairs(registry.options((parts_of(text)))) do own[option[1]] = option end
  for entry in (settings == "none" and "" or settings):gmatch "[^,]+" do
    local key, value = entry:match "^%s*([%w_]+)=(.-)%s*$"
    util.check(key, "settings: '%s' must be name=value", entry)
    local nearest, distance = util.nearest(key, every)
    util.check(distance == 0, "settings: no method has the option '%s' (did you mean '%s'?)", key, nearest)
    local option = own[key]
    if option and type(option[2]) == "number" then value = tonumber(value) or value
    elseif option and type(option[2]) == "boolean" and (value == "true" or value == "false") then
      value = value == "true"
    end
    if option then picked[key] = value end
  end
  return picked
end

-- FDA over R rows, with a weight of 1 if none is given. So for k: at most half of an anchor's R - 1 others, so that there
-- are non-neighbours; with neighbours alone FDA would draw all classes together.
local function plug_of(task, name, weight, options, rows)
  local given = {}
  for key, value in pairs(options or {}) do given[key] = value end
  given.weight = weight or given.weight or 1
  util.check(rows >= 3, "few_shot: +%s needs 3 classes or images, and there are %d", name, rows)
  given.k = given.k and math.min(given.k, rows - 1) or math.max(1, math.min(8, math.floor((rows - 1) / 2)))
  if name == "proxy_fda" then given.batch, given.dim = rows, task.clip.width end
  return pg.regularize.new(name, task.clip, given)
end

--- Makes a learner by name; pg.few_shot.NAME(task, options) is the same. What is drawn comes from the global generator.
-- @param text     a method, such as "coop" or "coop+proxy_fda"; "coop+fda:3" gives FDA a weight
-- @param task     from few_shot.task
-- @param options  of the method, as few_shot.options(name) lists them, and: fda = options of pg.regularize.fda or
--   proxy_fda, weight = 1 among them; batch = images a batch, the method's own if not given; classes = 16, per_class = 4
--   of a batch where FDA aligns images; seed = 0 of the batches
-- @return a learner: what this file's head says, with .name, .settings, .training, .tower, .batches (:next() ->
--   positions, .size), .plug = the regulariser or nil, :total(batch) -> {loss =, kept = or nil}, gradients computed,
--   and :parts() for a checkpoint
-- @raises on an unknown method or option, naming the nearest, and on a value out of range
function few_shot.new(text, task, options)
  local name, method, plug, weight = parts_of(text)
  util.check(getmetatable(task) == Task, "few_shot: %s needs a task of few_shot.task", name)
  local own, o = {}, { classes = 16, per_class = 4, seed = 0 }
  for key, value in pairs(options or {}) do
    if key == "fda" or key == "batch" or o[key] then o[key] = value else own[key] = value end
  end
  local settings = registry.settle(name, own)
  local self = method.new(task, settings)
  self.name, self.settings, self.training, self.tower = text, settings, method.training, method.tower or false
  local function nothing() end
  self.step, self.epoch, self.finish = self.step or nothing, self.epoch or nothing, self.finish or nothing
  if not method.training then return self end

  self.batches = batches_of(task, o, plug and method.tower, o.batch or method.training.batch)
  if plug then self.plug = plug_of(task, plug, weight, o.fda, self.rows or self.batches.size) end

  function self.total(_, batch)
    local loss, moved, before = self.loss(batch)
    local kept = self.plug and self.plug.loss { features = moved, before = before }
    local total = kept and loss + kept or loss
    if self.backward then self.backward(total) else total:backward() end
    return { loss = loss, kept = kept }
  end

  function self.parts(_)
    return { module = self.module, kept = self.kept, plug = self.plug, batches = self.batches }
  end
  return self
end

setmetatable(few_shot, { __index = function(_, name)
  return registry.find(name) and function(task, options) return few_shot.new(name, task, options) end
end })

-- ---- training and testing -------------------------------------------------------------------------------------------

--- The method's optimiser. @param learner of few_shot.new @param lr instead of its own, or nil
-- @return of pg.optim
function few_shot.optimizer(learner, lr)
  local t = learner.training
  if t.optimizer == "SGD" then
    return pg.optim.SGD(learner.module:parameters(), { lr = lr or t.lr, momentum = 0.9, weight_decay = t.weight_decay })
  end
  return pg.optim.AdamW(learner.module:parameters(), { lr = lr or t.lr, weight_decay = t.weight_decay,
    eps = t.eps or 1e-8 })
end

--- The rate of a step. "epoch", as Dassl has it: 1e-5 throughout the first epoch, then base (1 + cos(pi (e - 2) / E)) /
-- 2 in epoch e from 2; "step": half a cosine over all steps; or "constant".
-- @param training   of a learner
-- @param base       the peak rate
-- @param step       from 1
-- @param per_epoch  steps an epoch
-- @param epochs     E
-- @return a number
function few_shot.rate(training, base, step, per_epoch, epochs)
  if training.schedule == "constant" then return base end
  if training.schedule == "step" then return base * (1 + math.cos(math.pi * (step - 1) / (per_epoch * epochs))) / 2 end
  local epoch = math.ceil(step / per_epoch)
  if epoch == 1 then return math.min(1e-5, base) end
  return base * (1 + math.cos(math.pi * (epoch - 2) / epochs)) / 2
end

--- A training batch, with the images where the tower is trained.
-- @param learner, task  of few_shot.new and few_shot.task
-- @param positions      int32 (B)
-- @return {features, labels, positions, images = or nil}
function few_shot.batch(learner, task, positions)
  positions = positions:to(task.features:device())
  return { features = task.features:index(1, positions), labels = task.labels:index(1, positions),
    positions = positions, images = learner.tower and task.pixels(task.images:index(1, positions)) or nil }
end

--- The share of images that a learner names rightly among `names`.
-- @param learner, task  as above
-- @param part           {images, labels, features = of task:encode, kept there when computed}
-- @param names          of the labels
-- @param prompt         the sentence of methods that have one; the task's own if not given
-- @return a number in 0..1
function few_shot.accuracy(learner, task, part, names, prompt)
  part.features = part.features or task:encode(part.images)
  return pg.no_grad(function()
    local set, pieces, n = learner.classes(names, prompt), {}, part.labels:numel()
    for start = 1, n, 256 do
      local count = math.min(256, n - start + 1)
      local batch = { features = part.features:narrow(1, start, count):contiguous() }
      if learner.tower then batch.images = task.pixels(part.images:narrow(1, start, count):contiguous()) end
      pieces[#pieces + 1] = pg.scope(function() return learner.logits(batch, set) end)
    end
    return pg.metrics.accuracy(pg.cat(pieces, 1), part.labels)
  end)
end

return few_shot
