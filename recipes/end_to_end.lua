-- end_to_end.lua - fine-tunes the small pre-trained vision transformer on one task, and measures on all the others how
-- much it forgot: A_LP, the linear-probe accuracy of the task itself, and Delta_LP, the change of everyone else's.

local pg = require "perigee"

local METHODS = { "naive", "linear_probe", "lp_ft", "l2sp", "ldifs", "fda", "proxy_fda" } -- regularisers from l2sp on
local names = {}
for i, task in ipairs(pg.data.tasks()) do names[i] = task.name end

local options = {
  { "method", "naive,proxy_fda", help = "comma-separated: " .. table.concat(METHODS, ", ") },
  { "weight", "own", help = "of the regulariser: comma-separated, one run a weight; own is each method's default" },
  { "task", "fashion_mnist", choices = names, help = "what to fine-tune on" },
  { "head", "auto", choices = { "auto", "probe", "random" },
    help = "where the head starts: a linear probe or random; auto is random for naive, else probe" },
  { "steps", 300, min = 1, help = "optimiser steps a method" },
  { "lr", 1e-3, min = 0, max = 1, help = "peak learning rate of AdamW" },
  { "weight_decay", 0.1, min = 0, help = "decoupled weight decay" },
  { "classes", 16, min = 2, help = "classes a batch (m); fewer when the task has fewer" },
  { "per_class", 4, min = 1, help = "images a class (n)" },
  { "train", 2000, min = 64, help = "training images of the fine-tuned task" },
  { "probe", 400, min = 20, help = "labelled images of a probe" },
  { "test", 1000, min = 50, help = "test images of a task; other tasks of few images are cross-validated instead" },
  { "probes", "all", help = "tasks to probe beside the fine-tuned one: all, or some, comma-separated" },
  { "probe_steps", 300, min = 1, help = "steps of a linear probe" },
  { "checkpoint", 50, min = 1, help = "steps between checkpoints" },
  { "model", "vit_small.safetensors", help = "the pre-trained model, beside this file" },
}
for _, option in ipairs(pg.regularize.recipe_options({ unpack(METHODS, 4) }, { weight = true, batch = true, dim = true })) do
  options[#options + 1] = option
end
local opt = pg.recipe { name = "end_to_end", options = options,
  help = "Fine-tune on one task with one or several methods; probe every other task before and after." }
local run = pg.run.open(opt)
local model_file = (debug.getinfo(1, "S").source:match "^@(.*/)" or "") .. opt.model

local plan = {} -- {method, weight or nil}, in the order of the table
for method in opt.method:gmatch "[^,%s]+" do
  local at
  for i, name in ipairs(METHODS) do at = name == method and i or at end
  pg.util.check(at, "method: there is no '%s' (did you mean '%s'?)", method, tostring(pg.util.nearest(method, METHODS)))
  for weight in (at > 3 and opt.weight or "own"):gmatch "[^,%s]+" do
    pg.util.check(weight == "own" or tonumber(weight), "weight: '%s' is not a number", weight)
    plan[#plan + 1] = { method = method, weight = tonumber(weight), regularizer = at > 3 and method or "naive" }
  end
end

-- ---- data: every task once; the probes ---------------------------------------------------------------------------------

if opt.probes ~= "all" then
  local known, chosen = names, { [opt.task] = true }
  names = { opt.task }
  for name in opt.probes:gmatch "[^,%s]+" do
    local nearest, distance = pg.util.nearest(name, known)
    pg.util.check(distance == 0, "probes: there is no task '%s' (did you mean '%s'?)", name, nearest)
    if not chosen[name] then names[#names + 1], chosen[name] = name, true end
  end
  pg.util.check(#names > 1, "probes: name at least one task beside %s", opt.task)
end
local tasks = {}
for _, name in ipairs(names) do
  tasks[name] = pg.data.task(name, { train = name == opt.task and opt.train or opt.probe, test = opt.test, seed = opt.seed,
    device = opt.device })
end
tasks[opt.task].folds = nil -- its own test part alone: other folds hold images that the encoder is about to train on
local train = tasks[opt.task].train

local function load_model() return (pg.models.load(model_file)):to(opt.device) end

local function encoder(model)
  return function(images) return model(pg.data.to_float(images)) end
end

local function probe_all(model)
  local accuracy, bar = {}, run:progress("probing", #names)
  for i, name in ipairs(names) do
    accuracy[name] = pg.metrics.probe_task(encoder(model), tasks[name],
      { steps = opt.probe_steps, lrs = { 0.01, 0.1, 1 }, seed = opt.seed })
    bar:step(i)
  end
  bar:done()
  return accuracy
end

-- Each anchor's five nearest among test images of a task that was not trained on.
local shown = (tasks[opt.task == "openclipart" and "fashion_mnist" or "openclipart"] or tasks[names[2]]).test.images
shown = shown:narrow(1, 1, math.min(200, shown:size(1))):contiguous()
local function neighbours(model)
  local f = pg.no_grad(function() return encoder(model)(shown) end)
  local _, index = pg.knn(f, f, { k = 5, exclude_self = true })
  return index:narrow(1, 1, 6):totable()
end

-- ---- one method -----------------------------------------------------------------------------------------------------------

local rows, curves, saved = {}, {}, run:restore() -- what is finished: the table's rows, and the task losses for the picture
if saved then rows, curves = saved.state.rows, saved.state.curves end

local function fine_tune(row)
  pg.seed(opt.seed)
  local pretrained, model = load_model():requires_grad_(false), load_model()
  local before = pg.metrics.encode(encoder(pretrained), train.images)
  local head = pg.models.head(model.width, #train.classes):to(opt.device)
  if opt.head == "probe" or opt.head == "auto" and row.method ~= "naive" then
    local _, probe = pg.metrics.linear_probe(before, train.labels, before, train.labels,
      { steps = opt.probe_steps, lrs = { 0.1 } })
    head = probe.head
  end
  local sampler = pg.fda.HardClassSampler { labels = train.labels, features = before, classes = opt.classes,
    per_class = opt.per_class }
  local batch = sampler.classes * sampler.per_class
  local settings = pg.regularize.pick(row.regularizer, opt)
  settings.weight = row.weight
  if row.method == "proxy_fda" then settings.batch = batch end
  local regularizer = pg.regularize.new(row.regularizer, pretrained, settings)
  if regularizer.generator then run:say("%s: %s", row.method, tostring(regularizer.generator)) end
  local parameters = model:parameters()
  for _, t in ipairs(head:parameters()) do parameters[#parameters + 1] = t end
  local adamw = pg.optim.AdamW(parameters, { lr = opt.lr, weight_decay = opt.weight_decay })
  local schedule = pg.optim.cosine { base = opt.lr, steps = opt.steps, warmup = math.floor(opt.steps / 10) }

  local parts = { model = model, head = head, adamw = adamw, regularizer = regularizer, sampler = sampler }
  local curve, first, seconds = { row = #rows + 1, x = {}, y = {} }, 1, 0
  if saved and saved.state.row == #rows + 1 then -- in the middle of this one: put everything back
    saved:into(parts)
    curve, first, seconds = saved.state.curve, saved.state.step + 1, saved.state.seconds
  end
  saved = nil
  local began, bar = pg.now(), run:progress(row.method, opt.steps)
  for step = first, opt.steps do
    adamw.lr = schedule(step)
    local positions = sampler:next()
    local images, labels = pg.data.to_float(train.images:index(1, positions)), train.labels:index(1, positions)
    adamw:zero_grad()
    local features, tokens = model:forward_features(images, regularizer.depths)
    local task_loss = pg.cross_entropy(head(features), labels)
    local kept = regularizer.loss { model = model, images = images, features = features, tokens = tokens,
      before = not regularizer.depths and before:index(1, positions) or nil }
    local loss = kept and task_loss + kept or task_loss
    run:check_finite(step, { task_loss = task_loss, [row.method] = kept }, model:state_dict())
    loss:backward()
    pg.optim.clip_grad_norm(parameters, 1)
    adamw:step()
    regularizer.step()
    curve.x[#curve.x + 1], curve.y[#curve.y + 1] = step, task_loss:item()
    run:log { step = step, method = row.method, weight = regularizer.settings.weight, loss = loss:item(),
      task_loss = task_loss:item(), kept = kept and kept:item(), lr = adamw.lr,
      images_per_s = batch * (step - first + 1) / (pg.now() - began) }
    bar:step(step)
    local stop = run:interrupted()
    if step % opt.checkpoint == 0 or stop then
      run:checkpoint(parts, { step = step, row = #rows + 1, rows = rows, curves = curves, curve = curve,
        seconds = seconds + pg.now() - began })
    end
    if stop then error("interrupted", 0) end
  end
  bar:done()
  curves[#curves + 1] = curve
  row.weight, row.seconds = regularizer.settings.weight, seconds + pg.now() - began
  row.l2_drift = pg.metrics.l2_drift(before, pg.metrics.encode(encoder(model), train.images))
  return model
end

-- ---- the table ---------------------------------------------------------------------------------------------------------------

local pretrained = load_model()
local before = probe_all(pretrained)
for i = #rows + 1, #plan do
  local row = plan[i]
  local probed = row.method == "linear_probe"
  local model = probed and pretrained or fine_tune(row)
  local after = probed and before or probe_all(model)
  row.seconds, row.a_lp = row.seconds or 0, after[opt.task]
  row.delta_lp, row.tasks = pg.metrics.delta_lp(before, after, opt.task)
  row.neighbours = neighbours(model)
  rows[i] = row
end

pg.forgetting.report(run, { task = opt.task, names = names, before = before, rows = rows, curves = curves,
  shown = shown:to "cpu", neighbours = neighbours(pretrained) })
