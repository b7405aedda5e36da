-- prompt_src.lua - deep prompts of each tower's own, held to the frozen model's features and logits, and averaged over
-- the epochs with Gaussian weights.
--
--   L = CE(z) + text_weight mean |t - t_zs| + image_weight mean |f - f_zs| + 1/(B C) sum p_zs (log p_zs - log p)
--   p = softmax(z), z = exp(s) cos(f, t);   p_zs of the frozen model's f_zs, t_zs;  all features of length one
--   final prompts = sum_e g_e theta_e,  g_e ~ exp(-(e - mean)^2 / (2 deviation^2)), e = 1 .. E, summing to one
--
-- t_zs is the mean over many templates of text features that are not normalised, then normalised. For few-shot
-- classification the published mean and deviation are 30, 30 or 45, 5 of 50 epochs.

local pg = require "perigee"
local prompts = require "perigee.prompts"

return {
  help = "deep prompts held to the frozen model's features and logits, averaged over epochs",
  source = "PromptSRC: Khattak et al., arXiv 2307.06948; muzairkhattak/PromptSRC",
  tower = true,
  training = { optimizer = "SGD", lr = 0.0025, batch = 4, epochs = 20, weight_decay = 5e-4, schedule = "epoch" },
  options = {
    { "length", 4, min = 1, help = "prompts a layer in each tower" },
    { "depth", 9, min = 1, help = "blocks with prompts, J" },
    { "init", "a photo of a", help = "the text that the first text prompts start from, or random" },
    { "text_weight", 25, min = 0, real = true, help = "factor of the texts' distance" },
    { "image_weight", 10, min = 0, real = true, help = "factor of the images' distance" },
    { "mean", 15, real = true, help = "epoch that counts most in the average" },
    { "deviation", 1, min = 1e-3, real = true, help = "spread of the average, in epochs" },
  },
  new = function(task, o)
    local clip, f, parts = task.clip, task.features, {}
    local text, vision = clip.config.text, clip.config.vision
    parts.context = prompts.start("prompt_src", task, o.length, o.init)
    for l = 2, math.min(o.depth, text.depth) do parts["text_" .. l] = prompts.random(f, o.length, text.width) end
    for l = 1, math.min(o.depth, vision.depth) do parts["image_" .. l] = prompts.random(f, o.length, vision.width) end
    local module, average = prompts.module(parts), {}
    for name, p in pairs(parts) do average[name] = pg.zeros(p:shape(), { dtype = p:dtype(), device = p:device() }) end
    local self = { module = module, kept = prompts.module(average):requires_grad_(false) }
    local function words(names, prompt) return prompts.words("prompt_src", task, names, prompt, o.length) end
    local own, frozen = words(task.classes), task:ensemble(task.classes)

    local function texts_of(set)
      local deep = {}
      for l = 2, text.depth do deep[l - 1] = module["text_" .. l] end
      return prompts.encode(task, set, module.context, deep)
    end
    local function images_of(images)
      local list = {}
      for l = 1, vision.depth do list[l] = module["image_" .. l] end
      return clip:encode_image(images, { prompts = prompts.image_hook(clip.visual, list) }):normalize()
    end
    function self.classes(names, prompt) return { texts = texts_of(words(names, prompt)) } end
    function self.logits(batch, set) return task:cosines(images_of(batch.images), set.texts) end

    function self.loss(batch)
      local images, texts = images_of(batch.images), texts_of(own)
      local logits = task:cosines(images, texts)
      local log_p, log_q = logits:log_softmax(2), task:cosines(batch.features, frozen):log_softmax(2)
      local loss = pg.cross_entropy(logits, batch.labels) + (texts - frozen):abs():mean() * o.text_weight
        + (images - batch.features):abs():mean() * o.image_weight + (log_q:exp() * (log_q - log_p)):mean()
      return loss, images, batch.features
    end

    -- The average so far; the weights of all epochs are relative to that of the epoch nearest the mean.
    function self.epoch(e, epochs)
      local nearest, sum = math.max(1, math.min(epochs, math.floor(o.mean + 0.5))), 0
      local function g(i) return math.exp(((nearest - o.mean) ^ 2 - (i - o.mean) ^ 2) / (2 * o.deviation ^ 2)) end
      for i = 1, epochs do sum = sum + g(i) end
      pg.no_grad(function()
        for name, p in module:named_parameters() do self.kept[name]:copy_(self.kept[name] + p * (g(e) / sum)) end
      end)
    end
    function self.finish() module:load_state_dict(self.kept:state_dict()) end
    return self
  end,
}
