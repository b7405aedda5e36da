-- proxy_fda.lua - Proxy-FDA: FDA over real features and proxies, which a generator pools from them.
--
--   weight * L_Proxy-FDA reaches the encoder; the generator learns from L_proxy = contrast + alpha * variance, alongside,
--   by an optimiser of its own. ratio 0 has no proxies and is FDA bit for bit.
--
-- Source: docs/method.md, section 1.

local fda = require "perigee.regularize.fda"

local function pg() return require "perigee" end

local method = {
  help = "FDA with proxies, pooled from the batch's features by a generator that trains alongside",
  source = "Proxy-FDA, arXiv 2505.24088",
  options = {
    { "ratio", 0.4, min = 0, max = 1, help = "proxies for each real feature of a set, s; 0 is FDA" },
    { "alpha", 1, min = 0, real = true, help = "factor of the variance term of the generator's loss" },
    { "gamma", "real", or_number = true, min = 1e-6, help = "spread asked of proxies: that of the real set, or a number" },
    { "weights", "pooled", choices = { "pooled", "cosine" },
      help = "weights of proxies: pooled ones, or cosines to pooled pre-trained features" },
    { "through_pool", false, help = "gradient also through the features inside a proxy" },
    { "width", 32, min = 1, help = "width of the generator, r" },
    { "batch", 64, min = 3, help = "images a batch: it sets how many proxies there are" },
    { "dim", 0, min = 0, help = "width of the features; 0 is the model's own" },
    { "generator_lr", 1e-3, min = 0, help = "learning rate of the generator (AdamW, no decay)" },
  },
}
for _, option in ipairs(fda.options) do table.insert(method.options, option) end

local function generators(pretrained, o, count)
  local first, list = pretrained:parameters()[1], {}
  for i = 1, count do
    list[i] = pg().fda.ProxyGenerator { dim = o.dim > 0 and o.dim or pretrained.width, width = o.width,
      ratio = o.ratio, batch = o.batch, k = o.k, weights = o.weights, dtype = first:dtype() }
    list[i]:to(first:device())
  end
  return list, count > 1 and pg().nn.Sequential(list) or list[1]
end

function method.new(pretrained, o)
  if o.ratio == 0 then return fda.new(pretrained, o) end
  local views = fda.views("proxy_fda", pretrained, o)
  local list, generator = generators(pretrained, o, views.count)
  local groups = { { params = generator:parameters() } }
  if views.scale then groups[2] = { params = views.scale:parameters(), lr = o.scale_lr } end
  local opt = pg().optim.AdamW(groups, { lr = o.generator_lr, weight_decay = 0 })
  return {
    depths = views.depths, generator = generator, optimizer = opt, modules = { generator = generator, scale = views.scale },
    loss = function(batch)
      opt:zero_grad()
      local total
      for i, pair in ipairs(views.pairs(batch)) do
        local x, graph, options = pair[1], pair[2], views.options(i)
        local proxies = list[i]:generate(x, graph)
        options.alpha, options.gamma = o.alpha, o.gamma
        pg().fda.proxy_loss(proxies, x, graph, options):backward()
        options.alpha, options.gamma, options.through_pool = nil, nil, o.through_pool
        local loss = pg().fda.proxy_fda_loss(x, graph, proxies, options)
        total = total and total + loss or loss
      end
      return total * (o.weight / views.count)
    end,
    step = function() opt:step() end,
  }
end

return method
