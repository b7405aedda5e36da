-- arrays.lua - data sets whose files are arrays of small pictures: CIFAR's binary version, IDX (MNIST, Fashion-MNIST),
-- SVHN.
--
-- A reader takes the folder and the part that is wanted and gives {images = uint8 (N, H, W, 3), labels = list, 1-based,
-- classes = list}. Every error is one line that names the file.

local ffi = require "ffi"
local lfs = require "lfs"
local lib = require "perigee.ffi"
local call = require "perigee.call"
local util = require "perigee.util"
local pg = require "perigee"

local arrays = {}

local function loaded(fn, ...)
  local out = ffi.new "pg_tensor *[1]"
  local arguments = { ... }
  arguments[#arguments + 1] = out
  call.check(fn(unpack(arguments)))
  return call.own(out[0])
end

-- The bytes of a file of whole records.
local function records(path, record)
  local file = io.open(path, "rb")
  util.check(file and lfs.attributes(path, "mode") == "file", "%s is not there", path)
  local bytes = file:read "*a" or ""
  file:close()
  util.check(#bytes > 0 and #bytes % record == 0,
    "%s: cut or damaged: %d bytes, and it must be a multiple of %d, one picture's", path, #bytes, record)
  return bytes, #bytes / record
end

-- ---- CIFAR ---------------------------------------------------------------------------------------------------------

local PLANES = 3 * 32 * 32

-- Records of `head` label bytes, the last of which counts, and three planes of 32 x 32. labels grows.
local function cifar_file(path, head, classes, labels)
  local bytes, n = records(path, head + PLANES)
  local planes = pg.empty(n, 3, 32, 32, { dtype = "uint8" })
  local from, to = ffi.cast("const uint8_t *", bytes), planes:data()
  for i = 0, n - 1 do
    local at = from + i * (head + PLANES)
    local label = at[head - 1]
    util.check(label < classes, "%s: label %d of picture %d is outside 0..%d", path, label, i + 1, classes - 1)
    labels[#labels + 1] = label + 1
    ffi.copy(to + i * PLANES, at + head, PLANES)
  end
  return planes:permute(1, 3, 4, 2):contiguous()
end

-- Class names, one a line.
local function names(path, count)
  local list, file = {}, io.open(path, "rb")
  util.check(file, "%s is not there: it names the classes", path)
  for line in file:lines() do
    local name = line:match "^%s*(.-)%s*$"
    if name ~= "" then list[#list + 1] = name:gsub("_", " ") end
  end
  file:close()
  util.check(#list == count, "%s: it names %d classes, and there are %d", path, #list, count)
  return list
end

-- files: {train = names, test = names}; head: label bytes; listed: the file that names the classes
local function cifar(files, head, listed)
  return function(folder, part, _, row)
    local classes, labels, images = names(folder .. "/" .. listed, row.classes), {}, {}
    for i, file in ipairs(files[part]) do
      images[i] = cifar_file(folder .. "/" .. file, head, row.classes, labels)
    end
    return { images = #images == 1 and images[1] or pg.cat(images, 1), labels = labels, classes = classes }
  end
end

arrays.cifar10 = cifar({ test = { "test_batch.bin" }, train = { "data_batch_1.bin", "data_batch_2.bin",
  "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin" } }, 1, "batches.meta.txt")
arrays.cifar100 = cifar({ train = { "train.bin" }, test = { "test.bin" } }, 2, "fine_label_names.txt")

-- ---- IDX -----------------------------------------------------------------------------------------------------------

-- Grey (N, h, w), centred on black S x S, as RGB.
local function on_black(grey, side)
  local n, h, w = grey:size(1), grey:size(2), grey:size(3)
  local images = pg.zeros(n, side, side, 3, { dtype = "uint8" })
  local from, to, top, left = grey:data(), images:data(), math.floor((side - h) / 2), math.floor((side - w) / 2)
  for i = 0, n - 1 do
    for y = 0, h - 1 do
      local source, target = (i * h + y) * w, ((i * side + y + top) * side + left) * 3
      for x = 0, w - 1 do
        local value, at = from[source + x], target + 3 * x
        to[at], to[at + 1], to[at + 2] = value, value, value
      end
    end
  end
  return images
end

-- prefix-images-idx3-ubyte, with a dot in place of the second dash as some mirrors have it, plain or gzipped.
local function idx_path(folder, prefix, kind)
  for _, mark in ipairs { "-", "." } do
    for _, ending in ipairs { "", ".gz" } do
      local path = ("%s/%s-%s%s%s"):format(folder, prefix, kind, mark .. (kind == "images" and "idx3" or "idx1"),
        "-ubyte" .. ending)
      if lfs.attributes(path, "mode") == "file" then return path end
    end
  end
end

--- Pictures and labels of an MNIST-like folder.
-- @param where    whom a message names
-- @param folder   with train-images-idx3-ubyte and its kin, plain or .gz
-- @param part     "train" or "test"
-- @param classes  list of names, for labels 0 and up
-- @param options  {side = 32: grey pictures are centred on black side x side; choose = as data.fashion_mnist's;
--   missing = what to do about a missing file}
-- @return {images = uint8 (N, side, side, 3), labels = list, classes =}
-- @raises one line naming the file
function arrays.idx(where, folder, part, classes, options)
  local prefix, found = part == "train" and "train" or "t10k", {}
  for i, kind in ipairs { "images", "labels" } do
    local path = idx_path(folder, prefix, kind)
    util.check(path, "%s: %s/%s-%s-idx%d-ubyte.gz is not there%s", where, folder, prefix, kind, i == 1 and 3 or 1,
      options.missing or "")
    found[i] = path
  end
  local grey, bytes = loaded(lib.pg_idx_load, found[1]), loaded(lib.pg_idx_load, found[2])
  util.check(grey:dim() == 3 and grey:size(2) <= options.side and grey:size(3) <= options.side and bytes:dim() == 1
    and grey:size(1) == bytes:numel(), "%s: %s and %s do not belong together: one label (N), one picture (N, H, W)",
    where, found[1], found[2])
  local labels, class = {}, bytes:data()
  for i = 1, grey:size(1) do
    util.check(class[i - 1] < #classes, "%s: %s: label %d of picture %d is outside 0..%d", where, found[2],
      class[i - 1], i, #classes - 1)
    labels[i] = class[i - 1] + 1
  end
  if options.choose then
    local index, chosen = options.choose(labels, classes), {}
    grey = grey:index(1, pg.tensor(index, { dtype = "int32" }))
    for i, from in ipairs(index) do chosen[i] = labels[from] end
    labels = chosen
  end
  local images = on_black(grey, options.side)
  grey:free()
  return { images = images, labels = labels, classes = classes }
end

arrays.FASHION = { "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
  "ankle boot" }

local DIGITS = { "0", "1", "2", "3", "4", "5", "6", "7", "8", "9" }

-- 28 x 28 as they are where that or another size is asked for: black edges would be scaled along.
local function side(options) return (options.size or 32) == 32 and 32 or 28 end

function arrays.mnist(folder, part, options)
  return arrays.idx("mnist", folder, part, DIGITS, { side = side(options) })
end

function arrays.fashion_mnist(folder, part, options)
  return arrays.idx("fashion_mnist", folder, part, arrays.FASHION, { side = side(options) })
end

-- ---- SVHN ----------------------------------------------------------------------------------------------------------

--- train_32x32.mat and test_32x32.mat: X uint8 (32, 32, 3, N), y (N, 1), where 10 stands for the digit 0.
function arrays.svhn(folder, part)
  local path = ("%s/%s_32x32.mat"):format(folder, part)
  local x, y = loaded(lib.pg_mat_load, path, "X"), loaded(lib.pg_mat_load, path, "y")
  local shape = x:shape()
  util.check(x:dtype() == "uint8" and #shape == 4 and shape[1] == 32 and shape[2] == 32 and shape[3] == 3
    and shape[4] == y:numel(), "%s: X must be uint8 (32, 32, 3, N) and y have N values, got %s (%s) and %d", path,
    x:dtype(), table.concat(shape, ", "), y:numel())
  local labels, value = {}, y:contiguous():data()
  for i = 1, shape[4] do
    local digit = tonumber(value[i - 1])
    util.check(digit % 1 == 0 and digit >= 1 and digit <= 10, "%s: label %g of picture %d is outside 1..10", path,
      digit, i)
    labels[i] = digit % 10 + 1
  end
  return { images = x:permute(4, 1, 2, 3):contiguous(), labels = labels, classes = DIGITS }
end

return arrays
