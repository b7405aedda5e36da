-- sets_spec.lua - data sets on the disk: tiny copies of every layout, made here, and what is said of a copy that is
-- cut, damaged, incomplete or not there. MATLAB files and PyTorch's permutations are fixtures
-- (tests/fixtures/make_sets.py).

local ffi = require "ffi"
local lfs = require "lfs"
local cjson = require "cjson"
local pg = require "perigee"
local lib = require "perigee.ffi"
local random = require "perigee.data.torch_random"

ffi.cdef "int setenv(const char *name, const char *value, int overwrite);"

local root = os.tmpname()
os.remove(root)
local stderr = io.stderr
local FIXTURES = "tests/fixtures/sets/"

local function read(path)
  local file = assert(io.open(path, "rb"))
  local bytes = file:read "*a"
  file:close()
  return bytes
end

-- Writes root/name; the folders on the way are made.
local function put(name, bytes)
  local path = root .. "/" .. name
  for at in path:gmatch "()/" do lfs.mkdir(path:sub(1, at - 1)) end
  local file = assert(io.open(path, "wb"))
  file:write(bytes)
  file:close()
  return path
end

local function ppm(r, g, b, width, height)
  width, height = width or 2, height or 2
  return ("P6\n%d %d\n255\n"):format(width, height) .. string.char(r, g, b):rep(width * height)
end

local function png(r, g, b, side)
  local t = pg.full({ side, side, 3 }, r, { dtype = "uint8" })
  for i = 0, side * side - 1 do t:data()[3 * i + 1], t:data()[3 * i + 2] = g, b end
  local path = os.tmpname()
  pg.image.save(path, t)
  local bytes = read(path)
  os.remove(path)
  return bytes
end

local function text(...) return table.concat({ ... }, "\n") .. "\n" end

local function fails(words, name, options)
  local ok, message = pcall(pg.data.load, name, options)
  assert.is_false(ok)
  message = tostring(message)
  assert.truthy(message:find(words, 1, true), message)
  assert.falsy(message:find("\n", 1, true), message)
  return message
end

local function load(name, options)
  options = options or {}
  options.root = options.root or root .. "/" .. name
  return pg.data.load(name, options)
end

-- The last parts of a data set's paths, and its labels.
local function listing(set)
  local list = {}
  for i, path in ipairs(set.files) do
    list[i] = path:match "([^/]+/[^/]+)$" .. " " .. set.labels:get(i)
  end
  return list
end

describe("data sets on the disk", function()
  local said
  before_each(function()
    said = {}
    local function write(_, ...) said[#said + 1] = table.concat { ... } end
    io.stderr = { write = write, flush = function() end } -- luacheck: ignore
  end)
  after_each(function() io.stderr = stderr end) -- luacheck: ignore
  teardown(function() os.execute("rm -rf '" .. root .. "'") end)

  -- ---- arrays ------------------------------------------------------------------------------------------------------

  -- A CIFAR record: label bytes, then planes of which pixel (y, x) of plane c is (seed + y + 3 x + 50 c) mod 256.
  local function record(labels, seed)
    local values = { labels }
    for c = 0, 2 do
      for y = 0, 31 do
        for x = 0, 31 do values[#values + 1] = string.char((seed + y + 3 * x + 50 * c) % 256) end
      end
    end
    return table.concat(values)
  end

  local CLASSES = { "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck" }

  it("reads CIFAR-10's binary version", function()
    for i = 1, 5 do
      put(("cifar10/cifar-10-batches-bin/data_batch_%d.bin"):format(i),
        record(string.char(i), i) .. record("\0", 10 * i))
    end
    put("cifar10/cifar-10-batches-bin/test_batch.bin", record("\9", 77))
    fails("batches.meta.txt is not there", "cifar10", { root = root })
    put("cifar10/cifar-10-batches-bin/batches.meta.txt", text(unpack(CLASSES)) .. "\n")
    local train, test = pg.data.load("cifar10", { root = root }), load("cifar10", { split = "test" })
    assert.are.same({ 10, 32, 32, 3 }, train.images:shape())
    assert.are.same({ 2, 1, 3, 1, 4, 1, 5, 1, 6, 1 }, train.labels:totable())
    assert.are.same({ "int32", "cifar10", "train" }, { train.labels:dtype(), train.name, train.split })
    assert.are.equal((20 + 4 + 3 * 7 + 100) % 256, train.images:get(4, 5, 8, 3))
    assert.are.same({ 10, "truck" }, { test.labels:get(1), test.classes[10] })
    assert.are.equal((77 + 31 + 3 * 2 + 50) % 256, test.images:get(1, 32, 3, 2))
    assert.are.same("cifar10: " .. root .. "/cifar10/cifar-10-batches-bin has 10 pictures of 10 classes in part"
      .. " 'train'; 50000 of 10 are expected", train.warning)
    assert.are.same({ "perigee: ", train.warning, "\n" }, { said[1]:match "^(perigee: )(.*)(\n)$" })
  end)

  it("says which CIFAR file is cut, damaged or missing", function()
    local folder = "cifar10/cifar-10-batches-bin/"
    put(folder .. "data_batch_3.bin", record("\1", 0):sub(1, -2))
    fails("data_batch_3.bin: cut or damaged: 3072 bytes, and it must be a multiple of 3073", "cifar10", { root = root })
    put(folder .. "data_batch_3.bin", record("\10", 0))
    fails("data_batch_3.bin: label 10 of picture 1 is outside 0..9", "cifar10", { root = root })
    put(folder .. "data_batch_3.bin", "")
    fails("data_batch_3.bin: cut or damaged: 0 bytes", "cifar10", { root = root })
    os.remove(root .. "/" .. folder .. "data_batch_3.bin")
    fails("data_batch_3.bin is not there", "cifar10", { root = root })
    put(folder .. "batches.meta.txt", text("airplane", "bird"))
    fails("batches.meta.txt: it names 2 classes, and there are 10", "cifar10", { root = root })
  end)

  it("reads CIFAR-100 by its fine labels", function()
    local names = {}
    for i = 1, 100 do names[i] = "kind_" .. i end
    put("cifar100/train.bin", record("\19\11", 1) .. record("\0\99", 2))
    put("cifar100/fine_label_names.txt", text(unpack(names)))
    local train = load "cifar100"
    assert.are.same({ 12, 100 }, train.labels:totable())
    assert.are.equal("kind 12", train.classes[12])
    fails("test.bin is not there", "cifar100", { root = root .. "/cifar100", split = "test" })
  end)

  it("reads CIFAR's pictures from class folders, all of one size", function()
    for i, name in ipairs(CLASSES) do put("png10/train/" .. name .. "/0001.png", png(20 * i, i, 255 - i, 32)) end
    local train = load("cifar10", { root = root .. "/png10" })
    assert.are.same(CLASSES, train.classes)
    assert.are.same({ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 }, train.labels:totable())
    assert.are.same({ 60, 3, 252 }, train.images:select(1, 3):select(1, 32):select(1, 1):totable())
    put("png10/train/cat/0002.png", png(1, 2, 3, 31))
    fails("cat/0002.png: 31 x 31 pixels, and they must be 32 x 32", "cifar10", { root = root .. "/png10" })
    os.execute(("rm -r '%s/png10/train/truck' '%s/png10/train/cat/0002.png'"):format(root, root))
    fails("train has 9 class folders, and there are 10 classes", "cifar10", { root = root .. "/png10" })
    lfs.mkdir(root .. "/png10/train/truck")
    fails("train/truck holds no picture", "cifar10", { root = root .. "/png10" })
  end)

  it("names the archive to take in the place of pickles", function()
    put("pickled/cifar-10-batches-py/data_batch_1", "pickle")
    fails("cifar-10-batches-py is not read (Python pickles): take cifar-10-binary.tar.gz", "cifar10",
      { root = root .. "/pickled" })
    put("pickled/cifar-100-python/meta", "pickle")
    fails("take cifar-100-binary.tar.gz", "cifar100", { root = root .. "/pickled" })
  end)

  local function idx(shape, bytes)
    local head = { string.char(0, 0, 8, #shape) }
    for i, n in ipairs(shape) do head[i + 1] = string.char(0, 0, math.floor(n / 256), n % 256) end
    return table.concat(head) .. bytes
  end

  it("reads MNIST, plain, gzipped and as torchvision leaves it", function()
    local pixels = {}
    for i = 0, 2 * 28 * 28 - 1 do pixels[i + 1] = string.char(i % 251) end
    local images, labels = idx({ 2, 28, 28 }, table.concat(pixels)), idx({ 2 }, "\7\0")
    put("plain/mnist/train-images-idx3-ubyte", images)
    put("plain/mnist/train-labels-idx1-ubyte", labels)
    put("torch/MNIST/raw/t10k-images-idx3-ubyte", images)
    put("torch/MNIST/raw/t10k-labels-idx1-ubyte", labels)
    put("packed/mnist/train-images-idx3-ubyte", images)
    put("packed/mnist/train-labels.idx1-ubyte", labels)
    os.execute(("gzip -n '%s'/packed/mnist/*"):format(root))
    local sets = { load("mnist", { root = root .. "/plain" }), load("mnist", { root = root .. "/packed/mnist" }),
      load("mnist", { root = root .. "/torch", split = "test" }) }
    for _, set in ipairs(sets) do
      assert.are.same({ 2, 32, 32, 3 }, set.images:shape())
      assert.are.same({ 8, 1 }, set.labels:totable())
      assert.are.equal("7", set.classes[8])
      assert.are.same({ 0, 0 }, { set.images:get(2, 2, 16, 1), set.images:get(2, 16, 31, 1) }) -- a black edge of two
      assert.are.equal((784 + 3 * 28 + 5) % 251, set.images:get(2, 2 + 4, 2 + 6, 3))
    end
    local own = load("mnist", { root = root .. "/plain", size = 28 })
    assert.are.same({ 2, 28, 28, 3 }, own.images:shape())
    assert.are.equal((784 + 3 * 28 + 5) % 251, own.images:get(2, 4, 6, 2))
    local large = load("mnist", { root = root .. "/plain", size = 56 }) -- without the black edge
    local by_hand = pg.image.resize(own.images:select(1, 2), 56, 56, "bicubic")
    assert.are.same(by_hand:totable(), large.images:select(1, 2):totable())

    put("plain/mnist/train-images-idx3-ubyte", images:sub(1, -2))
    fails("train-images-idx3-ubyte: truncated", "mnist", { root = root .. "/plain" })
    put("plain/mnist/train-images-idx3-ubyte", images)
    put("plain/mnist/train-labels-idx1-ubyte", idx({ 1 }, "\7"))
    fails("do not belong together", "mnist", { root = root .. "/plain" })
    put("plain/mnist/train-labels-idx1-ubyte", idx({ 2 }, "\7\10"))
    fails("train-labels-idx1-ubyte: label 10 of picture 2 is outside 0..9", "mnist", { root = root .. "/plain" })
    fails("t10k-images-idx3-ubyte.gz is not there", "mnist", { root = root .. "/plain", split = "test" })
  end)

  it("reads SVHN's MATLAB files, where 10 is the digit 0", function()
    for _, kind in ipairs { "plain", "packed" } do
      put("svhn/train_32x32.mat", read(FIXTURES .. "svhn_" .. kind .. ".mat"))
      local train = pg.data.load("svhn", { root = root })
      assert.are.same({ 5, 32, 32, 3 }, train.images:shape())
      assert.are.same({ 2, 10, 1, 3, 1 }, train.labels:totable())
      assert.are.equal("9", train.classes[train.labels:get(2)])
      for _, at in ipairs { { 1, 1, 1, 1 }, { 5, 9, 32, 3 }, { 2, 32, 4, 2 } } do
        local n, r, c, k = unpack(at)
        assert.are.equal((r - 1 + 2 * (c - 1) + 40 * (k - 1) + 17 * (n - 1)) % 256, train.images:get(n, r, c, k))
      end
    end
  end)

  it("says what is wrong with a MATLAB file", function()
    local plain, packed = read(FIXTURES .. "svhn_plain.mat"), read(FIXTURES .. "svhn_packed.mat")
    local function refuses(words, bytes)
      put("svhn/train_32x32.mat", bytes)
      assert.truthy(fails(words, "svhn", { root = root }):find("train_32x32.mat", 1, true))
    end
    refuses("not a MATLAB 5 file", plain:sub(1, 100))
    for _, bytes in ipairs { plain, packed } do
      for _, length in ipairs { 130, 140, 200, 600, #bytes - 60 } do
        put("svhn/train_32x32.mat", bytes:sub(1, length))
        fails("train_32x32.mat", "svhn", { root = root })
      end
    end
    local last = 136 + packed:byte(133) + 256 * packed:byte(134) -- of X's element: zlib's checksum
    refuses("truncated or damaged", packed:sub(1, last - 1) .. string.char((packed:byte(last) + 1) % 256)
      .. packed:sub(last + 1))
    refuses("it has no array 'X'", read(FIXTURES .. "mixed.mat"))
    refuses("not a little-endian MATLAB 5 file", plain:sub(1, 126) .. "MI" .. plain:sub(129))
    refuses("version 7.3 (HDF5); save it with -v7", "MATLAB 7.3 MAT-file" .. (" "):rep(105) .. "\0\2IM and more")
    local at = plain:find("\32\0\0\0\32\0\0\0\3\0\0\0\5", 1, true) -- X's dimensions
    refuses("X must be uint8 (32, 32, 3, N)", plain:sub(1, at + 7) .. "\5\0\0\0\3" .. plain:sub(at + 13))
    refuses("do not make its 15360 bytes", plain:sub(1, at + 11) .. "\6" .. plain:sub(at + 13))
    put("svhn/train_32x32.mat", plain)
    fails("test_32x32.mat", "svhn", { root = root, split = "test" })
  end)

  it("reads what MATLAB stores: doubles, small elements, no other class", function()
    local function array(name)
      local out = ffi.new "pg_tensor *[1]"
      if lib.pg_mat_load(FIXTURES .. "mixed.mat", name, out) ~= 0 then return ffi.string(lib.pg_last_error()) end
      return ffi.gc(out[0], lib.pg_release):totable()
    end
    assert.are.same({ { 0.5, 1.5, -2 }, { 3.25, 1e300, 0 } }, array "halves")
    assert.are.same({ { 7, 250 } }, array "tiny")
    assert.truthy(array("short"):find("'short' is of MATLAB class 10", 1, true))
    assert.truthy(array("turned"):find("class 6, complex", 1, true))
    assert.truthy(array("text"):find("class 4", 1, true))
    assert.truthy(array("none"):find("it has no array 'none'", 1, true))
  end)

  -- ---- files -------------------------------------------------------------------------------------------------------

  it("reads PPM files as pictures", function()
    local path = put("one.ppm", "P6 # a comment\n2 1\n# another\n255\n" .. "\1\2\3\4\5\6")
    assert.are.same({ { { 1, 2, 3 }, { 4, 5, 6 } } }, pg.image.load(path):totable())
    put("one.ppm", "P6\n1 1\n15\n\0\15\7")
    assert.are.same({ { { 0, 255, 119 } } }, pg.image.load(path):totable())
    put("one.ppm", "P6\n1 1\n65535\n\255\255\128\0\0\0")
    assert.are.same({ { { 255, 128, 0 } } }, pg.image.load(path):totable())
    put("one.ppm", ppm(9, 8, 7, 40, 20))
    local small = pg.image.thumbnail(path, 8)
    local corner, middle = small:select(1, 1):select(1, 1), small:select(1, 4):select(1, 4)
    assert.are.same({ { 255, 255, 255 }, { 9, 8, 7 } }, { corner:totable(), middle:totable() })
    for words, bytes in pairs {
      ["truncated: 11 bytes of pixels, and its PPM header promises 12"] = ppm(1, 2, 3):sub(1, -2),
      ["its header must have width"] = "P6\n2 x\n255\n" .. ("a"):rep(12),
      ["its header must have width, height and a largest value of 1..65535"] = "P6\n2 2\n65536\n" .. ("a"):rep(24),
      ["more than 64 MB"] = "P6\n90000 90000\n255\n" .. ("a"):rep(24),
    } do
      put("one.ppm", bytes)
      local ok, message = pcall(pg.image.load, path)
      assert.is_false(ok)
      assert.truthy(tostring(message):find("one.ppm: ", 1, true) and tostring(message):find(words, 1, true), message)
    end
  end)

  it("reads EuroSAT: fixed parts of 2750/, or the folders of EuroSAT_splits/", function()
    for i = 1, 20 do
      put(("eurosat/2750/AnnualCrop/AnnualCrop_%d.jpg"):format(i), ppm(i, 0, 0))
      put(("eurosat/2750/SeaLake/SeaLake_%d.png"):format(i), ppm(0, i, 0))
    end
    local seen, n = {}, 0
    for part, count in pairs { train = 32, val = 4, test = 4 } do
      local set = load("eurosat", { split = part })
      assert.are.same({ "annual crop", "sea lake" }, set.classes)
      assert.are.same({ count / 2, count / 2 }, pg.data.class_counts(set))
      assert.are.same(set.files, load("eurosat", { split = part, ldifs = true }).files) -- its own val
      for _, item in ipairs(listing(set)) do
        assert.is_nil(seen[item])
        assert.are.equal(item:find "AnnualCrop" and "1" or "2", item:match "%d$")
        seen[item], n = true, n + 1
      end
    end
    assert.are.equal(40, n)
    put("eurosat/EuroSAT_splits/train/Forest/b.jpg", ppm(1, 1, 1))
    for _, name in ipairs { "River/b/a.jpg", "River/c10.jpg", "River/a.jpg", "River/c9.PNG", "River/B.jpeg" } do
      put("eurosat/EuroSAT_splits/train/" .. name, ppm(1, 1, 1))
    end
    put("eurosat/EuroSAT_splits/train/River/.hidden.jpg", "")
    put("eurosat/EuroSAT_splits/train/River/notes.md", "")
    assert.are.same({ "Forest/b.jpg 1", "River/B.jpeg 2", "River/a.jpg 2", "River/c10.jpg 2", "River/c9.PNG 2",
      "b/a.jpg 2" }, listing(load "eurosat"))
    fails("EuroSAT_splits/val is not there", "eurosat", { root = root .. "/eurosat", split = "val" })
  end)

  it("reads DTD by its lists, of the fold that is asked for", function()
    for _, name in ipairs { "banded/banded_1.jpg", "polka-dotted/p_1.jpg", "polka-dotted/p_2.jpg" } do
      put("dtd/images/" .. name, ppm(1, 2, 3))
    end
    put("dtd/labels/train1.txt", text("polka-dotted/p_2.jpg", "banded/banded_1.jpg"))
    put("dtd/labels/train2.txt", "polka-dotted/p_1.jpg\r\n")
    put("dtd/labels/val1.txt", text("banded/banded_2.jpg"))
    put("dtd/labels/test1.txt", text("dotted/p_1.jpg"))
    assert.are.same({ "polka-dotted/p_2.jpg 2", "banded/banded_1.jpg 1" }, listing(load "dtd"))
    assert.are.same({ "polka-dotted/p_1.jpg 2" }, listing(load("dtd", { fold = 2 })))
    fails("banded/banded_2.jpg is not there, and " .. root .. "/dtd/labels/val1.txt lists it", "dtd",
      { root = root .. "/dtd", split = "val" })
    fails("'dotted/p_1.jpg' is in no class folder", "dtd", { root = root, split = "test" })
    fails("labels/train3.txt is not there", "dtd", { root = root, fold = 3 })
    fails("fold must be a whole number from 1 to 10", "dtd", { root = root, fold = 11 })
    fails("gtsrb has no folds", "gtsrb", { root = root, fold = 1 })
  end)

  it("reads GTSRB in torchvision's layout and in the benchmark's", function()
    local heading = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\r\n"
    for _, folder in ipairs { "signs/gtsrb/GTSRB/Training", "final/GTSRB/Final_Training/Images" } do
      put(folder .. "/00002/00000_00001.ppm", ppm(200, 0, 0, 5, 7))
      put(folder .. "/00014/00000_00000.ppm", ppm(0, 0, 200, 9, 6))
      put(folder .. "/00014/GT-00014.csv", heading .. "00000_00000.ppm;9;6;1;1;4;4;14\r\n")
    end
    put("signs/gtsrb/GTSRB/Final_Test/Images/00000.ppm", ppm(1, 1, 1))
    put("signs/gtsrb/GTSRB/Final_Test/Images/00001.ppm", ppm(1, 1, 1))
    put("signs/gtsrb/GT-final_test.csv", heading .. "00000.ppm;2;2;1;1;1;1;16\r\n00001.ppm;2;2;1;1;1;1;0\r\n")
    for _, folder in ipairs { "/signs", "/final" } do
      local train = load("gtsrb", { root = root .. folder, size = 4 })
      assert.are.same({ "00002/00000_00001.ppm 3", "00014/00000_00000.ppm 15" }, listing(train))
      assert.are.equal("stop", train.classes[train.labels:get(2)])
      assert.are.same({ 2, 4, 4, 3 }, train.images:shape())
      assert.are.same({ 200, 0, 0 }, train.images:select(1, 1):select(1, 4):select(1, 1):totable())
      assert.truthy(train.warning:find(folder == "/signs" and "26640" or "39209", 1, true))
    end
    local tests = { root = root .. "/signs", split = "test" }
    assert.are.same({ "Images/00000.ppm 17", "Images/00001.ppm 1" }, listing(load("gtsrb", tests)))
    put("signs/gtsrb/GT-final_test.csv", heading .. "00000.ppm;2;2;1;1;1;1;43\n")
    fails("GT-final_test.csv: class 43 of 00000.ppm is outside 0..42", "gtsrb", tests)
    put("signs/gtsrb/GT-final_test.csv", heading .. "00000.ppm,2,2\n")
    fails("GT-final_test.csv: line 2 must be Filename;...;ClassId", "gtsrb", tests)
    os.remove(root .. "/signs/gtsrb/GT-final_test.csv")
    fails("GT-final_test.csv is not there", "gtsrb", tests)
    put("signs/gtsrb/GTSRB/Training/00014/GT-00014.csv", heading .. "00000_00009.ppm;9;6;1;1;4;4;14\n")
    fails("00014/00000_00009.ppm is not there, and", "gtsrb", { root = root .. "/signs" })
    put("signs/gtsrb/GTSRB/Training/other/1.ppm", ppm(1, 1, 1))
    fails("Training/other: a class folder's name must be a number", "gtsrb", { root = root .. "/signs" })
    local cut = ppm(1, 1, 1):sub(1, -3)
    put("signs/gtsrb/GTSRB/Training/00002/00000_00001.ppm", cut)
    os.execute(("cd '%s/signs/gtsrb/GTSRB/Training' && rm -r other 00014/GT-00014.csv"):format(root))
    fails("00002/00000_00001.ppm: truncated", "gtsrb", { root = root .. "/signs", size = 4 })
  end)

  it("reads RESISC45 by its lists, or in fixed parts", function()
    for i = 1, 10 do
      put(("resisc45/NWPU-RESISC45/sea_ice/sea_ice_%03d.jpg"):format(i), ppm(i, 0, 0))
      put(("resisc45/NWPU-RESISC45/beach/beach_%03d.jpg"):format(i), ppm(i, 0, 0))
    end
    local total = 0
    for part, count in pairs { train = 12, val = 4, test = 4 } do
      local set = load("resisc45", { split = part })
      assert.are.same({ "beach", "sea ice" }, set.classes)
      assert.are.equal(count, #set.files)
      total = total + count
    end
    assert.are.equal(20, total)
    put("resisc45/resisc45-val.txt", text("sea_ice_004.jpg", "beach_002.jpg"))
    local val = load("resisc45", { split = "val" })
    assert.are.same({ "beach/beach_002.jpg 1", "sea_ice/sea_ice_004.jpg 2" }, listing(val))
    put("resisc45/resisc45-val.txt", text("beach_011.jpg"))
    fails("resisc45-val.txt lists beach_011.jpg, which is in no class folder", "resisc45",
      { root = root, split = "val" })
  end)

  it("reads Stanford Cars by cars.csv", function()
    for i = 1, 2 do
      put(("stanford_cars/cars_train/0000%d.jpg"):format(i), ppm(i, i, i))
      put(("stanford_cars/cars_test/0000%d.jpg"):format(i), ppm(i, i, i))
    end
    put("stanford_cars/devkit/cars_meta.mat", "a struct")
    fails("devkit is not read (MATLAB structs): take cars.csv", "stanford_cars", { root = root })
    local rows = { "file,class,part,name", "cars_train/00001.jpg,2,train,Ram C/V, Cargo Van 2012",
      "cars_train/00002.jpg,1,train,AM General Hummer SUV 2000", "cars_test/00001.jpg,2,test,Ram C/V, Cargo Van 2012" }
    put("stanford_cars/cars.csv", text(unpack(rows)))
    local train = pg.data.load("stanford_cars", { root = root })
    assert.are.same({ "cars_train/00001.jpg 2", "cars_train/00002.jpg 1" }, listing(train))
    assert.are.same({ "AM General Hummer SUV 2000", "Ram C/V, Cargo Van 2012" }, train.classes)
    assert.are.same({ "cars_test/00001.jpg 2" }, listing(load("stanford_cars", { split = "test" })))
    put("stanford_cars/cars.csv", text(rows[1], rows[2], "cars_train/00002.jpg;1"))
    fails("cars.csv: line 3 must be file,class", "stanford_cars", { root = root })
    put("stanford_cars/cars.csv", text(rows[1], rows[2]))
    fails("cars.csv: class 1 of 2 has no picture", "stanford_cars", { root = root })
    put("stanford_cars/cars.csv", text(rows[1], (rows[3]:gsub("00002", "00003"))))
    fails("cars_train/00003.jpg is not there, and", "stanford_cars", { root = root })
  end)

  it("reads SUN397 by ClassName.txt and its partitions", function()
    put("SUN397/a/abbey/sun_a.jpg", ppm(1, 1, 1))
    put("SUN397/c/church/indoor/sun_b.jpg", ppm(1, 1, 1))
    put("SUN397/a/art_gallery/sun_c.jpg", ppm(1, 1, 1))
    fails("it lists the classes, such as /a/abbey", "sun397", { root = root })
    put("SUN397/ClassName.txt", text("/a/abbey", "/a/art_gallery", "/c/church/indoor"))
    put("SUN397/Training_01.txt", text("/c/church/indoor/sun_b.jpg", "/a/abbey/sun_a.jpg"))
    put("Testing_02.txt", text "/a/art_gallery/sun_c.jpg")
    local train = pg.data.load("sun397", { root = root })
    assert.are.same({ "indoor/sun_b.jpg 3", "abbey/sun_a.jpg 1" }, listing(train))
    assert.are.same({ "abbey", "art gallery", "indoor church" }, train.classes)
    local second = pg.data.load("sun397", { root = root, split = "test", fold = 2 })
    assert.are.same({ "art_gallery/sun_c.jpg 2" }, listing(second))
    fails("Testing_01.txt is not there: it lists the pictures", "sun397", { root = root, split = "test" })
    put("SUN397/Training_01.txt", text("/z/zoo/sun_a.jpg"))
    fails("Training_01.txt: '/z/zoo/sun_a.jpg' is of no class", "sun397", { root = root })
    put("sun/train/abbey/1.jpg", ppm(1, 1, 1))
    put("sun/train/zen_garden/1.jpg", ppm(1, 1, 1))
    put("sun/val/abbey/2.jpg", ppm(1, 1, 1))
    put("sun/val/zen_garden/2.jpg", ppm(1, 1, 1))
    local test = load("sun397", { root = root .. "/sun", split = "test" })
    assert.are.same({ "abbey/2.jpg 1", "zen_garden/2.jpg 2" }, listing(test))
    assert.are.equal("zen garden", test.classes[2])
  end)

  it("reads ImageNet's folders, and its flat val/ by a list", function()
    for _, wnid in ipairs { "n01440764", "n01443537" } do
      put("imagenet/train/" .. wnid .. "/" .. wnid .. "_1.JPEG", ppm(1, 1, 1))
      put("folders/imagenet/train/" .. wnid .. "/1.JPEG", ppm(1, 1, 1))
      put("folders/imagenet/val/" .. wnid .. "/2.JPEG", ppm(1, 1, 1))
    end
    local train = pg.data.load("imagenet", { root = root })
    assert.are.same({ "n01440764/n01440764_1.JPEG 1", "n01443537/n01443537_1.JPEG 2" }, listing(train))
    assert.are.same({ "n01440764", "n01443537" }, train.classes)
    put("imagenet/LOC_synset_mapping.txt",
      text("n01443537 goldfish, Carassius auratus", "n01440764 tench, Tinca tinca"))
    assert.are.same({ "tench", "goldfish" }, load("imagenet").classes)
    local test = load("imagenet", { root = root .. "/folders", split = "test" })
    assert.are.same({ "n01440764/2.JPEG 1", "n01443537/2.JPEG 2" }, listing(test))
    fails("val is not there", "imagenet", { root = root, split = "test" })
    put("imagenet/val/ILSVRC2012_val_00000001.JPEG", ppm(1, 1, 1))
    put("imagenet/val/ILSVRC2012_val_00000002.JPEG", ppm(1, 1, 1))
    fails("val.txt is not there: val/ has no class folders", "imagenet", { root = root, split = "test" })
    local expected = { "val/ILSVRC2012_val_00000001.JPEG 2", "val/ILSVRC2012_val_00000002.JPEG 1" }
    put("imagenet/LOC_val_solution.csv", text("ImageId,PredictionString",
      "ILSVRC2012_val_00000001,n01443537 1 2 3 4 n01443537 5 6 7 8", "ILSVRC2012_val_00000002,n01440764 1 2 3 4"))
    assert.are.same(expected, listing(load("imagenet", { split = "test" })))
    put("imagenet/val.txt", text("ILSVRC2012_val_00000001.JPEG 1", "ILSVRC2012_val_00000002.JPEG n01440764"))
    assert.are.same(expected, listing(load("imagenet", { split = "test" })))
    put("imagenet/val.txt", text("ILSVRC2012_val_00000001.JPEG 2"))
    fails("class 2 of ILSVRC2012_val_00000001.JPEG is none of the 2 class folders", "imagenet",
      { root = root, split = "test" })
    fails("has no part 'val', but test, train; ldifs = true", "imagenet", { root = root, split = "val" })
  end)

  it("takes CoOp's lists", function()
    local list = put("split_zhou_EuroSAT.json", cjson.encode {
      train = { { "Forest/a.jpg", 1, "Forest" }, { "Annual/b.jpg", 0, "Annual_Crop" } },
      val = { { "Forest/c.jpg", 1, "Forest" } }, test = { { "Forest/gone.jpg", 1, "Forest" } } })
    for _, name in ipairs { "Forest/a.jpg", "Annual/b.jpg", "Forest/c.jpg" } do
      put("coop/2750/" .. name, ppm(1, 1, 1))
    end
    local function part(split) return { root = root .. "/coop", list = list, split = split } end
    local train = load("eurosat", part())
    assert.are.same({ "Forest/a.jpg 2", "Annual/b.jpg 1" }, listing(train))
    assert.are.same({ "Annual Crop", "Forest" }, train.classes)
    assert.is_nil(train.warning)
    assert.are.same({ "Forest/c.jpg 2" }, listing(load("eurosat", part "val")))
    fails("Forest/gone.jpg is not there, and " .. list, "eurosat", part "test")
    put("split_zhou_EuroSAT.json", '{"train": [["a", -1, "x"]]}')
    fails("entry 1 of train must be [path, label from 0, class]", "eurosat", part())
    put("split_zhou_EuroSAT.json", "no JSON")
    fails("it must be JSON {train", "eurosat", part())
    fails("mnist takes no CoOp list", "mnist", { root = root, list = list })
  end)

  -- ---- parts, places, words ----------------------------------------------------------------------------------------

  it("draws PyTorch's permutations", function()
    local cases = cjson.decode(read(FIXTURES .. "randperm.json"))
    jit.off()
    jit.flush()
    for turn = 1, 5 * #cases do -- by the interpreter first, then by whatever the compiler has made of it
      if turn == #cases + 1 then jit.on() end
      local case = cases[turn % #cases + 1]
      local order, sum = random.randperm(case.n, case.seed), 0
      for i, value in ipairs(order) do sum = (sum + i * (value - 1)) % 2 ^ 31 end
      for i = 1, #case.first do
        assert.are.same({ case.first[i], case.last[i] }, { order[i] - 1, order[case.n - #case.last + i] - 1 })
      end
      assert.are.equal(case.sum, sum)
    end
    assert.has_error(function() random.randperm(0) end)
    assert.has_error(function() random.randperm(5, -1) end)
  end)

  it("holds out what LDIFS holds out", function()
    local parts = pg.data.ldifs_split(60000)
    assert.are.same({ 36044 + 1, 54000, 6000 }, { parts.train[1], #parts.train, #parts.val })
    local imagenet = pg.data.ldifs_split(1281167)
    assert.are.same({ 1261167, 20000 }, { #imagenet.train, #imagenet.val })
    assert.are.same({ 10, 1 }, { #pg.data.ldifs_split(11).train, #pg.data.ldifs_split(11).val })
    assert.has_error(function() pg.data.ldifs_split(9) end)

    local rows = { "file,class,part,name" }
    for i = 1, 20 do
      put(("held/stanford_cars/cars_train/%02d.jpg"):format(i), ppm(i, i, i))
      rows[#rows + 1] = ("cars_train/%02d.jpg,%d,train,kind %d"):format(i, i % 2 + 1, i % 2 + 1)
    end
    put("held/stanford_cars/cars.csv", text(unpack(rows)))
    local all = load("stanford_cars", { root = root .. "/held" })
    local order, seen = random.randperm(20), {}
    for part, from in pairs { train = 0, val = 18 } do
      local set = load("stanford_cars", { root = root .. "/held", split = part, ldifs = true })
      assert.are.equal(part == "train" and 18 or 2, #set.files)
      for i, path in ipairs(set.files) do
        assert.are.equal(all.files[order[from + i]], path)
        assert.are.equal(all.labels:get(order[from + i]), set.labels:get(i))
        seen[#seen + 1] = path
      end
    end
    assert.are.equal(20, #seen)
  end)

  it("gives the loader's batches, of files as of images", function()
    local files = load("stanford_cars", { root = root .. "/held" })
    local images = load("stanford_cars", { root = root .. "/held", size = 8 })
    local a = pg.data.loader { dataset = files, batch = 5, size = 8, seed = 3 }
    local b = pg.data.loader { dataset = images, batch = 5, seed = 3 }
    for _ = 1, 4 do
      local x, y = a:next()
      local u, v = b:next()
      assert.are.same({ x:totable(), y:totable() }, { u:totable(), v:totable() })
    end
    a:close()
    b:close()
    assert.has_error(function() pg.data.batches { dataset = files, batch = 5 } end)
    assert.has_error(function() pg.data.merge { files, files } end)
    local parts = pg.data.split(files, { a = 0.5, b = 0.5 })
    assert.are.equal(10, #parts.a.files)
  end)

  it("looks in PERIGEE_DATA, in the order of its places, and says where it looked", function()
    local before, home = os.getenv "PERIGEE_DATA" or "", os.getenv "HOME" or ""
    ffi.C.setenv("PERIGEE_DATA", root .. "/nothing:" .. root .. "/signs:" .. root .. "/held/", 1)
    ffi.C.setenv("HOME", root .. "/home", 1)
    local ok, why = pcall(function()
      assert.are.equal(20, #pg.data.load("stanford_cars").files)
      local message = fails("svhn is not in ", "svhn")
      for _, word in ipairs { root .. "/nothing", root .. "/signs", root .. "/held,", root .. "/home/datasets",
        root .. "/home/data", "/usr/share/datasets", "svhn/{train,test}_32x32.mat",
        "http://ufldl.stanford.edu/housenumbers/" } do
        assert.truthy(message:find(word, 1, true), word .. " in " .. message)
      end
      local found = {}
      for _, set in ipairs(pg.data.sets()) do
        found[set.name] = set.path or false
        assert.truthy(set.download and set.licence and set.citation and set.counts.train and #set.layouts > 0, set.name)
      end
      assert.are.equal(root .. "/held/stanford_cars", found.stanford_cars)
      assert.are.equal(false, found.svhn)
      local pipe = io.popen "build/perigee doctor"
      local doctor = pipe:read "*a"
      pipe:close()
      assert.truthy(doctor:find("stanford_cars  " .. root .. "/held/stanford_cars\n", 1, true), doctor)
      assert.truthy(doctor:find("svhn           missing: http", 1, true), doctor)
      put("home/datasets/svhn/train_32x32.mat", read(FIXTURES .. "svhn_plain.mat"))
      assert.are.equal(5, pg.data.load("svhn").labels:numel())
    end)
    ffi.C.setenv("PERIGEE_DATA", before, 1)
    ffi.C.setenv("HOME", home, 1)
    if not ok then error(why, 0) end
  end)

  it("says what is wrong with the request", function()
    fails("did you mean 'cifar10'", "cifar-10")
    fails("did you mean 'split'", "svhn", { spilt = "test" })
    fails("has no part 'all', but test, train", "svhn", { split = "all", root = root })
    fails("has no part 'val', but test, train; ldifs = true holds a tenth of train out", "svhn", { split = "val" })
    fails("root must be a path", "svhn", { root = 3 })
    fails("svhn is not in /nowhere; layout", "svhn", { root = "/nowhere" })
    fails("size must be a whole number from 1 to 1024", "stanford_cars", { root = root .. "/held", size = 0 })
    fails("list and ldifs both name the parts", "dtd", { root = root, list = "x.json", ldifs = true })
    assert.truthy(fails("apt-get install openclipart-png", "openclipart", { root = "/nowhere" }))
  end)

  it("gives what Debian packages bring in the parts of the tasks", function()
    if not lfs.attributes "/usr/share/tuxpaint/stamps/animals" then
      return pending "tuxpaint-stamps-default is not installed"
    end
    local data, tasks = pg.data.load("tuxpaint", { split = "test" }), pg.data.task("tuxpaint", { test = 10000 })
    assert.are.same(tasks.test.files, data.files)
    assert.are.same(tasks.test.labels:totable(), data.labels:totable())
  end)
end)
