-- pretrain.lua - trains the project's own small vision transformer from nothing, on several concepts at once: one encoder,
-- a linear head a concept. Procedural scenes are new in every step; of the pictures it sees only their pre-training half.

local pg = require "perigee"

local opt = pg.recipe {
  name = "pretrain",
  help = "Pre-train a small vision transformer on procedural concepts, drawings and some clothes.",
  options = {
    { "steps", 8000, min = 1, help = "optimiser steps" },
    { "scenes", 48, min = 2, help = "procedural scenes a step, each with all its labels" },
    { "drawings", 32, min = 2, help = "openclipart pictures a step" },
    { "clothes", 16, min = 2, help = "Fashion-MNIST pictures a step" },
    { "lr", 1e-3, min = 0, max = 1, help = "peak learning rate of AdamW" },
    { "weight_decay", 0.05, min = 0, help = "decoupled weight decay" },
    { "precision", "fp32", choices = { "fp32", "bf16" }, help = "bf16 trains in mixed precision (pg.autocast)" },
    { "width", 128, min = 16, help = "width of the transformer" },
    { "depth", 6, min = 1, help = "its blocks" },
    { "patch", 8, min = 2, help = "side of a patch: 8 gives 17 tokens, 4 gives 65 and takes four times as long" },
    { "checkpoint", 500, min = 1, help = "steps between checkpoints" },
    { "log", 20, min = 1, help = "steps between lines of metrics.jsonl" },
    { "probe", 400, min = 20, help = "labelled images of a probe, for the card" },
    { "probe_steps", 1000, min = 1, help = "steps of a linear probe" },
    { "test", 2000, min = 50, help = "test images of a probe" },
    { "save", "recipes/vit_small.safetensors", help = "where the model goes" },
  },
}
local run = pg.run.open(opt)

-- ---- what it learns ---------------------------------------------------------------------------------------------------------

local properties = { "shape", "color", "texture", "position", "size" } -- count stays out, as does every other task
local pictures = {
  { name = "openclipart", data = pg.data.pretraining "openclipart", batch = opt.drawings },
  { name = "fashion_mnist", data = pg.data.pretraining "fashion_mnist", batch = opt.clothes },
}

local names = { unpack(properties) } -- of the heads, in their order
for _, source in ipairs(pictures) do names[#names + 1] = source.name end

local model = pg.models.vit { width = opt.width, depth = opt.depth, patch = opt.patch }
local heads = pg.nn.Sequential()
for i, name in ipairs(properties) do
  heads[i] = pg.models.head(opt.width, #pg.data.concept_values[name], { normalize = false })
end
for i, source in ipairs(pictures) do
  heads[#properties + i] = pg.models.head(opt.width, #source.data.classes, { normalize = false })
  source.batches = pg.data.batches { dataset = source.data, batch = source.batch, seed = opt.seed }
end

-- The pictures are few: each batch is flipped or not, and moved by up to three pixels either way.
local function shifted(images)
  if pg.rand(1):item() < 0.5 then images = images:flip { 4 } end
  local function offset() return 1 + math.floor(7 * pg.rand(1):item()) end
  return images:pad { 0, 0, 0, 0, 3, 3, 3, 3 }:narrow(3, offset(), images:size(3)):narrow(4, offset(), images:size(4))
end

-- The images of step t, and the labels of each head.
local function batch(step)
  local scenes = pg.data.concepts { n = opt.scenes, seed = (opt.seed * 1000003 + step) % 2 ^ 32 }
  local images, labels = { pg.data.to_float(scenes.images) }, {}
  for i, name in ipairs(properties) do labels[i] = scenes:property(name) end
  for i, source in ipairs(pictures) do
    local x, y = source.batches:next()
    images[i + 1], labels[#properties + i] = shifted(x), y
  end
  return pg.cat(images, 1):to(opt.device), labels
end

-- ---- training -----------------------------------------------------------------------------------------------------------------

model:to(opt.device)
heads:to(opt.device)
local parameters = model:parameters()
for _, t in ipairs(heads:parameters()) do parameters[#parameters + 1] = t end
local adamw = pg.optim.AdamW(parameters, { lr = opt.lr, weight_decay = opt.weight_decay })
local schedule = pg.optim.cosine { base = opt.lr, steps = opt.steps, warmup = math.floor(opt.steps / 20) }

local parts = { model = model, heads = heads, adamw = adamw }
for _, source in ipairs(pictures) do parts[source.name] = source.batches end
local first, seconds, saved = 1, 0, run:restore()
if saved then
  saved:into(parts)
  first, seconds = saved.state.step + 1, saved.state.seconds
end

local began, bar = pg.now() - seconds, run:progress("pre-training", opt.steps)
for step = first, opt.steps do
  adamw.lr = schedule(step)
  adamw:zero_grad()
  local images, labels = batch(step)
  local feature, loss, terms = pg.autocast(opt.precision, model, images), nil, {}
  local scenes, start = feature:narrow(1, 1, opt.scenes), opt.scenes + 1
  for i, name in ipairs(names) do -- every property is read off the same scenes, a picture source off its own rows
    local source, rows = pictures[i - #properties], scenes
    if source then rows, start = feature:narrow(1, start, source.batch), start + source.batch end
    terms[name] = pg.cross_entropy(heads[i](rows), labels[i])
    loss = loss and loss + terms[name] or terms[name]
  end
  run:check_finite(step, terms, model:state_dict())
  loss:backward()
  pg.optim.clip_grad_norm(parameters, 1)
  adamw:step()
  if step % opt.log == 0 then
    local line = { step = step, loss = loss:item() / #names, lr = adamw.lr,
      images_per_s = step * images:size(1) / (pg.now() - began) }
    for name, term in pairs(terms) do line[name] = term:item() end
    run:log(line)
  end
  bar:step(step)
  local stop = run:interrupted()
  if step % opt.checkpoint == 0 or stop then run:checkpoint(parts, { step = step, seconds = pg.now() - began }) end
  if stop then error("interrupted", 0) end
end
bar:done()
seconds = pg.now() - began

-- ---- the card: what it saw, and what its features are worth -----------------------------------------------------------------

local card = { trained_by = "recipes/pretrain.lua: self-trained, from random weights", steps = opt.steps, seed = opt.seed,
  scenes = opt.steps * opt.scenes, drawings = pictures[1].data.labels:numel(), clothes = pictures[2].data.labels:numel(),
  seconds = seconds, probe_labels = opt.probe, linear_probe = {}, label = {}, chance = {},
  licences = "scenes: drawn by core/data/concepts.c; openclipart: public domain; Fashion-MNIST: MIT" }
run:say("%-18s %10s %8s %8s", "linear probe", "accuracy", "chance", "label")
for _, task in ipairs(pg.data.tasks()) do
  local sample = pg.data.task(task.name, { train = opt.probe, test = opt.test, seed = opt.seed, device = opt.device })
  local accuracy = pg.metrics.probe_task(function(images) return model(pg.data.to_float(images)) end, sample,
    { steps = opt.probe_steps })
  local chance = pg.metrics.chance(sample.test.labels)
  card.linear_probe[task.name], card.label[task.name], card.chance[task.name] = accuracy, task.label, chance
  run:say("%-18s %9.1f%% %7.1f%% %8s", task.name, 100 * accuracy, 100 * chance, task.label)
end
pg.models.save(opt.save, model, card)
run:finish(card)
