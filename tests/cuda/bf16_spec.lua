-- bf16_spec.lua - op linear under autocast on the device against the CPU: the operands are rounded to the same numbers,
-- and only the order of the sums differs.

local pg = require "perigee"
local device = require "cuda.device"
local samples = require "samples"

-- y, dx and dW on a device, seen from the host.
local function layer(where, precision, args)
  local x, w = args.x:to(where):detach():requires_grad_(true), args.w:to(where):detach():requires_grad_(true)
  local y = pg.autocast(precision, pg.linear, x, w, args.b and args.b:to(where))
  y:backward { grad = args.dy:to(where) }
  return { y:detach():to "cpu", x.grad:to "cpu", w.grad:to "cpu" }
end

local function check(m, k, n)
  local args = { x = pg.randn(m, k), w = pg.randn(n, k), b = m % 2 == 1 and pg.randn(n) or nil, dy = pg.randn(m, n) }
  local expected, plain = layer("cpu", "bf16", args), layer("cpu", "fp32", args)
  device.seed(1)
  local got = layer("cuda", "bf16", args)
  for i, t in ipairs(got) do
    local label = ("%d x %d x %d, tensor %d"):format(m, k, n, i)
    local worst, rounding = samples.largest_difference(expected[i], t), samples.largest_difference(expected[i], plain[i])
    assert.is_true(worst <= 2e-5 and worst < rounding / 10, ("%s: differs by %g"):format(label, worst))
  end
  for seed = 2, 4 do
    device.seed(seed)
    for i, t in ipairs(layer("cuda", "bf16", args)) do
      assert.are.equal(0, samples.largest_difference(got[i], t))
    end
  end
end

describe("bfloat16 products on the device", function()
  it("are those of the host, at the edges of blocks", function()
    pg.seed(6)
    for _, size in ipairs { { 1, 7, 5 }, { 31, 33, 32 }, { 65, 128, 17 }, { 128, 1, 129 } } do check(unpack(size)) end
  end)

  it("keep NaN and infinity, and count denormals as zero", function()
    local x = pg.tensor({ 0 / 0, math.huge, -math.huge, 2 ^ -127, -3.4e38, 1 + 2 ^ -8, 1 + 3 * 2 ^ -8 }):reshape(7, 1)
    local y = pg.autocast("bf16", pg.linear, x:to "cuda", pg.ones(1, 1):to "cuda"):to "cpu":totable()
    assert.is_true(y[1][1] ~= y[1][1])
    for i, value in ipairs { math.huge, -math.huge, 0, -math.huge, 1, 1 + 4 * 2 ^ -8 } do
      assert.are.equal(value, y[i + 1][1])
    end
  end)

  it("leave float64 and empty products alone", function()
    local x, w = pg.randn(5, 3):to "float64", pg.randn(4, 3):to "float64"
    local got = pg.autocast("bf16", pg.linear, x:to "cuda", w:to "cuda"):to "cpu"
    assert.is_true(samples.largest_difference(pg.linear(x, w), got) < 1e-12)
    local y = pg.autocast("bf16", pg.linear, pg.zeros(3, 0):to "cuda", pg.zeros(2, 0):to "cuda", pg.ones(2):to "cuda")
    assert.are.same({ { 1, 1 }, { 1, 1 }, { 1, 1 } }, y:to "cpu":totable())
  end)
end)
