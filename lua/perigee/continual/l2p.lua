-- l2p.lua - learning to prompt: the encoder is frozen, and a pool of prompts with keys learns.
--
--   query q = the pre-trained feature;  the k prompts whose keys agree most with q join the tokens of the first block
--   loss  cross-entropy over the task's own classes  +  weight * sum over the chosen keys of (1 - cos(q, key))
--
-- The authors' code classifies the mean of the prompts' outputs; here, as in later reimplementations, the class token.
-- The code's length 10 and top 4 (the paper: 5 and 5) are for a tower of 196 patches; ours has 16, so that length is 2
-- here.

local pg = require "perigee"
local nn = require "perigee.nn"
local pool = require "perigee.prompt_pool"

local Prompts = nn.class "PromptPool"
function Prompts:init(o, query, width)
  self.keys = nn.init.uniform({ o.pool, query }, 1)
  self.prompts = nn.init.normal({ o.pool, o.length, width }, 0.02)
end

return {
  help = "a pool of prompts before the first block of the frozen encoder, chosen by keys",
  source = "L2P: Wang et al., arXiv 2112.08654, equations 1 to 5; google-research/l2p",
  options = {
    { "pool", 10, min = 1, help = "prompts in the pool" },
    { "length", 2, min = 1, help = "tokens of a prompt" },
    { "top", 4, min = 1, help = "prompts that an image takes" },
    { "pull", 1, min = 0, real = true, help = "factor of what pulls keys to queries" },
    { "prompt_lr", 0.02, min = 0, real = true, help = "peak learning rate of prompts and keys" },
    { "head_lr", 0.03, min = 0, real = true, help = "peak learning rate of the heads" },
  },
  new = function(learner, o)
    pg.util.check(o.top <= o.pool, "l2p: top = %d prompts from a pool of %d", o.top, o.pool)
    local model = learner.model:requires_grad_(false)
    local prompts = Prompts(o, learner.pretrained.width, model.config.width):to(model:parameters()[1]:device())
    return {
      modules = { prompts = prompts },
      groups = function()
        return { { params = prompts:parameters(), lr = o.prompt_lr, weight_decay = 0 },
          { params = learner:head_parameters(), lr = o.head_lr } }
      end,
      encode = function(images, query, batch)
        local chosen, pull = pool.select(query, prompts.keys, prompts.prompts, o.top)
        if batch then batch.pull = pull end
        return (model:forward_features(images, nil, { prompts = function(layer, x)
          if layer > 1 then return x end
          return pg.cat({ x:narrow(2, 1, 1), chosen, x:narrow(2, 2, x:size(2) - 1) }, 2) -- the class token stays first
        end }))
      end,
      task_loss = function(batch) return learner:current_loss(batch) end,
      penalty = function(batch) return batch.pull * o.pull end,
    }
  end,
}
