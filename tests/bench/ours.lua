-- ours.lua - one row of tests/bench/bars.lua, our side: `luajit ours.lua ROW ARGUMENTS...` prints "ready", then for every
-- line that it reads does the work once more and prints the seconds and, where there is something to hold against the
-- other side, a number. At the line "end" it prints the peak of its resident memory in bytes, and ends.

local pg = require "perigee"
local timing = dofile "tests/bench/timing.lua"
local ffi = require "ffi"
local lib = require "perigee.ffi"
pg.seed(1)

local VIT = { b32 = { image = 224, patch = 32, width = 768, depth = 12, heads = 12 },
  small = { image = 32, patch = 4, width = 192, depth = 6, heads = 3 } }
local CLASSES = 100

local rows = {}

--- A training step: zero_grad, forward, backward, AdamW. As the recipes take it the last block works for the class token
--- alone; how = "all": for every token, as PyTorch's models do; "recompute": that too, and activations again in backward.
function rows.vit(name, batch, how)
  local config = VIT[name]
  local model, head = pg.models.vit(config), pg.models.head(config.width, CLASSES)
  pg.models.recompute(model, how == "recompute")
  local depths = how and { config.depth } -- these tokens are wanted
  local images, labels = pg.randn(batch, 3, config.image, config.image), {}
  for i = 1, batch do labels[i] = (i - 1) % CLASSES + 1 end
  labels = pg.tensor(labels, { dtype = "int32" })
  local parameters = model:parameters()
  for _, t in ipairs(head:parameters()) do parameters[#parameters + 1] = t end
  local opt = pg.optim.AdamW(parameters, { lr = 1e-5 })
  return function()
    return timing.clock(function()
      opt:zero_grad()
      pg.cross_entropy(head((model:forward_features(images, depths))), labels):backward()
      opt:step()
    end)
  end
end

--- The products of the linear layers of such a step, by BLAS alone, one call each; those of attention are not among them.
function rows.gemms(name, batch)
  ffi.cdef [[void cblas_sgemm(int, int, int, int, int, int, float, const float *, int, const float *, int, float, float *,
    int);]]
  local blas, o = ffi.load "libopenblas.so.0", VIT[name]
  local patches, w = (o.image / o.patch) ^ 2, o.width
  local tokens = batch * (patches + 1)
  -- rows, inputs, outputs, times
  local layers = { { batch * patches, 3 * o.patch ^ 2, w, 1, first = true }, { tokens, w, 3 * w, o.depth },
    { tokens, w, w, o.depth }, { tokens, w, 4 * w, o.depth }, { tokens, 4 * w, w, o.depth } }
  local x, y, weight = pg.randn(tokens, 4 * w), pg.randn(tokens, 4 * w), pg.randn(4 * w, 4 * w)
  return function()
    return timing.clock(function()
      for _, layer in ipairs(layers) do
        local m, k, n, times = unpack(layer)
        for _ = 1, times do
          blas.cblas_sgemm(101, 111, 112, m, n, k, 1, x:data(), k, weight:data(), k, 0, y:data(), n)
          if not layer.first then -- nobody asks for the gradient of the images
            blas.cblas_sgemm(101, 111, 111, m, k, n, 1, y:data(), n, weight:data(), k, 0, x:data(), k)
          end
          blas.cblas_sgemm(101, 112, 111, n, k, m, 1e-6, y:data(), n, x:data(), k, 0, weight:data(), k)
        end
      end
    end)
  end
end

--- FDA alone, as it stands in a step of batch 64 whose pre-trained features are cached: graph, loss, gradient; with
--- `proxy`, the generator's own step and the proxies' loss too.
function rows.fda(kind)
  local batch, width, proxy = 64, 768, kind == "proxy"
  local cached = pg.randn(batch, width)
  local generator = proxy and pg.fda.ProxyGenerator { dim = width, batch = batch, k = 8 }
  local opt = proxy and pg.optim.AdamW(generator:parameters(), { lr = 1e-3 })
  return function()
    local features = pg.randn(batch, width):requires_grad_(true)
    return timing.clock(function()
      local graph = pg.fda.graph(cached, { k = 8 })
      if not proxy then return pg.fda.loss(features, graph):backward() end
      local proxies = generator:generate(features, graph)
      opt:zero_grad()
      pg.fda.proxy_loss(proxies, features, graph):backward()
      opt:step()
      pg.fda.proxy_fda_loss(features, graph, proxies):backward()
    end)
  end
end

--- Graph, loss and gradient of a large batch; the number is the (B, B) matrices that were alive at once.
function rows.fda_large(batch)
  local x0, x = pg.randn(batch, 768), pg.randn(batch, 768):requires_grad_(true)
  return function()
    collectgarbage()
    lib.pg_memory_reset_peak(lib.PG_CPU)
    local before = pg.memory().live
    local seconds = timing.clock(function()
      pg.scope(function()
        x.grad = nil
        pg.fda.loss(x, pg.fda.graph(x0, { k = 32 }), {}):backward()
      end)
    end)
    return seconds, (pg.memory().peak - before) / (4 * batch * batch)
  end
end

--- Logistic regression to its optimum on features that theirs.py reads from the same files; the number is the loss.
function rows.probe(folder)
  local n, width, classes, labels = 50000, 512, 10, {}
  for i = 1, n do labels[i] = (i - 1) % classes + 1 end
  labels = pg.tensor(labels, { dtype = "int32" })
  local x = (pg.randn(classes, width):index(1, labels) * 0.15 + pg.randn(n, width)):normalize() * 4
  pg.npy.save(folder .. "/bench-features.npy", x)
  pg.npy.save(folder .. "/bench-labels.npy", labels)
  return function()
    return timing.clock(function() return pg.metrics.logistic_regression(x, labels).loss end)
  end
end

--- 100 iterations in the log domain.
function rows.sinkhorn()
  local cost = pg.squared_distances(pg.randn(2000, 64):normalize(), pg.randn(2000, 64):normalize()) / 2
  return function()
    return timing.clock(function()
      return pg.metrics.sinkhorn(cost, { eps = 0.1, n_iter = 100, tolerance = 0 }).iterations
    end)
  end
end

--- What a recorded op costs on a tensor of 16 numbers.
function rows.call()
  local small, calls = pg.randn(4, 4):requires_grad_(true), 2000
  return function()
    return timing.clock(function()
      for _ = 1, calls do small:gelu() end
    end) / calls
  end
end

local row = assert(rows[arg[1]], "there is no row " .. tostring(arg[1]))
local work = row(tonumber(arg[2]) or arg[2], tonumber(arg[3]) or arg[3], arg[4])
io.stdout:setvbuf "line"
print "ready"
for line in io.lines() do
  if line == "end" then break end
  print(work())
end
print(timing.peak())
