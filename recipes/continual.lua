-- continual.lua - teaches a small pre-trained model one task after the other, or the classes of one task a few at a
-- time, and measures after each step what it knows of all of them: the matrix R[t][i], and what follows from it.

local pg = require "perigee"

local options = {
  { "method", "naive,proxy_fda", help = "comma-separated, with a weight where one is wanted (fda:10); +fda or "
    .. "+proxy_fda is added to any but a regulariser (slca+proxy_fda:3): " .. table.concat(pg.continual.names(), ", ") },
  { "setting", "tasks", choices = { "tasks", "classes" }, help = "whole tasks, each with its own head; or classes "
    .. "of one task a few at a time, with one growing head and no task known at test" },
  { "tasks", "count,clipart_kind,fashion_mnist,size,tuxpaint", help = "setting=tasks: their order, comma-separated" },
  { "source", "fashion_mnist", help = "setting=classes: the task whose classes come in steps; concepts has 64" },
  { "splits", 5, min = 1, help = "setting=classes: steps, each as many classes; else the first have one more" },
  { "order", "shuffled", choices = { "shuffled", "listed" }, help = "setting=classes: order of the classes" },
  { "head", "auto", choices = { "auto", "text", "probe", "random" },
    help = "where heads start; auto is what the method is made for, else text" },
  { "measure", "heads", choices = { "heads", "probe", "both" },
    help = "R by the trained heads, or by linear probes of the encoder; both: probes in the end beside it" },
  { "steps", 150, min = 1, help = "optimiser steps a task" },
  { "lr", 0, min = 0, max = 1, real = true,
    help = "peak learning rate of AdamW; 0 is 5e-4 for tasks and 1e-4 for classes" },
  { "weight_decay", 0.1, min = 0, help = "decoupled weight decay" },
  { "precision", "fp32", choices = { "fp32", "bf16" }, help = "bf16 trains in mixed precision (pg.autocast)" },
  { "classes", 16, min = 1, help = "classes a batch (m); fewer when there are fewer" },
  { "per_class", 4, min = 1, help = "images a class (n)" },
  { "train", 1000, min = 20, help = "training images: of each task, or of the source as a whole" },
  { "test", 300, min = 20, help = "test images, likewise" },
  { "probe_steps", 200, min = 1, help = "steps of a linear probe" },
  { "checkpoint", 50, min = 1, help = "steps between checkpoints" },
  { "model", "clip_small", help = "the pre-trained model: a folder, here or beside this file" },
}
for _, option in ipairs(pg.continual.recipe_options(pg.continual.names(), { weight = true })) do
  options[#options + 1] = option
end
local opt = pg.recipe { name = "continual", options = options,
  help = "Learn tasks one after the other with one or several methods; test on all of them after each." }
local run = pg.run.open(opt)
local lr = opt.lr > 0 and opt.lr or opt.setting == "tasks" and 5e-4 or 1e-4

-- ---- the model, the tasks, what to do ------------------------------------------------------------------------------

local folder = pg.models.find(opt.model, debug.getinfo(1, "S").source:match "^@(.*/)" or "")
local function load_model() return pg.models.load(folder):to(opt.device) end

local plan, names = pg.continual.plan(opt.method), {}
for name in opt.tasks:gmatch "[^,%s]+" do names[#names + 1] = name end
local pretrained = load_model():requires_grad_(false)
local tokenizer = pretrained.text and pg.tokenizer.load(folder)
local tasks = pg.data.sequence { setting = opt.setting, tasks = names, source = opt.source, steps = opt.splits,
  order = opt.order, train = opt.train, test = opt.test, seed = opt.seed, device = opt.device }

-- ---- one method on the sequence ------------------------------------------------------------------------------------

local function head_of(kind)
  return function(task, features) -- only a probe looks at them; the others ask where they are
    local somewhere = kind == "probe" and features() or pretrained:parameters()[1]
    return pg.heads.new(kind, { width = pretrained.width, classes = task.classes, features = somewhere,
      labels = task.train.labels - task.first, steps = opt.probe_steps, clip = pretrained, tokenizer = tokenizer,
      prompt = task.prompt })
  end
end

local function learner_of(row)
  local clip, kind, settings = load_model(), opt.head, pg.continual.pick(row.method, opt)
  if kind == "auto" then kind = pg.continual.head(row.method) or pretrained.text and "text" or "random" end
  if row.plug then settings.fda = pg.continual.pick(row.plug, opt) end
  return pg.continual.new(row.title, { model = clip.visual or clip, pretrained = pretrained.visual or pretrained,
    tasks = tasks, head = head_of(kind), zero_shot = kind == "text", classes = opt.classes, per_class = opt.per_class,
    clip = pretrained, tokenizer = tokenizer }, settings)
end

for _, row in ipairs(plan) do learner_of(row) end -- what cannot be is said before anything is trained

local rows, saved = {}, run:restore()
if saved then rows = saved.state.rows end

local function learn(row)
  pg.seed(opt.seed)
  local learner, R, first, seconds, began = learner_of(row), {}, 1, 0, pg.now()
  local resumed = saved and saved.state.row == #rows + 1 and saved
  if resumed then
    learner:restore(resumed:part "learner")
    R, seconds = resumed.state.R, resumed.state.seconds
  end
  saved = nil
  for t = math.max(learner.t, 1), #tasks do
    if not resumed then learner:begin(t) end
    local groups, parameters = learner:groups(lr), {}
    for _, group in ipairs(groups) do
      for _, p in ipairs(group.params) do parameters[#parameters + 1] = p end
    end
    local adamw = pg.optim.AdamW(groups, { lr = lr, weight_decay = opt.weight_decay })
    local schedule = pg.optim.cosine { base = lr, steps = opt.steps, warmup = math.floor(opt.steps / 10) }
    local parts = { learner = learner, adamw = adamw, sampler = learner.sampler }
    if resumed then -- the learner is there already
      resumed:into { adamw = adamw, sampler = learner.sampler }
      first, resumed = resumed.state.step + 1, nil
    end
    local bar = run:progress(("%s, task %d of %d"):format(row.title, t, #tasks), opt.steps)
    for step = first, opt.steps do
      adamw.lr = schedule(step)
      adamw:zero_grad()
      local loss, terms = pg.autocast(opt.precision, learner.loss, learner)
      run:check_finite(step, terms, learner.model:state_dict())
      loss:backward()
      pg.optim.clip_grad_norm(parameters, 1)
      adamw:step()
      learner:step(step)
      run:log { step = step, task = t, method = row.title, loss = loss:item(), task_loss = terms.task_loss:item(),
        kept = terms.kept and terms.kept:item(), lr = adamw.lr }
      bar:step(step)
      local stop = run:interrupted()
      if step % opt.checkpoint == 0 or stop then
        run:checkpoint(parts, { step = step, row = #rows + 1, rows = rows, R = R,
          seconds = seconds + pg.now() - began })
      end
      if stop then error("interrupted", 0) end
    end
    bar:done()
    first = 1
    learner:finish()
    R[t] = learner:evaluate { probe = opt.measure == "probe" and opt.probe_steps or nil }
  end
  row.probe = opt.measure == "both" and learner:evaluate { probe = opt.probe_steps } or nil
  row.R, row.seconds, row.settings = R, seconds + pg.now() - began, learner.settings
end

-- ---- all of them ---------------------------------------------------------------------------------------------------

for i = #rows + 1, #plan do
  learn(plan[i])
  rows[i] = plan[i]
end

local chance = {}
for i, task in ipairs(tasks) do
  chance[i] = 1 / (opt.setting == "tasks" and #task.classes or task.first + #task.classes)
end
pg.continual_report.show(run, { tasks = tasks, chance = chance, rows = rows })
