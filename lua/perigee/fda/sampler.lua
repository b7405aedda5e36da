-- sampler.lua - class-balanced batches with hard class mining: a seed class, then classes whose pre-trained
-- centroids are like it, n images of each.
--
--   mu_c = normalised mean of the unit features of class c,  S_cc' = mu_c . mu_c',  p(c' | seed) ~ exp(S / temperature)
--
-- What is the same for every batch (members, centroids, each class's nearest) is computed once; a batch costs work in
-- m n alone. It draws from a stream of its own, so that nothing else that a run draws moves its batches.
-- Source: docs/method.md, section 1.2e.

local util = require "perigee.util"

local function pg() return require "perigee" end

-- A stream of uniforms [0, 1): the core's counter-based generator at a seed and an offset of the stream's own.
local function stream(seed)
  local self = { seed = seed, offset = 0 }
  function self.draw(n)
    local p = pg()
    local outside = p.rng_state()
    p.rng_state { self.seed, self.offset }
    local list = p.rand(n):totable()
    self.offset = p.rng_state()[2]
    p.rng_state(outside)
    return list
  end
  return self
end

local function copy(list)
  local same = {}
  for i, value in ipairs(list) do same[i] = value end
  return same
end

-- Positions of n distinct members: the first n steps of Fisher-Yates, on a table of the moved ones alone.
local function distinct(own, n, uniform)
  local moved, chosen = {}, {}
  for i = 1, n do
    local j = i + math.floor(uniform() * (#own - i + 1))
    chosen[i] = own[moved[j] or j]
    moved[j] = moved[i] or i
  end
  return chosen
end

-- Members of each class, in order; classes without any are skipped.
local function members_of(labels)
  local members, top = {}, 0
  for i, label in ipairs(labels:totable()) do
    util.check(label >= 1, "fda.HardClassSampler: labels count from 1, but label %d is %d", i, label)
    if not members[label] then members[label], top = {}, math.max(top, label) end
    table.insert(members[label], i)
  end
  local classes = {}
  for c = 1, top do classes[#classes + 1] = members[c] end -- nil, an empty class, appends nothing
  return classes
end

-- Each class's nearest others, nearest first (ties to the lower class), and the weights that they are drawn with.
local function neighbours_of(classes, features, wanted, temperature)
  local p, weights = pg(), {}
  if #classes == 1 then return { {} }, { {} } end
  local values, index = p.no_grad(function()
    local unit, centroids = features:detach():normalize(), {}
    for c, own in ipairs(classes) do
      local positions = p.tensor(own, { dtype = "int32" }):to(features:device())
      centroids[c] = unit:index(1, positions):mean(1, true)
    end
    local means = p.cat(centroids, 1):normalize()
    return p.knn(means, means, { k = math.min(wanted, #classes - 1), metric = "ip", exclude_self = true })
  end)
  local similarity, nearest = values:totable(), index:totable()
  for c, row in ipairs(similarity) do
    weights[c] = {}
    for i, s in ipairs(row) do weights[c][i] = math.exp((s - row[1]) / temperature) end
  end
  return nearest, weights
end

-- `count` of the list without replacement, each with probability in proportion to its weight; greedy: the first ones.
local function draw_classes(list, weights, count, greedy, uniform)
  local left, w, chosen = copy(list), copy(weights), {}
  while #chosen < count do
    local at = 1
    if not greedy then
      local sum = 0
      for i = 1, #left do sum = sum + w[i] end
      local u = uniform() * sum
      while at < #left and u >= w[at] do u, at = u - w[at], at + 1 end
    end
    chosen[#chosen + 1] = table.remove(left, at)
    table.remove(w, at)
  end
  return chosen
end

return function(fda)
  --- Class-balanced batches with hard class mining (docs/method.md, section 1.2e). With fewer than m classes all are used
  -- and n becomes ceil(m n / classes); a class of fewer than n images gives all of them distinct first, the rest with
  -- replacement; a label that no image has is no class.
  -- @param options {labels (N) int32 from 1; features (N, D) pre-trained; classes = 16 (m), per_class = 4 (n);
  --                temperature = 0.05 of the draw; greedy = false: true takes the nearest classes without a draw; order of
  --                the seed classes: "uniform" (default), or "epoch": every class once before one comes again; pool: how
  --                many nearest classes the draw is from, 2 m if not given; seed of the stream, drawn from the global
  --                generator if not given}
  -- @return a sampler {classes = m, per_class = n}; :next() or .next() -> (m n) int32 positions, class by class, the seed
  --          class first; :state() -> a table of numbers, :restore(state): the same batches follow
  -- @raises on labels below 1, on counts that do not match, on features that are not finite
  function fda.HardClassSampler(options)
    options = util.options("fda.HardClassSampler", options, { labels = util.none, features = util.none, classes = 16,
      per_class = 4, temperature = 0.05, greedy = false, order = "uniform", pool = util.none, seed = util.none })
    local where, labels = "fda.HardClassSampler", options.labels
    util.check(labels and options.features, "%s: labels and features are needed", where)
    fda.check_features(where, options.features, 2, "features")
    util.check(pg().is_tensor(labels) and labels:dtype() == "int32", "%s: labels must be an int32 tensor", where)
    util.check(labels:numel() == options.features:size(1), "%s: %d labels for %d features", where, labels:numel(),
      options.features:size(1))
    util.check(labels:numel() > 0, "%s: there are no images", where)
    for _, name in ipairs { "classes", "per_class", "pool" } do
      local value = options[name]
      util.check(value == nil or type(value) == "number" and value >= 1 and value % 1 == 0,
        "%s: %s must be a whole number, 1 or more, got %s", where, name, tostring(value))
    end
    util.check(type(options.temperature) == "number" and options.temperature > 0, "%s: temperature must be above 0, got %s",
      where, tostring(options.temperature))
    util.check(options.order == "uniform" or options.order == "epoch", "%s: order must be uniform or epoch, got '%s'",
      where, tostring(options.order))
    local classes = members_of(labels)
    local m, n = math.min(options.classes, #classes), options.per_class
    if #classes < options.classes then n = math.ceil(options.classes * n / #classes) end
    local pool = options.pool or 2 * options.classes
    util.check(pool >= m - 1, "%s: pool = %d classes are too few to draw %d from", where, pool, m - 1)
    local nearest, weights = neighbours_of(classes, options.features, pool, options.temperature)
    local draws = stream(options.seed or math.floor(pg().rand(1):item() * 2 ^ 24))
    local epoch = {} -- seed classes that are still to come, last first

    local self = { classes = m, per_class = n }

    local function seed_class(uniform)
      if options.order == "uniform" then return math.floor(uniform() * #classes) + 1 end
      if #epoch == 0 then
        local every, permuted = {}, draws.draw(#classes)
        for c = 1, #classes do every[c] = c end
        local at = 0
        epoch = distinct(every, #classes, function() at = at + 1 return permuted[at] end)
      end
      return table.remove(epoch)
    end

    function self.next()
      local list, at = draws.draw(m + m * n), 0 -- the most that a batch takes
      local function uniform() at = at + 1 return list[at] end
      local seed, positions = seed_class(uniform), {}
      local chosen = draw_classes(nearest[seed], weights[seed], m - 1, options.greedy, uniform)
      table.insert(chosen, 1, seed)
      for _, c in ipairs(chosen) do
        local own = classes[c]
        for _, position in ipairs(distinct(own, math.min(n, #own), uniform)) do positions[#positions + 1] = position end
        for _ = #own + 1, n do positions[#positions + 1] = own[math.floor(uniform() * #own) + 1] end
      end
      return pg().tensor(positions, { dtype = "int32" })
    end

    function self.state() return { seed = draws.seed, offset = draws.offset, epoch = copy(epoch) } end

    function self.restore(first, second)
      local state = second or first
      util.check(type(state) == "table" and type(state.seed) == "number" and type(state.offset) == "number"
        and type(state.epoch) == "table", "%s: restore needs what state() returned", where)
      draws.seed, draws.offset, epoch = state.seed, state.offset, copy(state.epoch)
    end

    return self
  end
end
