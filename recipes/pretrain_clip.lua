-- pretrain_clip.lua - trains a small CLIP: an image and a text encoder that agree on which picture goes with which sentence.
-- Procedural scenes, drawings and clothes with their captions; the result is recipes/clip_small, a folder in the common
-- format, with its tokenizer. No picture of a benchmark task's parts, and nothing of tuxpaint, is seen.

local pg = require "perigee"
local captions = pg.data.captions

local opt = pg.recipe {
  name = "pretrain_clip",
  help = "Pre-train a small image and text encoder contrastively on scenes, drawings and clothes with captions.",
  options = {
    { "start", "vit_small.safetensors", help = "the image encoder's first weights, beside this file, or none: captions alone "
      .. "are slow to say where things are" },
    { "steps", 1600, min = 1, help = "optimiser steps" },
    { "scenes", 64, min = 2, help = "procedural scenes a step" },
    { "drawings", 40, min = 2, help = "openclipart pictures a step" },
    { "clothes", 24, min = 2, help = "Fashion-MNIST pictures a step" },
    { "lr", 5e-4, min = 0, max = 1, help = "peak learning rate of AdamW" },
    { "weight_decay", 0.1, min = 0, help = "decoupled weight decay" },
    { "precision", "fp32", choices = { "fp32", "bf16" }, help = "bf16 trains in mixed precision (pg.autocast)" },
    { "width", 128, min = 16, help = "width of both transformers" },
    { "depth", 6, min = 1, help = "blocks of the image encoder" },
    { "text_depth", 3, min = 1, help = "blocks of the text encoder" },
    { "patch", 8, min = 2, help = "side of a patch: 8 gives 17 tokens" },
    { "vocabulary", 1000, min = 514, help = "tokens of the byte-pair encoding, trained on the captions" },
    { "context", 20, min = 4, help = "tokens of a text at most" },
    { "checkpoint", 500, min = 1, help = "steps between checkpoints" },
    { "log", 20, min = 1, help = "steps between lines of metrics.jsonl" },
    { "probe", 400, min = 20, help = "labelled images of a probe, for the card" },
    { "probe_steps", 300, min = 1, help = "steps of a linear probe" },
    { "test", 1000, min = 50, help = "test images of a task" },
    { "save", "recipes/clip_small", help = "the folder that the model goes to" },
  },
}
local run = pg.run.open(opt)

-- ---- pictures and their texts -------------------------------------------------------------------------------------------

-- A picture's texts; which one is told is drawn anew in every step.
local drawings, clothes = pg.data.pretraining "openclipart", pg.data.pretraining("fashion_mnist", { classes = "all" })
local sources = {
  { name = "drawings", data = drawings, batch = opt.drawings,
    texts = function(i) return captions.drawing(drawings.files[i], drawings.classes[drawings.labels:get(i)]) end },
  { name = "clothes", data = clothes, batch = opt.clothes,
    texts = function(i) return captions.clothes(clothes.classes[clothes.labels:get(i)]) end },
}

-- Each picture is moved by up to three pixels either way, and the batch flipped or not: they are few.
local function shifted(images, draw)
  if draw:below(2) == 1 then images = images:flip { 4 } end
  return images:pad { 0, 0, 0, 0, 3, 3, 3, 3 }:narrow(3, draw:below(7), images:size(3))
    :narrow(4, draw:below(7), images:size(4))
end

-- The pictures of step t, and for each one of its texts.
local function batch(step)
  local draw, texts = pg.data.random(opt.seed, step), {}
  local function tell(list) texts[#texts + 1] = list[draw:below(#list)] end
  local scenes = pg.data.concepts { n = opt.scenes, seed = (opt.seed * 1000003 + step) % 2 ^ 32 }
  for i = 1, opt.scenes do tell(captions.scene(scenes:words(i))) end
  local images = { pg.data.to_float(scenes.images) }
  for s, source in ipairs(sources) do
    local positions = {}
    for i = 1, source.batch do
      positions[i] = draw:below(source.data.labels:numel())
      tell(source.texts(positions[i]))
    end
    local drawn = source.data.images:index(1, pg.tensor(positions, { dtype = "int32" }))
    images[s + 1] = shifted(pg.data.to_float(drawn), draw)
  end
  return pg.cat(images, 1):to(opt.device), texts
end

-- ---- the tokenizer: byte pairs of every text that training may tell ------------------------------------------------------

local every = {}
for _, source in ipairs(sources) do
  for i = 1, source.data.labels:numel() do
    for _, text in ipairs(source.texts(i)) do every[#every + 1] = text end
  end
end
local words = pg.data.concepts { n = 2000, seed = opt.seed }
for i = 1, 2000 do
  for _, text in ipairs(captions.scene(words:words(i))) do every[#every + 1] = text end
end
local tokenizer = pg.tokenizer.train(every, { size = opt.vocabulary })
tokenizer.context = opt.context

-- ---- training ---------------------------------------------------------------------------------------------------------------

local model = pg.models.clip {
  embed = opt.width,
  vision = { image = 32, patch = opt.patch, width = opt.width, depth = opt.depth, heads = opt.width / 32,
    hidden = 4 * opt.width, act = "gelu", eps = 1e-6 },
  text = { context = opt.context, vocab = tokenizer.size, width = opt.width, depth = opt.text_depth,
    heads = opt.width / 32, hidden = 4 * opt.width, act = "gelu", eos = tokenizer.eos },
}:to(opt.device)

-- A vision transformer's weights in the image tower. CLIP's patches have no bias, so that it goes into their positions, and
-- its embedding is normalised, so that it is given back the strength that it had.
local function start_from(vit)
  local theirs, mine = vit:state_dict(), model.visual:state_dict()
  for name, t in pairs(theirs) do
    if mine[name] then mine[name]:copy_(t) end
  end
  local places = mine.positions:size(2)
  mine.positions:narrow(2, 2, places - 1):copy_(theirs.positions:narrow(2, 2, places - 1) + theirs["patch.bias"])
  local scenes = pg.data.to_float(pg.data.concepts { n = 64, seed = opt.seed }.images)
  local embedded = vit:embed(scenes)
  mine["norm_pre.weight"]:fill_((embedded - embedded:mean(3, true)):pow(2):mean(3):sqrt():mean():item())
end
if opt.start ~= "none" then
  local vit = pg.models.load((debug.getinfo(1, "S").source:match "^@(.*/)" or "") .. opt.start)
  pg.no_grad(function() start_from(vit:to(opt.device)) end)
end

-- Each picture finds its text among the distinct texts of the batch, and each text its pictures (InfoNCE both ways,
-- Radford et al., arXiv 2103.00020; a text told of several pictures is right for each of them).
local function contrastive(images, texts)
  local number, distinct, labels = {}, {}, {}
  for i, text in ipairs(texts) do
    if not number[text] then
      distinct[#distinct + 1] = text
      number[text] = #distinct
    end
    labels[i] = number[text]
  end
  local count = {}
  for _, u in ipairs(labels) do count[u] = (count[u] or 0) + 1 end
  local ids = tokenizer:batch(distinct, { truncate = true }):to(opt.device)
  local logits = pg.autocast(opt.precision, model, images, ids)
  local share = {}
  for u = 1, #distinct do
    share[u] = {}
    for i = 1, #texts do share[u][i] = labels[i] == u and 1 / count[u] or 0 end
  end
  local to_text = pg.cross_entropy(logits, pg.tensor(labels, { dtype = "int32", device = opt.device }))
  local to_image = -(pg.tensor(share, { device = opt.device }) * logits:t():log_softmax(2)):sum(2):mean()
  return (to_text + to_image) / 2
end

local parameters = model:parameters()
local adamw = pg.optim.AdamW(parameters, { lr = opt.lr, weight_decay = opt.weight_decay })
local schedule = pg.optim.cosine { base = opt.lr, steps = opt.steps, warmup = math.floor(opt.steps / 20) }

local parts = { model = model, adamw = adamw }
local first, seconds, saved = 1, 0, run:restore()
if saved then
  saved:into(parts)
  first, seconds = saved.state.step + 1, saved.state.seconds
end

local began, bar = pg.now() - seconds, run:progress("pre-training", opt.steps)
for step = first, opt.steps do
  adamw.lr = schedule(step)
  adamw:zero_grad()
  local images, texts = batch(step)
  local loss = contrastive(images, texts)
  run:check_finite(step, { loss = loss }, model:state_dict())
  loss:backward()
  pg.optim.clip_grad_norm(parameters, 1)
  adamw:step()
  pg.no_grad(function() model.logit_scale:copy_(model.logit_scale:clamp(0, math.log(100))) end) -- as CLIP does
  if step % opt.log == 0 then
    run:log { step = step, loss = loss:item(), scale = math.exp(model.logit_scale:item()), lr = adamw.lr,
      images_per_s = step * images:size(1) / (pg.now() - began) }
  end
  bar:step(step)
  local stop = run:interrupted()
  if step % opt.checkpoint == 0 or stop then run:checkpoint(parts, { step = step, seconds = pg.now() - began }) end
  if stop then error("interrupted", 0) end
end
bar:done()
seconds = pg.now() - began

-- ---- the card: what its features are worth, with the texts and by a probe -------------------------------------------------

local card = { trained_by = "recipes/pretrain_clip.lua: self-trained, from random weights", steps = opt.steps, seed = opt.seed,
  scenes = opt.steps * opt.scenes, drawings = drawings.labels:numel(), clothes = clothes.labels:numel(), seconds = seconds,
  probe_labels = opt.probe, zero_shot = {}, linear_probe = {}, chance = {},
  licences = "scenes: drawn by core/data/concepts.c; openclipart: public domain; Fashion-MNIST: MIT" }
local function encode(images) return model:encode_image(pg.data.to_float(images)) end
run:say("%-18s %10s %13s %8s", "task", "zero-shot", "linear probe", "chance")
for _, task in ipairs(pg.data.tasks { aside = true }) do
  local sample = pg.data.task(task.name, { train = opt.probe, test = opt.test, seed = opt.seed, device = opt.device })
  local prompts = captions.prompts(task.prompt, sample.test.classes)
  local classes = pg.no_grad(function()
    return model:encode_text(tokenizer:batch(prompts):to(opt.device))
  end)
  card.zero_shot[task.name] = pg.metrics.zero_shot(pg.metrics.encode(encode, sample.test.images), classes,
    sample.test.labels)
  card.linear_probe[task.name] = pg.metrics.probe_task(encode, sample, { steps = opt.probe_steps })
  card.chance[task.name] = 1 / #sample.test.classes
  run:say("%-18s %9.1f%% %12.1f%% %7.1f%%", task.name, 100 * card.zero_shot[task.name],
    100 * card.linear_probe[task.name], 100 * card.chance[task.name])
end
pg.models.save(opt.save, model, card, { dtype = "bfloat16" })
tokenizer:save(opt.save)
pg.util.write_file(opt.save .. "/preprocessor_config.json", pg.run.encode({ image_processor_type = "CLIPImageProcessor",
  do_resize = true, size = { shortest_edge = 32 }, resample = 3, do_center_crop = true, crop_size = { height = 32, width = 32 },
  do_rescale = true, rescale_factor = 1 / 255, do_normalize = true, image_mean = { 0.5, 0.5, 0.5 },
  image_std = { 0.25, 0.25, 0.25 }, do_convert_rgb = true }, "") .. "\n") -- as pg.data.to_float does
run:finish(card)
