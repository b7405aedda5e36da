-- bf16_spec.lua - mixed precision: products of bfloat16 operands against their definition, with AVX-512 BF16 where this
-- CPU has it and emulated; what autocast reaches; and that training under it goes as in float32.

local ffi = require "ffi"
local pg = require "perigee"
local lib = require "perigee.ffi"
local expect = require "expect"

local NATIVE = lib.pg_bf16_native(-1)
local KINDS = NATIVE == 1 and { "native", "emulated" } or { "emulated" }
local function use(kind) return lib.pg_bf16_native(kind == "native" and 1 or 0) end

-- float32 x to the nearest number of 8 bits of mantissa, ties to even; denormals to zero. By arithmetic on the bits.
local word = ffi.new "union { float value; uint32_t bits; }"
local function rounded(x)
  if x ~= x then return x end
  word.value = x
  local bits = tonumber(word.bits)
  local sign, size = bits >= 2 ^ 31 and 2 ^ 31 or 0, bits % 2 ^ 31
  local rest, kept = size % 65536, size - size % 65536
  if size < 2 ^ 23 then kept = 0
  elseif size ~= 0x7f800000 and (rest > 32768 or rest == 32768 and kept / 65536 % 2 == 1) then kept = kept + 65536 end
  word.bits = sign + kept
  return tonumber(word.value)
end

local function round_tensor(t)
  local flat, out = t:detach():reshape(t:numel()):totable(), {}
  for i, x in ipairs(flat) do out[i] = rounded(x) end
  return pg.tensor(out, { dtype = "float64" }):reshape(t:shape())
end

-- Products of rounded operands, and how far float32 sums in any order may be from them: k roundings of partial sums, none
-- of which is larger than the sum of all sizes.
local function product(a, b)
  local k = a:size(2)
  return a:matmul(b), a:abs():matmul(b:abs()) * (k * 2 ^ -24) + 1e-37
end

local function within(got, expected, bound, what)
  local over = ((got:to("float64") - expected):abs() - bound):max():item()
  assert.is_true(over <= 0, ("%s is %g beyond what summing explains"):format(what, over))
end

local function same(a, b, what)
  assert.are.equal(0, (a - b):abs():max():item(), what)
end

-- y, dx, dW and db of one layer under autocast.
local function layer(x, w, b, dy, precision)
  x, w, b = x:detach():requires_grad_(true), w:detach():requires_grad_(true), b and b:detach():requires_grad_(true)
  local y = pg.autocast(precision or "bf16", pg.linear, x, w, b)
  y:backward { grad = dy }
  return { y:detach(), x.grad, w.grad, b and b.grad }
end

describe("bfloat16 products", function()
  local threads = pg.threads()
  before_each(function() pg.seed(3) end)
  after_each(function()
    lib.pg_bf16_native(1)
    pg.threads(threads)
  end)

  it("the instruction is used where the CPU has it, unless emulation is asked for", function()
    local file = assert(io.open "/proc/cpuinfo")
    local has = file:read("*a"):find("avx512_bf16", 1, true) ~= nil
    file:close()
    assert.are.equal(has and 1 or 0, NATIVE)
    assert.are.equal(0, lib.pg_bf16_native(0))
    assert.are.equal(0, lib.pg_bf16_native(-1))
    assert.are.equal(NATIVE, lib.pg_bf16_native(1))
  end)

  for _, kind in ipairs(KINDS) do
    it(kind .. ": forward and backward are the products of the rounded operands, at the edges of tiles", function()
      use(kind)
      local sizes = { 1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 65, 100 }
      for i, rows in ipairs(sizes) do
        for j = 1, #sizes, 3 do
          local inputs, outputs = sizes[(i + j) % #sizes + 1], sizes[j]
          local x, w, b = pg.randn(rows, inputs), pg.randn(outputs, inputs), pg.randn(outputs)
          local dy = pg.randn(rows, outputs)
          local got = layer(x, w, b, dy)
          local what = ("%d x %d x %d "):format(rows, inputs, outputs)
          local rx, rw, rdy = round_tensor(x), round_tensor(w), round_tensor(dy)
          local y, bound = product(rx, rw:t())
          within(got[1], y + b:to("float64"), bound + 2 ^ -22 * (y:abs() + b:to("float64"):abs()), what .. "y")
          local dx, dx_bound = product(rdy, rw)
          within(got[2], dx, dx_bound, what .. "dx")
          local dw, dw_bound = product(rdy:t(), rx)
          within(got[3], dw, dw_bound, what .. "dW")
          within(got[4], dy:to("float64"):sum { 1 }, dy:to("float64"):abs():sum { 1 } * (rows * 2 ^ -24), what .. "db")
        end
      end
    end)

    it(kind .. ": a product over several blocks and threads", function()
      use(kind)
      local x, w = pg.randn(700, 257), pg.randn(450, 257)
      local y, bound = product(round_tensor(x), round_tensor(w):t())
      for n = 1, 3 do
        pg.threads(n)
        within(pg.autocast("bf16", pg.linear, x, w), y, bound, n .. " threads")
      end
    end)

    it(kind .. ": rounds to nearest, ties to even, and keeps signs, infinities and NaN", function()
      use(kind)
      local inf, denormal = math.huge, 2 ^ -127
      local values = { 0, 1, -1, 1 + 2 ^ -8, 1 + 3 * 2 ^ -8, 1 + 2 ^ -8 + 2 ^ -20, -(1 + 2 ^ -8), 3.3895314e38, -3.4e38,
        2 ^ -126, -2 ^ -126 * (1 + 2 ^ -8), denormal, -denormal, 2 ^ -149, inf, -inf, 0 / 0, math.pi, 1e-30, 65504 }
      local column = pg.tensor(values):reshape(#values, 1)
      for k = 1, 2 do -- alone in a pair, and beside a zero
        local x, w = k == 1 and column or pg.cat({ column, pg.zeros(#values, 1) }, 2), pg.ones(1, k)
        local y = pg.autocast("bf16", pg.linear, x, w):totable()
        for i, value in ipairs(values) do
          local expected, got = rounded(tonumber(ffi.cast("float", value))), y[i][1]
          assert.is_true(expected == got or (expected ~= expected and got ~= got),
            ("%g became %.9g, not %.9g"):format(value, got, expected))
        end
      end
    end)

    it(kind .. ": NaN and infinity stay in their own rows, and infinity times zero is NaN", function()
      use(kind)
      local x, w = pg.randn(40, 37), pg.randn(50, 37)
      local clean = pg.autocast("bf16", pg.linear, x, w)
      local spoilt = x:clone()
      spoilt:select(1, 9):select(1, 36):fill_(0 / 0)
      spoilt:select(1, 33):select(1, 37):fill_(math.huge)
      w:select(1, 4):select(1, 37):fill_(0)
      local y = pg.autocast("bf16", pg.linear, spoilt, w)
      clean:narrow(2, 4, 1):copy_(pg.autocast("bf16", pg.linear, x, w):narrow(2, 4, 1))
      for i = 1, 40 do
        local row = y:select(1, i)
        if i == 9 then for _, v in ipairs(row:totable()) do assert.is_true(v ~= v) end
        elseif i == 33 then
          for j, v in ipairs(row:totable()) do
            assert.is_true(j == 4 and v ~= v or j ~= 4 and math.abs(v) == math.huge, ("column %d: %g"):format(j, v))
          end
        else same(clean:select(1, i), row, "row " .. i) end
      end
    end)

    it(kind .. ": views give what contiguous tensors give", function()
      use(kind)
      local x, w, dy = pg.randn(33, 20), pg.randn(17, 20), pg.randn(33, 17)
      local expected = layer(x, w, nil, dy)
      local wide = pg.randn(40, 25)
      wide:narrow(1, 5, 33):narrow(2, 3, 20):copy_(x)
      local views = { x:t():contiguous():t(), wide:narrow(1, 5, 33):narrow(2, 3, 20) }
      for i, view in ipairs(views) do
        local got = layer(view, w:t():contiguous():t(), nil, dy:t():contiguous():t())
        for j = 1, 3 do same(expected[j], got[j], ("view %d, tensor %d"):format(i, j)) end
      end
      local batched = layer(x:reshape(3, 11, 20), w, nil, dy:reshape(3, 11, 17))
      same(expected[1], batched[1]:reshape(33, 17), "three dimensions")
    end)

    it(kind .. ": an empty sum is the bias, and no rows are no rows", function()
      use(kind)
      local y = pg.autocast("bf16", pg.linear, pg.zeros(3, 0), pg.zeros(2, 0), pg.tensor { 5, 7 })
      assert.are.same({ { 5, 7 }, { 5, 7 }, { 5, 7 } }, y:totable())
      assert.are.same({ 0, 2 }, pg.autocast("bf16", pg.linear, pg.zeros(0, 4), pg.zeros(2, 4)):shape())
    end)
  end

  if NATIVE == 1 then
    it("the instruction's results are the same bits on any number of threads", function()
      local x, w, b, dy = pg.randn(401, 190), pg.randn(333, 190), pg.randn(333), pg.randn(401, 333)
      pg.threads(1)
      local one = layer(x, w, b, dy)
      for n = 1, 4 do
        pg.threads(n)
        local again = layer(x, w, b, dy)
        for i = 1, 3 do same(one[i], again[i], ("%d threads, tensor %d"):format(n, i)) end
      end
    end)
  end
end)

describe("autocast", function()
  local x, w, dy

  before_each(function()
    pg.seed(4)
    x, w, dy = pg.randn(9, 30), pg.randn(8, 30), pg.randn(9, 8)
  end)

  local function differ(a, b) return (a - b):abs():max():item() > 0 end

  it("rounds what is called inside, and only that", function()
    local plain, half = layer(x, w, nil, dy, "fp32"), layer(x, w, nil, dy, "bf16")
    for i = 1, 3 do
      assert.is_true(differ(plain[i], half[i]))
      expect.closer(2e-2)(plain[i], half[i], "tensor " .. i)
      same(plain[i], layer(x, w, nil, dy, "fp32")[i], "float32 after it")
    end
  end)

  it("backward has the precision of its forward call, wherever it is called", function()
    local function gradient(forward, backward)
      local leaf = w:detach():requires_grad_(true)
      local y = pg.autocast(forward, pg.linear, x, leaf)
      pg.autocast(backward, function() y:backward { grad = dy } end)
      return leaf.grad
    end
    same(gradient("bf16", "bf16"), gradient("bf16", "fp32"), "recorded under bf16")
    same(gradient("fp32", "fp32"), gradient("fp32", "bf16"), "recorded under fp32")
  end)

  it("nests, passes arguments and results, and is over after an error", function()
    local inner, outer, plain = nil, nil, pg.linear(x, w)
    local a, b = pg.autocast("bf16", function(one, two)
      inner = pg.autocast("fp32", pg.linear, x, w)
      outer = pg.linear(x, w)
      return two, one
    end, 1, 2)
    assert.are.same({ 2, 1 }, { a, b })
    same(plain, inner, "float32 inside")
    assert.is_true(differ(plain, outer))
    expect.fails("on purpose", pg.autocast, "bf16", function() error("on purpose", 0) end)
    same(plain, pg.linear(x, w), "after an error")
    expect.fails("autocast: the precision is fp32 or bf16, got 'fp16'", pg.autocast, "fp16", function() end)
  end)

  it("leaves float64, parameters, and every other op as they are", function()
    local wide = pg.autocast("bf16", pg.linear, x:to "float64", w:to "float64")
    same(pg.linear(x:to "float64", w:to "float64"), wide, "float64")
    local q = pg.randn(1, 2, 5, 4)
    assert.are.equal("float32", pg.autocast("bf16", pg.linear, x, w):dtype())
    same(pg.attention(q, q, q), pg.autocast("bf16", pg.attention, q, q, q), "attention")
    same(x:matmul(w:t()), pg.autocast("bf16", function() return x:matmul(w:t()) end), "matmul")
    local p = w:detach():requires_grad_(true)
    local adamw = pg.optim.AdamW({ p }, { lr = 1e-4, weight_decay = 0 }) -- steps far below bfloat16's spacing near 1
    local before = p:detach():clone()
    pg.autocast("bf16", pg.linear, x, p):sum():backward()
    adamw:step()
    expect.closer(1e-6)(pg.full({ 8, 30 }, 1e-4), (p:detach() - before):abs(), "a step of the master weights")
  end)
end)

-- ---- training -------------------------------------------------------------------------------------------------------

-- Losses of 200 steps of a small transformer that learns to tell noisy patterns apart, as means of 20 steps.
local function curve(seed, precision)
  pg.seed(seed)
  local model = pg.models.vit { image = 16, patch = 4, width = 64, depth = 2, heads = 4 }
  local head = pg.models.head(64, 8)
  local parameters = model:parameters()
  for _, t in ipairs(head:parameters()) do parameters[#parameters + 1] = t end
  local adamw = pg.optim.AdamW(parameters, { lr = 1e-3, weight_decay = 0.05 })
  local patterns, means, sum = pg.randn(8, 3, 16, 16), {}, 0
  for step = 1, 200 do
    local list = {}
    for i = 1, 32 do list[i] = (i + step) % 8 + 1 end
    local labels = pg.tensor(list, { dtype = "int32" })
    local images = patterns:index(1, labels) * 0.25 + pg.randn(32, 3, 16, 16)
    adamw:zero_grad()
    local loss = pg.autocast(precision, function() return pg.cross_entropy(head(model(images)) * 10, labels) end)
    loss:backward()
    adamw:step()
    sum = sum + loss:item()
    if step % 20 == 0 then means[#means + 1], sum = sum / 20, 0 end
  end
  return means
end

describe("200 steps under autocast", function()
  it("lose what they lose in float32, within a tenth of what another seed makes", function()
    local plain, half, off, spread = {}, {}, 0, 0
    for seed = 1, 3 do plain[seed], half[seed] = curve(seed, "fp32"), curve(seed, "bf16") end
    for i = 1, 10 do
      local mean = (plain[1][i] + plain[2][i] + plain[3][i]) / 3
      for seed = 1, 3 do
        off = off + math.abs(half[seed][i] - plain[seed][i]) / 30
        spread = spread + math.abs(plain[seed][i] - mean) / 30
      end
    end
    for seed = 1, 3 do
      assert.is_true(plain[seed][10] < 0.6 * plain[seed][1], "it learns nothing")
      assert.is_true(plain[seed][10] ~= half[seed][10], "the precision changes nothing")
    end
    assert.is_true(off < spread / 10, ("off by %.4f, seeds by %.4f"):format(off, spread))
  end)
end)
