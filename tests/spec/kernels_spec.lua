-- kernels_spec.lua - accuracy and edge values of the vectorised kernels, against float64 of the same op.

local pg = require "perigee"

-- the greatest |a - b| / |b| over elements where |b| > floor
local function relative(a, b, floor)
  local worst, x, y = 0, a:to("float64"):totable(), b:totable()
  for i = 1, #x do
    if math.abs(y[i]) > floor then worst = math.max(worst, math.abs(x[i] - y[i]) / math.abs(y[i])) end
  end
  return worst
end

local function range(from, to, n)
  local values = {}
  for i = 1, n do values[i] = from + (to - from) * (i - 1) / (n - 1) end
  return pg.tensor(values)
end

describe("gelu in float32", function()
  it("keeps its relative accuracy where 1 + erf would cancel", function()
    local x = range(-13, 13, 20011)
    assert.is_true(relative(x:gelu(), x:to("float64"):gelu(), 1e-36) < 6e-7)
    local positive = range(1e-3, 13, 20011)
    assert.is_true(relative(positive:gelu(), positive:to("float64"):gelu(), 0) < 1e-7)
  end)

  it("has a slope within 2e-7", function()
    local x = range(-13, 13, 20011):requires_grad_(true)
    local exact = x:detach():to("float64"):requires_grad_(true)
    x:gelu():sum():backward()
    exact:gelu():sum():backward()
    assert.is_true((x.grad:to("float64") - exact.grad):abs():max():item() < 2e-7)
  end)

  it("goes to 0 and infinity at the ends and keeps NaN", function()
    local y = pg.tensor({ -math.huge, math.huge, 0 / 0, -0.0, 1e30, -1e30 }):gelu():totable()
    assert.are.equal(0, y[1])
    assert.are.equal(math.huge, y[2])
    assert.is_true(y[3] ~= y[3])
    assert.are.equal(0, y[4])
    assert.is_true(math.abs(y[5] / 1e30 - 1) < 1e-6)
    assert.are.equal(0, y[6])
  end)
end)

describe("exp in float32", function()
  it("is within 2.5e-7, overflows to infinity, underflows to 0 and keeps NaN", function()
    local x = range(-87, 88, 20011)
    assert.is_true(relative(x:exp(), x:to("float64"):exp(), 0) < 2.5e-7)
    local y = pg.tensor({ -math.huge, math.huge, 0 / 0, 0, 89, -104 }):exp():totable()
    assert.are.same({ 0, math.huge, 1, math.huge, 0 }, { y[1], y[2], y[4], y[5], y[6] })
    assert.is_true(y[3] ~= y[3])
  end)
end)

describe("softmax", function()
  it("gives NaN for a row that holds one, wherever it stands, and leaves the others", function()
    for at = 1, 37, 9 do
      local rows = pg.zeros(2, 37):totable()
      rows[1][at] = 0 / 0
      local y = pg.tensor(rows):softmax(-1):totable()
      for i = 1, 37 do
        assert.is_true(y[1][i] ~= y[1][i])
        assert.is_true(math.abs(y[2][i] - 1 / 37) < 1e-7)
      end
    end
  end)

  it("along a middle dimension equals the same of a transposed copy", function()
    local x = pg.randn(8, 65, 130)
    for _, op in ipairs { "softmax", "log_softmax" } do
      local a, b = x[op](x, 2), pg[op](x:transpose(2, 3):contiguous(), 3):transpose(2, 3)
      assert.are.equal(0, (a - b):abs():max():item())
    end
  end)
end)

describe("one thread and two give the same bits", function()
  local function both(fn)
    local results, before = {}, pg.threads()
    for threads = 1, 2 do
      pg.threads(threads)
      pg.seed(7)
      results[threads] = fn():totable()
    end
    pg.threads(before)
    assert.are.equal(#results[1], #results[2])
    for i, value in ipairs(results[1]) do
      if value ~= results[2][i] then assert.are.equal(value, results[2][i], "element " .. i) end
    end
  end

  it("in cross_entropy and its gradient", function()
    both(function()
      local z, labels = pg.randn(1500, 40, { dtype = "float64" }):requires_grad_(true), {}
      for i = 1, 1500 do labels[i] = i % 40 + 1 end
      local loss = pg.cross_entropy(z, pg.tensor(labels, { dtype = "int32" }), { label_smoothing = 0.1 })
      loss:backward()
      return pg.cat({ z.grad:reshape(1500 * 40), loss:detach():reshape(1) }, 1)
    end)
  end)

  it("in layer_norm's gradients", function()
    both(function()
      local w, b = pg.ones(96):requires_grad_(true), pg.zeros(96):requires_grad_(true)
      pg.layer_norm(pg.randn(1000, 96), w, b):backward(pg.randn(1000, 96))
      return pg.cat({ w.grad, b.grad }, 1)
    end)
  end)

  it("in linear's gradients", function()
    both(function()
      local w, b = pg.randn(70, 90):requires_grad_(true), pg.zeros(70):requires_grad_(true)
      pg.linear(pg.randn(1700, 90), w, b):backward(pg.randn(1700, 70))
      return pg.cat({ w.grad:reshape(6300), b.grad }, 1)
    end)
  end)

  it("in the norm that clipping returns", function()
    both(function()
      local p = pg.zeros(300, 400):requires_grad_(true)
      p.grad = pg.randn(300, 400)
      local norm = pg.optim.clip_grad_norm({ p }, 1)
      return pg.cat({ pg.tensor({ pg.is_tensor(norm) and norm:item() or norm }), p.grad:reshape(120000) }, 1)
    end)
  end)
end)

it("backward leaves the gradient that it was given as it was", function()
  local x = pg.randn(5, 4):requires_grad_(true)
  local logits = pg.randn(2, 5, 3):requires_grad_(true)
  local _, pooling = pg.proxy_pool(logits, pg.ones(2, 5), x)
  local g = pg.randn(2, 3, 5)
  local before = g:totable()
  pooling:backward(g)
  assert.are.same(before, g:totable())
end)

-- Sizes on both sides of what the kernel divides by: tiles of 8 rows, panels of 48 columns of 16 lanes, stretches of 800
-- (small products: 96) of the inner dimension; small ones, which one thread makes, and large ones, which all share.
describe("matrix products in float32", function()
  local SIZES = { { 1, 1, 1 }, { 7, 17, 5 }, { 8, 48, 16 }, { 9, 49, 17 }, { 65, 65, 64 }, { 3, 130, 40 }, { 50, 1, 300 },
    { 203, 101, 333 }, { 117, 145, 1601 }, { 33, 100, 3203 }, { 1000, 96, 64 }, { 130, 700, 90 } }

  local function operand(rows, columns, transposed)
    local t = transposed and pg.randn(columns, rows) or pg.randn(rows, columns)
    return transposed and t:t() or t
  end

  for _, size in ipairs(SIZES) do
    local m, n, k = unpack(size)
    it(("of %d x %d x %d are those of float64, whatever is transposed"):format(m, n, k), function()
      for _, ta in ipairs { false, true } do
        for _, tb in ipairs { false, true } do
          local a, b = operand(m, k, ta), operand(k, n, tb)
          local wrong = a:matmul(b):to("float64") - a:to("float64"):matmul(b:to("float64"))
          assert.is_true(wrong:abs():max():item() < 1e-6 * k ^ 0.5 * 8)
        end
      end
    end)
  end

  it("add to what stands there", function() -- a bias is laid into the result first
    for _, size in ipairs(SIZES) do
      local m, n, k = unpack(size)
      local x, w, b = pg.randn(m, k), pg.randn(n, k), pg.randn(n)
      local wrong = pg.linear(x, w, b) - (x:matmul(w:t()) + b)
      assert.is_true(wrong:abs():max():item() < 1e-6 * k ^ 0.5 * 8)
    end
  end)

  it("give the sums of linear's gradient on the way", function() -- rows and outputs on both sides of a panel
    for _, size in ipairs { { 900, 100, 70 }, { 1601, 17, 64 }, { 500, 1, 80 }, { 12, 30, 20 }, { 700, 33, 1 }, { 64, 0, 40 },
      { 0, 5, 4 } } do
      local rows, out, inputs = unpack(size)
      local x, dy = pg.randn(rows, inputs), pg.randn(rows, out)
      local w, b = pg.randn(out, inputs):requires_grad_(true), pg.randn(out):requires_grad_(true)
      pg.linear(x, w, b):backward(dy)
      local dw, db = dy:to("float64"):t():matmul(x:to "float64"), dy:to("float64"):sum(1)
      if out > 0 then
        local most = 1e-5 * math.max(1, rows) ^ 0.5
        assert.is_true((w.grad:to "float64" - dw):abs():max():item() < most)
        assert.is_true((b.grad:to "float64" - db):abs():max():item() < most)
      end
    end
  end)

  it("of no rows, or no outputs, are empty, however large the weight", function()
    assert.are.same({ 0, 2304 }, pg.linear(pg.zeros(0, 768), pg.zeros(2304, 768), pg.zeros(2304)):shape())
    assert.are.same({ 300, 0 }, pg.linear(pg.zeros(300, 768), pg.zeros(0, 768)):shape())
    assert.are.same({ 0, 5, 900 }, pg.zeros(0, 5, 700):matmul(pg.zeros(700, 900)):shape())
  end)

  it("keep NaN and infinity to their row and column", function()
    local a, b = pg.ones(70, 90), pg.ones(90, 60)
    a:select(1, 3):select(1, 5):fill_(0 / 0)
    b:select(1, 2):select(1, 7):fill_(math.huge)
    local c = a:matmul(b)
    for i = 1, 70 do
      for j = 1, 60 do
        local v = c:get(i, j)
        if i == 3 then assert.is_true(v ~= v) else assert.are.equal(j == 7 and math.huge or 90, v) end
      end
    end
  end)
end)
