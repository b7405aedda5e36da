-- base_to_new.lua - the protocol of few-shot prompt learning (docs/method.md, section 3.2): a task's classes are
-- halved; a method learns from k images of each base class, and is tested on base images among base names and on new
-- images among new names. What a run of recipes/few_shot.lua loads, does and prints.

local util = require "perigee.util"
local pg = require "perigee"
local json = require "cjson.safe"

local protocol, methods = {}, {}
local templates = require "perigee.data.templates"
local random = require "perigee.data.random"
local VALIDATION = 4 -- images a class at most, as CoOp has them
local POINTS = 25 -- of a curve in the picture of losses

-- ---- classes and images ---------------------------------------------------------------------------------------------

--- CoOp's halves of n classes: the first ceil(n / 2) are base, the others new. @param n 2 or more @return two lists
function protocol.halves(n)
  util.check(n >= 2, "few_shot: %d class cannot be halved", n)
  local base, new = {}, {}
  for c = 1, n do table.insert(c <= math.ceil(n / 2) and base or new, c) end
  return base, new
end

--- `shots` images of each class, as the seed draws them; those of fewer shots are among those of more. This is a draw
-- of ours: CoOp's come from Python's generator, and are read as lists.
-- @param labels  list
-- @param names   of the classes wanted: class number -> name
-- @param shots   images a class
-- @param seed    whole number
-- @return a list of positions, class by class, and one of up to four more of each class, for validation
-- @raises one line on a class with fewer images
function protocol.draw(labels, names, shots, seed)
  local members, positions, val, last = {}, {}, {}, 0
  for c in pairs(names) do members[c], last = {}, math.max(last, c) end
  for i, c in ipairs(labels) do
    if members[c] then table.insert(members[c], i) end
  end
  for c = 1, last do
    local own = members[c]
    if own then
      util.check(#own >= shots, "few_shot: %d shots of class '%s', which has %d training images", shots, names[c], #own)
      local order = random.new(seed, c):permutation(#own)
      for k = 1, shots do positions[#positions + 1] = own[order[k]] end
      for k = shots + 1, math.min(#own, shots + math.min(shots, VALIDATION)) do val[#val + 1] = own[order[k]] end
    end
  end
  return positions, val
end

--- The positions that an exported few-shot list names: JSON {train = list}, each entry a path or CoOp's [path, label,
-- class]; a path is known by its end.
-- @param path  of the list
-- @param files of the training set
-- @param part  "train" or "val"
-- @return a list of positions, in the list's order
-- @raises one line on what is no list, on a path that the set lacks
function protocol.listed(path, files, part)
  local file, why = io.open(path, "rb")
  util.check(file, "few_shot: %s", tostring(why))
  local lists = json.decode(file:read "*a")
  file:close()
  util.check(type(lists) == "table" and type(lists[part]) == "table" and files, "%s: it must be JSON {%s = list of "
    .. "paths, or of [path, label, class]}, for a data set of files", path, part)
  local positions, at = {}, {}
  for i, name in ipairs(files) do
    repeat -- every end of it that begins a folder or a file
      at[name] = at[name] or i
      name = name:match "^[^/]*/(.+)$"
    until not name
  end
  for i, entry in ipairs(lists[part]) do
    local name = type(entry) == "table" and entry[1] or entry
    positions[i] = at[name]
    util.check(positions[i], "%s: %s is not among the training images", path, tostring(name))
  end
  util.check(#positions > 0, "%s: its part '%s' is empty", path, part)
  return positions
end

-- CoOp's list of a data set, where it lies in its folder or the one above.
local function coop_list(set, root)
  local folder = root or set.path
  for _, place in ipairs(set.zhou and folder and { folder, folder .. "/.." } or {}) do
    local path = place .. "/" .. set.zhou
    if require("lfs").attributes(path, "mode") == "file" then return path end
  end
end

-- A task of pg.data.tasks, or a data set of pg.data.load: training and test sets.
local function load(name, o)
  local names = {}
  for i, task in ipairs(pg.data.tasks { aside = true }) do
    names[i] = task.name
    if task.name == name then
      local parts = pg.data.task(name, { train = o.pool, val = math.max(1, math.floor(o.pool / 10)), test = o.test })
      return pg.data.merge { parts.train, parts.val }, parts.test -- as many images a class as there are
    end
  end
  local found
  for _, set in ipairs(pg.data.sets()) do
    names[#names + 1], found = set.name, set.name == name and set or found
  end
  local nearest, distance = util.nearest(name, names)
  util.check(distance == 0, "task: there is no '%s' (did you mean '%s'?)", name, nearest)
  local list = o.list and o.list:gsub("{}", name) or coop_list(found, o.root)
  local function part(split) return pg.data.load(name, { split = split, list = list, root = o.root }) end
  local has_train, has_test = part "train", part "test"
  local n = has_test.labels:numel()
  if o.test < n then -- a fixed draw
    local order = random.new(random.SPLIT):permutation(n)
    has_test = pg.data.subset(has_test, { unpack(order, 1, o.test) })
  end
  return has_train, has_test
end

-- The images of some classes, which are then numbered from 1.
local function only(set, wanted)
  local number, names, index, labels = {}, {}, {}, {}
  for i, c in ipairs(wanted) do number[c], names[i] = i, set.classes[c] end
  for i, c in ipairs(set.labels:totable()) do
    if number[c] then index[#index + 1], labels[#labels + 1] = i, number[c] end
  end
  return index, labels, names
end

-- ---- the protocol on several tasks ----------------------------------------------------------------------------------

--- The protocol.
-- @param options {clip, tokenizer, pixels = as few_shot.task takes it, tasks = list of names of pg.data.tasks or pg.data.load,
--   transfer = {} more of them, pool = 2000 images of a task's training part that shots are drawn from,
--   test = 1000 test images, list = path of a CoOp list, {} standing for the data set's name, if not where CoOp has it,
--   shots_list = the same of few-shot lists, with {shots} and {seed} too, root = of data sets, device = "cpu", templates =
--   list of sentences for methods that average many, those of few_shot.task if not given}
-- @return an object with :plan(...), :check(plan), :task(name, shots, seed), :test(learner, task, name), :zero_shot(name)
-- @raises one line on an unknown task, naming the nearest
function protocol.new(options)
  local o = util.options("base_to_new", options, { clip = util.none, tokenizer = util.none, pixels = util.none,
    tasks = util.none, transfer = {}, pool = 2000, test = 1000, list = util.none, shots_list = util.none,
    root = util.none, device = "cpu", templates = util.none })
  return setmetatable({ options = o, loaded = {}, known = {} }, { __index = methods })
end

-- A set's images at some positions, on the device; pictures of files are read now.
local function taken(self, set, index, labels)
  local o = self.options
  local part = pg.data.subset(set, index)
  local images = part.images or pg.data.read(part, o.clip.config.vision.image)
  return { images = images:to(o.device), labels = pg.tensor(labels, { dtype = "int32", device = o.device }) }
end

-- {train, base, new, every = parts with labels of their own, base_names, new_names, names, prompt}, loaded once.
local function loaded(self, name)
  local it = self.loaded[name]
  if it then return it end
  local train, test = load(name, self.options)
  it = { train = train, prompt = templates.of(name), names = test.classes, labels = train.labels:totable() }
  local base, new = protocol.halves(#test.classes)
  local index, labels
  index, labels, it.base_names = only(test, base)
  it.base = taken(self, test, index, labels)
  index, labels, it.new_names = only(test, new)
  it.new = taken(self, test, index, labels)
  local count = it.base.labels:numel() -- all of them, for transfer: new classes follow base ones
  it.every = { images = pg.cat({ it.base.images, it.new.images }, 1),
    labels = pg.cat({ it.base.labels, it.new.labels + #it.base_names }, 1) }
  util.check(count > 0 and it.new.labels:numel() > 0, "few_shot: %s has no test image of one half", name)
  self.loaded[name] = it
  return it
end

-- Positions and labels of the base half's images, and of its validation images, as lists.
local function drawn(self, name, shots, seed)
  local o, it = self.options, loaded(self, name)
  local positions, val
  if o.shots_list then
    local path = o.shots_list:gsub("{}", name):gsub("{shots}", shots):gsub("{seed}", seed)
    positions, val = protocol.listed(path, it.train.files, "train"), {}
  else
    positions, val = protocol.draw(it.labels, it.base_names, shots, seed)
  end
  local function base(list)
    local own = { index = {}, labels = {} }
    for _, i in ipairs(list) do -- of a list that has all classes, the base ones
      if it.labels[i] <= #it.base_names then
        own.index[#own.index + 1], own.labels[#own.labels + 1] = i, it.labels[i]
      end
    end
    return own
  end
  return base(positions), base(val)
end

local function task_of(self, name, part)
  local o, it = self.options, loaded(self, name)
  return pg.few_shot.task { clip = o.clip, tokenizer = o.tokenizer, pixels = o.pixels, templates = o.templates,
    classes = it.base_names, prompt = it.prompt, images = part.images, features = part.features, labels = part.labels,
    val = part.val }
end

--- What a method learns from: the base half with `shots` images a class.
-- @param name   one of the tasks
-- @param shots  images a class
-- @param seed   of the draw; every method gets the same
-- @return a task of few_shot.task, with up to four validation images a class where there are more than the shots
-- @raises one line on more shots than images
function methods:task(name, shots, seed)
  local it = loaded(self, name)
  local train, val = drawn(self, name, shots, seed)
  local part = taken(self, it.train, train.index, train.labels)
  part.val = #val.index > 0 and taken(self, it.train, val.index, val.labels) or nil
  return task_of(self, name, part)
end

-- What a row of a plan needs: its draw; and, unless it was made before, its method, of images that say nothing.
local function try(self, row, settings, made)
  local o, key = self.options, table.concat({ row.task, row.shots, row.method }, " ")
  local train, val = drawn(self, row.task, row.shots, row.seed)
  if made[key] then return end
  made[key] = true
  local part = { labels = pg.tensor(train.labels, { dtype = "int32", device = o.device }) }
  part.features = pg.ones(#train.labels, o.clip.width, { device = o.device })
  part.val = #val.index > 0 and taken(self, loaded(self, row.task).train, val.index, val.labels) or nil
  pg.few_shot.new(row.method, task_of(self, row.task, part), settings and settings(row))
end

--- Tries what a plan will need, so that no long run ends in its middle: every task is loaded, every draw made, and every
-- method made once of every task's classes and number of shots.
-- @param plan      of :plan
-- @param settings  function: row -> options of few_shot.new; or nil
-- @raises one line on an unknown task, more shots than images, a class without a name, what a method refuses; with the task
function methods:check(plan, settings)
  local made = {}
  for _, name in ipairs(self.options.transfer) do loaded(self, name) end
  for _, row in ipairs(plan) do
    loaded(self, row.task)
    local ok, why = pcall(try, self, row, settings, made)
    util.check(ok, "%s: %s", row.task, (tostring(why):gsub("^[^%s]+:%d+: ", "")))
  end
end

--- What a method has learnt: accuracies on a task's halves, and on other tasks by their classes' names.
-- @param learner  of few_shot.new, trained
-- @param task     of :task
-- @param name     of the task
-- @return {base =, new =, transfer = {name = accuracy}}, shares
function methods:test(learner, task, name)
  local it, result = loaded(self, name), { transfer = {} }
  result.base = pg.few_shot.accuracy(learner, task, it.base, it.base_names)
  result.new = pg.few_shot.accuracy(learner, task, it.new, it.new_names)
  for _, other in ipairs(self.options.transfer) do
    local far = loaded(self, other)
    if other ~= name then
      result.transfer[other] = pg.few_shot.accuracy(learner, task, far.every, far.names, far.prompt)
    end
  end
  return result
end

--- Zero-shot accuracies, which Delta_New and transfer are measured from. @param name a task @return {base, new, every}
function methods:zero_shot(name)
  local o = self.options
  if not self.known[name] then
    local it = loaded(self, name)
    local task = pg.few_shot.task { clip = o.clip, tokenizer = o.tokenizer, pixels = o.pixels, classes = it.names,
      prompt = it.prompt, images = it.base.images, labels = it.base.labels }
    local learner = pg.few_shot.new("zero_shot", task)
    local function accuracy(part, names) return pg.few_shot.accuracy(learner, task, part, names) end
    self.known[name] = { base = accuracy(it.base, it.base_names), new = accuracy(it.new, it.new_names),
      every = accuracy(it.every, it.names) }
  end
  return self.known[name]
end

--- What a run does, a row after another: every task with every number of shots and every seed, by every method.
-- @param text   comma-separated methods
-- @param shots  comma-separated numbers
-- @param seeds  how many
-- @param first  the first of them, 1 if not given
-- @return a list of {task, shots, seed, method}
-- @raises on an unknown method, naming the nearest, on shots that are no whole number
function methods:plan(text, shots, seeds, first)
  local plan = {}
  for _, task in ipairs(self.options.tasks) do
    for k in shots:gmatch "[^,%s]+" do
      local count = tonumber(k)
      util.check(count and count >= 1 and count % 1 == 0, "shots: '%s' is not a whole number, 1 or more", k)
      for seed = first or 1, (first or 1) + seeds - 1 do
        for method in text:gmatch "[^,%s]+" do
          pg.few_shot.method(method)
          plan[#plan + 1] = { task = task, shots = count, seed = seed, method = method }
        end
      end
    end
  end
  util.check(#plan > 0, "few_shot: names no task, method or number of shots")
  return plan
end

-- ---- the table ------------------------------------------------------------------------------------------------------

--- The harmonic mean of two shares. @param base, new numbers, 0 or more @return a number, 0 when both are
function protocol.harmonic(base, new) return base + new > 0 and 2 * base * new / (base + new) or 0 end

local function mean(list)
  local sum = 0
  for _, v in ipairs(list) do sum = sum + v end
  return sum / math.max(1, #list)
end

--- The table of a run: for each number of shots and method a line a task, means over seeds, and the average over tasks,
-- whose H is of the averages, as papers have it; `mean_h` is the average of the tasks' own.
-- @param rows       of :plan, with base, new and transfer
-- @param zero_shot  function: task -> {base, new, every}
-- @return a list of {shots, method, tasks = list of {task, base, new, h, delta_new, half = of new's 95% interval over
--   seeds}, base, new, h, delta_new, mean_h, transfer = {task = accuracy}}
function protocol.table(rows, zero_shot)
  local lines, by = {}, {}
  for _, row in ipairs(rows) do
    local key = row.shots .. " " .. row.method
    local line = by[key]
    if not line then
      line = { shots = row.shots, method = row.method, tasks = {}, transfer = {}, found = {} }
      by[key], lines[#lines + 1] = line, line
    end
    local task = line.found[row.task]
    if not task then
      task = { task = row.task, bases = {}, news = {} }
      line.found[row.task], line.tasks[#line.tasks + 1] = task, task
    end
    table.insert(task.bases, row.base)
    table.insert(task.news, row.new)
    for name, accuracy in pairs(row.transfer or {}) do
      line.transfer[name] = line.transfer[name] or {}
      table.insert(line.transfer[name], accuracy)
    end
  end
  for _, line in ipairs(lines) do
    local columns = { base = {}, new = {}, h = {}, delta_new = {} }
    for _, task in ipairs(line.tasks) do
      task.base = mean(task.bases)
      task.new, task.half = pg.stats.interval(task.news)
      task.h, task.delta_new = protocol.harmonic(task.base, task.new), task.new - zero_shot(task.task).new
      task.bases, task.news = nil, nil
      for name, column in pairs(columns) do table.insert(column, task[name]) end
    end
    line.base, line.new, line.delta_new = mean(columns.base), mean(columns.new), mean(columns.delta_new)
    line.h, line.mean_h, line.found = protocol.harmonic(line.base, line.new), mean(columns.h), nil
    for name, values in pairs(line.transfer) do line.transfer[name] = mean(values) end
  end
  return lines
end

local function tell(run, bench, lines)
  local shots, transfer = nil, bench.options.transfer
  for _, line in ipairs(lines) do
    if line.shots ~= shots then
      shots = line.shots
      run:say("%d shots%s %7s %7s %7s %10s", shots, (" "):rep(33 - #("%d"):format(shots)), "Base", "New", "H",
        "Delta_New")
    end
    local function say(title, x)
      run:say("%-40s %6.2f  %6.2f  %6.2f  %+9.2f%s", title, 100 * x.base, 100 * x.new, 100 * x.h, 100 * x.delta_new,
        x.half and x.half > 0 and (" +- %.2f"):format(100 * x.half) or "")
    end
    say(line.method, line)
    for _, task in ipairs(#line.tasks > 1 and line.tasks or {}) do say("  " .. task.task, task) end
  end
  for _, name in ipairs(transfer) do
    run:say("transfer to %s, all classes; zero-shot %.2f", name, 100 * bench:zero_shot(name).every)
    for _, line in ipairs(lines) do
      if line.transfer[name] then
        run:say("  %d shots, %-30s %6.2f", line.shots, line.method, 100 * line.transfer[name])
      end
    end
  end
end

-- Bars of the most shots; and where there are several numbers of them, H against shots.
local function draw(run, lines)
  local most, groups, series, curves, at = 0, {}, {}, {}, {}
  for _, line in ipairs(lines) do most = math.max(most, line.shots) end
  for i, name in ipairs { "base", "new", "h" } do series[i] = { name = name == "h" and "H" or name, y = {} } end
  for _, line in ipairs(lines) do
    if line.shots == most then
      groups[#groups + 1] = line.method
      for i, name in ipairs { "base", "new", "h" } do series[i].y[#groups] = 100 * line[name] end
    end
    if not at[line.method] then
      at[line.method] = { name = line.method, x = {}, y = {} }
      curves[#curves + 1] = at[line.method]
    end
    table.insert(at[line.method].x, line.shots)
    table.insert(at[line.method].y, 100 * line.h)
  end
  run:plot("bars", "base_to_new", { title = ("Base and new classes, %d shots"):format(most), ylabel = "accuracy (%)",
    groups = groups, series = series })
  if #lines > #groups then
    run:plot("lines", "shots", { title = "Harmonic mean of base and new", xlabel = "shots", ylabel = "H (%)",
      logx = true, series = curves })
  end
end

-- A curve as at most POINTS means of neighbouring steps, since the loss of one small batch says little.
local function smooth(curve)
  local x, y, n = {}, {}, #curve.x
  local count = math.min(POINTS, n)
  for i = 1, count do
    local first, last = math.floor((i - 1) * n / count) + 1, math.floor(i * n / count)
    x[i], y[i] = (curve.x[first] + curve.x[last]) / 2, mean { unpack(curve.y, first, last) }
  end
  return x, y
end

--- Prints the table, draws plots/base_to_new.png, task_loss.png and, for several numbers of shots, shots.png; writes
-- result.json.
-- @param run    of pg.run.open
-- @param bench  of base_to_new.new
-- @param rows    of its plan, tested
-- @param curves  list of {row = its number, x, y} of task losses
function protocol.report(run, bench, rows, curves)
  local lines, before = protocol.table(rows, function(name) return bench:zero_shot(name) end), {}
  for _, names in ipairs { bench.options.tasks, bench.options.transfer } do
    for _, name in ipairs(names) do before[name] = bench:zero_shot(name) end
  end
  tell(run, bench, lines)
  draw(run, lines)
  local shown = {} -- of the first task, at the last number of shots
  for _, curve in ipairs(curves) do
    local row = rows[curve.row]
    if row.task == rows[1].task and row.shots == rows[#rows].shots then
      local x, y = smooth(curve)
      shown[#shown + 1] = { name = row.method, x = x, y = y }
    end
  end
  if #shown > 0 then
    run:plot("lines", "task_loss", { title = "Adapting to " .. rows[1].task, xlabel = "step",
      ylabel = "task loss, mean of some steps", series = shown })
  end
  run:say("pictures: %s/plots", run.folder)
  run:finish { rows = rows, table = lines, zero_shot = before }
end

return protocol
