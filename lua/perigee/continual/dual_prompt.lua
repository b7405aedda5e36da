-- dual_prompt.lua - DualPrompt: the encoder is frozen; a general prompt learns on all tasks, an expert prompt on each.
--
--   prompts are prefixes: as many keys as values, before the attention's own (prefix tuning)
--   general: blocks 1, 2, the same for all tasks;  expert: blocks 3, 4, 5, of the current task in training, at test of
--   the task whose key agrees most with the query q, the pre-trained feature
--   loss  cross-entropy over the task's own classes  +  weight * (1 - cos(q, key of the task)), mean over the batch
--
-- The sizes are those of the authors' configuration; general and expert count keys, with as many values.

local pg = require "perigee"
local nn = require "perigee.nn"
local pool = require "perigee.prompt_pool"

local Prompts = nn.class "DualPrompts"
function Prompts:init(o, tasks, general, expert, query, width)
  self.keys = nn.init.uniform({ tasks, query }, 1)
  self.general = nn.init.normal({ general, 2 * o.general, width }, 0.02)
  self.expert = nn.init.normal({ expert, tasks, 2 * o.expert * width }, 0.02)
end

return {
  help = "a general prefix for all tasks and an expert one for each, in the frozen encoder",
  source = "DualPrompt: Wang et al., arXiv 2204.04799, equations 4 to 8; google-research/l2p",
  options = {
    { "general", 5, min = 1, help = "keys of the general prompt" },
    { "general_layers", "1,2", list = true, help = "blocks that take it" },
    { "expert", 5, min = 1, help = "keys of an expert prompt" },
    { "expert_layers", "3,4,5", list = true, help = "blocks that take it" },
    { "pull", 1, min = 0, real = true, help = "factor of what pulls a task's key to its queries" },
    { "prompt_lr", 0.005, min = 0, real = true, help = "peak learning rate of prompts and keys" },
    { "head_lr", 0.01, min = 0, real = true, help = "peak learning rate of the heads" },
  },
  new = function(learner, o)
    local model = learner.model:requires_grad_(false)
    local general = pool.layers("dual_prompt", o.general_layers, model)
    local expert = pool.layers("dual_prompt", o.expert_layers, model)
    local width, device = model.config.width, model:parameters()[1]:device()
    local prompts = Prompts(o, #learner.tasks, #general, #expert, learner.pretrained.width, width):to(device)

    -- The task of each image, (B): the current one in training; else by the keys of those so far.
    local function tasks_of(query, batch)
      if batch then return pg.full({ query:size(1) }, learner.t, { dtype = "int32", device = device }) end
      return pool.cosine(query, prompts.keys:narrow(1, 1, learner.t)):argmax(2)
    end

    return {
      modules = { prompts = prompts },
      groups = function()
        return { { params = prompts:parameters(), lr = o.prompt_lr, weight_decay = 0 },
          { params = learner:head_parameters(), lr = o.head_lr } }
      end,
      encode = function(images, query, batch)
        local b, at, tasks = images:size(1), {}, tasks_of(query, batch)
        for i, layer in ipairs(general) do
          at[layer] = prompts.general:narrow(1, i, 1):expand(b, 2 * o.general, width)
        end
        for i, layer in ipairs(expert) do
          local own = prompts.expert:select(1, i):index(1, tasks):reshape(b, 2 * o.expert, width)
          if at[layer] then -- both at one block: keys with keys, values with values
            local g = at[layer]
            own = pg.cat({ g:narrow(2, 1, o.general), own:narrow(2, 1, o.expert), g:narrow(2, o.general + 1, o.general),
              own:narrow(2, o.expert + 1, o.expert) }, 2)
          end
          at[layer] = own
        end
        if batch then batch.pull = 1 - pool.cosine(query, prompts.keys:narrow(1, learner.t, 1)):mean() end
        return pool.prefixed(model, images, at)
      end,
      task_loss = function(batch) return learner:current_loss(batch) end,
      penalty = function(batch) return batch.pull * o.pull end,
    }
  end,
}
