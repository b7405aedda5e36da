-- tip_adapter.lua - a cache of the training images beside the zero-shot classifier; nothing is trained.
--
--   logits = exp(s) f t^T + alpha exp(-beta (1 - f K^T)) V,   K the training features, V their labels as one-hot rows
--
-- alpha and beta are the published ones for ImageNet, or with `search` those of a grid that do best on the task's val
-- images, as the published code chooses them. A name that no cached image has gets no vote.

local pg = require "perigee"

local tip = {
  help = "adds the votes of similar training images to zero-shot logits; nothing is trained",
  source = "Tip-Adapter: Zhang et al., arXiv 2111.03930",
  options = {
    { "alpha", 1.17, min = 0, real = true, help = "factor of the votes" },
    { "beta", 1, min = 0, real = true, help = "how fast a vote falls with distance" },
    { "search", false, help = "alpha and beta by a grid on validation images" },
  },
}

-- (N, C): V for the names given.
local function votes(task, names)
  local number, rows = {}, {}
  for i, name in ipairs(names) do number[name] = i end
  for k, label in ipairs(task.labels:totable()) do
    rows[k] = {}
    for i = 1, #names do rows[k][i] = number[task.classes[label]] == i and 1 or 0 end
  end
  return pg.tensor(rows, { dtype = task.features:dtype(), device = task.features:device() })
end

-- The pair of the grid that names most validation images rightly; of equal ones the first.
local function search(task, known, keys)
  local val, best = task.val, { alpha = 0, beta = 0, accuracy = -1 }
  local f = task:encode(val.images)
  local zero_shot, similar = task:cosines(f, task.texts), f:matmul(keys:t())
  for i = 0, 199 do
    local beta = 0.1 + i * 6.9 / 200
    local vote = ((similar - 1) * beta):exp():matmul(known)
    for j = 0, 19 do
      local alpha = 0.1 + j * 2.9 / 20
      local accuracy = pg.metrics.accuracy(zero_shot + vote * alpha, val.labels)
      if accuracy > best.accuracy then best = { alpha = alpha, beta = beta, accuracy = accuracy } end
    end
  end
  return best
end

function tip.new(task, o)
  require("perigee.util").check(not o.search or task.val, "tip_adapter: search needs a task with val images")
  local self, own = { keys = task.features }, votes(task, task.classes)
  local chosen = o.search and pg.no_grad(function() return search(task, own, task.features) end) or o
  self.alpha, self.beta = chosen.alpha, chosen.beta

  -- The logits of features (B, D) among texts (C, D), whose votes are v (N, C).
  function self.cached(features, texts, v)
    local similar = features:matmul(self.keys:t())
    return task:cosines(features, texts) + ((similar - 1) * self.beta):exp():matmul(v) * self.alpha
  end
  function self.classes(names, prompt) return { texts = task:zero_shot(names, prompt), votes = votes(task, names) } end
  function self.logits(batch, set) return self.cached(batch.features, set.texts, set.votes) end
  self.own = own
  return self
end

return tip
