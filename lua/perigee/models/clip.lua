-- clip.lua - CLIP (Radford et al., arXiv 2103.00020): an image and a text tower that share one space.

local util = require "perigee.util"
local pg = require "perigee"
local nn = require "perigee.nn"
local transformer = require "perigee.models.transformer"
local vit = require "perigee.models.vit"

local clip = {}
local Clip = nn.class "CLIP"

-- ---- making ---------------------------------------------------------------------------------------------------------

local LEGACY_EOS = 2 -- of early configurations, whose end token is the greatest number of a text

local VISION = { image = 224, patch = 32, width = 768, depth = 12, heads = 12, hidden = 3072, channels = 3,
  act = "quick_gelu", eps = 1e-5 }
local TEXT = { context = 77, vocab = 49408, width = 512, depth = 12, heads = 8, hidden = 2048, act = "quick_gelu",
  eps = 1e-5, eos = 49407 }

-- Token and position embedding, causal blocks, LayerNorm and projection.
local Text = nn.class "Text"
function Text:init(o, embed)
  self.config = o
  self.tokens = nn.Embedding(o.vocab, o.width, { std = 0.02 })
  self.positions = pg.randn(1, o.context, o.width) * 0.01
  self.blocks = transformer.blocks { depth = o.depth, width = o.width, heads = o.heads, hidden = o.hidden, act = o.act,
    eps = o.eps, causal = true }
  self.norm = nn.LayerNorm(o.width, { eps = o.eps })
  self.projection = nn.Linear(o.width, embed, { bias = false, std = o.width ^ -0.5 })
end

--- CLIP with random weights; pg.models.load reads trained ones. The defaults are those of ViT-B/32.
-- @param options {embed = 512 (length of a feature), vision = {image = 224, patch = 32, width = 768, depth = 12,
--   heads = 12, hidden = 3072 (of the MLPs), channels = 3, act = "quick_gelu", eps = 1e-5}, text = {context = 77 (most
--   tokens), vocab = 49408, width = 512, depth = 12, heads = 8, hidden = 2048, act = "quick_gelu", eps = 1e-5,
--   eos = 49407 (the end token)}}. OpenAI's weights want act = "quick_gelu", most others "gelu". Where eos is 2, as in
--   early configurations, the end token is the greatest of a text's numbers, whatever it is
-- @return a module: .config holds the options, .width is embed, .depth the image tower's number of blocks; parts are
--   .visual, .text and .logit_scale, a logarithm
-- @raises on an unknown option, a size that is no whole number, patches that do not tile the image
function clip.new(options)
  local o, self = util.options("models.clip", options, { embed = 512, vision = {}, text = {} }), Clip.new()
  util.check(type(o.embed) == "number" and o.embed >= 1 and o.embed % 1 == 0,
    "models.clip: embed must be a whole number, 1 or more, got %s", tostring(o.embed))
  o.vision = transformer.options("models.clip: vision", o.vision, VISION)
  o.text = transformer.options("models.clip: text", o.text, TEXT)
  self.family, self.config, self.width, self.depth = "clip", o, o.embed, o.vision.depth
  self.visual = vit.tower("clip", o.vision, { hidden = o.vision.hidden, unbiased = true, norm_pre = true,
    outputs = o.embed })
  self.text = Text(o.text, o.embed)
  self.logit_scale = pg.full({}, math.log(1 / 0.07))
  return self
end

-- ---- images ---------------------------------------------------------------------------------------------------------

--- The image tower's feature and what stands between, as vit:forward_features. Depth 0 is after the first LayerNorm;
-- the feature is what encode_image gives.
-- @param images, depths, options  as there
-- @return (B, width) feature, and a list of token maps (B, tokens + 1, D)
-- @raises on a depth that does not exist, on images of another shape
function Clip:forward_features(images, depths, options)
  return self.visual:forward_features(images, depths, options)
end

--- Features of images in the shared space, not yet of length one.
-- @param images   (B, C, side, side) float, normalised as the model was trained
-- @param options  {prompts = function(layer, x) -> x}, as vit:forward_features; or nil
-- @return (B, width)
-- @raises on images of another shape
function Clip:encode_image(images, options) return (self:forward_features(images, nil, options)) end

-- ---- texts ----------------------------------------------------------------------------------------------------------

local function check_ids(self, ids)
  local o = self.config.text
  util.check(pg.is_tensor(ids) and ids:dtype() == "int32" and ids:dim() == 2 and ids:numel() > 0
    and ids:size(2) <= o.context, "clip: takes texts as int32 ids (C, T), T at most %d, got %s", o.context,
    pg.is_tensor(ids) and ids:dtype() .. " (" .. table.concat(ids:shape(), ", ") .. ")" or type(ids))
  local least, most = ids:min():item(), ids:max():item()
  util.check(least >= 0 and most < o.vocab, "clip: there is no token %d: they run from 0 to %d",
    least < 0 and least or most, o.vocab - 1)
end

--- Where each text ends: the place of its first end token, whose feature stands for the text. As transformers does, the
-- end token is the greatest number where the configuration's eos is 2.
-- @param ids  int32 (C, T), numbers of the tokenizer's own file, from 0
-- @return int32 (C), places counted from 1
-- @raises on a text without an end token, on a number that is not in the vocabulary
function Clip:eos_positions(ids)
  check_ids(self, ids)
  local eos = self.config.text.eos
  if eos == LEGACY_EOS then return ids:argmax(2) end
  local found = pg.eq(ids, pg.full({ 1, 1 }, eos, { dtype = "int32", device = ids:device() }))
  local lacking = found:max(2):argmin():item()
  util.check(found:select(1, lacking):max():item() == 1, "clip: text %d has no end token %d", lacking, eos)
  return found:argmax(2)
end

--- The tokens' embeddings, without positions: what prompt learning replaces a part of.
-- @param ids  int32 (C, T), from 0
-- @return (C, T, D)
-- @raises on a number that is not in the vocabulary
function Clip:embed_text(ids)
  check_ids(self, ids)
  return self.text.tokens(ids + 1)
end

--- Features of texts whose tokens are given as embeddings, as CoOp makes them (Zhou et al., arXiv 2109.01134).
-- @param x        (C, T, D) as embed_text gives; positions are added here
-- @param eos      int32 (C) or a list: where each text ends, counted from 1, as eos_positions gives
-- @param options  {prompts = function(layer, x) -> x}: called before block `layer`, counted from 1, with its tokens x
--   (C, T, D); it may replace tokens, or insert some before the end tokens, whose places move by as many. Or nil
-- @return (C, width), not yet of length one
-- @raises on more tokens than the context has, on an end that is not in the text
function Clip:encode_embedded(x, eos, options)
  local text, o = self.text, self.config.text
  util.check(pg.is_tensor(x) and x:dim() == 3 and x:size(3) == o.width and x:size(2) >= 1 and x:size(2) <= o.context,
    "clip: takes embedded texts (C, T, %d), T at most %d, got %s", o.width, o.context,
    pg.is_tensor(x) and "(" .. table.concat(x:shape(), ", ") .. ")" or type(x))
  local count, length = x:size(1), x:size(2)
  if type(eos) == "table" then eos = pg.tensor(eos, { dtype = "int32", device = x:device() }) end
  util.check(pg.is_tensor(eos) and eos:dim() == 1 and eos:size(1) == count, "clip: needs the ends of %d texts", count)
  local first, last = eos:min():item(), eos:max():item()
  util.check(first >= 1 and last <= length, "clip: texts of %d tokens end at 1 to %d, not at %d", length, length,
    first < 1 and first or last)
  local function ends(now)
    local moved = now:size(2) - length
    util.check(first + moved >= 1, "clip: prompts took %d of %d tokens, and with them the end of a text", -moved, length)
    return eos + moved
  end
  x = x + text.positions:narrow(2, 1, length)
  return text.projection(text.norm((transformer.walk("clip", text.blocks, x, nil, options, ends))))
end

--- Features of texts in the shared space, not yet of length one. What follows the last end token cannot be seen by any
-- (the towers are causal) and is not computed.
-- @param ids      int32 (C, T) of the numbers in the tokenizer's own file, from 0, T at most the context
-- @param options  {prompts = function(layer, x) -> x}, as encode_embedded; or nil
-- @return (C, width)
-- @raises on a text without an end token, on a number that is not in the vocabulary
function Clip:encode_text(ids, options)
  local eos = self:eos_positions(ids)
  local tokens = self.text.tokens(ids:narrow(2, 1, eos:max():item()) + 1)
  return self:encode_embedded(tokens, eos, options)
end

--- What clip(images, ids) and clip(images) call: how well each text fits each image, exp(logit_scale) cos(image, text);
-- or, without texts, what encode_image gives, so that CLIP can stand where a vit stood.
-- @param images  (B, C, side, side) float
-- @param ids     int32 (C, T), from 0; or nil
-- @return (B, C) logits, or (B, width) features
-- @raises as encode_image and encode_text
function Clip:forward(images, ids)
  if ids == nil then return self:encode_image(images) end
  local image, text = self:encode_image(images):normalize(), self:encode_text(ids):normalize()
  return image:matmul(text:t()) * self.logit_scale:exp()
end

return clip
