-- proxies.lua - proxies, their generator and their losses (Proxy-FDA). `tokens` are the others of an anchor.
--
--   tokens of anchor i: [x_j ; w_ij ; +-1], j != i       h = GELU(conv1 tokens);  h = h + attention(h);  logits = conv2 h
--   Pi = softmax over the tokens of the proxy's own set (neighbours or the rest),   P = Pi X,   w^p = Pi w
--
-- A proxy is a convex combination of real features. Gradients: proxy_loss reaches the generator alone (features are
-- constants), proxy_fda_loss the features alone (proxies are constants, unless through_pool).
-- Source: docs/method.md, section 1.2g-j.

local util = require "perigee.util"

local function pg() return require "perigee" end

return function(fda)
  -- n+ = max(1, round(s k)), n- = max(1, round(s (B-1-k))); an empty set has none.
  local function counts(ratio, batch, k)
    local function count(set) return set > 0 and math.max(1, math.floor(ratio * set + 0.5)) or 0 end
    return count(k), count(batch - 1 - k)
  end

  -- ---- the generator -----------------------------------------------------------------------------------------------------

  local Generator

  local function generator_class()
    Generator = pg().nn.class "ProxyGenerator"
    local describe = "ProxyGenerator(dim %d, width %d, %d+%d proxies, %s parameters)"
    function Generator.__tostring(self)
      local count = tostring(self:count()):reverse():gsub("(%d%d%d)", "%1,"):reverse():gsub("^,", "")
      return describe:format(self.dim, self.width, self.n_positive, self.n_negative, count)
    end

    --- Logits of every proxy for every token; an anchor's own row is no token: nobody attends to it.
    -- @param features  (B, D)
    -- @param graph     of the batch
    -- @return (B, B, n+ + n-), the positive proxies first
    function Generator:logits(features, graph)
      local p, b, r = pg(), graph.size, self.width
      local shared = features:linear(self.conv1, self.bias1):reshape(1, b, r)
      local pair = p.cat({ graph.weights:reshape(b, b, 1), graph.kind:reshape(b, b, 1) }, 3):linear(self.pair)
      local h = (pair + shared):gelu()
      local mask = ((graph.off - 1) * 1e9):reshape(b, 1, 1, b):expand(b, 1, b, b):contiguous()
      local qkv = h:linear(self.qkv, self.qkv_bias):reshape(b, b, 3, 1, r):permute(3, 1, 4, 2, 5)
      local attended = p.attention(qkv:select(1, 1), qkv:select(1, 2), qkv:select(1, 3), mask)
      h = h + attended:reshape(b, b, r):linear(self.out, self.out_bias)
      return h:linear(self.conv2, self.bias2)
    end

    --- Proxies of every anchor; gradient flows into the generator alone.
    -- @param x      (B, D) features, used as constants
    -- @param graph  of the batch
    -- @return as fda.pool
    -- @raises when the batch or k asks for other numbers of proxies than the generator was made for
    function Generator:generate(x, graph)
      fda.check_features("generate", x, 2, "features")
      util.check(x:size(1) == graph.size, "generate: %d features for a graph of %d", x:size(1), graph.size)
      util.check(x:size(2) == self.dim, "generate: features of width %d for a generator of width %d", x:size(2), self.dim)
      local n_positive, n_negative = counts(self.ratio, graph.size, graph.k)
      util.check(n_positive == self.n_positive and n_negative == self.n_negative,
        "generate: made for a batch of %d and k %d (%d+%d proxies), but a batch of %d and k %d ask for %d+%d", self.batch,
        self.k, self.n_positive, self.n_negative, graph.size, graph.k, n_positive, n_negative)
      local features = x:detach()
      return fda.pool(self:logits(features, graph), features, graph,
        { positive = self.n_positive, weights = self.weights })
    end
  end

  --- A proxy generator: one attention and two 1x1 convolutions over the batch as tokens (docs/method.md, section 1.2g).
  -- n+ = max(1, round(s k)), n- = max(1, round(s (B-1-k))). Initial weights come from the global generator.
  -- @param options {dim = D of the features (needed), width = 32 (r), ratio = 0.4 (s, above 0 up to 1), batch = 64 (B),
  --                k = 8, weights = "pooled" or "cosine" (see fda.pool), dtype = "float32"}
  -- @return a module with :generate(x, graph); .n_positive, .n_negative are the numbers of proxies, :count() of parameters
  -- @raises on a number out of range, or k of B or more
  function fda.ProxyGenerator(options)
    options = util.options("fda.ProxyGenerator", options, { dim = util.none, width = 32, ratio = 0.4, batch = 64, k = 8,
      weights = "pooled", dtype = "float32" })
    for _, name in ipairs { "dim", "width", "batch", "k" } do
      local value = options[name]
      util.check(type(value) == "number" and value >= 1 and value % 1 == 0,
        "fda.ProxyGenerator: %s must be a whole number, 1 or more, got %s", name, tostring(value))
    end
    util.check(type(options.ratio) == "number" and options.ratio > 0 and options.ratio <= 1,
      "fda.ProxyGenerator: ratio must be in (0, 1]; 0 is plain FDA")
    util.check(options.k < options.batch, "fda.ProxyGenerator: k = %d, but an anchor has %d others in a batch of %d",
      options.k, options.batch - 1, options.batch)
    local p, r, dtype = pg(), options.width, options.dtype
    if not Generator then generator_class() end
    local self = Generator.new()
    for _, name in ipairs { "dim", "width", "ratio", "batch", "k", "weights" } do self[name] = options[name] end
    self.n_positive, self.n_negative = counts(options.ratio, options.batch, options.k)
    local n = self.n_positive + self.n_negative
    local function weight(out, inside) return ((p.rand(out, inside) * 2 - 1) * (1 / math.sqrt(inside))):to(dtype) end
    local function bias(out) return p.zeros(out, { dtype = dtype }) end
    self.conv1 = weight(r, options.dim) -- the feature's part of the first convolution: the same for every anchor
    self.bias1 = bias(r)
    self.pair = weight(r, 2) -- and that of w_ij and of the type
    self.qkv = weight(3 * r, r)
    self.qkv_bias = bias(3 * r)
    self.out = weight(r, r)
    self.out_bias = bias(r)
    self.conv2 = weight(n, r)
    self.bias2 = bias(n)
    return self
  end

  --- Pools real features into proxies.
  -- @param logits  (B, B, n+ + n-): of token j of anchor i for each proxy; gradient flows through them
  -- @param x       (B, D) features, constants
  -- @param graph   of the batch
  -- @param options {positive = n+ (needed); weights: "pooled" (default) w^p = Pi w, or "cosine" w^p = cos(x0_i, Pi X0),
  --                signed as the graph's weights are}
  -- @return {positive = (B, n+, D), negative = (B, n-, D), positive_weights = (B, n+), negative_weights = (B, n-),
  --          positive_pooling = (B, n+, B), negative_pooling = (B, n-, B)}; a set without proxies is left out
  function fda.pool(logits, x, graph, options)
    options = util.options("fda.pool", options, { positive = util.none, weights = "pooled" })
    util.check(options.weights == "pooled" or options.weights == "cosine",
      "fda.pool: weights must be pooled or cosine, got '%s'", tostring(options.weights))
    local p, b, result = pg(), graph.size, {}
    local function weigh(name, pooling)
      local n = pooling:size(2)
      if options.weights == "pooled" then return pooling:matmul(graph.weights:reshape(b, b, 1)):reshape(b, n) end
      local pooled = pooling:reshape(b * n, b):matmul(graph.features):reshape(b, n, graph.features:size(2)):normalize()
      local s = pooled:matmul(graph.features:normalize():reshape(b, graph.features:size(2), 1)):reshape(b, n)
      if graph.clamp then s = s:maximum(0) end
      return name == "positive" and s or fda.negative_weight(graph.negative, s)
    end
    local function pool(name, start, count, set)
      if count == 0 then return end
      local proxies, pooling = p.proxy_pool(logits:narrow(3, start, count):contiguous(), set, x:detach())
      result[name], result[name .. "_pooling"] = proxies, pooling
      result[name .. "_weights"] = p.no_grad(function() return weigh(name, pooling:detach()) end)
    end
    pool("positive", 1, options.positive, graph.positive)
    pool("negative", options.positive + 1, logits:size(3) - options.positive, graph.rest)
    return result
  end

  -- ---- the generator's loss ----------------------------------------------------------------------------------------------

  -- The mean over a set's proxies of  1/|X+| sum_{t in X+} softplus(-y (cos(p, t) s - b))  +  1/|X-| sum_{t in X-}
  -- softplus(y (cos(p, t) s - b)),  y = 1 for P+ and -1 for P-. As p = Pi X, its products with all features are
  -- Pi (X X^^T), and |p|^2 = sum_j Pi_j |x_j| (p . x^_j): no vector of width D is touched. `products` are s x_i . x^_j,
  -- `lengths` |x_j| / s.
  local function contrast(pooling, products, lengths, signs, share, bias)
    local b, n = pooling:size(1), pooling:size(2)
    local along = pooling:reshape(b * n, b):matmul(products)
    local norm = (pooling:reshape(b * n, b) * lengths * along):sum(2, true):maximum(1e-24):sqrt()
    local z = (along / norm - bias):reshape(b, n, b) * signs
    return (z:softplus() * share):sum() * (1 / (b * n))
  end

  -- VICReg's hinge on the spread of an anchor's proxies: mean_d max(0, gamma_d - sqrt(Var_d(P) + 1e-4)). Fewer than two
  -- have none. Variances are the unbiased ones; the batch's mean, which shifts nothing, is taken off first for precision.
  local function variance(proxies, set, count, features, gamma)
    local p, n, b = pg(), proxies:size(2), features:size(1)
    if n < 2 or count < 2 then return nil end
    -- Sums over the proxies as products with a row of ones. No gradient goes through the mean: deviations sum to zero.
    local ones = p.ones(1, n, { dtype = features:dtype(), device = features:device() })
    local deviation = proxies - p.no_grad(function() return (ones * (1 / n)):matmul(proxies:detach()) end)
    local spread = ((ones * (1 / (n - 1))):matmul(deviation ^ 2):reshape(b, features:size(2)) + 1e-4):sqrt()
    if gamma == "real" then
      local share, centred = set * (1 / count), features - features:mean(1, true)
      local mean = share:matmul(centred)
      gamma = ((share:matmul(centred * centred) - mean * mean):maximum(0) * (count / (count - 1))):sqrt()
        :reshape(b, features:size(2))
    end
    return (gamma - spread):relu():mean()
  end

  --- The generator's own loss: a contrastive term that keeps proxies near their set and away from the other, and alpha
  -- times the variance term (docs/method.md, sections 1.1 and 1.2h). Gradient reaches the generator alone.
  -- @param proxies from :generate or fda.pool
  -- @param x       (B, D), the features that were pooled
  -- @param graph   of the batch
  -- @param options {tau, bias, scale as in fda.loss, as constants; alpha = 1, 0 or more; gamma: the spread asked for, "real"
  --                (default) that of the real set in each dimension, or a number (VICReg's is 1)}
  -- @return scalar
  -- @raises on an alpha or gamma out of range
  function fda.proxy_loss(proxies, x, graph, options)
    options = util.options("fda.proxy_loss", options,
      { tau = 0.1, bias = "auto", scale = util.none, alpha = 1, gamma = "real" })
    local gamma, alpha = options.gamma, options.alpha
    util.check(gamma == "real" or type(gamma) == "number" and gamma > 0 and gamma < math.huge,
      "fda.proxy_loss: gamma must be \"real\" or a number above 0, got %s", tostring(gamma))
    util.check(type(alpha) == "number" and alpha >= 0 and alpha < math.huge,
      "fda.proxy_loss: alpha must be a number, 0 or more, got %s", tostring(alpha))
    local b, rest = graph.size, graph.size - 1 - graph.k
    local features = x:detach()
    local scale, bias, numbers = fda.settings(graph, options)
    scale = scale and scale:detach() or 1 / numbers.tau
    bias = bias and bias:detach() or numbers.bias_value
    local products, lengths, share = pg().no_grad(function()
      local share = graph.positive * (1 / graph.k)
      if rest > 0 then share = share + graph.rest * (1 / rest) end
      local norms = features:norm(2):reshape(1, b)
      return features:matmul(features:normalize():t()) * scale, norms / scale, share:reshape(b, 1, b)
    end)
    local total
    for _, side in ipairs { { "positive", -1, graph.positive, graph.k }, { "negative", 1, graph.rest, rest } } do
      local name, sign, set, count = unpack(side)
      if proxies[name] then
        local signs = (graph.kind * sign):reshape(b, 1, b)
        local term = contrast(proxies[name .. "_pooling"], products, lengths, signs, share, bias)
        local spread = alpha > 0 and variance(proxies[name], set, count, features, gamma)
        if spread then term = term + spread * alpha end
        total = total and total + term or term
      end
    end
    return total
  end

  -- ---- the encoder's loss --------------------------------------------------------------------------------------------------

  local PAIRS = { through_pool = false }
  for key, value in pairs(fda.DEFAULTS) do PAIRS[key] = value end

  -- (B, n+ + n-, D): the proxies as constants, or with the gradient that the features take through the pooling.
  local function joined(proxies, x, through)
    local list, weights = {}, {}
    for _, name in ipairs { "positive", "negative" } do
      if proxies[name] then
        local pooling = proxies[name .. "_pooling"]
        local b, n = pooling:size(1), pooling:size(2)
        list[#list + 1] = through and pooling:detach():reshape(b * n, b):matmul(x):reshape(b, n, x:size(2))
          or proxies[name]:detach()
        weights[#weights + 1] = proxies[name .. "_weights"]
      end
    end
    return pg().cat(list, 2), pg().cat(weights, 2)
  end

  --- The loss over real features and proxies (docs/method.md, sections 1.1 and 1.2i-j): the FDA sum extended by each
  -- anchor's proxies, with the normaliser B - 1 + n+ + n-. Gradient reaches x alone: proxies are constants here.
  -- @param x       (B, D) current features
  -- @param graph   of the batch
  -- @param proxies from :generate, or nil, which is FDA bit for bit
  -- @param options {tau, bias, scale as in fda.loss; through_pool = false: gradient also through X in P = Pi X}
  -- @return scalar
  function fda.proxy_fda_loss(x, graph, proxies, options)
    options = util.options("fda.proxy_fda_loss", options, PAIRS)
    local plain = { tau = options.tau, bias = options.bias, scale = options.scale }
    if not proxies then return fda.loss(x, graph, plain) end
    local scale, bias, numbers = fda.settings(graph, options)
    local all, weights = joined(proxies, x, options.through_pool)
    local b = graph.size
    numbers.normalizer = b - 1 + all:size(2)
    return fda.loss(x, graph, plain) * ((b - 1) / numbers.normalizer)
      + pg().fda_pairs(x, all, weights, scale, bias, numbers)
  end
end
