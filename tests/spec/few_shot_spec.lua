-- few_shot_spec.lua - each few-shot method against its formula stated independently in PyTorch (make_few_shot.py):
-- loss, gradients, logits among names that were not trained; then batches, errors, and short runs that must beat
-- chance.

local pg = require "perigee"
local lfs = require "lfs"
local few_shot = pg.few_shot

local FOLDER = "tests/fixtures/few_shot/"
local BASE, NEW = { "cat", "red dog", "bird", "big old ship" }, { "tree", "blue car", "cow" }
local TEMPLATES = { "a photo of a {}.", "a dark photo of {}", "a {} drawing", "{}", "a drawing of a big {}", "old {}",
  "a red photo of {}.", "blue {}" }

-- Words by number, as the script has them.
local tokenizer = { ids = {} }
for word in (". a photo of dark drawing cat red dog bird big old ship tree blue car cow"):gmatch "%S+" do
  tokenizer.count = (tokenizer.count or 0) + 1
  tokenizer.ids[word] = tokenizer.count - 1
end
function tokenizer:encode(text) -- luacheck: ignore 212
  local list = { 22 }
  for word in text:gsub("%.", " ."):gmatch "%S+" do list[#list + 1] = self.ids[word] end
  list[#list + 1] = 23
  return list
end
function tokenizer:batch(texts)
  local rows = {}
  for i, text in ipairs(texts) do
    rows[i] = self:encode(text)
    for t = #rows[i] + 1, 12 do rows[i][t] = 23 end
  end
  return pg.tensor(rows, { dtype = "int32" })
end

local function close(expected, got, what)
  local shape = table.concat(expected:shape(), ",")
  if shape ~= table.concat(got:shape(), ",") then got = got:reshape(expected:shape()) end
  local worst = (expected - got:detach()):abs():max():item() / math.max(1, expected:abs():max():item())
  assert.is_true(worst < 1e-9, ("%s is off by %g"):format(what, worst))
end

local fails = require("expect").fails

describe("against PyTorch", function()
  local shared, task, batch

  setup(function()
    shared = pg.npz.load(FOLDER .. "task.npz")
    task = few_shot.task { clip = pg.models.load(FOLDER .. "model"):to "float64", tokenizer = tokenizer, classes = BASE,
      prompt = "a photo of a {}.", images = shared.pixels, labels = shared.labels, templates = TEMPLATES,
      pixels = function(images) return images end }
    local at = shared.positions
    batch = { features = task.features:index(1, at), labels = shared.labels:index(1, at),
      images = shared.pixels:index(1, at) }
  end)

  it("the task's features and texts", function()
    close(shared.features, task.features, "features")
    close(shared.texts, task.texts, "texts")
    close(shared.ensemble, task:ensemble(BASE), "ensemble")
    local learner = few_shot.zero_shot(task, { templates = "list" })
    close(shared.ensemble, learner.classes(BASE).texts, "list")
    local logits = batch.features:matmul(shared.ensemble:t()) * math.exp(1.5)
    close(logits, learner.logits(batch, learner.classes(BASE)), "logits")
  end)

  -- The learner with the fixture's parameters, after loss, what moves, gradients and logits were compared.
  local function holds(name, case, options, names)
    local learner, want, found = few_shot.new(name, task, options), pg.npz.load(FOLDER .. case .. ".npz"), {}
    for key, t in pairs(want) do
      local parameter = key:match "^p%.(.+)$"
      if parameter then found[parameter] = t end
    end
    local part = name == "clipood" or name == "fd_align" -- the fixture has some of the tower's parameters
    learner.module:load_state_dict(found, { strict = not part })
    local loss, moved, before = learner.loss(batch)
    local total = learner:total(batch)
    if learner.plug then close(want.loss, total.loss + total.kept, "loss") else close(want.loss, loss, "loss") end
    if want.moved then
      close(want.moved, moved, "moved")
      close(want.before, before, "before")
    end
    local count = 0
    for parameter, p in learner.module:named_parameters() do
      if want["d." .. parameter] then
        close(want["d." .. parameter], p.grad, "d " .. parameter)
        count = count + 1
      end
    end
    assert.is_true(count > 0)
    if want.logits then
      pg.no_grad(function()
        close(want.logits, learner.logits(batch, learner.classes(names or NEW)), "logits")
      end)
    end
    return learner, want
  end

  it("linear_probe", function() holds("linear_probe", "linear_probe", {}, { "red dog", "tree" }) end)
  for _, place in ipairs { "end", "middle", "front" } do
    it("coop, the name at the " .. place, function()
      holds("coop", "coop_" .. place, { length = 3, place = place, init = "random" })
    end)
  end
  it("coop, class by class", function() holds("coop", "coop_specific", { length = 3, specific = true }) end)
  it("coop+fda", function()
    -- Its own weight counts; k is half of three others.
    holds("coop+fda:2", "coop_fda", { length = 3, init = "random", fda = { weight = 7 } })
  end)
  it("kgcoop", function() holds("kgcoop", "kgcoop") end)
  for _, kind in ipairs { "against", "along" } do
    it("prograd, gradients " .. kind .. " each other", function()
      holds("prograd", "prograd_" .. kind, { temperature = 1.5, strength = 0.8 })
    end)
  end
  it("cocoop", function() holds("cocoop", "cocoop", { reduction = 5 }) end)
  it("maple", function() holds("maple", "maple") end)
  it("maple+fda", function() holds("maple+fda", "maple_fda", { fda = { weight = 2, k = 2 } }) end)
  it("clap, from texts of the tower's length and of length one, its multipliers fixed and adaptive", function()
    for case, options in pairs { clap = {}, clap_unit = { texts = "unit", multipliers = "adaptive" } } do
      local learner, want = holds("clap", case, options)
      close(want.multipliers, learner.kept.multipliers, "multipliers")
      learner.epoch(1, 9)
      close(want.once, learner.kept.multipliers, "multipliers after an epoch")
      learner.epoch(2, 9)
      close(case == "clap" and want.multipliers or want.twice, learner.kept.multipliers, "multipliers after two")
    end
  end)

  it("tip_adapter and tip_adapter_f", function()
    local _, want = holds("tip_adapter_f", "tip_adapter_f", { beta = 2 })
    local still = few_shot.tip_adapter(task, { beta = 2 })
    assert.is_nil(still.module)
    close(want.still, still.logits(batch, still.classes(BASE)), "logits")
  end)

  it("prompt_src, and its average over epochs", function()
    local learner, want = holds("prompt_src", "prompt_src", { depth = 2, mean = 5, deviation = 1.5 })
    local context, sum = learner.module.context, 0
    for e, share in ipairs(want.share:totable()) do
      pg.no_grad(function() context:fill_(e * e) end)
      sum = sum + share * e * e
      learner.epoch(e, 8)
    end
    learner.finish()
    assert.is_true(math.abs(context:get(1, 1) - sum) < 1e-9)
  end)

  it("clipood, and its average over steps, also of a run that was resumed", function()
    local learner, want = holds("clipood", "clipood")
    local share = want.share:totable()
    local token, kept = learner.module.class_token, learner.kept.class_token
    pg.no_grad(function() kept:fill_(3) end) -- theta_0
    local wanted = share[1] * 3
    for t = 1, 5 do
      if t == 4 then
        learner = few_shot.clipood(task)
        pg.no_grad(function() learner.kept.class_token:copy_(kept) end)
        token, kept = learner.module.class_token, learner.kept.class_token
      end
      pg.no_grad(function() token:fill_(t * t) end)
      learner.step(t, 5)
      wanted = wanted + share[t + 1] * t * t
    end
    learner.finish()
    assert.is_true(math.abs(token:get(1, 1, 1) - wanted) < 1e-9)
  end)

  it("fd_align, whose prototypes are a fixed point of k-means", function()
    local how = { keep = 0.75, prototypes = 6, outliers = "distance" }
    local _, want = holds("fd_align", "fd_align", how)
    how.prototypes = 2
    local all, mu = want.prototypes, few_shot.fd_align(task, how).prototypes
    assert.are.equal(2, mu:size(1))
    local own = ((all:reshape(6, 1, 10) - mu:reshape(1, 2, 10)) ^ 2):sum(3):argmin(2):totable()
    for c = 1, 2 do
      local members = {}
      for i, o in ipairs(own) do members[#members + 1] = o == c and i or nil end
      assert.is_true(#members > 0)
      local mean = all:index(1, pg.tensor(members, { dtype = "int32" })):mean(1)
      assert.is_true((mean - mu:select(1, c)):abs():max():item() < 1e-5)
    end
  end)

  it("fd_align's isolation forest, against scikit-learn's of as many trees, and what it leaves out", function()
    local want = pg.npz.load(FOLDER .. "fd_align.npz")
    local depths = require("perigee.few_shot.fd_align").depths
    local average = 2 * (math.log(7) + 0.5772156649) - 2 * 7 / 8 -- of a tree of eight
    local scores = (depths(want.all, 4000) * (-math.log(2) / average)):exp()
    assert.is_true((scores - want.scores):abs():max():item() < 0.01)
    local kept = few_shot.fd_align(task, { keep = 0.75, prototypes = 6 }).prototypes
    local _, order = want.scores:topk(6, 1, { largest = false })
    local near = kept:matmul(want.all:index(1, order):t()):max(2) -- six centres of six points are these points
    assert.is_true(near:min():item() > 1 - 1e-9)
    local same = pg.ones(3, 4) -- cannot be split
    assert.is_true((depths(same, 5) - (2 * (math.log(2) + 0.5772156649) - 4 / 3)):abs():max():item() < 1e-6)
  end)
end)

-- ---- on the project's own CLIP --------------------------------------------------------------------------------------

local clip, words

-- The first n images of each of the classes from..to of a task's part, labels from 1.
local function part(set, from, to, n)
  local index, labels, count = {}, {}, {}
  for i, c in ipairs(set.labels:totable()) do
    count[c] = (count[c] or 0) + 1
    if c >= from and c <= to and count[c] <= n then index[#index + 1], labels[#labels + 1] = i, c - from + 1 end
  end
  return { images = set.images:index(1, pg.tensor(index, { dtype = "int32" })),
    labels = pg.tensor(labels, { dtype = "int32" }) }
end

local function small_task(shots, more)
  clip, words = clip or pg.models.load "recipes/clip_small", words or pg.tokenizer.load "recipes/clip_small"
  local scenes = pg.data.task("color", { train = 200, test = 120 })
  local train, o = part(scenes.train, 1, 4, shots), more or {}
  return few_shot.task { clip = clip, tokenizer = words, classes = o.classes or { unpack(scenes.train.classes, 1, 4) },
    prompt = scenes.train.prompt, images = train.images, labels = o.labels or train.labels, val = o.val }, scenes
end

local function train(learner, task, steps, lr)
  local opt = few_shot.optimizer(learner, lr)
  local per = math.max(1, math.floor(task.labels:numel() / learner.batches.size))
  local epochs = math.ceil(steps / per)
  local every = few_shot.batch(learner, task, pg.arange(task.labels:numel()))
  local function loss() return pg.no_grad(function() return (learner.loss(every)) end):item() end
  local first = loss()
  for step = 1, per * epochs do
    opt.lr = few_shot.rate(learner.training, lr or learner.training.lr, step, per, epochs)
    opt:zero_grad()
    learner:total(few_shot.batch(learner, task, learner.batches:next()))
    opt:step()
    if learner.plug then learner.plug.step() end
    learner.step(step, per * epochs)
    if step % per == 0 then learner.epoch(step / per, epochs) end
  end
  learner.finish()
  return first, loss()
end

describe("on clip_small", function()
  local MARGIN, CHANCE = 0.15, 0.25
  local threads = pg.threads()
  setup(function() pg.threads(1) end) -- work so small is slower on more, ten times so where the machine is busy
  teardown(function() pg.threads(threads) end)

  for name, how in pairs { zero_shot = 0, linear_probe = 30, coop = 30, kgcoop = 30, prograd = 30, ["coop+fda"] = 20,
    ["coop+proxy_fda"] = 20, tip_adapter = 0, tip_adapter_f = 20, clap = 30, ["clap+fda"] = 20, cocoop = 10, maple = 8,
    ["maple+proxy_fda:1"] = 4, prompt_src = 6, clipood = 6, fd_align = 6 } do
    it(name .. " tells four colours above chance by " .. MARGIN, function()
      pg.seed(3)
      local task, scenes = small_task(8)
      local learner = few_shot.new(name, task, { batch = how > 0 and 8 or nil, classes = 4, per_class = 4 })
      if how > 0 then
        local lr = learner.training.lr == 5e-6 and 1e-4 or nil -- published for large models
        local before, after = train(learner, task, how, lr)
        assert.is_true(after < before or learner.plug ~= nil, ("the loss went from %g to %g"):format(before, after))
      end
      local accuracy = few_shot.accuracy(learner, task, part(scenes.test, 1, 4, 20), task.classes)
      assert.is_true(accuracy > CHANCE + MARGIN, ("%.3f"):format(accuracy))
      local new = { unpack(scenes.train.classes, 5, 8) } -- four others, told by name alone
      assert.is_true(few_shot.accuracy(learner, task, part(scenes.test, 5, 8, 20), new) > CHANCE)
    end)
  end

  -- Zero-shot is at chance here, so that what is told was learnt. A context that all classes share cannot tell such names.
  for name, how in pairs { linear_probe = { steps = 30 }, tip_adapter = {}, tip_adapter_f = { steps = 20, lr = 0.01 },
    clap = { steps = 60, texts = "unit" }, coop = { steps = 150, lr = 0.1, specific = true },
    clipood = { steps = 20, lr = 1e-3 }, fd_align = { steps = 20, lr = 1e-3 } } do
    it(name .. " learns colors whose names say nothing, above chance by " .. MARGIN, function()
      pg.seed(3)
      local names = { "dog", "tree", "house", "car" }
      local task, scenes = small_task(8, { classes = names })
      local test = part(scenes.test, 1, 4, 20)
      assert.is_true(few_shot.accuracy(few_shot.zero_shot(task), task, test, names) < CHANCE + MARGIN / 2)
      local learner = few_shot.new(name, task, { batch = how.steps and 8, texts = how.texts, specific = how.specific })
      if how.steps then train(learner, task, how.steps, how.lr) end
      local accuracy = few_shot.accuracy(learner, task, test, names)
      assert.is_true(accuracy > CHANCE + MARGIN, ("%.3f"):format(accuracy))
    end)
  end

  it("every method that trains takes FDA and Proxy-FDA, which change its gradients", function()
    local task, count = small_task(4), 0
    for _, name in ipairs(few_shot.names()) do
      local gradients = {}
      for _, plug in ipairs(few_shot.method(name).training and { "fda:0", "fda:3", "proxy_fda:3" } or {}) do
        pg.seed(5)
        local learner = few_shot.new(name .. "+" .. plug, task, { batch = 8, classes = 4, per_class = 4 })
        local loss = learner:total(few_shot.batch(learner, task, learner.batches:next()))
        local kept = loss.kept:item()
        assert.is_true(plug == "fda:0" and kept == 0 or kept > 0 and kept < math.huge, name .. "+" .. plug)
        local all = {}
        for i, p in ipairs(learner.module:parameters()) do all[i] = p.grad:reshape(p:numel()) end
        gradients[#gradients + 1] = pg.cat(all, 1)
        learner.plug.step()
        count = count + 1
      end
      for i = 2, #gradients do
        assert.is_true((gradients[i] - gradients[1]):abs():max():item() > 0, name)
      end
    end
    assert.are.equal(33, count)
  end)

  it("a method that was stopped and put together again goes on to the same bits", function()
    for _, name in ipairs { "coop+proxy_fda", "prompt_src", "clipood", "clap" } do
      local task = small_task(4)
      local function made()
        pg.seed(9)
        local learner = few_shot.new(name, task, { batch = 8, seed = 5, multipliers = name == "clap" and "adaptive" or nil })
        return learner, few_shot.optimizer(learner)
      end
      local function go(learner, opt, from, to)
        local losses = {}
        for step = from, to do
          opt:zero_grad()
          losses[#losses + 1] = learner:total(few_shot.batch(learner, task, learner.batches:next())).loss:item()
          opt:step()
          if learner.plug then learner.plug.step() end
          learner.step(step, 4)
          if step % 2 == 0 then learner.epoch(step / 2, 2) end
        end
        return losses
      end
      local learner, opt = made()
      go(learner, opt, 1, 2)
      local parts = learner:parts()
      parts.opt = opt
      local tensors, data = pg.snapshot.take(parts)
      for key, t in pairs(tensors) do tensors[key] = t:clone() end
      local generator = pg.rng_state()
      local expected = go(learner, opt, 3, 4)
      learner.finish()
      local other, other_opt = made()
      local again = other:parts()
      again.opt = other_opt
      pg.snapshot.new(tensors, { parts = data, generator = generator }):into(again)
      assert.are.same(expected, go(other, other_opt, 3, 4), name)
      other.finish()
      for key, p in other.module:named_parameters() do
        assert.are.same(learner.module:state_dict()[key]:totable(), p:totable(), name .. " " .. key)
      end
    end
  end)

  it("tip_adapter chooses alpha and beta on validation images", function()
    local _, scenes = small_task(2)
    local task = small_task(4, { val = part(scenes.val, 1, 4, 3) })
    local learner, own = few_shot.tip_adapter(task, { search = true }), few_shot.tip_adapter(task)
    local function on_val(l) return few_shot.accuracy(l, task, task.val, task.classes) end
    assert.is_true(on_val(learner) >= on_val(own) - 1e-9)
    fails("search needs a task with val images", few_shot.tip_adapter, small_task(2), { search = true })
  end)

  it("batches are shuffled epochs; with FDA over images some of each class, all of them before one again", function()
    local task = small_task(3) -- twelve images
    local learner, seen = few_shot.coop(task, { batch = 5 }), {}
    for _ = 1, 2 do
      for _, i in ipairs(learner.batches:next():totable()) do seen[i] = (seen[i] or 0) + 1 end
    end
    for _, n in pairs(seen) do assert.are.equal(1, n) end
    assert.are.equal(12, few_shot.coop(task, { batch = 99 }).batches.size)
    -- Four classes in place of sixteen: 16 x 2 / 4 = 8 images of each, and a class has three.
    learner = few_shot.new("maple+fda", task, { classes = 16, per_class = 2 })
    assert.are.equal(32, learner.batches.size)
    local positions, count = learner.batches:next():totable(), {}
    for at, i in ipairs(positions) do
      count[i] = (count[i] or 0) + 1
      if (at - 1) % 8 < 3 then assert.are.equal(1, count[i]) end -- the first three of a class are its three
    end
    local labels, each = task.labels:totable(), {}
    for _, i in ipairs(positions) do each[labels[i]] = (each[labels[i]] or 0) + 1 end
    assert.are.same({ 8, 8, 8, 8 }, each)
    for i = 1, 12 do assert.is_true(count[i] >= 1) end
  end)

  it("coop costs its texts forward and backward, and little more", function()
    local task = small_task(8)
    local learner = few_shot.coop(task, { batch = 32 })
    local batch = few_shot.batch(learner, task, learner.batches:next())
    local set = require("perigee.prompts").words("coop", task, task.classes, nil, 4)
    local least = {} -- of processor time, in turns, so that both meet the same machine
    local function time(name, fn)
      local began = os.clock()
      pg.scope(fn)
      least[name] = math.min(least[name] or math.huge, os.clock() - began)
    end
    for _ = 1, 60 do
      time("whole", function() learner:total(batch) end)
      time("texts", function()
        require("perigee.prompts").encode(task, set, learner.module.context):sum():backward()
      end)
    end
    local whole, texts = least.whole, least.texts
    assert.is_nil(batch.images)
    assert.is_true(whole < 1.15 * texts, ("%.2f ms, its texts %.2f ms"):format(1e3 * whole, 1e3 * texts))
  end)

  it("what cannot be is one line", function()
    local task = small_task(2)
    fails("few_shot: there is no method 'cop' (did you mean 'coop'?)", few_shot.new, "cop", task)
    fails("'coop+/x' is no method", few_shot.new, "coop+/x", task)
    fails("'+fdaa' cannot be added (did you mean '+fda'?)", few_shot.new, "coop+fdaa", task)
    fails("zero_shot trains nothing that +fda could hold", few_shot.new, "zero_shot+fda", task)
    fails("the weight of +fda must be a number, got 'much'", few_shot.new, "coop+fda:much", task)
    fails("coop takes no weight", few_shot.new, "coop:3", task)
    fails("coop needs a task of few_shot.task", few_shot.coop, {})
    fails("coop: unknown option 'lenght' (did you mean 'length'?)", few_shot.coop, task, { lenght = 3 })
    fails("coop: length = 0, but it must be a whole number, 1 or more", few_shot.coop, task, { length = 0 })
    fails("coop: init = 3, but it must be text", few_shot.coop, task, { init = 3 })
    fails("coop: init = 'a photo' has 2 tokens, and length = 4 vectors start from it", few_shot.coop, task,
      { init = "a photo" })
    fails("and 30 vectors take 33 tokens, the model has 20: length may be 17", few_shot.coop, task,
      { init = "random", length = 30 })
    fails("few_shot.task: class 3 has no name", small_task, 2, { classes = { "red", "green", "", "blue" } })
    fails("few_shot.task: class 2 has no name", small_task, 2, { classes = { "red", nil, "blue" } })
    fails("few_shot.task: label 4 has no name: there are 3 classes", small_task, 2, { classes = { "a", "b", "c" } })
    fails("8 images", small_task, 2, { labels = pg.tensor({ 1, 2, 3 }, { dtype = "int32" }) })
    fails("needs a model with a text tower", few_shot.task, { clip = pg.models.vit(), classes = { "a", "b" } })
    fails("class 2 has no name", task.zero_shot, task, { "red", " " })
    fails("tokens with start and end, the context 20", task.zero_shot, task, { ("very "):rep(30) .. "red" })
  end)

  it("a method is a file on package.path and nothing else", function()
    local folder, path = os.tmpname(), package.path
    os.remove(folder)
    for _, below in ipairs { "", "/perigee", "/perigee/few_shot" } do lfs.mkdir(folder .. below) end
    local file = assert(io.open(folder .. "/perigee/few_shot/last.lua", "w"))
    file:write [[return { help = "the last class", source = "this test", options = {}, new = function()
      local pg = require "perigee"
      return { classes = function(names) return #names end, logits = function(batch, n)
        return (pg.arange(n):to "float32"):reshape(1, n):expand(batch.features:size(1), n):contiguous() end }
    end }]]
    file:close()
    package.path = folder .. "/?.lua;" .. path
    local ok, why = pcall(function()
      local task = small_task(2)
      local all = { images = task.images, labels = task.labels }
      assert.are.equal(0.25, few_shot.accuracy(few_shot.last(task), task, all, task.classes))
      assert.are.equal("last", few_shot.names()[7])
    end)
    package.path, package.loaded["perigee.few_shot.last"] = path, nil
    os.execute("rm -r " .. folder)
    assert.is_true(ok, tostring(why))
    assert.is_nil(few_shot.last)
  end)
end)
