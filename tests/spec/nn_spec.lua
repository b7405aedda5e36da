-- nn_spec.lua - layers, the vision transformer, optimisers: values against their statement, gradients, names, errors.

local pg = require "perigee"
local nn, optim = pg.nn, pg.optim

local function near(a, b, tolerance) return (a - b):abs():max():item() < (tolerance or 1e-5) end
local function message(fn, ...) return tostring(select(2, pcall(fn, ...))) end

describe("nn", function()
  before_each(function() pg.seed(1) end)

  it("names parameters in order of registration, and shares one that stands twice", function()
    local net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, { bias = false }))
    local names = {}
    for name in net:named_parameters() do names[#names + 1] = name end
    assert.are.same({ "1.weight", "1.bias", "2.weight", "2.bias", "3.weight" }, names)
    assert.are.equal(3 * 4 + 4 + 4 + 4 + 8, net:count())
    local twin = nn.Sequential(net[1], net[1])
    assert.are.equal(2, #twin:parameters())
  end)

  it("loads what it saved, and lists what is missing, extra and mis-shaped", function()
    local a, b = nn.MLP(4, 8), nn.MLP(4, 8)
    b:load_state_dict(a:state_dict())
    local x = pg.randn(2, 4)
    assert.is_true(near(a(x), b(x), 1e-12))
    local dict = a:state_dict()
    dict["fc1.bias"], dict["fc3.bias"], dict["fc2.bias"] = nil, pg.zeros(1), pg.zeros(3)
    local text = message(b.load_state_dict, b, dict)
    assert.matches("missing: fc1.bias", text, 1, true)
    assert.matches("extra: fc3.bias", text, 1, true)
    assert.matches("fc2.bias is (3), the module's (4)", text, 1, true)
  end)

  it("train and eval reach the children: dropout acts only in training", function()
    local net, x = nn.Sequential(nn.Sequential(nn.Dropout(0.5))), pg.ones(1000)
    assert.is_true(net(x):min():item() == 0)
    assert.is_true(near(net:eval()(x), x, 1e-12))
    assert.is_false(net[1][1].training)
  end)

  it("Conv2d equals its sum, with stride and padding, and its gradient is right", function()
    local conv = nn.Conv2d(2, 3, 3, { stride = 2, padding = 1 }):to("float64")
    local x = pg.randn(2, 2, 5, 6):to("float64")
    local y, w = conv(x), conv.weight:totable()
    assert.are.same({ 2, 3, 3, 3 }, y:shape())
    local image = x:totable()
    for _, at in ipairs { { 1, 1, 1, 1 }, { 2, 3, 2, 3 }, { 1, 2, 3, 2 } } do
      local sum = conv.bias:get(at[2])
      for c = 1, 2 do
        for i = 1, 3 do
          for j = 1, 3 do
            local row = image[at[1]][c][(at[3] - 1) * 2 - 1 + i]
            sum = sum + w[at[2]][c][i][j] * (row and row[(at[4] - 1) * 2 - 1 + j] or 0)
          end
        end
      end
      assert.is_true(math.abs(sum - y:get(unpack(at))) < 1e-12)
    end
    pg.gradcheck(function(t) return (conv(t) * conv(t)):sum() end, { x })
  end)

  it("Attention equals softmax(q k^T / sqrt(d)) v", function()
    local layer, x = nn.Attention(8, 2), pg.randn(2, 5, 8)
    local heads = layer.qkv(x):reshape(2, 5, 3, 2, 4):permute(3, 1, 4, 2, 5)
    local q, k, v = heads:select(1, 1), heads:select(1, 2), heads:select(1, 3)
    local plain = (q:matmul(k:transpose(3, 4)) * 0.5):softmax(-1):matmul(v)
    assert.is_true(near(layer(x), layer.proj(plain:transpose(2, 3):reshape(2, 5, 8))))
  end)

  it("Attention for one token is a row of Attention for all, gradients too", function()
    for _, causal in ipairs { false, true } do
      local layer = nn.Attention(8, 2, { causal = causal }):to "float64"
      local x, before = pg.randn(3, 5, 8):to "float64", pg.randn(3, 2, 8):to "float64"
      for _, prefix in ipairs { {}, { before, before * 2 } } do
        prefix = prefix[1] and prefix
        for _, at in ipairs { 1, 4, pg.tensor({ 2, 5, 1 }, { dtype = "int32" }) } do
          local function gradients(y)
            local leaves, list = layer:parameters(), {}
            layer:zero_grad()
            y:pow(3):sum():backward()
            for i, p in ipairs(leaves) do list[i] = p.grad end
            return list
          end
          local all, one = nn.token(layer(x, nil, prefix), at), layer(x, nil, prefix, at)
          assert.are.same({ 3, 1, 8 }, one:shape())
          assert.is_true(near(all, one, 1e-12))
          local expected = gradients(all)
          for i, grad in ipairs(gradients(one)) do assert.is_true(near(expected[i], grad, 1e-10)) end
        end
      end
    end
    assert.matches("takes a mask or a single token", message(nn.Attention(8, 2), pg.randn(1, 2, 8), pg.zeros(2, 2), nil, 1),
      1, true)
  end)

  it("Embedding takes positions of any shape", function()
    local table_, ids = nn.Embedding(5, 3), pg.tensor({ { 1, 5 }, { 2, 2 } }, { dtype = "int32" })
    local y = table_(ids)
    assert.are.same({ 2, 2, 3 }, y:shape())
    assert.is_true(near(y:select(1, 1):select(1, 2), table_.weight:select(1, 5), 1e-12))
  end)

  it("wrong use is one clear line", function()
    assert.matches("does not divide by 3 heads", message(nn.Attention, 8, 3), 1, true)
    assert.matches("did you mean 'bias'", message(nn.Linear, 2, 2, { bais = false }), 1, true)
    assert.matches("there is no activation 'glue'", message(nn.MLP, 2, 2, { act = "glue" }), 1, true)
    assert.matches("needs images (B, 2, H, W), got (2, 3)", message(nn.Conv2d(2, 1, 3), pg.zeros(2, 3)), 1, true)
  end)
end)

describe("models", function()
  local small = { image = 8, patch = 4, width = 16, depth = 2, heads = 2 }

  it("vit gives a feature and the token maps asked for, and every parameter gets a gradient", function()
    pg.seed(2)
    local model, images = pg.models.vit(small), pg.randn(3, 3, 8, 8)
    local feature, maps = model:forward_features(images, { 0, 2 })
    assert.are.same({ 3, 16 }, feature:shape())
    assert.are.equal(2, #maps)
    assert.are.same({ 3, 5, 16 }, maps[1]:shape())
    assert.is_true(near(model.norm(maps[2]:select(2, 1)), feature))
    assert.is_true(near(model(images), feature, 1e-12))
    pg.models.head(16, 4)(feature):sum():backward()
    for name, p in model:named_parameters() do assert.is_truthy(p.grad, name) end
  end)

  it("a vit's last block works for the class token alone, unless its tokens are asked for", function()
    local model, images = pg.models.vit(small):to "float64", pg.randn(3, 3, 8, 8):to "float64"
    local function run(depths)
      model:zero_grad()
      local linear, rows = pg.linear, 0
      pg.linear = function(x, ...) rows = rows + x:numel() / x:size(-1) return linear(x, ...) end
      local feature = model:forward_features(images, depths)
      pg.linear = linear
      feature:pow(3):sum():backward()
      local grads = {}
      for name, p in model:named_parameters() do grads[name] = p.grad end
      return feature, grads, rows
    end
    local all, expected, most = run { 2 }
    local one, found, least = run()
    assert.is_true(near(all, one, 1e-12))
    for name, grad in pairs(expected) do assert.is_true(near(grad, found[name], 1e-10), name) end
    -- four layers of the last block for 3 tokens in place of 15, its packed projection for either
    assert.are.equal(most - 3 * 12 + 3, least)
  end)

  it("the gradient of a whole vit is right, with either activation", function()
    for _, act in ipairs { "gelu", "quick_gelu" } do
      pg.seed(5)
      local tiny = { image = 4, patch = 2, width = 4, depth = 1, heads = 2, channels = 1, act = act }
      local model = pg.models.vit(tiny):to("float64")
      pg.gradcheck(function(x) return (model(x) ^ 3):sum() end, { pg.randn(2, 1, 4, 4):to("float64") })
    end
  end)

  it("wrong sizes and depths are one clear line", function()
    local model = pg.models.vit(small)
    assert.matches("takes images (B, 3, 8, 8), got (2, 3, 4, 4)", message(model, pg.zeros(2, 3, 4, 4)), 1, true)
    assert.matches("depth 3 does not exist", message(model.forward_features, model, pg.zeros(1, 3, 8, 8), { 3 }), 1, true)
    assert.matches("patches of 3 do not tile images of 8", message(pg.models.vit, { image = 8, patch = 3 }), 1, true)
    assert.matches("width must be a whole number", message(pg.models.vit, { width = 1.5 }), 1, true)
  end)

  it("a saved model comes back with its card", function()
    local path, model, x = os.tmpname(), pg.models.vit(small), pg.randn(2, 3, 8, 8)
    pg.models.save(path, model, { note = "small" })
    local back, card = pg.models.load(path)
    os.remove(path)
    assert.is_true(near(model(x), back(x), 1e-12))
    assert.are.equal("small", card.note)
  end)

  it("a head learns, under AdamW and under SGD", function()
    for _, make in ipairs { optim.AdamW, optim.SGD } do
      pg.seed(3)
      local head, x = pg.models.head(8, 3), pg.randn(30, 8)
      local labels = x:narrow(2, 1, 3):argmax(2)
      local opt, first, last = make(head:parameters(), { lr = make == optim.SGD and 1 or 0.05, weight_decay = 0 }), nil, nil
      for _ = 1, 40 do
        opt:zero_grad()
        local loss = pg.cross_entropy(head(x), labels)
        loss:backward()
        opt:step()
        first, last = first or loss:item(), loss:item()
      end
      assert.is_true(last < 0.6 * first)
    end
  end)
end)

describe("optim", function()
  local function parameter(values) return pg.tensor(values, { dtype = "float64" }):requires_grad_(true) end

  it("AdamW follows the formula", function()
    local p, lr, wd, b1, b2, eps = parameter { 1, -2 }, 0.1, 0.5, 0.9, 0.99, 1e-8
    local opt = optim.AdamW({ p }, { lr = lr, betas = { b1, b2 }, eps = eps, weight_decay = wd })
    local want, m, v = { 1, -2 }, { 0, 0 }, { 0, 0 }
    for t = 1, 3 do
      opt:zero_grad();
      (p * p * p):sum():backward()
      for i = 1, 2 do
        local g = 3 * want[i] ^ 2
        m[i], v[i] = b1 * m[i] + (1 - b1) * g, b2 * v[i] + (1 - b2) * g * g
        want[i] = want[i] * (1 - lr * wd) - lr / (1 - b1 ^ t) * m[i] / (math.sqrt(v[i] / (1 - b2 ^ t)) + eps)
      end
      opt:step()
    end
    assert.is_true(near(p:detach(), pg.tensor(want, { dtype = "float64" }), 1e-12))
  end)

  it("SGD with momentum follows the formula; a parameter without a gradient stays", function()
    local p, idle = parameter { 2 }, parameter { 7 }
    local opt, want, u = optim.SGD({ p, idle }, { lr = 0.1, momentum = 0.9, weight_decay = 0.2 }), 2, nil
    for _ = 1, 3 do
      opt:zero_grad();
      (p * p):sum():backward()
      local g = 2 * want + 0.2 * want
      u = u and 0.9 * u + g or g
      want = want - 0.1 * u
      opt:step()
    end
    assert.is_true(math.abs(p:item() - want) < 1e-12)
    assert.are.equal(7, idle:item())
  end)

  it("a restored state continues to the same bits, and groups keep their ratio under a schedule", function()
    local function run(stop)
      pg.seed(4)
      local a, b = parameter { 1, 2 }, parameter { 3 }
      local groups = { { params = { a }, lr = 0.2 }, { params = { b }, weight_decay = 0 } }
      local opt, rate = optim.AdamW(groups, { lr = 0.1 }), optim.cosine { base = 0.1, steps = 6, warmup = 2 }
      for step = 1, 6 do
        if step == stop then
          local state = opt:state()
          for name, t in pairs(state.tensors) do state.tensors[name] = t:clone() end
          opt = optim.AdamW(groups, { lr = 0.1 })
          opt:restore(state)
        end
        opt.lr = rate(step)
        opt:zero_grad();
        ((a * a):sum() * b):sum():backward()
        opt:step()
      end
      return { a:detach():totable(), b:item() }
    end
    assert.are.same(run(), run(4))
  end)

  it("clip_grad_norm returns the norm and scales to the limit", function()
    local p = parameter { 3, 4 };
    (p * p):sum():backward()
    assert.is_true(math.abs(optim.clip_grad_norm({ p }, 1) - 10) < 1e-12)
    assert.is_true(math.abs(p.grad:norm():item() - 1) < 1e-6)
  end)

  it("the cosine schedule warms up, peaks and falls", function()
    local rate = optim.cosine { base = 2, steps = 10, warmup = 4 }
    assert.are.equal(0.5, rate(1))
    assert.are.equal(2, rate(5))
    assert.is_true(rate(10) > 0 and rate(10) < rate(9))
    assert.are.equal(3, optim.constant(3)(100))
  end)
end)
