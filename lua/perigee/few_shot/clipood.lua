-- clipood.lua - the image tower is fine-tuned with a margin that knows how near classes are, and its weights averaged.
--
--   L = CE(exp(s) (f - margin t_y) t^T):  class k loses margin cos(t_y, t_k), the right one the most
--   final weights = sum_t w_t theta_t / sum_t w_t,  t = 0 .. T,  w_t = Beta(b, b) density at (t + 1/2) / (T + 1)
--
-- With the published b = 1/2 start and end count most. The density's constant factor is left out, as it cancels.

local pg = require "perigee"
local prompts = require "perigee.prompts"

return {
  help = "fine-tunes the image tower with a metric margin; Beta moving average of its weights",
  source = "CLIPood: Shu et al., arXiv 2302.00864; thuml/CLIPood",
  tower = true,
  training = { optimizer = "AdamW", lr = 5e-6, batch = 36, epochs = 20, weight_decay = 0.1, schedule = "step",
    fine_tunes = true },
  options = {
    { "margin", 0.3, min = 0, help = "share of the right class's text that is taken off the image" },
    { "beta", 0.5, min = 0.01, help = "parameter of the Beta distribution; 1 is the plain mean" },
  },
  new = function(task, o)
    local module = prompts.copy(task.clip.visual)
    local self = { module = module, kept = prompts.copy(module):requires_grad_(false) }
    local function images_of(images) return module(images):normalize() end
    function self.classes(names, prompt) return { texts = task:zero_shot(names, prompt) } end
    function self.logits(batch, set) return task:cosines(images_of(batch.images), set.texts) end

    function self.loss(batch)
      local images = images_of(batch.images)
      local shifted = images - task.texts:index(1, batch.labels) * o.margin
      return pg.cross_entropy(task:cosines(shifted, task.texts), batch.labels), images, batch.features
    end

    local sum, upto = 0, -1 -- of the weights of steps 0 .. upto
    function self.step(t, steps)
      local function weight(i)
        local x = (i + 0.5) / (steps + 1)
        return (x * (1 - x)) ^ (o.beta - 1)
      end
      if upto ~= t - 1 then -- the first step of a run, or of a resumed one
        sum = 0
        for i = 0, t - 1 do sum = sum + weight(i) end
      end
      sum, upto = sum + weight(t), t
      local share, new = weight(t) / sum, module:parameters()
      pg.no_grad(function()
        for i, p in ipairs(self.kept:parameters()) do p:copy_(p * (1 - share) + new[i] * share) end
      end)
    end
    function self.finish() module:load_state_dict(self.kept:state_dict()) end
    return self
  end,
}
