-- models.lua - vision models, their files, and the head. A family is a file of models/; each has forward_features, .width
-- and .depth, so that heads, probes and regularisers need not know which it is.

local util = require "perigee.util"
local pg = require "perigee"
local lfs = require "lfs"
local json = require "cjson"
local nn = require "perigee.nn"
local checkpoint = require "perigee.models.checkpoint"
local vit = require "perigee.models.vit"
local clip = require "perigee.models.clip"

local models = { vit = vit.new, clip = clip.new }

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

-- ---- families of other libraries ------------------------------------------------------------------------------------

local WEIGHTS = { "model.safetensors", "model.safetensors.index.json" } -- where a file is not named

-- {new = (options) -> model, read = (fields) -> options, write = (model) -> config.json's table, layout = (model) -> rows,
-- ignored = patterns; architecture, model_type = as in config.json; prefix = that names may have}
local FAMILIES = { require "perigee.models.clip_files" }

local function family_of_config(path, config)
  local architectures = type(config.architectures) == "table" and config.architectures or {}
  local known, given = {}, architectures[1] or config.model_type
  for _, family in ipairs(FAMILIES) do
    for _, name in ipairs(family.architectures) do
      if given == name then return family end
      known[#known + 1] = name
    end
    if not architectures[1] and given == family.model_type then return family end
  end
  util.fail(0, "%s: the architecture %s is not known; known are %s", path,
    given ~= nil and "'" .. tostring(given) .. "'" or "(absent)", table.concat(known, ", "))
end

-- The model of a configuration with a file's tensors in it.
local function build(family, config_path, config, tensors, path)
  local model = family.new(family.read(checkpoint.fields(config_path, config)))
  if family.prefix then
    local renamed = {}
    for name, t in pairs(tensors) do renamed[name:match("^" .. family.prefix .. "(.*)") or name] = t end
    tensors = renamed
  end
  checkpoint.fill(path, model, family.layout(model), tensors, family.ignored)
  return model
end

-- ---- files ----------------------------------------------------------------------------------------------------------

-- A folder stands for the file model.safetensors in it.
local function file_of(path)
  return lfs.attributes(path, "mode") == "directory" and path .. "/model.safetensors" or path
end

--- Writes a model with what is needed to make it again, whole or not at all.
-- @param path   for a vit, a file, or a folder that gets model.safetensors; for other families a folder, made where there
--   is none, that gets config.json and model.safetensors as the library transformers reads them
-- @param model  from pg.models
-- @param card   a table of facts about it, or nil
-- @raises one line with the path and the system's reason
function models.save(path, model, card)
  card = card and json.encode(card) or nil
  if model.family == "vit" then
    return pg.safetensors.save(file_of(path), model:state_dict(),
      { family = "vit", config = json.encode(model.config), card = card })
  end
  for _, family in ipairs(FAMILIES) do
    if family.name == model.family then
      local made, why = lfs.mkdir(path)
      util.check(made or lfs.attributes(path, "mode") == "directory", "cannot make the folder %s: %s", path, why)
      util.write_file(path .. "/config.json", pg.run.encode(family.write(model), "") .. "\n")
      return pg.safetensors.save(path .. "/model.safetensors",
        checkpoint.to_theirs(family.layout(model), model:state_dict()), { format = "pt", card = card })
    end
  end
  util.fail(0, "models.save: cannot save %s", tostring(model))
end

--- Reads a model.
-- @param path  a folder or file that models.save wrote; or a folder with config.json and model.safetensors, or with
--   model.safetensors.index.json and its shards, as transformers writes them: CLIPModel
-- @return the model, its parameters requiring grad, and its card or nil
-- @raises one line that names the file: it is missing or damaged; its configuration lacks a field, or asks for what is not
--   known; its tensors do not fit, in which case those that are missing, extra and mis-shaped are named
function models.load(path)
  util.check(type(path) == "string", "models.load: path must be a string, got %s", type(path))
  local is_folder = lfs.attributes(path, "mode") == "directory"
  local folder = is_folder and path or path:match "^(.*)/[^/]*$" or "."
  local file = not is_folder and path or checkpoint.find(folder, WEIGHTS)
  util.check(file, "%s: has no %s", path, table.concat(WEIGHTS, " and no "))
  local tensors, metadata = checkpoint.read_tensors(file)
  local card = metadata.card and json.decode(metadata.card)
  if metadata.family == "vit" and metadata.config then
    local model = models.vit(json.decode(metadata.config))
    model:load_state_dict(tensors)
    return model, card
  end
  local config_path = checkpoint.find(folder, { "config.json" })
  util.check(config_path, "%s: not a model that models.save wrote, and no config.json stands beside it", file)
  local config = checkpoint.read_json(config_path)
  return build(family_of_config(config_path, config), config_path, config, tensors, file), card
end

return models
