-- models.lua - vision models, their files, and the head. A family is a file of models/; each has forward_features,
-- .width and .depth, so that heads, probes and regularisers need not know which it is.

local lib = require "perigee.ffi"
local util = require "perigee.util"
local pg = require "perigee"
local lfs = require "lfs"
local json = require "cjson"
local nn = require "perigee.nn"
local checkpoint = require "perigee.models.checkpoint"
local transformer = require "perigee.models.transformer"

local vit, clip = require "perigee.models.vit", require "perigee.models.clip"
local dinov2, mae = require "perigee.models.dinov2", require "perigee.models.mae"
local models = { vit = vit.new, clip = clip.new, dinov2 = dinov2.new, mae = mae.new }

-- ---- head -----------------------------------------------------------------------------------------------------------

local Head = nn.class "Head"
--- A linear classifier on features brought to length one, as the probes use it (docs/method.md, section 2.4).
-- @param width    of the features
-- @param classes  how many logits
-- @param options  {normalize = true}
-- @return a module: (B, width) -> (B, classes)
function models.head(width, classes, options)
  options = util.options("models.head", options, { normalize = true })
  local self = Head.new()
  self.linear, self.normalize = nn.Linear(width, classes), options.normalize
  return self
end
function Head:forward(x) return self.linear(self.normalize and x:normalize() or x) end

-- ---- weights of two models ------------------------------------------------------------------------------------------------

--- Mixes the weights of a fine-tuned model with those that it started from, in place: (1 - share) other + share model, which
-- is WiSE-FT (Wortsman et al., arXiv 2109.01903).
-- @param model  a module; it gets the mix
-- @param other  a module with the same parameters
-- @param share  of the model in the mix, 0 to 1
-- @raises when their parameters differ in number or shape, and on another share
function models.mix(model, other, share)
  util.check(type(share) == "number" and share >= 0 and share <= 1, "models.mix: share must be from 0 to 1, got %s",
    tostring(share))
  local mine, theirs = model:parameters(), other:parameters()
  util.check(#mine == #theirs, "models.mix: %d parameters to mix with %d", #mine, #theirs)
  pg.no_grad(function()
    for i, t in ipairs(mine) do t:copy_(theirs[i] * (1 - share) + t * share) end
  end)
end

-- ---- memory -----------------------------------------------------------------------------------------------------------

--- Has a model's blocks keep for backward only what enters them, and compute the rest again (pg.checkpoint): the same
-- gradients, bit for bit, for a quarter more time and a fraction of the memory (docs/performance.md has figures).
-- @param model  from pg.models, or a module that holds one
-- @param on     default true; false undoes it
-- @return the model
-- @raises when there is no block in it
function models.recompute(model, on)
  util.check(nn.is_module(model) and transformer.recompute(model, on ~= false) > 0,
    "models.recompute: takes a model with blocks, got %s", tostring(model))
  return model
end

-- ---- files of other libraries ---------------------------------------------------------------------------------------

-- What a family knows of its files: {name = .family of its models, model_type and architectures of config.json,
-- new = options -> model, read = fields of a configuration -> options, write = model -> configuration,
-- layout = model -> rows (checkpoint.lua), ignored = patterns of names that are not used, prefix = a pattern that may
-- stand before names}.
local TRANSFORMERS = { require "perigee.models.clip_files", dinov2, mae }
local OPEN_CLIP = require "perigee.models.open_clip"

local WEIGHTS = { "model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors",
  "open_clip_pytorch_model.safetensors" } -- looked for in a folder, in this order

local function family_of(path, config)
  local architectures = type(config.architectures) == "table" and config.architectures or {}
  local known, given = {}, architectures[1] or config.model_type
  for _, family in ipairs(TRANSFORMERS) do
    for _, name in ipairs(family.architectures) do
      if given == name then return family end
      known[#known + 1] = name
    end
    if not architectures[1] and given == family.model_type then return family end
  end
  util.fail(0, "%s: the architecture %s is not known; known are %s", path,
    given ~= nil and "'" .. tostring(given) .. "'" or "(absent)", table.concat(known, ", "))
end

local function without_prefix(tensors, prefix)
  local renamed = {}
  for name, t in pairs(tensors) do renamed[name:match("^" .. prefix .. "(.*)") or name] = t end
  return renamed
end

-- The model of tensors that were read from `file`, by the configuration beside it.
local function build(file, folder, tensors)
  local name = tensors["visual.conv1.weight"] and "open_clip_config.json" or "config.json"
  local path = folder .. "/" .. name
  util.check(lfs.attributes(path, "mode") == "file", "%s: needs %s, which is not in %s", file, name, folder)
  local config = checkpoint.read_json(path)
  local family = name == "config.json" and family_of(path, config) or OPEN_CLIP
  local model = family.new(family.read(checkpoint.fields(path, config)))
  if family.prefix then tensors = without_prefix(tensors, family.prefix) end
  checkpoint.fill(file, model, family.layout(model), tensors, family.ignored)
  lib.pg_memory_trim(lib.PG_CPU) -- the file's tensors were as large as the model
  return model
end

-- ---- pictures --------------------------------------------------------------------------------------------------------

-- {side, mean, std} of an image tower: as the file beside its weights says, else as its family's code has it.
local function input_of(tower)
  local source, side = tower.source, tower.config and tower.config.image
  if not source then return { side = side } end
  local described = lfs.attributes(source.folder .. "/preprocessor_config.json") or
    lfs.attributes(source.folder .. "/open_clip_config.json")
  if source.family == "dinov2" and not described then side = math.min(side, 224) end -- its table of positions is larger
  local p = described and pg.data.preprocess(source.folder) or pg.data.preprocess(source.family, { size = side })
  if source.family == "dinov2" then side = p.crop_height or p.height or side end
  local unit = 255 * (p.scale or 1 / 255) -- what the file makes of white
  if math.abs(unit - 1) < 1e-9 then return { side = side, mean = p.mean, std = p.std } end
  local mean, std = {}, {}
  for c = 1, 3 do mean[c], std[c] = p.mean[c] / unit, p.std[c] / unit end
  return { side = side, mean = mean, std = std }
end

-- What a saved model's pictures are scaled by, as transformers reads it.
local function input_file(tower)
  local input = tower.input or input_of(tower)
  local sides = { height = input.side, width = input.side }
  return { image_processor_type = "CLIPImageProcessor", do_resize = true, size = { shortest_edge = input.side }, resample = 3,
    do_center_crop = true, crop_size = sides, do_rescale = true, rescale_factor = 1 / 255, do_normalize = true,
    image_mean = input.mean, image_std = input.std, do_convert_rgb = true }
end

-- ---- saving and loading ---------------------------------------------------------------------------------------------

-- A folder stands for the file model.safetensors in it.
local function file_of(path)
  return lfs.attributes(path, "mode") == "directory" and path .. "/model.safetensors" or path
end

--- Writes a model with what is needed to make it again; each file whole or not at all.
-- @param path   for a vit, a file, or a folder that gets model.safetensors; for other families a folder, made if there
--   is none, that gets config.json and model.safetensors, which transformers reads too, and, where the model was loaded,
--   preprocessor_config.json as models.pixels has it
-- @param model  from pg.models
-- @param card   a table of facts about it, or nil
-- @param options  as pg.safetensors.save takes it: {dtype = "bfloat16"} halves the file; or nil
-- @raises one line with the path and the system's reason
function models.save(path, model, card, options)
  local notes = { card = card and json.encode(card) or nil }
  if model.family == "vit" then
    notes.family, notes.config = "vit", json.encode(model.config)
    return pg.safetensors.save(file_of(path), model:state_dict(), notes, options)
  end
  for _, family in ipairs(TRANSFORMERS) do
    if family.name == model.family then
      local made, why = lfs.mkdir(path)
      util.check(made or lfs.attributes(path, "mode") == "directory", "cannot make the folder %s: %s", path, why)
      notes.format = "pt" -- transformers insists
      util.write_file(path .. "/config.json", pg.run.encode(family.write(model), "") .. "\n")
      local tower = model.visual or model
      if tower.source then
        util.write_file(path .. "/preprocessor_config.json", pg.run.encode(input_file(tower), "") .. "\n")
      end
      return pg.safetensors.save(path .. "/model.safetensors",
        checkpoint.to_theirs(family.layout(model), checkpoint.state(model)), notes, options)
    end
  end
  util.fail(0, "models.save: takes a model of pg.models, got %s", tostring(model))
end

--- Reads a model: a file or folder that models.save wrote; or a folder (or the file in it) with config.json and
-- model.safetensors, or model.safetensors.index.json and shards, as transformers writes CLIPModel, Dinov2Model,
-- ViTMAEModel and ViTMAEForPreTraining; or one with open_clip_config.json and open_clip_model.safetensors, in OpenAI's
-- names. Not used, if there: position_ids, MAE's decoder, attention masks, the sizes in OpenAI's files.
-- @param path  file or folder
-- @return the model, its parameters float32 and requiring grad, and its card or nil
-- @raises one line that names the file: it is missing or damaged; its configuration lacks a field, or asks for what is
--   not known; its tensors do not fit, and then those that are missing, extra and mis-shaped are named
function models.load(path)
  util.check(type(path) == "string", "models.load: path must be a string, got %s", type(path))
  local is_folder = lfs.attributes(path, "mode") == "directory"
  local folder = is_folder and path or path:match "^(.*)/[^/]*$" or "."
  local file = not is_folder and path or checkpoint.find(folder, WEIGHTS)
  util.check(file, "%s: has none of %s", path, table.concat(WEIGHTS, ", "))
  local tensors, metadata = checkpoint.read_tensors(file)
  local model
  if metadata.family == "vit" and metadata.config then
    model = models.vit(json.decode(metadata.config))
    model:load_state_dict(tensors)
  else
    model = build(file, folder, tensors)
    local tower = model.visual or model
    tower.source = { folder = folder, family = model.family } -- for models.pixels
  end
  return model, metadata.card and json.decode(metadata.card)
end

--- What a recipe's option `model` means: that folder or file itself when there is a model, else the one beside the recipe.
-- @param name  what the option says
-- @param here  the recipe's folder with its last "/", or ""
-- @return a path for models.load
-- @raises one line naming both when neither holds a model
function models.find(name, here)
  local beside = here .. name
  for _, path in ipairs { name, beside } do
    local mode = lfs.attributes(path, "mode")
    if mode == "file" or mode == "directory" and checkpoint.find(path, WEIGHTS) then return path end
  end
  util.fail(0, "model=%s: neither %s nor %s is a model's file, or a folder that holds one of %s", name, name, beside,
    table.concat(WEIGHTS, ", "))
end

--- What a model's image tower takes of small square pictures: resized to its side (Pillow's bicubic, nothing is cropped),
-- and scaled as preprocessor_config.json or open_clip_config.json beside its weights says, or as its family's own code does.
-- For a model that came from no such file it is pg.data.to_float in the model's size, if it has one. pg.data.preprocess is
-- the whole of what such a file describes, for photographs.
-- @param model   from pg.models, or its image tower
-- @param images  uint8 (N, S, S, 3)
-- @return float32 (N, 3, side, side)
-- @raises one line on a file that cannot be read
function models.pixels(model, images)
  local tower = model.visual or model
  tower.input = tower.input or input_of(tower)
  local side = tower.input.side
  if side and (images:size(2) ~= side or images:size(3) ~= side) then images = images:resize(side, side, "bicubic") end
  return pg.data.to_float(images, { mean = tower.input.mean, std = tower.input.std })
end

return models
