-- end_to_end.lua - fine-tunes a small pre-trained model on one task, and measures on all the others how much it forgot:
-- A_LP, the linear-probe accuracy of the task itself, and Delta_LP, the change of everyone else's. With task=all, on each
-- task in turn: the whole table of the benchmark.

local pg = require "perigee"

local REGULARIZERS = { "l2sp", "ldifs", "fda", "proxy_fda" }

local options = {
  { "method", "naive,proxy_fda", help = "comma-separated, with a weight where one is wanted (fda:10): "
    .. table.concat(pg.benchmark.methods(), ", ") .. ", " .. table.concat(REGULARIZERS, ", ") },
  { "weight", "own", help = "of methods that name none: comma-separated, one run a weight; own is each method's default" },
  { "task", "fashion_mnist", help = "what to fine-tune on: comma-separated, or all" },
  { "head", "auto", choices = { "auto", "probe", "random", "text" },
    help = "where the head starts: auto is random for naive, text for wise_ft, else a linear probe" },
  { "steps", 300, min = 1, help = "optimiser steps a method" },
  { "lr", 1e-3, min = 0, max = 1, help = "peak learning rate of AdamW" },
  { "weight_decay", 0.1, min = 0, help = "decoupled weight decay" },
  { "precision", "fp32", choices = { "fp32", "bf16" }, help = "bf16 trains in mixed precision (pg.autocast)" },
  { "classes", 16, min = 2, help = "classes a batch (m); fewer when the task has fewer" },
  { "per_class", 4, min = 1, help = "images a class (n)" },
  { "train", 2000, min = 64, help = "training images of the fine-tuned task" },
  { "probe", 400, min = 20, help = "labelled images of a probe" },
  { "test", 1000, min = 50, help = "test images of a task; other tasks of few images are cross-validated instead" },
  { "probes", "all", help = "tasks to probe beside the fine-tuned one: all, or some, comma-separated" },
  { "probe_steps", 300, min = 1, help = "steps of a linear probe" },
  { "drift", 0, min = 0, help = "images a task that are also compared by OTDD with what they were; 0 is none" },
  { "checkpoint", 50, min = 1, help = "steps between checkpoints" },
  { "recompute", false, help = "backward computes activations again: less memory, a quarter more time, the same bits" },
  { "model", "clip_small", help = "the pre-trained model: a folder, here or beside this file" },
}
for _, option in ipairs(pg.regularize.recipe_options(REGULARIZERS, { weight = true, batch = true, dim = true })) do
  options[#options + 1] = option
end
local opt = pg.recipe { name = "end_to_end", options = options,
  help = "Fine-tune on one task with one or several methods; probe every other task before and after." }
local run = pg.run.open(opt)

-- ---- the model, what to do with it, the tasks ---------------------------------------------------------------------------

local folder = pg.models.find(opt.model, debug.getinfo(1, "S").source:match "^@(.*/)" or "")
local function load_model() return pg.models.load(folder):to(opt.device) end

local function encoder(model)
  return function(images) return (model:forward_features(pg.models.pixels(model, images))) end
end

local tuned = pg.benchmark.tasks(opt.task)
local plan = pg.benchmark.plan(tuned, opt.method, opt.weight, REGULARIZERS)
local pretrained = load_model():requires_grad_(false)
local tokenizer = pretrained.text and pg.tokenizer.load(folder)
local seen = encoder(pretrained.visual or pretrained) -- what a picture was, before
local bench = pg.benchmark.new { tasks = pg.benchmark.join(tuned, pg.benchmark.tasks(opt.probes)), encode = seen,
  train = opt.train, probe = opt.probe, test = opt.test, steps = opt.probe_steps, drift = opt.drift, seed = opt.seed,
  device = opt.device, run = run }

-- ---- one method on one task -----------------------------------------------------------------------------------------------

local rows, curves, saved = {}, {}, run:restore() -- what is finished: the table's rows, and the task losses for the picture
if saved then rows, curves = saved.state.rows, saved.state.curves end

local function fine_tune(row)
  pg.seed(opt.seed)
  local clip = pg.models.recompute(load_model(), opt.recompute)
  local model, train = clip.visual or clip, bench:train(row.task) -- the image tower alone
  local before = pg.metrics.encode(seen, train.images)
  local head = pg.heads.new(opt.head == "auto" and row.head or opt.head, { width = pretrained.width,
    classes = train.classes, features = before, labels = train.labels, steps = opt.probe_steps, clip = clip.text and clip,
    tokenizer = tokenizer, prompt = train.prompt })
  local sampler = pg.fda.HardClassSampler { labels = train.labels, features = before, classes = opt.classes,
    per_class = opt.per_class }
  local batch = sampler.classes * sampler.per_class -- of all processes together, where mpirun or srun started several
  local settings = pg.regularize.pick(row.regularizer, opt)
  if row.regularizer ~= "naive" then settings.weight = row.weight end
  if row.regularizer == "proxy_fda" then settings.batch = batch end
  local regularizer = pg.regularize.new(row.regularizer, pretrained.visual or pretrained, settings)
  if regularizer.generator then run:say("%s: %s", row.method, tostring(regularizer.generator)) end
  local parameters = model:parameters()
  for _, t in ipairs(head:parameters()) do parameters[#parameters + 1] = t end
  pg.distributed.share(parameters, regularizer)
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
    local positions = pg.distributed.slice(sampler:next())
    local images, labels = pg.models.pixels(model, train.images:index(1, positions)), train.labels:index(1, positions)
    adamw:zero_grad()
    local features, tokens = pg.autocast(opt.precision, model.forward_features, model, images, regularizer.depths)
    local task_loss = head:loss(features, labels)
    local kept = regularizer.loss { model = model, images = images, features = features, tokens = tokens,
      before = not regularizer.depths and before:index(1, positions) or nil }
    local loss = kept and task_loss + kept or task_loss
    run:check_finite(step, { task_loss = task_loss, [row.method] = kept }, model:state_dict())
    loss:backward()
    pg.optim.clip_grad_norm(parameters, 1)
    adamw:step()
    regularizer.step()
    local total, task, keeping = pg.distributed.mean(loss, task_loss, kept)
    curve.x[#curve.x + 1], curve.y[#curve.y + 1] = step, task
    run:log { step = step, task = row.task, method = row.method, weight = regularizer.settings.weight, loss = total,
      task_loss = task, kept = keeping, lr = adamw.lr,
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
  if row.mix then pg.models.mix(model, pretrained.visual or pretrained, row.weight) end -- WiSE-FT
  row.weight, row.seconds = row.weight or regularizer.settings.weight, seconds + pg.now() - began
  return model
end

-- ---- the table ---------------------------------------------------------------------------------------------------------------

for i = #rows + 1, #plan do
  local row = plan[i]
  local encode = row.still and seen or encoder(fine_tune(row))
  row.seconds = row.seconds or 0
  for name, value in pairs(bench:measure(encode, row.task)) do row[name] = value end
  row.neighbours = pg.forgetting.neighbours(encode, bench, row.task)
  rows[i] = row
end

pg.forgetting.report(run, { tasks = tuned, bench = bench, rows = rows, curves = curves })
