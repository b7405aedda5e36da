-- sequences.lua - what a model is asked to learn one after the other: whole tasks, or one task's classes a few at a
-- time.
--
-- Labels run through the sequence: the classes of its first task are 1..C1, those of the second C1 + 1..C1 + C2, and so
-- on.

local util = require "perigee.util"
local pg = require "perigee"
local concepts = require "perigee.data.concepts"

local VALIDATION = 40 -- images that data.task sets aside: they are not used, and each class must be able to give one
local TEST_SCENES = 424243 -- the seed of the scenes that test "concepts", the same for every run

local function data() return require "perigee.data" end

local function check_count(name, value, least)
  util.check(type(value) == "number" and value % 1 == 0 and value >= least,
    "sequence: %s must be a whole number, %d or more, got %s", name, least, tostring(value))
end

-- ---- one task ------------------------------------------------------------------------------------------------------

-- Scenes of one shape, named by color and shape: 64 classes.
local function scenes(count, seed, device)
  local set = data().concepts { n = count, task = "shape", seed = seed }
  local colors, shapes, labels, classes = concepts.values.color, concepts.values.shape, {}, {}
  for i, spec in ipairs(set.specs) do labels[i] = (spec[1] - 1) * #colors + spec[2] end
  for _, shape in ipairs(shapes) do
    for _, color in ipairs(colors) do classes[#classes + 1] = color .. " " .. shape end
  end
  labels = pg.tensor(labels, { dtype = "int32" }):to(device)
  return { name = "concepts", images = set.images:to(device), labels = labels, classes = classes, prompt = "a {}" }
end

local function load(name, o)
  if name == "concepts" then
    return { train = scenes(o.train, TEST_SCENES + 1 + o.seed, o.device), test = scenes(o.test, TEST_SCENES, o.device) }
  end
  local task = data().task(name, { train = o.train, val = VALIDATION, test = o.test, seed = o.seed, device = o.device })
  return { train = task.train, test = task.test }
end

-- A dataset with `offset` more on each label, and on its own the names of its classes.
local function shifted(set, offset)
  local part = {}
  for key, value in pairs(set) do part[key] = value end
  part.labels = set.labels + offset
  return part
end

-- ---- the two settings ----------------------------------------------------------------------------------------------

local function whole_tasks(o)
  local list, known, offset = {}, {}, 0
  for i, task in ipairs(data().tasks { aside = true }) do known[i] = task.name end
  known[#known + 1] = "concepts"
  util.check(type(o.tasks) == "table" and #o.tasks > 0, "sequence: tasks names nothing")
  local seen = {}
  for _, name in ipairs(o.tasks) do
    local nearest, distance = util.nearest(tostring(name), known)
    util.check(distance == 0, "sequence: there is no task '%s' (did you mean '%s'?)", tostring(name), nearest)
    util.check(not seen[name], "sequence: the task '%s' stands there twice", name)
    seen[name] = true
  end
  for t, name in ipairs(o.tasks) do
    local task = load(name, o)
    list[t] = { name = name, classes = task.train.classes, prompt = task.train.prompt, first = offset,
      train = shifted(task.train, offset), test = shifted(task.test, offset) }
    offset = offset + #task.train.classes
  end
  return list, offset
end

-- Images of some classes, labelled offset + 1.. in the order of the list.
local function only(set, classes, offset)
  local number, index, labels = {}, {}, {}
  for k, c in ipairs(classes) do number[c] = offset + k end
  for i, c in ipairs(set.labels:totable()) do
    if number[c] then index[#index + 1], labels[#labels + 1] = i, number[c] end
  end
  util.check(#index > 0, "sequence: no image of the classes of a step: ask for more images than %d", set.labels:numel())
  local part = data().subset(set, index)
  part.labels = pg.tensor(labels, { dtype = "int32" }):to(set.labels:device())
  return part
end

local function split_classes(o)
  local task = load(o.source, o)
  local count, order, list = #task.train.classes, {}, {}
  check_count("steps", o.steps, 1)
  util.check(o.steps <= count, "sequence: %d steps are more than the %d classes of %s", o.steps, count, o.source)
  for c = 1, count do order[c] = c end
  if o.order == "shuffled" then order = data().random(o.seed, 1):permutation(count) end
  local first = 0
  for t = 1, o.steps do
    local mine, names, each = {}, {}, math.floor(count / o.steps) + (t <= count % o.steps and 1 or 0)
    for k = 1, each do
      mine[k] = order[first + k]
      names[k] = task.train.classes[mine[k]]
    end
    local range = ("classes %d-%d"):format(first + 1, first + each)
    list[t] = { name = #names <= 2 and table.concat(names, ", ") or range,
      classes = names, prompt = task.train.prompt, first = first, train = only(task.train, mine, first),
      test = only(task.test, mine, first) }
    first = first + each
  end
  return list, count
end

--- The tasks of a continual run.
-- @param options {setting = "tasks": whole tasks, one after the other; or "classes": one task's classes in steps as
--   equal as can be, the larger ones first. Of "tasks": tasks = list of names (pg.data.tasks, or "concepts": scenes by
--   color and shape). Of "classes": source = a name, steps = 5, order = "shuffled" (by the seed) or "listed". Of both:
--   train = 1000 and test = 300 images: of each task, or of the source as a whole; seed = 0; device = "cpu"}
-- @return a list of tasks {name, classes = names, prompt, first = classes before it, train, test = datasets whose
--   labels run through the sequence}, with .setting, and .classes, the number of all classes
-- @raises on an unknown task, naming the nearest; on a task named twice; on more steps than classes
return function(options)
  local o = util.options("sequence", options, { setting = "tasks", tasks = util.none, source = util.none, steps = 5,
    order = "shuffled", train = 1000, test = 300, seed = 0, device = "cpu" })
  util.check(o.setting == "tasks" or o.setting == "classes", "sequence: setting is 'tasks' or 'classes', got '%s'",
    tostring(o.setting))
  util.check(o.order == "shuffled" or o.order == "listed", "sequence: order is 'shuffled' or 'listed', got '%s'",
    tostring(o.order))
  check_count("train", o.train, 1)
  check_count("test", o.test, 1)
  local list, count
  if o.setting == "tasks" then list, count = whole_tasks(o) else list, count = split_classes(o) end
  list.setting, list.classes = o.setting, count
  return list
end
