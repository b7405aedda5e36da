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
