-- sets.lua - data sets that lie on the disk, by name: where they are looked for, what is said when they are not there,
-- and one shape for all of them. The rows are in sets/registry.lua, the readers in sets/arrays.lua and folders.lua.

local lfs = require "lfs"
local util = require "perigee.util"
local pg = require "perigee"
local random = require "perigee.data.torch_random"
local registry = require "perigee.data.sets.registry"
local folders = require "perigee.data.sets.folders"

local sets = {}
local HELD_OUT, MOST_HELD_OUT = 0.1, 20000

local function exists(path) return lfs.attributes(path, "mode") ~= nil end

local function each(value) return type(value) == "table" and value or { value } end

-- ---- where ---------------------------------------------------------------------------------------------------------

-- The places that are searched, in order.
local function places(root)
  if root then return { (root:gsub("(.)/+$", "%1")) } end
  local list, home = {}, os.getenv "HOME"
  for place in (os.getenv "PERIGEE_DATA" or ""):gmatch "[^:]+" do list[#list + 1] = (place:gsub("(.)/+$", "%1")) end
  if home and home ~= "" then list[#list + 1], list[#list + 2] = home .. "/datasets", home .. "/data" end
  list[#list + 1] = "/usr/share/datasets"
  return list
end

-- The folder and layout of a row, or nil and what was found that is not read.
local function find(row, root)
  local unread
  for _, place in ipairs(places(root)) do
    for i = root and 0 or 1, #row.folders do -- a root that was named may be the data set's own folder
      local name = i == 0 and "." or row.folders[i]
      local folder = name:sub(1, 1) == "/" and name or name == "." and place or place .. "/" .. name
      for _, layout in ipairs(not (root and name:sub(1, 1) == "/") and row.layouts or {}) do
        for _, mark in ipairs(each(layout.mark)) do
          if exists(folder .. "/" .. mark) then return folder, layout end
        end
      end
    end
    for _, mark in ipairs(row.unread and row.unread[1] or {}) do
      if not unread and exists(place .. "/" .. mark) then unread = place .. "/" .. mark end
    end
  end
  return nil, nil, unread
end

local function missing(row, root, unread)
  if unread then
    util.fail(0, "load: %s is not read (%s): take %s from %s", unread,
      row.name:find "cifar" and "Python pickles" or "MATLAB structs", row.unread[2], row.download)
  end
  local layouts = {}
  for i, layout in ipairs(row.layouts) do layouts[i] = layout.layout end
  local looked = row.folders[1]:sub(1, 1) == "/" and not root and row.folders or places(root)
  util.fail(0, "load: %s is not in %s%s; layout: %s; %sdownload: %s", row.name, table.concat(looked, ", "),
    root and "" or " (option root names another place, PERIGEE_DATA adds some)", table.concat(layouts, "; or "),
    row.package and "apt-get install " .. row.package .. "; or " or "", row.download)
end

-- ---- what ----------------------------------------------------------------------------------------------------------

local function row_of(name)
  local names = {}
  for i, row in ipairs(registry) do
    if row.name == name then return row end
    names[i] = row.name
  end
  util.fail(0, "load: unknown data set '%s' (did you mean '%s'?)", tostring(name), util.nearest(tostring(name), names))
end

local function parts_of(counts)
  local list = {}
  for part in pairs(counts) do list[#list + 1] = part end
  table.sort(list)
  return list
end

--- The pictures of a set, which may be files, as bytes of one size: shorter side to `size`, then the centre, as the loader
-- makes them.
-- @param set   {images = or files =, labels =}
-- @param size  S
-- @return uint8 (N, S, S, 3)
-- @raises one line naming a file that is missing or damaged
function sets.read(set, size)
  util.check(type(size) == "number" and size % 1 == 0 and size >= 1 and size <= 1024,
    "load: size must be a whole number from 1 to 1024, got %s", tostring(size))
  local ffi, n = require "ffi", set.labels:numel()
  local loader = require "perigee.data.loader" { dataset = set, size = size, batch = math.min(64, n), shuffle = false,
    drop_last = false, mean = 0, std = 1 / 255 }
  local images, done = pg.empty(n, size, size, 3, { dtype = "uint8" }), 0
  local bar = require("perigee.progress").new((set.name or "set") .. ": reading pictures", n, { unit = "picture" })
  local ok, why = pcall(function()
    while done < n do
      pg.scope(function()
        local batch = loader:next() -- floats that are within a rounding of whole numbers
        local bytes = (batch + 0.5):to("uint8"):permute(1, 3, 4, 2):contiguous()
        ffi.copy(images:data() + done * size * size * 3, bytes:data(), bytes:numel())
        done = done + bytes:size(1)
      end)
      bar:step(done)
    end
  end)
  bar:done()
  loader:close()
  if not ok then error(why, 0) end
  return images
end

--- The positions of LDIFS' "Val" data sets: a random tenth of the training part, at most 20,000 pictures, is held out,
-- by PyTorch's random_split with a generator of seed 0 (omegafragger/ldifs_code, datasets/registry.py).
-- @param n        pictures of the training part, 10 or more
-- @param options  {seed = 0}
-- @return {train = list of 1-based positions, val = list}; for MNIST, n = 60,000, train begins with 36,045
-- @raises on fewer than 10
function sets.ldifs_split(n, options)
  options = util.options("ldifs_split", options, { seed = 0 })
  util.check(type(n) == "number" and n % 1 == 0 and n >= 10,
    "ldifs_split: n must be a whole number, 10 or more, got %s", tostring(n))
  local order, held = random.randperm(n, options.seed), math.min(math.floor(n * HELD_OUT), MOST_HELD_OUT)
  local train, val = {}, {}
  for i = 1, n - held do train[i] = order[i] end
  for i = 1, held do val[i] = order[n - held + i] end
  return { train = train, val = val }
end

--- A data set that lies on the disk; docs/06-data.md lists them, their layouts and their parts.
-- Looked for in `root`, or else below each of PERIGEE_DATA (places parted by colons), ~/datasets, ~/data and
-- /usr/share/datasets.
-- @param name     such as "cifar10"; pg.data.sets() has them all
-- @param options
--   split  "train" (default), "val", "test" as the data set has them; openclipart has "pretrain", too
--   root   the one place to look in: the data set's folder, or the folder above it
--   size   S: images are uint8 (N, S, S, 3), shorter side resized to S, then the centre, bicubic as Pillow. Default: as
--          they are, which is .files for pg.data.loader where pictures are files. MNIST and Fashion-MNIST then come
--          centred on black 32 x 32; with size = 28 as their own 28 x 28, and any other size is made of that
--   ldifs  true: "train" and "val" are LDIFS' 90% and 10% of the training part (ldifs_split), but for EuroSAT's own val
--   list   path of a CoOp list, split_zhou_NAME.json, which then says what the parts are
--   fold   1 to 10: the official partition of dtd or sun397; default 1
-- @return {name =, split =, labels = int32 (N) 1-based, classes =, images = uint8 (N, H, W, 3) or files = list of N
--   paths, warning = nil, or the line that was written to stderr: a number of pictures that is not the official one}
-- @raises one line: where a data set that is not there was looked for, its layout and its download; or the file that is
--   cut, damaged or missing, and what it should be
function sets.load(name, options)
  local o = util.options("load", options, { split = "train", root = util.none, size = util.none, ldifs = false,
    list = util.none, fold = util.none })
  local row = row_of(name)
  util.check(o.root == nil or type(o.root) == "string", "load: root must be a path, got %s", type(o.root))
  util.check(o.fold == nil or name == "dtd" or name == "sun397", "load: %s has no folds: dtd and sun397 do", name)
  util.check(o.list == nil or row.base and not o.ldifs, "load: %s", row.base and "list and ldifs both name the parts"
    or name .. " takes no CoOp list")
  local folder, layout, unread = find(row, o.root)
  local counts = layout and layout.counts or row.counts
  local part = o.ldifs and not (layout and layout.own_val) and o.split == "val" and "train" or o.split
  util.check(counts[part] or o.list and part == "val", "load: %s has no part '%s', but %s%s", name, tostring(o.split),
    table.concat(parts_of(counts), ", "), part == "val" and "; ldifs = true holds a tenth of train out as val" or "")
  if not folder and o.list and o.root then folder = o.root end -- pictures and a list are enough
  if not folder then missing(row, o.root, unread) end

  local set
  if o.list then set = folders.listed(o.list, row.base == "." and folder or folder .. "/" .. row.base, part)
  else set = layout.read(folder, part, o, row) end
  set.name, set.split = name, o.split
  local n = #set.labels
  util.check(n > 0, "load: %s: the part '%s' in %s is empty", name, part, folder)
  if not o.list and (n ~= counts[part] or #set.classes ~= row.classes) then
    set.warning = ("%s: %s has %d pictures of %d classes in part '%s'; %d of %d are expected"):format(name, folder, n,
      #set.classes, part, counts[part], row.classes)
    io.stderr:write("perigee: ", set.warning, "\n")
  end
  set.labels = pg.tensor(set.labels, { dtype = "int32" })
  if o.ldifs and not layout.own_val and (o.split == "train" or o.split == "val") then
    set = require("perigee.data").subset(set, sets.ldifs_split(n)[o.split])
  end
  if o.size and not (set.images and set.images:size(2) == o.size and set.images:size(3) == o.size) then
    set.images = sets.read(set, o.size)
  end
  return set
end

--- Every data set that load knows, in the order of docs/06-data.md.
-- @return a list of {name =, title =, classes = how many, counts = {part = pictures}, layouts = {texts}, download =,
--   package = Debian's or nil, licence =, citation =, zhou = name of its CoOp list or nil, path = where it was found or
--   nil, unread = what was found but is not read}
function sets.list()
  local list = {}
  for i, row in ipairs(registry) do
    local path, layout, unread = find(row)
    local layouts = {}
    for j, each_layout in ipairs(row.layouts) do layouts[j] = each_layout.layout end
    list[i] = { name = row.name, title = row.title, classes = row.classes, layouts = layouts, download = row.download,
      counts = layout and layout.counts or row.counts, package = row.package, licence = row.licence,
      citation = row.citation, zhou = row.zhou, path = path, unread = not path and unread or nil }
  end
  return list
end

return sets
