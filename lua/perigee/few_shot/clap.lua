-- clap.lua - a linear classifier that starts at the zero-shot texts and is held there the more, the surer zero-shot is.
--
--   L = CE(exp(s) cos(f, w_c)) + mean_c a_c |w_c - t_c|^2,   a_c = mean over c's images of zero-shot's probability of c
--   adaptive, after each epoch (PHR, an augmented Lagrangian):  h_c = |w_c - t_c|^2,  a_c <- max(0, a_c + r_c h_c),  r_c <- h_c
--
-- The paper's experiments keep a as it starts; the published code has both, r starting at 0. Its t are as long as the text
-- tower makes them, around ten in CLIP, which both slows w's turning and weighs the penalty; `texts = unit` has them of
-- length one. New names keep their texts.

local pg = require "perigee"
local prompts = require "perigee.prompts"

return {
  help = "a classifier from the zero-shot texts, held to them class by class",
  source = "CLAP: Silva-Rodriguez et al., arXiv 2312.12730; jusiro/CLAP",
  training = { optimizer = "SGD", lr = 0.1, batch = 256, epochs = 300, weight_decay = 0, schedule = "epoch" },
  options = {
    { "constraint", 1, min = 0, real = true, help = "factor of the penalty; 0 is a probe from zero-shot texts" },
    { "multipliers", "fixed", choices = { "fixed", "adaptive" }, help = "whether a_c changes after each epoch" },
    { "texts", "tower", choices = { "tower", "unit" }, help = "of the text tower's length, or of length one" },
  },
  new = function(task, o)
    local labels = task.labels:totable()
    local texts = o.texts == "unit" and task.texts or task:sentences(task.prompt, task.classes)
    local module = prompts.module { weight = texts:clone() }
    local sure = task:cosines(task.features, task.texts):softmax(2):totable()
    local sum, count = {}, {}
    for c = 1, #task.classes do sum[c], count[c] = 0, 0 end
    for i, c in ipairs(labels) do sum[c], count[c] = sum[c] + sure[i][c], count[c] + 1 end
    for c = 1, #sum do sum[c] = sum[c] / math.max(1, count[c]) end
    local a = pg.tensor(sum, { dtype = texts:dtype(), device = texts:device() })
    local kept = prompts.module { multipliers = a, penalty = a * 0 }:requires_grad_(false)
    local function apart() return ((module.weight - texts) ^ 2):sum(2) end
    return {
      module = module, rows = #task.classes, kept = kept,
      classes = function(names, prompt)
        return { weight = task:by_name(names, prompt, module.weight:normalize()) }
      end,
      logits = function(batch, set) return task:cosines(batch.features, set.weight) end,
      loss = function(batch)
        local logits = task:cosines(batch.features, module.weight:normalize())
        local held = (apart() * kept.multipliers):mean()
        return pg.cross_entropy(logits, batch.labels) + held * o.constraint, module.weight, texts
      end,
      epoch = function()
        if o.multipliers == "fixed" then return end
        pg.no_grad(function()
          local h = apart()
          kept.multipliers:copy_((kept.multipliers + kept.penalty * h):relu())
          kept.penalty:copy_(h)
        end)
      end,
    }
  end,
}
