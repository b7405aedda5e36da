-- benchmark.lua - Perigee-10: what an encoder knows of each task, before it is fine-tuned on one of them and after
-- (docs/method.md, "Forgetting").
--
-- The probe's learning rate is chosen once a task, on the pre-trained features, and kept for every model after: features
-- have length one before a probe sees them, so that one rate serves them all, and a probe costs a quarter.

local util = require "perigee.util"
local pg = require "perigee"

local benchmark, methods = {}, {}

--- Loads the tasks.
-- @param options {tasks = list of names, encode = the pre-trained encoder, a function: uint8 (N, H, W, 3) -> (N, D),
--   train = 2000 images of a task to fine-tune on, probe = 400 labelled images of any other, test = 1000 test images,
--   steps = 300 of a probe, lrs = {0.01, 0.1, 1} to choose from, drift = 0: this many images of each task are also compared
--   by OTDD, seed = 0, device = "cpu", run = nil: progress is shown there}
-- @return an object with :train(task), :before(task, tuned) and :measure(encode, tuned)
-- @raises on an unknown task
function benchmark.new(options)
  local o = util.options("benchmark", options, { tasks = util.none, encode = util.none, train = 2000, probe = 400,
    test = 1000, steps = 300, lrs = { 0.01, 0.1, 1 }, drift = 0, seed = 0, device = "cpu", run = util.none })
  return setmetatable({ options = o, loaded = {}, known = {} }, { __index = methods })
end

-- A task to probe, or, as the one fine-tuned on, with more training images and tested on its own test part alone: other
-- folds hold images that the encoder trains on.
local function task_of(self, name, tuned)
  local o, key = self.options, tuned and "tuned " .. name or name
  if not self.loaded[key] then
    self.loaded[key] = pg.data.task(name, { train = tuned and o.train or o.probe, test = o.test, seed = o.seed,
      device = o.device })
    if tuned then self.loaded[key].folds = nil end
  end
  return self.loaded[key]
end

--- The images to fine-tune on. @param name a task @return dataset
function methods:train(name) return task_of(self, name, true).train end

local function same(x) return x end

-- A task whose images are features already.
local function featured(encode, task)
  local result = { folds = task.folds }
  for _, part in ipairs { "train", "val", "test" } do
    if part ~= "val" or task.folds then
      result[part] = { images = pg.metrics.encode(encode, task[part].images), labels = task[part].labels }
    end
  end
  return result
end

--- What the pre-trained encoder knows of a task; probed once.
-- @param name   a task
-- @param tuned  true: probed as the task that is fine-tuned on
-- @return {accuracy = share, lr = the rate of the probe that did best, features, labels = of the tested images}
function methods:before(name, tuned)
  local o, key = self.options, tuned and "tuned " .. name or name
  if not self.known[key] then
    local features = featured(o.encode, task_of(self, name, tuned))
    local _, first = pg.metrics.probe_task(same, features, { steps = o.steps, lrs = o.lrs, seed = o.seed })
    -- Once more at that rate alone, as every other model is probed: from the same splits and first weights.
    local accuracy, found = pg.metrics.probe_task(same, features, { steps = o.steps, lrs = { first.lr }, seed = o.seed })
    found.accuracy, self.known[key] = accuracy, found
  end
  return self.known[key]
end

local function head(t, count) return t:narrow(1, 1, math.min(count, t:size(1))):contiguous() end

--- Test images of a task as probes see it. @param name a task @return uint8 (N, S, S, 3)
function methods:images(name) return task_of(self, name, false).test.images end

--- What fine-tuning did.
-- @param encode  the fine-tuned encoder, as options.encode
-- @param tuned   the task that it was fine-tuned on
-- @return {a_lp = share; delta_lp = mean change of the other tasks' accuracy, tasks = task -> change; l2 = task -> mean
--   distance that the test features moved; otdd = task -> distance of the labelled features from those before, where
--   options.drift asks for it}
function methods:measure(encode, tuned)
  local o, before, after, result = self.options, {}, {}, { l2 = {}, otdd = self.options.drift > 0 and {} or nil }
  local bar = o.run and o.run:progress("probing", #o.tasks)
  for i, name in ipairs(o.tasks) do
    local own = name == tuned
    local was = self:before(name, own)
    local accuracy, is = pg.metrics.probe_task(same, featured(encode, task_of(self, name, own)),
      { steps = o.steps, lrs = { was.lr }, seed = o.seed })
    before[name], after[name] = was.accuracy, accuracy
    result.l2[name] = pg.metrics.l2_drift(was.features, is.features)
    if result.otdd then
      result.otdd[name] = pg.metrics.otdd(head(was.features, o.drift):normalize(), head(was.labels, o.drift),
        head(is.features, o.drift):normalize(), head(is.labels, o.drift)).rooted
    end
    if bar then bar:step(i) end
  end
  if bar then bar:done() end
  result.a_lp = after[tuned]
  result.delta_lp, result.tasks = pg.metrics.delta_lp(before, after, tuned)
  return result
end

-- ---- what a run does ----------------------------------------------------------------------------------------------------

-- Where the head of a method starts, and the regulariser that it takes; a method that is not here is a regulariser's name.
local METHODS = {
  naive = { head = "random" },
  linear_probe = { still = true }, -- the encoder is left as it is
  lp_ft = { head = "probe" },
  flyp = { head = "flyp" },
  wise_ft = { head = "text", mix = 0.5 },
}

--- The methods of end-to-end fine-tuning that are no regularisers. @return a list of names
function benchmark.methods() return { "naive", "linear_probe", "lp_ft", "flyp", "wise_ft" } end

local function named(what, text, known)
  local list = {}
  for name in text:gmatch "[^,%s]+" do
    local nearest, distance = util.nearest(name, known)
    util.check(distance == 0, "%s: there is no '%s' (did you mean '%s'?)", what, name, nearest)
    list[#list + 1] = name
  end
  util.check(#list > 0, "%s: names nothing", what)
  return list
end

--- The tasks that a text names. @param text comma-separated names, or "all", Perigee-10 @return list
-- @raises on a name that is no task
function benchmark.tasks(text)
  local every, ten = {}, {}
  for i, task in ipairs(pg.data.tasks { aside = true }) do every[i] = task.name end
  for i, task in ipairs(pg.data.tasks()) do ten[i] = task.name end
  return text == "all" and ten or named("task", text, every)
end

--- Two lists of names as one, each name once. @param a, b lists @return list
function benchmark.join(a, b)
  local list, has = {}, {}
  for _, names in ipairs { a, b } do
    for _, name in ipairs(names) do
      if not has[name] then list[#list + 1], has[name] = name, true end
    end
  end
  return list
end

--- What a run does, one row after the other: every method with every weight, on every task.
-- @param tasks        list of names
-- @param methods_text comma-separated methods, each with a weight of its own where it is wanted, as in "naive,fda:10"; the
--   weight is the regulariser's, or the share of the fine-tuned weights in the mix of wise_ft
-- @param weights      comma-separated weights for the methods that name none and take one; "own" is each method's default
-- @param regularizers list of the regularisers that the recipe takes
-- @return a list of {task, method, weight or nil, head = where it starts, regularizer = name, mix or nil, still = true when
--   nothing is trained}
-- @raises on an unknown method, naming the nearest, and on a weight that is no number
function benchmark.plan(tasks, methods_text, weights, regularizers)
  local known, plan = benchmark.methods(), {}
  for _, name in ipairs(regularizers) do known[#known + 1] = name end
  for _, task in ipairs(tasks) do
    for entry in methods_text:gmatch "[^,%s]+" do
      local name, own = entry:match "^([^:]+):?(.*)$"
      named("method", name, known)
      local method = METHODS[name] or { head = "probe", regularizer = name }
      local takes = method.regularizer or method.mix
      util.check(own == "" or takes, "method: %s takes no weight, got %s", name, entry)
      for weight in (own ~= "" and own or takes and weights or "own"):gmatch "[^,%s]+" do
        util.check(weight == "own" or tonumber(weight), "weight: '%s' is not a number", weight)
        plan[#plan + 1] = { task = task, method = name, weight = tonumber(weight) or method.mix, head = method.head,
          regularizer = method.regularizer or "naive", mix = method.mix, still = method.still }
      end
    end
  end
  return plan
end

return benchmark
