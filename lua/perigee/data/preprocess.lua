-- preprocess.lua - pictures as a checkpoint was trained to see them, from the file that lies beside its weights.
--
-- The order is that of CLIP's code: resize, centre crop, RGB, / 255, normalise; but the picture is made RGB when it is
-- read, before it is resized, as torchvision's folder loader, OpenCLIP's webdataset reader and transformers'
-- do_convert_rgb have it. (CLIP's own code resizes a palette or an alpha channel as it is.) Formulas:
-- core/data/preprocess.c.

local ffi = require "ffi"
local lfs = require "lfs"
local cjson = require "cjson"
local lib = require "perigee.ffi"
local call = require "perigee.call"
local util = require "perigee.util"

local CLIP = { mean = { 0.48145466, 0.4578275, 0.40821073 }, std = { 0.26862954, 0.26130258, 0.27577711 } }
local IMAGENET = { mean = { 0.485, 0.456, 0.406 }, std = { 0.229, 0.224, 0.225 } }
local HALF = { mean = { 0.5, 0.5, 0.5 }, std = { 0.5, 0.5, 0.5 } }

-- ---- checks of what a file says -------------------------------------------------------------------------------------

local function whole(where, name, value)
  return util.check(type(value) == "number" and value % 1 == 0 and value >= 1 and value <= 16384 and value,
    "%s: %s must be a whole number within 1..16384, got %s", where, name, tostring(value))
end

-- Three numbers, of one or of three.
local function channels(where, name, value)
  if type(value) == "number" then value = { value, value, value } end
  util.check(type(value) == "table" and #value == 3, "%s: %s must be a number or a list of three", where, name)
  for c = 1, 3 do
    util.check(type(value[c]) == "number", "%s: %s[%d] must be a number, got %s", where, name, c, tostring(value[c]))
  end
  return value
end

-- JSON's null is as good as nothing.
local function given(value, default)
  if value == nil or value == cjson.null then return default end
  return value
end

local function flag(where, config, name, default)
  local value = given(config[name], default)
  util.check(type(value) == "boolean", "%s: %s must be true or false, got %s", where, name, tostring(value))
  return value
end

-- {height, width} of a number, a list of two, or an object that has both.
local function pair(where, name, value)
  if type(value) == "number" then value = { value, value }
  elseif type(value) == "table" and value.height ~= nil then value = { value.height, value.width } end
  util.check(type(value) == "table" and #value == 2, "%s: %s must be a number or {height, width}", where, name)
  return whole(where, name .. "'s height", value[1]), whole(where, name .. "'s width", value[2])
end

-- ---- the three kinds of description ---------------------------------------------------------------------------------

-- How a class of transformers reads a size that is one number, and what it takes for what its file leaves out.
local CLASSES = {
  CLIPImageProcessor = { square = false, size = 224, resample = 3, crop = true, colours = CLIP },
  BitImageProcessor = { square = false, size = 224, resample = 3, crop = true, colours = CLIP },
  ViTImageProcessor = { square = true, size = 224, resample = 2, crop = false, colours = HALF },
}
for _, name in ipairs { "CLIP", "ViT" } do CLASSES[name .. "FeatureExtractor"] = CLASSES[name .. "ImageProcessor"] end
local RESAMPLE = { [2] = "bilinear", [3] = "bicubic" }

local function class_of(where, config)
  local name = given(config.image_processor_type, given(config.feature_extractor_type, nil))
  util.check(name ~= nil, "%s: image_processor_type is missing: CLIPImageProcessor, BitImageProcessor or " ..
    "ViTImageProcessor", where)
  return util.check(CLASSES[name], "%s: image_processor_type %s is not known: CLIPImageProcessor, " ..
    "BitImageProcessor, ViTImageProcessor and the FeatureExtractors of CLIP and ViT are", where, tostring(name))
end

-- preprocessor_config.json
local function of_transformers(where, config)
  local class = class_of(where, config)
  local p = { fit = "none", floor = true }
  if flag(where, config, "do_resize", true) then
    local size = given(config.size, class.size)
    local shortest = size
    if type(size) == "table" then shortest = given(size.shortest_edge, nil) end
    if type(shortest) == "number" and (type(size) == "table" or not class.square) then
      util.check(not class.square, "%s: size must have height and width for this image_processor_type", where)
      p.fit, p.height = "shortest", whole(where, "size", shortest)
      p.width = p.height
    else
      p.fit, p.height, p.width = "exact", pair(where, "size", size)
    end
    local resample = given(config.resample, class.resample)
    p.method = util.check(RESAMPLE[resample], "%s: resample must be 2 (bilinear) or 3 (bicubic), got %s", where,
      tostring(resample))
  end
  if class.crop and flag(where, config, "do_center_crop", true) then
    p.crop_height, p.crop_width = pair(where, "crop_size", given(config.crop_size, 224))
  end
  p.scale = flag(where, config, "do_rescale", true) and given(config.rescale_factor, 1 / 255) or 1
  util.check(type(p.scale) == "number", "%s: rescale_factor must be a number, got %s", where, tostring(p.scale))
  p.mean, p.std = { 0, 0, 0 }, { 1, 1, 1 }
  if flag(where, config, "do_normalize", true) then
    p.mean, p.std = given(config.image_mean, class.colours.mean), given(config.image_std, class.colours.std)
  end
  return p
end

-- open_clip_config.json
local function of_open_clip(where, config)
  local cfg = config.preprocess_cfg
  util.check(type(cfg) == "table", "%s: preprocess_cfg must be an object", where)
  local vision = type(config.model_cfg) == "table" and config.model_cfg.vision_cfg
  local size = given(cfg.size, type(vision) == "table" and given(vision.image_size, 224) or 224)
  local height, width = pair(where, "size", size)
  local method = given(cfg.interpolation, "bicubic")
  if method == "random" then method = "bicubic" end -- of training only, as open_clip has it
  local mode = given(cfg.resize_mode, "shortest")
  local p = { height = height, width = width, crop_height = height, crop_width = width, method = method,
    fill = given(cfg.fill_color, 0), mean = given(cfg.mean, CLIP.mean), std = given(cfg.std, CLIP.std) }
  if mode == "squash" then p.fit = "exact"
  elseif mode == "longest" then p.fit = "within"
  elseif height == width then p.fit = "shortest"
  else p.fit, p.method = "cover", "bicubic" end -- open_clip passes no interpolation on here
  util.check(mode == "squash" or mode == "longest" or mode == "shortest",
    "%s: resize_mode must be 'shortest', 'longest' or 'squash', got %s", where, tostring(mode))
  return p
end

-- The evaluation transforms of the models' own repositories, for pictures of `size` pixels; all torchvision's.
local function shortest(resize, size, colours)
  return { fit = "shortest", height = resize, width = resize, crop_height = size, crop_width = size,
    method = "bicubic", mean = colours.mean, std = colours.std }
end
local BUILT_IN = {
  clip = function(size) return shortest(size, size, CLIP) end,
  dinov2 = function(size) return shortest(math.floor(size * 256 / 224), size, IMAGENET) end,
  mae = function(size) return shortest(size <= 224 and math.floor(size * 256 / 224) or size, size, IMAGENET) end,
}

-- ---- from a name or a file to a description -------------------------------------------------------------------------

local FILES = { "preprocessor_config.json", "open_clip_config.json" }

local function read_json(path)
  local file, why = io.open(path, "rb")
  util.check(file, "preprocess: cannot read %s", tostring(why))
  local text = file:read "*a"
  file:close()
  local ok, config = pcall(cjson.decode, text or "")
  util.check(ok and type(config) == "table", "preprocess: %s: not a JSON object", path)
  return config
end

local function of_config(where, config)
  if config.preprocess_cfg ~= nil then return of_open_clip(where, config) end
  return of_transformers(where, config)
end

local function description(source, size)
  if BUILT_IN[source] then return BUILT_IN[source](whole("preprocess", "size", size or 224)) end
  util.check(size == nil, "preprocess: size is of 'clip', 'dinov2' and 'mae'; a configuration brings its own")
  if type(source) == "table" then return of_config("preprocess", source) end
  util.check(type(source) == "string",
    "preprocess: takes 'clip', 'dinov2', 'mae', a folder, a .json file or a table, got %s", type(source))
  local mode = lfs.attributes(source, "mode")
  if mode == "directory" then
    for _, name in ipairs(FILES) do
      local path = source .. "/" .. name
      if lfs.attributes(path, "mode") == "file" then return of_config(path, read_json(path)) end
    end
    util.fail(0, "preprocess: %s holds neither preprocessor_config.json nor open_clip_config.json", source)
  end
  util.check(mode, "preprocess: '%s' is neither 'clip', 'dinov2', 'mae' nor a folder or file", source)
  return of_config(source, read_json(source))
end

-- ---- the object -----------------------------------------------------------------------------------------------------

local FIT = { none = lib.PG_FIT_NONE, shortest = lib.PG_FIT_SHORTEST, exact = lib.PG_FIT_EXACT,
  cover = lib.PG_FIT_COVER, within = lib.PG_FIT_WITHIN }

local Preprocess = {}
Preprocess.__index = Preprocess

-- The core's form of a description; what is wrong with its numbers, the core says.
local function compile(p)
  local c = ffi.new "pg_preprocess"
  c.fit, c.height, c.width = FIT[p.fit], p.height or 0, p.width or 0
  c.bilinear = p.method == "bilinear" and 1 or 0
  c.crop_height, c.crop_width, c.crop_floor = p.crop_height or 0, p.crop_width or 0, p.floor and 1 or 0
  c.fill, c.scale = p.fill, p.scale
  c.drop_alpha, c.as_stored = p.alpha == "drop" and 1 or 0, p.orient and 0 or 1
  for i = 1, 3 do c.mean[i - 1], c.std[i - 1] = p.mean[i], p.std[i] end
  return c
end

--- Pictures as the model takes them; preprocess(pictures) is the same. Files are read on all threads.
-- @param pictures  uint8 (H, W, 3) or (N, H, W, 3) on the CPU; a path, or a list of N paths of PNG or JPEG files
-- @return float32 (N, 3, height, width), N = 1 for one picture
-- @raises one line naming the first file that cannot be read; on files that become different sizes, which is only
--   possible without a centre crop
function Preprocess:apply(pictures)
  local out = ffi.new "pg_tensor *[1]"
  if call.is_tensor(pictures) then
    call.check(lib.pg_preprocess_images(self.compiled, pictures, out))
    return call.own(out[0])
  end
  local list = type(pictures) == "string" and { pictures } or pictures
  util.check(type(list) == "table" and #list > 0, "preprocess: takes a tensor, a path or a list of paths, got %s",
    type(pictures) == "table" and "an empty list" or type(pictures))
  local paths = ffi.new("const char *[?]", #list)
  for i, path in ipairs(list) do
    util.check(type(path) == "string", "preprocess: picture %d of the list must be a path, got %s", i, type(path))
    paths[i - 1] = path
  end
  call.check(lib.pg_preprocess_files(self.compiled, paths, #list, out))
  return call.own(out[0])
end

Preprocess.__call = Preprocess.apply

function Preprocess:__tostring()
  local crop = self.crop_height and (", centre crop %d x %d"):format(self.crop_height, self.crop_width) or ""
  local size = self.fit == "none" and "no resizing" or ("%s %s %d x %d"):format(self.method, self.fit, self.height,
    self.width)
  return ("preprocess: %s%s, mean %g %g %g, std %g %g %g"):format(size, crop, self.mean[1], self.mean[2], self.mean[3],
    self.std[1], self.std[2], self.std[3])
end

--- Pictures as a model was trained to see them. Resizing is Pillow's, to the bit; a crop larger than the picture pads
-- it with black. A crop starts at (H - n) / 2: torchvision and open_clip take halves to even, transformers down. Every
-- picture becomes RGB first, whatever do_convert_rgb says.
-- @param source  one of three names, a path, or a table:
--   clip     openai/CLIP: shorter side to 224, centre 224, bicubic, torchvision's rules for sizes and crops
--   dinov2   facebookresearch/dinov2: shorter side to 256, centre 224, the same rules
--   mae      facebookresearch/mae: 256, 224, the same rules
--   path     a checkpoint's folder, or the file in it: preprocessor_config.json of transformers (CLIPImageProcessor,
--            BitImageProcessor, ViTImageProcessor, older FeatureExtractors), open_clip_config.json of open_clip
--   table    what such a file holds
-- @param options
--   size    224, of the named ones; the size before the crop goes with it
--   alpha   "white" (default): composited on white, as pg.image.load does, so that a path and a loaded picture give the
--           same; "drop": thrown away, as Pillow's convert("RGB") and so the models' own code
--   orient  true (default): turned as EXIF says, as transformers' load_image; false: as torchvision and open_clip
-- @return an object to call with pictures, as :apply. Its fields .fit, .height, .width, .crop_height, .crop_width,
--   .method, .mean, .std say what it does
-- @raises one line naming the file and the key that is missing, wrong, or of no known kind
return function(source, options)
  options = util.options("preprocess", options, { size = util.none, alpha = "white", orient = true })
  util.check(options.alpha == "white" or options.alpha == "drop",
    "preprocess: alpha must be 'white' or 'drop', got %s", tostring(options.alpha))
  util.check(type(options.orient) == "boolean", "preprocess: orient must be true or false, got %s",
    tostring(options.orient))
  local p = description(source, options.size)
  local where = type(source) == "string" and source or "preprocess"
  p.alpha, p.orient, p.fill, p.scale = options.alpha, options.orient, p.fill or 0, p.scale or 1 / 255
  p.mean, p.std = channels(where, "mean", p.mean), channels(where, "std", p.std)
  util.check(p.fit == "none" or p.method == "bicubic" or p.method == "bilinear",
    "%s: interpolation must be 'bicubic' or 'bilinear', got %s", where, tostring(p.method))
  util.check(type(p.fill) == "number" and p.fill % 1 == 0 and p.fill >= 0 and p.fill <= 255,
    "%s: fill_color must be a whole number within 0..255, got %s", where, tostring(p.fill))
  for c = 1, 3 do util.check(p.std[c] > 0, "%s: std[%d] must be above 0, got %g", where, c, p.std[c]) end
  p.compiled = compile(p)
  return setmetatable(p, Preprocess)
end
