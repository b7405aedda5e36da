-- copies_spec.lua - moving values between layouts and dtypes on the device, against the host: runs, tiles, strides of 0,
-- offsets that no 16-byte access fits, and sums long enough to be cut into parts.

local pg = require "perigee"
local samples = require "samples"
local device = require "cuda.device"

local LAYOUTS = {
  ["as it is"] = function(t) return t end,
  ["first and last exchanged"] = function(t) return t:transpose(1, -1) end,
  ["first two exchanged"] = function(t) return t:transpose(1, 2) end,
  ["last two exchanged"] = function(t) return t:transpose(-2, -1) end,
  ["a part"] = function(t) return t:narrow(-1, 2, t:size(-1) - 1) end,
  ["a part, exchanged"] = function(t) return t:narrow(1, 2, t:size(1) - 1):transpose(1, -1) end,
  ["repeated"] = function(t) return t:narrow(2, 1, 1):expand(t:shape()) end,
}
local SHAPES = { { 2, 33 }, { 64, 32 }, { 9, 40 }, { 3, 2, 5 }, { 2, 3, 16 }, { 9, 4, 33 }, { 5, 2, 3, 8 }, { 3, 31, 1, 33 } }

local function same(expected, got, label)
  assert.are.equal(expected:dtype(), got:dtype(), label)
  assert.are.equal(0, samples.largest_difference(expected, got:to("cpu")), label)
end

describe("on the device", function()
  for name, layout in pairs(LAYOUTS) do
    it("copies from and to another layout: " .. name, function()
      device.seed(3)
      for i, shape in ipairs(SHAPES) do
        pg.seed(i)
        for from, to in pairs { float32 = "float32", float64 = "float32", uint8 = "int32", int32 = "uint8" } do
          local label = ("%s, shape %d, %s to %s"):format(name, i, from, to)
          local x = (pg.rand(shape) * 300):to(from)
          local seen, there = layout(x), layout(x:to("cuda"))
          same(seen:clone(), there:clone(), label)
          same(seen:to(to), there:to(to), label)
        end
        local x, y = pg.randn(shape), layout(pg.randn(shape))
        local here, there = x:clone():requires_grad_(true), x:to("cuda"):requires_grad_(true)
        layout(here):backward(y)
        layout(there):backward(y:to("cuda"))
        assert.is_true(samples.largest_difference(here.grad, there.grad:to("cpu")) <= 2e-5, name .. ", gradient")
      end
    end)

    it("operands in another layout: " .. name, function()
      for i, shape in ipairs(SHAPES) do
        pg.seed(i)
        local a, b = pg.randn(shape), pg.randn(shape)
        local x, y = layout(a), layout(b)
        local ax, by = layout(a:to("cuda")), layout(b:to("cuda"))
        same(x + y:clone(), ax + by:clone(), name)
        same(x:clone() * y, ax:clone() * by, name)
        same(x:lt(y), ax:lt(by), name)
        same(pg.where(x:gt(0), x, y), pg.where(ax:gt(0), ax, by), name)
        same(pg.cat({ x, y }, 1), pg.cat({ ax, by }, 1), name)
        same(x:pad({ 1, 2 }), ax:pad({ 1, 2 }), name)
      end
    end)
  end

  it("sums over many stretched positions in parts", function()
    for _, shapes in ipairs { { { 1100, 3 }, { 3 } }, { { 1100, 40 }, { 40 } }, { { 3, 1100 }, { 3, 1 } },
      { { 2100 }, { 1 } } } do
      device.seed(4)
      pg.seed(5)
      local wide, narrow = pg.randn(shapes[1]), pg.randn(shapes[2])
      local here, there = narrow:clone():requires_grad_(true), narrow:to("cuda"):requires_grad_(true)
      ;(here + wide):backward(wide)
      ;(there + wide:to("cuda")):backward(wide:to("cuda"))
      assert.is_true(samples.largest_difference(here.grad, there.grad:to("cpu")) <= 2e-5)
    end
  end)

  it("draws the host's random numbers, and draws them itself", function()
    for _, dtype in ipairs { "float32", "float64" } do
      local function drawn(on)
        pg.seed(6)
        local options = { dtype = dtype, device = on }
        return pg.rand(1000, options), pg.randn(1001, options), pg.rand(3, 5, options) -- each where the last left off
      end
      local here = { drawn "cpu" }
      collectgarbage() -- what other tests left must not go meanwhile and hide a tensor
      collectgarbage()
      local before = pg.memory("cpu").tensors
      local there = { drawn "cuda" }
      assert.are.equal(before, pg.memory("cpu").tensors) -- none was made on the host and moved
      same(here[1], there[1], "rand")
      same(here[3], there[3], "rand")
      local apart = samples.largest_difference(here[2], there[2]:to("cpu")) -- a GPU's own sine may differ in the last place
      assert.is_true(apart <= (device.simulated and 0 or 1e-6), "randn: " .. apart)
      assert.are.equal("cuda", there[2]:device())
    end
  end)
end)
