-- tasks.lua - the named tasks of the forgetting benchmark, each with train, validation and test images.
--
-- Which part an image belongs to is fixed once for a source, whatever the seed and the sizes asked for: half of a picture
-- source is for pre-training, the rest for tasks, a share of that for tests. Tasks over the same pictures use the same parts, so
-- that no test image was ever trained on. The seed only draws which images of a part are taken. Procedural scenes are
-- drawn apart for every task and part.

local util = require "perigee.util"
local pg = require "perigee"
local random = require "perigee.data.random"
local concepts = require "perigee.data.concepts"

local tasks = {}
local SPLIT = random.SPLIT
local SEEN_CLOTHES = { 1, 2, 6, 9 } -- t-shirt, trouser, sandal, bag: the part of Fashion-MNIST that pre-training sees

local function data() return require "perigee.data" end

-- ---- fixed parts --------------------------------------------------------------------------------------------------------

-- The two halves of Fashion-MNIST's training set, by position; only what is asked for is read. `seen` keeps a half to the
-- classes that it names.
local function clothes(half, seen)
  return data().fashion_mnist { split = "train", choose = function(labels, classes)
    local members = {}
    for c = 1, #classes do members[c] = {} end
    for i, c in ipairs(labels) do table.insert(members[c], i) end
    local halves = data().split_positions(members, { pretrain = 0.5, train = 0.5 }, SPLIT)
    if not seen then return halves[half] end
    local wanted, index = {}, {}
    for _, c in ipairs(seen) do wanted[c] = true end
    for _, i in ipairs(halves[half]) do
      if wanted[labels[i]] then index[#index + 1] = i end
    end
    return index
  end }
end

local function fashion()
  return { train = clothes "train", test = data().fashion_mnist { split = "test" } }
end

-- The seen classes alone, numbered from 1, or all ten.
local function fashion_pretraining(classes)
  if classes == "all" then return clothes "pretrain" end
  local part, number, names = clothes("pretrain", SEEN_CLOTHES), {}, {}
  for i, c in ipairs(SEEN_CLOTHES) do number[c], names[i] = i, part.classes[c] end
  local labels = part.labels:totable()
  for i, c in ipairs(labels) do labels[i] = number[c] end
  part.labels, part.classes = pg.tensor(labels, { dtype = "int32" }), names
  return part
end

local function openclipart()
  return data().split(data().openclipart(), { pretrain = 0.5, train = 0.25, test = 0.25 }, SPLIT)
end

-- GPL: for evaluation only, so that there is no pre-training part.
local function tuxpaint() return data().split(data().tuxpaint(), { train = 0.5, test = 0.5 }, SPLIT) end

local LEAST, MOST = 25, 100 -- drawings of a kind: fewer are no class, more would crowd out the others

-- The same drawings by the folder below the subject's, such as mammals or flags: a finer question about the same parts.
local function kinds()
  local members = {}
  for _, file in ipairs(data().openclipart().files) do
    local kind = file:match "/png/[^/]+/([^/]+)/"
    if kind then
      members[kind] = members[kind] or {}
      table.insert(members[kind], file)
    end
  end
  local classes, number, wanted = {}, {}, {}
  for kind, files in pairs(members) do
    if #files >= LEAST then classes[#classes + 1] = kind end
  end
  table.sort(classes)
  for c, kind in ipairs(classes) do
    number[kind] = c
    local order = random.new(SPLIT, c):permutation(#members[kind])
    for k = 1, math.min(#order, MOST) do wanted[members[kind][order[k]]] = kind end
  end
  local parts = openclipart()
  for name, part in pairs(parts) do
    local index, labels = {}, {}
    for i, file in ipairs(part.files) do
      if wanted[file] then index[#index + 1], labels[#labels + 1] = i, number[wanted[file]] end
    end
    part = data().subset(part, index)
    part.name, part.classes, part.labels = "clipart_kind", classes, pg.tensor(labels, { dtype = "int32" })
    parts[name] = part
  end
  return parts
end

-- Each picture turned by 0, 90, 180 or 270 degrees anticlockwise; the angle is the label.
local function turned(dataset)
  local n, s = dataset.labels:numel(), dataset.images:size(2)
  local images, labels = pg.empty(n, s, s, 3, { dtype = "uint8" }), pg.empty(n, { dtype = "int32" })
  local from, to, label, generator = dataset.images:data(), images:data(), labels:data(), random.new(SPLIT, 1)
  for i = 0, n - 1 do
    local turn = generator:below(4)
    label[i] = turn
    for y = 0, s - 1 do
      for x = 0, s - 1 do
        local sy, sx = y, x -- where the pixel comes from
        if turn == 2 then sy, sx = x, s - 1 - y
        elseif turn == 3 then sy, sx = s - 1 - y, s - 1 - x
        elseif turn == 4 then sy, sx = s - 1 - x, y end
        local source, target = ((i * s + sy) * s + sx) * 3, ((i * s + y) * s + x) * 3
        for k = 0, 2 do to[target + k] = from[source + k] end
      end
    end
  end
  return { name = "clipart_rotation", images = images, labels = labels, classes = { "0", "90", "180", "270" } }
end

local function rotation()
  local parts = openclipart()
  return { train = turned(parts.train), test = turned(parts.test) }
end

-- FNV-1a, 32 bits (Fowler, Noll, Vo): scenes of their own for every task, part and seed.
local function scene_seed(...)
  local h = 2166136261
  for byte in table.concat({ ... }, "/"):gmatch "." do
    h = bit.bxor(h, byte:byte()) % 2 ^ 32
    h = (h % 2 ^ 16 * 16777619 + math.floor(h / 2 ^ 16) * 16777619 % 2 ^ 16 * 2 ^ 16) % 2 ^ 32
  end
  return h
end

-- ---- the table ------------------------------------------------------------------------------------------------------------

-- label: "seen" (a label in pre-training), "partly" or "held out"; folds: its tests are cross-validated, being too few;
-- prompt: the sentence that zero-shot classification puts a class's name into; aside: not among the ten of the benchmark.
local TASKS = {
  { name = "fashion_mnist", parts = fashion, pretrain = fashion_pretraining, label = "partly", prompt = "a photo of a {}",
    description = "10 kinds of clothes, photographs" },
  { name = "openclipart", parts = openclipart, pretrain = function() return openclipart().pretrain end, label = "seen",
    folds = 5, prompt = "a drawing of {}", description = "subject of a drawing, by the package's folders" },
  { name = "clipart_kind", parts = kinds, pretrain = function() return kinds().pretrain end, label = "held out", folds = 5,
    prompt = "a drawing of {}", description = "narrower subject of a drawing, by the folders below those" },
  { name = "tuxpaint", parts = tuxpaint, label = "held out", folds = 5, prompt = "a drawing of {}",
    description = "subject of a photograph or drawing, by the package's folders" },
  { name = "clipart_rotation", parts = rotation, label = "held out", folds = 5, prompt = "a drawing turned by {} degrees",
    description = "by how much a drawing is turned: 0, 90, 180 or 270 degrees" },
  { name = "shape", label = "seen", prompt = "a {}", description = "8 shapes, procedural scenes" },
  { name = "color", label = "seen", prompt = "a {} shape", description = "8 colors, procedural scenes" },
  { name = "texture", label = "seen", prompt = "a {} shape", description = "4 textures, procedural scenes" },
  { name = "count", label = "held out", prompt = "{} shapes", description = "one to four shapes, procedural scenes" },
  { name = "size", label = "seen", prompt = "a {} shape", description = "3 sizes, procedural scenes" },
  -- Its probe stands at 96%: it cannot rise, and says little.
  { name = "position", label = "seen", prompt = "a shape at the {}", aside = true,
    description = "9 places, procedural scenes" },
}

--- Perigee-10: the ten tasks of the forgetting benchmark, in the order of its tables, and with `aside` those beside them.
-- @param options  {aside = false: true for every task that data.task knows}
-- @return a list of {name =, description =, label = "seen", "partly" or "held out" (in the pre-training of vit_small),
--   prompt = sentence with {} for a class's name, folds = 5 where the task has few images and is cross-validated, else nil}
function tasks.list(options)
  options = util.options("tasks", options, { aside = false })
  local list = {}
  for _, t in ipairs(TASKS) do
    if options.aside or not t.aside then
      list[#list + 1] = { name = t.name, description = t.description, label = t.label, folds = t.folds, prompt = t.prompt }
    end
  end
  return list
end

local function find(name)
  local names = {}
  for i, t in ipairs(TASKS) do
    if t.name == name then return t end
    names[i] = t.name
  end
  util.fail(0, "task: unknown task '%s' (did you mean '%s'?)", tostring(name), util.nearest(tostring(name), names))
end

-- Up to `want[part]` images of each part, every class keeping its share; all when the part has fewer.
local function take(dataset, fractions, seed)
  local total, n = 0, dataset.labels:numel()
  for _, count in pairs(fractions) do total = total + count end
  local shares = {}
  for part, count in pairs(fractions) do shares[part] = count / math.max(total, n) end
  return data().split(dataset, shares, seed)
end

--- A task's parts.
-- @param name     one of data.tasks()
-- @param options  {train = 400, val = 200, test = 1000 images, seed = 0: which images of the fixed parts are drawn;
--   device = "cpu": where images and labels go}; a smaller part is cut in proportion
-- @return {train =, val =, test = datasets with .prompt, as data.tasks has it, folds = nil, or the number of folds over all
--   three to cross-validate with}
-- @raises on an unknown name, or when the Debian package is not installed
function tasks.task(name, options)
  local want = util.options("task", options, { train = 400, val = 200, test = 1000, seed = 0, device = "cpu" })
  for _, part in ipairs { "train", "val", "test" } do
    local value = want[part]
    util.check(type(value) == "number" and value % 1 == 0 and value >= 1,
      "task: %s must be a whole number, 1 or more, got %s", part, tostring(value))
  end
  local task, result = find(name), {}
  if not task.parts then -- test scenes are the same for every seed, as test pictures are
    for _, part in ipairs { "train", "val", "test" } do
      local seed = scene_seed(name, part, part == "test" and 0 or want.seed)
      result[part] = concepts.new { n = want[part], task = name, seed = seed }
    end
  else
    local parts = task.parts()
    local drawn = take(parts.train, { train = want.train, val = want.val }, want.seed)
    result.train, result.val = drawn.train, drawn.val
    local whole = want.test >= parts.test.labels:numel()
    result.test = whole and parts.test or take(parts.test, { test = want.test }, SPLIT).test
  end
  for _, part in pairs(result) do
    part.images, part.labels, part.prompt = part.images:to(want.device), part.labels:to(want.device), task.prompt
  end
  result.folds = task.folds
  return result
end

--- What pre-training may see of a picture source: no image of any task's parts.
-- @param name     "openclipart", "clipart_kind", or "fashion_mnist"
-- @param options  {classes = "seen": four of Fashion-MNIST's ten, or "all"}
-- @return dataset
-- @raises on any other name
function tasks.pretraining(name, options)
  options = util.options("pretraining", options, { classes = "seen" })
  util.check(options.classes == "seen" or options.classes == "all", "pretraining: classes must be 'seen' or 'all', got %s",
    tostring(options.classes))
  local task = find(name)
  util.check(task.pretrain, "pretraining: '%s' has no part for pre-training: openclipart, clipart_kind and fashion_mnist do",
    name)
  return task.pretrain(options.classes)
end

return tasks
