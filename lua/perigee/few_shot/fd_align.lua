-- fd_align.lua - the image tower is fine-tuned so that images stay where they were among what no class depends on: the
-- "spurious" prototypes, which are the texts of templates averaged over the classes.
--
--   L = CE(exp(s) cos(f, t)) + align/(B n) sum q (log q - log p),   p = softmax(exp(s) cos(f, mu)),  q the same of f_zs
--   mu_1 .. mu_n: k-means centres of u_j = mean_c text(template_j of c), templates that stand apart left out
--
-- The published code drops outliers by an isolation forest, 60 templates of 80 being kept; here the three quarters
-- nearest to their mean are kept, which needs no random trees. The factor of the second term and n are not confirmed.

local pg = require "perigee"
local prompts = require "perigee.prompts"

-- k-means on the sphere (Lloyd); the centres start at the point nearest to the mean and then the farthest from all so
-- far.
local function centres(points, n)
  local function nearest(vector) return points:matmul(vector:reshape(vector:numel(), 1)):argmax(1):item() end
  local chosen = { points:select(1, nearest(points:mean(1))) }
  while #chosen < n do
    local nearness = points:matmul(pg.stack(chosen, 1):t()):max(2)
    chosen[#chosen + 1] = points:select(1, nearness:argmin():item())
  end
  local mu = pg.stack(chosen, 1)
  for _ = 1, 20 do
    local own = points:matmul(mu:t()):argmax(2)
    local sums = pg.scatter_add(mu * 0, own:reshape(own:numel(), 1):expand(points:size(1), points:size(2)):contiguous(),
      points, { dim = 1 })
    mu = (sums + mu * 1e-6):normalize() -- an empty cluster stays where it is
  end
  return mu
end

local function spurious(task, o)
  local rows = {}
  for j, template in ipairs(task.templates) do
    rows[j] = task:sentences(template, task.classes):normalize():mean(1):normalize()
  end
  local all = pg.stack(rows, 1)
  local near = all:matmul(all:mean(1):normalize():reshape(all:size(2), 1)):reshape(#rows)
  local _, order = near:topk(math.max(1, math.floor(o.keep * #rows + 0.5)), 1)
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
  },
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
