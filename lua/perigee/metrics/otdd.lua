-- otdd.lua - the optimal transport distance between two labelled data sets (Alvarez-Melis and Fusi, arXiv 2002.02923;
-- docs/method.md, section 5).
--
--   C_ij = lambda_x/2 |x_i - x'_j|^2 + lambda_y/2 W2^2(alpha_y_i, alpha_y'_j),   raw: the Sinkhorn divergence of C
--
-- alpha_y is the distribution of the features of class y; between Gaussians, with m the mean and S the covariance,
--   W2^2 = |m - m'|^2 + tr S + tr S' - 2 tr((S^1/2 S' S^1/2)^1/2)
-- whose last trace is the nuclear norm of X X'^T, X the centred samples over the root of their number less one: exact for
-- covariances without full rank, and without the root of any matrix.

local util = require "perigee.util"
local call = require "perigee.call"

local function pg() return require "perigee" end

local DEFAULTS = { eps = 0.1, debiased = true, lambda_x = 1, lambda_y = 1, inner = "gaussian", inner_eps = 0.1, pca = 0,
  min_labelcount = 2, maxsamples = 10000, seed = 0, scaling = 0.5, n_iter = 1000, tolerance = util.none }
local INNER = { gaussian = true, diagonal = true, exact = true }

-- ---- the two sets ---------------------------------------------------------------------------------------------------

local function check_set(letter, features, labels)
  util.check(pg().is_tensor(features) and features:dim() == 2 and features:dtype():match "^float",
    "otdd: features_%s must be (N, D) float, got %s", letter, call.describe(features))
  util.check(pg().is_tensor(labels) and labels:dim() == 1 and labels:dtype() == "int32"
    and labels:size(1) == features:size(1), "otdd: labels_%s must be %d int32 labels, one a row of features_%s, got %s",
    letter, features:size(1), letter, call.describe(labels))
  util.check(pg().is_finite(features), "otdd: features_%s holds values that are not finite", letter)
end

local function positions(list) return pg().tensor(list, { dtype = "int32" }) end

-- Its classes of at least `least` samples: {features, classes = {label..}, rows = {(n) positions..}, of = {class number of
-- each row that is kept}, kept = {its row}, dropped = {label..}}.
local function split(letter, features, labels, least)
  local by_label, set = {}, { features = features, classes = {}, rows = {}, of = {}, kept = {}, dropped = {} }
  for i, label in ipairs(labels:totable()) do
    if not by_label[label] then
      by_label[label] = {}
      set.classes[#set.classes + 1] = label
    end
    table.insert(by_label[label], i)
  end
  table.sort(set.classes)
  local number = {}
  for k = #set.classes, 1, -1 do
    local label = set.classes[k]
    if #by_label[label] < least then
      table.insert(set.dropped, 1, table.remove(set.classes, k))
      by_label[label] = nil
    end
  end
  util.check(#set.classes > 0, "otdd: no class of features_%s has %d samples (min_labelcount)", letter, least)
  for k, label in ipairs(set.classes) do number[label], set.rows[k] = k, positions(by_label[label]) end
  for i, label in ipairs(labels:totable()) do
    if number[label] then
      table.insert(set.kept, i)
      table.insert(set.of, number[label])
    end
  end
  return set
end

-- The rows that take part in the transport: all that are kept, or `most` of them at random. Sets points (n, D), a tensor
-- in the arithmetic of the call, and class (n), with `shift` added to its numbers.
local function draw(set, most, shift)
  local kept, of, n = {}, {}, math.min(most, #set.kept)
  local order = n < #set.kept and pg().randperm(#set.kept):totable()
  for i = 1, n do
    local at = order and order[i] or i
    kept[i], of[i] = set.kept[at], set.of[at] + shift
  end
  set.points, set.class = set.features:index(1, positions(kept)), positions(of)
end

-- ---- distances between classes ----------------------------------------------------------------------------------------

-- Samples of every class of both sets, float64 on the CPU, of the leading principal directions when `pca` is not 0.
local function samples(a, b, pca)
  local p, all, project = pg(), {}, function(x) return x end
  if pca > 0 then
    local pooled = p.cat({ a.features:to("cpu"):to("float64"), b.features:to("cpu"):to("float64") }, 1)
    local mean = pooled:mean(1)
    local centred = pooled - mean
    local _, vectors = p.linalg.eigh(centred:t():matmul(centred))
    local width = pooled:size(2)
    local basis = vectors:narrow(2, math.max(width - pca, 0) + 1, math.min(pca, width))
    project = function(x) return (x - mean):matmul(basis) end
  end
  for _, set in ipairs { a, b } do
    for _, rows in ipairs(set.rows) do
      all[#all + 1] = project(set.features:index(1, rows):to("cpu"):to("float64")):contiguous()
    end
  end
  return all
end

-- |m - m'|^2 and what the covariances add.
local function gaussian(classes, diagonal)
  local p, means, spread = pg(), {}, {}
  for k, x in ipairs(classes) do
    means[k] = x:mean(1)
    spread[k] = diagonal and x:var(1):sqrt() or (x - means[k]) / math.sqrt(x:size(1) - 1)
  end
  means = p.stack(means, 1)
  local apart = p.squared_distances(means, means)
  if diagonal then
    spread = p.stack(spread, 1)
    return apart + p.squared_distances(spread, spread)
  end
  local norms, traces = p.linalg.nuclear_norms(spread), {}
  for k = 1, #classes do traces[k] = norms:get(k, k) end
  traces = p.tensor(traces, { dtype = "float64" })
  return apart + (traces:unsqueeze(1) + traces:unsqueeze(2) - norms * 2):clamp(0, math.huge)
end

-- Twice the entropic cost of moving one class onto the other by half squared distances.
local function exact(classes, options)
  local rows = {}
  for i = 1, #classes do rows[i] = {} end
  for i, x in ipairs(classes) do
    for j = 1, i do
      rows[i][j] = pg().scope(function()
        local solved = pg().metrics.sinkhorn(pg().squared_distances(x, classes[j]) / 2, { eps = options.inner_eps,
          scaling = 0.5, n_iter = options.n_iter, tolerance = options.tolerance, symmetric = i == j })
        return math.max(2 * solved.value, 0)
      end)
      rows[j][i] = rows[i][j]
    end
  end
  return pg().tensor(rows, { dtype = "float64" })
end

local function label_distances(a, b, options)
  local classes = samples(a, b, options.pca)
  if options.inner == "exact" then return exact(classes, options) end
  return gaussian(classes, options.inner == "diagonal")
end

-- ---- the transport ------------------------------------------------------------------------------------------------------

-- Where the blur starts: the squared diagonal of the box around all points, and the farthest labels.
local function diameter(a, b, between, options)
  local p = pg()
  local top = p.maximum(a.points:max(1), b.points:max(1)):to("float64")
  local bottom = p.minimum(a.points:min(1), b.points:min(1)):to("float64")
  local side = (top - bottom):norm():item()
  return math.max(options.lambda_x * side * side + options.lambda_y * between:max():item(), 1e-30)
end

-- C of x and y, and the means of its two parts.
local function cost(x, y, between, options)
  local p = pg()
  local points = p.squared_distances(x.points, y.points) * (options.lambda_x / 2)
  local labels = between:index(1, x.class):index(2, y.class):to(points:dtype()):to(points:device()) * (options.lambda_y / 2)
  return points + labels, points:mean():item(), labels:mean():item()
end

local function transport(x, y, between, first_eps, options)
  return pg().scope(function()
    local matrix, points, labels = cost(x, y, between, options)
    local solved = pg().metrics.sinkhorn(matrix, { eps = options.eps, scaling = options.scaling, first_eps = first_eps,
      n_iter = options.n_iter, tolerance = options.tolerance, symmetric = x == y })
    return { value = solved.value, iterations = solved.iterations, error = solved.error, points = points, labels = labels }
  end)
end

local function read_options(given)
  local o = util.options("metrics.otdd", given, DEFAULTS)
  util.check(INNER[o.inner], "otdd: inner must be gaussian, diagonal or exact, got %s", call.describe(o.inner))
  local function number(name, least, whole)
    local value = o[name]
    util.check(type(value) == "number" and value >= least and value < math.huge and not (whole and value % 1 ~= 0),
      "otdd: %s must be %s, %g or more, got %s", name, whole and "a whole number" or "a number", least, call.describe(value))
  end
  number("lambda_x", 0)
  number("lambda_y", 0)
  number("pca", 0, true)
  number("maxsamples", 1, true)
  number("min_labelcount", o.inner == "exact" and 1 or 2, true)
  return o
end

local function measure(a, b, options)
  local p = pg()
  local between = label_distances(a, b, options)
  local kept = p.rng_state()
  p.seed(options.seed)
  draw(a, options.maxsamples, 0)
  draw(b, options.maxsamples, #a.classes)
  p.rng_state(kept)
  local first = diameter(a, b, between, options)
  local parts = { ab = transport(a, b, between, first, options) }
  local raw = parts.ab.value
  if options.debiased then
    parts.aa, parts.bb = transport(a, a, between, first, options), transport(b, b, between, first, options)
    raw = raw - (parts.aa.value + parts.bb.value) / 2
  end
  local iterations, err = 0, 0
  for _, part in pairs(parts) do
    iterations, err = math.max(iterations, part.iterations), math.max(err, part.error)
  end
  local scale = { norm_a = a.points:norm(2):mean():item(), norm_b = b.points:norm(2):mean():item(),
    points = parts.ab.points, labels = parts.ab.labels }
  return between, { raw = raw, rooted = math.sqrt(2 * math.max(raw, 0)), eps = options.eps, scale = scale,
    classes_a = a.classes, classes_b = b.classes, dropped_a = a.dropped, dropped_b = b.dropped,
    samples = { a.points:size(1), b.points:size(1) }, iterations = iterations, error = err }
end

return function(metrics)
  --- The optimal transport distance between two labelled sets (docs/method.md, section 5): how far the points have to move,
  -- where the price of a pair is half the squared distance of its features and half the squared Wasserstein distance of
  -- its labels' classes. The number is the Sinkhorn divergence of that halved cost, `raw`, which is not rooted; `rooted` is
  -- sqrt(2 max(raw, 0)), in units of the features. eps is absolute: for features of length one, costs lie between 0 and 2,
  -- and 0.1 is a heavy blur. Compare only what was measured with one eps on features of one scale; both are returned.
  -- Labels mean nothing across the sets: classes are matched by their features alone. Identical sets give 0.
  -- @param features_a, labels_a  (N, D) float32 or float64 on any device, (N) int32 labels
  -- @param features_b, labels_b  (M, D), (M); labels may have gaps, and need not be those of the first set
  -- @param options  {eps = 0.1, debiased = true, lambda_x = 1, lambda_y = 1, inner = "gaussian", pca = 0, inner_eps = 0.1,
  --                 min_labelcount = 2, maxsamples = 10000, seed = 0, scaling = 0.5, n_iter = 1000, tolerance}
  --   debiased        subtract what either set is from itself; else the entropic cost alone
  --   lambda_x, lambda_y  weights of the points' part of the cost and of the labels'
  --   inner           distance of classes: gaussian (full covariances), diagonal, or exact (transport between samples, at
  --                   inner_eps and not debiased)
  --   pca             classes are compared on so many leading principal directions of both sets; 0: on all
  --   min_labelcount  classes with fewer samples are dropped, points and all
  --   maxsamples      of each set that take part in the transport, drawn at random with `seed`; classes are measured on all
  --   scaling         as metrics.sinkhorn has it, and n_iter and tolerance too; n_iter = 0 is geomloss's schedule alone
  -- @return {raw, rooted, eps, scale, label_distances, classes_a, classes_b, dropped_a, dropped_b, samples, iterations, error}
  --   scale            norm_a, norm_b: mean lengths of features; points, labels: means of the two parts of the cost
  --   label_distances  (V, V) float64: W2^2 between all classes, those of the first set before those of the second
  --   classes_a, classes_b  the labels behind its rows, rising
  --   dropped_a, dropped_b  those that had too few samples
  --   samples          {n, m}: points that took part
  --   iterations, error  the most of any transport, and the largest error of its rows
  -- @raises on shapes, dtypes and widths that do not fit, on features that are not finite, and when no class is left
  function metrics.otdd(features_a, labels_a, features_b, labels_b, options)
    options = read_options(options)
    check_set("a", features_a, labels_a)
    check_set("b", features_b, labels_b)
    util.check(features_a:size(2) == features_b:size(2), "otdd: features_a and features_b differ in width: %s, %s",
      call.describe(features_a), call.describe(features_b))
    local p = pg()
    local between, result = p.scope(function()
      return p.no_grad(function()
        features_a = features_a:detach()
        features_b = features_b:detach():to(features_a:dtype()):to(features_a:device())
        return measure(split("a", features_a, labels_a, options.min_labelcount),
          split("b", features_b, labels_b, options.min_labelcount), options)
      end)
    end)
    result.label_distances = between
    return result
  end
end
