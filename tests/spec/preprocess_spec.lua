-- preprocess_spec.lua - preprocessing against torchvision, transformers and open_clip on the pictures of the Debian
-- packages (tests/fixtures/make_preprocess.py); and that a configuration which lies is one clear error.

local ffi = require "ffi"
local bit = require "bit"
local lfs = require "lfs"
local cjson = require "cjson"
local pg = require "perigee"

local HERE = "tests/fixtures/preprocess/"
local made = {}

local function read(path)
  local file = assert(io.open(path, "rb"))
  local bytes = file:read "*a"
  file:close()
  return bytes
end

local function temporary(bytes)
  local path = os.tmpname()
  made[#made + 1] = path
  local file = assert(io.open(path, "wb"))
  file:write(bytes)
  file:close()
  return path
end

local fails = require("expect").fails

local function bytes_of(t) return ffi.string(t:data(), t:numel() * (t:dtype() == "float32" and 4 or 1)) end

local function max_difference(a, b)
  assert.are.same(b:shape(), a:shape())
  return (a:to "float32" - b:to "float32"):abs():max():item()
end

local crc_table = {}
for i = 0, 255 do
  local c = i
  for _ = 1, 8 do c = bit.bxor(bit.rshift(c, 1), bit.band(c, 1) == 1 and 0xEDB88320 or 0) end
  crc_table[i] = c
end

local function crc(bytes, n)
  local c = -1
  for i = 0, n - 1 do c = bit.bxor(crc_table[bit.band(bit.bxor(c, bytes[i]), 255)], bit.rshift(c, 8)) end
  return bit.bnot(c)
end

describe("preprocess", function()
  local cases = cjson.decode(read(HERE .. "cases.json"))
  local missing = {}
  for _, package in ipairs { "openclipart", "tuxpaint" } do
    if not lfs.attributes("/usr/share/" .. package, "mode") then missing[#missing + 1] = package end
  end
  local packaged = #missing == 0 and it or function(name)
    pending(name .. ": needs the Debian packages openclipart-png and tuxpaint-stamps-default")
  end

  -- The bytes (H, W, 3) that a result (1, 3, H, W) was made of.
  local function bytes_behind(result, transform)
    local height, width = result:size(3), result:size(4)
    local out, from, plane = ffi.new("uint8_t[?]", height * width * 3), result:data(), height * width
    for c = 0, 2 do
      local mean, std = transform.mean[c + 1], transform.std[c + 1]
      for i = 0, plane - 1 do
        local v = (from[c * plane + i] * std + mean) / transform.scale
        out[i * 3 + c] = math.floor(v + 0.5)
        if math.abs(v - out[i * 3 + c]) > 0.02 then return nil, "a value is no byte's: " .. v end
      end
    end
    return out
  end

  local function sample(index, n) return math.floor(index * n / 24) end

  packaged("gives the bytes of torchvision, transformers and open_clip on the packages' pictures", function()
    local samples = pg.npy.load(HERE .. "samples.npy")
    local equal, worst = 0, 0
    for i, case in ipairs(cases.pictures) do
      local transform = cases.transforms[case.transform]
      local p = pg.data.preprocess(transform.config, { alpha = case.alpha })
      local result = p("/usr/share/" .. case.path)
      local height, width = result:size(3), result:size(4)
      assert.are.same(case.size, { height, width })
      local bytes = assert(bytes_behind(result, transform))
      local expected = samples:data() + (i - 1) * 24 * 24 * 3
      for y = 0, 23 do
        for x = 0, 23 do
          for c = 0, 2 do
            local got = bytes[(sample(y, height) * width + sample(x, width)) * 3 + c]
            worst = math.max(worst, math.abs(got - expected[(y * 24 + x) * 3 + c]))
          end
        end
      end
      assert.truthy(worst <= 1, case.path .. " by " .. case.transform .. " is off by " .. worst)
      if crc(bytes, height * width * 3) == bit.tobit(case.crc) then equal = equal + 1 end
      result:free()
    end
    assert.truthy(#cases.pictures >= 200, #cases.pictures)
    assert.are.equal(#cases.pictures, equal) -- whole results, byte for byte
  end)

  packaged("gives their floats", function()
    local values = pg.npy.load(HERE .. "values.npy")
    for i, name in ipairs(cases.order) do
      local transform = cases.transforms[name]
      local case = cases.pictures[transform.first]
      local result = pg.data.preprocess(transform.config, { alpha = case.alpha })("/usr/share/" .. case.path)
      local height, width = result:size(3), result:size(4)
      for c = 0, 2 do
        for y = 0, 23 do
          for x = 0, 23 do
            local got = result:data()[(c * height + sample(y, height)) * width + sample(x, width)]
            local expected = values:data()[((i - 1) * 3 + c) * 576 + y * 24 + x]
            assert.truthy(math.abs(got - expected) <= 1e-6 * math.max(1, math.abs(expected)), name)
          end
        end
      end
    end
  end)

  it("gives the same for a path, a list, a loaded picture, and any number of threads", function()
    local p = pg.data.preprocess("dinov2", { size = 56 })
    local files = {}
    for i, name in ipairs { "quality_75", "exif_6", "cmyk", "size_1x17", "sampling_411" } do
      files[i] = HERE .. name .. ".jpg"
    end
    files[6] = HERE .. "written.png"
    local threads = pg.threads()
    local all = p(files)
    assert.are.same({ 6, 3, 56, 56 }, all:shape())
    pg.threads(1)
    assert.truthy(bytes_of(all) == bytes_of(p(files)))
    pg.threads(threads)
    for i, file in ipairs(files) do
      assert.truthy(bytes_of(all:narrow(1, i, 1):clone()) == bytes_of(p(file)), file)
      assert.truthy(bytes_of(p(file)) == bytes_of(p(pg.image.load(file))), file)
    end
    local function one(file) return pg.image.load(file):reshape(1, 38, 45, 3) end
    local two = pg.cat({ one(files[1]), one(files[6]) }, 1)
    assert.truthy(bytes_of(p(two)) == bytes_of(pg.cat({ p(files[1]), p(files[6]) }, 1)))
  end)

  it("crops with halves to even or down, and pads inwards or outwards", function()
    -- a row of 1..n, cropped to 2: where it starts tells the rule
    local function start(config, n, shown)
      local row = pg.zeros(1, n, 3, { dtype = "uint8" })
      for i = 0, n * 3 - 1 do row:data()[i] = math.floor(i / 3) + 1 end
      return pg.data.preprocess(config)(row):select(1, 1):select(1, 1):select(1, shown or 1):totable()
    end
    local function hf(height, width)
      return { image_processor_type = "CLIPImageProcessor", do_resize = false, do_rescale = false,
        do_normalize = false, crop_size = { height = height, width = width } }
    end
    assert.are.same({ 1, 2 }, start(hf(1, 2), 3)) -- (3 - 2) / 2 = 0.5
    assert.are.same({ 2, 3 }, start(hf(1, 2), 5)) -- 1.5: torchvision would start at 2
    assert.are.same({ 0, 1, 2, 0 }, start(hf(1, 4), 2))
    assert.are.same({ 0, 0, 1, 2, 0 }, start(hf(1, 5), 2)) -- three to pad, two of them before
    assert.are.same({ 0, 0 }, start(hf(2, 2), 2, 1)) -- one row to pad, before
    assert.are.same({ 1, 2 }, start(hf(2, 2), 2, 2))
    local function open_clip(size, n)
      local t = start({ preprocess_cfg = { size = size, mean = 0, std = 1 } }, n)
      for i, v in ipairs(t) do t[i] = math.floor(v * 255 + 0.5) end
      return t
    end
    assert.are.same({ 1 }, open_clip({ 1, 1 }, 2)) -- 0.5: to 0
    assert.are.same({ 3 }, open_clip({ 1, 1 }, 4)) -- 1.5: to 2
    assert.are.same({ 3 }, open_clip({ 1, 1 }, 6)) -- 2.5: to 2
  end)

  local plain = { image_processor_type = "CLIPImageProcessor", do_resize = false, do_center_crop = false,
    do_rescale = false, do_normalize = false }

  it("leaves a picture as it is stored where that is asked for", function()
    local p = pg.data.preprocess(plain, { orient = false })
    for name, expected in pairs(pg.safetensors.load(HERE .. "pixels.stored.safetensors")) do
      local t = p(HERE .. name .. ".jpg")
      assert.are.equal(0, max_difference(t:select(1, 1), expected:permute { 3, 1, 2 }), name)
    end
  end)

  it("drops alpha as Pillow does, or lays it on white", function()
    for name, expected in pairs(pg.safetensors.load(HERE .. "alpha.safetensors")) do
      local file, alpha = name:match "^(.*)%.(%w+)$"
      local t = pg.data.preprocess(plain, { alpha = alpha })(HERE .. "png_" .. file .. ".png")
      assert.are.equal(0, max_difference(t:select(1, 1), expected:permute { 3, 1, 2 }), name)
    end
    local file = HERE .. "png_rgba_16.png"
    assert.truthy(bytes_of(pg.data.preprocess(plain)(file)) == bytes_of(pg.data.preprocess(plain)(pg.image.load(file))))
  end)

  it("reads a checkpoint's folder, and says what it does", function()
    local root = os.tmpname()
    os.remove(root)
    assert(lfs.mkdir(root))
    local function put(name, config)
      local file = assert(io.open(root .. "/" .. name, "w"))
      file:write(type(config) == "table" and cjson.encode(config) or config)
      file:close()
    end
    fails("holds neither preprocessor_config.json nor open_clip_config.json", pg.data.preprocess, root)
    put("open_clip_config.json", { model_cfg = { vision_cfg = { image_size = 240 } }, preprocess_cfg = {
      mean = { 0.5, 0.5, 0.5 }, std = { 0.5, 0.5, 0.5 } } })
    local p = pg.data.preprocess(root)
    assert.are.same({ "shortest", 240, 240, 240, "bicubic", 0.5 },
      { p.fit, p.height, p.crop_height, p.crop_width, p.method, p.mean[1] })
    assert.are.equal("preprocess: bicubic shortest 240 x 240, centre crop 240 x 240, mean 0.5 0.5 0.5, std 0.5 0.5 0.5",
      tostring(p))
    put("preprocessor_config.json", { image_processor_type = "ViTImageProcessor", size = 384, image_mean = cjson.null })
    p = pg.data.preprocess(root)
    assert.are.same({ "exact", 384, 384, "bilinear", 0.5 }, { p.fit, p.height, p.width, p.method, p.mean[1] })
    assert.is_nil(p.crop_height)
    assert.are.same(p.mean, pg.data.preprocess(root .. "/preprocessor_config.json").mean)
    put("preprocessor_config.json", "{not")
    fails(root .. "/preprocessor_config.json: not a JSON object", pg.data.preprocess, root)
    put("preprocessor_config.json", { image_processor_type = "CLIPImageProcessor", image_std = { 1, 0, 1 } })
    fails(root .. ": std[2] must be above 0", pg.data.preprocess, root)
    os.remove(root .. "/open_clip_config.json")
    os.remove(root .. "/preprocessor_config.json")
    lfs.rmdir(root)
  end)

  it("refuses what it does not know, by name", function()
    local function refused(pattern, changes)
      local config = { image_processor_type = "CLIPImageProcessor" }
      for key, value in pairs(changes) do config[key] = value end
      fails(pattern, pg.data.preprocess, config)
    end
    refused("image_processor_type is missing", { image_processor_type = cjson.null })
    refused("image_processor_type MaskFormer is not known", { image_processor_type = "MaskFormer" })
    refused("resample must be 2 (bilinear) or 3 (bicubic), got 1", { resample = 1 })
    refused("do_resize must be true or false, got yes", { do_resize = "yes" })
    refused("size must be a whole number within 1..16384, got 0", { size = 0 })
    refused("size must be a number or {height, width}", { size = { longest_edge = 3 } })
    refused("size's width must be a whole number", { size = { height = 3, width = "x" } })
    refused("crop_size's height must be a whole number within 1..16384, got 1.5", { crop_size = 1.5 })
    refused("mean must be a number or a list of three", { image_mean = { 1, 2 } })
    refused("mean[2] must be a number, got x", { image_mean = { 1, "x", 2 } })
    refused("rescale_factor must be a number", { rescale_factor = "x" })
    refused("size must have height and width", { image_processor_type = "ViTImageProcessor",
      size = { shortest_edge = 3 } })
    local function open_clip(pattern, cfg) fails(pattern, pg.data.preprocess, { preprocess_cfg = cfg }) end
    open_clip("resize_mode must be", { resize_mode = "stretch" })
    open_clip("interpolation must be 'bicubic' or 'bilinear', got nearest", { interpolation = "nearest" })
    open_clip("fill_color must be a whole number within 0..255", { fill_color = 256 })
    open_clip("std[1] must be above 0, got nan", { std = 0 / 0 })
    fails("preprocess_cfg must be an object", pg.data.preprocess, { preprocess_cfg = 3 })
    fails("neither 'clip', 'dinov2', 'mae' nor a folder or file", pg.data.preprocess, "clop")
    fails("takes 'clip', 'dinov2', 'mae', a folder", pg.data.preprocess)
    fails("alpha must be 'white' or 'drop'", pg.data.preprocess, "clip", { alpha = "black" })
    fails("orient must be true or false", pg.data.preprocess, "clip", { orient = 1 })
    fails("a configuration brings its own", pg.data.preprocess, plain, { size = 3 })
  end)

  it("names the first file that cannot be read, and refuses what is no picture", function()
    local p, good, bad = pg.data.preprocess "clip", HERE .. "grey.jpg", temporary "no picture at all"
    fails(bad .. ": not a PNG, JPEG or PPM file", p, { good, bad, "/nonexistent.png" })
    fails("/nonexistent.png: No such file", p, { good, "/nonexistent.png", bad })
    fails("picture 2 of the list must be a path", p, { good, 3 })
    fails("an empty list", p, {})
    fails("takes a tensor, a path or a list", p, nil)
    fails("takes uint8 (H, W, 3) or (N, H, W, 3)", p, pg.zeros(4, 4, 3))
    fails("takes uint8 (H, W, 3) or (N, H, W, 3)", p, pg.zeros(4, 4, 4, { dtype = "uint8" }))
    fails("takes uint8 (H, W, 3) or (N, H, W, 3)", p, pg.zeros(0, 4, 3, { dtype = "uint8" }))
    local open = pg.data.preprocess(plain)
    assert.are.same({ 2, 3, 38, 45 }, open({ HERE .. "quality_5.jpg", HERE .. "quality_50.jpg" }):shape())
    fails("exif_1.jpg: becomes 21 x 13 pixels and the first file 45 x 38", open, { good, HERE .. "exif_1.jpg" })
    local thin = pg.zeros(1, 9000, 3, { dtype = "uint8" })
    assert.are.same({ 1, 3, 224, 224 }, p(thin):shape())
    fails("would be resized to 224 x 0", pg.data.preprocess { preprocess_cfg = { resize_mode = "longest" } }, thin)
    fails("would become one of", pg.data.preprocess { image_processor_type = "CLIPImageProcessor", size = 16384,
      do_center_crop = false }, thin)
  end)
end)

teardown(function()
  for _, path in ipairs(made) do os.remove(path) end
end)
