-- zscl.lua - ZSCL: what CLIP says of reference pictures and texts is kept, so that it goes on recognising without
-- training.
--
--   cross-entropy (label smoothing 0.2), the head being the texts of the classes, which stay
--   + image * T^2 CE(softmax(s0 / T), s / T)  over each picture's texts,  + text * the same of the transposed matrices
--     s = scale * cosines of reference pictures' current features with reference texts' pre-trained ones
--     s0 = the same of the pictures' pre-trained features
--   + weight * sum_p (p - p at the start of the task)^2
--   and in the end the mean of the weights at the start and every `every` steps
--
-- The authors' references are pictures of ImageNet and captions of Conceptual Captions; here the drawings that our
-- small CLIP was trained on, and their captions. Only the image tower learns here.

local pg = require "perigee"

local zscl = {
  help = "distils the similarities of reference pictures and texts, stays near the weights, averages them",
  source = "ZSCL: Zheng et al., arXiv 2303.06628, equations 2 to 6; Thunderbeee/ZSCL",
  head = "text",
  options = {
    { "image", 1, min = 0, real = true, help = "factor of the distillation over texts" },
    { "text", 1, min = 0, real = true, help = "factor of the distillation over pictures" },
    { "weight", 0.1, min = 0, real = true, help = "factor of the distance from the weights at the task's start" },
    { "temperature", 2, min = 1e-3, real = true, help = "T" },
    { "smoothing", 0.2, min = 0, max = 1, help = "label smoothing" },
    { "references", 256, min = 2, help = "reference pictures, each with a text" },
    { "drawn", 32, min = 2, help = "of them in a batch" },
    { "every", 15, min = 1, help = "steps between the weights that are averaged" },
    require("perigee.continual").logits "current",
  },
}

--- T^2 times the cross-entropy of softened rows. @param before, now (N, M) @param T temperature @return a scalar
function zscl.distil(before, now, T)
  local targets = (before:detach() * (1 / T)):softmax(2)
  return (targets * (now * (1 / T)):log_softmax(2)):sum() * (-T * T / now:size(1))
end

-- The pictures that pre-training saw, and a text of each.
local function references(learner, count)
  local set = pg.data.pretraining "openclipart"
  local n, texts, index = set.labels:numel(), {}, {}
  count = math.min(count, n)
  for i = 1, count do
    index[i] = math.floor((i - 1) * n / count) + 1
    local captions = pg.data.captions.drawing(set.files[index[i]], set.classes[set.labels:get(index[i])])
    texts[i] = captions[#captions]
  end
  local device = learner.model:parameters()[1]:device()
  index = pg.tensor(index, { dtype = "int32" })
  return set.images:index(1, index):to(device), learner.tokenizer:batch(texts, { truncate = true }):to(device)
end

function zscl.new(learner, o)
  local clip, kept = learner.clip, learner.kept
  pg.util.check(clip and clip.text and learner.tokenizer,
    "zscl: needs a model with a text tower, such as recipes/clip_small")
  local images, ids = references(learner, o.references)
  local texts = pg.metrics.encode(function(part) return clip:encode_text(part):normalize() end, ids)
  local function features(model, x) return model(pg.models.pixels(model, x)):normalize() end
  local before = pg.metrics.encode(function(x) return features(learner.pretrained, x) end, images)
  local scale = clip.logit_scale:exp():item()
  local hooks = {}

  function hooks.begin()
    for i, p in ipairs(learner.model:parameters()) do
      kept["start." .. i], kept["average." .. i] = p:detach():clone(), p:detach():clone()
    end
    learner.notes.averaged = 1
  end

  function hooks.groups() return { { params = learner.model:parameters() } } end

  function hooks.task_loss(batch)
    local smooth = { label_smoothing = o.smoothing }
    if learner.setting == "tasks" or o.logits == "current" then return learner:current_loss(batch, smooth) end
    return pg.cross_entropy(learner.heads(batch.features), batch.labels, smooth)
  end

  function hooks.penalty()
    local index = pg.randperm(images:size(1)):narrow(1, 1, math.min(o.drawn, images:size(1))):contiguous()
    index = index:to(images:device())
    local t = texts:index(1, index):t()
    local now = features(learner.model, images:index(1, index)):matmul(t) * scale
    local was = before:index(1, index):matmul(t) * scale
    local total = zscl.distil(was, now, o.temperature) * o.image + zscl.distil(was:t(), now:t(), o.temperature) * o.text
    for i, p in ipairs(learner.model:parameters()) do
      total = total + ((p - kept["start." .. i]) ^ 2):sum() * o.weight
    end
    return total
  end

  function hooks.step(number)
    if number % o.every ~= 0 then return end
    local n = learner.notes.averaged
    pg.no_grad(function()
      for i, p in ipairs(learner.model:parameters()) do
        kept["average." .. i] = kept["average." .. i] * (n / (n + 1)) + p:detach() * (1 / (n + 1))
      end
    end)
    learner.notes.averaged = n + 1
  end

  function hooks.finish()
    pg.no_grad(function()
      for i, p in ipairs(learner.model:parameters()) do p:copy_(kept["average." .. i]) end
    end)
  end

  return hooks
end

return zscl
