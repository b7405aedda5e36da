-- loader.lua - images a second through pg.data.loader: cached bytes with every mix of augmentations, and photo-like PNG
-- and JPEG files as they are decoded. Medians of five stretches, settings alternating, by wall clock; then the
-- median per second of processor time, of all threads together, which other load on the machine disturbs less.
--   luajit tests/bench/loader.lua [workers ...]          default 1 2

local pg = require "perigee"
local timing = dofile "tests/bench/timing.lua"
local lfs = require "lfs"
local random = require "perigee.data.random"

local REPEATS, SECONDS, FILES, SIDE = 5, 0.6, 96, 224
local PHOTOS, WIDTH, HEIGHT = 48, 500, 375

-- A photograph's statistics, near enough: smooth shapes at several scales, correlated channels, and sensor noise.
local function photo(index, height, width)
  local t, draws = pg.empty(height, width, 3, { dtype = "uint8" }), random.new(index)
  local to, waves = t:data(), {}
  for i = 1, 8 do
    local scale = 2 * math.pi * 2 ^ (i / 2) / width
    local angle = draws:below(628) / 100
    waves[i] = { scale * math.cos(angle), scale * math.sin(angle), draws:below(628) / 100, 60 / i,
      0.7 + draws:below(60) / 100, 0.7 + draws:below(60) / 100 }
  end
  for y = 0, height - 1 do
    for x = 0, width - 1 do
      local r, g, b = 120, 120, 120
      for i = 1, 8 do
        local w = waves[i]
        local v = w[4] * math.sin(w[1] * x + w[2] * y + w[3])
        r, g, b = r + v, g + v * w[5], b + v * w[6]
      end
      local at, grain = (y * width + x) * 3, draws:below(9) - 5
      to[at] = math.min(math.max(r + grain + draws:below(3), 0), 255)
      to[at + 1] = math.min(math.max(g + grain + draws:below(3), 0), 255)
      to[at + 2] = math.min(math.max(b + grain + draws:below(3), 0), 255)
    end
  end
  return t
end

local function stretch(options)
  local l = pg.data.loader(options)
  for _ = 1, 2 do pg.scope(function() l:next() end) end
  local began, used, images = pg.now(), os.clock(), 0
  repeat
    pg.scope(function() l:next() end)
    images = images + options.batch
  until pg.now() - began > SECONDS
  local rate, per_cpu = images / (pg.now() - began), images / (os.clock() - used)
  l:close()
  return rate, per_cpu
end

-- One row a case, one column a number of workers; the settings take turns, so that other load on the machine hits all.
local function compare(cases, workers)
  local rates, per_cpu = {}, {}
  for _ = 1, REPEATS do
    for i, case in ipairs(cases) do
      for j, w in ipairs(workers) do
        local options = { workers = w }
        for key, value in pairs(case.options) do options[key] = value end
        rates[i .. ":" .. j], per_cpu[i] = rates[i .. ":" .. j] or {}, per_cpu[i] or {}
        local rate, of_cpu = stretch(options)
        table.insert(rates[i .. ":" .. j], rate)
        table.insert(per_cpu[i], of_cpu)
      end
    end
  end
  for i, case in ipairs(cases) do
    local cells = {}
    for j in ipairs(workers) do cells[j] = ("%9.0f"):format(timing.median(rates[i .. ":" .. j])) end
    print(("%-56s %s %12.0f"):format(case.name, table.concat(cells), timing.median(per_cpu[i])))
  end
end

local workers = {}
for i = 1, #arg do workers[i] = assert(tonumber(arg[i]), "workers are numbers") end
if #workers == 0 then workers = { 1, 2 } end
local heads = {}
for i, w in ipairs(workers) do heads[i] = ("%9d"):format(w) end
print(("%-56s %s %12s"):format("images a second, by workers", table.concat(heads), "a CPU second"))

local images, labels, draws = pg.empty(4096, 32, 32, 3, { dtype = "uint8" }), {}, random.new(1)
for i = 0, images:numel() - 1 do images:data()[i] = draws:below(256) - 1 end
for i = 1, 4096 do labels[i] = 1 end
local cached = { images = images, labels = labels }
local function in_memory(name, augment)
  return { name = "32x32 cached, " .. name, options = { dataset = cached, batch = 256, augment = augment } }
end
compare({ in_memory("normalise", {}), in_memory("pad crop, flip", { pad = 4, flip = 0.5 }),
  in_memory("random resized crop, flip", { crop = { 0.25, 1 }, flip = 0.5 }),
  in_memory("random resized crop, flip, jitter",
    { crop = { 0.25, 1 }, flip = 0.5, brightness = 0.4, contrast = 0.4, saturation = 0.4 }) }, workers)

local folder = os.tmpname()
os.remove(folder)
assert(lfs.mkdir(folder))
-- `count` photographs as files, and a function that makes a case of them.
local function written(count, extension, height, width, options)
  local files, ones, bytes = {}, {}, 0
  for i = 1, count do
    files[i], ones[i] = ("%s/%d.%s"):format(folder, i, extension), 1
    pg.image.save(files[i], photo(i, height, width), options)
    bytes = bytes + lfs.attributes(files[i], "size")
  end
  local kind = ("%dx%d %s of %d kB, "):format(width, height, extension:upper(), math.floor(bytes / count / 1000 + 0.5))
  return files, function(name, size, augment)
    return { name = kind .. name, options = { dataset = { files = files, labels = ones }, batch = 32, size = size,
      augment = augment } }
  end
end

local files, decoded = written(FILES, "png", SIDE, SIDE)
compare({ decoded("normalise", SIDE, {}), decoded("random resized crop, flip", SIDE, { crop = { 0.25, 1 }, flip = 0.5 }),
  decoded("to 32x32", 32, {}) }, workers)
local photos, from_photo = written(PHOTOS, "jpg", HEIGHT, WIDTH, { quality = 90 })
compare({ from_photo("centre 224", SIDE, {}),
  from_photo("random resized crop to 224, flip", SIDE, { crop = { 0.25, 1 }, flip = 0.5 }) }, workers)

for _, list in ipairs { files, photos } do
  for _, file in ipairs(list) do os.remove(file) end
end
lfs.rmdir(folder)
