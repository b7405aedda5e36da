-- otdd_spec.lua - entropic transport and the distance of data sets against POT, SciPy and geomloss (fixtures by
-- make_otdd.py), and at their edges.

local pg = require "perigee"

local function load(case, name) return pg.npy.load(("tests/fixtures/otdd/%s.%s.npy"):format(case, name)) end
local function number(case, name) return load(case, name):item() end

local function near(expected, got, tolerance, what)
  assert.is_true(math.abs(expected - got) <= tolerance, ("%s: expected %.12g, got %.12g"):format(what or "", expected, got))
end

local function close(expected, got, tolerance, what)
  assert.are.same(expected:shape(), got:shape(), what)
  near(0, (expected - got:to("float64")):abs():max():item(), tolerance, what)
end

local function fails(patterns, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, "expected an error with '" .. patterns[1] .. "'")
  for _, pattern in ipairs(patterns) do assert.is_truthy(tostring(message):find(pattern, 1, true), tostring(message)) end
  assert.is_nil(tostring(message):find("\n", 1, true))
end

local function ints(list) return pg.tensor(list, { dtype = "int32" }) end

-- n labels 1, 2 .. classes, 1, ...
local function labels(n, classes)
  local list = {}
  for i = 1, n do list[i] = (i - 1) % classes + 1 end
  return ints(list)
end

describe("softmin", function()
  before_each(function() pg.seed(4) end)

  it("is the logsumexp that it stands for, both ways", function()
    for _, shape in ipairs { { 37, 301 }, { 300, 65 }, { 1, 9 }, { 9, 1 } } do
      for dtype, tolerance in pairs { float32 = 2e-5, float64 = 1e-12 } do
        local cost, eps = pg.rand(unpack(shape)):to(dtype) * 3, 0.05
        local g, b = pg.randn(shape[2]):to(dtype), pg.randn(shape[2]):to(dtype)
        local plain = ((g / eps + b):unsqueeze(1) - cost / eps):logsumexp(2) * -eps
        local transposed = cost:t():contiguous()
        close(plain:to("float64"), pg.softmin(cost, g, b, { eps = eps }), tolerance, "rows")
        close(plain:to("float64"), pg.softmin(transposed, g, b, { eps = eps, transpose = true }), tolerance, "columns")
      end
    end
  end)

  it("has an answer at the ends: no mass, all mass in one place, a tiny eps, NaN", function()
    local cost, zeros = pg.rand(3, 40), pg.zeros(40)
    local nothing = zeros - math.huge
    for _, transpose in ipairs { false, true } do
      local function run(c, g, b, eps)
        if transpose then c = c:t():contiguous() end
        return pg.softmin(c, g, b, { eps = eps, transpose = transpose })
      end
      assert.are.same({ math.huge, math.huge, math.huge }, run(cost, zeros, nothing, 0.1):totable())
      close(cost:min(2):to("float64"), run(cost, zeros, nil, 1e-9), 1e-6, "the least of each row")
      local one = run(cost, zeros, pg.cat({ zeros:narrow(1, 1, 1), nothing:narrow(1, 1, 39) }, 1), 0.1)
      close(cost:select(2, 1):to("float64"), one, 1e-6, "one place")
      local bad = pg.cat({ pg.tensor { 0 / 0 }, zeros:narrow(1, 1, 39) }, 1)
      for _, v in ipairs(run(cost, bad, nil, 0.1):totable()) do assert.is_true(v ~= v) end
    end
  end)

  it("names the side that does not fit", function()
    fails({ "softmin: the sum runs over columns: potential takes 4 values", "(3, 4)" }, pg.softmin, pg.rand(3, 4),
      pg.zeros(3), { eps = 1 })
    fails({ "the sum runs over rows: log_weights takes 3 values" }, pg.softmin, pg.rand(3, 4), pg.zeros(3), pg.zeros(4),
      { eps = 1, transpose = true })
  end)
end)

describe("squared_distances", function()
  it("does not cancel: rows that are close and far from 0, and none with itself", function()
    pg.seed(5)
    local x = pg.randn(19, 33):to("float64")
    local apart = pg.squared_distances(x, x)
    for i = 1, 19 do assert.are.equal(0, apart:get(i, i)) end
    local far = (x:to("float32") / 1024 + 64):contiguous() -- 64 and a few units in its last places
    local expected = pg.squared_distances(far:to("float64"), far:to("float64"))
    close(expected * 1e6, pg.squared_distances(far, far):to("float64") * 1e6, 1e-4)
    local plain = x:unsqueeze(2) - x:unsqueeze(1)
    close((plain * plain):sum(3), apart, 1e-11)
  end)
end)

describe("linalg", function()
  it("eigh takes a symmetric matrix apart, from its lower half", function()
    pg.seed(6)
    local half = pg.randn(9, 9):to("float64")
    local x = half + half:t()
    local w, v = pg.linalg.eigh(x)
    close(x, (v * w:unsqueeze(1)):matmul(v:t()), 1e-12)
    close(pg.eye(9):to("float64"), v:t():matmul(v), 1e-12)
    local list = w:totable()
    for i = 2, 9 do assert.is_true(list[i] >= list[i - 1]) end
    local lower = x:clone():totable()
    for i = 1, 9 do for j = i + 1, 9 do lower[i][j] = 99 end end
    close(w, (pg.linalg.eigh(pg.tensor(lower, { dtype = "float64" }))), 1e-12)
  end)

  it("nuclear norms are the sums of singular values, of long, short and empty factors", function()
    pg.seed(7)
    local f = { pg.randn(3, 5):to("float64"), pg.randn(11, 5):to("float64"), pg.zeros(0, 5, { dtype = "float64" }),
      pg.zeros(4, 5, { dtype = "float64" }) }
    local norms = pg.linalg.nuclear_norms(f)
    for i = 1, 4 do
      for j = 1, 4 do
        local product, sum = f[i]:matmul(f[j]:t()), 0
        if f[i]:size(1) * f[j]:size(1) > 0 then
          for _, w in ipairs(pg.linalg.eigh(product:t():matmul(product)):totable()) do sum = sum + math.sqrt(math.max(w, 0)) end
        end
        near(sum, norms:get(i, j), 1e-6, i .. ", " .. j)
      end
    end
    near((f[2] * f[2]):sum():item(), norms:get(2, 2), 1e-12, "a trace")
  end)

  it("takes large matrices apart panel by panel, and values near the ends of the range", function()
    pg.seed(8)
    local double, n = { dtype = "float64" }, 700
    local half = pg.randn(n, n, double)
    local x = half + half:t()
    for _, scale in ipairs { 1, 1e-170, 1e170 } do
      local w, v = pg.linalg.eigh(x * scale)
      close(x, (v * w:unsqueeze(1)):matmul(v:t()) / scale, 1e-12)
      close(pg.eye(n, double), v:t():matmul(v), 1e-12)
    end
    local long, short = pg.randn(3500, 600, double), pg.randn(560, 600, double) -- 3,500 rows are folded in two steps
    local norms = pg.linalg.nuclear_norms { long, short }
    local s = long:matmul(short:t())
    near(pg.linalg.eigh(s:t():matmul(s)):sqrt():sum():item(), norms:get(1, 2), 1e-6, "a product of 3,500 by 560")
    near((long * long):sum():item(), norms:get(1, 1), 1e-6, "a trace of 600")
  end)

  it("refuses what it cannot take", function()
    fails({ "eigh: takes a square matrix (N, N), float64 on the cpu, got (2, 3) float64" }, pg.linalg.eigh,
      pg.zeros(2, 3, { dtype = "float64" }))
    fails({ "eigh", "got (2, 2) float32" }, pg.linalg.eigh, pg.zeros(2, 2))
    fails({ "eigh: 4 values are not finite" }, pg.linalg.eigh, pg.zeros(2, 2, { dtype = "float64" }) / 0)
    fails({ "nuclear_norms: takes matrices (N, D) of one D", "got (3, 4)" }, pg.linalg.nuclear_norms,
      { pg.zeros(2, 5, { dtype = "float64" }), pg.zeros(3, 4, { dtype = "float64" }) })
    fails({ "expected a tensor, got 7" }, pg.linalg.nuclear_norms, { 7 })
  end)
end)

describe("sinkhorn", function()
  it("gives POT's plan, cost and value for weights that are not uniform", function()
    local cost, a, b = load("sinkhorn", "cost"), load("sinkhorn", "a"), load("sinkhorn", "b")
    for _, scaling in ipairs { 0, 0.5 } do
      for _, case in ipairs { "sinkhorn_wide", "sinkhorn_narrow" } do
        local r = pg.metrics.sinkhorn(cost, { a = a, b = b, eps = number(case, "eps"), plan = true, scaling = scaling,
          tolerance = 1e-9 })
        close(load(case, "plan"), r.plan, 1e-8, case)
        near(number(case, "cost"), r.cost, 1e-8, case)
        near(number(case, "value"), r.value, 1e-8, case)
        assert.is_true(r.error <= 1e-9 and r.iterations < 1000)
        local float = pg.metrics.sinkhorn(cost:to("float32"), { a = a, b = b, eps = number(case, "eps"), scaling = scaling })
        near(number(case, "value"), float.value, 1e-5, case)
      end
    end
  end)

  it("stops at n_iter and says how far off it is", function()
    local r = pg.metrics.sinkhorn(load("sinkhorn", "cost"), { eps = 0.05, n_iter = 3 })
    assert.are.equal(3, r.iterations)
    assert.is_true(r.error > 1e-9)
    local plan = pg.metrics.sinkhorn(load("sinkhorn", "cost"), { eps = 0.05, n_iter = 3, plan = true }).plan
    near((plan:sum(2) - 1 / 7):abs():sum():item(), r.error, 1e-12, "the error is that of the rows")
  end)

  it("a tiny eps neither overflows nor gives NaN", function()
    pg.seed(8)
    local r = pg.metrics.sinkhorn(pg.rand(20, 30), { eps = 1e-8, scaling = 0.5, n_iter = 20, plan = true })
    assert.is_true(pg.is_finite(r.f) and pg.is_finite(r.g) and pg.is_finite(r.plan) and r.value == r.value)
    assert.is_true(r.error == r.error and r.error < math.huge)
  end)

  it("a place without mass takes part in nothing", function()
    local cost = load("sinkhorn", "cost")
    local a = pg.tensor({ 0, 0.2, 0.2, 0.2, 0.2, 0.1, 0.1 }, { dtype = "float64" })
    local all = pg.metrics.sinkhorn(cost, { a = a, plan = true })
    local rest = pg.metrics.sinkhorn(cost:narrow(1, 2, 6), { a = a:narrow(1, 2, 6) })
    near(rest.value, all.value, 1e-12)
    assert.are.equal(0, all.plan:select(1, 1):sum():item())
  end)

  it("refuses what it cannot take", function()
    local sinkhorn, cost = pg.metrics.sinkhorn, pg.rand(3, 4)
    fails({ "cost must be (N, M)", "a tensor (3) float32" }, sinkhorn, pg.zeros(3))
    fails({ "cost holds values that are not finite" }, sinkhorn, cost / 0)
    fails({ "a must be a tensor of 3 weights", "(4)" }, sinkhorn, cost, { a = pg.ones(4) / 4 })
    fails({ "b must be 0 or more and sum to 1", "a sum of 2" }, sinkhorn, cost, { b = pg.ones(4) / 2 })
    fails({ "eps must be a number above 0" }, sinkhorn, cost, { eps = 0 })
    fails({ "scaling must be at least 0 and below 1" }, sinkhorn, cost, { scaling = 1 })
    fails({ "symmetric, but cost is a tensor (3, 4)" }, sinkhorn, cost, { symmetric = true })
    fails({ "unknown option 'epsilon'", "'eps'" }, sinkhorn, cost, { epsilon = 1 })
  end)
end)

describe("otdd", function()
  local xa, ya = load("sets", "features_a"), load("sets", "labels_a")
  local xb, yb = load("sets", "features_b"), load("sets", "labels_b")
  local CASES = { gaussian = {}, weighed = { lambda_x = 0.7, lambda_y = 2 }, diagonal = { inner = "diagonal" },
    exact = { inner = "exact", inner_eps = 0.4 }, pca = { pca = 3 } }

  it("is what POT and SciPy put together, for every distance of classes, in both dtypes", function()
    for case, options in pairs(CASES) do
      options.eps = 1
      for dtype, tolerance in pairs { float64 = 1e-6, float32 = 2e-5 } do
        local r = pg.metrics.otdd(xa:to(dtype), ya, xb:to(dtype), yb, options)
        close(load(case, "label_distances"), r.label_distances, tolerance, case)
        near(number(case, "raw"), r.raw, tolerance, case)
        near(math.sqrt(2 * number(case, "raw")), r.rooted, tolerance, case)
        options.debiased = false
        near(number(case, "ab"), pg.metrics.otdd(xa:to(dtype), ya, xb:to(dtype), yb, options).raw, tolerance, case)
        options.debiased = nil
      end
    end
  end)

  it("follows geomloss's schedule when nothing comes after it, and meets POT when it goes on", function()
    local x, y = load("divergence", "x"), load("divergence", "y")
    local function points(options)
      options.lambda_y, options.eps, options.tolerance = 0, 0.3, 1e-9
      return pg.metrics.otdd(x, labels(12, 1), y, labels(9, 1), options).raw
    end
    for _, scaling in ipairs { 0.5, 0.8 } do
      near(number("geomloss_" .. scaling, "raw"), points { scaling = scaling, n_iter = 0 }, 1e-12)
    end
    for _, scaling in ipairs { 0, 0.5, 0.8 } do near(number("divergence", "raw"), points { scaling = scaling }, 1e-9) end
  end)

  it("says what it measured: classes, what was dropped, eps and the scale of the features", function()
    local r = pg.metrics.otdd(xa, ya, xb, yb, { eps = 1 })
    assert.are.same({ { 2, 5, 7 }, { 9 }, { 1, 3 }, {} }, { r.classes_a, r.dropped_a, r.classes_b, r.dropped_b })
    assert.are.same({ 40, 30 }, r.samples)
    assert.are.equal(1, r.eps)
    near(xb:norm(2):mean():item(), r.scale.norm_b, 1e-12)
    assert.is_true(r.scale.points > 0 and r.scale.labels > 0)
    local strict = pg.metrics.otdd(xa, ya, xb, yb, { eps = 1, min_labelcount = 5 })
    assert.are.same({ { 2, 7 }, { 5, 9 } }, { strict.classes_a, strict.dropped_a })
    fails({ "no class of features_a has 50 samples" }, pg.metrics.otdd, xa, ya, xb, yb, { min_labelcount = 50 })
  end)

  it("does not depend on what classes are called or where rows stand", function()
    local first = pg.metrics.otdd(xa, ya, xb, yb, { eps = 1 })
    local order = pg.randperm(41)
    local renamed = {}
    for i, label in ipairs(ya:index(1, order):totable()) do renamed[i] = ({ [2] = 90, [5] = 4, [7] = 31, [9] = 1 })[label] end
    near(first.raw, pg.metrics.otdd(xa:index(1, order), ints(renamed), xb, yb, { eps = 1 }).raw, 1e-9)
    near(first.raw, pg.metrics.otdd(xb, yb, xa, ya, { eps = 1 }).raw, 1e-7, "symmetric")
  end)

  it("is 0 between a set and itself, and between sets of points that are all one", function()
    for dtype, tolerance in pairs { float64 = 1e-9, float32 = 1e-6 } do
      for _, eps in ipairs { 0.1, 1 } do
        local r = pg.metrics.otdd(xa:to(dtype), ya, xa:to(dtype), ya, { eps = eps, n_iter = 5000 })
        near(0, r.raw, tolerance * 10, dtype)
        assert.is_true(r.rooted >= 0 and r.rooted == r.rooted)
      end
      local same = pg.ones(8, 3, { dtype = dtype })
      near(0, pg.metrics.otdd(same, labels(8, 2), same, labels(8, 2)).raw, tolerance)
      near(0, pg.metrics.otdd(same, labels(8, 2), same, labels(8, 2), { inner = "diagonal" }).raw, tolerance)
      near(6, pg.metrics.otdd(same, labels(8, 2), same * 3, labels(8, 2), { lambda_y = 0 }).raw, tolerance * 10) -- 3 * 2^2 / 2
    end
  end)

  it("covariances without rank are no trouble: two samples a class in many dimensions", function()
    pg.seed(9)
    local x = pg.randn(8, 50)
    local r = pg.metrics.otdd(x, labels(8, 4), x + 1, labels(8, 4), { eps = 1 })
    local w = r.label_distances
    for c = 1, 4 do near(50, w:get(c, c + 4), 1e-4) end -- moved by 1 in 50 dimensions, the same shape
    assert.is_true(pg.is_finite(w) and w:min():item() >= 0)
    assert.are.equal(0, w:get(1, 1))
  end)

  it("draws maxsamples points from a seed of its own, and measures classes on all", function()
    pg.seed(10)
    local before = pg.rng_state()
    local options = { eps = 1, maxsamples = 20 }
    local r = pg.metrics.otdd(xa, ya, xb, yb, options)
    assert.are.same(before, pg.rng_state())
    assert.are.same({ 20, 20 }, r.samples)
    close(load("gaussian", "label_distances"), r.label_distances, 1e-6)
    assert.are.equal(r.raw, pg.metrics.otdd(xa, ya, xb, yb, options).raw)
    options.seed = 1
    assert.are_not.equal(r.raw, pg.metrics.otdd(xa, ya, xb, yb, options).raw)
  end)

  it("is finite for a tiny eps", function()
    local r = pg.metrics.otdd(xa:to("float32"), ya, xb:to("float32"), yb, { eps = 1e-7, n_iter = 50 })
    assert.is_true(r.raw == r.raw and math.abs(r.raw) < 100 and r.error < math.huge)
  end)

  it("refuses what it cannot take", function()
    local otdd = pg.metrics.otdd
    fails({ "differ in width", "(41, 6)", "(30, 5)" }, otdd, xa, ya, xb:narrow(2, 1, 5), yb)
    local bad = xb:clone():totable()
    bad[3][2] = 0 / 0
    fails({ "features_b holds values that are not finite" }, otdd, xa, ya, pg.tensor(bad, { dtype = "float64" }), yb)
    fails({ "labels_a must be 41 int32 labels", "(30)" }, otdd, xa, yb, xb, yb)
    fails({ "labels_b must be 30 int32 labels", "float32" }, otdd, xa, ya, xb, yb:to("float32"))
    fails({ "features_a must be (N, D) float", "(41)" }, otdd, ya, ya, xb, yb)
    fails({ "inner must be gaussian, diagonal or exact, got 'full'" }, otdd, xa, ya, xb, yb, { inner = "full" })
    fails({ "min_labelcount must be a whole number, 2 or more" }, otdd, xa, ya, xb, yb, { min_labelcount = 1 })
    fails({ "unknown option 'lambda'" }, otdd, xa, ya, xb, yb, { lambda = 1 })
  end)
end)
