-- few_shot.lua - adapts a small CLIP to tasks from k images a class, by learnt prompts, adapters or a fine-tuned image
-- tower, and measures what it then knows of the classes that it saw (base) and of those that it did not (new).

local pg = require "perigee"

local FDA = { "fda", "proxy_fda" }
local options = {
  { "method", "zero_shot,linear_probe,coop,coop+fda,coop+proxy_fda,kgcoop,prograd,tip_adapter_f,clap",
    help = "comma-separated, each with +fda or +proxy_fda, and :weight for these: "
      .. table.concat(pg.few_shot.names(), ", ") },
  { "tasks", "fashion_mnist,openclipart,tuxpaint,shape", help = "of the benchmark, or data sets of pg.data.load" },
  { "shots", "16", help = "training images of a base class: comma-separated" },
  { "seeds", 3, min = 1, help = "draws of the shots" },
  { "first", 1, min = 0, help = "number of the first of these draws" },
  { "transfer", "none", help = "more tasks, on all classes of which what was learnt is tested" },
  { "epochs", "own", help = "passes over the shots, or each method's own" },
  { "batch", "own", help = "images a batch, or each method's own" },
  { "lr", "own", help = "peak learning rate, or each method's own" },
  { "tower_lr", "1e-4", help = "the same of methods that fine-tune the image tower; own, 5e-6, is for large models" },
  { "precision", "fp32", choices = { "fp32", "bf16" }, help = "bf16 trains in mixed precision (pg.autocast)" },
  { "settings", "none", help = "of the methods that have them: length=2,depth=4" },
  { "classes", 16, min = 2, help = "classes a batch where FDA aligns images" },
  { "per_class", 4, min = 1, help = "images of each; a class of fewer repeats them" },
  { "weight", 1, min = 0, real = true, help = "of +fda and +proxy_fda that name none" },
  { "k", "own", help = "neighbours of an anchor in FDA; own is 8, or half of the others where these are few" },
  { "pool", 2000, min = 20, help = "training images of a task that shots are drawn from" },
  { "test", 1000, min = 20, help = "test images of a task" },
  { "templates", "own", help = "path of sentences with {}, one a line, for methods that average over many" },
  { "list", "none", help = "path of CoOp's split_zhou_*.json, {} for the data set, if not in the set's folder" },
  { "shots_list", "none", help = "path of exported few-shot lists, with {}, {shots} and {seed}" },
  { "root", "none", help = "where data sets lie, if not where pg.data.load looks" },
  { "checkpoint", 100, min = 1, help = "steps between checkpoints" },
  { "model", "clip_small", help = "the pre-trained CLIP: a folder, here or beside this file" },
}
for _, option in ipairs(pg.regularize.recipe_options(FDA, { weight = true, k = true, batch = true, dim = true,
  depths = true, token = true })) do
  options[#options + 1] = option
end
local opt = pg.recipe { name = "few_shot", options = options,
  help = "Adapt CLIP from a few images of half of the classes; test it on these, and on the other half." }
local run = pg.run.open(opt)

-- ---- the model, the tasks, what to do -------------------------------------------------------------------------------

local function list(text)
  local names = {}
  for name in (text == "none" and "" or text):gmatch "[^,%s]+" do names[#names + 1] = name end
  return names
end
local function given(text) return text ~= "none" and text or nil end
local function number(name, own)
  if opt[name] == "own" then return own end
  return pg.util.check(tonumber(opt[name]), "%s: '%s' is neither own nor a number", name, opt[name])
end

local folder = pg.models.find(opt.model, debug.getinfo(1, "S").source:match "^@(.*/)" or "")
local clip = pg.models.load(folder):to(opt.device)
local bench = pg.base_to_new.new { clip = clip, tokenizer = pg.tokenizer.load(folder), tasks = list(opt.tasks),
  transfer = list(opt.transfer), pool = opt.pool, test = opt.test, list = given(opt.list),
  shots_list = given(opt.shots_list), root = given(opt.root),
  templates = opt.templates ~= "own" and require("perigee.data.templates").read(opt.templates) or nil,
  device = opt.device }
local plan = bench:plan(opt.method, opt.shots, opt.seeds, opt.first)

-- What of the options a method takes.
local function settings_of(row)
  local method, settings = pg.few_shot.method(row.method), pg.few_shot.pick(row.method, opt.settings)
  settings.batch, settings.seed = number "batch", row.seed
  settings.classes, settings.per_class = opt.classes, opt.per_class
  if method.plug then
    settings.fda = pg.regularize.pick(method.plug, opt)
    settings.fda.k = number "k"
  end
  return settings
end
bench:check(plan, settings_of)

-- ---- one method on one draw -----------------------------------------------------------------------------------------

local rows, curves, saved = {}, {}, run:restore() -- what is finished: rows of the table, losses for the picture
if saved then rows, curves = saved.state.rows, saved.state.curves end

local function adapt(row)
  pg.seed(opt.seed * 1000 + row.seed)
  local task = bench:task(row.task, row.shots, row.seed)
  local learner = pg.few_shot.new(row.method, task, settings_of(row))
  if not learner.training then return learner, task, 0 end
  local lr = number(learner.training.fine_tunes and "tower_lr" or "lr", learner.training.lr)
  local per_epoch = math.max(1, math.floor(task.labels:numel() / learner.batches.size))
  local epochs = number("epochs", learner.training.epochs)
  local steps, optimizer = epochs * per_epoch, pg.few_shot.optimizer(learner, lr)

  local parts = learner:parts()
  parts.optimizer = optimizer
  local curve, first, seconds = { x = {}, y = {}, row = #rows + 1 }, 1, 0
  if saved and saved.state.row == #rows + 1 then -- in the middle of this one: put everything back
    saved:into(parts)
    curve, first, seconds = saved.state.curve, saved.state.step + 1, saved.state.seconds
  end
  saved = nil
  local began, bar = pg.now(), run:progress(("%s, %s, %d shots"):format(row.method, row.task, row.shots), steps)
  for step = first, steps do
    optimizer.lr = pg.few_shot.rate(learner.training, lr, step, per_epoch, epochs)
    local batch = pg.few_shot.batch(learner, task, learner.batches:next())
    optimizer:zero_grad()
    local loss = pg.autocast(opt.precision, learner.total, learner, batch)
    run:check_finite(step, loss, learner.module:state_dict())
    optimizer:step()
    if learner.plug then learner.plug.step() end
    learner.step(step, steps)
    if step % per_epoch == 0 then learner.epoch(step / per_epoch, epochs) end
    curve.x[#curve.x + 1], curve.y[#curve.y + 1] = step, loss.loss:item()
    run:log { step = step, epoch = math.ceil(step / per_epoch), task = row.task, method = row.method, seed = row.seed,
      shots = row.shots, task_loss = loss.loss:item(), kept = loss.kept and loss.kept:item(), lr = optimizer.lr,
      images_per_s = learner.batches.size * (step - first + 1) / (pg.now() - began) }
    bar:step(step)
    local stop = run:interrupted()
    if step % opt.checkpoint == 0 or stop then
      run:checkpoint(parts, { step = step, row = #rows + 1, rows = rows, curves = curves, curve = curve,
        seconds = seconds + pg.now() - began })
    end
    if stop then error("interrupted", 0) end
  end
  bar:done()
  learner.finish()
  if row.seed == opt.first then curves[#curves + 1] = curve end
  return learner, task, seconds + pg.now() - began
end

-- ---- the table ------------------------------------------------------------------------------------------------------

for i = #rows + 1, #plan do
  local row = plan[i]
  local learner, task, seconds = adapt(row)
  row.seconds = seconds
  for name, value in pairs(bench:test(learner, task, row.task)) do row[name] = value end
  rows[i] = row
end
pg.base_to_new.report(run, bench, rows, curves)
