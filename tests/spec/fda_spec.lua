-- fda_spec.lua - the loss against its statement in plain ops, what gradients may reach, and the promises of the proxies.

local pg = require "perigee"
local lib = require "perigee.ffi"

local function features(b, d, dtype) return pg.randn(b, d):to(dtype or "float64") end

local function load(case, name) return pg.npy.load(("tests/fixtures/fda/%s.%s.npy"):format(case, name)) end

local close = require("expect").closer(1e-10)

local fails = require("expect").fails

describe("fda", function()
  before_each(function() pg.seed(3) end)

  it("the fused loss equals the plain one, value and gradient, for every weight of negatives", function()
    for _, negative in ipairs { "similarity", "one", "complement" } do
      local graph = pg.fda.graph(features(12, 6), { k = 4, negative = negative })
      local x = features(12, 6):requires_grad_(true)
      local fused = pg.fda.loss(x, graph)
      fused:backward()
      local gradient = x.grad
      x.grad = nil
      local plain = pg.fda.reference_loss(x, graph)
      plain:backward()
      assert.is_true(math.abs(fused:item() - plain:item()) < 1e-12)
      assert.is_true((gradient - x.grad):abs():max():item() < 1e-12)
    end
  end)

  it("a learnable temperature and bias get gradients", function()
    local graph = pg.fda.graph(features(8, 5), { k = 3 })
    local x, scale, bias = features(8, 5), pg.tensor({ 8 }, { dtype = "float64" }), pg.tensor({ 2 }, { dtype = "float64" })
    pg.gradcheck(function(a, s, b) return pg.fda.loss(a, graph, { scale = s, bias = b }) end, { x, scale, bias })
  end)

  it("the graph has k positives a row, a zero diagonal, and signed weights", function()
    local graph = pg.fda.graph(features(10, 4), { k = 3 })
    local w, positive = graph.weights:totable(), graph.positive:totable()
    for i = 1, 10 do
      local count = 0
      assert.are.equal(0, w[i][i])
      for j = 1, 10 do
        count = count + positive[i][j]
        if positive[i][j] == 1 then assert.is_true(w[i][j] >= 0) else assert.is_true(w[i][j] <= 0) end
      end
      assert.are.equal(3, count)
    end
  end)

  it("the weights are what the masks and the cosines say", function()
    for _, negative in ipairs { "similarity", "one", "complement" } do
      for _, clamp in ipairs { true, false } do
        local graph = pg.fda.graph(features(11, 4), { k = 3, negative = negative, clamp = clamp })
        local weights = graph.positive * graph.similarity + graph.rest * pg.fda.negative_weight(negative, graph.similarity)
        close(weights, graph.weights, negative)
        close(graph.kind, graph.positive - graph.rest, "kind")
        local kth = graph.similarity:gather(2, graph.neighbors):narrow(2, 3, 1)
        if not clamp then close(kth:mean():reshape(1), graph.tail, "tail") end
      end
    end
  end)

  it("what a graph makes when it is first read outlives the scope in which that was", function()
    local graph = pg.fda.graph(features(6, 4), { k = 2 })
    pg.scope(function() return graph.rest:sum():item() end)
    assert.are.equal(18, graph.rest:sum():item())
    assert.are.equal(12, graph.positive:sum():item())
  end)

  it("a graph, its loss and the gradient take three matrices of all pairs", function()
    local x0, x = features(1024, 8, "float32"), features(1024, 8, "float32"):requires_grad_(true)
    local function step() pg.scope(function() pg.fda.loss(x, pg.fda.graph(x0, { k = 8 })):backward() end) end
    step()
    collectgarbage()
    local live = pg.memory().live
    lib.pg_memory_reset_peak(lib.PG_CPU)
    step()
    assert.is_true((pg.memory().peak - live) / (4 * 1024 * 1024) < 3)
  end)

  it("k as large as the batch is refused with both numbers", function()
    local ok, message = pcall(pg.fda.graph, features(8, 4), { k = 8 })
    assert.is_false(ok)
    assert.is_truthy(message:find("k = 8", 1, true) and message:find("7 others", 1, true))
  end)

  it("permuting the batch leaves the loss and permutes its gradient", function()
    local x0, x, order = features(9, 5), features(9, 5), pg.randperm(9)
    local function run(a0, a)
      a = a:clone():requires_grad_(true)
      local loss = pg.fda.loss(a, pg.fda.graph(a0, { k = 3 }))
      loss:backward()
      return loss:item(), a.grad
    end
    local loss, gradient = run(x0, x)
    local again, permuted = run(x0:index(1, order), x:index(1, order))
    assert.is_true(math.abs(loss - again) < 1e-12)
    assert.is_true((gradient:index(1, order) - permuted):abs():max():item() < 1e-12)
  end)

  it("proxies lie in the hull of their own set", function()
    local x = features(16, 6, "float32")
    local graph = pg.fda.graph(x, { k = 5 })
    local generator = pg.fda.ProxyGenerator { dim = 6, batch = 16, k = 5, ratio = 0.4 }
    local proxies = generator:generate(x, graph)
    assert.are.same({ 16, 2, 6 }, proxies.positive:shape())
    assert.are.same({ 16, 4, 6 }, proxies.negative:shape())
    local pooling = proxies.positive_pooling
    assert.is_true((pooling:sum(3) - 1):abs():max():item() < 1e-5)
    assert.is_true(pooling:min():item() >= 0)
    local outside = pooling * (graph.positive * -1 + 1):reshape(16, 1, 16)
    assert.are.equal(0, outside:sum():item())
  end)

  it("the FDA loss gives the generator no gradient, and the proxy loss gives the features none", function()
    local x = features(16, 6, "float32"):requires_grad_(true)
    local graph = pg.fda.graph(x, { k = 5 })
    local generator = pg.fda.ProxyGenerator { dim = 6, batch = 16, k = 5 }
    local proxies = generator:generate(x, graph)
    pg.fda.proxy_fda_loss(x, graph, proxies):backward()
    assert.is_truthy(x.grad)
    for _, w in ipairs(generator:parameters()) do assert.is_nil(w.grad) end
    x.grad = nil
    pg.fda.proxy_loss(proxies, x, graph):backward()
    assert.is_nil(x.grad)
    for _, w in ipairs(generator:parameters()) do assert.is_truthy(w.grad) end
  end)

  it("no proxies is FDA bit for bit", function()
    local x = features(16, 6, "float32")
    local graph = pg.fda.graph(features(16, 6, "float32"), { k = 5 })
    assert.are.equal(pg.fda.loss(x, graph):item(), pg.fda.proxy_fda_loss(x, graph, nil):item())
  end)

  it("the generator has about 23.6 thousand parameters at width 512", function()
    local count = pg.fda.ProxyGenerator { dim = 512, batch = 64, k = 8 }:count()
    assert.is_true(count > 20000 and count < 25000, tostring(count))
  end)

  it("the generator says what it is made of, and its state goes into another", function()
    local first = pg.fda.ProxyGenerator { dim = 512, batch = 64, k = 8 }
    assert.are.equal("ProxyGenerator(dim 512, width 32, 3+22 proxies, 21,529 parameters)", tostring(first))
    local second = pg.fda.ProxyGenerator { dim = 512, batch = 64, k = 8 }
    second:load_state_dict(first:state_dict())
    local x = features(64, 512, "float32")
    local graph = pg.fda.graph(x)
    local a, b = first:generate(x, graph), second:generate(x, graph)
    assert.are.equal(0, (a.negative - b.negative):abs():max():item())
  end)

  it("a batch or k that asks for other numbers of proxies is refused, one that does not is taken", function()
    local generator = pg.fda.ProxyGenerator { dim = 6, batch = 16, k = 5 }
    local x = features(24, 6, "float32")
    fails("(2+4 proxies), but a batch of 24 and k 5 ask for 2+7", generator.generate, generator, x, pg.fda.graph(x, { k = 5 }))
    local x17 = features(17, 6, "float32")
    assert.are.same({ 17, 4, 6 }, generator:generate(x17, pg.fda.graph(x17, { k = 5 })).negative:shape())
    local narrow = features(16, 5, "float32")
    fails("features of width 5", generator.generate, generator, narrow, pg.fda.graph(narrow, { k = 5 }))
  end)

  it("permuting the batch permutes the proxies", function()
    local x0, x, order = features(10, 5), features(10, 5), pg.randperm(10)
    local generator = pg.fda.ProxyGenerator { dim = 5, batch = 10, k = 3, dtype = "float64" }
    local a = generator:generate(x, pg.fda.graph(x0, { k = 3 }))
    local b = generator:generate(x:index(1, order), pg.fda.graph(x0:index(1, order), { k = 3 }))
    close(a.positive:detach():index(1, order), b.positive, "P+")
    close(a.negative:detach():index(1, order), b.negative, "P-")
    close(a.negative_pooling:detach():index(1, order):index(3, order), b.negative_pooling, "Pi-")
  end)

  it("every neighbour gives no negative proxies and finite losses", function()
    local x = features(6, 4, "float32"):requires_grad_(true)
    local graph = pg.fda.graph(x, { k = 5 })
    local generator = pg.fda.ProxyGenerator { dim = 4, batch = 6, k = 5 }
    local proxies = generator:generate(x, graph)
    assert.is_nil(proxies.negative)
    pg.fda.proxy_loss(proxies, x, graph):backward()
    pg.fda.proxy_fda_loss(x, graph, proxies):backward()
    assert.is_true(pg.is_finite(x.grad) and pg.is_finite(generator.conv2.grad))
  end)

  it("the graph reports the clamped fraction, and ties go to the lower position", function()
    local x = pg.tensor({ { 1, 0 }, { 1, 0 }, { 1, 0 }, { -1, 0 } }, { dtype = "float64" })
    local graph = pg.fda.graph(x, { k = 1 })
    assert.are.same({ { 2 }, { 1 }, { 1 }, { 1 } }, graph.neighbors:totable())
    assert.are.equal(0.5, graph.clamped)
    assert.are.equal(0, graph.weights:get(1, 4))
    assert.are.equal(1, pg.fda.graph(x, { k = 1, clamp = false }).weights:get(1, 4)) -- what clamp is there to prevent
    local clear = pg.fda.graph(x, { k = 1, negative = "complement" }).weights
    assert.are.same({ { 0, 1, 0, -1 } }, clear:narrow(1, 1, 1):totable())
  end)

  it("auto sets b to the k-th neighbour's mean similarity over tau", function()
    local x0, x = features(9, 4), features(9, 4)
    local graph = pg.fda.graph(x0, { k = 3 })
    local unit, sum = x0:normalize(), 0
    for _, row in ipairs((unit:matmul(unit:t())):totable()) do
      table.sort(row)
      sum = sum + row[#row - 3] -- the greatest is the anchor itself
    end
    local by_hand = pg.fda.loss(x, graph, { tau = 0.2, bias = sum / 9 / 0.2 })
    assert.is_true(math.abs(by_hand:item() - pg.fda.loss(x, graph, { tau = 0.2 }):item()) < 1e-12)
  end)

  it("a learnable scale starts where the fixed one stands, gets gradients, and learns", function()
    local x0, x = features(9, 4), features(9, 4):requires_grad_(true)
    local graph = pg.fda.graph(x0, { k = 3 })
    for _, bias in ipairs { "auto", 3 } do
      local scale = pg.fda.LearnableScale { tau = 0.2, bias = bias, dtype = "float64" }
      local loss = pg.fda.loss(x, graph, { scale = scale })
      assert.is_true(math.abs(loss:item() - pg.fda.loss(x, graph, { tau = 0.2, bias = bias }):item()) < 1e-12)
      local opt = pg.optim.AdamW({ scale:group() }, { lr = 0.05, weight_decay = 0.5 })
      assert.are.equal(0, opt.entries[1].weight_decay)
      for _ = 1, 20 do
        opt:zero_grad()
        pg.fda.loss(x:detach(), graph, { scale = scale }):backward()
        opt:step()
      end
      assert.is_true(pg.fda.loss(x, graph, { scale = scale }):item() < loss:item())
      pg.gradcheck(function(a, b)
        rawset(scale, "log_scale", a)
        rawset(scale, "bias", b)
        return pg.fda.loss(x:detach(), graph, { scale = scale })
      end, { pg.tensor({ 1 }, { dtype = "float64" }), pg.tensor({ 0.5 }, { dtype = "float64" }) })
    end
  end)

  it("what cannot be is refused in one line", function()
    local bad = features(5, 3)
    bad:narrow(1, 2, 1):fill_(0 / 0)
    fails("features hold values that are not finite", pg.fda.graph, bad, { k = 2 })
    fails("must be (B, D), got (5)", pg.fda.graph, pg.randn(5), { k = 2 })
    fails("must be float32 or float64", pg.fda.graph, pg.randn(5, 2):to "int32", { k = 2 })
    fails("k must be a whole number", pg.fda.graph, features(5, 3), { k = 1.5 })
    fails("negative must be", pg.fda.graph, features(5, 3), { k = 2, negative = "two" })
    local x, graph = features(5, 3), pg.fda.graph(features(5, 3), { k = 2 })
    fails("4 features for a graph of 5", pg.fda.loss, features(4, 3), graph)
    fails("tau must be", pg.fda.loss, x, graph, { tau = 0 })
    fails("tau must be", pg.fda.loss, x, graph, { tau = 0 / 0 })
    fails("bias must be", pg.fda.loss, x, graph, { bias = "automatic" })
    fails("did you mean 'tau'", pg.fda.loss, x, graph, { taw = 1 })
    fails("ratio must be", pg.fda.ProxyGenerator, { dim = 4, ratio = 0 })
    fails("dim must be", pg.fda.ProxyGenerator, {})
    fails("tau must be", pg.fda.LearnableScale, { tau = -1 })
  end)
end)

-- The generator of the fixtures: 12 images of width 6, k 4, width 5, 2+3 proxies.
local NAMES = { "conv1", "bias1", "pair", "qkv", "qkv_bias", "out", "out_bias", "conv2", "bias2" }

describe("against PyTorch", function()
  local x, graph, generator, tau, alpha
  local function make(weights)
    generator = pg.fda.ProxyGenerator { dim = 6, width = 5, batch = 12, k = 4, dtype = "float64", weights = weights }
    local dict = {}
    for _, name in ipairs(NAMES) do dict[name] = load("proxy", name) end
    generator:load_state_dict(dict)
    return generator:generate(x, graph)
  end
  before_each(function()
    x, graph = load("proxy", "x"):requires_grad_(true), pg.fda.graph(load("proxy", "before"), { k = 4 })
    tau, alpha = load("proxy", "tau"):item(), load("proxy", "alpha"):item()
  end)

  it("the graph and the pooling of the generator", function()
    close(load("proxy", "weights"), graph.weights, "weights")
    local proxies = make()
    close(load("proxy", "positive"), proxies.positive_pooling, "Pi+")
    close(load("proxy", "negative"), proxies.negative_pooling, "Pi-")
    close(load("proxy", "positive"):matmul(x:detach()), proxies.positive, "P+")
  end)

  it("proxy_loss, and its gradient at every weight of the generator", function()
    local loss = pg.fda.proxy_loss(make(), x, graph, { tau = tau, alpha = alpha })
    loss:backward()
    close(load("proxy_loss", "out"), loss, "proxy_loss")
    for _, name in ipairs(NAMES) do close(load("proxy_loss", "d_" .. name), generator[name].grad, "d_" .. name, 1e-9) end
  end)

  it("proxy_loss with a gamma of 1", function()
    local loss = pg.fda.proxy_loss(make(), x, graph, { tau = tau, alpha = alpha, gamma = 1 })
    loss:backward()
    close(load("proxy_loss_one", "out"), loss, "proxy_loss")
    close(load("proxy_loss_one", "d_conv2"), generator.conv2.grad, "d_conv2", 1e-9)
  end)

  for case, options in pairs { proxy_fda = {}, proxy_fda_through = { through_pool = true },
    proxy_fda_cosine = { weights = "cosine" } } do
    it(case .. ", value and gradient", function()
      local loss = pg.fda.proxy_fda_loss(x, graph, make(options.weights), { tau = tau, through_pool = options.through_pool })
      loss:backward()
      close(load(case, "out"), loss, case)
      close(load(case, "d_x"), x.grad, "d_x")
    end)
  end
end)

describe("hard class batches", function()
  before_each(function() pg.seed(3) end)

  local function int32(list) return pg.tensor(list, { dtype = "int32" }) end
  -- Class c has counts[c] images, around a direction of its own.
  local function data(counts)
    local labels, rows = {}, {}
    for c, n in ipairs(counts) do
      for _ = 1, n do
        labels[#labels + 1] = c
        local angle = c * 0.3
        rows[#rows + 1] = { math.cos(angle), math.sin(angle), 0.01 * (#rows % 3) }
      end
    end
    return labels, pg.tensor(rows)
  end
  local function make(counts, options)
    local labels, rows = data(counts)
    options.labels, options.features = int32(labels), rows
    return pg.fda.HardClassSampler(options), labels
  end
  local function histogram(positions, labels)
    local count, distinct = {}, {}
    for _, i in ipairs(positions:totable()) do
      local c = labels[i]
      count[c] = (count[c] or 0) + 1
      distinct[c] = distinct[c] or {}
      distinct[c][i] = true
    end
    local images = {}
    for c, set in pairs(distinct) do
      images[c] = 0
      for _ in pairs(set) do images[c] = images[c] + 1 end
    end
    return count, images
  end

  it("hold per_class distinct images of each of m classes", function()
    local sampler, labels = make({ 10, 10, 10, 10, 10, 10 }, { classes = 4, per_class = 3 })
    for _ = 1, 20 do
      local count, images = histogram(sampler:next(), labels)
      local classes = 0
      for c, n in pairs(count) do
        classes = classes + 1
        assert.are.same({ 3, 3 }, { n, images[c] })
      end
      assert.are.equal(4, classes)
    end
  end)

  it("greedy ones take the classes nearest to the seed, the seed first", function()
    local sampler, labels = make({ 4, 4, 4, 4, 4, 4, 4, 4 }, { classes = 3, per_class = 2, greedy = true })
    for _ = 1, 10 do
      local batch = sampler.next():totable()
      local seed = labels[batch[1]]
      for _, i in ipairs(batch) do
        assert.is_true(math.abs(labels[i] - seed) <= ((seed == 1 or seed == 8) and 2 or 1), "seed " .. seed)
      end
    end
  end)

  it("every image of a class comes up, equally often", function()
    local sampler = make({ 5 }, { classes = 1, per_class = 2 })
    local count = { 0, 0, 0, 0, 0 }
    for _ = 1, 1000 do
      for _, i in ipairs(sampler.next():totable()) do count[i] = count[i] + 1 end
    end
    for _, n in ipairs(count) do assert.is_true(math.abs(n - 400) < 60, tostring(n)) end
  end)

  it("too few classes are made up for by more images, a class too small by repeats", function()
    local sampler, labels = make({ 8, 2 }, { classes = 4, per_class = 3 })
    assert.are.same({ 2, 6 }, { sampler.classes, sampler.per_class })
    local count, images = histogram(sampler.next(), labels)
    assert.are.same({ 6, 6 }, count)
    assert.are.same({ 6, 2 }, images)
  end)

  it("a label that no image has is no class", function()
    local sampler, labels = make({ 4, 0, 4 }, { classes = 3, per_class = 3 })
    local count = histogram(sampler.next(), labels)
    assert.are.equal(2, sampler.classes)
    assert.is_nil(count[2])
  end)

  it("epoch order seeds every class once before one comes again", function()
    local sampler, labels = make({ 3, 3, 3, 3, 3 }, { classes = 2, per_class = 1, order = "epoch" })
    for _ = 1, 4 do
      local seen = {}
      for _ = 1, 5 do seen[labels[sampler.next():totable()[1]]] = true end
      assert.are.same({ true, true, true, true, true }, seen)
    end
  end)

  it("restored, it goes on with the same batches, whatever else was drawn", function()
    for _, order in ipairs { "uniform", "epoch" } do
      local sampler = make({ 9, 9, 9, 9, 9 }, { classes = 3, per_class = 2, order = order })
      for _ = 1, 3 do sampler.next() end
      local state, rest = sampler.state(), {}
      for i = 1, 6 do rest[i] = sampler.next():totable() end
      pg.seed(77)
      local other = make({ 9, 9, 9, 9, 9 }, { classes = 3, per_class = 2, order = order })
      local outside = pg.rng_state()
      other:restore(require "cjson".decode(require "cjson".encode(state)))
      for i = 1, 6 do assert.are.same(rest[i], other:next():totable()) end
      assert.are.same(outside, pg.rng_state())
    end
  end)

  it("what cannot be is refused in one line", function()
    local new, x = pg.fda.HardClassSampler, pg.randn(3, 2)
    fails("label 2 is 0", new, { labels = int32 { 1, 0, 2 }, features = x })
    fails("2 labels for 3 features", new, { labels = int32 { 1, 2 }, features = x })
    fails("int32", new, { labels = pg.ones(3), features = x })
    fails("not finite", new, { labels = int32 { 1, 1, 2 }, features = x * (0 / 0) })
    fails("order must be", new, { labels = int32 { 1, 1, 2 }, features = x, order = "random" })
    fails("classes must be", new, { labels = int32 { 1, 1, 2 }, features = x, classes = 0 })
    fails("labels and features are needed", new, {})
  end)
end)
