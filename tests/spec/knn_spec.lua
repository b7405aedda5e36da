-- knn against brute force, and against itself: screened or not, mirrored or not, on one thread or two, to the bit.
local pg = require "perigee"
local ffi = require "ffi"
local lib = require "perigee.ffi"

-- The k best of every row of scores, as rows of places from 1: the greatest first, of equal ones the lower place.
local function best(scores, k, self)
  local rows = {}
  for i, row in ipairs(scores:totable()) do
    local order = {}
    for j = 1, #row do
      if not (self and i == j) then order[#order + 1] = j end
    end
    table.sort(order, function(a, b) return row[a] > row[b] or (row[a] == row[b] and a < b) end)
    rows[i] = {}
    for j = 1, k do rows[i][j] = order[j] end
  end
  return rows
end

-- Small integers: every similarity is exact, and ties abound.
local function integers(n, d, top, shift) return (pg.rand(n, d) * top):to("int32"):to("float32") + (shift or 0) end

describe("knn against brute force", function()
  for _, dtype in ipairs { "float32", "float64" } do
    for _, self in ipairs { false, true } do
      it(("with ties, ip and l2, %s, %s"):format(dtype, self and "a set with itself" or "queries"), function()
        pg.seed(4)
        for _, n in ipairs { 1, 95, 96, 97, 300 } do
          local b = integers(n, 5, 3):to(dtype)
          local a, k = self and b or integers(101, 5, 3):to(dtype), math.min(n, 7)
          for metric, scores in pairs { ip = a:matmul(b:t()), l2 = -pg.squared_distances(a, b) } do
            local values, index = pg.knn(a, b, { k = k, metric = metric })
            assert.are.same(best(scores, k), index:totable())
            assert.are.equal(scores:max():item(), metric == "l2" and -values:min():item() or values:max():item())
            if self and n > 1 then
              local _, others = pg.knn(a, b, { k = math.min(k, n - 1), metric = metric, exclude_self = true })
              assert.are.same(best(scores, math.min(k, n - 1), true), others:totable())
            end
          end
        end
      end)
    end
  end

  it("l2 of points that are close together and far from zero", function()
    pg.seed(5)
    local a, b = integers(50, 16, 8, 4096), integers(700, 16, 8, 4096)
    local _, index = pg.knn(a, b, { k = 9, metric = "l2" })
    assert.are.same(best(-pg.squared_distances(a, b), 9), index:totable())
  end)

  it("a k of all rows, and more than one thread for one query", function()
    pg.seed(6)
    local a, b = integers(1, 40, 9), integers(3000, 40, 9)
    local _, index = pg.knn(a, b, { k = 3000, metric = "ip" })
    assert.are.same(best(a:matmul(b:t()), 3000), index:totable())
  end)
end)

describe("knn gives the same bits", function()
  local threads = pg.threads()
  after_each(function() pg.threads(threads) end)

  local function agree(a, b, options)
    local function run(first, screen, n)
      pg.threads(n)
      local values, index = pg.knn(first, b, { k = options.k, metric = options.metric, exclude_self = options.self,
        screen = screen })
      return values, index
    end
    local values, index = run(a, true, 1)
    for _, other in ipairs { { a, true, 3 }, { a, false, 1 }, { a:clone(), true, 2 }, { a:clone(), false, 2 } } do
      local v, i = run(unpack(other))
      assert.are.same(values:totable(), v:totable())
      assert.are.same(index:totable(), i:totable())
    end
  end

  for _, metric in ipairs { "ip", "cosine", "l2" } do
    it("screened or not, from any number of threads, queries and a set with itself, by " .. metric, function()
      pg.seed(7)
      local b = pg.randn(2500, 97)
      agree(pg.randn(200, 97), b, { k = 5, metric = metric })
      agree(b, b, { k = 5, metric = metric, self = true })
      local close = pg.randn(1, 97) + pg.randn(2500, 97) * 1e-3 -- bfloat16 tells none of these apart
      agree(pg.randn(100, 97), close, { k = 5, metric = metric })
    end)
  end
end)

-- The rows that rounding to bfloat16 treats worst: all their errors have one sign, and the bound is met. One row is the
-- nearest by a thirtieth of what it loses.
describe("what screening must not lose", function()
  local D, N, NEAREST = 64, 3000, 2001
  local below = 1 + 2 ^ -8 - 2 ^ -16 -- becomes 1

  local function nearest(query, row, others)
    local rows = {}
    for i = 1, N do rows[i] = i == NEAREST and row or others end
    local _, index = pg.knn(pg.tensor { query }, pg.tensor(rows), { k = 1, metric = "ip" })
    return index:item()
  end

  -- `high` of the values one step of bfloat16 above 1
  local function exact(high)
    local row = {}
    for i = 1, D do row[i] = i <= high and 1 + 2 ^ -7 or 1 end
    return row
  end

  local function all(value)
    local row = {}
    for i = 1, D do row[i] = value end
    return row
  end

  it("by the row's rounding", function() assert.are.equal(NEAREST, nearest(exact(0), all(below), exact(31))) end)

  it("by the query's", function() assert.are.equal(NEAREST, nearest(all(below), exact(32), exact(31))) end)
end)

it("knn takes little memory for a million rows, beyond what it returns", function()
  local a, b, stats = pg.randn(100, 8), pg.randn(1000000, 8), ffi.new "pg_memory"
  lib.pg_memory_reset_peak(lib.PG_CPU)
  lib.pg_memory_stats(lib.PG_CPU, stats)
  local before = stats.live
  pg.knn(a, b, { k = 8, metric = "cosine" })
  lib.pg_memory_stats(lib.PG_CPU, stats)
  assert.is_true(stats.peak - before < 32 * 2 ^ 20)
end)
