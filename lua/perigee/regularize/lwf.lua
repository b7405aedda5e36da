-- lwf.lua - learning without forgetting: on the new images, the old task's head goes on saying what it said.
--
--   weight * mean over the batch of  - sum_c q_c log p_c,   q = softmax(old logits / T),  p = softmax(logits / T)
--
-- softmax(z / T) is the paper's p^{1/T} brought to sum one. The old logits are those of the pre-trained model and of a
-- copy of its head, taken before the first step; the head itself may train on. No factor T^2 is applied.
-- Source: docs/method.md, section 2.1.

local util = require "perigee.util"
local regularize = require "perigee.regularize"

local function pg() return require "perigee" end

return {
  help = "distils the old task's head on the new images",
  source = "LwF: Li and Hoiem, arXiv 1606.09282, equations 2 and 3",
  options = {
    { "weight", 1, min = 0, real = true, help = "factor of the distillation, lambda_o" },
    { "temperature", 2, min = 1e-3, real = true, help = "T: above 1 it raises small probabilities" },
    { "head", object = "a module, features (B, D) -> logits (B, C)", help = "the old task's head; or batch.old_head" },
  },
  new = function(pretrained, o)
    local old = o.head and o.head:frozen()
    return { loss = function(batch)
      local features = regularize.features("lwf", batch)
      local head = util.check(batch.old_head or o.head, "lwf: needs the old task's head: options.head, or batch.old_head")
      local recorded = batch.old_logits
      if not recorded then
        old = old or head:frozen()
        local before = regularize.before("lwf", pretrained, batch)
        recorded = pg().no_grad(function() return old(before) end)
      end
      local targets = (recorded:detach() * (1 / o.temperature)):softmax(-1)
      local said = (head(features) * (1 / o.temperature)):log_softmax(-1)
      return (targets * said):sum() * (-o.weight / features:size(1))
    end }
  end,
}
