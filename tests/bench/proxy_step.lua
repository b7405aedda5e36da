-- proxy_step.lua - what Proxy-FDA adds to a fine-tuning step of a ViT-B/32 at batch 64 with the pre-trained features
-- cached: the graph, the generator's own step, the loss and its gradient on the features. At most 5% of the step.

local pg = require "perigee"
pg.seed(1)

local BATCH, CLASSES, STEPS = 64, 100, tonumber(arg[1]) or 3
local model = pg.models.vit { image = 224, patch = 32, width = 768, depth = 12, heads = 12 }
local head = pg.models.head(768, CLASSES)
local images, labels = pg.randn(BATCH, 3, 224, 224), {}
for i = 1, BATCH do labels[i] = (i - 1) % CLASSES + 1 end
labels = pg.tensor(labels, { dtype = "int32" })
local cached = pg.randn(BATCH, 768)

local parameters = model:parameters()
for _, t in ipairs(head:parameters()) do parameters[#parameters + 1] = t end
local opt = pg.optim.AdamW(parameters, { lr = 1e-5 })
local generator = pg.fda.ProxyGenerator { dim = 768, batch = BATCH, k = 8 }
local generator_opt = pg.optim.AdamW(generator:parameters(), { lr = 1e-3 })

-- as regularize.proxy_fda does it, with the features of the pre-trained model taken from the cache
local function proxy_fda(features)
  local graph = pg.fda.graph(cached, { k = 8 })
  local proxies = generator:generate(features, graph)
  generator_opt:zero_grad()
  pg.fda.proxy_loss(proxies, features, graph):backward()
  generator_opt:step()
  return pg.fda.proxy_fda_loss(features, graph, proxies) * 10
end

local function step(regularised)
  local began = pg.now()
  opt:zero_grad()
  local features = model(images)
  local loss = pg.cross_entropy(head(features), labels)
  if regularised then loss = loss + proxy_fda(features) end
  loss:backward()
  opt:step()
  return pg.now() - began
end

local function alone()
  local features = pg.randn(BATCH, 768):requires_grad_(true)
  local began = pg.now()
  proxy_fda(features):backward()
  return pg.now() - began
end

local function median(times)
  table.sort(times)
  return times[math.ceil(#times / 2)]
end

step(true)
local plain, with, part = {}, {}, {}
for i = 1, STEPS do plain[i], with[i] = step(false), step(true) end
for i = 1, 15 do part[i] = alone() end
plain, with, part = median(plain), median(with), median(part)
local share = part / (plain + part)
print(("%-46s %9.3f ms"):format("ViT-B/32 step, batch 64", 1e3 * plain))
print(("%-46s %9.3f ms   %+.1f%%"):format("  with Proxy-FDA, features cached", 1e3 * with, 100 * (with / plain - 1)))
print(("%-46s %9.3f ms   %.2f%% of the step (5%%)  %s"):format("  Proxy-FDA alone", 1e3 * part, 100 * share,
  share <= 0.05 and "ok" or "MISSED"))
