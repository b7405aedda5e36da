-- data.lua - images with labels: the datasets that Debian packages bring, procedural scenes, splits, batches.
--
-- A dataset is a table {name, images = uint8 (N, S, S, 3), labels = int32 (N) 1-based, classes = {names}}; one of your own
-- needs no more than that. Where pictures are many or large, files = their N paths may stand in the place of images. Order,
-- splits and batches come from generators of their own (data/random.lua): the global generator never moves.

local util = require "perigee.util"
local pg = require "perigee"
local random = require "perigee.data.random"
local concepts = require "perigee.data.concepts"
local pictures = require "perigee.data.pictures"
local sets = require "perigee.data.sets"
local arrays = require "perigee.data.sets.arrays"

local data = { concepts = concepts.new, concept_values = concepts.values, captions = require "perigee.data.captions" }

--- A generator of its own for the choices that data needs; the global one never moves.
-- @param seed, stream  as perigee.data.random.new takes them: whole numbers
-- @return an object with :below(n), a whole number in 1..n, and :permutation(n), a list
data.random = random.new


local function positions(list) return pg.tensor(list, { dtype = "int32" }) end

local function whole(where, name, value, least)
  return util.check(type(value) == "number" and value % 1 == 0 and value >= least and value,
    "%s: %s must be a whole number, %d or more, got %s", where, name, least, tostring(value))
end

local function check_dataset(where, dataset)
  util.check(type(dataset) == "table" and (pg.is_tensor(dataset.images) or type(dataset.files) == "table")
    and pg.is_tensor(dataset.labels) and type(dataset.classes) == "table",
    "%s: needs a dataset {images =, labels =, classes =}", where)
  local images, labels = dataset.images and dataset.images:size(1) or #dataset.files, dataset.labels:numel()
  util.check(images == labels, "%s: dataset '%s' has %d images and %d labels", where, tostring(dataset.name), images,
    labels)
  return images
end

-- ---- datasets -----------------------------------------------------------------------------------------------------

--- Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): 28x28 grey pictures of clothes, centred on 32x32, grey repeated as RGB.
-- @param options {split = "train" (60,000) or "test" (10,000), path = folder with the four IDX files,
--   choose = function(labels as a list, classes) -> list of the positions to read, nil for all: RGB takes four times the room}
-- @return dataset of 10 classes
-- @raises when the files are missing or broken
function data.fashion_mnist(options)
  options = util.options("fashion_mnist", options,
    { split = "train", path = "/usr/share/datasets/fashion-mnist", choose = util.none })
  util.check(options.split == "train" or options.split == "test",
    "fashion_mnist: split must be 'train' or 'test', got %s", tostring(options.split))
  local set = arrays.idx("fashion_mnist", options.path, options.split, arrays.FASHION, { side = 32,
    choose = options.choose, missing = ": install the Debian package dataset-fashion-mnist" })
  set.name, set.labels = "fashion_mnist", positions(set.labels)
  return set
end

data.openclipart, data.tuxpaint, data.folder = pictures.openclipart, pictures.tuxpaint, pictures.folder
data.loader = require "perigee.data.loader"
data.load, data.sets, data.ldifs_split, data.read = sets.load, sets.list, sets.ldifs_split, sets.read
data.preprocess = require "perigee.data.preprocess"

-- ---- parts --------------------------------------------------------------------------------------------------------

--- The images at `index`, in that order.
-- @param dataset  a dataset
-- @param index    list of 1-based positions, or an int32 tensor of them
-- @return a new dataset with copies of those images, and with their files, captions or specs where the dataset has them
-- @raises on an empty list or a position out of range
function data.subset(dataset, index)
  check_dataset("subset", dataset)
  if type(index) == "table" then
    util.check(#index > 0, "subset: the list of positions is empty")
    index = positions(index)
  end
  util.check(pg.is_tensor(index), "subset: positions must be a list or an int32 tensor")
  local part = {}
  for key, value in pairs(dataset) do part[key] = value end
  part.images, part.labels = dataset.images and dataset.images:index(1, index), dataset.labels:index(1, index)
  for _, key in ipairs { "files", "captions", "specs" } do
    if dataset[key] then
      part[key] = {}
      for i, from in ipairs(index:totable()) do part[key][i] = dataset[key][from] end
    end
  end
  return part
end

--- Several datasets as one: their classes side by side, or as they are when all name the same ones.
-- @param list  datasets whose images have one size
-- @return dataset
-- @raises on an empty list or images of different sizes
function data.merge(list)
  util.check(type(list) == "table" and #list > 0, "merge: needs a list of datasets")
  local images, labels, classes, same = {}, {}, {}, true
  for _, dataset in ipairs(list) do
    check_dataset("merge", dataset)
    util.check(dataset.images, "merge: dataset '%s' has files and no images", tostring(dataset.name))
    same = same and table.concat(dataset.classes, "\0") == table.concat(list[1].classes, "\0")
  end
  for i, dataset in ipairs(list) do
    images[i], labels[i] = dataset.images, same and dataset.labels or dataset.labels + #classes
    if i == 1 or not same then
      for _, name in ipairs(dataset.classes) do classes[#classes + 1] = name end
    end
  end
  return { name = "merged", images = pg.cat(images, 1), labels = pg.cat(labels, 1), classes = classes }
end

local function by_class(dataset)
  local members, labels = {}, dataset.labels:totable()
  for c = 1, #dataset.classes do members[c] = {} end
  for i, c in ipairs(labels) do
    util.check(members[c], "dataset '%s': label %d of image %d is outside 1..%d", tostring(dataset.name), c, i,
      #dataset.classes)
    table.insert(members[c], i)
  end
  return members
end

--- How many images each class has.
-- @param dataset  a dataset
-- @return a list of numbers, one a class
-- @raises on a label outside 1..#classes
function data.class_counts(dataset)
  check_dataset("class_counts", dataset)
  local counts = {}
  for c, members in ipairs(by_class(dataset)) do counts[c] = #members end
  return counts
end

--- Disjoint parts in which every class keeps its share.
-- @param dataset    a dataset
-- @param fractions  table of part name to fraction, together at most 1, such as {train = 0.7, val = 0.1, test = 0.2}
-- @param seed       whole number; default 0
-- @return table of part name to dataset; the same seed gives the same parts
-- @raises when a fraction is not in (0, 1], they exceed 1, or a part would be empty
function data.split(dataset, fractions, seed)
  check_dataset("split", dataset)
  local parts = data.split_positions(by_class(dataset), fractions, seed)
  for name, index in pairs(parts) do parts[name] = data.subset(dataset, index) end
  return parts
end

--- The same for positions alone, where the images are not read yet.
-- @param members           list of lists: the positions of each class
-- @param fractions, seed   as data.split
-- @return table of part name to sorted list of positions
-- @raises as data.split
function data.split_positions(members, fractions, seed)
  local names, total = {}, 0
  for name, fraction in pairs(fractions or {}) do
    util.check(type(fraction) == "number" and fraction > 0 and fraction <= 1, "split: %s must be in (0, 1], got %s",
      tostring(name), tostring(fraction))
    names[#names + 1], total = name, total + fraction
  end
  util.check(#names > 0, "split: name at least one part, such as {train = 0.8, test = 0.2}")
  util.check(total <= 1 + 1e-9, "split: the fractions sum to %g, more than 1", total)
  table.sort(names)
  local parts, generator = {}, random.new(seed or 0)
  for _, name in ipairs(names) do parts[name] = {} end
  local all = 0
  for _, own in ipairs(members) do
    local order, sum, from = generator:permutation(#own), 0, 0
    for _, name in ipairs(names) do
      sum = sum + fractions[name]
      local to = math.min(math.floor(sum * #own + 0.5), #own)
      for i = from + 1, to do table.insert(parts[name], own[order[i]]) end
      from = to
    end
    all = all + #own
  end
  for _, name in ipairs(names) do
    util.check(#parts[name] > 0, "split: part '%s' would be empty: %d images are too few for a fraction of %g", name,
      all, fractions[name])
    table.sort(parts[name])
  end
  return parts
end

local tasks = require "perigee.data.tasks"
data.tasks, data.task, data.pretraining = tasks.list, tasks.task, tasks.pretraining
data.sequence = require "perigee.data.sequences"

-- ---- batches ------------------------------------------------------------------------------------------------------

--- Bytes to network input: (v / 255 - mean) / std, channels first.
-- @param images   uint8 (N, H, W, 3)
-- @param options  {mean = 0.5, std = 0.25}, each a number or a list of three
-- @return float32 (N, 3, H, W)
-- @raises on anything but uint8 (N, H, W, 3)
function data.to_float(images, options)
  options = util.options("to_float", options, { mean = 0.5, std = 0.25 })
  util.check(pg.is_tensor(images), "to_float: images must be a uint8 tensor (N, H, W, 3)")
  local function channels(value)
    return pg.tensor(type(value) == "table" and value or { value, value, value }, { device = images:device() })
  end
  return pg.normalize_image(images, channels(options.mean), channels(options.std))
end

local Batches = {}
Batches.__index = Batches

--- The next batch. Never ends; a new epoch has a new order.
-- @return images float32 (B, 3, S, S), labels int32 (B)
function Batches:next()
  if self.position + self.batch > self.n then self.epoch, self.position, self.order = self.epoch + 1, 0, nil end
  if not self.order then
    self.order = positions(random.new(self.seed, self.epoch):permutation(self.n))
  end
  local index = self.order:narrow(1, self.position + 1, self.batch)
  if self.shard then index = pg.distributed.slice(index) end
  self.position = self.position + self.batch
  return data.to_float(self.dataset.images:index(1, index), { mean = self.mean, std = self.std }),
    self.dataset.labels:index(1, index)
end

--- What :restore needs to go on from here. @return a table of numbers, for a checkpoint
function Batches:state()
  return { seed = self.seed, epoch = self.epoch, position = self.position, batch = self.batch, n = self.n }
end

--- Goes on from a state, in the same order as the run that saved it.
-- @param state  from :state()
-- @return the batches
-- @raises when the number of images or the batch size differ
function Batches:restore(state)
  util.check(type(state) == "table" and state.n == self.n and state.batch == self.batch,
    "batches: the state is of %s images in batches of %s, this is %d in batches of %d",
    tostring(type(state) == "table" and state.n), tostring(type(state) == "table" and state.batch), self.n, self.batch)
  self.seed, self.epoch, self.position, self.order = state.seed, state.epoch, state.position, nil
  return self
end

--- Shuffled batches of a dataset, without end; the images left over at the end of an epoch wait for another order.
-- @param options {dataset =, batch = 64, seed = 0, mean = 0.5, std = 0.25; shard = false: true where each process of a run
--   shall get its own part of every batch (pg.distributed.slice)}
-- @return an object with :next(), :state(), :restore(state)
-- @raises when the dataset has fewer images than a batch
function data.batches(options)
  options = util.options("batches", options, { dataset = util.none, batch = 64, seed = 0, mean = 0.5, std = 0.25,
    shard = false })
  local n = check_dataset("batches", options.dataset)
  util.check(options.dataset.images, "batches: the dataset has files and no images: pg.data.loader reads them")
  whole("batches", "batch", options.batch, 1)
  util.check(n >= options.batch, "batches: a batch of %d from a dataset of %d images", options.batch, n)
  random.new(options.seed)
  return setmetatable({ dataset = options.dataset, n = n, batch = options.batch, seed = options.seed,
    mean = options.mean, std = options.std, shard = options.shard, epoch = 1, position = 0 }, Batches)
end

return data
