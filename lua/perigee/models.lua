-- models.lua - the vision transformer, its head, and checkpoints of both.

local util = require "perigee.util"
local nn = require "perigee.nn"

local models = {}
local function pg() return require "perigee" end

-- ---- vision transformer (Dosovitskiy et al., arXiv 2010.11929; pre-LN) ------------------------------------------------

local Block = nn.class "Block"
local function block(o)
  local self = Block.new()
  self.norm1 = nn.LayerNorm(o.width, { eps = o.eps })
  self.attention = nn.Attention(o.width, o.heads)
  self.norm2 = nn.LayerNorm(o.width, { eps = o.eps })
  self.mlp = nn.MLP(o.width, o.width * o.mlp, { act = o.act })
  return self
end
function Block:forward(x)
  x = x + self.attention(self.norm1(x))
  return x + self.mlp(self.norm2(x))
end

local ViT = nn.class "ViT"
local DEFAULTS = { image = 32, patch = 4, width = 128, depth = 6, heads = 4, mlp = 4, channels = 3, eps = 1e-6, act = "gelu" }

--- A pre-LN vision transformer with a class token and learned positions (Dosovitskiy et al., arXiv 2010.11929). Positions
-- start with standard deviation 0.3, not 0.02: a model trained from nothing finds places much sooner.
-- @param options {image = 32 (side), patch = 4, width = 128, depth = 6, heads = 4, mlp = 4 (ratio), channels = 3,
--   eps = 1e-6, act = "gelu"}
-- @return a module: images (B, C, side, side) float32 -> (B, width), the class token after the last LayerNorm; .config
--   holds the options
-- @raises on a size that is no whole number, or patches that do not tile the image
function models.vit(options)
  local o = util.options("models.vit", options, DEFAULTS)
  for name, value in pairs(o) do
    util.check(name == "act" or name == "eps" or (type(value) == "number" and value >= 1 and value % 1 == 0),
      "models.vit: %s must be a whole number, 1 or more, got %s", name, tostring(value))
  end
  util.check(o.image % o.patch == 0, "models.vit: patches of %d do not tile images of %d", o.patch, o.image)
  local self, tokens = ViT.new(), (o.image / o.patch) ^ 2
  self.config = o
  self.patch = nn.Linear(o.channels * o.patch ^ 2, o.width, { std = 0.02 })
  self.class_token = (pg().randn(1, 1, o.width) * 0.02):requires_grad_(true)
  -- As strong as a patch's own projection: at the usual 0.02 a model trained from nothing takes ten times as many steps
  -- to find out where anything is.
  self.positions = (pg().randn(1, tokens + 1, o.width) * 0.3):requires_grad_(true)
  self.blocks = nn.Sequential()
  for i = 1, o.depth do self.blocks[i] = block(o) end
  self.norm = nn.LayerNorm(o.width, { eps = o.eps })
  return self
end

--- Patches with the class token before them and positions added.
-- @param images  (B, C, side, side) float
-- @return (B, tokens + 1, width)
-- @raises on images of another shape
function ViT:embed(images)
  local o, b = self.config, images:size(1)
  util.check(images:dim() == 4 and images:size(2) == o.channels and images:size(3) == o.image and images:size(4) == o.image,
    "vit: takes images (B, %d, %d, %d), got (%s)", o.channels, o.image, o.image, table.concat(images:shape(), ", "))
  local side = o.image / o.patch
  local patches = images:reshape(b, o.channels, side, o.patch, side, o.patch):permute(1, 3, 5, 2, 4, 6)
    :reshape(b, side * side, o.channels * o.patch ^ 2)
  return pg().cat({ self.class_token:expand(b, 1, o.width), self.patch(patches) }, 2) + self.positions
end

--- The feature and what stands between.
-- @param images  (B, C, side, side) float
-- @param depths  list of blocks after which the token maps are wanted, 0 being the embedding; or nil
-- @return (B, width) feature, and a list of token maps (B, tokens + 1, width), one for each depth asked for, in that order
-- @raises on a depth that does not exist
function ViT:forward_features(images, depths)
  local wanted, maps = {}, {}
  for at, depth in ipairs(depths or {}) do
    util.check(type(depth) == "number" and depth >= 0 and depth <= self.config.depth and depth % 1 == 0,
      "vit: depth %s does not exist: they run from 0, the embedding, to %d", tostring(depth), self.config.depth)
    wanted[depth] = wanted[depth] or {}
    table.insert(wanted[depth], at)
  end
  local x = self:embed(images)
  for depth = 0, self.config.depth do
    if depth > 0 then x = self.blocks[depth](x) end
    for _, at in ipairs(wanted[depth] or {}) do maps[at] = x end
  end
  return self.norm(x:select(2, 1)), maps
end

--- What vit(images) calls. @return (B, width)
function ViT:forward(images) return (self:forward_features(images)) end

-- ---- head ------------------------------------------------------------------------------------------------------------------

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

-- ---- checkpoints -------------------------------------------------------------------------------------------------------------

-- A folder stands for the file model.safetensors in it.
local function file_of(path)
  return require("lfs").attributes(path, "mode") == "directory" and path .. "/model.safetensors" or path
end

--- Writes a model with what is needed to make it again, whole or not at all.
-- @param path   a file, or a folder that gets model.safetensors
-- @param model  from pg.models.vit
-- @param card   a table of facts about it, or nil
-- @raises one line with the path and the system's reason
function models.save(path, model, card)
  local json = require "cjson"
  pg().safetensors.save(file_of(path), model:state_dict(),
    { family = "vit", config = json.encode(model.config), card = card and json.encode(card) or nil })
end

--- Reads what models.save wrote.
-- @param path  file or folder
-- @return the model, its parameters requiring grad, and its card or nil
-- @raises when the file is missing, damaged, or not such a model
function models.load(path)
  local json = require "cjson"
  local tensors, metadata = pg().safetensors.load(file_of(path))
  util.check(metadata and metadata.config and metadata.family == "vit", "%s: not a model that models.save wrote", path)
  local model = models.vit(json.decode(metadata.config))
  model:load_state_dict(tensors)
  return model, metadata.card and json.decode(metadata.card)
end

return models
