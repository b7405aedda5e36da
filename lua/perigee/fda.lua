-- fda.lua - feature distribution alignment with proxies: Proxy-FDA (arXiv 2505.24088), as docs/method.md reads it.
--
-- A batch's pre-trained features give a graph: for each anchor its k nearest others, with signed similarity weights. The
-- loss asks the fine-tuned features to keep that graph. Proxies, convex combinations of real features pooled by a small
-- generator that trains alongside, stand in for the data between the samples. What the paper leaves open is an option.

local util = require "perigee.util"

local fda = {}

local function pg() return require "perigee" end

-- ---- the graph ---------------------------------------------------------------------------------------------------------

--- The signed neighbour graph of pre-trained features (method 1.2a). No gradient flows.
-- @param x0      (B, D) float features
-- @param options k           neighbours an anchor, 1..B-1 (default 8; more than B-1 is an error)
--                negative    weight of a non-neighbour of similarity s: "similarity" -s (default), "one" -1,
--                            "complement" -(1 - s)
--                clamp       similarities below 0 count as 0 (default true), so that no weight changes its sign
-- @return {neighbors = (B, k) int32 indices, nearest first; weights = (B, B) signed, zero diagonal;
--          positive = (B, B) 1 for a neighbour; similarity = (B, B); clamped = fraction below 0; k, tail}
function fda.graph(x0, options)
  options = util.options("fda.graph", options, { k = 8, negative = "similarity", clamp = true })
  local p, b, k = pg(), x0:size(1), options.k
  util.check(x0:dim() == 2, "fda.graph: takes features (B, D), got %d dimensions", x0:dim())
  util.check(k >= 1 and k <= b - 1, "fda.graph: k = %d, but an anchor has %d others in a batch of %d", k, b - 1, b)
  return p.no_grad(function()
    local unit = x0:detach():normalize()
    local raw = unit:matmul(unit:t())
    local off = (p.ones(b, b) - p.eye(b)):to(x0:dtype())
    local clamped = ((raw * off):minimum(0) * -1):clamp(0, 1e-30):sum():item() / 1e-30 / (b * (b - 1))
    local similarity = options.clamp and raw:maximum(0) or raw
    local nearest, neighbors = p.knn(unit, unit, { k = k, metric = "ip", exclude_self = true })
    local rows, data = neighbors:totable(), {}
    for i = 1, b * b do data[i] = 0 end
    for i = 1, b do
      for _, j in ipairs(rows[i]) do data[(i - 1) * b + j] = 1 end
    end
    local positive = p.tensor(data, { dtype = x0:dtype() }):reshape(b, b)
    local negative
    if options.negative == "similarity" then negative = -similarity
    elseif options.negative == "one" then negative = p.full({ b, b }, -1, { dtype = x0:dtype() })
    elseif options.negative == "complement" then negative = similarity - 1
    else
      util.fail(0, "fda.graph: negative must be similarity, one or complement, got '%s'", tostring(options.negative))
    end
    local weights = (positive * similarity + (off - positive) * negative) * off
    return { neighbors = neighbors, weights = weights, positive = positive, similarity = similarity, off = off,
      clamped = clamped, k = k, size = b, tail = nearest:narrow(2, k, 1):mean():item() }
  end)
end

-- tau and bias as the ops take them. "auto" puts the sigmoid's middle at the edge of the neighbourhood: b is the mean
-- pre-trained similarity of the k-th neighbour, divided by tau (method 1.2b).
local function settings(graph, options)
  local bias = options.bias
  if bias == "auto" then bias = graph.tail / options.tau end
  util.check(type(bias) == "number" or pg().is_tensor(bias), "fda: bias must be a number, a tensor or \"auto\", got %s", tostring(bias))
  local as_tensor = pg().is_tensor(bias)
  return options.scale, as_tensor and bias or nil, as_tensor and 0 or bias
end

local DEFAULTS = { tau = 0.1, bias = "auto", scale = util.none }

--- The FDA loss: mean_i 1/(B-1) sum_{j != i} softplus(w_ij (b - cos(x_i, x_j) / tau)) (method 1.1).
-- @param x        (B, D) current features
-- @param graph    of the pre-trained features of the same batch, from fda.graph
-- @param options  tau (default 0.1); bias: a number, "auto" (default) or a learnable one-element tensor;
--                 scale: a learnable one-element tensor in place of 1/tau
-- @return scalar
function fda.loss(x, graph, options)
  options = util.options("fda.loss", options, DEFAULTS)
  util.check(x:size(1) == graph.size, "fda.loss: %d features for a graph of %d", x:size(1), graph.size)
  local scale, bias, number = settings(graph, options)
  return pg().fda_loss(x, graph.weights, scale, bias, { tau = options.tau, bias_value = number })
end

--- The same loss in plain ops, as its test and its explanation.
function fda.reference_loss(x, graph, options)
  options = util.options("fda.reference_loss", options, DEFAULTS)
  local scale, bias, number = settings(graph, options)
  local b, unit = x:size(1), x:normalize()
  local logits = unit:matmul(unit:t()) * (scale or 1 / options.tau)
  local z = graph.weights * ((bias or number) - logits)
  return (z:softplus() * graph.off):sum() * (1 / (b * (b - 1)))
end

-- ---- proxies -------------------------------------------------------------------------------------------------------------

local Generator = {}
Generator.__index = Generator

--- A proxy generator: one attention and two 1x1 convolutions over the batch as tokens (method 1.2g).
-- @param options dim (D of the features), width (r, default 32), ratio (s, default 0.4), batch (B), k, seed of no own:
--                draws its weights from the global generator
-- @return a generator; :count() parameters, :parameters(), :generate(x, graph)
function fda.ProxyGenerator(options)
  options = util.options("fda.ProxyGenerator", options,
    { dim = util.none, width = 32, ratio = 0.4, batch = 64, k = 8, dtype = "float32" })
  util.check(options.dim, "fda.ProxyGenerator: dim, the width of the features, is missing")
  util.check(options.ratio > 0 and options.ratio <= 1, "fda.ProxyGenerator: ratio must be in (0, 1]; 0 is plain FDA")
  local p, r = pg(), options.width
  local self = setmetatable({ dim = options.dim, width = r, ratio = options.ratio, k = options.k,
    n_positive = math.max(1, math.floor(options.ratio * options.k + 0.5)),
    n_negative = math.max(1, math.floor(options.ratio * (options.batch - 1 - options.k) + 0.5)) }, Generator)
  local function weight(out, inside)
    return (((p.rand(out, inside) * 2 - 1) * (1 / math.sqrt(inside))):to(options.dtype)):requires_grad_(true)
  end
  local function bias(out) return p.zeros(out, { dtype = options.dtype }):requires_grad_(true) end
  -- Tokens are [x_j ; w_ij ; type]: the feature's part of the first convolution is the same for every anchor.
  self.conv1, self.bias1 = weight(r, options.dim), bias(r)
  self.pair = weight(r, 2)
  self.qkv, self.qkv_bias = weight(3 * r, r), bias(3 * r)
  self.out, self.out_bias = weight(r, r), bias(r)
  self.conv2, self.bias2 = weight(self.n_positive + self.n_negative, r), bias(self.n_positive + self.n_negative)
  return self
end

function Generator:parameters()
  return { self.conv1, self.bias1, self.pair, self.qkv, self.qkv_bias, self.out, self.out_bias, self.conv2, self.bias2 }
end

function Generator:count()
  local n = 0
  for _, t in ipairs(self:parameters()) do n = n + t:numel() end
  return n
end

--- Proxies of every anchor: pooled real features, so each lies in the hull of its own set.
-- @param x     (B, D) features; used as constants
-- @param graph of the batch
-- @return {positive = (B, n+, D), negative = (B, n-, D), positive_weights = (B, n+), negative_weights = (B, n-),
--          positive_pooling = (B, n+, B), negative_pooling = (B, n-, B)}
function Generator:generate(x, graph)
  local p, r, b = pg(), self.width, x:size(1)
  util.check(x:size(2) == self.dim, "generate: features of width %d for a generator of width %d", x:size(2), self.dim)
  local features = x:detach()
  local shared = features:linear(self.conv1, self.bias1):reshape(1, b, r)
  local kind = graph.positive * 2 - graph.off -- +1 for a neighbour, -1 for another, 0 for the anchor itself
  local pair = p.cat({ graph.weights:reshape(b, b, 1), kind:reshape(b, b, 1) }, 3):linear(self.pair)
  local h = (pair + shared):gelu()
  local hidden = (graph.off - 1):maximum(-1e-30) -- the anchor is no token of its own: its score is lowered below
  local mask = (hidden * 1e35):reshape(b, 1, 1, b):expand(b, 1, b, b)
  local qkv = h:linear(self.qkv, self.qkv_bias):reshape(b, b, 3, 1, r):permute(3, 1, 4, 2, 5)
  local attended = p.attention(qkv:select(1, 1), qkv:select(1, 2), qkv:select(1, 3), mask:contiguous())
  h = h + attended:reshape(b, b, r):linear(self.out, self.out_bias)
  local logits = h:linear(self.conv2, self.bias2)
  local negative = graph.off - graph.positive
  local result = {}
  local function pool(name, start, count, set)
    local own = logits:narrow(3, start, count):contiguous()
    local proxies, pooling = p.proxy_pool(own, set, features)
    result[name], result[name .. "_pooling"] = proxies, pooling
    -- w^p = Pi w: the pooled weights of the tokens, (B, n)
    result[name .. "_weights"] = pooling:matmul(graph.weights:reshape(b, b, 1)):reshape(b, count):detach()
  end
  pool("positive", 1, self.n_positive, graph.positive)
  pool("negative", self.n_positive + 1, self.n_negative, negative)
  return result
end

-- mean over the anchors of sum_j mask_ij softplus(sign (c_pj - b)) / |set|, averaged over the proxies
local function contrast(cosine, set, count, sign, tau, bias)
  local b, n = cosine:size(1), cosine:size(2)
  local z = ((cosine * (1 / tau)) - bias) * sign
  return (z:softplus() * set:reshape(b, 1, b)):sum() * (1 / (b * n * math.max(count, 1)))
end

-- VICReg's hinge on the spread of an anchor's proxies: mean_d max(0, gamma_d - sqrt(Var_d(P) + 1e-4)), gamma the real
-- set's own spread (method 1.2h). Fewer than two proxies have none.
local function variance(proxies, set, x)
  local n, b = proxies:size(2), x:size(1)
  if n < 2 then return nil end
  local share = set / set:sum(2, true)
  local mean = share:matmul(x)
  local gamma = (share:matmul(x * x) - mean * mean):maximum(0):sqrt():reshape(b, x:size(2))
  return (gamma - (proxies:var({ 2 }) + 1e-4):sqrt()):relu():mean()
end

--- The generator's own loss: a contrastive term that keeps proxies near their set and away from the other, and alpha
-- times the variance term (method 1.1, 1.2h). Gradient reaches the generator alone.
-- @param options tau, bias as in fda.loss; alpha (default 1)
function fda.proxy_loss(proxies, x, graph, options)
  options = util.options("fda.proxy_loss", options, { tau = 0.1, bias = "auto", scale = util.none, alpha = 1 })
  local features, b, k = x:detach(), x:size(1), graph.k
  local _, tensor_bias, number = settings(graph, options)
  local bias = tensor_bias and tensor_bias:item() or number
  local keys, sets = features:normalize():t(), { positive = graph.positive, negative = graph.off - graph.positive }
  local counts = { positive = k, negative = b - 1 - k }
  local total
  for _, name in ipairs { "positive", "negative" } do
    local other = name == "positive" and "negative" or "positive"
    if counts[name] > 0 then
      local cosine = proxies[name]:normalize():matmul(keys)
      local term = contrast(cosine, sets[name], counts[name], -1, options.tau, bias)
        + contrast(cosine, sets[other], counts[other], 1, options.tau, bias)
      local spread = options.alpha > 0 and counts[name] > 1 and variance(proxies[name], sets[name], features)
      if spread then term = term + spread * options.alpha end
      total = total and total + term or term
    end
  end
  return total
end

--- The loss over real features and proxies (method 1.1, 1.2i-j): the FDA sum extended by each anchor's proxies, with the
-- normaliser B - 1 + n+ + n-. Gradient reaches x alone: proxies are constants here.
-- @param proxies from :generate, or nil, which is FDA bit for bit
function fda.proxy_fda_loss(x, graph, proxies, options)
  if not proxies then return fda.loss(x, graph, options) end
  options = util.options("fda.proxy_fda_loss", options, DEFAULTS)
  local p, b = pg(), x:size(1)
  local scale, bias, number = settings(graph, options)
  local all = p.cat({ proxies.positive:detach(), proxies.negative:detach() }, 2)
  local weights = p.cat({ proxies.positive_weights, proxies.negative_weights }, 2)
  local z = b - 1 + all:size(2)
  local pairs_loss = p.fda_pairs(x, all, weights, scale, bias, { tau = options.tau, bias_value = number, normalizer = z })
  return fda.loss(x, graph, options) * ((b - 1) / z) + pairs_loss
end

-- ---- batches ---------------------------------------------------------------------------------------------------------------

--- Class-balanced batches with hard class mining (method 1.2e): a seed class, then the classes whose pre-trained
-- centroids are most like it, per_class images of each.
-- @param options labels (N) int32 from 1; features (N, D) pre-trained; classes (m, default 16), per_class (n, default 4);
--                temperature of the draw (default 0.05); greedy: the nearest classes without a draw
-- With fewer than m classes all are used and n becomes ceil(m n / classes); a class with fewer than n images is drawn
-- from with replacement.
-- @return a sampler; .next() -> (m * n) int32 positions; draws from the global generator
function fda.HardClassSampler(options)
  options = util.options("fda.HardClassSampler", options, { labels = util.none, features = util.none, classes = 16,
    per_class = 4, temperature = 0.05, greedy = false })
  local p, members, count = pg(), {}, 0
  util.check(options.labels and options.features, "fda.HardClassSampler: labels and features are needed")
  util.check(options.labels:numel() == options.features:size(1), "fda.HardClassSampler: %d labels for %d features",
    options.labels:numel(), options.features:size(1))
  for i, label in ipairs(options.labels:totable()) do
    if not members[label] then members[label], count = {}, math.max(count, label) end
    table.insert(members[label], i)
  end
  local classes = {}
  for c = 1, count do
    if members[c] then classes[#classes + 1] = c end
  end
  local m, n = math.min(options.classes, #classes), options.per_class
  if #classes < options.classes then n = math.ceil(options.classes * n / #classes) end
  local centroids = {}
  p.no_grad(function()
    local unit = options.features:detach():normalize()
    for i, c in ipairs(classes) do
      centroids[i] = unit:index(1, p.tensor(members[c], { dtype = "int32" })):mean(1, true)
    end
  end)
  local means = p.cat(centroids, 1):normalize()
  local similarity = means:matmul(means:t()):totable()
  local function uniform() return p.rand(1):item() end
  local function pick_classes()
    local seed = math.floor(uniform() * #classes) + 1
    local chosen, left = { seed }, {}
    for i = 1, #classes do
      if i ~= seed then left[#left + 1] = i end
    end
    table.sort(left, function(a, b)
      local x, y = similarity[seed][a], similarity[seed][b]
      return x > y or (x == y and a < b)
    end)
    while #left > 2 * options.classes do left[#left] = nil end
    while #chosen < m do
      local at = 1
      if not options.greedy then
        local weights, sum = {}, 0
        for i, c in ipairs(left) do
          weights[i] = math.exp((similarity[seed][c] - similarity[seed][left[1]]) / options.temperature)
          sum = sum + weights[i]
        end
        local u = uniform() * sum
        while at < #left and u > weights[at] do u, at = u - weights[at], at + 1 end
      end
      chosen[#chosen + 1] = table.remove(left, at)
    end
    return chosen
  end
  return { classes = m, per_class = n, next = function()
    local positions = {}
    for _, c in ipairs(pick_classes()) do
      local own = members[classes[c]]
      local order = #own >= n and p.randperm(#own):totable()
      for i = 1, n do positions[#positions + 1] = own[order and order[i] or math.floor(uniform() * #own) + 1] end
    end
    return p.tensor(positions, { dtype = "int32" })
  end }
end

return fda
