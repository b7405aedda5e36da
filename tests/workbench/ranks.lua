-- ranks.lua - what distributed_spec.lua runs on several processes: perigee run ranks.lua what=... by mpirun. Everything is
-- drawn from one seed, so that each process knows the whole batch and the run on one process is the answer.

local pg = require "perigee"
local opt = pg.recipe { name = "ranks", options = {
  { "what", "gradients", choices = { "gradients", "gather", "loaders", "values", "fail" }, help = "what is tried" },
  { "dtype", "float64", help = "of the model" },
  { "bucket", 0, help = "bytes of a bucket; 0: the usual" },
  { "save", "", help = "where what came out goes; each process has a file of its own" },
} }
local run = pg.run.open(opt)
local d, tried = pg.distributed, {}
local function save(tensors) pg.safetensors.save(("%s.%d"):format(opt.save, d.rank()), tensors) end

-- ---- one step of fine-tuning: the task's loss, FDA over the batch, and Proxy-FDA with its generator ------------------------

-- Weights ten times as large as usual: a new model has almost one feature for all images, and neighbours that rounding
-- chooses.
local function model()
  local vit = pg.models.vit { image = 16, patch = 8, width = 24, depth = 2, heads = 2 }
  pg.no_grad(function()
    for _, t in ipairs(vit:parameters()) do
      if t:dim() > 1 then t:copy_(t * 10) end
    end
  end)
  return vit:to(opt.dtype):to(opt.device)
end

function tried.gradients()
  local pretrained = model():requires_grad_(false)
  if d.rank() > 0 then pg.randn(7) end -- the others' first weights are others, until they are shared
  local encoder, head = model(), pg.models.head(24, 5):to(opt.dtype):to(opt.device)
  local fda = pg.regularize.fda(pretrained, { k = 4, learnable = true })
  local proxies = pg.regularize.proxy_fda(pretrained, { k = 4, batch = 16, width = 8 })
  if opt.bucket > 0 then d.BUCKET = opt.bucket end
  d.share(encoder, head, fda, proxies)
  pg.seed(5)
  local images, labels = pg.randn(16, 3, 16, 16), {}
  for i = 1, 16 do labels[i] = i % 5 + 1 end
  images, labels = images:to(opt.dtype):to(opt.device), pg.tensor(labels, { dtype = "int32", device = opt.device })
  images, labels = d.slice(images):contiguous(), d.slice(labels):contiguous()
  local features = encoder:forward_features(images)
  local batch = { model = encoder, images = images, features = features }
  local loss = pg.cross_entropy(head(features), labels) + fda.loss(batch) + proxies.loss(batch)
  loss:backward()
  local result = { loss = pg.tensor({ (d.mean(loss)) }, { dtype = "float64" }) }
  local named = { encoder = encoder, head = head, scale = fda.modules.scale, generator = proxies.modules.generator }
  for prefix, module in pairs(named) do
    for i, t in ipairs(module:parameters()) do
      result[("%s.%02d"):format(prefix, i)] = t:detach():to("cpu")
      if t.grad then result[("grad.%s.%02d"):format(prefix, i)] = t.grad:to("cpu") end
    end
  end
  save(result)
end

-- ---- its parts ------------------------------------------------------------------------------------------------------------

-- Each process has a loss of its own of what all have: rank r asks for (r + 1) times row j's weight j.
function tried.gather()
  local x = pg.full({ 2, 3 }, d.rank() + 1, { dtype = "float64", device = opt.device }):requires_grad_(true)
  local all = d.gather(x)
  local n = all:size(1)
  local weights = pg.arange(n):to("float64"):reshape(n, 1):expand(n, 3):contiguous():to(opt.device)
  ;(all * weights * (d.rank() + 1)):sum():backward()
  save { all = all:detach():to("cpu"), grad = x.grad:to("cpu"),
    labels = d.gather(pg.tensor({ d.rank() }, { dtype = "int32", device = opt.device })):to("cpu") }
end

-- Two epochs and a half of 40 numbered images, from the batches and from the loader, which augments them.
function tried.loaders()
  local images, labels = pg.zeros(40, 8, 8, 3, { dtype = "uint8" }), {}
  for i = 1, 40 do
    images:select(1, i):fill_(i)
    labels[i] = i
  end
  local dataset = { name = "numbers", images = images, labels = pg.tensor(labels, { dtype = "int32" }), classes = labels }
  local plain = pg.data.batches { dataset = dataset, batch = 8, seed = 4, shard = true }
  local loader = pg.data.loader { dataset = dataset, batch = 8, seed = 4, shard = true, workers = 1,
    augment = { flip = 0.5, pad = 2, brightness = 0.3 } }
  local result = {}
  for step = 1, 12 do
    local x, y = plain:next()
    result[("batches.%02d.x"):format(step)], result[("batches.%02d.y"):format(step)] = x, y
    x, y = loader:next()
    result[("loader.%02d.x"):format(step)], result[("loader.%02d.y"):format(step)] = x, y
  end
  loader:close()
  save(result)
end

function tried.values()
  local a, b, c = d.mean(d.rank(), nil, pg.tensor(2 * d.rank()))
  assert(b == nil)
  local rows = pg.arange(7):to("float32"):reshape(7, 1)
  save { mean = pg.tensor { a, c }, any = pg.tensor { d.any(d.rank() == d.size() - 1) and 1 or 0, d.any(false) and 1 or 0 },
    first = d.broadcast(pg.tensor { d.rank() + 10 }), map = d.map(rows, function(own) return own * 2 end),
    rank = pg.tensor { d.rank(), d.size(), #d.text(("x"):rep(3 + d.rank())) } }
end

function tried.fail()
  d.barrier()
  if d.rank() == 1 then error("rank 1 has had enough", 0) end
  d.barrier()
end

tried[opt.what]()
run:finish {}
