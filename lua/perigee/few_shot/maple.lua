-- maple.lua - deep prompts in both towers, the image tower's made of the text tower's by a linear map a layer.
--
--   text:   [start, p_1 (n, D_t), name, stop, end];  before block l <= J the n places hold p_l
--   image:  [class, patches, W_1 p_1 + b_1];         before block l <= J the last n hold W_l p_l + b_l
--   L = CE(exp(s) cos(f, t))
--
-- p_1 starts at the embedding of the first n tokens of "a photo of a", deeper ones are random. J = 9 of 12 blocks is
-- published; a tower with fewer blocks takes as many as it has.

local pg = require "perigee"
local prompts = require "perigee.prompts"

return {
  help = "deep text prompts, and image prompts that are linear maps of them",
  source = "MaPLe: Khattak et al., arXiv 2210.03117",
  tower = true,
  training = { optimizer = "SGD", lr = 0.0035, batch = 4, epochs = 5, weight_decay = 5e-4, schedule = "epoch" },
  options = {
    { "length", 2, min = 1, help = "prompts a layer, n" },
    { "depth", 9, min = 1, help = "blocks with prompts, J" },
    { "init", "a photo of a", help = "the text that the first ones start from, or random" },
  },
  new = function(task, o)
    local clip, f, parts = task.clip, task.features, {}
    local text, vision = clip.config.text, clip.config.vision
    local depth = math.min(o.depth, math.max(text.depth, vision.depth))
    parts.context = prompts.start("maple", task, o.length, o.init)
    for l = 1, depth do
      if l > 1 then parts["deep_" .. l] = prompts.random(f, o.length, text.width) end
      if l <= vision.depth then
        parts["project_" .. l] = pg.nn.Linear(text.width, vision.width):to(f:dtype()):to(f:device())
      end
    end
    local module = prompts.module(parts)
    local function words(names, prompt) return prompts.words("maple", task, names, prompt, o.length) end
    local own = words(task.classes)

    local function texts_of(set)
      local deep = {}
      for l = 2, depth do deep[l - 1] = module["deep_" .. l] end
      return prompts.encode(task, set, module.context, deep)
    end
    local function images_of(images)
      local list = {}
      for l = 1, math.min(depth, vision.depth) do
        list[l] = module["project_" .. l](l == 1 and module.context or module["deep_" .. l])
      end
      return clip:encode_image(images, { prompts = prompts.image_hook(clip.visual, list) }):normalize()
    end
    return {
      module = module,
      classes = function(names, prompt) return { texts = texts_of(words(names, prompt)) } end,
      logits = function(batch, set) return task:cosines(images_of(batch.images), set.texts) end,
      loss = function(batch)
        local images = images_of(batch.images)
        return pg.cross_entropy(task:cosines(images, texts_of(own)), batch.labels), images, batch.features
      end,
    }
  end,
}
