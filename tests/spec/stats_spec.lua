-- stats_spec.lua - means, intervals and correlations against SciPy 1.10's values (scipy.stats.t, pearsonr, spearmanr).

local pg = require "perigee"
local stats = pg.stats

local X, Y = { 1, 2, 2, 3.5, -1, 0.25, 7, 7 }, { 0.3, 1.9, 2.5, 2.5, -3, 1, 4, 9 }

local function near(want, got, tolerance)
  assert.is_true(math.abs(want - got) <= tolerance, ("%.10g, wanted %.10g"):format(got, want))
end

describe("stats", function()
  it("know Student's t", function()
    for degrees, t in pairs { [1] = 12.70620474, [4] = 2.77644511, [10] = 2.22813885, [11] = 2.20098516, [15] = 2.13144955,
      [30] = 2.04227246, [100] = 1.98397152 } do
      near(t, stats.t(degrees), 1e-8 * t)
    end
  end)

  it("give a mean with its interval, and none around one value", function()
    local mean, half = stats.interval { 81.2, 79.9, 80.4, 82.0, 80.1 }
    near(80.72, mean, 1e-9)
    near(1.0803190, half, 1e-4)
    mean, half = stats.interval { 3 }
    assert.are.equal(3, mean)
    assert.is_true(half ~= half) -- nothing is known of it
    mean = stats.interval {}
    assert.is_true(mean ~= mean)
  end)

  it("correlate, by value and by rank, with ties", function()
    near(0.8851918127274176, stats.pearson(X, Y), 1e-9)
    near(0.9515326270223113, stats.spearman(X, Y), 1e-9)
    assert.are.equal(0, stats.pearson({ 1, 2 }, { 5, 5 }))
    assert.has_error(function() stats.pearson({ 1, 2 }, { 1, 2, 3 }) end)
  end)

  it("bound a correlation by whole clusters", function()
    local low, high = stats.bootstrap(stats.pearson, X, Y, { draws = 500 })
    local r = stats.pearson(X, Y)
    assert.is_true(low < r and r < high and high <= 1)
    local x, y, clusters = {}, {}, {}
    for i = 1, #X do -- each point four times: the interval must not shrink for it
      for _ = 1, 4 do x[#x + 1], y[#y + 1], clusters[#clusters + 1] = X[i], Y[i], i end
    end
    local wide_low, wide_high = stats.bootstrap(stats.pearson, x, y, { draws = 500, clusters = clusters })
    near(low, wide_low, 1e-12)
    near(high, wide_high, 1e-12)
    local narrow_low, narrow_high = stats.bootstrap(stats.pearson, x, y, { draws = 500 })
    assert.is_true(narrow_high - narrow_low < 0.8 * (high - low))
  end)
end)
