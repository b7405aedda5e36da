-- slca.lua - slow learner with classifier alignment: the encoder learns a hundred times slower than the heads, each
-- task trains its own logits alone, and afterwards all heads are aligned on features drawn from each class's Gaussian.
--
--   per class  mu, S (+ 1e-4 on the diagonal) of its features, when its task ends
--   aligning   z ~ N(mu_c (0.9 + 0.1 t_c / T), S_c),  T tasks so far, t_c the class's own
--              cross-entropy of  logits(z) / (tau * mean over tasks of the norm of the task's logits)
--
-- The authors train by SGD, with 0.01 for the heads and 1e-4 for the encoder; here those are rates of AdamW. Aligning
-- is for one growing head: where each task has its own, only the slow encoder is left of the method.

local pg = require "perigee"

local slca = {
  help = "a slow encoder, and heads aligned on Gaussians of the classes' features",
  source = "SLCA: Zhang et al., arXiv 2303.05118, section 3; GengDavid/SLCA",
  options = {
    { "head_lr", 0.01, min = 1e-9, real = true, help = "peak learning rate of the heads" },
    { "ratio", 0.01, min = 0, real = true, help = "of the encoder's rate to it" },
    { "epochs", 5, min = 0, help = "passes of aligning, each with new features" },
    { "samples", 256, min = 1, help = "features drawn a class and pass" },
    { "align_lr", 0.01, min = 0, real = true, help = "rate of aligning, SGD with momentum 0.9, down a cosine" },
    { "tau", 0.1, min = 1e-6, real = true, help = "temperature of the logits in aligning" },
  },
}

--- A class's Gaussian. @param features (N, D) @return mean (1, D) and F (D, D) with F F^T = the covariance + 1e-4,
-- float64
function slca.gaussian(features)
  return pg.no_grad(function()
    local x = features:detach():to("cpu"):to("float64")
    local mean = x:mean(1, true)
    local off = x - mean
    local covariance = off:t():matmul(off) * (1 / math.max(1, x:size(1) - 1))
      + pg.eye(x:size(2), { dtype = "float64" }) * 1e-4
    local w, v = pg.linalg.eigh(covariance)
    return mean, v * w:clamp(0):sqrt()
  end)
end

--- The loss of aligning. @param logits list of (N, C_t), one a task @param labels (N) @param tau temperature
-- @return a scalar
function slca.aligned(logits, labels, tau)
  local norm
  for _, part in ipairs(logits) do
    local own = part:norm(2, true) + 1e-7
    norm = norm and norm + own or own
  end
  return pg.cross_entropy(pg.cat(logits, 2) / (norm * (tau / #logits)), labels)
end

function slca.new(learner, o)
  local kept = learner.kept

  local function remember()
    local features, members = pg.metrics.encode(learner:encoder(), learner.task.train.images), {}
    for i, c in ipairs(learner.task.train.labels:totable()) do
      members[c] = members[c] or {}
      table.insert(members[c], i)
    end
    for c, index in pairs(members) do
      local own = features:index(1, pg.tensor(index, { dtype = "int32" }):to(features:device()))
      kept["mean." .. c], kept["factor." .. c] = slca.gaussian(own)
    end
  end

  -- Features of every class so far, and their labels.
  local function draw()
    local z, labels, device = {}, {}, learner.train.labels:device()
    for t = 1, learner.t do
      local task = learner.tasks[t]
      for c = task.first + 1, task.first + #task.classes do
        if kept["mean." .. c] then
          local noise = pg.randn(o.samples, learner.model.width):to("float64")
          z[#z + 1] = noise:matmul(kept["factor." .. c]:t()) + kept["mean." .. c] * (0.9 + 0.1 * t / learner.t)
          labels[#labels + 1] = pg.full({ o.samples }, c, { dtype = "int32" })
        end
      end
    end
    return pg.cat(z, 1):to("float32"):to(device), pg.cat(labels, 1):to(device)
  end

  local function align()
    local sgd = pg.optim.SGD(learner.heads:parameters(), { lr = o.align_lr, momentum = 0.9, weight_decay = 5e-4 })
    local schedule, batch = pg.optim.cosine { base = o.align_lr, steps = o.epochs }, 256
    for epoch = 1, o.epochs do
      sgd.lr = schedule(epoch)
      local z, labels = draw()
      local order = pg.randperm(z:size(1)):to(z:device())
      for at = 1, z:size(1), batch do
        local index, logits = order:narrow(1, at, math.min(batch, z:size(1) - at + 1)):contiguous(), {}
        local x = z:index(1, index)
        for t = 1, learner.t do logits[t] = learner.heads[t](x) end
        sgd:zero_grad()
        slca.aligned(logits, labels:index(1, index), o.tau):backward()
        sgd:step()
      end
    end
  end

  return {
    groups = function()
      return { { params = learner.model:parameters(), lr = o.head_lr * o.ratio },
        { params = learner.heads[learner.t]:parameters(), lr = o.head_lr } }
    end,
    task_loss = function(batch) return learner:current_loss(batch) end,
    finish = function()
      if learner.setting == "tasks" then return end
      remember()
      if learner.t > 1 then align() end
    end,
  }
end

return slca
