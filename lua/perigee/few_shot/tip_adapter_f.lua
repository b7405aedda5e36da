-- tip_adapter_f.lua - Tip-Adapter whose keys are trained.
--
--   L = CE(exp(s) f t^T + alpha exp(-beta (1 - f K^T)) V)   over K, which starts at the training features
--
-- The last epoch counts. The published code keeps the epoch that does best on the test images, which is a leak.

local pg = require "perigee"
local prompts = require "perigee.prompts"
local tip = require "perigee.few_shot.tip_adapter"

return {
  help = "Tip-Adapter with trained keys",
  source = "Tip-Adapter-F: Zhang et al., arXiv 2111.03930",
  training = { optimizer = "AdamW", lr = 1e-3, eps = 1e-4, batch = 256, epochs = 20, weight_decay = 0.01,
    schedule = "step" },
  options = tip.options,
  new = function(task, o)
    local self = tip.new(task, o)
    self.module = prompts.module { keys = task.features:clone() }
    self.keys, self.rows = self.module.keys, self.module.keys:size(1)
    function self.loss(batch)
      return pg.cross_entropy(self.cached(batch.features, task.texts, self.own), batch.labels), self.keys, task.features
    end
    return self
  end,
}
