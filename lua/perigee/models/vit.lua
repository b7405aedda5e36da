-- vit.lua - the image tower, a pre-LN vision transformer (Dosovitskiy et al., arXiv 2010.11929): `pg.models.vit` is
-- this tower as it stands; CLIP, DINOv2 and MAE are made of it.

local util = require "perigee.util"
local pg = require "perigee"
local nn = require "perigee.nn"
local transformer = require "perigee.models.transformer"

local vit = {}
local ViT = nn.class "ViT"

-- ---- making ---------------------------------------------------------------------------------------------------------

--- The tower of a family.
-- @param family  its name, for messages and for models.save
-- @param o       its configuration: {image, patch, width, depth, heads, channels, act, eps}, kept as .config
-- @param more    {hidden = of the MLPs; unbiased = the patches' projection has no bias, norm_pre = a LayerNorm stands
--   before the blocks, outputs = of a projection after the last LayerNorm, all three as in CLIP; scale, swiglu,
--   resize = images may have other sizes, as in DINOv2}
-- @return a module with .family, .config, .width (of its feature) and .depth
function vit.tower(family, o, more)
  local self, tokens = ViT.new(), (o.image / o.patch) ^ 2
  self.family, self.config, self.resize = family, o, more.resize
  self.width, self.depth = more.outputs or o.width, o.depth
  self.patch = nn.Linear(o.channels * o.patch ^ 2, o.width, { std = 0.02, bias = not more.unbiased })
  self.class_token = pg.randn(1, 1, o.width) * 0.02
  -- As strong as a patch's own projection: at the usual 0.02 a model trained from nothing takes ten times as many steps
  -- to find out where anything is.
  self.positions = pg.randn(1, tokens + 1, o.width) * 0.3
  if more.norm_pre then self.norm_pre = nn.LayerNorm(o.width, { eps = o.eps }) end
  self.blocks = transformer.blocks { depth = o.depth, width = o.width, heads = o.heads, hidden = more.hidden,
    act = o.act, eps = o.eps, scale = more.scale, swiglu = more.swiglu }
  self.norm = nn.LayerNorm(o.width, { eps = o.eps })
  if more.outputs then self.projection = nn.Linear(o.width, more.outputs, { bias = false, std = o.width ^ -0.5 }) end
  return self
end

local DEFAULTS = { image = 32, patch = 4, width = 128, depth = 6, heads = 4, mlp = 4, channels = 3, eps = 1e-6,
  act = "gelu" }

--- A pre-LN vision transformer with a class token and learned positions (Dosovitskiy et al., arXiv 2010.11929).
-- Positions start with standard deviation 0.3, not 0.02: a model trained from nothing finds places much sooner.
-- @param options {image = 32 (side), patch = 4, width = 128, depth = 6, heads = 4, mlp = 4 (ratio), channels = 3,
--   eps = 1e-6, act = "gelu"}
-- @return a module: images (B, C, side, side) float32 -> (B, width), the class token after the last LayerNorm; .config
--   holds the options, .width the length of the feature, .depth the number of blocks
-- @raises on a size that is no whole number, or patches that do not tile the image
function vit.new(options)
  local o = transformer.options("models.vit", options, DEFAULTS)
  return vit.tower("vit", o, { hidden = o.width * o.mlp })
end

-- ---- positions at another image size --------------------------------------------------------------------------------

-- The weights (out, size) that resample one axis bicubically (Keys, IEEE ASSP 29(6), 1981, with a = -3/4): output i
-- lies at (i + 1/2) / scale - 1/2 among the inputs, counted from 0, and those beyond the border are the border's.
local function bicubic(size, out, scale, dtype, device)
  local rows = {}
  for i = 1, out do
    local row = {}
    for j = 1, size do row[j] = 0 end
    local at = (i - 0.5) / scale - 0.5
    local first = math.floor(at) - 1
    for j = first, first + 3 do
      local d = math.abs(at - j)
      local weight = d <= 1 and (1.25 * d - 2.25) * d * d + 1 or ((-0.75 * d + 3.75) * d - 6) * d + 3
      local to = math.max(1, math.min(size, j + 1))
      row[to] = row[to] + weight
    end
    rows[i] = row
  end
  return pg.tensor(rows, { dtype = dtype, device = device })
end

-- Positions for rows x columns patches: the stored ones, or resampled from them; gradients pass through.
local function positions_for(self, rows, columns)
  local o = self.config
  local side, width = o.image / o.patch, o.width
  if rows == side and columns == side then return self.positions end
  local function axis(out)
    return bicubic(side, out, (out + o.offset) / side, self.positions:dtype(), self.positions:device())
  end
  local grid = axis(rows):matmul(self.positions:narrow(2, 2, side * side):reshape(side, side * width))
  grid = axis(columns):matmul(grid:reshape(rows, side, width))
  return pg.cat({ self.positions:narrow(2, 1, 1), grid:reshape(1, rows * columns, width) }, 2)
end

-- ---- running --------------------------------------------------------------------------------------------------------

local function check_images(self, images)
  local o = self.config
  local good = images:dim() == 4 and images:size(2) == o.channels
  local rows, columns = good and images:size(3), good and images:size(4)
  if self.resize then
    util.check(good and rows % o.patch == 0 and columns % o.patch == 0 and rows * columns > 0,
      "%s: takes images (B, %d, H, W), H and W multiples of %d, got (%s)", self.family, o.channels, o.patch,
      table.concat(images:shape(), ", "))
  else
    util.check(good and rows == o.image and columns == o.image, "%s: takes images (B, %d, %d, %d), got (%s)",
      self.family, o.channels, o.image, o.image, table.concat(images:shape(), ", "))
  end
  return rows / o.patch, columns / o.patch
end

--- Patches with the class token before them and positions added; in CLIP, after the LayerNorm that follows.
-- @param images  (B, C, side, side) float
-- @return (B, tokens + 1, width)
-- @raises on images of another shape
function ViT:embed(images)
  local o, rows, columns = self.config, check_images(self, images)
  local b = images:size(1)
  return pg.scope(function()
    local patches = images:reshape(b, o.channels, rows, o.patch, columns, o.patch):permute(1, 3, 5, 2, 4, 6)
      :reshape(b, rows * columns, o.channels * o.patch ^ 2)
    local x = pg.cat({ self.class_token:expand(b, 1, o.width), self.patch(patches) }, 2)
    x = x + positions_for(self, rows, columns)
    return self.norm_pre and self.norm_pre(x) or x
  end)
end

--- The feature and what stands between. Every family of pg.models has this method, and the feature has .width numbers.
-- @param images   (B, C, side, side) float
-- @param depths   list of blocks after which the token maps are wanted, 0 being the embedding; or nil
-- @param options  {prompts = function(layer, x) -> x}: called before block `layer`, counted from 1, with its tokens x
--   (B, T, D); it returns what the block takes instead, of any length, the class token first, and, where it wants, a
--   prefix of keys and values for its attention (nn.Attention). Or nil
-- @return (B, width) feature, and a list of token maps (B, tokens + 1, D), one for each depth asked for, in that order
-- @raises on a depth that does not exist, on images of another shape
function ViT:forward_features(images, depths, options)
  local token, maps = transformer.walk(self.family, self.blocks, self:embed(images), depths, options, 1)
  local feature = self.norm(token)
  return self.projection and self.projection(feature) or feature, maps
end

--- What vit(images) calls. @return (B, width)
function ViT:forward(images) return (self:forward_features(images)) end

return vit
