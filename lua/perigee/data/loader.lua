-- loader.lua - batches made ahead of the training loop: threads of the core read, crop, resize, flip and normalise while
-- Lua computes. The threads never call Lua; what they will do is decided here, between batches.
--
-- A batch is a list of positions and the number of its first sample in the stream. The core draws a picture's
-- augmentation from (seed, sample) alone, so that the stream is the same for any number of threads, and a state is a few
-- numbers: where the first batch that the caller has not seen begins.

local ffi = require "ffi"
local jit = require "jit"
local lib = require "perigee.ffi"
local call = require "perigee.call"
local util = require "perigee.util"
local pg = require "perigee"
local random = require "perigee.data.random"

local PATIENCE = 0.05 -- seconds that the core waits before Lua looks up, so that Ctrl-C is heard
local Loader = {}
Loader.__index = Loader

-- ---- options ------------------------------------------------------------------------------------------------------

local function whole(name, value, least)
  return util.check(type(value) == "number" and value % 1 == 0 and value >= least and value < 2 ^ 31 and value,
    "loader: %s must be a whole number, %d or more, got %s", name, least, tostring(value))
end

local function real(name, value)
  return util.check(type(value) == "number" and value, "loader: %s must be a number, got %s", name, tostring(value))
end

local function channels(name, value)
  if type(value) == "number" then value = { value, value, value } end
  util.check(type(value) == "table" and #value == 3, "loader: %s must be a number or a list of three", name)
  for c = 1, 3 do real(name, value[c]) end
  return value
end

local function word(name, value, choices)
  util.check(choices[value] ~= nil, "loader: %s must be '%s' or '%s', got %s", name, choices[1], choices[2],
    tostring(value))
  return choices[value]
end

-- The labels' own copy, as the caller may free or change them while batches are under way.
local function copy_labels(labels, n)
  if type(labels) == "table" then labels = pg.tensor(labels, { dtype = "int32" }) end
  util.check(pg.is_tensor(labels) and labels:dtype() == "int32" and labels:dim() == 1,
    "loader: dataset.labels must be an int32 tensor (N) or a list")
  util.check(labels:numel() == n, "loader: the dataset has %d images and %d labels", n, labels:numel())
  local copy = ffi.new("int32_t[?]", n)
  call.check(lib.pg_download(labels, copy, 4 * n))
  return copy
end

-- Where images come from: the tensor or the list of names, how many, and the side that comes out by default.
local function source_of(dataset)
  util.check(type(dataset) == "table", "loader: dataset must be a table {images = or files =, labels =}, got %s",
    type(dataset))
  if dataset.images ~= nil then -- .files then only says where the images came from
    local images = dataset.images
    util.check(pg.is_tensor(images) and images:dim() == 4,
      "loader: dataset.images must be a uint8 tensor (N, H, W, 3), got %s", tostring(images))
    return images, images:size(1), images:size(2) == images:size(3) and images:size(2)
  end
  local files = dataset.files
  util.check(type(files) == "table" and #files > 0,
    "loader: dataset needs images = uint8 (N, H, W, 3), or files = a list of PNG or JPEG paths")
  for i, file in ipairs(files) do
    util.check(type(file) == "string", "loader: dataset.files[%d] must be a path, got %s", i, type(file))
  end
  return files, #files, 32
end

local function make(source, n, o)
  local augment = util.options("loader: augment", o.augment, { crop = util.none, flip = 0, pad = 0, pad_mode = "zero",
    brightness = 0, contrast = 0, saturation = 0 })
  local crop = augment.crop or { 0, 0 }
  util.check(type(crop) == "table" and #crop == 2, "loader: crop must be {least area, most area}, such as {0.5, 1}")
  util.check(not augment.crop or crop[2] ~= 0, "loader: crop's most area must be above 0")
  local c = ffi.new "pg_loader_options"
  c.size, c.workers, c.capacity = whole("size", o.size, 1), whole("workers", o.workers, 1), o.prefetch + 1
  c.bilinear = word("method", o.method, { "bicubic", "bilinear", bicubic = 0, bilinear = 1 })
  c.crop_min, c.crop_max, c.flip = real("crop", crop[1]), real("crop", crop[2]), real("flip", augment.flip)
  c.pad = whole("pad", augment.pad, 0)
  c.pad_edge = word("pad_mode", augment.pad_mode, { "zero", "edge", zero = 0, edge = 1 })
  for i, name in ipairs { "brightness", "contrast", "saturation" } do c.jitter[i - 1] = real(name, augment[name]) end
  local mean, std = channels("mean", o.mean), channels("std", o.std)
  for i = 1, 3 do c.mean[i - 1], c.std[i - 1] = mean[i], std[i] end
  local out, names = ffi.new "pg_loader *[1]", nil
  if type(source) == "table" then names = ffi.new("const char *[?]", n, source) end
  call.check(lib.pg_loader_new(c, names == nil and source or nil, names, n, out))
  return ffi.gc(out[0], lib.pg_loader_free)
end

-- ---- what comes next ----------------------------------------------------------------------------------------------

-- A place in the stream is {epoch, position, samples}, read and never changed. Batches are numbered by the core's counts
-- of what was pushed; ahead[number] = {list, at, after}. Ctrl-C may raise an error between any two steps below, so each
-- step leaves either the old or the new batch's place, never half of one.

-- The sampler's next batch, or one that it gave before a restore or an interruption, as a list.
local function sampled(self, number)
  local positions = self.ahead[number] and self.ahead[number].list or self.replay[number] or self.sampler()
  if pg.is_tensor(positions) then positions = positions:totable() end
  util.check(type(positions) == "table" and #positions > 0,
    "loader: sampler must return the next batch's positions, an int32 tensor (B) or a list, got %s",
    tostring(positions))
  return positions
end

-- The positions of the epoch's order from `at` on, and their place: the next epoch's start when too few are left.
local function ordered(self, at)
  if self.n - at.position < (self.drop_last and self.batch or 1) then
    at = { epoch = at.epoch + 1, position = 0, samples = at.samples }
  end
  if self.shuffle and self.order.epoch ~= at.epoch then -- a list, not a tensor: it outlives a pg.scope around a step
    self.order = { epoch = at.epoch, list = random.new(self.seed, at.epoch):permutation(self.n) }
  end
  local list = {}
  for i = 1, math.min(self.batch, self.n - at.position) do
    list[i] = self.shuffle and self.order.list[at.position + i] or at.position + i
  end
  return list, at
end

local function place_of(self, number) -- where batch `number` begins
  local here, before = self.ahead[number], self.ahead[number - 1]
  return here and here.at or before and before.after or self.start
end

local function push(self, number)
  local list, at
  if self.sampler then list, at = sampled(self, number), place_of(self, number)
  else list, at = ordered(self, place_of(self, number)) end
  local own, before = list, 0 -- images of this batch that other processes read before this one's
  if self.shard then
    own = pg.distributed.slice(list)
    before = pg.distributed.rank() * #own
  end
  local positions = call.zero_based(pg.tensor(own, { dtype = "int32" }))
  self.ahead[number] = { list = list, own = own, at = at, after = { epoch = at.epoch, samples = at.samples + #list,
    position = self.sampler and 0 or at.position + #list } }
  local status = lib.pg_loader_push(self.handle, positions, self.seed, at.samples + before)
  positions:free()
  if status ~= 0 then self.ahead[number] = nil end
  call.check(status)
end

local function counts(self)
  return tonumber(lib.pg_loader_taken(self.handle)), tonumber(lib.pg_loader_pushed(self.handle))
end

-- Waits for the oldest batch; nil and a message when one of its images could not be read.
local function await(handle)
  local out = ffi.new "pg_tensor *[1]"
  repeat
    if lib.pg_loader_next(handle, PATIENCE, out) ~= 0 then return nil, ffi.string(lib.pg_last_error()) end
  until out[0] ~= nil
  return call.own(out[0])
end
jit.off(await) -- compiled traces call no hooks, and a hook is how Ctrl-C arrives

local function check_open(self, where)
  util.check(self.handle, "loader:%s: the loader is closed", where)
end

-- ---- the object ---------------------------------------------------------------------------------------------------

--- The next batch. Without a sampler it never ends: a new epoch has a new order.
-- @return images float32 (B, 3, S, S), labels int32 (B), positions (list of B)
-- @raises one line naming the file when a picture of this batch cannot be read; the next call gives the batch after it
function Loader:next()
  check_open(self, "next")
  local taken, pushed = counts(self)
  if taken ~= self.given then -- Ctrl-C came between taking a batch and giving it
    self:restore(self:state())
    taken, pushed = counts(self)
  end
  for number = pushed, taken + self.prefetch do push(self, number) end
  local images, why = await(self.handle)
  local list = self.ahead[taken].own
  local labels = pg.empty(#list, { dtype = "int32" })
  local to = labels:data()
  for i = 1, #list do to[i - 1] = self.labels[list[i] - 1] end
  self.ahead[taken - 1], self.replay[taken] = nil, nil
  self.given = taken + 1
  if not images then util.raise(why) end
  return images, labels, list
end

--- What :restore needs to go on with the first batch that :next() has not given: a table that JSON holds.
-- A sampler has been asked ahead: its unseen batches are in `pending`, and its own state is the caller's to keep.
function Loader:state()
  check_open(self, "state")
  local at, pending = place_of(self, self.given), nil
  if self.sampler then
    pending = {}
    for number = self.given, math.huge do
      local entry = self.ahead[number]
      local list = entry and entry.list or self.replay[number]
      if not list then break end
      pending[#pending + 1] = list
    end
  end
  return { seed = self.seed, n = self.n, batch = self.batch, epoch = at.epoch, position = at.position,
    samples = at.samples, pending = pending }
end

--- Goes on from a state, bitwise as the loader that gave it; what was prefetched is forgotten.
-- @raises when the state is of another number of images, of another batch size, or of another kind of order
function Loader:restore(state)
  check_open(self, "restore")
  util.check(type(state) == "table" and state.n == self.n and state.batch == self.batch,
    "loader:restore: the state is of %s images in batches of %s, this is %d in batches of %d",
    tostring(type(state) == "table" and state.n), tostring(type(state) == "table" and state.batch), self.n, self.batch)
  util.check((state.pending ~= nil) == (self.sampler ~= nil), "loader:restore: the state is of a loader %s a sampler",
    state.pending and "with" or "without")
  for _, key in ipairs { "epoch", "position", "samples" } do whole("state." .. key, state[key], 0) end
  random.new(state.seed)
  lib.pg_loader_clear(self.handle)
  local number = select(2, counts(self))
  self.seed, self.given, self.order, self.ahead, self.replay = state.seed, number, {}, {}, {}
  self.start = { epoch = state.epoch, position = state.position, samples = state.samples }
  for i, list in ipairs(state.pending or {}) do self.replay[number + i - 1] = list end
  return self
end

--- Ends the threads and lets go of the images. Called by the collector too; twice does no harm.
function Loader:close()
  if self.handle then lib.pg_loader_free(ffi.gc(self.handle, nil)) end
  self.handle = nil
end

--- Batches read, augmented and normalised by threads, ahead of the caller. The stream depends on (dataset, options,
-- seed) and not on `workers` or `prefetch`; without augmentation it is data.batches' stream, bit for bit.
-- @param options
--   dataset    {images = uint8 (N, H, W, 3), labels = int32 (N)}, or {files = list of N PNG or JPEG paths, labels =};
--              labels may be a list; images are kept, not copied
--   batch      images a batch; default 64
--   workers    threads; default pg.threads()
--   prefetch   batches under way beyond the one that :next() waits for; default 4
--   seed       whole number from 0 to 2^32 - 1; default 0
--   shuffle    default true: epoch e has the order random.new(seed, e):permutation(N)
--   size       S; default the images' own side, 32 for files. Other sizes: shorter side to S, then the centre
--   method     "bicubic" (default) or "bilinear", both to the bit as Pillow
--   augment    {crop = {least, most} area of a random resized crop, flip = probability, pad = most pixels of a random
--              shift, pad_mode = "zero" (default) or "edge", brightness =, contrast =, saturation = amplitudes};
--              nothing by default. Formulas: core/data/augment.c
--   mean, std  of v / 255, each a number or a list of three; default 0.5 and 0.25
--   sampler    function that returns the next batch's 1-based positions, int32 tensor (any B) or list; called by :next()
--              ahead of use, in the caller's thread. batch, shuffle and drop_last then say nothing
--   drop_last  default true: images left over at an epoch's end wait for another order; false: a smaller last batch
--   shard      default false; true: each process of a run gets its own part of every batch (pg.distributed.slice), augmented
--              as one process would augment it
-- @return an object with :next(), :state(), :restore(state), :close()
-- @raises on options that do not fit together; a picture that cannot be read is raised by :next()
return function(options)
  local o = util.options("loader", options, { dataset = util.none, batch = 64, workers = pg.threads(), prefetch = 4,
    seed = 0, shuffle = true, size = util.none, method = "bicubic", augment = {}, mean = 0.5, std = 0.25,
    sampler = util.none, drop_last = true, shard = false })
  local source, n, side = source_of(o.dataset)
  whole("batch", o.batch, 1)
  whole("prefetch", o.prefetch, 1)
  random.new(o.seed)
  util.check(o.sampler == nil or type(o.sampler) == "function", "loader: sampler must be a function, got %s",
    type(o.sampler))
  util.check(o.sampler or not o.drop_last or n >= o.batch, "loader: a batch of %d from a dataset of %d images", o.batch,
    n)
  o.size = o.size or util.check(side, "loader: the images are not square: name the size that they should have")
  local labels = copy_labels(o.dataset.labels, n)
  return setmetatable({ handle = make(source, n, o), labels = labels, n = n, batch = o.batch, prefetch = o.prefetch,
    seed = o.seed, shuffle = o.shuffle, drop_last = o.drop_last, shard = o.shard, sampler = o.sampler, given = 0, order = {},
    start = { epoch = 1, position = 0, samples = 0 }, ahead = {}, replay = {} }, Loader)
end
