-- end_to_end.lua - fine-tunes the small pre-trained vision transformer on one task, and measures on all the others how
-- much it forgot: A_LP, the linear-probe accuracy of the task itself, and Delta_LP, the change of everyone else's.

local pg = require "perigee"

local names = {}
for i, task in ipairs(pg.data.tasks()) do names[i] = task.name end

local opt = pg.recipe {
  name = "end_to_end",
  help = "Fine-tune on one task with one or several methods; probe every other task before and after.",
  options = {
    { "method", "naive,proxy_fda", help = "comma-separated: " .. table.concat(pg.regularize.names(), ", ") },
    { "task", "fashion_mnist", choices = names, help = "what to fine-tune on" },
    { "steps", 120, min = 1, help = "optimiser steps a method" },
    { "lr", 1e-3, min = 0, max = 1, help = "peak learning rate of AdamW" },
    { "weight_decay", 0.1, min = 0, help = "decoupled weight decay" },
    { "weight", 10, min = 0, real = true, help = "weight of the regulariser" },
    { "classes", 16, min = 2, help = "classes a batch (m); fewer when the task has fewer" },
    { "per_class", 4, min = 1, help = "images a class (n)" },
    { "train", 2000, min = 64, help = "training images of the fine-tuned task" },
    { "probe", 400, min = 20, help = "labelled images of a probe" },
    { "test", 600, min = 50, help = "test images of a task" },
    { "probe_steps", 100, min = 1, help = "steps of a linear probe" },
    { "checkpoint", 20, min = 1, help = "steps between checkpoints" },
    { "model", "vit_small.safetensors", help = "the pre-trained model, beside this file" },
  },
}
local run = pg.run.open(opt)
local here = debug.getinfo(1, "S").source:match "^@(.*)[^/]*$":match "^(.*/)" or ""

-- ---- data: every task once, as tensors ---------------------------------------------------------------------------------

local tasks = {}
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
    bar:step(i)
  end
  bar:done()
  return accuracy
end

-- ---- one method -----------------------------------------------------------------------------------------------------------

local train = tasks[opt.task].train

local rows, curves = {}, {} -- what is finished; the task loss of every method, for the picture
local saved, progress = run:restore() -- nil unless the run is resumed from a checkpoint
if progress then rows, curves = progress.rows, progress.curves end

-- Everything that the rest of the run depends on, by name: models, moments and the generator of proxies.
local function everything(model, head, adamw, regularizer)
  local all = {}
  local function add(prefix, tensors)
    for name, t in pairs(tensors) do all[prefix .. name] = t end
  end
  add("model.", model:state_dict())
  add("head.", head:state_dict())
  add("adamw.", adamw:state().tensors)
  if regularizer.generator then
    for i, t in ipairs(regularizer.generator:parameters()) do all["generator." .. i] = t end
    add("generator_adamw.", regularizer.optimizer:state().tensors)
  end
  return all
end

local function fine_tune(method)
  local curve = { name = method, x = {}, y = {} }
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
  local began, first = pg.now(), 1
  local function scalars()
    return { adamw:state().scalars, regularizer.optimizer and regularizer.optimizer:state().scalars or false }
  end
  local function checkpoint(step)
    run:checkpoint(everything(model, head, adamw, regularizer), { step = step, method = method, rows = rows, curves = curves,
      curve = curve, scalars = scalars(), sampler = sampler.state(), seconds = pg.now() - began })
  end
  if progress and progress.method == method then -- in the middle of this one: put everything back
    pg.no_grad(function()
      for name, t in pairs(everything(model, head, adamw, regularizer)) do t:copy_(saved[name]) end
    end)
    adamw:restore { tensors = adamw:state().tensors, scalars = progress.scalars[1] }
    if regularizer.optimizer then
      regularizer.optimizer:restore { tensors = regularizer.optimizer:state().tensors, scalars = progress.scalars[2] }
    end
    pg.rng_state(progress.generator)
    sampler.restore(progress.sampler)
    curve, first, began = progress.curve, progress.step + 1, began - progress.seconds
    progress = nil
  end
  for step = first, opt.steps do
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
    curve.x[step], curve.y[step] = step, task_loss:item()
    bar:step(step)
    local stop = run:interrupted()
    if step % opt.checkpoint == 0 or stop then checkpoint(step) end
    if stop then error("interrupted", 0) end
  end
  bar:done()
  curves[#curves + 1] = curve
  return model, pg.now() - began
end

-- Anchors and their nearest neighbours among the test images of a task that was not trained on, before and after.
local shown = tasks[opt.task == "openclipart" and "fashion_mnist" or "openclipart"].test.images
shown = shown:narrow(1, 1, math.min(200, shown:size(1))):contiguous()
local function neighbours(model)
  local f = features(model, shown)
  local _, index = pg.knn(f, f, { k = 5, exclude_self = true })
  return index:totable()
end

-- ---- the table ---------------------------------------------------------------------------------------------------------------

local before = probe_all(pg.models.load(here .. opt.model))
local finished = {}
for _, row in ipairs(rows) do finished[row.method] = true end
for method in opt.method:gmatch "[^,%s]+" do
  if not finished[method] then
    local model, seconds = fine_tune(method)
    local after = probe_all(model)
    local mean, each = pg.metrics.delta_lp(before, after, opt.task)
    rows[#rows + 1] = { method = method, a_lp = after[opt.task], delta_lp = mean, seconds = seconds, tasks = each,
      neighbours = neighbours(model) }
  end
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

-- ---- pictures --------------------------------------------------------------------------------------------------------------

local others, bars = {}, {}
for _, name in ipairs(names) do
  if name ~= opt.task then others[#others + 1] = name end
end
for i, row in ipairs(rows) do
  local heights = {}
  for k, name in ipairs(others) do heights[k] = 100 * row.tasks[name] end
  bars[i] = { name = row.method, y = heights }
end
run:plot("bars", "delta_lp", { title = "What fine-tuning on " .. opt.task .. " did to the other tasks",
  ylabel = "Delta LP (points)", groups = others, series = bars })
run:plot("lines", "task_loss", { title = "Fine-tuning on " .. opt.task, xlabel = "step", ylabel = "task loss", series = curves })

-- Anchors with their five nearest before, then after each method.
local grid, views = {}, { neighbours(pg.models.load(here .. opt.model)) }
for i, row in ipairs(rows) do views[i + 1] = row.neighbours end
for anchor = 1, 6 do
  local line = {}
  for _, index in ipairs(views) do
    line[#line + 1] = shown:select(1, anchor)
    for _, j in ipairs(index[anchor]) do line[#line + 1] = shown:select(1, j) end
  end
  grid[anchor] = line
end
run:plot("grid", "neighbours", grid)

for _, row in ipairs(rows) do row.neighbours = nil end
run:finish { before = before, rows = rows, task = opt.task }
