-- loader_spec.lua - the loader's stream against the same steps written out with ops, for any number of threads, across a
-- resume, over broken files; and that its threads come and go as they should.

local ffi = require "ffi"
local bit = require "bit"
local lfs = require "lfs"
local cjson = require "cjson"
local pg = require "perigee"
local lib = require "perigee.ffi"
local random = require "perigee.data.random"

local N = 23

-- ---- helpers ------------------------------------------------------------------------------------------------------

local function bytes_of(t) return ffi.string(t:data(), t:numel() * (t:dtype() == "uint8" and 1 or 4)) end

-- Images whose bytes come from a generator of their own, and labels 1..3 by turns.
local function dataset(height, width, n)
  n = n or N
  local images, labels = pg.empty(n, height, width, 3, { dtype = "uint8" }), {}
  local data, draws = images:data(), random.new(7)
  for i = 0, images:numel() - 1 do data[i] = draws:below(256) - 1 end
  for i = 1, n do labels[i] = i % 3 + 1 end
  return { name = "bytes", images = images, labels = pg.tensor(labels, { dtype = "int32" }), classes = { "a", "b", "c" } }
end

local function loader(options)
  local given = { dataset = options.dataset or dataset(12, 12), batch = 5, workers = 2, prefetch = 2, seed = 3 }
  for key, value in pairs(options) do given[key] = value end
  return pg.data.loader(given)
end

local function stream(l, count)
  local parts = {}
  for i = 1, count do
    local images, labels, positions = l:next()
    parts[i] = bytes_of(images) .. bytes_of(labels) .. table.concat(positions, ",")
  end
  return table.concat(parts)
end

local fails = require("expect").fails

local folder

local function save(name, images, i)
  local path = folder .. "/" .. name
  pg.image.save(path, images:select(1, i))
  return path
end

local function write(name, bytes)
  local file = assert(io.open(folder .. "/" .. name, "wb"))
  file:write(bytes)
  file:close()
  return folder .. "/" .. name
end

setup(function()
  folder = os.tmpname()
  os.remove(folder)
  assert(lfs.mkdir(folder))
end)

teardown(function()
  for name in lfs.dir(folder) do
    if name ~= "." and name ~= ".." then os.remove(folder .. "/" .. name) end
  end
  lfs.rmdir(folder)
end)

-- ---- the augmentations once more, with ops ------------------------------------------------------------------------

local function draw(seed, sample, block)
  local counter, key, out = ffi.new("uint32_t[4]", block, sample, 0, 0x10ade), ffi.new("uint32_t[2]", seed, 0),
    ffi.new "uint32_t[4]"
  lib.pg_philox(counter, key, out)
  return out
end

local function uniform(w, lo, hi) return lo + (hi - lo) * bit.rshift(w, 8) * 2 ^ -24 end
local function below(w, n) return math.floor(w * n / 2 ^ 32) end

local function round(v) -- halves to even, as C's rint and Python's round
  local low = math.floor(v)
  if v - low == 0.5 then return low + low % 2 end
  return math.floor(v + 0.5)
end

local function crop_window(h, w, area, seed, sample)
  for try = 0, 9 do
    local d = draw(seed, sample, try)
    local pixels = h * w * uniform(d[0], area[1], area[2])
    local ratio = math.exp(uniform(d[1], math.log(3 / 4), math.log(4 / 3)))
    local cw, ch = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
    if cw > 0 and cw <= w and ch > 0 and ch <= h then return below(d[2], h - ch + 1), below(d[3], w - cw + 1), ch, cw end
  end
  local ch, cw = h, w
  if w < h * 3 / 4 then ch = round(w * 4 / 3) elseif w > h * 4 / 3 then cw = round(h * 4 / 3) end
  return math.floor((h - ch) / 2), math.floor((w - cw) / 2), ch, cw
end

local function square(image, size, crop, method, seed, sample)
  local h, w = image:size(1), image:size(2)
  if crop then
    local top, left, ch, cw = crop_window(h, w, crop, seed, sample)
    return pg.image.resize(image:crop(top + 1, left + 1, ch, cw), size, size, method)
  end
  local oh, ow = size, size
  if w <= h then oh = math.floor(size * h / w) else ow = math.floor(size * w / h) end
  return pg.image.resize(image, oh, ow, method):crop(round((oh - size) / 2) + 1, round((ow - size) / 2) + 1, size, size)
end

local function augmented(image, o, seed, sample)
  local s = square(image, o.size, o.crop, o.method, seed, sample):contiguous():totable()
  local d, size, out = draw(seed, sample, 16), o.size, {}
  local mirrored, pad = uniform(d[0], 0, 1) < (o.flip or 0), o.pad or 0
  local down, right = below(d[1], 2 * pad + 1) - pad, below(d[2], 2 * pad + 1) - pad
  for y = 1, size do
    out[y] = {}
    for x = 1, size do
      local fy, fx = y + down, (mirrored and size + 1 - x or x) + right
      local cy, cx = math.min(math.max(fy, 1), size), math.min(math.max(fx, 1), size)
      out[y][x] = (fy == cy and fx == cx or o.pad_mode == "edge") and s[cy][cx] or { 0, 0, 0 }
    end
  end
  return pg.tensor({ out }, { dtype = "uint8" })
end

-- Every image of three batches equals what the ops make of it.
local function check_against_ops(data, size, method, augment)
  local l = loader { dataset = data, size = size, method = method, augment = augment, mean = { 0.4, 0.5, 0.6 }, std = 0.3 }
  local o, sample = { size = size, method = method }, 0
  for key, value in pairs(augment) do o[key] = value end
  for _ = 1, 3 do
    local images, labels, positions = l:next()
    for i, position in ipairs(positions) do
      local want = pg.data.to_float(augmented(data.images:select(1, position), o, 3, sample),
        { mean = { 0.4, 0.5, 0.6 }, std = 0.3 })
      assert.is_true(bytes_of(want) == bytes_of(images:narrow(1, i, 1):contiguous()))
      assert.are.equal(position % 3 + 1, labels:get(i))
      sample = sample + 1
    end
  end
  l:close()
end

-- ---- what comes out -----------------------------------------------------------------------------------------------

describe("loader stream", function()
  it("is data.batches' stream when nothing is augmented, over several epochs", function()
    local data = dataset(8, 8)
    local l, b = loader { dataset = data, mean = { 0.1, 0.2, 0.3 }, std = 0.5 },
      pg.data.batches { dataset = data, batch = 5, seed = 3, mean = { 0.1, 0.2, 0.3 }, std = 0.5 }
    for _ = 1, 11 do
      local images, labels = l:next()
      local want, want_labels = b:next()
      assert.is_true(bytes_of(want) == bytes_of(images))
      assert.is_true(bytes_of(want_labels) == bytes_of(labels))
      assert.are.same({ 5, 3, 8, 8 }, images:shape())
    end
    l:close()
  end)

  it("crops, resizes, flips and shifts to the bit as the ops do", function()
    check_against_ops(dataset(12, 12), 12, "bicubic", { flip = 0.5 })
    check_against_ops(dataset(12, 12), 12, "bicubic", { pad = 3, flip = 0.5 })
    check_against_ops(dataset(12, 12), 12, "bicubic", { pad = 11, pad_mode = "edge" })
    check_against_ops(dataset(12, 12), 12, "bilinear", { crop = { 0.1, 1 }, flip = 0.5 })
    check_against_ops(dataset(21, 13), 8, "bicubic", { crop = { 0.3, 0.9 }, pad = 2, pad_mode = "zero" })
    check_against_ops(dataset(9, 40), 7, "bicubic", { crop = { 0.9, 1 } }) -- no try fits: the centre
    check_against_ops(dataset(40, 9), 7, "bilinear", { crop = { 0.9, 1 } })
  end)

  it("resizes the shorter side and keeps the centre", function()
    check_against_ops(dataset(17, 30), 8, "bicubic", {})
    check_against_ops(dataset(30, 17), 9, "bilinear", {})
    check_against_ops(dataset(7, 12), 20, "bicubic", {})
    check_against_ops(dataset(8, 11), 8, "bicubic", {}) -- only cut, at 1.5: halves go to even
  end)

  it("jitters brightness, contrast and saturation within their bounds and by the stated formulas", function()
    local data = dataset(6, 6)
    local function grey(p) return 0.299 * p[1] + 0.587 * p[2] + 0.114 * p[3] end
    local function clamp(v) return math.min(math.max(v, 0), 255) end
    local l = loader { dataset = data, augment = { brightness = 0.4, contrast = 0.5, saturation = 2 }, mean = 0, std = 1 }
    local sample = 0
    for _ = 1, 2 do
      local images, _, positions = l:next()
      for i, position in ipairs(positions) do
        local d, p, sum = draw(3, sample, 17), {}, 0
        local f = { uniform(d[0], 0.6, 1.4), uniform(d[1], 0.5, 1.5), uniform(d[2], 0, 3) }
        for y, row in ipairs(data.images:select(1, position):totable()) do
          for x, v in ipairs(row) do
            local pixel = {}
            for c = 1, 3 do pixel[c] = clamp(f[1] * v[c]) end
            p[6 * (y - 1) + x], sum = pixel, sum + grey(pixel)
          end
        end
        for at, pixel in ipairs(p) do
          for c = 1, 3 do pixel[c] = clamp(f[2] * pixel[c] + (1 - f[2]) * sum / 36) end
          local g = grey(pixel)
          for c = 1, 3 do
            local got = images:get(i, c, math.floor((at - 1) / 6) + 1, (at - 1) % 6 + 1)
            assert.is_near(clamp(f[3] * pixel[c] + (1 - f[3]) * g) / 255, got, 1e-5)
          end
        end
        sample = sample + 1
      end
    end
    l:close()
  end)

  it("flips about half, and shifts reach both ends", function()
    local image = pg.zeros(1, 3, 3, 3, { dtype = "uint8" })
    image:data()[12], image:data()[13], image:data()[14], image:data()[15] = 100, 100, 100, 200 -- middle, and right of it
    local l = loader { dataset = { images = image, labels = { 1 } }, batch = 1, augment = { flip = 0.5, pad = 1 },
      mean = 0, std = 1 }
    local flips, places = 0, {}
    for _ = 1, 400 do
      local t = l:next():totable()[1][1]
      for y = 1, 3 do
        for x = 1, 3 do
          if math.abs(t[y][x] - 100 / 255) < 1e-6 then
            places[y .. x] = (places[y .. x] or 0) + 1
            if x > 1 and t[y][x - 1] > 0.5 then flips = flips + 1 end
          end
        end
      end
    end
    local kinds = 0
    for _ in pairs(places) do kinds = kinds + 1 end
    assert.are.equal(9, kinds)
    assert.is_true(flips > 80 and flips < 190) -- of the two thirds in which the neighbour is still inside
    l:close()
  end)

  it("is the same for 1, 2 and 7 workers and any prefetch, from memory and from files", function()
    local data, augment = dataset(14, 10), { crop = { 0.2, 1 }, flip = 0.5, pad = 2, brightness = 0.3, contrast = 0.3 }
    local files = {}
    for i = 1, N do files[i] = save("same" .. i .. ".png", data.images, i) end
    local want
    for _, source in ipairs { data, { files = files, labels = data.labels } } do
      for workers, prefetch in pairs { 4, 1, [7] = 9 } do
        local l = loader { dataset = source, workers = workers, prefetch = prefetch, size = 8, augment = augment }
        local got = stream(l, 12)
        want = want or got
        assert.is_true(want == got, workers .. " workers")
        l:close()
      end
    end
    local other = loader { dataset = data, size = 8, augment = augment, seed = 4 }
    assert.is_false(want == stream(other, 12))
    other:close()
  end)

  it("gives a shorter last batch when asked, and goes through the images in order without shuffling", function()
    local l = loader { shuffle = false, drop_last = false, batch = 10 }
    for epoch = 1, 2 do
      local seen = {}
      for _, count in ipairs { 10, 10, 3 } do
        local images, labels, positions = l:next()
        assert.are.equal(count, images:size(1))
        assert.are.equal(count, labels:numel())
        for _, position in ipairs(positions) do seen[#seen + 1] = position end
      end
      for i = 1, N do assert.are.equal(i, seen[i], "epoch " .. epoch) end
    end
    l:close()
  end)

  it("survives a pg.scope around each step and a caller who frees the images", function()
    local data = dataset(12, 12)
    local want = stream(loader { dataset = data }, 6)
    local l, got = loader { dataset = data }, {}
    data.images:free()
    data.labels:free()
    for i = 1, 6 do got[i] = pg.scope(function() return stream(l, 1) end) end
    assert.is_true(want == table.concat(got))
    l:close()
  end)
end)

-- ---- resuming -----------------------------------------------------------------------------------------------------

describe("loader state", function()
  local augment = { crop = { 0.4, 1 }, flip = 0.5 }

  it("goes on bitwise from any batch, through JSON, whatever was prefetched", function()
    for _, drop_last in ipairs { true, false } do
      for _, before in ipairs { 0, 1, 4, 5, 9 } do
        local a = loader { augment = augment, drop_last = drop_last }
        if before > 0 then stream(a, before) end
        local state = cjson.decode(cjson.encode(a:state()))
        assert.are.equal(before * 5 - (not drop_last and math.floor(before / 5) * 2 or 0), state.samples)
        local want = stream(a, 7)
        local b = loader { augment = augment, drop_last = drop_last, workers = 1, prefetch = 5 }
        stream(b, 3)
        assert.is_true(want == stream(b:restore(state), 7))
        assert.is_true(want == stream(a:restore(state), 7))
        a:close()
        b:close()
      end
    end
  end)

  it("takes the seed from the state, and refuses one that does not fit", function()
    local a, b = loader { seed = 9 }, loader { seed = 1 }
    stream(a, 2)
    local state = a:state()
    assert.is_true(stream(a, 3) == stream(b:restore(state), 3))
    fails("in batches of 5", b.restore, b, { n = N, batch = 4 })
    fails("state.epoch", b.restore, b, { n = N, batch = 5, seed = 1 })
    fails("with a sampler", b.restore, b, { n = N, batch = 5, seed = 1, pending = {} })
    a:close()
    b:close()
  end)

  it("remembers what a sampler was asked ahead", function()
    local function counting(from)
      local at = from
      return function()
        at = at + 1
        return pg.tensor({ at % N + 1, (2 * at) % N + 1, at % 4 + 1 }, { dtype = "int32" })
      end, function() return at end
    end
    local next_of, asked = counting(0)
    local a = loader { sampler = next_of, augment = augment }
    local _, labels, positions = a:next()
    assert.are.same({ 2, 3, 2 }, positions)
    assert.are.same({ 3, 1, 3 }, labels:totable())
    stream(a, 3)
    local state, from = cjson.decode(cjson.encode(a:state())), asked()
    assert.are.equal(from - 4, #state.pending)
    local want = stream(a, 8)
    local b = loader { sampler = (counting(from)), augment = augment }
    b:restore(state)
    stream(b, 1)
    local again = b:state() -- half of what was remembered is still to come
    assert.are.equal(12 + 3, again.samples)
    b:restore(state)
    b.sampler = counting(from)
    assert.is_true(want == stream(b, 8))
    a:close()
    b:close()
  end)

  it("gives no batch twice and loses none when an interruption comes between taking and giving", function()
    local want = stream(loader { augment = augment }, 8)
    local interrupted = 0
    for at = 1, 400, 7 do -- an error raised after so many instructions, as Ctrl-C does
      local l = loader { augment = augment }
      local got, count = { stream(l, 2) }, 0
      require("jit").off()
      debug.sethook(function()
        count = count + 1
        if count >= at and debug.getinfo(2, "S").source:find("data/loader.lua", 1, true) then
          debug.sethook()
          error("interrupted", 0)
        end
      end, "", 1)
      local ok, images, labels, positions = pcall(l.next, l)
      debug.sethook()
      require("jit").on()
      if ok then got[2] = bytes_of(images) .. bytes_of(labels) .. table.concat(positions, ",")
      else interrupted = interrupted + 1 end
      got[#got + 1] = stream(l, ok and 5 or 6)
      assert.is_true(want == table.concat(got), "interrupted after " .. at)
      l:close()
    end
    assert.is_true(interrupted > 10)
  end)
end)

-- ---- what goes wrong ----------------------------------------------------------------------------------------------

describe("loader errors", function()
  it("name the file of the first image that cannot be read, and the next batch follows", function()
    local data, files = dataset(8, 8), {}
    for i = 1, N do files[i] = save("error" .. i .. ".png", data.images, i) end
    local whole = io.open(files[7], "rb"):read "*a"
    files[7] = write("broken.png", whole:sub(1, 100))
    files[9] = folder .. "/missing.png"
    files[13] = write("text.png", "not a picture")
    files[18] = write("flipped.png", whole:sub(1, 60) .. string.char((whole:byte(61) + 1) % 256) .. whole:sub(62))
    for _, workers in ipairs { 1, 3 } do
      local l = loader { dataset = { files = files, labels = data.labels }, size = 8, shuffle = false, workers = workers }
      l:next()
      fails("broken.png: damaged PNG", l.next, l) -- positions 6..10: the first is named, not the quickest
      fails("text.png: not a PNG, JPEG or PPM file", l.next, l)
      fails("flipped.png: damaged PNG", l.next, l)
      local _, _, positions = l:next()
      assert.are.equal(1, positions[1])
      files[7], files[9] = files[9], files[7]
      l:close()
      l = loader { dataset = { files = files, labels = data.labels }, size = 8, shuffle = false, workers = workers }
      l:next()
      fails("missing.png: No such file", l.next, l)
      files[7], files[9] = files[9], files[7]
      l:close()
    end
  end)

  it("name the option and what would be right", function()
    local data = dataset(8, 8)
    fails("did you mean 'workers'", loader, { wrokers = 2 })
    fails("did you mean 'flip'", loader, { augment = { flop = 1 } })
    fails("workers must be a whole number", loader, { workers = 0 })
    fails("flip must be a probability", loader, { augment = { flip = 1.5 } })
    fails("least area <= most area", loader, { augment = { crop = { 0.9, 0.5 } } })
    fails("pad must be 0 or more pixels", loader, { augment = { pad = 12 } })
    fails("brightness must be 0 or more", loader, { augment = { brightness = -1 } })
    fails("std must be above 0", loader, { std = { 1, 0, 1 } })
    fails("size must be within 1..1024", loader, { size = 2000 })
    fails("'zero' or 'edge'", loader, { augment = { pad = 1, pad_mode = "mirror" } })
    fails("'bicubic' or 'bilinear'", loader, { method = "nearest" })
    fails("not square", loader, { dataset = dataset(8, 9) })
    fails("23 images and 2 labels", loader, { dataset = { images = data.images, labels = { 1, 2 } } })
    fails("uint8 (N, H, W, 3)", loader, { dataset = { images = pg.zeros(2, 4, 4, 3), labels = { 1, 2 } }, batch = 1 })
    fails("a batch of 64 from a dataset of 23", loader, { batch = 64 })
    fails("files[2] must be a path", loader, { dataset = { files = { "a", 2 }, labels = { 1, 2 } }, batch = 1 })
  end)

  it("leave the loader as it was when the sampler errs", function()
    local positions = { 1, 2 }
    local l = loader { sampler = function() return positions end }
    l:next()
    positions = { 1, N + 1 }
    fails("position 24 is outside 1..23", l.next, l)
    positions = "all"
    fails("sampler must return the next batch's positions", l.next, l)
    positions = { 3, 4 }
    for _ = 1, 2 do assert.are.same({ 1, 2 }, select(3, l:next())) end
    assert.are.same({ 3, 4 }, select(3, l:next()))
    l:close()
  end)
end)

-- ---- threads ------------------------------------------------------------------------------------------------------

local function threads()
  local list = {}
  for name in lfs.dir "/proc/self/task" do
    if name:match "%d" then list[#list + 1] = name end
  end
  return list
end

describe("loader threads", function()
  it("block every signal, so that Ctrl-C reaches the caller", function()
    local before = {}
    for _, id in ipairs(threads()) do before[id] = true end
    local l, blocked = loader { workers = 3 }, 0
    for _, id in ipairs(threads()) do
      if not before[id] then
        local status = io.open("/proc/self/task/" .. id .. "/status"):read "*a"
        local low = tonumber(status:match "SigBlk:%s*%x+(%x%x)", 16)
        assert.are.equal(2, bit.band(low, 2)) -- bit 1 of the mask is SIGINT
        blocked = blocked + 1
      end
    end
    assert.are.equal(3, blocked)
    l:close()
  end)

  it("end with :close(), and with the collector, and give all memory back", function()
    collectgarbage()
    collectgarbage()
    local count, live = #threads(), pg.memory().live
    local l = loader { workers = 4, prefetch = 6 }
    l:next()
    l:close()
    l:close()
    fails("the loader is closed", l.next, l)
    fails("the loader is closed", l.state, l)
    l = nil -- luacheck: ignore 311
    for _ = 1, 5 do loader({ workers = 4 }):next() end
    collectgarbage()
    collectgarbage()
    assert.are.equal(count, #threads())
    assert.are.equal(live, pg.memory().live)
  end)
end)
