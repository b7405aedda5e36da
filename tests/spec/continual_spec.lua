-- continual_spec.lua - continual learning: each method's formula stated independently (by PyTorch and NumPy), the
-- figures of a matrix by hand, the sequences, the memory, what is refused, short runs that must learn, and a run killed
-- and resumed.

local pg = require "perigee"
local lfs = require "lfs"
local process = require "process"
local exemplars = require "perigee.exemplars"
local pool = require "perigee.prompt_pool"

local FIXTURES = pg.npz.load "tests/fixtures/continual/losses.npz"

local function load(case, name) return assert(FIXTURES[case .. "." .. name], case .. "." .. name) end
local function leaf(case, name) return load(case, name):clone():requires_grad_(true) end

local close = require("expect").closer(1e-9)

local fails = require("expect").fails

-- ---- the figures ---------------------------------------------------------------------------------------------------

describe("metrics.continual", function()
  local function near(expected, got, what)
    assert.is_true(math.abs(expected - got) < 1e-12, what .. ": " .. tostring(got))
  end

  it("gives the figures of a whole matrix", function()
    local R = { { 0.9, 0.3, 0.2 }, { 0.7, 0.8, 0.4 }, { 0.6, 0.5, 1.0 } }
    local m = pg.metrics.continual(R, { chance = { 0.5, 0.25, 0.1 } })
    near(0.9, m.average[1], "average 1")
    near(0.75, m.average[2], "average 2")
    near(0.7, m.average[3], "average 3")
    near((0.9 + 0.75 + 0.7) / 3, m.incremental, "incremental")
    near(0.7, m.last, "last")
    near((0.3 + 0.3) / 2, m.forgetting, "forgetting")
    near(((0.6 - 0.9) + (0.5 - 0.8)) / 2, m.backward, "backward")
    near(((0.3 - 0.25) + (0.4 - 0.1)) / 2, m.forward, "forward")
    near((0.3 + (0.2 + 0.4) / 2) / 2, m.transfer, "transfer")
    near(5.4 / 9, m.avg, "avg")
  end)

  it("knows what half a matrix says, and clips forgetting when asked", function()
    local R = { { 0.5 }, { 0.7, 0.6 }, { 0.8, 0.4, 0.9 } }
    local m = pg.metrics.continual(R, { chance = { 0, 0, 0 } })
    near((-0.1 + 0.2) / 2, m.forgetting, "forgetting")
    near((0 + 0.2) / 2, pg.metrics.continual(R, { clip = true }).forgetting, "clipped")
    assert.is_nil(m.forward)
    assert.is_nil(m.transfer)
    assert.is_nil(m.avg)
    local one = pg.metrics.continual { { 0.5 } }
    near(0.5, one.last, "last")
    assert.is_nil(one.forgetting)
  end)

  it("refuses what is no matrix", function()
    fails("row 2 has 3 entries: 2 (the tasks so far) or 2 (all) are right", pg.metrics.continual,
      { { 1 }, { 1, 2, 3 } })
    fails("R[1][1] is nan", pg.metrics.continual, { { 0 / 0 } })
    fails("1 chances for 2 tasks", pg.metrics.continual, { { 1 }, { 1, 1 } }, { chance = { 0.5 } })
    fails("needs a matrix", pg.metrics.continual, {})
  end)
end)

-- ---- losses --------------------------------------------------------------------------------------------------------

-- An encoder that is one matrix, in float64: features = images W^T.
local Toy = pg.nn.class "Toy"
function Toy:init(weight) self.weight, self.width, self.depth = weight, 5, 1 end
function Toy:forward(images)
  return images:reshape(images:size(1), 12):to("float64"):matmul(self.weight:t())
end
function Toy:forward_features(images) return self:forward(images), {} end

local function head_of(classes)
  local head = pg.models.head(5, classes)
  return head:to "float64"
end

-- Two tasks of 2 and 3 classes, of pictures of 2 x 2 pixels.
local function toy_tasks(setting, pictures)
  local function set(first, classes)
    local n = pictures and pictures:size(1) or 6
    local labels = {}
    for i = 1, n do labels[i] = first + (i - 1) % classes + 1 end
    return { images = pictures or pg.zeros(n, 2, 2, 3, { dtype = "uint8" }),
      labels = pg.tensor(labels, { dtype = "int32" }) }
  end
  return { setting = setting, classes = 5,
    { name = "a", first = 0, classes = { "a1", "a2" }, train = set(0, 2), test = set(0, 2) },
    { name = "b", first = 2, classes = { "b1", "b2", "b3" }, train = set(2, 3), test = set(2, 3) } }
end

local function fill(module, tensors)
  pg.no_grad(function()
    for key, t in pairs(tensors) do module[key]:copy_(t) end
  end)
end

local function toy_spec(tasks)
  return { model = Toy(leaf("classes", "weight")), pretrained = Toy(leaf("classes", "weight")):requires_grad_(false),
    tasks = tasks, head = function(task) return head_of(#task.classes) end, classes = 2, per_class = 2 }
end

-- A learner in the middle of the second task, its numbers those of the fixtures.
local function in_task_two(name, setting, options)
  pg.seed(2)
  local learner = pg.continual.new(name, toy_spec(toy_tasks(setting)), options)
  learner:begin(1)
  learner:begin(2)
  fill(learner.heads[1].linear, { weight = load("classes", "head1"), bias = load("classes", "bias1") })
  fill(learner.heads[2].linear, { weight = load("classes", "head2"), bias = load("classes", "bias2") })
  if learner.reference then
    fill(learner.reference.model, { weight = load("model", "old_weight") })
    fill(learner.reference.heads[1].linear, { weight = load("model", "old_head1"), bias = load("model", "old_bias1") })
    learner.hooks.features = learner.reference.model(load("model", "images"))
  end
  return learner
end

-- Loss and gradients of the first `count` images against a case.
local function check(case, learner, count)
  local index = pg.arange(count, { dtype = "int32" })
  local loss = learner:loss_of { images = load("model", "images"):index(1, index),
    labels = load("model", "labels"):index(1, index), positions = index }
  loss:backward()
  close(load(case, "out"), loss, case)
  local got = { weight = learner.model.weight }
  for t = 1, 2 do got["head" .. t], got["bias" .. t] = learner.heads[t].linear.weight, learner.heads[t].linear.bias end
  for name, t in pairs(got) do
    local expected = load(case, "d_" .. name)
    close(expected, t.grad or expected * 0, case .. " d_" .. name)
    if not t.grad then assert.equal(0, expected:abs():max():item(), name) end
  end
end

describe("against PyTorch and NumPy", function()
  it("cross-entropy over all classes, and over each image's own task", function()
    check("classes", in_task_two("naive", "classes"), 9)
    check("tasks", in_task_two("joint", "tasks"), 9)
    local learner = in_task_two("slca", "classes") -- trains the current task's logits alone
    check("current", learner, 7)
  end)

  it("lwf", function() check("lwf", in_task_two("lwf", "tasks", { weight = 0.7 }), 7) end)
  it("icarl", function() check("icarl", in_task_two("icarl", "classes"), 9) end)

  it("herding and the nearest mean", function()
    local points = load("herding", "points")
    assert.same(load("herding", "order"):totable(), exemplars.herd(points, 8))
    local means = {}
    for i, range in ipairs { { 1, 6 }, { 7, 7 }, { 14, 7 } } do
      means[i] = exemplars.prototype(points:narrow(1, range[1], range[2]))
    end
    local scores = exemplars.nearest(load("herding", "queries"), pg.cat(means, 1))
    assert.same(load("herding", "nearest"):totable(), scores:argmax(2):totable())
  end)

  it("ewc: the penalty, and Fisher information that adds up over tasks", function()
    local learner = in_task_two("ewc", "tasks", { weight = 3 })
    learner.kept["fisher.1"], learner.kept["center.1"] = load("ewc", "information"), load("ewc", "center")
    local penalty = learner.hooks.penalty()
    penalty:backward()
    close(load("ewc", "out"), penalty, "ewc")
    close(load("ewc", "d_weight"), learner.model.weight.grad, "d_weight")
    for _, factor in ipairs { "none", "probability" } do
      learner = pg.continual.ewc(toy_spec(toy_tasks("tasks", load("ewc", "pictures"))),
        { labels = "true", factor = factor, gamma = 0.5 })
      learner:begin(1)
      fill(learner.heads[1].linear, { weight = load("classes", "head1"), bias = load("classes", "bias1") })
      learner:finish()
      -- pictures become float32 on their way
      close(load("ewc", "fisher_" .. factor), learner.kept["fisher.1"], "fisher " .. factor, 1e-5)
      close(load("classes", "weight"), learner.kept["center.1"], "center")
      learner:finish()
      close(load("ewc", "fisher_" .. factor) * 1.5, learner.kept["fisher.1"], "twice, half forgotten", 1e-5)
    end
  end)

  it("slca: aligning, and the Gaussian of a class", function()
    local slca = require "perigee.continual.slca"
    local z1, z2 = leaf("slca", "z1"), leaf("slca", "z2")
    local loss = slca.aligned({ z1, z2 }, load("model", "labels"), 0.1)
    loss:backward()
    close(load("slca", "out"), loss, "slca")
    close(load("slca", "d_z1"), z1.grad, "d_z1")
    close(load("slca", "d_z2"), z2.grad, "d_z2")
    local mean, factor = slca.gaussian(load("herding", "points"))
    close(load("gaussian", "mean"), mean, "mean")
    close(load("gaussian", "covariance"), factor:matmul(factor:t()), "covariance")
  end)

  it("zscl", function()
    local now = leaf("zscl", "now")
    local loss = require("perigee.continual.zscl").distil(load("zscl", "before"), now, 2)
    loss:backward()
    close(load("zscl", "out"), loss, "zscl")
    close(load("zscl", "d_now"), now.grad, "d_now")
  end)

  it("l2p: the chosen prompts and the pull", function()
    local keys, prompts = leaf("l2p", "keys"), leaf("l2p", "prompts")
    local chosen, pull = pool.select(load("l2p", "query"), keys, prompts, 2)
    close(load("l2p", "pull"), pull, "pull")
    local loss = (chosen * load("l2p", "seed")):sum() + pull
    loss:backward()
    close(load("l2p", "out"), loss, "l2p")
    close(load("l2p", "d_keys"), keys.grad, "d_keys")
    close(load("l2p", "d_prompts"), prompts.grad, "d_prompts")
  end)

  it("coda_prompt: the mixed components, their orthogonality and Gram-Schmidt", function()
    local a, k, p = leaf("coda", "attention"), leaf("coda", "keys"), leaf("coda", "components")
    local loss = (pool.mix(load("coda", "query"), a, k, p) * load("coda", "seed")):sum() + pool.orthogonality(p)
    loss:backward()
    close(load("coda", "out"), loss, "coda")
    for name, t in pairs { attention = a, keys = k, components = p } do
      close(load("coda", "d_" .. name), t.grad, name)
    end
    local rows = load("gram", "rows"):clone()
    pool.gram_schmidt(rows, load("gram", "older"))
    close(load("gram", "out"), rows, "gram")
  end)

  it("a prefix of keys and values in attention", function()
    local attention = pg.nn.Attention(4, 2, { bias = false }):to "float64"
    fill(attention.qkv, { weight = load("prefix", "qkv") })
    fill(attention.proj, { weight = load("prefix", "proj") })
    local x, k, v = leaf("prefix", "x"), leaf("prefix", "keys"), leaf("prefix", "values")
    local loss = (attention(x, nil, { k, v }) * load("prefix", "seed")):sum()
    loss:backward()
    close(load("prefix", "out"), loss, "prefix")
    for name, t in pairs { x = x, keys = k, values = v } do close(load("prefix", "d_" .. name), t.grad, name) end
  end)
end)

-- ---- sequences and refusals ----------------------------------------------------------------------------------------

local function tower() return pg.models.vit { width = 16, depth = 2, heads = 2, patch = 8 } end

-- A learner with random heads on a small tower.
local function learner_on(tasks, name, options, seed)
  pg.seed(seed or 1)
  local model = tower()
  return pg.continual.new(name, { model = model, pretrained = model:frozen(), tasks = tasks, classes = 4, per_class = 4,
    head = function(task) return pg.models.head(16, #task.classes) end }, options)
end

describe("a sequence", function()
  it("is whole tasks, whose labels run through", function()
    local tasks = pg.data.sequence { tasks = { "size", "concepts", "count" }, train = 80, test = 70 }
    assert.equal(3 + 64 + 4, tasks.classes)
    assert.same({ "size", "concepts", "count" }, { tasks[1].name, tasks[2].name, tasks[3].name })
    assert.equal(67, tasks[3].first)
    local low, high = tasks[2].train.labels:to "float32":min():item(), tasks[2].train.labels:to "float32":max():item()
    assert.is_true(low >= 4 and high <= 67 and high > 50)
    local i = 5 -- a scene's class is its color and shape
    local class = tasks[2].classes[tasks[2].train.labels:get(i) - 3]
    assert.is_truthy(class:match "^%a+ %a+$")
  end)

  it("is the classes of one task in equal steps, each class in one of them", function()
    local function split(seed, order)
      return pg.data.sequence { setting = "classes", source = "shape", steps = 4, train = 80, test = 40, seed = seed,
        order = order }
    end
    local tasks, names, images = split(3), {}, 0
    for t, task in ipairs(tasks) do
      assert.equal(2 * (t - 1), task.first)
      for _, label in ipairs(task.train.labels:totable()) do
        assert.is_true(label > task.first and label <= task.first + 2)
      end
      for _, name in ipairs(task.classes) do names[#names + 1] = name end
      images = images + task.train.labels:numel()
    end
    assert.equal(80, images)
    local sorted, values = { unpack(names) }, { unpack(pg.data.concept_values.shape) }
    table.sort(sorted)
    table.sort(values)
    assert.same(values, sorted)
    assert.are_not.same(pg.data.concept_values.shape, names)
    assert.same({ "circle", "square" }, split(3, "listed")[1].classes)
  end)

  it("gives the first steps one class more where steps do not divide the classes", function()
    local tasks = pg.data.sequence { setting = "classes", source = "openclipart", steps = 5, train = 200, test = 100 }
    local sizes, first, names = {}, 0, {}
    for t, task in ipairs(tasks) do
      assert.equal(first, task.first)
      sizes[t], first = #task.classes, first + #task.classes
      for _, label in ipairs(task.train.labels:totable()) do assert.is_true(label > task.first and label <= first) end
      for _, name in ipairs(task.classes) do names[name] = true end
    end
    assert.same({ 3, 3, 3, 2, 2 }, sizes)
    local count = 0
    for _ in pairs(names) do count = count + 1 end
    assert.equal(13, count)
  end)

  it("refuses in one line", function()
    fails("there is no task 'coutn' (did you mean 'count'?)", pg.data.sequence, { tasks = { "size", "coutn" } })
    fails("'size' stands there twice", pg.data.sequence, { tasks = { "size", "size" } })
    fails("5 steps are more than the 4 classes of count", pg.data.sequence,
      { setting = "classes", source = "count", steps = 5, train = 20, test = 20 })
    fails("unknown task 'coutn'", pg.data.sequence, { setting = "classes", source = "coutn" })
    fails("setting is 'tasks' or 'classes'", pg.data.sequence, { setting = "domains" })
    fails("train must be a whole number", pg.data.sequence, { tasks = { "size" }, train = 0 })
  end)
end)

describe("a method", function()
  local tasks = pg.data.sequence { setting = "classes", source = "count", steps = 2, train = 40, test = 40 }

  it("is a file and nothing else", function()
    local path = os.tmpname()
    os.remove(path)
    os.execute(("mkdir -p %s/perigee/continual"):format(path))
    local file = assert(io.open(path .. "/perigee/continual/twice.lua", "w"))
    file:write [[return { help = "twice the loss", source = "this test", options = { { "factor", 2, real = true } },
      new = function(_, o)
        return { penalty = function(batch) return batch.features:sum() * 0 + o.factor end }
      end }]]
    file:close()
    local before = package.path
    package.path = path .. "/?.lua;" .. before
    local names = table.concat(pg.continual.names(), " ")
    local learner = learner_on(tasks, "twice", { factor = 3 })
    package.path = before
    os.execute("rm -rf " .. path)
    assert.is_truthy(names:find("slca twice zscl", 1, true), names)
    learner:begin(1)
    local loss, terms = learner:loss()
    assert.is_true(math.abs(loss:item() - terms.task_loss:item() - 3) < 1e-5)
  end)

  it("that is not there, or is told what cannot be, is refused in one line", function()
    fails("continual: there is no method 'icalr' (did you mean 'icarl'?)", learner_on, tasks, "icalr")
    fails("icarl: unknown option 'memroy' (did you mean 'memory'?)", learner_on, tasks, "icarl", { memroy = 5 })
    fails("memory: 3 images are less than one for each of 4 classes", learner_on, tasks, "icarl", { memory = 3 })
    fails("l2p: top = 5 prompts from a pool of 4", learner_on, tasks, "l2p", { pool = 4, top = 5 })
    fails("dual_prompt: depth 3 does not exist here: they run from 1 to 2", learner_on, tasks, "dual_prompt")
    fails("zscl: needs a model with a text tower", learner_on, tasks, "zscl")
    fails("continual: '+proxy_fdb' cannot be added (did you mean '+proxy_fda'?)", learner_on, tasks, "slca+proxy_fdb")
    fails("continual: ldifs is a regulariser itself, got ldifs+fda", learner_on, tasks, "ldifs+fda")
  end)

  it("takes FDA beside its own loss, with FDA's weight and options", function()
    local learner = learner_on(tasks, "slca+fda:3", { fda = { k = 4, reference = "pretrained" } })
    local plain = learner_on(tasks, "fda:3", { k = 4, reference = "pretrained" })
    for _, one in ipairs { learner, plain } do
      pg.no_grad(function() -- away from the reference
        for i, p in ipairs(one.model:parameters()) do p:copy_(p * (1 + 0.1 * i)) end
      end)
      one:begin(1)
    end
    local index = pg.arange(8, { dtype = "int32" })
    local function kept(one)
      local _, terms = one:loss_of { images = pg.data.to_float(tasks[1].train.images:index(1, index)),
        labels = tasks[1].train.labels:index(1, index), positions = index, before = one.train.before:index(1, index) }
      return terms.kept:item()
    end
    assert.is_true(kept(plain) > 0)
    assert.equal(kept(plain), kept(learner))
    assert.equal(3, learner.settings.fda.weight)
    assert.equal(0.01 * 0.01, learner:groups(1)[1].lr) -- slca's own
    local plan = pg.continual.plan "naive, ewc:5, slca+proxy_fda:2, lwf+fda"
    assert.same({ { method = "naive", title = "naive" }, { method = "ewc", title = "ewc:5", weight = 5 },
      { method = "slca", plug = "proxy_fda", title = "slca+proxy_fda:2", weight = 2 },
      { method = "lwf", plug = "fda", title = "lwf+fda" } }, plan)
  end)

  it("is trained on all classes so far or the task's own, as it is told", function()
    for logits, moved in pairs { all = true, current = false } do
      local learner = learner_on(tasks, "naive", { logits = logits })
      learner:begin(1)
      learner:begin(2)
      learner:loss():backward()
      local grad = learner.heads[1]:parameters()[1].grad
      assert.equal(moved, grad ~= nil and grad:abs():max():item() > 0, logits)
    end
  end)

  it("keeps its budget of exemplars, and trains on them", function()
    local learner = learner_on(tasks, "icarl", { memory = 9 })
    learner:begin(1)
    learner:finish()
    assert.same({ 4, 4 }, { #learner.notes.exemplars[1], #learner.notes.exemplars[2] })
    local first = { unpack(learner.notes.exemplars[1]) }
    learner:begin(2)
    assert.equal(8 + tasks[2].train.labels:numel(), learner.train.labels:numel())
    learner:finish()
    local kept = learner.notes.exemplars
    assert.same({ 2, 2, 2, 2 }, { #kept[1], #kept[2], #kept[3], #kept[4] })
    assert.same({ first[1], first[2] }, kept[1]) -- the first chosen stay
  end)

  it("dual_prompt finds a picture's task by its key", function()
    local learner = learner_on(tasks, "dual_prompt", { general_layers = "1", expert_layers = "1,2" })
    learner:begin(1)
    learner:begin(2)
    local images = pg.data.to_float(tasks[1].test.images:narrow(1, 1, 2):contiguous())
    local query, keys = learner.pretrained(images), learner.hooks.modules.prompts.keys
    pg.no_grad(function()
      keys:narrow(1, 1, 1):copy_(query:narrow(1, 1, 1))
      keys:narrow(1, 2, 1):copy_(query:narrow(1, 2, 1))
    end)
    local batch = {}
    local told, own = learner.hooks.encode(images, query, batch), learner.hooks.encode(images, query)
    local function distance(i) return (told - own):select(1, i):abs():max():item() end
    assert.is_true(distance(2) == 0 and distance(1) > 1e-4, distance(1) .. " " .. distance(2))
    local cosine = pool.cosine(query, query):get(1, 2)
    assert.is_true(math.abs(batch.pull:item() - (1 - (cosine + 1) / 2)) < 1e-5)
  end)

  it("that freezes the encoder leaves it as it was", function()
    for _, name in ipairs { "l2p", "coda_prompt" } do
      local learner = learner_on(tasks, name, name == "coda_prompt" and { layers = "1,2" } or nil)
      learner:begin(1)
      local before, own = learner.model.blocks[1].attention.qkv.weight:clone(), learner:groups(1e-2)
      local adamw = pg.optim.AdamW(own, { lr = 1e-2 })
      local prompt = own[1].params[1]:clone()
      for _ = 1, 2 do
        adamw:zero_grad()
        learner:loss():backward()
        adamw:step()
      end
      close(before, learner.model.blocks[1].attention.qkv.weight, name, 1e-12)
      assert.is_true((own[1].params[1] - prompt):abs():max():item() > 0)
    end
  end)
end)

describe("a learner", function()
  local tasks = pg.data.sequence { setting = "classes", source = "count", steps = 2, train = 40, test = 40 }

  local function train(learner, adamw, steps)
    for step = 1, steps do
      adamw:zero_grad()
      learner:loss():backward()
      adamw:step()
      learner:step(step)
    end
  end

  -- What a checkpoint does to a state: other tensors, and plain data as JSON gives it back.
  local function written(state)
    local tensors = {}
    for name, t in pairs(state.tensors) do tensors[name] = t:clone() end
    return { tensors = tensors, scalars = pg.run.decode(pg.run.encode(state.scalars)) }
  end

  local two = "1,2"
  for name, options in pairs { naive = {}, joint = { start = "pretrained" }, lwf = {}, ldifs = {}, l2sp = {},
    fda = { k = 4, learnable = true }, proxy_fda = { k = 4, width = 8 }, icarl = { memory = 8 }, ewc = { samples = 4 },
    slca = { samples = 4 }, l2p = {}, dual_prompt = { general_layers = "1", expert_layers = two },
    coda_prompt = { layers = two }, ["icarl+proxy_fda"] = { memory = 8, fda = { k = 4, width = 8 } } } do
    it(name .. " goes on from a state in the middle of the second task, to the same bits", function()
      local learner = learner_on(tasks, name, options)
      learner:begin(1)
      train(learner, pg.optim.AdamW(learner:groups(1e-2), { lr = 1e-2 }), 2)
      learner:finish()
      learner:begin(2)
      local adamw = pg.optim.AdamW(learner:groups(1e-2), { lr = 1e-2 })
      train(learner, adamw, 2)
      local state, optimizer, sampler = written(learner:state()), written(adamw:state()), learner.sampler:state()
      local generator = pg.rng_state()
      train(learner, adamw, 2)
      learner:finish()
      local row = learner:evaluate()

      local other = learner_on(tasks, name, options)
      other:restore(state)
      local adamw2 = pg.optim.AdamW(other:groups(1e-2), { lr = 1e-2 })
      adamw2:restore(optimizer)
      other.sampler:restore(sampler)
      pg.rng_state(generator)
      train(other, adamw2, 2)
      other:finish()
      assert.same(row, other:evaluate())
      local a, b = learner:state(), other:state()
      assert.same(a.scalars, b.scalars)
      for key, t in pairs(a.tensors) do assert.same(t:totable(), b.tensors[key]:totable(), key) end
    end)
  end

  it("keeps to the model before the task, or to the pre-trained one", function()
    for _, case in ipairs { { "previous", true }, { "pretrained", false } } do
      local learner = learner_on(tasks, "ldifs", { reference = case[1], depths = two })
      learner:begin(1)
      train(learner, pg.optim.AdamW(learner:groups(1e-2), { lr = 1e-2 }), 2)
      learner:begin(2)
      local _, terms = learner:loss()
      assert.equal(case[2], terms.kept:item() == 0, case[1])
    end
    local learner = learner_on(tasks, "fda", { k = 4, weight = 2 })
    learner:begin(1)
    train(learner, pg.optim.AdamW(learner:groups(1e-2), { lr = 1e-2 }), 2)
    learner:begin(2)
    local index = pg.arange(16, { dtype = "int32" })
    local images = pg.data.to_float(tasks[2].train.images:index(1, index))
    local _, terms = learner:loss_of { images = images, labels = tasks[2].train.labels:index(1, index),
      positions = index, before = learner.train.before:index(1, index) }
    local wanted = pg.fda.loss(learner.model(images), pg.fda.graph(learner.reference.model(images), { k = 4 }),
      { tau = 0.1, bias = "auto" }) * 2
    assert.is_true(math.abs(wanted:item() - terms.kept:item()) < 1e-5)
  end)

  it("tests tasks to come where heads need no images", function()
    for setting, classes in pairs { tasks = 2, classes = 4 } do
      local named = { setting = setting, classes = tasks.classes, tasks[1], tasks[2] }
      pg.seed(1)
      local model, made = tower(), {}
      local learner = pg.continual.naive { model = model, pretrained = model:frozen(), tasks = named, zero_shot = true,
        classes = 4, per_class = 4, head = function(task)
          local head = pg.models.head(16, 2)
          pg.no_grad(function() -- always the last class of its task, louder than the first task's head
            head.linear.weight:zero_()
            head.linear.bias:copy_(pg.tensor { 0, task.first + 1 })
          end)
          made[#made + 1] = task.first
          return head
        end }
      learner:begin(1)
      local row, last = learner:evaluate(), 0
      assert.equal(2, #row)
      for _, label in ipairs(tasks[2].test.labels:totable()) do last = last + (label == 4 and 1 or 0) end
      assert.is_true(math.abs(row[2] - last / tasks[2].test.labels:numel()) < 1e-12, classes .. " classes: " .. row[2])
      assert.same({ 0, 2 }, made)
    end
  end)

  it("of zscl is drawn back by its distance, and ends at the mean of its weights", function()
    pg.seed(1)
    local clip = pg.models.clip { embed = 16, vision = { image = 32, patch = 16, width = 16, depth = 1, heads = 2,
      hidden = 16 }, text = { context = 20, vocab = 1000, width = 16, depth = 1, heads = 2, hidden = 16, eos = 999 } }
    local frozen, tokenizer = clip:frozen(), pg.tokenizer.load "recipes/clip_small"
    local learner = pg.continual.zscl({ model = clip.visual, pretrained = frozen.visual, tasks = tasks, classes = 4,
      per_class = 4, head = function(task) return pg.models.head(16, #task.classes) end, clip = frozen,
      tokenizer = tokenizer }, { references = 256, drawn = 8, every = 1, weight = 3 })
    learner:begin(1)
    local p = learner.model:parameters()[1]
    local start, before = p:clone(), learner.hooks.penalty()
    before:backward()
    assert.is_true(p.grad:abs():max():item() < 1e-4) -- the least there is
    p.grad = nil
    pg.no_grad(function() p:copy_(p + 0.5) end)
    assert.is_true(learner.hooks.penalty():item() > before:item() + 3 * 0.25 * p:numel() * 0.99)
    learner:step(1)
    pg.no_grad(function() p:copy_(p + 1) end)
    learner:step(2)
    learner:finish()
    close(start + (0 + 0.5 + 1.5) / 3, p, "mean of three", 1e-6)
  end)
end)

-- ---- training ------------------------------------------------------------------------------------------------------

describe("a sequence learnt", function()
  -- Flat pictures of four colors, two a task, and a little noise: what a narrow tower learns in seconds.
  local function colors()
    local tints = { { 220, 40, 40 }, { 40, 200, 60 }, { 50, 60, 220 }, { 220, 210, 40 } }
    local function part(first, count)
      local n = 2 * count
      local images, labels = pg.empty(n, 32, 32, 3, { dtype = "uint8" }), {}
      local bytes, draw = images:data(), pg.data.random(first * 100 + count)
      for i = 0, n - 1 do
        local tint = tints[first + i % 2 + 1]
        for k = 0, 32 * 32 * 3 - 1 do bytes[i * 3072 + k] = tint[k % 3 + 1] + draw:below(70) - 36 end
        labels[i + 1] = first + i % 2 + 1
      end
      return { images = images, labels = pg.tensor(labels, { dtype = "int32" }) }
    end
    local tasks = { setting = "classes", classes = 4 }
    for t = 1, 2 do
      local first = 2 * (t - 1)
      tasks[t] = { name = "colors " .. t, first = first, classes = { "a" .. t, "b" .. t }, train = part(first, 16),
        test = part(first, 10) }
    end
    return tasks
  end

  local function learn(name, options, setting, steps, make)
    local tasks = colors()
    tasks.setting = setting
    local learner, R = (make or learner_on)(tasks, name, options, 4), {}
    for t = 1, 2 do
      learner:begin(t)
      local adamw = pg.optim.AdamW(learner:groups(1e-2), { lr = 1e-2, weight_decay = 0 })
      for step = 1, steps do
        adamw:zero_grad()
        learner:loss():backward()
        adamw:step()
        learner:step(step)
      end
      learner:finish()
      R[t] = learner:evaluate()
    end
    return R
  end

  -- Chance is a half where the task is known, a quarter of four classes where it is not.
  for name, options in pairs { naive = {}, ewc = { samples = 8 }, lwf = { weight = 5 }, ldifs = { depths = "1,2" },
    l2sp = {}, fda = { k = 4 }, proxy_fda = { k = 4, width = 8 }, l2p = {}, dual_prompt = { general_layers = "1",
    expert_layers = "1,2" }, coda_prompt = { layers = "1,2" } } do
    it(name .. " is 20 points above chance, task by task", function()
      local R = learn(name, options, "tasks", 60)
      assert.is_true(R[1][1] > 0.8 and R[2][2] > 0.8 and pg.metrics.continual(R).last > 0.7, pg.run.encode(R))
    end)
  end

  for name, options in pairs { joint = {}, icarl = { memory = 16 },
    slca = { head_lr = 0.05, ratio = 0.001, epochs = 20 } } do
    it(name .. " is 40 points above chance, with one growing head", function()
      local R = learn(name, options, "classes", 60)
      local last = pg.metrics.continual(R).last
      assert.is_true(last > 0.65, pg.run.encode(R))
    end)
  end

  -- The project's own tower, frozen, under random heads that stay: what is learnt is in the prompts alone.
  for _, name in ipairs { "l2p", "dual_prompt", "coda_prompt" } do
    it(name .. " is 20 points above chance by its prompts alone", function()
      local clip = pg.models.load "recipes/clip_small"
      local R = learn(name, { prompt_lr = 0.05 }, "tasks", 20, function(tasks, _, options, seed)
        pg.seed(seed)
        local learner = pg.continual.new(name, { model = clip.visual, pretrained = clip.visual:frozen(), tasks = tasks,
          head = function(task) return pg.models.head(128, #task.classes) end, classes = 4, per_class = 4 }, options)
        function learner.head_parameters() return {} end
        return learner
      end)
      assert.is_true(R[1][1] > 0.7 and R[2][2] > 0.7, pg.run.encode(R))
    end)
  end

  it("zscl is 20 points above chance, task by task, though its heads stay", function()
    local tokenizer = pg.tokenizer.load "recipes/clip_small"
    local R = learn("zscl", { references = 16, drawn = 8, every = 10, weight = 1e-3 }, "tasks", 40,
      function(tasks, name, options, seed)
        pg.seed(seed)
        local clip = pg.models.clip { embed = 16, vision = { image = 32, patch = 16, width = 16, depth = 1, heads = 2,
          hidden = 16 }, text = { context = 20, vocab = 1000, width = 16, depth = 1, heads = 2, hidden = 16, eos = 999 } }
        local frozen = clip:frozen()
        return pg.continual.new(name, { model = clip.visual, pretrained = frozen.visual, tasks = tasks, classes = 4,
          per_class = 4, head = function(task) return pg.models.head(16, #task.classes) end, clip = frozen,
          tokenizer = tokenizer }, options)
      end)
    assert.is_true(R[1][1] > 0.7 and R[2][2] > 0.7 and pg.metrics.continual(R).last > 0.7, pg.run.encode(R))
  end)

  it("naive forgets with one growing head, which says that there was something to keep", function()
    local R = learn("naive", {}, "classes", 60)
    assert.is_true(R[1][1] > 0.8 and R[2][1] < 0.5, pg.run.encode(R))
  end)
end)

-- ---- a run killed --------------------------------------------------------------------------------------------------

describe("the recipe", function()
  local model, folder = "build/vit_of_continual.safetensors", os.tmpname()
  os.remove(folder)
  setup(function()
    lfs.mkdir(folder)
    pg.seed(1)
    pg.models.save(model, tower(), {})
  end)
  teardown(function()
    os.execute("rm -rf " .. folder)
    os.remove(model)
  end)

  local SMALL = "tasks=count,size setting=%s source=count splits=2 steps=3 checkpoint=1 train=48 test=24 memory=8 "
    .. "samples=4 layers=1,2 general_layers=1 expert_layers=2 k=4 classes=4 model=../" .. model .. " --threads 1 "
    .. "--seed 3 --quiet"

  local function start(methods, setting, out, resume)
    return process.start(("build/perigee run recipes/continual.lua %s %s %s"):format(
      resume and "--quiet" or "method=" .. methods .. " " .. SMALL:format(setting), resume and "--resume" or "--out",
      out), out .. ".said")
  end

  local function outcome(out)
    local result = require("cjson").decode(process.read(out .. "/result.json"))
    result.seconds = nil
    for _, row in ipairs(result.rows) do row.seconds = nil end
    local tensors, bytes = pg.safetensors.load(out .. "/checkpoint.safetensors"), {}
    for name, t in pairs(tensors) do bytes[name] = t:totable() end
    return result, bytes, process.read(out .. "/metrics.jsonl"):gsub('"%a+_bytes": %d+', "")
  end

  for methods, setting in pairs { ["ewc,proxy_fda"] = "tasks", ["icarl,coda_prompt"] = "classes" } do
    it("of " .. methods .. " ends with the same bits after being killed in the middle of the sequence", function()
      local whole, out = folder .. "/whole_" .. setting, folder .. "/killed_" .. setting
      local status, said = start(methods, setting, whole):wait()
      assert.equal(0, status, said)
      local killed = 0
      for _, count in ipairs { 2, 5, 3 } do -- checkpoints after which it is killed, in both tasks and methods
        local child = start(methods, setting, out, killed > 0)
        local seen, before = 0, lfs.attributes(out .. "/checkpoint.safetensors", "ino")
        child:await(function()
          local ino = lfs.attributes(out .. "/checkpoint.safetensors", "ino")
          if ino and ino ~= before then seen = seen + 1 end
          before = ino
          return seen >= count
        end, 60)
        child:kill(9)
        status = child:wait()
        killed = killed + (status == 137 and 1 or 0)
        assert.is_true(status == 137 or status == 0)
      end
      assert.is_true(killed >= 2, "the run was over before it was killed")
      status, said = start(methods, setting, out, true):wait()
      assert.equal(0, status, said)
      local result, tensors, metrics = outcome(whole)
      local result2, tensors2, metrics2 = outcome(out)
      assert.same(result, result2)
      assert.same(tensors, tensors2)
      assert.equal(metrics, metrics2)
    end)
  end

  it("names the nearest task and method, and says when a memory is too small", function()
    local runs = 0
    local function says(expected, arguments)
      runs = runs + 1
      local command = "build/perigee run recipes/continual.lua --quiet --out %s/wrong%d model=../%s %s"
      local status, text = process.sh(command:format(folder, runs, model, arguments))
      assert.equal(1, status, text)
      assert.is_truthy(text:find(expected, 1, true), text)
      assert.equal(1, select(2, text:gsub("\n", "\n")), text)
    end
    says("there is no task 'shap' (did you mean 'shape'?)", "tasks=count,shap")
    says("there is no method 'naiv' (did you mean 'naive'?)", "method=naiv")
    says("icarl takes no weight, got icarl:5", "method=naive,icarl:5")
    says("the weight of ewc:much is not a number", "method=ewc:much")
    says("memory: 3 images are less than one for each of 4 classes",
      "method=naive,icarl memory=3 setting=classes source=count splits=2 train=40 test=20")
  end)
end)
