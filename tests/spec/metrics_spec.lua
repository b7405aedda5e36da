-- metrics_spec.lua - probes and scores on features whose answers can be told by hand.

local pg = require "perigee"
local expect = require "expect"
local metrics = pg.metrics

local function int32(list) return pg.tensor(list, { dtype = "int32" }) end

-- Clouds around the corners of a square, `far` from the middle; labels go round.
local function clouds(n, far)
  local rows, labels = {}, {}
  local noise = pg.randn(n, 2):totable()
  for i = 1, n do
    local c = (i - 1) % 4
    rows[i] = { far * (c % 2 * 2 - 1) + noise[i][1], far * (c < 2 and -1 or 1) + noise[i][2] }
    labels[i] = c + 1
  end
  return pg.tensor(rows), int32(labels)
end

describe("metrics", function()
  before_each(function() pg.seed(7) end)

  it("count right answers", function()
    local logits = pg.tensor { { 2, 1, 0 }, { 0, 1, 5 }, { 3, 9, 1 }, { 1, 0, 0 } }
    assert.are.equal(0.75, metrics.accuracy(logits, int32 { 1, 3, 2, 2 }))
  end)

  it("measure calibration: sure and wrong half of the time is off by a half", function()
    local logits = pg.tensor { { 50, 0 }, { 50, 0 }, { 0, 50 }, { 0, 50 } }
    assert.are.equal(0, metrics.ece(logits, int32 { 1, 1, 2, 2 }))
    assert.are.equal(0.5, metrics.ece(logits, int32 { 1, 2, 2, 1 }))
  end)

  it("probe linearly: what is separable is told apart, noise is not", function()
    local train, train_labels = clouds(200, 4)
    local test, test_labels = clouds(200, 4)
    local accuracy, fitted = metrics.linear_probe(train, train_labels, test, test_labels, { steps = 200, lrs = { 0.01, 0.1 } })
    assert.is_true(accuracy > 0.97, tostring(accuracy))
    assert.are.equal(accuracy, metrics.accuracy(fitted.head(test), test_labels)) -- the head normalises by itself
    local none = metrics.linear_probe(pg.randn(200, 2), train_labels, pg.randn(400, 2), int32(pg.cat({ test_labels,
      test_labels }, 1):totable()), { steps = 100, lrs = { 0.1 } })
    assert.is_true(none < 0.4, tostring(none))
    assert.has_error(function() metrics.linear_probe(train, train_labels, test, int32 { 1 }) end,
      "linear_probe: 200 features for 200 labels (train), 200 for 1 (test)")
  end)

  it("regress in one pass as cross_entropy does of linear, whatever the threads", function()
    local x, labels = pg.randn(1003, 300, { dtype = "float64" }), (pg.rand(1003) * 7):to("int32") + 1
    local function gradients(loss)
      local weight, bias = pg.randn(7, 300, { dtype = "float64" }), pg.randn(7, { dtype = "float64" })
      weight:requires_grad_(true)
      bias:requires_grad_(true)
      local value = loss(weight, bias) * 3
      value:backward()
      return { value, weight.grad, bias.grad }
    end
    local function compare(threads)
      pg.threads(threads)
      pg.seed(5)
      local plain = gradients(function(w, b) return pg.cross_entropy(x:linear(w, b), labels) end)
      pg.seed(5)
      local got = gradients(function(w, b) return pg.softmax_regression(x, w, b, labels) end)
      for i, name in ipairs { "loss", "weight", "bias" } do expect.closer(1e-12)(plain[i]:detach(), got[i], name) end
    end
    local before = pg.threads()
    compare(1)
    compare(3)
    pg.threads(before)
  end)

  it("fit a logistic regression to its optimum, where the gradient is 0", function()
    local x, labels = clouds(400, 1)
    local fit = metrics.logistic_regression(x:to("float64"), labels, { l2 = 1e-3, tolerance = 1e-14 })
    local weight, bias = fit.weight:requires_grad_(true), fit.bias:requires_grad_(true)
    local loss = pg.cross_entropy(pg.linear(x:to("float64"), weight, bias), labels) + (weight * weight):sum() * 5e-4
    loss:backward()
    assert.is_true(math.abs(loss:item() - fit.loss) < 1e-12)
    assert.is_true(weight.grad:abs():max():item() < 1e-6 and bias.grad:abs():max():item() < 1e-6)
    assert.is_true(fit.steps > 3)
    expect.fails("400 features for 399 labels", metrics.logistic_regression, x, labels:narrow(1, 1, 399))
    expect.fails("l2 must be 0 or more", metrics.logistic_regression, x, labels, { l2 = -1 })
  end)

  it("probe a task the same for every caller, and leave the generator where it was", function()
    local images, labels = clouds(120, 3)
    local part = { images = images, labels = labels }
    local task = { train = part, val = part, test = part, folds = 3 }
    local function probe()
      local accuracy, found = metrics.probe_task(function(x) return x end, task, { steps = 50, lrs = { 0.1, 1 }, seed = 3 })
      return accuracy, found
    end
    local state = pg.rng_state()
    local first, found = probe()
    assert.are.same(state, pg.rng_state())
    pg.rand(5)
    assert.are.equal(first, (probe()))
    assert.are.equal(360, found.features:size(1)) -- with folds every image is tested
    assert.is_true(found.lr == 0.1 or found.lr == 1)
  end)

  it("vote among neighbours, the nearer of two equals winning", function()
    local train = pg.tensor { { 1, 0 }, { 0.9, 0.1 }, { 0, 1 }, { 0.1, 0.9 } }
    local test = pg.tensor { { 1, 0.05 }, { 0.05, 1 } }
    assert.are.equal(1, metrics.knn_probe(train, int32 { 1, 1, 2, 2 }, test, int32 { 1, 2 }, { k = 2 }))
    assert.are.equal(1, metrics.knn_probe(train, int32 { 2, 1, 1, 1 }, test, int32 { 2, 1 }, { k = 2 }))
  end)

  it("classify by the nearest text, whatever its length", function()
    local texts = pg.tensor { { 10, 0 }, { 0, 0.1 } }
    assert.are.equal(1, metrics.zero_shot(pg.tensor { { 1, 0.5 }, { 0.4, 2 } }, texts, int32 { 1, 2 }))
    assert.are.equal(0.5, metrics.zero_shot(pg.tensor { { 1, 0.5 }, { 0.4, 2 } }, texts, int32 { 1, 1 }))
    assert.has_error(function() metrics.zero_shot(pg.randn(2, 3), texts, int32 { 1, 2 }) end,
      "zero_shot: features of width 3 for class embeddings of width 2")
  end)

  it("average the change of the other tasks alone", function()
    local mean, each = metrics.delta_lp({ a = 0.5, b = 0.6, c = 0.7 }, { a = 0.9, b = 0.5, c = 0.75 }, "a")
    assert.is_true(math.abs(mean + 0.025) < 1e-12)
    assert.is_nil(each.a)
    assert.has_error(function() metrics.delta_lp({ a = 1 }, { a = 1 }, "a") end, "delta_lp: there is no task beside 'a'")
  end)
end)
