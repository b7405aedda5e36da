-- pretrain.lua - trains the project's own small vision transformer from nothing, on several tasks at once: one encoder, a
-- linear head a task, batches of the tasks in turn. What it saw is written into the checkpoint's card.

local pg = require "perigee"

local opt = pg.recipe {
  name = "pretrain",
  help = "Pre-train a small vision transformer on procedural concepts.",
  options = {
    { "steps", 1700, min = 1, help = "optimiser steps; each sees one batch of every task" },
    { "batch", 16, min = 2, help = "images a task and step" },
    { "lr", 1e-3, min = 0, max = 1, help = "peak learning rate of AdamW" },
    { "width", 128, min = 16, help = "width of the transformer" },
    { "depth", 6, min = 1, help = "its blocks" },
    { "patch", 8, min = 2, help = "side of a patch: 8 gives 17 tokens, 4 gives 65 and takes four times as long" },
    { "images", 4000, min = 100, help = "training images a task" },
    { "tasks", "shape,color,texture,position,size", help = "comma-separated names of tasks" },
    { "save", "recipes/vit_small.safetensors", help = "where the model goes" },
  },
}
local run = pg.run.open(opt)

local tasks = {}
for name in opt.tasks:gmatch "[^,%s]+" do
  local data = pg.data.task(name, { train = opt.images, test = 500, seed = opt.seed + 1000 })
  local head = pg.models.head(opt.width, #data.train.classes, { normalize = false })
  tasks[#tasks + 1] = { name = name, train = data.train, test = data.test, head = head }
end

local model = pg.models.vit { width = opt.width, depth = opt.depth, patch = opt.patch }
local parameters = model:parameters()
for _, task in ipairs(tasks) do
  for _, t in ipairs(task.head:parameters()) do parameters[#parameters + 1] = t end
end
local adamw = pg.optim.AdamW(parameters, { lr = opt.lr, weight_decay = 0.05 })
local schedule = pg.optim.cosine { base = opt.lr, steps = opt.steps, warmup = math.floor(opt.steps / 10) }

local began, bar = pg.now(), run:progress("pre-training", opt.steps)
for step = 1, opt.steps do
  adamw.lr = schedule(step)
  adamw:zero_grad()
  local images, labels = {}, {}
  for i, task in ipairs(tasks) do
    local positions = pg.randperm(task.train.labels:numel()):narrow(1, 1, opt.batch):contiguous()
    images[i], labels[i] = task.train.images:index(1, positions), task.train.labels:index(1, positions)
  end
  local feature, loss = model(pg.data.to_float(pg.cat(images, 1))), nil
  for i, task in ipairs(tasks) do
    local own = pg.cross_entropy(task.head(feature:narrow(1, (i - 1) * opt.batch + 1, opt.batch)), labels[i])
    loss = loss and loss + own or own
  end
  loss = loss * (1 / #tasks)
  run:check_finite(step, { loss = loss }, model:state_dict())
  loss:backward()
  pg.optim.clip_grad_norm(parameters, 1)
  adamw:step()
  run:log { step = step, loss = loss:item(), lr = adamw.lr }
  bar:step(step)
  if run:interrupted() then error("interrupted", 0) end
end
bar:done()

-- ---- the card: what it saw, and what its features are worth -----------------------------------------------------------------

local function features(images)
  return pg.no_grad(function() return model(pg.data.to_float(images)) end)
end
local card = { trained_by = "recipes/pretrain.lua: self-trained, from random weights", tasks = opt.tasks, steps = opt.steps,
  images_a_task = opt.images, batch = opt.batch, seed = opt.seed, seconds = pg.now() - began, linear_probe = {},
  licences = "procedural scenes only, drawn by core/data/concepts.c: nobody's pictures" }
for _, task in ipairs(tasks) do
  local few = pg.arange(1, 400)
  local accuracy = pg.metrics.linear_probe(features(task.train.images:index(1, few)), task.train.labels:index(1, few),
    features(task.test.images), task.test.labels, { steps = 100, lrs = { 0.1 } })
  card.linear_probe[task.name] = accuracy
  run:say("%-16s linear probe, 400 labels: %.1f%%", task.name, 100 * accuracy)
end
pg.models.save(opt.save, model, card)
run:finish(card)
