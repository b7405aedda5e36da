-- ops_spec.lua - what single ops promise beyond the checks that the registry makes of all: integers, NaN, nothing to
-- reduce, broadcasting of three, threads.

local pg = require "perigee"

local inf, nan = math.huge, 0 / 0

local function ints(list) return pg.tensor(list, { dtype = "int32" }) end
local function bytes(list) return pg.tensor(list, { dtype = "uint8" }) end
local function doubles(list) return pg.tensor(list, { dtype = "float64" }) end
local function is_nan(v) return v ~= v end

describe("integers", function()
  it("divide by truncation, as C does", function()
    assert.are.same({ 3, -3, -3, 3, 0 }, (ints { 7, -7, 7, -7, 1 } / ints { 2, 2, -2, -2, 5 }):totable())
    assert.are.same({ { 4, 2 }, { 9, 4 } }, (bytes { { 8 }, { 18 } } / bytes { 2, 4 }):totable())
    assert.are.equal(-2 ^ 31, (ints { -2 ^ 31 } / -1):item()) -- wraps
  end)

  it("take powers by repeated products, and wrap around", function()
    assert.are.same({ 1, 3, -8, 1, 0 }, (ints { 5, 3, -2, 0, 2 } ^ ints { 0, 1, 3, 0, 32 }):totable())
    assert.are.same({ 9, 4 }, (ints { 3, -2 } ^ 2):totable())
    assert.are.same({ 8, 255 * 255 % 256 }, { (bytes { 2 } ^ 3):item(), (bytes { 255 } ^ 2):item() })
  end)

  it("add, subtract and multiply as bytes do", function()
    assert.are.same({ 4, 255 }, (bytes { 250, 245 } + 10):totable())
    assert.are.same({ 0, 1 }, (1 - bytes { 1, 0 }):totable())
    assert.are.same({ 255, 0 }, (bytes { 0, 1 } - 1):totable())
    assert.are.same({ 0, 0, 1 }, (pg.tensor({ 1, 2, 3 }):gt(1) * pg.tensor({ 1, 2, 3 }):gt(2)):totable())
  end)

  it("are summed, counted and compared: bytes add up to int32", function()
    local mask = pg.tensor({ { 1, -1, 2 }, { 0, 3, 4 } }):gt(0)
    assert.are.equal("int32", mask:sum():dtype())
    assert.are.same({ 2, 2 }, mask:sum(2):totable())
    assert.are.equal(300 * 255, pg.full({ 300 }, 255, { dtype = "uint8" }):sum():item())
    assert.are.same({ 9, 2 ^ 24 + 1 }, ints({ { 9, -3 }, { 4, 2 ^ 24 + 1 } }):max(2):totable())
    assert.are.same({ -3, 4 }, ints({ { 9, -3 }, { 4, 7 } }):min(2):totable())
    assert.are.same({ 1, 2 }, { bytes({ 9, 3, 9 }):argmax():item(), bytes({ 9, 3, 9 }):argmin():item() })
  end)
end)

describe("reductions", function()
  it("let NaN win, and argmax point at the first", function()
    local x = pg.tensor { { 1, nan, 3, nan }, { -inf, 2, inf, 0 } }
    for _, name in ipairs { "max", "min", "sum", "mean", "norm", "logsumexp", "var" } do
      assert.is_true(is_nan(x[name](x, 2):get(1)), name)
    end
    for _, p in ipairs { 1, 2, 2.5, inf } do assert.is_true(is_nan(x:norm(2, { p = p }):get(1)), tostring(p)) end
    assert.are.same({ 2, 3 }, x:argmax(2):totable())
    assert.are.same({ 2, 1 }, x:argmin(2):totable())
    assert.are.same({ inf, -inf, inf }, { x:max(2):get(2), x:min(2):get(2), x:logsumexp(2):get(2) })
    assert.is_true(is_nan(x:maximum(0):get(1, 2)) and is_nan(pg.minimum(x, 9):get(1, 2)))
    assert.is_true(is_nan(pg.tensor({ 1 }):maximum(pg.tensor { nan }):item()))
  end)

  it("of several dimensions are those of the elements in row-major order", function()
    local x = pg.randn(3, 4, 5)
    local flat = x:permute(2, 1, 3):contiguous():reshape(4, 15)
    assert.are.same(flat:max(2):totable(), x:max({ 3, 1 }):totable())
    assert.are.same(flat:argmax(2):totable(), x:argmax({ 1, 3 }):totable())
    assert.are.same(flat:argmin(2):totable(), x:argmin({ 1, -1 }):totable())
    assert.are.same({ 1, 4, 1 }, x:argmin({ 1, 3 }, true):shape())
    assert.are.equal(x:reshape(60):argmax():item(), x:argmax({ 1, 2, 3 }):item())
  end)

  it("of nothing are 0 for sum and norm, -inf for logsumexp, and empty where no row is", function()
    local x = pg.zeros(2, 0)
    assert.are.same({ 0, 0 }, x:sum(2):totable())
    assert.are.same({ 0, 0 }, x:norm(2):totable())
    assert.are.same({ -inf, -inf }, x:logsumexp(2):totable())
    assert.are.same({ 0 }, pg.zeros(0, 3):max(2):shape())
    assert.are.same({ 0 }, pg.zeros(0, 3):argmax(2):shape())
    assert.are.equal(0, ints({}):sum():item())
  end)

  it("send the gradient of max to the first of equal ones, of norm nowhere at 0", function()
    local x = doubles({ 3, 1, 3 }):requires_grad_(true)
    x:max():backward()
    assert.are.same({ 1, 0, 0 }, x.grad:totable())
    for _, p in ipairs { 0.5, 1, 2, 3, inf } do
      local zero = pg.zeros(3, { dtype = "float64" }):requires_grad_(true)
      zero:norm({ p = p }):backward()
      assert.are.same({ 0, 0, 0 }, zero.grad:totable(), tostring(p))
    end
    x.grad = nil
    x:norm({ p = inf }):backward()
    assert.are.same({ 0.5, 0, 0.5 }, x.grad:totable())
    local low = doubles({ -inf, -inf }):requires_grad_(true)
    low:logsumexp():backward()
    assert.are.same({ 0, 0 }, low.grad:totable())
  end)

  it("take the norm of values whose squares leave the range", function()
    for _, size in ipairs { 1e200, 1e-200, 1e-320 } do
      local norm = doubles({ 3 * size, 4 * size }):norm():item()
      assert.is_true(math.abs(norm / (5 * size) - 1) < (size < 1e-300 and 1e-3 or 1e-14), tostring(size))
    end
    assert.are.equal(7, doubles({ 3, -4 }):norm({ p = 1 }):item())
    assert.are.equal(4, doubles({ 3, -4 }):norm({ p = inf }):item())
  end)
end)

describe("normalize", function()
  it("takes any dimension, as a transposed one does", function()
    local x = pg.randn(3, 70, 2)
    for dim = 1, 3 do
      local want = x:transpose(dim, 3):normalize():transpose(dim, 3)
      assert.is_true((x:normalize(dim) - want):abs():max():item() < 1e-6)
      assert.are.equal(0, (x:normalize(dim) - x:normalize(dim - 4)):abs():max():item())
      assert.is_true((x:normalize(dim):norm(dim) - 1):abs():max():item() < 1e-6)
    end
  end)
end)

describe("where", function()
  it("broadcasts all three, takes numbers and any dtype", function()
    local x = pg.tensor { { 1, -2 }, { -3, 4 } }
    assert.are.same({ { 1, 0 }, { 0, 4 } }, x:gt(0):where(x, 0):totable())
    assert.are.same({ { 9, -2 }, { -3, 9 } }, pg.where(x:gt(0), 9, x):totable())
    assert.are.same({ { 1, -1 }, { -1, 1 } }, pg.where(x:gt(0), 1, -1):totable())
    assert.are.equal("float32", pg.where(x:gt(0), 1, -1):dtype())
    assert.are.same({ { 1, 2 }, { 7, 7 } }, pg.where(bytes { { 1 }, { 0 } }, ints { 1, 2 }, 7):totable())
    assert.are.same({ 1, 8 }, bytes({ 1, 0 }):where(bytes { 1, 2 }, bytes { 8 }):totable())
  end)

  it("keeps a NaN that was not picked out of the gradient", function()
    local x = doubles({ -1, 4 }):requires_grad_(true)
    x:detach():gt(0):where(x, 1):log():sum():backward()
    assert.are.same({ 0, 0.25 }, x.grad:totable())
  end)
end)

describe("split", function()
  it("gives views of one size or of a list of sizes, and gradients flow through each", function()
    local x = pg.arange(10, nil, nil, { dtype = "float64" }):reshape(2, 5):requires_grad_(true)
    local sizes = {}
    for i, piece in ipairs(x:split(2, 2)) do sizes[i] = piece:size(2) end
    assert.are.same({ 2, 2, 1 }, sizes)
    local parts = x:split({ 1, 0, 4 }, -1)
    assert.are.same({ { 2, 3, 4, 5 }, { 7, 8, 9, 10 } }, parts[3]:totable())
    assert.are.same({ 2, 0 }, parts[2]:shape());
    ((parts[1] * 10):sum() + parts[3]:sum()):backward()
    assert.are.same({ { 10, 1, 1, 1, 1 }, { 10, 1, 1, 1, 1 } }, x.grad:totable())
    assert.are.same({ 1, 5 }, x:split(1)[2]:shape())
  end)
end)

describe("pad", function()
  it("takes as many dimensions as a tensor has", function()
    local pads = {}
    for i = 1, 16 do pads[i] = i % 3 == 0 and 1 or 0 end
    local x = pg.ones(1, 1, 1, 1, 1, 1, 1, 1)
    local y = x:pad(pads)
    assert.are.same({ 1, 2, 2, 1, 2, 2, 1, 2 }, y:shape())
    assert.are.equal(1, y:sum():item())
    assert.are.equal(1, y:get(1, 2, 1, 1, 2, 1, 1, 2))
  end)
end)

describe("gradients that were stretched", function()
  it("are sums over what was stretched, whatever the place", function()
    for _, shape in ipairs { { 4, 3, 5, 2 }, { 1, 3, 1, 2 }, { 4, 1, 5, 1 }, { 3, 5, 2 }, { 1 }, { 5, 1 }, { 4, 3, 1, 1 } } do
      local small = pg.randn(shape, { dtype = "float64" }):requires_grad_(true)
      local wide = pg.randn(4, 3, 5, 2, { dtype = "float64" });
      (small * wide):sum():backward()
      local dims = {}
      for d = 1, 4 do
        local own = d - (4 - #shape)
        if own < 1 or shape[own] == 1 then dims[#dims + 1] = d end
      end
      local want = (#dims > 0 and wide:sum(dims) or wide):reshape(shape)
      assert.is_true((want - small.grad):abs():max():item() < 1e-12, table.concat(shape, " "))
    end
  end)

  it("of add and sub keep neither operand", function()
    local x = pg.ones(3):requires_grad_(true)
    local y, other = x * 1, pg.ones(3)
    local sum = (y + other):sum() + (other - y):sum() * 2
    pg.no_grad(function() other:fill_(5) end) -- a saved operand would make backward refuse
    sum:backward()
    assert.are.same({ -1, -1, -1 }, x.grad:totable())
  end)
end)

-- What a sum gets from behind it is handed on as it is to both sides: nothing may be added to it there.
describe("the gradient of a sum", function()
  local function leaf(...) return pg.randn(...):to("float64"):requires_grad_(true) end

  it("goes to each of them, however often one stands in it", function()
    pg.gradcheck(function(t, u)
      local a, b = t * t, t * u
      local c = a:tanh() -- newer than b: what it adds to a's must not reach b's, which is the same sum's
      local d = (a + b) + c + (c + c) + 1
      return (d + (d + a * u) * d + u):tanh():sum()
    end, { pg.randn(3, 4):to "float64", pg.randn(4):to "float64" })
  end)

  it("leaves what backward was given, and what another pass finds, as it was", function()
    local x = leaf(3, 4)
    local a = x * 2
    local y = a * a + (a + a)
    local g = pg.randn(3, 4, { dtype = "float64" })
    local before = g:totable()
    y:backward { grad = g, retain = true }
    local once = x.grad:totable()
    y:backward(g)
    assert.are.same(before, g:totable())
    local twice = x.grad:totable()
    for i, row in ipairs(once) do
      for j, value in ipairs(row) do assert.is_true(math.abs(2 * value - twice[i][j]) < 1e-12) end
    end
  end)

  it("may be the .grad of a leaf behind it", function()
    local x = leaf(3)
    x.grad = pg.ones(3, { dtype = "float64" })
    local a, b = x * 3, x * 2
    pg.add(a, b):backward(x.grad)
    assert.are.same({ 6, 6, 6 }, x.grad:totable()) -- 1 there, 3 + 2 of it
  end)

  it("adds to a leaf's own gradient alone", function()
    local x, y = leaf(3), leaf(3)
    local g = pg.ones(3, { dtype = "float64" })
    x.grad = g
    local sum = x + y
    pg.add(sum, sum):sum():backward()
    assert.are.same({ 3, 3, 3 }, x.grad:totable())
    assert.are.same({ 3, 3, 3 }, g:totable()) -- it is x's gradient
    assert.are.same({ 2, 2, 2 }, y.grad:totable())
  end)
end)

describe("attention over a packed projection", function()
  it("is attention of its parts, gradients too", function() -- 200 tokens: more than a tile of queries
    for _, case in ipairs { { 2, 5, 3, 4 }, { 1, 200, 2, 8 }, { 3, 1, 1, 6 }, { 2, 129, 4, 3 } } do
      local batch, length, heads, width = unpack(case)
      for _, options in ipairs { {}, { causal = true }, { scale = 0.3 } } do
        for _, shape in ipairs { {}, { length, length }, { 1, heads, length, length }, { batch, 1, length, length } } do
          local mask = shape[1] and pg.randn(unpack(shape)):to "float64" or nil
          local qkv = pg.randn(batch, length, 3 * heads * width):to("float64"):requires_grad_(true)
          local seed = pg.randn(batch, length, heads * width):to "float64"
          local parts = qkv:reshape(batch, length, 3, heads, width):permute(3, 1, 4, 2, 5)
          local expected = pg.attention(parts:select(1, 1), parts:select(1, 2), parts:select(1, 3), mask, options)
            :transpose(2, 3):reshape(batch, length, heads * width)
          expected:backward(seed)
          local gradient = qkv.grad
          qkv.grad = nil
          local found = pg.self_attention(qkv, mask,
            { heads = heads, causal = options.causal, scale = options.scale })
          found:backward(seed)
          assert.is_true((found - expected):abs():max():item() < 1e-12)
          assert.is_true((qkv.grad - gradient):abs():max():item() < 1e-12)
        end
      end
    end
  end)

  it("refuses heads that do not divide it, and masks of another size, in one line", function()
    local function message(...) return tostring(select(2, pcall(pg.self_attention, ...))) end
    assert.matches("a last size of 10 is not 3 times 2 heads of one width", message(pg.zeros(1, 4, 10), { heads = 2 }), 1,
      true)
    assert.matches("the mask is (T, T)", message(pg.zeros(1, 4, 12), pg.zeros(4, 3), { heads = 2 }), 1, true)
    assert.matches("takes (B, T, 3 W)", message(pg.zeros(4, 12), { heads = 2 }), 1, true)
  end)
end)

describe("threads", function()
  local threads = pg.threads()
  after_each(function() pg.threads(threads) end)

  it("change no bit: elementwise, where, picking, adding up, normalising", function()
    pg.seed(8)
    local x, y = pg.randn(7, 300, 70), pg.randn(300, 1)
    local rows, places = (pg.rand(900) * 300):to "int32" + 1, (pg.rand(7, 200, 70) * 300):to "int32" + 1
    local row = pg.randn(70)
    local function run(n)
      pg.threads(n)
      local a, b, r = x:clone():requires_grad_(true), y:clone():requires_grad_(true), row:clone():requires_grad_(true)
      local picked = a:index(2, rows):sum() + a:gather(2, places):mul(1.5):sum() + (a:ge(0):where(a * b, r) + r):sum()
      local total = picked + (a:normalize(2) * a / (b * b + 1)):sum() + (r - a):abs():sum()
        + pg.scatter_add(a, places, places:to("float32"), { dim = 2 }):var()
        + pg.embedding(a:select(1, 1), rows):maximum(r):norm(1, { p = 3 }):sum()
      total:backward()
      return { total, a.grad, b.grad, r.grad, a:gt(b), rows * 3 + 1 }
    end
    local one, three = run(1), run(3)
    for i = 1, #one do assert.are.equal(1, one[i]:eq(three[i]):min():item(), i) end
  end)
end)

describe("values as text and numbers", function()
  it("print NaN and infinity, read 0-dimensional tensors, and leave no nil behind a result", function()
    local text = tostring(pg.tensor { nan, inf, -inf, 1e-9 })
    assert.matches("nan", text) assert.matches("-inf", text) assert.matches("1.000e%-09", text)
    assert.are.equal(2.5, pg.tensor(2.5):totable())
    assert.are.equal(6, pg.tensor({ { 1, 2, 3 }, { 4, 5, 6 } }):get(-1, -1))
    assert.are.equal(1, select("#", pg.ones(2):exp()))
    assert.are.equal(2, select("#", pg.ones(2):topk(1)))
  end)

  it("arange is whole where its steps are, and meets its end", function()
    assert.are.same({ "int32", "float32", "float64" }, { pg.arange(3):dtype(), pg.arange(0, 1, 0.25):dtype(),
      pg.arange(1, 2, 1, { dtype = "float64" }):dtype() })
    assert.are.equal(4, pg.arange(0, 0.3, 0.1):numel())
    assert.are.same({ 5, 3, 1 }, pg.arange(5, 1, -2):totable())
    assert.are.same({ 0 }, pg.arange(1, 0):shape())
  end)
end)
