-- end_to_end.lua - fine-tunes the small pre-trained vision transformer on one task, and measures on all the others how
-- much it forgot: A_LP, the linear-probe accuracy of the task itself, and Delta_LP, the change of everyone else's.

local pg = require "perigee"

local opt = pg.recipe {
  name = "end_to_end",
  help = "Fine-tune on one task with one or several methods; probe every other task before and after.",
  options = {
    { "method", "naive,proxy_fda", help = "comma-separated: " .. table.concat(pg.regularize.names(), ", ") },
    { "task", "fashion_mnist", choices = pg.data.tasks(), help = "what to fine-tune on" },
    { "steps", 150, min = 1, help = "optimiser steps a method" },
    { "lr", 1e-3, min = 0, max = 1, help = "peak learning rate of AdamW" },
    { "weight_decay", 0.1, min = 0, help = "decoupled weight decay" },
    { "weight", 10, min = 0, real = true, help = "weight of the regulariser" },
    { "classes", 16, min = 2, help = "classes a batch (m); fewer when the task has fewer" },
    { "per_class", 4, min = 1, help = "images a class (n)" },
    { "train", 2000, min = 64, help = "training images of the fine-tuned task" },
    { "probe", 400, min = 20, help = "labelled images of a probe" },
    { "test", 1000, min = 50, help = "test images of a task" },
    { "probe_steps", 100, min = 1, help = "steps of a linear probe" },
    { "model", "vit_small.safetensors", help = "the pre-trained model, beside this file" },
  },
}
local run = pg.run.open(opt)
local here = debug.getinfo(1, "S").source:match "^@(.*)[^/]*$":match "^(.*/)" or ""

-- ---- data: every task once, as tensors ---------------------------------------------------------------------------------

local tasks, names = {}, pg.data.tasks()
for _, name in ipairs(names) do
  local train = name == opt.task and opt.train or opt.probe
  tasks[name] = pg.data.task(name, { train = train, test = opt.test, seed = opt.seed })
end

local function features(model, images)
  local pieces = {}
  for start = 1, images:size(1), 250 do
    local batch = images:narrow(1, start, math.min(250, images:size(1) - start + 1)):contiguous()
    pieces[#pieces + 1] = pg.no_grad(function() return model(pg.data.to_float(batch)) end)
  end
  return pg.cat(pieces, 1)
end

local function probe_all(model)
  local accuracy, bar = {}, run:progress("probing", #names)
  for i, name in ipairs(names) do
    local task = tasks[name]
    local n = math.min(opt.probe, task.train.labels:numel())
    local images, labels = task.train.images:narrow(1, 1, n):contiguous(), task.train.labels:narrow(1, 1, n):contiguous()
    pg.seed(opt.seed) -- the same split and the same head for every model
    accuracy[name] = pg.metrics.linear_probe(features(model, images), labels, features(model, task.test.images),
      task.test.labels, { steps = opt.probe_steps, lrs = { 0.01, 0.1 } })
    bar:update(i)
  end
  bar:finish()
  return accuracy
end

-- ---- one method -----------------------------------------------------------------------------------------------------------

local train = tasks[opt.task].train

local function fine_tune(method)
  local pretrained, model = pg.models.load(here .. opt.model), pg.models.load(here .. opt.model)
  pretrained:requires_grad_(false)
  local before = features(pretrained, train.images)
  pg.seed(opt.seed)
  local _, probe = pg.metrics.linear_probe(before, train.labels, before, train.labels,
    { steps = opt.probe_steps, lrs = { 0.1 } })
  local head = probe.head -- LP-FT: the head starts from the linear probe
  local sampler = pg.fda.HardClassSampler { labels = train.labels, features = before, classes = opt.classes,
    per_class = opt.per_class }
  local batch_size = sampler.classes * sampler.per_class
  local settings = method ~= "naive" and { weight = opt.weight } or nil
  if method == "proxy_fda" then settings.batch = batch_size end
  local regularizer = pg.regularize.new(method, pretrained, settings)
  local parameters = model:parameters()
  for _, t in ipairs(head:parameters()) do parameters[#parameters + 1] = t end
  local adamw = pg.optim.AdamW(parameters, { lr = opt.lr, weight_decay = opt.weight_decay })
  local schedule = pg.optim.cosine { base = opt.lr, steps = opt.steps, warmup = math.floor(opt.steps / 10) }
  local bar = run:progress(method, opt.steps)
  local began = pg.now()
  for step = 1, opt.steps do
    adamw.lr = schedule(step)
    local positions = sampler.next()
    local images, labels = pg.data.to_float(train.images:index(1, positions)), train.labels:index(1, positions)
    adamw:zero_grad()
    local feature, tokens = model:forward_features(images, regularizer.depths)
    local task_loss = pg.cross_entropy(head(feature), labels)
    local kept = regularizer.loss { model = model, images = images, features = feature, tokens = tokens }
    local loss = kept and task_loss + kept or task_loss
    run:check_finite(step, { task_loss = task_loss, [method] = kept }, model:state_dict())
    loss:backward()
    pg.optim.clip_grad_norm(parameters, 1)
    adamw:step()
    regularizer.step()
    run:log { step = step, method = method, loss = loss:item(), task_loss = task_loss:item(), kept = kept and kept:item(),
      lr = adamw.lr, images_per_s = batch_size * step / (pg.now() - began) }
    bar:update(step)
    if run:interrupted() then error("interrupted", 0) end
  end
  bar:finish()
  return model, pg.now() - began
end

-- ---- the table ---------------------------------------------------------------------------------------------------------------

local before = probe_all(pg.models.load(here .. opt.model))
local rows = {}
for method in opt.method:gmatch "[^,%s]+" do
  local model, seconds = fine_tune(method)
  local after = probe_all(model)
  local mean, each = pg.metrics.delta_lp(before, after, opt.task)
  rows[#rows + 1] = { method = method, a_lp = after[opt.task], delta_lp = mean, seconds = seconds, tasks = each }
end

run:say("%-14s %8s %15s %9s", "method", "A_LP", "mean Delta_LP", "seconds")
run:say("%-14s %7.1f%% %15s %9s", "pre-trained", 100 * before[opt.task], "", "")
for _, row in ipairs(rows) do
  run:say("%-14s %7.1f%% %+14.2f  %8.1f", row.method, 100 * row.a_lp, 100 * row.delta_lp, row.seconds)
end
run:say("")
local head = ("%-18s %8s"):format("Delta_LP by task", "before")
for _, row in ipairs(rows) do head = head .. (" %12s"):format(row.method) end
run:say("%s", head)
for _, name in ipairs(names) do
  if name ~= opt.task then
    local line = ("%-18s %7.1f%%"):format(name, 100 * before[name])
    for _, row in ipairs(rows) do line = line .. (" %+12.1f"):format(100 * row.tasks[name]) end
    run:say("%s", line)
  end
end
run:finish { before = before, rows = rows, task = opt.task }
