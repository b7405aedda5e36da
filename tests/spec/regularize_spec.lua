-- regularize_spec.lua - each regulariser against its formula stated independently (by PyTorch, or in plain ops here), what
-- a batch may bring, what is refused, and that a method is a file and nothing else.

local pg = require "perigee"
local lfs = require "lfs"

local function load(case, name) return pg.npy.load(("tests/fixtures/fda/%s.%s.npy"):format(case, name)) end

local close = require("expect").closer(1e-10)

local fails = require("expect").fails

local function small() return pg.models.vit { image = 8, patch = 4, width = 16, depth = 3, heads = 2 } end

-- What a recipe hands over: the tuned model's features and maps for some images.
local function batch_of(model, images, depths)
  local features, tokens = model:forward_features(images, depths)
  return { model = model, images = images, features = features, tokens = tokens }
end

-- A pre-trained model that is nothing but its parameters or its depth.
local function stub(parameters, depth)
  return { parameters = function() return parameters end, depth = depth, width = 6 }
end

describe("against PyTorch", function()
  it("l2sp", function()
    local now = load("l2sp", "now"):requires_grad_(true)
    local method = pg.regularize.l2sp(stub { load("l2sp", "start") })
    local loss = method.loss { model = stub { now } }
    loss:backward()
    close(load("l2sp", "out"), loss, "l2sp")
    close(load("l2sp", "d_now"), now.grad, "d_now")
  end)

  for _, axis in ipairs { "token", "channel" } do
    it("ldifs along the " .. axis .. " axis", function()
      local after = { load("ldifs", "after1"):requires_grad_(true), load("ldifs", "after2"):requires_grad_(true) }
      local method = pg.regularize.ldifs(stub({}, 1), { norm_axis = axis, depths = { 0, 1 } })
      local loss = method.loss { tokens = after, before = { load("ldifs", "before1"), load("ldifs", "before2") } }
      loss:backward()
      -- theirs divides by norm + 1e-10, normalize by max(norm, 1e-10)
      close(load("ldifs_" .. axis, "out"), loss, "ldifs", 1e-9)
      for i = 1, 2 do close(load("ldifs_" .. axis, "d_after" .. i), after[i].grad, "d_after", 1e-9) end
    end)
  end

  it("lwf", function()
    local new = load("lwf", "new"):requires_grad_(true)
    local method = pg.regularize.lwf(stub {})
    local loss = method.loss { features = new, old_logits = load("lwf", "old"), old_head = function(x) return x end }
    loss:backward()
    close(load("lwf", "out"), loss, "lwf")
    close(load("lwf", "d_new"), new.grad, "d_new")
  end)

  it("fda and proxy_fda, whose generator then moves", function()
    local before, x = load("proxy", "before"), load("proxy", "x"):requires_grad_(true)
    local tau, first = load("proxy", "tau"):item(), pg.zeros(1, { dtype = "float64" })
    local batch = { features = x, before = before }
    local options = { weight = 1, k = 4, tau = tau }
    local loss = pg.regularize.fda(stub { first }, options).loss(batch)
    close(pg.fda.reference_loss(x, pg.fda.graph(before, { k = 4 }), { tau = tau }), loss, "fda")
    options.width, options.batch = 5, 12
    for case, extra in pairs { proxy_fda = {}, proxy_fda_through = { through_pool = true },
      proxy_fda_cosine = { weights = "cosine" } } do
      for key, value in pairs(options) do extra[key] = value end
      local method = pg.regularize.proxy_fda(stub { first }, extra)
      pg.no_grad(function()
        for name, t in pairs(method.generator:state_dict()) do t:copy_(load("proxy", name)) end
      end)
      x.grad = nil
      loss = method.loss(batch)
      loss:backward()
      close(load(case, "out"), loss, case)
      close(load(case, "d_x"), x.grad, "d_x")
      method.step()
      local moved = method.generator.conv2:detach() - load("proxy", "conv2")
      assert.is_true(moved:abs():max():item() > 5e-4)
    end
  end)
end)

describe("lwf", function()
  before_each(function() pg.seed(4) end)

  it("distils a copy of the head that was taken before the first step", function()
    local pretrained, model, head = small():requires_grad_(false), small(), pg.models.head(16, 5)
    local batch = batch_of(model, pg.randn(6, 3, 8, 8))
    local old = pg.no_grad(function() return head(pretrained(batch.images)) end)
    for _, options in ipairs { { head = head, weight = 0.7, temperature = 3 }, { weight = 0.7, temperature = 3 } } do
      if not options.head then batch.old_head = head end
      local method = pg.regularize.lwf(pretrained, options)
      method.loss(batch)
      pg.no_grad(function() head.linear.weight:copy_(head.linear.weight * 1.5) end) -- the head trains on
      local p, q = (head(batch.features) * (1 / 3)):exp(), (old * (1 / 3)):exp()
      p, q = p / p:sum(2, true), q / q:sum(2, true)
      close((q * p:log()):sum(2):mean() * -0.7, method.loss(batch), "lwf", 1e-5)
      pg.no_grad(function() head.linear.weight:copy_(head.linear.weight * (1 / 1.5)) end)
    end
  end)

  it("needs a head", function()
    local model = small()
    fails("options.head, or batch.old_head", pg.regularize.lwf(model).loss, batch_of(model, pg.randn(2, 3, 8, 8)))
  end)
end)

describe("ewc", function()
  before_each(function() pg.seed(6) end)

  -- A linear model: d log p(y | x) / dW = (onehot(y) - p) x^T, without a bias.
  local function linear(inputs, outputs)
    local net = pg.nn.Linear(inputs, outputs, { bias = false })
    return net:to "float64"
  end
  local identity = pg.nn.class "Identity"
  function identity.forward(_, x) return x end

  local function by_hand(net, x, labels, scaled)
    local p = pg.no_grad(function() return net(x):softmax(2) end):totable()
    local rows, w = x:totable(), {}
    for c = 1, #p[1] do
      w[c] = {}
      for d = 1, #rows[1] do
        local sum = 0
        for i, row in ipairs(rows) do
          local g = ((labels[i] == c and 1 or 0) - p[i][c]) * row[d]
          sum = sum + g * g * (scaled and p[i][labels[i]] or 1)
        end
        w[c][d] = sum / #rows
      end
    end
    return pg.tensor(w, { dtype = "float64" })
  end

  it("weighs with the mean squared gradient of each image's log-likelihood", function()
    local net, x, labels = linear(4, 3), pg.randn(7, 4):to "float64", { 1, 2, 3, 1, 2, 3, 1 }
    local y = pg.tensor(labels, { dtype = "int32" })
    local data = { { x:narrow(1, 1, 4), y:narrow(1, 1, 4) }, { images = x:narrow(1, 5, 3), labels = y:narrow(1, 5, 3) } }
    net:requires_grad_(false)
    for _, factor in ipairs { "none", "probability" } do
      local method = pg.regularize.ewc(net, { weight = 6, data = data, head = identity(), labels = "true", factor = factor })
      local expected = by_hand(net, x, labels, factor == "probability")
      close(expected, method.fisher[1], "F")
      local tuned = linear(4, 3)
      local loss = method.loss { model = tuned }
      loss:backward()
      local moved = tuned.weight:detach() - net.weight
      close((expected * moved * moved):sum() * 3, loss, "ewc")
      close(expected * moved * 6, tuned.weight.grad, "gradient")
    end
    assert.is_false(net.weight:requires_grad())
    assert.is_nil(net.weight.grad)
    local five = pg.regularize.ewc(net, { data = data, head = identity(), labels = "true", samples = 5 })
    close(by_hand(net, x:narrow(1, 1, 5), labels), five.fisher[1], "F of five images")
  end)

  it("with sampled labels goes towards the Fisher information, and stops at `samples`", function()
    local net, x = linear(2, 2), pg.tensor({ { 1, -0.5 } }, { dtype = "float64" })
    local asked = 0
    local method = pg.regularize.ewc(net, { head = identity(), samples = 3000, data = function()
      asked = asked + 1
      return x:expand(500, 2):contiguous()
    end })
    assert.are.equal(6, asked)
    local p = net(x:expand(1, 2)):softmax(2):totable()[1]
    local one, two = by_hand(net, x, { 1 }), by_hand(net, x, { 2 })
    local expected = one * p[1] + two * p[2] -- the expectation over labels from the prediction
    assert.is_true((method.fisher[1] - expected):abs():max():item() < 0.02)
  end)

  it("says what it lacks", function()
    local net = linear(2, 2)
    fails("ewc: the option 'data' is missing", pg.regularize.ewc, net, { head = identity() })
    fails("ewc: the option 'head' is missing", pg.regularize.ewc, net, { data = {} })
    fails("ewc: the data has no images", pg.regularize.ewc, net, { data = {}, head = identity() })
    fails("brings none", pg.regularize.ewc, net,
      { data = { { pg.randn(2, 2):to "float64" } }, head = identity(), labels = "true" })
    assert.is_true(net.weight:requires_grad()) -- even when it failed half way
  end)
end)

describe("regularisers", function()
  before_each(function() pg.seed(5) end)

  it("proxy_fda with a ratio of 0 is FDA bit for bit, gradient included", function()
    local pretrained, images, grads, losses = small():requires_grad_(false), pg.randn(12, 3, 8, 8), {}, {}
    local model = small()
    for i, name in ipairs { "fda", "proxy_fda" } do
      model:zero_grad()
      local method = pg.regularize.new(name, pretrained, { k = 3, ratio = name == "proxy_fda" and 0 or nil })
      assert.is_nil(method.generator)
      local loss = method.loss(batch_of(model, images, method.depths))
      loss:backward()
      losses[i], grads[i] = loss:item(), model.patch.weight.grad:totable()
    end
    assert.are.equal(losses[1], losses[2])
    assert.are.same(grads[1], grads[2])
  end)

  it("fda at depths is the mean over them of FDA on the class or the mean token", function()
    local pretrained, model, images = small():requires_grad_(false), small(), pg.randn(10, 3, 8, 8)
    for _, token in ipairs { "class", "mean" } do
      local method = pg.regularize.fda(pretrained, { k = 3, weight = 2, depths = "1,3", token = token })
      assert.are.same({ 1, 3 }, method.depths)
      local batch = batch_of(model, images, method.depths)
      local _, before = pg.no_grad(function() return pretrained:forward_features(images, { 1, 3 }) end)
      local total = 0
      for i = 1, 2 do
        local function of(map) return token == "class" and map:narrow(2, 1, 1):reshape(10, 16) or map:sum(2) * (1 / 5) end
        total = total + pg.fda.reference_loss(of(batch.tokens[i]), pg.fda.graph(of(before[i]), { k = 3 })):item()
      end
      assert.is_true(math.abs(method.loss(batch):item() - total) < 1e-5)
    end
    assert.are.same({ 1, 2, 3 }, pg.regularize.fda(pretrained, { depths = "all" }).depths)
    assert.is_nil(pg.regularize.fda(pretrained).depths)
    fails("depth 0 does not exist here: they run from 1 to 3", pg.regularize.fda, pretrained, { depths = { 0 } })
    fails("depth x does not exist", pg.regularize.ldifs, pretrained, { depths = "x" })
  end)

  it("features that a batch brings save the pass of the pre-trained model and change nothing", function()
    local pretrained, model, images = small():requires_grad_(false), small(), pg.randn(10, 3, 8, 8)
    local options = { fda = { k = 3 }, ldifs = {}, lwf = { head = pg.models.head(16, 4) } }
    options.deep = { k = 3, depths = { 1, 2 } }
    for _, name in ipairs { "fda", "ldifs", "lwf", "deep" } do
      local method = pg.regularize.new(name == "deep" and "fda" or name, pretrained, options[name])
      local batch = batch_of(model, images, method.depths)
      local expected = method.loss(batch):item()
      local before, maps = pg.no_grad(function() return pretrained:forward_features(images, method.depths) end)
      batch.images, batch.before = nil, method.depths and maps or before
      assert.are.equal(expected, method.loss(batch):item(), name)
      batch.before = nil
      fails("batch.images is missing", method.loss, batch)
    end
  end)

  it("a batch without what a method needs is one line, never a raw error", function()
    local pretrained, images = small():requires_grad_(false), pg.randn(10, 3, 8, 8)
    local batch = batch_of(pretrained, images, { 0 })
    local ldifs = pg.regularize.ldifs(pretrained)
    fails("batch.tokens holds 1 maps, the depths are {0, 1, 2, 3}", ldifs.loss, batch)
    batch.tokens = nil
    fails("ldifs: batch.tokens is missing", ldifs.loss, batch)
    fails("fda: batch.tokens is missing", pg.regularize.fda(pretrained, { depths = "all" }).loss, batch)
    fails("l2sp: batch.model is missing", pg.regularize.l2sp(pretrained).loss, {})
    fails("batch.model has 1 parameters", pg.regularize.l2sp(pretrained).loss, { model = stub { pg.ones(1) } })
    fails("fda: batch.features is missing", pg.regularize.fda(pretrained).loss, {})
    fails("k = 10, but an anchor has 9 others", pg.regularize.fda(pretrained, { k = 10 }).loss, batch)
    batch.before = pg.randn(10, 4)
    fails("batch.before is (10, 4), the current model's (10, 16)", pg.regularize.fda(pretrained, { k = 3 }).loss, batch)
    fails("loss takes a batch", ldifs.loss, 3)
  end)

  it("learnt tau and b have an optimiser of their own, and a restored one goes on to the same bits", function()
    local pretrained, model, images = small():requires_grad_(false), small(), pg.randn(12, 3, 8, 8)
    for name, options in pairs { fda = { k = 3, learnable = true, scale_lr = 0.1 },
      proxy_fda = { k = 3, batch = 12, learnable = true, scale_lr = 0.1, depths = { 1, 3 }, token = "mean" } } do
      local function step(method)
        local loss = method.loss(batch_of(model, images, method.depths))
        loss:backward()
        method.step()
        return loss:item()
      end
      local method = pg.regularize.new(name, pretrained, options)
      local first = step(method)
      local state = method:state()
      local saved = { tensors = {}, scalars = state.scalars }
      for key, t in pairs(state.tensors) do saved.tensors[key] = t:clone() end
      local second, third = step(method), step(method)
      assert.is_true(second < first, name)
      local other = pg.regularize.new(name, pretrained, options)
      other:restore(saved)
      assert.are.same({ second, third }, { step(other), step(other) })
      for key in pairs(state.tensors) do
        assert.is_truthy(({ scale = true, generator = true, optimizer = true })[key:match "^(%a+)%."])
      end
    end
  end)

  it("options are declared: shown, checked, and what is wrong names what would be right", function()
    local model, new = small(), pg.regularize.new
    for _, name in ipairs(pg.regularize.names()) do
      local help, source = pg.regularize.help(name)
      assert.is_true(#help > 10 and not help:find "\n" and #source > 10, name)
      for _, option in ipairs(pg.regularize.options(name)) do
        assert.is_true(option[1]:match "^[%a_]+$" ~= nil and #option.help > 3, name)
        assert.is_true(option[2] ~= nil or option.object ~= nil, name .. " " .. option[1])
      end
    end
    pg.regularize.options("fda")[1].min = -5 -- a copy
    fails("fda: weight = -1, but it must be a number, 0 or more", new, "fda", model, { weight = -1 })
    fails("weight = nan", new, "l2sp", model, { weight = 0 / 0 })
    fails("weight = inf", new, "ldifs", model, { weight = 1 / 0 })
    fails("k = 2.5, but it must be a whole number, 1 or more", new, "fda", model, { k = 2.5 })
    fails("norm_axis = row, but it must be one of token, channel", new, "ldifs", model, { norm_axis = "row" })
    fails("clamp = 1, but it must be true or false", new, "fda", model, { clamp = 1 })
    fails("bias = big, but it must be \"auto\" or a number", new, "fda", model, { bias = "big" })
    fails("ratio = 2, but it must be a number", new, "proxy_fda", model, { ratio = 2 })
    fails("unknown option 'wieght' (did you mean 'weight'?)", new, "fda", model, { wieght = 1 })
    fails("no method 'fdda' (did you mean 'fda'?)", new, "fdda", model)
    fails("no method '../fda'", new, "../fda", model)
    fails("fda needs the pre-trained model, got nil", new, "fda")
    assert.are.equal(8, new("fda", model, { bias = "8" }).settings.bias) -- as a recipe's text comes
  end)

  it("a method is a file on package.path and nothing else", function()
    local folder, path = os.tmpname(), package.path
    os.remove(folder)
    for _, part in ipairs { "", "/perigee", "/perigee/regularize" } do lfs.mkdir(folder .. part) end
    local file = assert(io.open(folder .. "/perigee/regularize/half.lua", "w"))
    file:write [[return { help = "half the features' sum", source = "this test", options = { { "weight", 0.5, help = "w" } },
      new = function(_, o) return { loss = function(batch) return batch.features:sum() * o.weight end } end }]]
    file:close()
    package.path = folder .. "/?.lua;" .. path
    local ok, why = pcall(function()
      local names = pg.regularize.names()
      assert.are.same({ "ewc", "fda", "half", "l2sp", "ldifs", "lwf", "naive", "proxy_fda" }, names)
      assert.are.equal(6, pg.regularize.half(small()).loss { features = pg.ones(3, 4) }:item())
    end)
    package.path, package.loaded["perigee.regularize.half"] = path, nil
    os.execute("rm -r " .. folder)
    assert.is_true(ok, tostring(why))
    assert.is_nil(pg.regularize.half)
  end)
end)
