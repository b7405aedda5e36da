-- heads.lua - what sits on an encoder while it is fine-tuned: where it starts, and the loss that it makes of features and
-- labels. The encoder is fine-tuned together with it.

local util = require "perigee.util"
local pg = require "perigee"
local nn = require "perigee.nn"

local heads = {}

-- ---- linear heads: cross-entropy ----------------------------------------------------------------------------------------

local function linear(o)
  local head = pg.models.head(o.width, #o.classes):to(o.features:device())
  function head.loss(self, features, labels) return pg.cross_entropy(self(features), labels) end
  return head
end

-- By a linear probe of the pre-trained features, as LP-FT starts (Kumar et al., arXiv 2202.10054).
local function probe(o)
  local _, fitted = pg.metrics.linear_probe(o.features, o.labels, o.features, o.labels, { steps = o.steps, lrs = { 0.1 } })
  fitted.head.loss = linear(o).loss
  return fitted.head
end

-- ---- heads of texts -----------------------------------------------------------------------------------------------------

-- One sentence a class, as ids.
local function prompt_ids(o, where)
  util.check(o.clip and o.clip.encode_text and o.tokenizer, "%s: needs a model with a text tower, such as recipes/clip_small",
    where)
  local prompts = pg.data.captions.prompts(o.prompt or "a photo of a {}", o.classes)
  return o.tokenizer:batch(prompts):to(o.features:device())
end

-- The zero-shot classifier as a linear layer: text features of length one, times exp(logit_scale) (Wortsman et al.,
-- arXiv 2109.01903).
local function text(o)
  local ids, head = prompt_ids(o, "head=text"), linear(o)
  pg.no_grad(function()
    head.linear.weight:copy_(o.clip:encode_text(ids):normalize() * o.clip.logit_scale:exp())
    head.linear.bias:fill_(0)
  end)
  return head
end

local Flyp = nn.class "FLYP"
function Flyp:init(o)
  rawset(self, "ids", prompt_ids(o, "flyp"))
  rawset(self, "clip", o.clip)
  self.text = o.clip.text -- its only parameters: the scale of the logits stays as it is
end

-- FLYP (Goyal et al., arXiv 2212.00638): the contrastive loss of pre-training on the images and the sentences of their
-- classes, both ways; the diagonal is right, whether a class stands once in the batch or more often.
-- @param features (B, D) of the images
-- @param labels   (B) int32 from 1
-- @return a scalar
function Flyp:loss(features, labels)
  features, labels = pg.distributed.whole(features), pg.distributed.whole(labels) -- every other image is a negative
  local texts = self.clip:encode_text(self.ids):normalize():index(1, labels)
  local logits = features:normalize():matmul(texts:t()) * self.clip.logit_scale:detach():exp()
  local diagonal = pg.arange(labels:numel(), { device = labels:device() })
  return (pg.cross_entropy(logits, diagonal) + pg.cross_entropy(logits:t(), diagonal)) / 2
end

local KINDS = { random = linear, probe = probe, text = text, flyp = function(o) return Flyp(o) end }

--- A head by its start.
-- @param kind     "random"; "probe", a linear probe of the pre-trained features (LP-FT); "text", the zero-shot classifier of
--   the prompts (WiSE-FT); "flyp", no layer at all, but the text tower and the contrastive loss
-- @param options  {width = of a feature, classes = names, features, labels = of the training images, pre-trained, steps =
--   300 of a probe; for "text" and "flyp" clip, tokenizer and prompt, a sentence with {}}
-- @return a module with :parameters() and :loss(features (B, D), labels (B)) -> scalar
-- @raises on another kind, and on "text" and "flyp" without a text tower
function heads.new(kind, options)
  local o = util.options("heads.new", options, { width = util.none, classes = util.none, features = util.none,
    labels = util.none, steps = 300, clip = util.none, tokenizer = util.none, prompt = util.none })
  util.check(KINDS[kind], "heads: there is no head '%s': random, probe, text, flyp", tostring(kind))
  return KINDS[kind](o)
end

return heads
