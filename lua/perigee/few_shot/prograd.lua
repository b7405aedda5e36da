-- prograd.lua - CoOp whose gradient may not go against what zero-shot CLIP knows.
--
--   G_d = d CE,   G_g = d (T^2 CE(softmax(z_zs / T), z / T)),   z = exp(s) cos(f, t)
--   g = G_d  where <G_d, G_g> >= 0,  else  G_d - strength (<G_d, G_g> / |G_g|^2) G_g,    for each tensor by itself
--
-- Published with M = 16, T = 1, strength 1 (0.8 for some sets); M is 4 here as in the other methods of base-to-new.

local pg = require "perigee"
local coop = require "perigee.few_shot.coop"
local prompts = require "perigee.prompts"

return {
  help = "CoOp without the part of the gradient that goes against zero-shot CLIP",
  source = "ProGrad: Zhu et al., arXiv 2205.14865",
  training = { optimizer = "SGD", lr = 0.002, batch = 32, epochs = 100, weight_decay = 5e-4, schedule = "epoch" },
  options = {
    { "strength", 1, min = 0, real = true, help = "share of the opposing part that is taken off" },
    { "temperature", 1, min = 1e-3, real = true, help = "T of the zero-shot distribution" },
    { "length", 4, min = 1, help = "vectors of the context, M" },
    { "init", "a photo of a", help = "the text that they start from, or random" },
  },
  new = function(task, o)
    local self = coop.new(task, { length = o.length, init = o.init, place = "end", specific = false })
    local words = prompts.words("prograd", task, task.classes, nil, o.length)
    local general, T = nil, o.temperature -- the second loss of the batch at hand

    function self.loss(batch)
      local texts = prompts.encode(task, words, self.module.context)
      local logits = task:cosines(batch.features, texts)
      local known = (task:cosines(batch.features, task.texts) * (1 / T)):softmax(2)
      general = (known * (logits * (1 / T)):log_softmax(2)):sum() * (-T * T / logits:size(1))
      return pg.cross_entropy(logits, batch.labels), texts, task.texts
    end

    function self.backward(loss)
      local parameters, towards = self.module:parameters(), {}
      general:backward { retain = true }
      for i, p in ipairs(parameters) do towards[i], p.grad = p.grad, nil end
      loss:backward()
      general = nil
      pg.no_grad(function()
        for i, p in ipairs(parameters) do
          local along = (p.grad * towards[i]):sum():item()
          if along < 0 then
            p.grad = p.grad - towards[i] * (o.strength * along / (towards[i] * towards[i]):sum():item())
          end
        end
      end)
    end
    return self
  end,
}
