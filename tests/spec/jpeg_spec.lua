-- jpeg_spec.lua - every kind of small JPEG file against Pillow (tests/fixtures/make_preprocess.py); and that a file which
-- was cut or lies is one clear error.

local ffi = require "ffi"
local lfs = require "lfs"
local pg = require "perigee"

local HERE = "tests/fixtures/preprocess/"
local made = {}

local function read(path)
  local file = assert(io.open(path, "rb"))
  local bytes = file:read "*a"
  file:close()
  return bytes
end

local function temporary(bytes, extension)
  local path = os.tmpname()
  made[#made + 1] = path
  if extension then
    path = path .. extension
    made[#made + 1] = path
  end
  if bytes then
    local file = assert(io.open(path, "wb"))
    file:write(bytes)
    file:close()
  end
  return path
end

local fails = require("expect").fails

local function bytes_of(t) return ffi.string(t:data(), t:numel() * (t:dtype() == "float32" and 4 or 1)) end

local function max_difference(a, b)
  assert.are.same(b:shape(), a:shape())
  return (a:to "float32" - b:to "float32"):abs():max():item()
end

describe("JPEG", function()
  local pixels = pg.safetensors.load(HERE .. "pixels.safetensors")

  it("is read to the byte as Pillow reads it, whatever its kind, and turned as EXIF says", function()
    local count = 0
    for name, expected in pairs(pixels) do
      local t = pg.image.load(HERE .. name .. ".jpg")
      assert.are.same(expected:shape(), t:shape(), name)
      assert.truthy(bytes_of(expected) == bytes_of(t), name .. " differs by up to " .. max_difference(t, expected))
      count = count + 1
    end
    assert.truthy(count >= 40, count)
  end)

  it("is told by its content, not by its name", function()
    local path = temporary(read(HERE .. "grey.jpg"), ".png")
    assert.are.same(pixels.grey:totable(), pg.image.load(path):totable())
    path = temporary(nil, ".png")
    pg.image.save(path, pixels.grey)
    os.rename(path, (path:gsub("png$", "jpg")))
    made[#made + 1] = path:gsub("png$", "jpg")
    assert.are.same(pixels.grey:totable(), pg.image.load(made[#made]):totable())
    fails("not a PNG, JPEG or PPM file", pg.image.load, temporary "\255\216")
    fails("not a PNG, JPEG or PPM file", pg.image.load, temporary "GIF89a..........")
  end)

  it("is written as Pillow writes it, by the name's ending", function()
    local picture = pg.image.load(HERE .. "written.png")
    local path = temporary(nil, ".JPG")
    pg.image.save(path, picture)
    assert.are.equal(read(HERE .. "written_90.jpg"), read(path))
    local sizes = {}
    for i, quality in ipairs { 1, 50, 100 } do
      pg.image.save(path, picture, { quality = quality })
      sizes[i] = #read(path)
      assert.are.same(picture:shape(), pg.image.load(path):shape())
    end
    assert.truthy(sizes[1] < sizes[2] and sizes[2] < sizes[3])
    local grey = picture:select(3, 2)
    pg.image.save(path, grey, { quality = 100 })
    assert.truthy(max_difference(pg.image.load(path):select(3, 1), grey) <= 3)
    fails("quality must be a whole number within 1..100", pg.image.save, path, picture, { quality = 0 })
    fails("quality must be a whole number within 1..100", pg.image.save, path, picture, { quality = "good" })
    fails("quality is of JPEG", pg.image.save, "x.png", picture, { quality = 90 })
    fails("unknown option 'qualty'", pg.image.save, path, picture, { qualty = 90 })
    fails("uint8 (H, W, 3)", pg.image.save, path, pg.zeros(2, 2, 3))
    fails("at most 65500 pixels", pg.image.save, path, pg.zeros(1, 65501, 3, { dtype = "uint8" }))
    fails("No such file", pg.image.save, "/nonexistent/a.jpg", picture)
  end)

  it("is reduced as the same picture in a PNG is", function()
    local path = temporary()
    for _, name in ipairs { "quality_75", "exif_6", "cmyk", "progressive_420" } do
      pg.image.save(path, pixels[name])
      for _, size in ipairs { 4, 7, 16, 64 } do
        assert.are.same(pg.image.thumbnail(path, size):totable(),
          pg.image.thumbnail(HERE .. name .. ".jpg", size):totable(), name)
      end
    end
  end)

  it("is an error where it is cut, at any byte, sequential or progressive", function()
    for _, name in ipairs { "sampling_420", "progressive_420", "exif_6" } do
      local whole, path = read(HERE .. name .. ".jpg"), temporary ""
      for cut = 0, #whole - 1 do
        local file = assert(io.open(path, "wb"))
        file:write(whole:sub(1, cut))
        file:close()
        fails(cut < 3 and "not a PNG, JPEG or PPM file" or path .. ": truncated JPEG", pg.image.load, path)
      end
    end
  end)

  it("is refused in one line where nothing here can decode it", function()
    local whole = read(HERE .. "sampling_420.jpg")
    local frame = assert(whole:find("\255\192", 1, true))
    local function with(offset, bytes)
      return temporary(whole:sub(1, frame + offset - 1) .. bytes .. whole:sub(frame + offset + #bytes))
    end
    fails("cannot decode this JPEG: Unsupported JPEG data precision 12", pg.image.load, with(4, "\12"))
    fails("cannot decode this JPEG: Unsupported JPEG process: SOF type 0xc3", pg.image.load, with(1, "\195"))
    fails("it tells no size", pg.image.load, with(5, "\0\0"))
    fails("it tells no size", pg.image.load, with(7, "\0\0"))
    fails("65500 x 65500 pixels are more than 64 MB; load it reduced", pg.image.load, with(5, "\255\220\255\220"))
    fails("65500 x 65500 pixels are more than 64 MB", pg.image.thumbnail, with(5, "\255\220\255\220"), 16)
    fails("cannot decode this JPEG", pg.image.load, temporary "\255\216\255\192\0\11\8\0\1\0\1\1\1\17\0\255\217")
    fails("it tells no size", pg.image.load, temporary "\255\216\255\217")
    fails("truncated", pg.image.load, temporary(("\255\216\255\224\0\2"):rep(9)))
    local progressive = read(HERE .. "progressive_420.jpg")
    local at = assert(progressive:find("\255\194", 1, true))
    fails("a progressive JPEG of 8000 x 8000 pixels needs more than 256 MB", pg.image.thumbnail,
      temporary(progressive:sub(1, at + 4) .. "\31\64\31\64" .. progressive:sub(at + 9)), 16)
  end)

  it("of more than 64 MB is read reduced", function()
    local path = temporary(nil, ".jpg")
    local wide = pg.zeros(4, 6000, 3, { dtype = "uint8" })
    pg.image.save(path, wide)
    local file = read(path) -- 4 rows of the 4800 that the header then speaks of: the rest is grey
    local at = assert(file:find("\255\192", 1, true))
    path = temporary(file:sub(1, at + 4) .. "\18\192" .. file:sub(at + 7))
    fails("6000 x 4800 pixels are more than 64 MB", pg.image.load, path)
    local t = pg.image.thumbnail(path, 60)
    assert.are.same({ 60, 60, 3 }, t:shape())
    assert.are.equal(255, t:select(1, 1):to("float32"):min():item()) -- white above: 48 rows of 60
    assert.are.equal(255, t:select(1, 6):to("float32"):min():item())
    assert.truthy(t:narrow(1, 7, 48):to("float32"):max():item() < 200)
  end)

  it("keeps its pixels whatever its EXIF says", function()
    local plain = read(HERE .. "sampling_420.jpg")
    local function with(tags)
      local body = "Exif\0\0" .. tags
      return plain:sub(1, 2) .. "\255\225" .. string.char(math.floor((#body + 2) / 256), (#body + 2) % 256) .. body
        .. plain:sub(3)
    end
    local entry = "\1\18\0\3\0\0\0\1\0\6\0\0" -- orientation 6
    local turned = pg.image.load(temporary(with("MM\0\42\0\0\0\8\0\1" .. entry)))
    assert.are.same({ 45, 38, 3 }, turned:shape())
    for _, tags in ipairs { "", "MM", "XX\0\42\0\0\0\8\0\1" .. entry, "MM\0\43\0\0\0\8\0\1" .. entry,
      "MM\0\42\0\0\0\8\0\1" .. entry:sub(1, 11), -- cut within the entry
      "MM\0\42\0\0\0\8\255\255", -- more entries than there are bytes
      "MM\0\42\0\0\0\8\0\0" .. entry, -- none
      "MM\0\42\255\255\255\255\0\1" .. entry, "MM\0\42\127\255\255\255\0\1" .. entry, "MM\0\42\0\0\0\99\0\1" .. entry,
      "MM\0\42\0\0\0\8\0\1" .. "\1\18\0\3\0\0\0\1\0\9\0\0", -- no orientation has that number
      "MM\0\42\0\0\0\8\0\1" .. "\1\18\0\2\0\0\0\1\0\6\0\0", -- text
      "MM\0\42\0\0\0\8\0\1" .. "\1\18\0\3\255\255\255\255\0\6\0\0", -- very many of them
      "II\42\0\8\0\0\0\1\0" .. entry } do
      assert.are.equal(0, max_difference(pg.image.load(temporary(with(tags))), pixels.sampling_420))
    end
    -- a list whose link leads back to itself is read once
    assert.are.same({ 45, 38, 3 },
      pg.image.load(temporary(with("MM\0\42\0\0\0\8\0\1" .. entry .. "\0\0\0\8"))):shape())
  end)

  it("is taken by folders and by the loader", function()
    local root = os.tmpname()
    os.remove(root)
    for _, folder in ipairs { root, root .. "/a", root .. "/b" } do assert(lfs.mkdir(folder)) end
    local files = {}
    local function copy(name, to)
      files[#files + 1] = root .. "/" .. to
      local file = assert(io.open(files[#files], "wb"))
      file:write(read(HERE .. name))
      file:close()
    end
    copy("quality_75.jpg", "a/one.JPG")
    copy("exif_6.jpg", "a/two.jpeg")
    copy("written.png", "b/three.png")
    local text = assert(io.open(root .. "/a/one.txt", "w"))
    text:write "a bird\n"
    text:close()
    local d = pg.data.folder { path = root, size = 16 }
    assert.are.same({ "a", "b" }, d.classes)
    assert.are.equal(3, d.labels:numel())
    for i, file in ipairs(d.files) do
      assert.are.equal(0, max_difference(d.images:select(1, i), pg.image.thumbnail(file, 16)))
      assert.are.equal(file:match "one" and "a bird" or false, d.captions[i])
    end
    local l = pg.data.loader { dataset = { files = files, labels = { 1, 1, 2 } }, batch = 3, shuffle = false, size = 8,
      workers = 2, mean = 0, std = 1 }
    local batch = l:next()
    l:close()
    for i, file in ipairs(files) do
      local picture = pg.image.load(file)
      local one = pg.data.loader { dataset = { images = picture:reshape(1, picture:size(1), picture:size(2), 3),
        labels = { 1 } }, batch = 1, size = 8, workers = 1, mean = 0, std = 1 }
      assert.are.equal(0, max_difference(batch:narrow(1, i, 1), (one:next())))
      one:close()
    end
    for _, file in ipairs(files) do os.remove(file) end
    os.remove(root .. "/a/one.txt")
    for _, folder in ipairs { root .. "/a", root .. "/b", root } do lfs.rmdir(folder) end
  end)
end)

teardown(function()
  for _, path in ipairs(made) do os.remove(path) end
end)
