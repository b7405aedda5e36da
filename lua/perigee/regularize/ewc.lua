-- ewc.lua - elastic weight consolidation: parameters that the old task leans on stay near their values.
--
--   weight / 2 * sum_p F_p (p - p0)^2,     F = mean over images of (d log p(y | x) / d p)^2, one image at a time
--
-- y is drawn from the model's own prediction (labels "sampled": the Fisher information), or is the true label ("true", the
-- empirical one). The implementation in mammoth multiplies each square by p(y | x): factor "probability" does so too.
-- Source: docs/method.md, section 2.1.

local util = require "perigee.util"
local regularize = require "perigee.regularize"

local function pg() return require "perigee" end

-- images, labels or nil, batch by batch: data is a function that returns them, or a list of {images, labels}.
local function batches(data)
  if type(data) == "function" then return data end
  local at = 0
  return function()
    at = at + 1
    if data[at] then return data[at][1] or data[at].images, data[at][2] or data[at].labels end
  end
end

-- One class from softmax(logits), by Gumbel's trick; logits (1, C).
local function draw(logits)
  local uniform = pg().rand(logits:shape()):clamp(1e-7, 1 - 1e-7):to(logits:dtype()):to(logits:device())
  return (logits:detach() - (-(uniform:log())):log()):argmax(2)
end

local function fisher(pretrained, o)
  local parameters, head, seen, sums = pretrained:parameters(), o.head:parameters(), 0, {}
  local flags = {}
  for _, p in ipairs(head) do flags[p] = p:requires_grad() p:requires_grad_(false) end
  for i, p in ipairs(parameters) do
    flags[p], sums[i] = p:requires_grad(), p:detach() * 0
    p:requires_grad_(true)
  end
  local function add(image, label)
    local logits = o.head(pretrained(image))
    local loss = pg().cross_entropy(logits, o.labels == "true" and label or draw(logits)) -- -log p(y | x)
    loss:backward()
    local factor = o.factor == "probability" and math.exp(-loss:item()) or 1
    for i, p in ipairs(parameters) do
      if p.grad then sums[i] = pg().no_grad(function() return sums[i] + p.grad * p.grad * factor end) end
      p.grad = nil
    end
    seen = seen + 1
  end
  local ok, why = pcall(function()
    for images, labels in batches(o.data) do
      util.check(labels or o.labels == "sampled", "ewc: labels = \"true\", but the data brings none")
      for i = 1, math.min(images:size(1), o.samples - seen) do
        add(images:narrow(1, i, 1):contiguous(), labels and labels:narrow(1, i, 1))
      end
      if seen >= o.samples then break end
    end
    util.check(seen > 0, "ewc: the data has no images")
  end)
  for p, flag in pairs(flags) do p:requires_grad_(flag) end
  if not ok then error(why, 0) end
  for i, sum in ipairs(sums) do sums[i] = sum * (1 / seen) end
  return sums
end

return {
  help = "squared distance from the pre-trained parameters, each weighted by its Fisher information on old data",
  source = "EWC: Kirkpatrick et al., arXiv 1612.00796, equation 3",
  options = {
    { "weight", 100, min = 0, real = true, help = "lambda; half of it is the factor of the penalty" },
    { "data", object = "a function -> images, labels, or a list of {images, labels}", required = true, help = "old data" },
    { "head", object = "a module, features (B, D) -> logits (B, C)", required = true, help = "the old task's head" },
    { "samples", 200, min = 1, help = "images that the Fisher information is averaged over" },
    { "labels", "sampled", choices = { "sampled", "true" }, help = "classes drawn from the prediction, or the true ones" },
    { "factor", "none", choices = { "none", "probability" }, help = "probability: squares times p(y | x), as mammoth does" },
  },
  new = function(pretrained, o)
    local information, start = fisher(pretrained, o), {}
    for i, p in ipairs(pretrained:parameters()) do start[i] = p:detach():clone() end
    return { fisher = information, loss = function(batch)
      local total
      for i, p in ipairs(regularize.parameters("ewc", batch, start)) do
        local distance = ((p - start[i]) ^ 2 * information[i]):sum()
        total = total and total + distance or distance
      end
      return total * (o.weight / 2)
    end }
  end,
}
