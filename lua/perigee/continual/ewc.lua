-- ewc.lua - elastic weight consolidation over a sequence (online): parameters that old tasks lean on stay near their
-- values.
--
--   weight / 2 * sum_p F_p (p - p*)^2;   after each task  F <- gamma F + F_task,  p* <- p
--
-- F_task is the Fisher information of the task that has ended, on its own images and head (perigee/regularize/ewc.lua,
-- with its two choices of labels and the factor p(y | x) of mammoth's code). gamma = 1 sums them up, as EWC with one
-- penalty a task does but for the centre; mammoth asks for lambda and gamma and has no defaults. The heads are not
-- held.

local pg = require "perigee"

return {
  help = "squared distance from the last task's parameters, weighted by the Fisher information of all before",
  source = "EWC: Kirkpatrick et al., arXiv 1612.00796, equation 3; online: Schwarz et al., arXiv 1805.06370, section 4",
  options = {
    { "weight", 1000, min = 0, real = true, help = "lambda; half of it is the factor of the penalty" },
    { "gamma", 1, min = 0, max = 1, real = true, help = "what is left of the older Fisher information at each task" },
    { "samples", 100, min = 1, help = "images that the Fisher information of a task is averaged over" },
    { "labels", "sampled", choices = { "sampled", "true" },
      help = "classes drawn from the prediction, or the true ones" },
    { "factor", "none", choices = { "none", "probability" },
      help = "probability: squares times p(y | x), as mammoth does" },
    require("perigee.continual").logits "current",
  },
  new = function(learner, o)
    local kept = learner.kept

    local function penalty()
      if not kept["fisher.1"] then return nil end
      local total
      for i, p in ipairs(learner.model:parameters()) do
        local distance = ((p - kept["center." .. i]) ^ 2 * kept["fisher." .. i]):sum()
        total = total and total + distance or distance
      end
      return total * (o.weight / 2)
    end

    local function finish()
      local train = learner.task.train
      local head, first = learner.heads:frozen(), learner.task.first
      if learner.setting == "tasks" then head = head[learner.t] else first = 0 end
      local index = pg.randperm(train.labels:numel()):narrow(1, 1, math.min(o.samples, train.labels:numel()))
      index = index:contiguous():to(train.labels:device())
      local old = pg.regularize.ewc(learner.model:frozen(), { head = head, samples = o.samples, labels = o.labels,
        factor = o.factor, data = { { pg.models.pixels(learner.model, train.images:index(1, index)),
          train.labels:index(1, index) - first } } })
      for i, p in ipairs(learner.model:parameters()) do
        local before = kept["fisher." .. i]
        kept["fisher." .. i] = before and before * o.gamma + old.fisher[i] or old.fisher[i]
        kept["center." .. i] = p:detach():clone()
      end
    end

    return { penalty = penalty, finish = finish }
  end,
}
