-- clap.lua - a linear classifier that starts at the zero-shot texts and is held there the more, the surer zero-shot is.
--
--   L = CE(exp(s) cos(f, w_c)) + mean_c a_c |w_c - t_c|^2,   a_c = mean over c's images of zero-shot's probability of c
--
-- a is fixed, which is the published method; its code also has multipliers that grow in outer steps, which are left
-- out. New names keep their texts.

local pg = require "perigee"
local prompts = require "perigee.prompts"

return {
  help = "a classifier from the zero-shot texts, held to them class by class",
  source = "CLAP: Silva-Rodriguez et al., arXiv 2312.12730; jusiro/CLAP",
  training = { optimizer = "SGD", lr = 0.1, batch = 256, epochs = 300, weight_decay = 0, schedule = "epoch" },
  options = {
    { "constraint", 1, min = 0, real = true, help = "factor of the penalty; 0 is a probe from zero-shot texts" },
  },
  new = function(task, o)
    local texts, labels = task.texts, task.labels:totable()
    local module = prompts.module { weight = texts:clone() }
    local sure = task:cosines(task.features, texts):softmax(2):totable()
    local sum, count = {}, {}
    for c = 1, #task.classes do sum[c], count[c] = 0, 0 end
    for i, c in ipairs(labels) do sum[c], count[c] = sum[c] + sure[i][c], count[c] + 1 end
    for c = 1, #sum do sum[c] = sum[c] / math.max(1, count[c]) end
    local a = pg.tensor(sum, { dtype = texts:dtype(), device = texts:device() })
    return {
      module = module, rows = #task.classes, multipliers = a,
      classes = function(names, prompt) return { weight = task:by_name(names, prompt, module.weight):normalize() } end,
      logits = function(batch, set) return task:cosines(batch.features, set.weight) end,
      loss = function(batch)
        local logits = task:cosines(batch.features, module.weight:normalize())
        local apart = (((module.weight - texts) ^ 2):sum(2) * a):mean()
        return pg.cross_entropy(logits, batch.labels) + apart * o.constraint, module.weight, texts
      end,
    }
  end,
}
