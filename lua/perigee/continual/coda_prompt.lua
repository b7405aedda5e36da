-- coda_prompt.lua - CODA-Prompt: the encoder is frozen; prefixes are mixed from components, and each task adds some.
--
--   P(x) = sum_m cos(q * A_m, K_m) P_m   at each of some blocks;   q = the pre-trained feature
--   loss  cross-entropy over the task's own classes
--         + weight * sum over blocks and M in {A, K, P} of mean (M M^T - 1)^2
--
-- A task trains its own components; older ones are mixed in and stay as they are. A task's components start orthonormal
-- and at right angles to the older ones, where there is room. The paper's factor of orthogonality is 0.1; the authors'
-- code has come to 0. Its 100 components are shared out among ten tasks: here `components` is what each task gets.

local pg = require "perigee"
local nn = require "perigee.nn"
local pool = require "perigee.prompt_pool"

local Components = nn.class "Components" -- of one task at one block
function Components:init(o, query, width)
  self.attention = nn.init.uniform({ o.components, query }, 1)
  self.keys = nn.init.uniform({ o.components, query }, 1)
  self.prompts = nn.init.uniform({ o.components, 2 * o.length, width }, 1)
end

return {
  help = "prefixes mixed from components in the frozen encoder; each task adds its own",
  source = "CODA-Prompt: Smith et al., arXiv 2211.13218, equations 3 to 7; GT-RIPL/CODA-Prompt",
  options = {
    { "components", 10, min = 1, help = "components of each task" },
    { "length", 4, min = 1, help = "keys of a prefix, with as many values" },
    { "layers", "1,2,3,4,5", list = true, help = "blocks that take a prefix" },
    { "orthogonality", 0.1, min = 0, real = true, help = "factor of the orthogonality of components" },
    { "prompt_lr", 5e-3, min = 0, real = true, help = "peak learning rate of the components" },
    { "head_lr", 0.01, min = 0, real = true, help = "peak learning rate of the heads" },
  },
  new = function(learner, o)
    local model = learner.model:requires_grad_(false)
    local layers, tasks = pool.layers("coda_prompt", o.layers, model), nn.Sequential()
    for t = 1, #learner.tasks do
      tasks[t] = nn.Sequential()
      for l = 1, #layers do tasks[t][l] = Components(o, learner.pretrained.width, model.config.width) end
    end
    tasks:to(model:parameters()[1]:device())

    -- One kind of components at one block, of tasks 1..t; the older ones give no gradient.
    local function so_far(l, kind, t)
      local list = {}
      for i = 1, t do list[i] = i < learner.t and tasks[i][l][kind]:detach() or tasks[i][l][kind] end
      return pg.cat(list, 1)
    end

    return {
      modules = { tasks = tasks },
      begin = function()
        local t = learner.t
        for l = 1, #layers do
          for _, kind in ipairs { "attention", "keys", "prompts" } do
            pool.gram_schmidt(tasks[t][l][kind], t > 1 and so_far(l, kind, t - 1) or nil)
          end
        end
      end,
      groups = function()
        return { { params = tasks[learner.t]:parameters(), lr = o.prompt_lr, weight_decay = 0 },
          { params = learner:head_parameters(), lr = o.head_lr } }
      end,
      encode = function(images, query)
        local at, t = {}, learner.t
        for l, layer in ipairs(layers) do
          at[layer] = pool.mix(query, so_far(l, "attention", t), so_far(l, "keys", t), so_far(l, "prompts", t))
        end
        return pool.prefixed(model, images, at)
      end,
      task_loss = function(batch) return learner:current_loss(batch) end,
      penalty = function()
        if o.orthogonality == 0 then return nil end
        local total
        for l = 1, #layers do
          for _, kind in ipairs { "attention", "keys", "prompts" } do
            local off = pool.orthogonality(so_far(l, kind, learner.t))
            total = total and total + off or off
          end
        end
        return total * o.orthogonality
      end,
    }
  end,
}
