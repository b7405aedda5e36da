-- fda.lua - feature distribution alignment: the neighbour graph of a batch's pre-trained features, and the loss that asks
-- the fine-tuned features to keep it (Proxy-FDA, arXiv 2505.24088, as docs/method.md reads it).
--
--   w_ij = +s_ij for the k nearest others j of anchor i, -s_ij (or as `negative` says) for the rest,  s = cos(x0_i, x0_j)
--   L    = mean_i 1/(B-1) sum_{j != i} softplus(w_ij (b - cos(x_i, x_j) / tau))
--
-- fda/proxies.lua adds the proxies, fda/sampler.lua the batches. What the paper leaves open is an option. Everything is
-- ops on the features' device and dtype; nothing here waits for a value but the checks that features are finite.

local call = require "perigee.call"
local util = require "perigee.util"

local fda = {}

local function pg() return require "perigee" end

--- Raises unless t is a finite float tensor of `dims` dimensions.
-- @param where  the function's name, for the message
-- @param t      what was given
-- @param dims   2 for (B, D), 3 for (B, T, D)
-- @param what   names it in the message
-- @raises one line saying what it is instead
function fda.check_features(where, t, dims, what)
  util.check(pg().is_tensor(t), "%s: %s must be a tensor, got %s", where, what, type(t))
  util.check(t:dim() == dims, "%s: %s must be %s, got (%s)", where, what, dims == 2 and "(B, D)" or "(B, T, D)",
    table.concat(t:shape(), ", "))
  util.check(t:dtype():match "^float", "%s: %s must be float32 or float64, not %s", where, what, t:dtype())
  util.check(pg().is_finite(t), "%s: %s hold values that are not finite", where, what)
end

-- ---- the graph ---------------------------------------------------------------------------------------------------------

local NEGATIVE = {
  similarity = function(s) return -s end,
  one = function(s) return s * 0 - 1 end,
  complement = function(s) return s - 1 end,
}

--- The weight of a non-neighbour (docs/method.md, section 1.2a).
-- @param kind  "similarity": -s, "one": -1, "complement": -(1 - s)
-- @param s     similarities, of any shape
-- @return a tensor of the shape of s
-- @raises on another kind
function fda.negative_weight(kind, s)
  local weight = NEGATIVE[kind]
  if not weight then
    util.fail(0, "fda.graph: negative must be similarity, one or complement, got '%s'", tostring(kind))
  end
  return weight(s)
end

-- Fields that a loss does not need, made when first read; they live as long as the graph does.
local MADE = {}
function MADE.raw(g)
  local unit = g.features:normalize()
  return unit:matmul(unit:t())
end
function MADE.similarity(g) return g.clamp and g.raw:maximum(0) or g.raw end
function MADE.positive(g)
  local p, options = pg(), { dtype = g.weights:dtype(), device = g.weights:device() }
  return p.scatter_add(p.zeros(g.size, g.size, options), g.neighbors, p.ones(g.size, g.k, options), { dim = 2 })
end
function MADE.off(g) return 1 - pg().eye(g.size, { dtype = g.weights:dtype(), device = g.weights:device() }) end
function MADE.rest(g) return g.off - g.positive end
function MADE.kind(g) return g.positive * 2 - g.off end
function MADE.clamped(g)
  return pg().lt(g.raw, 0):to(g.raw:dtype()):sum():item() / (g.size * (g.size - 1))
end

local Graph = { __names = MADE }
function Graph.__index(graph, key)
  local make = MADE[key]
  local value = make and call.outside(function()
    return call.scope(function() return pg().no_grad(function() return make(graph) end) end)
  end)
  rawset(graph, key, value)
  return value
end

--- The signed neighbour graph of pre-trained features (docs/method.md, section 1.2a). No gradient flows.
-- @param x0      (B, D) float features
-- @param options {k = 8: neighbours an anchor, 1..B-1; negative: weight of a non-neighbour of similarity s, "similarity" -s
--                (default), "one" -1, "complement" -(1 - s); clamp = true: similarities below 0 count as 0, so that no
--                weight changes its sign}
-- @return {neighbors = (B, k) int32 indices, nearest first, ties to the lower; weights = (B, B) signed, zero diagonal; k;
--          size = B; tail = (1) mean similarity of the k-th neighbour; negative, clamp = the options; features = x0}, and,
--          each (B, B) and made when first read: raw, the cosines; similarity, clamped; positive, rest, off, masks:
--          neighbours, the others, both; kind = positive - rest; and clamped = the fraction of similarities below 0. The
--          graph refers to x0 for these: it is not to be changed in place before they are read
-- @raises on k outside 1..B-1, on features that are not finite
function fda.graph(x0, options)
  options = util.options("fda.graph", options, { k = 8, negative = "similarity", clamp = true })
  fda.check_features("fda.graph", x0, 2, "features")
  local p, b, k = pg(), x0:size(1), options.k
  util.check(type(k) == "number" and k % 1 == 0, "fda.graph: k must be a whole number, got %s", tostring(k))
  util.check(k >= 1 and k <= b - 1, "fda.graph: k = %d, but an anchor has %d others in a batch of %d", k, b - 1, b)
  util.check(NEGATIVE[options.negative], "fda.graph: negative must be similarity, one or complement, got '%s'",
    tostring(options.negative))
  return p.no_grad(function()
    local features = x0:detach()
    local unit = features:normalize()
    local nearest, neighbors = p.knn(unit, unit, { k = k, metric = "ip", exclude_self = true })
    local weights = p.fda_weights(unit, neighbors, nearest, { negative = options.negative, clamp = options.clamp })
    return setmetatable({ neighbors = neighbors, weights = weights, k = k, size = b, negative = options.negative,
      clamp = options.clamp, features = features, tail = nearest:narrow(2, k, 1):mean():reshape(1) }, Graph)
  end)
end

-- ---- tau and b ---------------------------------------------------------------------------------------------------------

local Scale

--- Learnable 1/tau and b (docs/method.md, section 1.2b): log 1/tau and b as parameters, so that tau stays positive.
-- Given as `scale` to fda.loss and its kin. It belongs into a parameter group without decay: learnable:group().
-- @param options {tau = 0.1 to start from; bias to start from: a number, or "auto" (default), where what is learnt is an
--                offset, from 0, to the mean similarity of the k-th neighbour divided by tau; dtype = "float32"}
-- @return a module; :values(graph) -> 1/tau and b as (1) tensors with gradient; :group(lr) -> an optimiser's group
-- @raises on a tau that is not above 0, on a bias that is neither
function fda.LearnableScale(options)
  options = util.options("fda.LearnableScale", options, { tau = 0.1, bias = "auto", dtype = "float32" })
  util.check(type(options.tau) == "number" and options.tau > 0 and options.tau < math.huge,
    "fda.LearnableScale: tau must be a number above 0, got %s", tostring(options.tau))
  util.check(options.bias == "auto" or type(options.bias) == "number" and math.abs(options.bias) < math.huge,
    "fda.LearnableScale: bias must be a number or \"auto\", got %s", tostring(options.bias))
  if not Scale then
    Scale = pg().nn.class "LearnableScale"
    function Scale:values(graph)
      local scale = self.log_scale:exp()
      return scale, self.auto and graph.tail * scale + self.bias or self.bias
    end
    function Scale:group(lr) return { params = self:parameters(), weight_decay = 0, lr = lr } end
  end
  local self = Scale.new()
  self.auto = options.bias == "auto"
  self.log_scale = pg().tensor({ -math.log(options.tau) }, { dtype = options.dtype })
  self.bias = pg().tensor({ self.auto and 0 or options.bias }, { dtype = options.dtype })
  return self
end

-- The options that every loss over a graph takes.
fda.DEFAULTS = { tau = 0.1, bias = "auto", scale = util.none }

--- tau and b as the ops take them: scale tensor or nil, bias tensor or nil, the op's parameters {tau, bias_value}.
-- "auto" puts the sigmoid's middle at the edge of the neighbourhood: b is the mean pre-trained similarity of the k-th
-- neighbour, divided by tau (docs/method.md, section 1.2b); it stays a tensor.
-- @param graph    from fda.graph
-- @param options  {tau, bias, scale}, complete
-- @return scale, bias, {tau, bias_value}
-- @raises on a tau or bias that is none
function fda.settings(graph, options)
  local p, tau, bias, scale = pg(), options.tau, options.bias, options.scale
  if p.nn.is_module(scale) then
    scale, bias = scale:values(graph)
  else
    util.check(type(tau) == "number" and tau > 0 and tau < math.huge, "fda: tau must be a number above 0, got %s",
      tostring(tau))
    util.check(bias == "auto" or p.is_tensor(bias) or type(bias) == "number" and math.abs(bias) < math.huge,
      "fda: bias must be a number, a tensor or \"auto\", got %s", tostring(bias))
    if bias == "auto" then bias = graph.tail * (scale and scale:detach() or 1 / tau) end
  end
  local number = type(bias) == "number"
  return scale, not number and bias or nil, { tau = tau, bias_value = number and bias or 0 }
end

-- ---- the loss ----------------------------------------------------------------------------------------------------------

local function check_batch(where, x, graph)
  util.check(pg().is_tensor(x) and x:dim() == 2, "%s: takes features (B, D)", where)
  util.check(x:size(1) == graph.size, "%s: %d features for a graph of %d", where, x:size(1), graph.size)
end

--- The FDA loss (Proxy-FDA, arXiv 2505.24088; docs/method.md, section 1.1):
--   mean_i 1/(B-1) sum_{j != i} softplus(w_ij (b - cos(x_i, x_j) / tau))
-- @param x        (B, D) current features
-- @param graph    of the pre-trained features of the same batch, from fda.graph
-- @param options  {tau = 0.1; bias: a number, "auto" (default) or a learnable one-element tensor; scale: a learnable
--                 one-element tensor in place of 1/tau, or a fda.LearnableScale in place of both}
-- @return scalar, with gradient for x, and for scale and bias where they are learnt
-- @raises when x is not (B, D) with the graph's B, on a tau or bias that is none
function fda.loss(x, graph, options)
  options = util.options("fda.loss", options, fda.DEFAULTS)
  check_batch("fda.loss", x, graph)
  local scale, bias, numbers = fda.settings(graph, options)
  return pg().fda_loss(x, graph.weights, scale, bias, numbers)
end

--- The same loss in plain ops, as its test and its explanation. @param x, graph, options as fda.loss @return scalar
function fda.reference_loss(x, graph, options)
  options = util.options("fda.reference_loss", options, fda.DEFAULTS)
  local scale, bias, numbers = fda.settings(graph, options)
  local b, unit = x:size(1), x:normalize()
  local logits = unit:matmul(unit:t()) * (scale or 1 / numbers.tau)
  local z = graph.weights * ((bias or numbers.bias_value) - logits)
  return (z:softplus() * graph.off):sum() * (1 / (b * (b - 1)))
end

-- The rest of the method: pg.fda.ProxyGenerator, .pool, .proxy_loss, .proxy_fda_loss; pg.fda.HardClassSampler.
for _, part in ipairs { "perigee.fda.proxies", "perigee.fda.sampler" } do require(part)(fda) end

return fda
