-- pictures.lua - folders of PNG and JPEG pictures as datasets: a class is a folder. Reduced pictures are cached for the user.
--
-- Symbolic links and pictures that are pixel-identical once reduced count once, so that no test picture was trained on.

local ffi = require "ffi"
local bit = require "bit"
local lfs = require "lfs"
local cjson = require "cjson"
local lib = require "perigee.ffi"
local call = require "perigee.call"
local util = require "perigee.util"
local pg = require "perigee"
local random = require "perigee.data.random"

local pictures = {}

local EXTENSIONS = { png = true, jpg = true, jpeg = true }

-- Every PNG and JPEG, by name, below `folder` that is a file of its own, sorted.
local function walk(folder, found)
  local names = {}
  for name in lfs.dir(folder) do
    if name:sub(1, 1) ~= "." then names[#names + 1] = name end
  end
  table.sort(names)
  for _, name in ipairs(names) do
    local path = folder .. "/" .. name
    local mode = lfs.symlinkattributes(path, "mode")
    if mode == "directory" then walk(path, found)
    elseif mode == "file" and EXTENSIONS[name:lower():match "%.(%w+)$"] then found[#found + 1] = path end
  end
  return found
end

-- The folders directly below `root` as classes: {name =, files =}; those that are `skipped` say nothing of the subject.
local function classes_of(where, root, least, skipped)
  local classes = {}
  for name in lfs.dir(root) do
    local path = root .. "/" .. name
    if name:sub(1, 1) ~= "." and not skipped[name] and lfs.symlinkattributes(path, "mode") == "directory" then
      local files = walk(path, {})
      util.check(#files > 0 or least > 0, "%s: the class folder %s holds no PNG or JPEG", where, path)
      if #files >= least then classes[#classes + 1] = { name = name, files = files } end
    end
  end
  table.sort(classes, function(a, b) return a.name < b.name end)
  return classes
end

-- FNV-1a, 64 bits (Fowler, Noll, Vo): names the cache file, so that a changed file list is another cache.
local function hash(text)
  local h = 0xcbf29ce484222325ULL
  for i = 1, #text do h = bit.bxor(h, ffi.cast("uint64_t", text:byte(i))) * 0x100000001b3ULL end
  return bit.tohex(h)
end

local function cache_path(name, classes, options)
  local parts = { "2", options.size, options.per_class, options.least }
  for _, class in ipairs(classes) do
    for _, file in ipairs(class.files) do
      parts[#parts + 1] = file .. lfs.attributes(file, "size") .. ":" .. lfs.attributes(file, "modification")
    end
  end
  local home = os.getenv "XDG_CACHE_HOME"
  if not home or home == "" then home = (os.getenv "HOME" or "/tmp") .. "/.cache" end
  lfs.mkdir(home)
  lfs.mkdir(home .. "/perigee")
  return ("%s/perigee/%s-%d-%s"):format(home, name, options.size, hash(table.concat(parts, "\n")))
end

local function read_cache(path)
  local file = io.open(path .. ".json", "rb")
  if not file then return nil end
  local ok, index = pcall(cjson.decode, file:read "*a")
  file:close()
  local out = ffi.new "pg_tensor *[1]"
  if not ok or lib.pg_npy_load(path .. ".npy", out) ~= 0 then return nil end
  local images = call.own(out[0])
  if images:dim() ~= 4 or images:size(1) ~= #index.labels then return nil end
  return { images = images, labels = pg.tensor(index.labels, { dtype = "int32" }), classes = index.classes,
    files = index.files }
end

-- A cache that cannot be written costs time at the next start, and nothing else.
local function write_cache(path, dataset)
  if lib.pg_npy_save(path .. ".npy", dataset.images) ~= 0 then return end
  pcall(util.write_file, path .. ".json", cjson.encode { labels = dataset.labels:totable(), classes = dataset.classes,
    files = dataset.files })
end

-- Some files read on all threads. @return a list of pixels as strings, false where a file is no readable picture
local function read(files, size)
  local paths, images, whole = ffi.new("const char *[?]", #files), ffi.new "pg_tensor *[1]", ffi.new "pg_tensor *[1]"
  for i, file in ipairs(files) do paths[i - 1] = file end
  call.check(lib.pg_images_load_reduced(paths, #files, size, images, whole))
  local pixels, good, list, bytes = call.own(images[0]), call.own(whole[0]), {}, size * size * 3
  for i = 1, #files do
    list[i] = good:data()[i - 1] == 1 and ffi.string(pixels:data() + (i - 1) * bytes, bytes)
  end
  pixels:free()
  return list
end

-- Why a file could not be read.
local function reason(file, size)
  local out = ffi.new "pg_tensor *[1]"
  local status = lib.pg_image_load_reduced(file, size, out)
  if status == lib.PG_ERR_INTERRUPTED then call.check(status) end
  if status == 0 then return file .. ": it changed while it was read" end
  return ffi.string(lib.pg_last_error())
end

-- Up to per_class distinct pictures of each class, in a fixed random order so that no subfolder crowds out the others.
local function reduce(where, classes, options)
  local seen, kept, all, done, at_once = {}, {}, 0, 0, 64
  local bytes = options.size * options.size * 3
  for _, class in ipairs(classes) do all = all + math.min(#class.files, options.per_class) end
  local bar = require("perigee.progress").new(where .. ": reading pictures", all, { unit = "picture" })
  for c, class in ipairs(classes) do
    local mine, order = 0, random.new(0, c):permutation(#class.files)
    for start = 1, #order, at_once do
      if mine == options.per_class then break end
      local files = {}
      for i = start, math.min(start + at_once - 1, #order) do files[#files + 1] = class.files[order[i]] end
      for i, pixels in ipairs(read(files, options.size)) do
        if not pixels and options.strict then util.raise(where .. ": " .. reason(files[i], options.size)) end
        if pixels and not seen[pixels] and mine < options.per_class then
          seen[pixels], mine = true, mine + 1
          kept[#kept + 1] = { pixels = pixels, label = c, file = files[i] }
        end
      end
      done = done + #files
      bar:step(math.min(done, all))
    end
    util.check(mine > 0, "%s: class '%s' holds no readable PNG or JPEG", where, class.name)
  end
  bar:done()
  local images = pg.empty(#kept, options.size, options.size, 3, { dtype = "uint8" })
  local labels, files, names, at = {}, {}, {}, images:data()
  for i, picture in ipairs(kept) do
    ffi.copy(at + (i - 1) * bytes, picture.pixels, bytes)
    labels[i], files[i] = picture.label, picture.file
  end
  for c, class in ipairs(classes) do names[c] = class.name end
  return { images = images, labels = pg.tensor(labels, { dtype = "int32" }), classes = names, files = files }
end

local function load(where, root, options)
  local classes = classes_of(where, root, options.least, options.skipped or {})
  util.check(#classes >= 2, "%s: %s has %d class folder(s) with enough pictures, needs 2 or more", where, root,
    #classes)
  local cache = cache_path(where, classes, options)
  local dataset = read_cache(cache)
  if not dataset then
    dataset = reduce(where, classes, options)
    write_cache(cache, dataset)
  end
  dataset.name, dataset.captions = where, {}
  for i, path in ipairs(dataset.files) do -- the first line of a text beside the picture
    local file = io.open((path:gsub("%.%w+$", ".txt")), "rb")
    dataset.captions[i] = file and file:read "*l" or false
    if file then file:close() end
  end
  return dataset
end

local function check_root(where, root, package)
  util.check(type(root) == "string" and lfs.attributes(root, "mode") == "directory", "%s: %s is not a folder%s",
    where, tostring(root), package and ": install the Debian package " .. package or "")
end

--- Open Clip Art, public domain: drawings by subject, the package's top-level folders with at least 60 pictures.
-- @param options {path =, size = 32, per_class = 300 pictures at most}
-- @return dataset with .files and .captions (false where no NAME.txt lies beside NAME.png)
-- @raises when openclipart-png is not installed
function pictures.openclipart(options)
  options = util.options("openclipart", options, { path = "/usr/share/openclipart/png", size = 32, per_class = 300 })
  check_root("openclipart", options.path, "openclipart-png")
  options.least, options.skipped = 60, { special = true, unsorted = true }
  return load("openclipart", options.path, options)
end

--- Tux Paint's stamps, GPL, by top-level folder (at least 20 pictures), most with a caption.
-- @param options {path =, size = 32, per_class = 300 pictures at most}
-- @return dataset with .files and .captions (false where no NAME.txt lies beside NAME.png)
-- @raises when tuxpaint-stamps-default is not installed
function pictures.tuxpaint(options)
  options = util.options("tuxpaint", options, { path = "/usr/share/tuxpaint/stamps", size = 32, per_class = 300 })
  check_root("tuxpaint", options.path, "tuxpaint-stamps-default")
  options.least = 20
  return load("tuxpaint", options.path, options) -- of a caption file's lines the first is English
end

--- Any folder of class folders of PNG and JPEG pictures, told by .png, .jpg or .jpeg in any case.
-- @param options {path =, size = 32, per_class = 100000 pictures at most}
-- @return dataset with .files and .captions (false where no NAME.txt lies beside the picture)
-- @raises on a class folder without pictures, an unreadable picture, or fewer than 2 classes
function pictures.folder(options)
  options = util.options("folder", options, { path = util.none, size = 32, per_class = 100000 })
  check_root("folder", options.path)
  options.least, options.strict = 0, true
  return load("folder", options.path, options)
end

return pictures
