-- cocoop.lua - CoOp whose context depends on the image: a small network shifts all M vectors by what it sees.
--
--   v_m(x) = v_m + pi(f),   pi = Linear(D, D/16) - ReLU - Linear(D/16, width),   f the image feature, of length one
--   L = CE(exp(s) cos(f, t_c(x)))
--
-- Every image has texts of its own, so that a step costs B C texts; published with B = 1. FDA, which wants one text a
-- class, gets the mean over the batch.

local pg = require "perigee"
local prompts = require "perigee.prompts"

local MOST = 1024 -- texts at once where no gradient is wanted

-- (B, C, D) texts of length one.
local function texts_of(task, words, module, features)
  local clip, b, c, m = task.clip, features:size(1), words.count, words.length
  local width, rows = words.rows:size(2), words.rows:size(1) / words.count
  local shift = module.out(module.hidden(features):relu())
  local context = shift:reshape(b, 1, width) + module.context:reshape(1, m, width)
  local own = words.rows:reshape(1, c, rows, width):expand(b, c, rows, width)
  local x = pg.cat({ own:narrow(3, 1, 1), context:reshape(b, 1, m, width):expand(b, c, m, width),
    own:narrow(3, 2, rows - 1) }, 3):reshape(b * c, rows + m, width)
  local ends = words.eos:reshape(1, c):expand(b, c):contiguous():reshape(b * c)
  return clip:encode_embedded(x, ends):normalize():reshape(b, c, clip.width)
end

return {
  help = "CoOp whose context is shifted by what a network makes of the image",
  source = "CoCoOp: Zhou et al., arXiv 2203.05557",
  training = { optimizer = "SGD", lr = 0.002, batch = 1, epochs = 10, weight_decay = 5e-4, schedule = "epoch" },
  options = {
    { "length", 4, min = 1, help = "vectors of the context, M" },
    { "init", "a photo of a", help = "the text that they start from, or random" },
    { "reduction", 16, min = 1, help = "the network's hidden width is the feature's divided by this" },
  },
  new = function(task, o)
    local f = task.features
    local hidden, width = math.max(1, math.floor(f:size(2) / o.reduction)), task.clip.config.text.width
    local module = prompts.module { context = prompts.start("cocoop", task, o.length, o.init),
      hidden = pg.nn.Linear(f:size(2), hidden):to(f:dtype()):to(f:device()),
      out = pg.nn.Linear(hidden, width):to(f:dtype()):to(f:device()) }
    local function words(names, prompt) return prompts.words("cocoop", task, names, prompt, o.length) end
    local own = words(task.classes)
    local function cosines(features, texts)
      return (texts * features:reshape(features:size(1), 1, features:size(2))):sum(3) * task.scale
    end
    return {
      module = module, rows = #task.classes,
      classes = function(names, prompt) return words(names, prompt) end,
      logits = function(batch, set)
        local pieces, n, each = {}, batch.features:size(1), math.max(1, math.floor(MOST / set.count))
        for start = 1, n, each do
          local part = batch.features:narrow(1, start, math.min(each, n - start + 1)):contiguous()
          pieces[#pieces + 1] = cosines(part, texts_of(task, set, module, part))
        end
        return pg.cat(pieces, 1)
      end,
      loss = function(batch)
        local texts = texts_of(task, own, module, batch.features)
        return pg.cross_entropy(cosines(batch.features, texts), batch.labels), texts:mean(1), task.texts
      end,
    }
  end,
}
