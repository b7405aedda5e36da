-- lwf.lua - learning without forgetting: on the new task's images, the old heads go on saying what they said.
--
--   weight * sum over old heads of  mean over the batch of  - sum_c q_c log p_c
--     q = softmax(old logits / T),  p = softmax(logits / T)
--
-- (perigee/regularize/lwf.lua.) The old logits are those of the model as the task began. Where each task has a head,
-- each is distilled by itself, as in the paper; one growing head is distilled over all old classes together, as in
-- mammoth, whose factor is 0.5 and not the paper's 1. Both warm the new head up alone first; here it starts at its
-- texts or a probe.

local pg = require "perigee"

return {
  help = "distils the heads of old tasks on the new images",
  source = "LwF: Li and Hoiem, arXiv 1606.09282, equations 2 and 3",
  options = {
    { "weight", 10, min = 0, real = true, help = "factor of the distillation, lambda_o" },
    { "temperature", 2, min = 1e-3, real = true, help = "T: above 1 it raises small probabilities" },
    require("perigee.continual").logits "current",
  },
  new = function(learner, o)
    local hooks = { wants_reference = true, all_heads = true }
    local lwf = pg.regularize.lwf(learner.pretrained, { weight = o.weight, temperature = o.temperature })

    -- {first task, last task} of what is distilled together.
    local function groups()
      if learner.setting == "classes" then return { { 1, learner.t - 1 } } end
      local list = {}
      for t = 1, learner.t - 1 do list[t] = { t, t } end
      return list
    end

    function hooks.begin()
      hooks.features = learner.t > 1 and learner:features(learner.reference.model) or nil
    end

    function hooks.penalty(batch)
      if learner.t == 1 then return nil end
      local features, total = hooks.features:index(1, batch.positions), nil
      for _, group in ipairs(groups()) do
        local recorded = pg.no_grad(function() return learner.reference.heads(features, group[1], group[2]) end)
        local loss = lwf.loss { features = batch.features, old_logits = recorded,
          old_head = function(x) return learner.heads(x, group[1], group[2]) end }
        total = total and total + loss or loss
      end
      return total
    end

    return hooks
  end,
}
