-- fd_align.lua - the image tower is fine-tuned so that images stay where they were among what no class depends on: the
-- "spurious" prototypes, which are the texts of templates averaged over the classes.
--
--   L = CE(exp(s) cos(f, t)) + align/(B n) sum q (log q - log p),   p = softmax(exp(s) f mu),  q the same of f_zs
--   mu_1 .. mu_n: k-means centres of u_j = mean_c text(template_j of c), of length one, templates that stand apart left out
--
-- The published code drops the outliers by an isolation forest, of 80 templates it keeps 60; with `outliers = distance` those
-- nearest to their mean are kept. It starts from a head probed before and trains that too, with SGD; here the head is the
-- zero-shot texts, which new names have as well.

local pg = require "perigee"
local prompts = require "perigee.prompts"

local TREES = 100

-- How deep points lie, on average, in trees that split at random until each is alone: an outlier is alone early (isolation
-- forest, Liu, Ting and Zhou 2008, on all points). A leaf of several counts as the mean depth of a random tree of as many.
local function depths(points, trees)
  local rows, n, d, sum = points:totable(), points:size(1), points:size(2), {}
  local random = require("perigee.data.random").new(0)
  local deepest = math.ceil(math.log(math.max(n, 2)) / math.log(2))
  local function more(m)
    return m <= 1 and 0 or m == 2 and 1 or 2 * (math.log(m - 1) + 0.5772156649) - 2 * (m - 1) / m
  end
  local function grow(members, depth)
    for _, f in ipairs(depth < deepest and #members > 1 and random:permutation(d) or {}) do
      local low, high = math.huge, -math.huge
      for _, i in ipairs(members) do low, high = math.min(low, rows[i][f]), math.max(high, rows[i][f]) end
      if low < high then
        local left, right, cut = {}, {}, low + (high - low) * (random:below(2 ^ 32) - 1) / 2 ^ 32
        for _, i in ipairs(members) do table.insert(rows[i][f] <= cut and left or right, i) end
        grow(left, depth + 1)
        return grow(right, depth + 1)
      end
    end
    for _, i in ipairs(members) do sum[i] = (sum[i] or 0) + (depth + more(#members)) / trees end
  end
  local all = {}
  for i = 1, n do all[i] = i end
  for _ = 1, trees do grow(all, 0) end
  return pg.tensor(sum, { dtype = points:dtype(), device = points:device() })
end

-- k-means (Lloyd); the centres start at the point nearest to the mean and then the farthest from all so far.
local function centres(points, n)
  local function nearest(vector) return points:matmul(vector:reshape(vector:numel(), 1)):argmax(1):item() end
  local chosen = { points:select(1, nearest(points:mean(1))) }
  while #chosen < n do
    local nearness = points:matmul(pg.stack(chosen, 1):t()):max(2)
    chosen[#chosen + 1] = points:select(1, nearness:argmin():item())
  end
  local mu = pg.stack(chosen, 1)
  for _ = 1, 20 do
    local own = (points:matmul(mu:t()) * 2 - (mu * mu):sum(2):reshape(1, n)):argmax(2)
    own = own:reshape(own:numel(), 1)
    local count = pg.scatter_add(mu:narrow(2, 1, 1) * 0 + 1e-6, own, points:narrow(2, 1, 1) * 0 + 1, { dim = 1 })
    local sums = pg.scatter_add(mu * 1e-6, own:expand(points:size(1), points:size(2)):contiguous(), points, { dim = 1 })
    mu = sums / count -- an empty cluster stays where it is
  end
  return mu
end

local function spurious(task, o)
  local rows = {}
  for j, template in ipairs(task.templates) do
    rows[j] = task:sentences(template, task.classes):normalize():mean(1):normalize()
  end
  local all = pg.stack(rows, 1)
  local inner = o.outliers == "forest" and depths(all, TREES)
    or all:matmul(all:mean(1):normalize():reshape(all:size(2), 1)):reshape(#rows)
  local _, order = inner:topk(math.max(1, math.floor(o.keep * #rows + 0.5)), 1)
  local kept = all:index(1, order)
  return centres(kept, math.min(o.prototypes, kept:size(1)))
end

return {
  help = "fine-tunes the image tower, holding images among prototypes of templates",
  source = "FD-Align: Song et al., arXiv 2310.15105",
  tower = true,
  training = { optimizer = "AdamW", lr = 5e-6, batch = 32, epochs = 20, weight_decay = 0.1, schedule = "step",
    fine_tunes = true },
  options = {
    { "align", 20, min = 0, real = true, help = "factor of the alignment" },
    { "prototypes", 20, min = 1, help = "centres, n" },
    { "keep", 0.75, min = 0, max = 1, help = "share of the templates that are no outliers" },
    { "outliers", "forest", choices = { "forest", "distance" }, help = "what tells them: an isolation forest, or how far "
      .. "they are from the mean" },
  },
  depths = depths,
  new = function(task, o)
    local module = prompts.copy(task.clip.visual)
    local mu = pg.no_grad(function() return spurious(task, o) end)
    local function images_of(images) return module(images):normalize() end
    return {
      module = module, prototypes = mu,
      classes = function(names, prompt) return { texts = task:zero_shot(names, prompt) } end,
      logits = function(batch, set) return task:cosines(images_of(batch.images), set.texts) end,
      loss = function(batch)
        local images = images_of(batch.images)
        local log_p = task:cosines(images, mu):log_softmax(2)
        local log_q = task:cosines(batch.features, mu):log_softmax(2)
        local apart = (log_q:exp() * (log_q - log_p)):mean()
        local loss = pg.cross_entropy(task:cosines(images, task.texts), batch.labels) + apart * o.align
        return loss, images, batch.features
      end,
    }
  end,
}
