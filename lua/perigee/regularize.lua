-- regularize.lua - what fine-tuning may add to its loss so that it forgets less. Every method has one interface: made from
-- the pre-trained model and options, called once a batch, it returns a scalar (already weighted) or nil.
--
-- A batch is {model, images, features, tokens (maps at `depths`)}; `depths` of the regulariser says which maps it wants.

local util = require "perigee.util"

local regularize = {}
local function pg() return require "perigee" end

local methods = {}

-- regularize.NAME(pretrained, options) is regularize.new("NAME", pretrained, options).
setmetatable(regularize, { __index = function(_, name)
  return methods[name] and function(pretrained, options) return regularize.new(name, pretrained, options) end
end })

--- The names that regularize.new takes, sorted.
function regularize.names()
  local names = {}
  for name in pairs(methods) do names[#names + 1] = name end
  table.sort(names)
  return names
end

--- Makes a regulariser by name. @param pretrained a frozen model (never changed) @raises on an unknown name
-- @return {loss = function(batch) -> scalar or nil, step = function() after the optimiser's step, depths = list}
function regularize.new(name, pretrained, options)
  local make = methods[name]
  if not make then
    util.fail(0, "regularize: there is no method '%s' (did you mean '%s'?)", tostring(name),
      util.nearest(tostring(name), regularize.names()))
  end
  local method = make(pretrained, options)
  method.step = method.step or function() end
  return method
end

--- Nothing: plain fine-tuning. LP-FT differs from it in its head alone, linear_probe in that the encoder stays.
function methods.naive() return { loss = function() end } end

--- L2-SP (Li et al., arXiv 1802.01483; method 2.1): weight * sum_p ||p - p0||^2 over the encoder.
function methods.l2sp(pretrained, options)
  options = util.options("l2sp", options, { weight = 0.5 })
  local start = {}
  for i, t in ipairs(pretrained:parameters()) do start[i] = t:detach():clone() end
  return { loss = function(batch)
    local total
    for i, t in ipairs(batch.model:parameters()) do
      local difference = t - start[i]
      local term = (difference * difference):sum()
      total = total and total + term or term
    end
    return total * options.weight
  end }
end

--- LDIFS (Mukhoti et al., arXiv 2308.13320; method 2.1): squared distance of normalised token maps at several depths,
-- averaged over channels, tokens, depths and the batch.
-- norm_axis "token" is the published code's: each channel's vector over tokens is brought to length one; "channel" each
-- token's vector over channels.
function methods.ldifs(pretrained, options)
  options = util.options("ldifs", options, { weight = 10, norm_axis = "token", depths = util.none })
  local depths = options.depths
  if not depths then
    depths = { 0 }
    for i = 1, 4 do
      local depth = math.floor(pretrained.config.depth * i / 4 + 0.5)
      if depth > depths[#depths] then depths[#depths + 1] = depth end
    end
  end
  util.check(options.norm_axis == "token" or options.norm_axis == "channel",
    "ldifs: norm_axis must be token or channel, got '%s'", tostring(options.norm_axis))
  local function unit(map)
    if options.norm_axis == "token" then map = map:transpose(2, 3) end
    return map:normalize({ eps = 1e-10 })
  end
  return { depths = depths, loss = function(batch)
    local _, before = pg().no_grad(function() return pretrained:forward_features(batch.images, depths) end)
    local total
    for i, map in ipairs(batch.tokens) do
      local difference = unit(map) - unit(before[i])
      local term = (difference * difference):mean()
      total = total and total + term or term
    end
    return total * (options.weight / #depths)
  end }
end

local FDA = { weight = 10, k = 8, tau = 0.1, bias = "auto", negative = "similarity", clamp = true }

local function graph_of(pretrained, batch, options)
  local before = pg().no_grad(function() return pretrained(batch.images) end)
  return pg().fda.graph(before, { k = options.k, negative = options.negative, clamp = options.clamp })
end

--- FDA (arXiv 2505.24088; method 1): keeps the neighbour graph of the pre-trained features.
function methods.fda(pretrained, options)
  options = util.options("fda", options, FDA)
  return { loss = function(batch)
    local graph = graph_of(pretrained, batch, options)
    return pg().fda.loss(batch.features, graph, { tau = options.tau, bias = options.bias }) * options.weight
  end }
end

--- Proxy-FDA: FDA with proxies of a generator that trains alongside, by its own optimiser (method 1.2i).
function methods.proxy_fda(pretrained, options)
  local defaults = { ratio = 0.4, alpha = 1, batch = 64, generator_lr = 1e-3 }
  for key, value in pairs(FDA) do defaults[key] = value end
  options = util.options("proxy_fda", options, defaults)
  if options.ratio == 0 then
    local plain = {}
    for key in pairs(FDA) do plain[key] = options[key] end
    return methods.fda(pretrained, plain)
  end
  local p = pg()
  local generator = p.fda.ProxyGenerator { dim = pretrained.config.width, ratio = options.ratio, batch = options.batch, k = options.k }
  local opt = p.optim.AdamW(generator:parameters(), { lr = options.generator_lr, weight_decay = 0 })
  return {
    generator = generator, optimizer = opt,
    loss = function(batch)
      local graph = graph_of(pretrained, batch, options)
      local settings = { tau = options.tau, bias = options.bias }
      local proxies = generator:generate(batch.features, graph)
      opt:zero_grad()
      p.fda.proxy_loss(proxies, batch.features, graph, { tau = options.tau, bias = options.bias, alpha = options.alpha }):backward()
      return p.fda.proxy_fda_loss(batch.features, graph, proxies, settings) * options.weight
    end,
    step = function() opt:step() end,
  }
end

return regularize
