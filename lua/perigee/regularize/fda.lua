-- fda.lua - feature distribution alignment: the batch's neighbour graph of pre-trained features is kept.
--
--   weight * mean over anchors of 1/(B-1) sum_{j != i} softplus(w_ij (b - cos(x_i, x_j) / tau))
--
-- on the final feature, as the paper has it; or, an option of ours to stand fairly beside LDIFS, the mean of that loss over
-- the class tokens (or mean tokens) at several depths, each with its own pre-trained graph. Where a run is several
-- processes the batch is that of all of them (pg.distributed.whole).
-- Source: docs/method.md, section 1.

local util = require "perigee.util"
local regularize = require "perigee.regularize"

local function pg() return require "perigee" end

local fda = {
  help = "keeps each image's neighbours in the batch, as the pre-trained model saw them",
  source = "FDA: Proxy-FDA, arXiv 2505.24088",
  options = {
    { "weight", 10, min = 0, real = true, help = "factor of the loss, lambda" },
    { "k", 8, min = 1, help = "neighbours of an anchor; more than the images of a class in a batch" },
    { "tau", 0.1, min = 1e-6, max = 1e6, help = "temperature of the cosines" },
    { "bias", "auto", or_number = true, help = "b; auto puts the sigmoid's middle at the k-th neighbour" },
    { "negative", "similarity", choices = { "similarity", "one", "complement" },
      help = "weight of a non-neighbour of similarity s: -s, -1, -(1 - s)" },
    { "clamp", true, help = "pre-trained similarities below 0 count as 0" },
    { "learnable", false, help = "tau and b are starting values, and learnt" },
    { "scale_lr", 1e-3, min = 0, help = "learning rate of tau and b when learnt" },
    { "depths", "final", list = true, help = "final (the last feature), all (every block), or a list of blocks" },
    { "token", "class", choices = { "class", "mean" }, help = "what stands for a token map at a depth" },
  },
}

--- What FDA and Proxy-FDA share.
-- @param where, pretrained, o  the method's name, the frozen model, every option's value
-- @return {depths = list or nil, count = features a batch, scale = module or nil,
--          options(i) -> tau, bias and scale of feature i, pairs(batch) -> list of {current feature, graph}}
function fda.views(where, pretrained, o)
  local final = o.depths == "final"
  local depths = not final and regularize.depths(where, o.depths, pretrained, o.token == "class" and 1 or 0) or nil
  local self = { depths = depths, count = final and 1 or #depths }
  local first = pretrained:parameters()[1]
  if o.learnable then
    local scales = {}
    for i = 1, self.count do
      scales[i] = pg().fda.LearnableScale { tau = o.tau, bias = o.bias, dtype = first:dtype() }
      scales[i]:to(first:device())
    end
    self.scales, self.scale = scales, self.count > 1 and pg().nn.Sequential(scales) or scales[1]
  end
  function self.options(i)
    return o.learnable and { scale = self.scales[i] } or { tau = o.tau, bias = o.bias }
  end
  local function token(map) return o.token == "class" and map:select(2, 1) or map:mean(2) end
  function self.pairs(batch)
    local after, before
    if final then
      after, before = { regularize.features(where, batch) }, { regularize.before(where, pretrained, batch) }
    else
      after, before = regularize.maps(where, pretrained, batch, depths)
    end
    local list = {}
    for i = 1, self.count do
      local x, x0 = after[i], before[i]
      if not final then x, x0 = token(x), token(x0) end
      x, x0 = pg().distributed.whole(x), pg().distributed.whole(x0)
      util.check(o.k < x:size(1), "%s: k = %d, but an anchor has %d others in a batch of %d", where, o.k, x:size(1) - 1,
        x:size(1))
      list[i] = { x, pg().fda.graph(x0, { k = o.k, negative = o.negative, clamp = o.clamp }) }
    end
    return list
  end
  return self
end

function fda.new(pretrained, o)
  local views = fda.views("fda", pretrained, o)
  local opt = views.scale and pg().optim.AdamW({ views.scale:group() }, { lr = o.scale_lr, weight_decay = 0 })
  return {
    depths = views.depths, modules = { scale = views.scale }, optimizer = opt,
    loss = function(batch)
      if opt then opt:zero_grad() end
      local total
      for i, pair in ipairs(views.pairs(batch)) do
        local loss = pg().fda.loss(pair[1], pair[2], views.options(i))
        total = total and total + loss or loss
      end
      return total * (o.weight / views.count)
    end,
    step = opt and function() opt:step() end,
  }
end

return fda
