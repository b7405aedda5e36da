-- fixtures_spec.lua - ops, values and gradients, against what PyTorch, Pillow and faiss computed. tests/fixtures/make_ops.py
-- made the files, and states each formula once more, independently of this package.

local pg = require "perigee"

local FOLDER = "tests/fixtures/ops/"

local function load(case, name) return pg.npy.load(("%s%s.%s.npy"):format(FOLDER, case, name)) end

local function leaf(case, name) return load(case, name):requires_grad_(true) end

-- The greatest difference, relative where values exceed 1.
local function close(expected, got, what, tolerance)
  assert.are.same(expected:shape(), got:shape(), what)
  local scale = math.max(1, expected:abs():max():item())
  local worst = (expected - got:detach()):abs():max():item() / scale
  assert.is_true(worst < (tolerance or 1e-10), ("%s is off by %g"):format(what, worst))
end

-- fn's value at the case's inputs, then the gradient of sum(fn * seed) at each of them.
local function check(case, names, fn)
  local inputs = {}
  for i, name in ipairs(names) do inputs[i] = leaf(case, name) end
  local out = fn(unpack(inputs))
  close(load(case, "out"), out, case)
  local scored = out * load(case, "seed")
  if scored:dim() > 0 then scored = scored:sum() end
  scored:backward()
  for i, name in ipairs(names) do close(load(case, "d_" .. name), inputs[i].grad, case .. " d_" .. name) end
end

-- Files count positions from 0.
local function places(case, name) return load(case, name) + 1 end

-- Files count labels from 0.
local function labels(case)
  local list = load(case, "labels"):totable()
  for i, label in ipairs(list) do list[i] = label + 1 end
  return pg.tensor(list, { dtype = "int32" })
end

describe("against PyTorch", function()
  it("the graph of pre-trained features", function()
    close(load("fda", "weights"), pg.fda.graph(load("fda", "before"), { k = 3 }).weights, "weights")
  end)

  it("fda_loss", function()
    check("fda", { "x" }, function(x)
      return pg.fda_loss(x, load("fda", "weights"), nil, nil, { tau = 0.1, bias_value = 4 })
    end)
  end)

  it("attention, causal and masked", function()
    check("attention_causal", { "q", "k", "v" }, function(q, k, v)
      return pg.attention(q, k, v, { causal = true })
    end)
    check("attention_mask", { "q", "k", "v" }, function(q, k, v)
      return pg.attention(q, k, v, load("attention_mask", "mask"))
    end)
  end)

  it("layer_norm", function()
    check("layer_norm", { "x", "weight", "bias" }, function(x, w, b) return pg.layer_norm(x, w, b, { eps = 1e-5 }) end)
  end)

  it("Conv2d with stride and padding", function()
    check("conv2d", { "x", "weight", "bias" }, function(x, weight, bias)
      local conv = pg.nn.Conv2d(3, 4, 3, { stride = 2, padding = 1 })
      conv.weight, conv.bias = weight, bias
      return conv(x)
    end)
  end)

  it("conv2d with stride, padding, dilation and groups", function()
    check("conv2d_groups", { "x", "weight", "bias" }, function(x, weight, bias)
      return pg.conv2d(x, weight, bias, { stride = { 2, 1 }, padding = { 1, 2 }, dilation = { 1, 2 }, groups = 2 })
    end)
  end)

  it("cross_entropy, plain and smoothed", function()
    check("cross_entropy", { "logits" }, function(x) return pg.cross_entropy(x, labels "cross_entropy") end)
    check("cross_entropy_smoothed", { "logits" }, function(x)
      return pg.cross_entropy(x, labels "cross_entropy_smoothed", { label_smoothing = 0.2 })
    end)
  end)

  it("gelu", function() check("gelu", { "x" }, function(x) return x:gelu() end) end)

  it("softmax, log_softmax and normalize along a dimension", function()
    check("softmax", { "x" }, function(x) return x:softmax(2) end)
    check("log_softmax", { "x" }, function(x) return x:log_softmax(-1) end)
    check("normalize", { "x" }, function(x) return x:normalize(2) end)
  end)

  it("mean, var, logsumexp, max, min and sum over two dimensions", function()
    check("reductions", { "x" }, function(x)
      local over = { 1, 3 }
      return pg.stack { x:mean(over), x:var(over), x:var(over, { unbiased = false }), x:logsumexp(over), x:max(over),
        x:min(over), x:sum(over) }
    end)
  end)

  it("norms of five orders", function()
    check("norms", { "x" }, function(x)
      local rows = {}
      for i, p in ipairs { 0.5, 1, 2, 3.5, math.huge } do rows[i] = x:norm(2, { p = p }) end
      return pg.stack(rows)
    end)
  end)

  it("functions of one element", function()
    check("activations", { "x" }, function(x)
      return pg.stack { x:silu(), x:quick_gelu(), x:softplus(), x:tanh(), x:sigmoid(), x:relu(), x:clamp(-0.5, 0.8),
        x:abs():rsqrt(), (x * x):log(), x:abs() ^ 1.5 }
    end)
  end)

  it("functions of two, broadcast", function()
    check("elementwise", { "a", "b" }, function(a, b)
      return pg.stack { a + b, a - b, a * b, a / b, a ^ b, a:maximum(b), a:minimum(b) }
    end)
    check("where", { "a", "b" }, function(a, b) return load("where", "cond"):where(a, b) end)
  end)

  it("linear, matmul and pad", function()
    check("linear", { "input", "weight", "bias" }, function(x, w, b) return pg.linear(x, w, b) end)
    check("matmul", { "a", "b" }, function(a, b) return a:matmul(b) end)
    check("pad", { "x" }, function(x) return x:pad({ 1, 1, 0, 1, 2, 0 }, { value = -2.5 }) end)
  end)

  it("scatter_add, gather, index and embedding", function()
    check("scatter_add", { "x", "src" }, function(x, src)
      return x:scatter_add(2, places("scatter_add", "index"), src)
    end)
    check("gather", { "x" }, function(x) return x:gather(2, places("gather", "index")) end)
    check("index", { "x" }, function(x) return x:index(2, places("index", "index")) end)
    check("embedding", { "weight" }, function(w) return pg.embedding(w, places("embedding", "index")) end)
  end)

  it("topk, both ways, and sort", function()
    for _, word in ipairs { "largest", "smallest" } do
      check("topk_" .. word, { "x" }, function(x)
        local values, index = x:topk(3, 2, word == "largest")
        assert.are.same(places("topk", "index_" .. word):totable(), index:totable())
        return values
      end)
    end
    check("sort", { "x" }, function(x) return (x:sort(1, true)) end)
  end)

  it("five steps of AdamW", function()
    local p, grads = leaf("adamw", "start"), load("adamw", "grads")
    local opt = pg.optim.AdamW({ p }, { lr = 0.03, betas = { 0.8, 0.95 }, eps = 1e-7, weight_decay = 0.1 })
    for step = 1, 5 do
      p.grad = grads:select(1, step):contiguous()
      opt:step()
    end
    close(load("adamw", "out"), p, "adamw")
  end)
end)

describe("against faiss", function()
  for _, metric in ipairs { "l2", "ip", "cosine" } do
    it("knn by " .. metric, function()
      local values, index = pg.knn(load("knn", "queries"), load("knn", "database"), { k = 6, metric = metric })
      assert.are.same(places("knn", metric .. "_index"):totable(), index:totable())
      close(load("knn", metric .. "_values"), values, metric, 1e-5)
    end)
  end
end)

-- image.resize sums float weights where Pillow has integers of 22 bits, so a sum beside a half may round the other way.
local STEP = 0

describe("against Pillow", function()
  for _, method in ipairs { "bicubic", "bilinear" } do
    for _, size in ipairs { { 6, 9 }, { 29, 40 }, { 7, 31 } } do
      local height, width = unpack(size)
      local function difference(got)
        local expected = load("resize", ("%s_%dx%d"):format(method, height, width))
        assert.are.same(expected:shape(), got:shape())
        return (expected:to "float32" - got:to "float32"):abs():max():item()
      end
      it(("image.resize %s to %d x %d"):format(method, height, width), function()
        assert.is_true(difference(pg.image.resize(load("resize", "image"), height, width, method)) <= STEP)
      end)
      it(("op resize %s to %d x %d, every byte"):format(method, height, width), function()
        assert.are.equal(0, difference(pg.resize(load("resize", "image"), height, width, { mode = method })))
      end)
    end
  end
end)
