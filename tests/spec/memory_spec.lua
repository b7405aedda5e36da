-- memory_spec.lua - what a recorded graph keeps for backward: activations, LayerNorms and short attention are computed
-- again where a matrix product reads them, everything inside a checkpoint is, and no bit of a gradient tells.

local pg = require "perigee"
local nn = pg.nn

-- Bytes that are live after fn beyond what was before; fn runs in a scope and returns what is to be kept.
local function kept(fn)
  collectgarbage()
  collectgarbage()
  local before = pg.memory().live
  local result = pg.scope(fn)
  return pg.memory().live - before, result
end

local function about(expected, got) -- sizes are rounded up by at most a sixteenth
  assert.is_true(got >= expected and got <= 1.08 * expected, ("%d bytes, expected about %d"):format(got, expected))
end

-- Loss and gradients of fn(...) as tables, from one seed. `leaves` are the tensors whose gradients count.
local function gradients(fn, leaves, ...)
  pg.seed(3)
  for _, p in ipairs(leaves) do p.grad = nil end
  local y = fn(...)
  local loss = (y * y):sum()
  loss:backward()
  local result = { loss:item() }
  for i, p in ipairs(leaves) do result[i + 1] = p.grad:totable() end
  return result
end

local function leaf(...) return pg.randn(...):requires_grad_(true) end

describe("a linear layer behind a cheap call", function()
  local N, D, H = 256, 128, 512 -- rows, width, hidden
  before_each(function() pg.seed(7) end)

  for _, act in ipairs { "gelu", "quick_gelu", "silu", "relu", "softplus" } do
    it("does not keep what " .. act .. " gave, and has the gradients as if it had", function()
      local h, w = leaf(N, H), leaf(D, H)
      local bytes, y = kept(function() return h[act](h):linear(w) end)
      about(4 * N * D, bytes) -- y alone: h is the caller's
      local g = pg.randn(N, D)
      y:backward(g)
      local a = h:detach()[act](h:detach()):requires_grad_(true) -- a leaf is kept
      local w2, h2 = w:detach():requires_grad_(true), h:detach():requires_grad_(true)
      a:linear(w2):backward(g)
      h2[act](h2):backward(a.grad)
      assert.are.same(w2.grad:totable(), w.grad:totable())
      assert.are.same(h2.grad:totable(), h.grad:totable())
    end)
  end

  it("does not keep what layer_norm gave, in float64 either", function()
    for _, dtype in ipairs { "float32", "float64" } do
      local x, w = pg.randn(N, D, { dtype = dtype }):requires_grad_(true), pg.randn(D, D, { dtype = dtype })
      local scale, shift = pg.ones(D, { dtype = dtype }):requires_grad_(true), pg.zeros(D, { dtype = dtype })
      shift:requires_grad_(true)
      local bytes, y = kept(function() return x:layer_norm(scale, shift):linear(w) end)
      about((dtype == "float32" and 4 or 8) * (N * D + 2 * N), bytes) -- y, means and deviations
      y:sum():backward()
      assert.is_truthy(x.grad and scale.grad and shift.grad)
    end
  end)

  it("keeps one tensor for each of a short attention's inputs and none for its result", function()
    local b, t, width = 16, 8, 128
    local x, layer = leaf(b, t, width), nn.Attention(width, 4)
    local bytes = kept(function() return layer(x) end)
    about(4 * b * t * (3 * width + width + 4), bytes) -- q, k and v, the result, and a number a query and head
  end)

  it("keeps the values where a second call would cost as much as it saves", function()
    local h, w = leaf(8, 16), leaf(4, 16)
    local bytes = kept(function() return h:gelu():linear(w) end)
    assert.are.equal(4 * (8 * 16 + 8 * 4), bytes)
  end)

  it("serves two readers, a view between, and a graph that is kept for a second pass", function()
    local h, w, v = leaf(N, H), leaf(D, H), leaf(D, H)
    local function grads(retained)
      for _, p in ipairs { h, w, v } do p.grad = nil end
      local a = retained and h:gelu() or h:gelu() * 1 -- a product with a number is not computed again
      local loss = (a:linear(w) * a:reshape(2, N / 2, H):linear(v):reshape(N, D)):sum()
      if retained then
        loss:backward { retain = true }
        for _, p in ipairs { h, w, v } do p.grad = nil end
      end
      loss:backward()
      return { h.grad:totable(), w.grad:totable(), v.grad:totable() }
    end
    assert.are.same(grads(false), grads(true))
  end)

  it("sees no change of the activation, and names a change of what it is computed from", function()
    local h, w = leaf(N, H), leaf(D, H)
    local a = h:gelu()
    local y = a:linear(w)
    pg.no_grad(function() a:zero_() end)
    y:sum():backward()
    local changed = w.grad:clone()
    w.grad = nil
    h:gelu():linear(w):sum():backward()
    assert.are.same(w.grad:totable(), changed:totable())
    y = h:gelu():linear(w)
    pg.no_grad(function() h:zero_() end)
    local ok, message = pcall(function() y:sum():backward() end)
    assert.is_false(ok)
    assert.is_truthy(message:find("gelu: its input x was changed in place", 1, true), message)
  end)
end)

describe("a part of a tensor", function()
  it("adds its gradient where it belongs, overlapping or not, in one piece or scattered", function()
    local worst = pg.gradcheck(function(t)
      local planes = t:select(1, 1) * t:select(1, 3) + t:narrow(1, 1, 2):select(1, 2) * t:narrow(1, 2, 2):select(1, 1)
      local columns = t:select(3, 2) * t:select(3, 4) + t:narrow(3, 1, 2):select(3, 2)
      return planes:sum() * columns:sum() + (planes:select(1, 2):sum() + t:select(2, 3):exp():sum())
    end, { pg.randn(3, 4, 5, { dtype = "float64" }) })
    assert.is_true(worst < 1e-6)
  end)

  it("leaves a gradient that was passed to backward as it is", function()
    local x = leaf(4, 6)
    local y, g = x:reshape(24):narrow(1, 1, 24):reshape(6, 4), pg.ones(6, 4)
    y:backward(g)
    x:reshape(24):backward(pg.ones(24))
    assert.are.equal(2, x.grad:get(1, 1))
    assert.are.equal(24, g:sum():item())
  end)
end)

describe("pg.checkpoint", function()
  local function net()
    pg.seed(5)
    return nn.Sequential(nn.LayerNorm(64), nn.MLP(64, 256), nn.Dropout(0.3), nn.Linear(64, 64))
  end

  it("gives the same bits, random numbers included, and leaves the generator where it would be", function()
    local model, x = net(), leaf(128, 64)
    local leaves = model:parameters()
    leaves[#leaves + 1] = x
    local plain = gradients(function(t) return model(t) end, leaves, x)
    local after = pg.rng_state()
    assert.are.same(plain, gradients(function(t) return pg.checkpoint(model, t) end, leaves, x))
    assert.are.same(after, pg.rng_state())
  end)

  it("keeps what enters and what leaves, and nothing between", function()
    local model, x = net(), leaf(128, 64)
    local bytes, y = kept(function() return pg.checkpoint(model, x) end)
    about(4 * 128 * 64, bytes)
    y:sum():backward()
    assert.is_truthy(x.grad)
  end)

  it("nests: within another one it changes nothing", function()
    local model, x = net(), leaf(32, 64)
    local leaves = model:parameters()
    local function nested(t)
      return pg.checkpoint(function(u) return model(pg.checkpoint(model, u) + pg.checkpoint(model, u)) end, t)
    end
    local function plain(t) return model(model(t) + model(t)) end
    assert.are.same(gradients(plain, leaves, x), gradients(nested, leaves, x))
  end)

  it("one after another, with tensors that pass one by", function()
    local model, x = net(), leaf(32, 64)
    local leaves = model:parameters()
    leaves[#leaves + 1] = x
    local function run(call)
      return function(t)
        local a = call(model, t)
        local b = call(function(u) return model(u) * a + t end, a) -- a and t come in without being passed
        return call(function(u, v) return pg.cat({ u, v, u, v, u, v, u, v, u, v }, 1):tanh():softmax(-1) end, a, b)
      end
    end
    local plain = run(function(fn, ...) return fn(...) end)
    assert.are.same(gradients(plain, leaves, x), gradients(run(pg.checkpoint), leaves, x))
  end)

  it("returns several values, of which some may go unused; views and positions too", function()
    local x = leaf(16, 8)
    local function fn(t)
      local values, places = t:exp():sort(2)
      return values:transpose(1, 2), places, t:layer_norm(), "word", 3
    end
    local plain, other = { fn(x) }, { pg.checkpoint(fn, x) }
    assert.are.same(plain[2]:totable(), other[2]:totable())
    assert.are.same({ "word", 3 }, { other[4], other[5] })
    plain[1]:sum():backward()
    local expected = x.grad:totable()
    x.grad = nil
    other[1]:sum():backward()
    assert.are.same(expected, x.grad:totable())
  end)

  it("passes gradcheck, and twice through a graph that is kept", function()
    local w = pg.randn(6, 4, { dtype = "float64" }):requires_grad_(true)
    local function fn(x) return pg.checkpoint(function(t) return t:linear(w):gelu():normalize(2) end, x) end
    assert.is_true(pg.gradcheck(fn, { pg.randn(5, 4, { dtype = "float64" }) }) < 1e-6)
    local x = pg.randn(5, 4, { dtype = "float64" }):requires_grad_(true)
    local y = fn(x):select(2, 1):sum()
    y:backward { retain = true }
    local once = x.grad:clone()
    y:backward()
    assert.are.same((once * 2):totable(), x.grad:totable())
  end)

  it("repeats what was rounded to bfloat16 so, though backward runs outside of it", function()
    local model, x = net(), leaf(128, 64)
    local leaves = model:parameters()
    local function under(precision, call)
      return gradients(function(t) return pg.autocast(precision, call, model, t) end, leaves, x)
    end
    local function plain(fn, ...) return fn(...) end
    local rounded = under("bf16", plain)
    assert.are.same(rounded, under("bf16", pg.checkpoint))
    assert.are_not.equal(rounded[1], under("fp32", pg.checkpoint)[1])
  end)

  it("records nothing under no_grad, nor for inputs that want none", function()
    local model, x = net(), leaf(8, 64)
    assert.is_false(pg.no_grad(pg.checkpoint, model, x):requires_grad())
    model:requires_grad_(false)
    assert.is_false(pg.checkpoint(model, x:detach()):requires_grad())
  end)

  it("ends when the function raises, and its message is passed on", function()
    local ok, message = pcall(pg.checkpoint, function() error("as it was", 0) end)
    assert.is_false(ok)
    assert.are.equal("as it was", message)
    local x = leaf(128, 64)
    assert.is_true(kept(function() return x:exp():exp() end) > 1.9 * 4 * 128 * 64) -- kept, as outside a checkpoint
  end)

  it("names what was changed in place since", function()
    local x, w = leaf(4, 3), leaf(2, 3)
    local y = pg.checkpoint(function(t) return t:add(1):linear(w):exp() end, x)
    pg.no_grad(function() x:zero_() end)
    local ok, message = pcall(function() y:sum():backward() end)
    assert.is_false(ok)
    assert.is_truthy(message:find("changed in place after the call", 1, true), message)
    assert.is_nil(x.grad)
  end)
end)

describe("models.recompute", function()
  local SIZES = { image = 16, patch = 4, width = 64, depth = 4, heads = 4 }

  it("gives every family's gradients bit for bit, with maps and prompts, and takes less", function()
    local text = { context = 8, vocab = 20, width = 32, depth = 2, heads = 2, hidden = 64, eos = 19 }
    local vision = { image = 16, patch = 4, width = 64, depth = 4, heads = 4, hidden = 256 }
    for _, model in ipairs { pg.models.vit(SIZES), pg.models.clip { embed = 16, vision = vision, text = text } } do
      local images, prompt = pg.randn(8, 3, 16, 16), leaf(8, 3, 64)
      local prefix = { leaf(8, 2, 64), leaf(8, 2, 64) }
      local function prompts(layer, x)
        if layer == 2 then return pg.cat({ x, prompt }, 2) end
        if layer == 3 then return x, prefix end
        return x
      end
      local function run(options)
        local feature, maps = model:forward_features(images, { 0, 2, 4 }, options)
        return feature:sum() + maps[1]:sum() * maps[2]:sum() + maps[3]:exp():mean()
      end
      for _, options in ipairs { false, { prompts = prompts } } do
        local leaves = (model.visual or model):parameters()
        if options then for _, t in ipairs { prompt, prefix[1], prefix[2] } do leaves[#leaves + 1] = t end end
        local plain = gradients(run, leaves, options or nil)
        local bytes = kept(function() return run(options or nil) end)
        pg.models.recompute(model)
        assert.are.same(plain, gradients(run, leaves, options or nil))
        local less = kept(function() return run(options or nil) end)
        assert.is_true(less < 0.6 * bytes, ("%d of %d bytes"):format(less, bytes))
        pg.models.recompute(model, false)
      end
    end
  end)

  it("refuses what has no blocks", function()
    local ok, message = pcall(pg.models.recompute, nn.Linear(2, 2))
    assert.is_false(ok)
    assert.is_truthy(message:find("models.recompute: takes a model with blocks", 1, true), message)
  end)
end)

describe("freed memory", function()
  local MB = 2 ^ 18 -- elements of a megabyte of float32
  local lib = require "perigee.ffi"
  before_each(function()
    collectgarbage()
    collectgarbage()
    lib.pg_memory_trim(0)
    lib.pg_memory_reset_peak(0)
  end)

  it("is kept for reuse, but never more than was once live beside what is", function()
    for _, size in ipairs { 8, 13, 21, 12 } do
      pg.scope(function()
        for _ = 1, 10 do pg.empty(size * MB) end
        local held = pg.memory()
        assert.is_true(held.live + held.cached <= held.peak + 2 ^ 24)
      end)
      local held = pg.memory()
      assert.is_true(held.live + held.cached <= held.peak)
      assert.is_true(held.cached > 50e6)
    end
  end)

  it("is asked back from the collector before tensors that nobody holds are many", function()
    require("perigee.memory").collect() -- and set the limit by what is live now
    local before = pg.memory().live
    lib.pg_memory_reset_peak(0)
    for _ = 1, 300 do pg.empty(4 * MB) end
    local most = (pg.memory().peak - before) / 2 ^ 20
    assert.is_true(most < 300, ("%d of 1200 MB"):format(most))
  end)

  it("serves what is smaller, in parts that become one again, and goes back to the system whole", function()
    local function resident() return tonumber(io.open("/proc/self/status"):read("*a"):match "VmRSS:%s+(%d+)") end
    local began = resident()
    pg.zeros(60 * MB):free()
    local cached = pg.memory().cached
    assert.is_true(cached >= 60 * 2 ^ 20)
    local t = pg.empty(55 * MB)
    assert.is_true(pg.memory().cached <= cached - 60 * 2 ^ 20)
    t:free()
    local parts, left = {}, pg.memory().cached
    for i, size in ipairs { 20, 8, 25 } do
      parts[i] = pg.empty(size * MB)
      left = left - size * 2 ^ 20
      assert.is_true(pg.memory().cached <= left)
    end
    local first = parts[1]:data()
    assert.are.equal(parts[1]:numel(), parts[2]:data() - first) -- side by side
    for _, i in ipairs { 1, 3, 2 } do parts[i]:free() end
    assert.are.equal(cached, pg.memory().cached)
    local again = pg.empty(58 * MB)
    assert.is_true(again:data() == first) -- the same memory: nothing came from the system
    again:free()
    lib.pg_memory_trim(0)
    assert.are.equal(0, pg.memory().cached)
    assert.is_true(resident() < began + 10 * 1024, ("%d kB, then %d"):format(began, resident()))
  end)
end)

describe("a training step", function()
  -- Peak of live bytes in a process's second step of a transformer; what is kept for backward is most of it.
  local function peak(recompute)
    pg.seed(1)
    local model = pg.models.vit { image = 32, patch = 4, width = 64, depth = 8, heads = 4 }
    pg.models.recompute(model, recompute)
    local images = pg.randn(32, 3, 32, 32)
    local function step() pg.scope(function() model(images):sum():backward() end) end
    step()
    collectgarbage()
    local before = pg.memory().live
    require("perigee.ffi").pg_memory_reset_peak(0)
    step()
    return (pg.memory().peak - before) / (4 * 32 * 65 * 64) -- in tensors (B, T, D)
  end

  it("keeps eleven tensors a block, not seventeen, and one with recomputation", function()
    local plain, less = peak(false), peak(true)
    assert.is_true(plain < 8 * 11 + 20, ("%.1f tensors"):format(plain)) -- two of them attention's, with 65 tokens
    assert.is_true(less < 8 * 1 + 34, ("%.1f tensors"):format(less)) -- and all of a block's, and their gradients
  end)
end)
