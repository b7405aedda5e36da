-- kgcoop.lua - CoOp whose texts must stay near those of a sentence written by hand.
--
--   L = CE + weight * 1/C sum_c (1 - cos(t_c, t_c^zs)),   t^zs = text("a photo of a {c}")
--
-- The published code also makes a network from images and a bias that nothing uses; they are left out.

local pg = require "perigee"
local coop = require "perigee.few_shot.coop"
local prompts = require "perigee.prompts"

return {
  help = "CoOp whose class texts are held near the hand-written ones",
  source = "KgCoOp: Yao, Zhang, Xu, arXiv 2303.13283",
  training = { optimizer = "SGD", lr = 0.002, batch = 128, epochs = 100, weight_decay = 5e-4, schedule = "epoch" },
  options = {
    { "knowledge", 8, min = 0, real = true, help = "factor of the distance from hand-written texts" },
    { "length", 4, min = 1, help = "vectors of the context, M" },
    { "init", "a photo of a", help = "the text that they start from, or random" },
  },
  new = function(task, o)
    local self = coop.new(task, { length = o.length, init = o.init, place = "end", specific = false })
    local words = prompts.words("kgcoop", task, task.classes, nil, o.length)
    function self.loss(batch)
      local texts = prompts.encode(task, words, self.module.context)
      local loss = pg.cross_entropy(task:cosines(batch.features, texts), batch.labels)
      local far = (texts * task.texts):sum(2):mean() * -1 + 1
      return loss + far * o.knowledge, texts, task.texts
    end
    return self
  end,
}
