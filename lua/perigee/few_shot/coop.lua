-- coop.lua - the words around a class's name are learnt: M vectors in the space of token embeddings.
--
--   t_c = text([start, v_1 .. v_M, name of c, stop, end]),   L = CE(exp(s) cos(f, t_c))
--
-- Published: M = 16 random vectors for few-shot classification, M = 4 from "a photo of a" for base-to-new, which is the
-- default here. With `specific` every class has vectors of its own, and new names none: they get the mean of all.

local pg = require "perigee"
local prompts = require "perigee.prompts"

return {
  help = "learns the context words of a text prompt",
  source = "CoOp: Zhou et al., arXiv 2109.01134",
  training = { optimizer = "SGD", lr = 0.002, batch = 32, epochs = 50, weight_decay = 5e-4, schedule = "epoch" },
  options = {
    { "length", 4, min = 1, help = "vectors of the context, M" },
    { "init", "a photo of a", help = "the text that they start from, or random" },
    { "place", "end", choices = { "end", "middle", "front" }, help = "where the class's name stands" },
    { "specific", false, help = "vectors of each class's own" },
  },
  new = function(task, o)
    local function start() return prompts.start("coop", task, o.length, o.init) end
    local context = start()
    if o.specific then
      local each = { context }
      for c = 2, #task.classes do each[c] = start() end
      context = pg.stack(each, 1)
    end
    local module = prompts.module { context = context }
    local function words(names, prompt) return prompts.words("coop", task, names, prompt, o.length, o.place) end
    local own = words(task.classes)
    return {
      module = module, rows = #task.classes,
      classes = function(names, prompt)
        local vectors, same = module.context, #names == #task.classes
        for c, name in ipairs(names) do same = same and task.classes[c] == name end
        if o.specific and not same then vectors = vectors:mean(1) end
        return { texts = prompts.encode(task, words(names, prompt), vectors) }
      end,
      logits = function(batch, set) return task:cosines(batch.features, set.texts) end,
      loss = function(batch)
        local texts = prompts.encode(task, own, module.context)
        return pg.cross_entropy(task:cosines(batch.features, texts), batch.labels), texts, task.texts
      end,
    }
  end,
}
