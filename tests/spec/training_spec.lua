-- training_spec.lua - modules, optimisers and regularisers at work on something small.

local pg = require "perigee"
local process = require "process"
local fails = require("expect").fails

-- Runs a script in a process of its own, where nothing else has used memory. @return what it printed
local function script(text)
  local path = os.tmpname()
  local file = assert(io.open(path, "wb"))
  file:write("local pg = require 'perigee' pg.threads(1) pg.seed(1)\n", [[
    local function resident() return tonumber(io.open("/proc/self/status"):read("*a"):match "VmRSS:%s+(%d+)") end
  ]], text)
  file:close()
  local _, said = process.sh("luajit " .. path)
  os.remove(path)
  return said
end

local function small()
  return pg.models.vit { image = 8, patch = 4, width = 16, depth = 2, heads = 2 }
end

describe("training", function()
  before_each(function() pg.seed(5) end)

  it("AdamW follows the formula for three steps", function()
    local p = pg.tensor({ 1, -2 }, { dtype = "float64" }):requires_grad_(true)
    local opt = pg.optim.AdamW({ p }, { lr = 0.1, weight_decay = 0.01, eps = 1e-8 })
    local x, m, v = { 1, -2 }, { 0, 0 }, { 0, 0 }
    for t = 1, 3 do
      opt:zero_grad()
      local loss = (p * p):sum()
      loss:backward()
      opt:step()
      for i = 1, 2 do
        local g = 2 * x[i]
        x[i] = x[i] * (1 - 0.1 * 0.01)
        m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g * g
        x[i] = x[i] - 0.1 / (1 - 0.9 ^ t) * m[i] / (math.sqrt(v[i]) / math.sqrt(1 - 0.999 ^ t) + 1e-8)
      end
    end
    for i = 1, 2 do assert.is_true(math.abs(p:get(i) - x[i]) < 1e-12) end
  end)

  it("a transformer fits eight images", function()
    local model, head = small(), pg.models.head(16, 4)
    local parameters = model:parameters()
    for _, t in ipairs(head:parameters()) do parameters[#parameters + 1] = t end
    local opt = pg.optim.AdamW(parameters, { lr = 1e-2 })
    local images, labels = pg.randn(8, 3, 8, 8), pg.tensor({ 1, 2, 3, 4, 1, 2, 3, 4 }, { dtype = "int32" })
    local first, last
    for _ = 1, 60 do
      opt:zero_grad()
      local loss = pg.cross_entropy(head(model(images)) * 10, labels)
      loss:backward()
      opt:step()
      first, last = first or loss:item(), loss:item()
    end
    assert.is_true(last < 0.1 * first, ("%g -> %g"):format(first, last))
  end)

  it("the same seed gives the same bits", function()
    local function train()
      pg.seed(9)
      local model = small()
      local opt = pg.optim.AdamW(model:parameters(), { lr = 1e-2 })
      for _ = 1, 3 do
        opt:zero_grad()
        model(pg.randn(4, 3, 8, 8)):sum():backward()
        opt:step()
      end
      return model(pg.ones(1, 3, 8, 8)):totable()
    end
    assert.are.same(train(), train())
  end)

  it("every regulariser is zero or least at the start, and gives gradients away from it", function()
    local pretrained = small():requires_grad_(false)
    local images = pg.randn(12, 3, 8, 8)
    local head = pg.models.head(16, 4)
    local options = { fda = { k = 3 }, proxy_fda = { k = 3, batch = 12 }, lwf = { head = head },
      ewc = { head = head, data = { { images } } } }
    for _, name in ipairs(pg.regularize.names()) do
      local model = small()
      local method = pg.regularize.new(name, pretrained, options[name])
      local features, tokens = model:forward_features(images, method.depths)
      local loss = method.loss { model = model, images = images, features = features, tokens = tokens }
      if name == "naive" then
        assert.is_nil(loss)
      else
        assert.is_true(loss:item() > 0)
        loss:backward()
        method.step()
        assert.is_truthy(model.patch.weight.grad, name)
        assert.is_nil(pretrained.patch.weight.grad)
      end
    end
  end)

  it("10,000 steps without a collectgarbage keep a flat resident size", function()
    local said = script [[
      local model = pg.nn.Sequential(pg.nn.Linear(16, 32), pg.nn.Linear(32, 4))
      local opt = pg.optim.AdamW(model:parameters(), { lr = 1e-3 })
      local images, labels = pg.randn(64, 16), pg.ones(64, { dtype = "int32" })
      local early
      for step = 1, 10000 do
        opt:zero_grad()
        local loss = pg.cross_entropy(model(images:index(1, pg.randperm(64)):narrow(1, 1, 32)), labels:narrow(1, 1, 32))
        loss:backward()
        opt:step()
        if step == 500 then early = resident() end
      end
      print(early, resident())]]
    local early, late = said:match "^(%d+)%s+(%d+)\n$"
    assert.is_truthy(early, said)
    assert.is_true(tonumber(late) <= 1.05 * early,
      ("VmRSS %s kB after 500 steps, %s kB at the end"):format(early, late))
  end)

  it("twenty tensors of 1 GiB, each dropped, do not add up", function()
    local free = tonumber(io.open("/proc/meminfo"):read("*a"):match "MemAvailable:%s+(%d+)") / 2 ^ 20
    if free < 6 then
      pending(("needs 6 GiB of free memory, this machine has %.1f"):format(free))
      return
    end
    local said = script [[
      local sizes = {}
      for i = 1, 20 do
        local t = pg.ones(2 ^ 28)
        assert(t:get(2 ^ 28) == 1)
        sizes[i] = resident()
      end
      print(math.max(unpack(sizes)))]]
    local most = tonumber(said)
    assert.is_truthy(most, said)
    assert.is_true(most < 2.3 * 2 ^ 20, ("%s kB were resident at once"):format(said)) -- the last one and the next
  end)
end)

describe("an optimiser", function()
  it("leaves no gradient to the collector: zero_grad gives their memory back at once", function()
    local w = pg.ones(1000, 100):requires_grad_(true)
    local opt = pg.optim.SGD({ w }, { lr = 0.1 })
    local function step()
      pg.scope(function()
        (w * w):sum():backward()
        pg.optim.clip_grad_norm({ w }, 1)
        opt:step()
      end)
      opt:zero_grad()
    end
    step()
    collectgarbage()
    collectgarbage "stop"
    local before = pg.memory().live
    for _ = 1, 3 do step() end
    local after = pg.memory().live
    collectgarbage "restart"
    assert.are.equal(before, after)
  end)

  it("takes a gradient whose rows lie apart, and leaves it to the parameter when a scope ends", function()
    local w = pg.zeros(2, 3):requires_grad_(true)
    w.grad = pg.tensor({ { 1, 2 }, { 3, 4 }, { 5, 6 } }):t()
    pg.scope(function()
      assert.is_true(math.abs(pg.optim.clip_grad_norm({ w }, 100) - math.sqrt(91)) < 1e-5)
      pg.optim.SGD({ w }, { lr = 1 }):step()
    end)
    assert.are.same({ { -1, -3, -5 }, { -2, -4, -6 } }, w:totable())
    assert.are.same({ { 1, 3, 5 }, { 2, 4, 6 } }, w.grad:totable())
  end)
end)

describe("a gradient that was read inside a scope", function()
  it("stays with its parameter, and the next backward adds to it", function()
    local w, x = pg.ones(4, 3):requires_grad_(true), pg.ones(5, 4)
    pg.scope(function()
      x:matmul(w):sum():backward()
      assert.are.equal(5, w.grad:get(1, 1))
    end)
    pg.scope(function() x:matmul(w):sum():backward() end)
    assert.are.equal(10, w.grad:get(4, 3))
  end)

  it("is the parameter's own when it was assigned there", function()
    local w, x = pg.ones(4, 3):requires_grad_(true), pg.ones(5, 4)
    pg.scope(function() w.grad = pg.full({ 4, 3 }, 7) end)
    assert.are.equal(7, w.grad:get(4, 3))
    pg.scope(function() x:matmul(w):sum():backward() end)
    assert.are.equal(12, w.grad:get(1, 1))
    local given = pg.ones(4, 3)
    w.grad = given
    given:free()
    assert.are.equal(12, w.grad:sum():item())
  end)

  it("is refused in one line where its memory is gone", function()
    local w = pg.ones(2, 2):requires_grad_(true)
    local function backward() return w:mul(2):sum():backward() end
    backward()
    w.grad:free()
    fails("backward: a .grad that it adds to was released by free(); set it to nil first", backward)
    fails("released by free()", function() w:backward { grad = pg.ones(2, 2) } end)
    fails("already released by free()", function() pg.optim.SGD({ w }, { lr = 1 }):step() end)
    local gone = pg.ones(2, 2)
    gone:free()
    fails("grad: a tensor's memory was already released by free()", function() w.grad = gone end)
    w.grad = nil
    backward()
    assert.are.equal(8, w.grad:sum():item())
  end)
end)

describe("pg.scope and pg.no_grad", function()
  it("give all that the function returns, nil among it", function()
    for _, around in ipairs { pg.scope, pg.no_grad } do
      local function pack(...) return select("#", ...), ... end
      local n, a, b, c, d = pack(around(function() return nil, pg.ones(3), nil, nil end))
      assert.are.equal(4, n)
      assert.is_nil(a or c or d)
      assert.are.equal(3, b:sum():item())
      assert.are.equal(0, (pack(around(function() end))))
    end
    local kept = pg.scope(function() return pg.scope(function() return nil, pg.ones(2) end) end)
    assert.is_nil(kept)
    local _, second = pg.scope(function() return pg.scope(function() return nil, pg.ones(2) end) end)
    assert.are.equal(2, second:sum():item())
  end)
end)
