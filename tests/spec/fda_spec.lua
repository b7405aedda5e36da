-- fda_spec.lua - the loss against its statement in plain ops, what gradients may reach, and the promises of the proxies.

local pg = require "perigee"

local function features(b, d, dtype) return pg.randn(b, d):to(dtype or "float64") end

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

  it("hard class batches hold per_class images of each class, of similar classes first", function()
    local labels = {}
    for i = 1, 60 do labels[i] = (i - 1) % 6 + 1 end
    local sampler = pg.fda.HardClassSampler { labels = pg.tensor(labels, { dtype = "int32" }),
      features = features(60, 4, "float32"), classes = 4, per_class = 3 }
    local count = {}
    for _, i in ipairs(sampler.next():totable()) do count[labels[i]] = (count[labels[i]] or 0) + 1 end
    local classes = 0
    for _, n in pairs(count) do
      classes = classes + 1
      assert.are.equal(3, n)
    end
    assert.are.equal(4, classes)
  end)
end)
