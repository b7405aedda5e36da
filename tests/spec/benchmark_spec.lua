-- benchmark_spec.lua - what a run of the forgetting benchmark does and measures, on features that can be told by hand.

local pg = require "perigee"
local benchmark = pg.benchmark

local function raises(pattern, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  assert.is_truthy(tostring(message):find(pattern, 1, true), message)
end

describe("the benchmark", function()
  local names = { "shape", "color" }
  -- A picture's colours in 4 x 4 fields, and nothing else.
  local function colors(images)
    local x = pg.data.to_float(images)
    return x:reshape(x:size(1), 3, 4, 8, 4, 8):mean(6):mean(4):reshape(x:size(1), 48)
  end
  local function bench(more)
    local options = { tasks = names, encode = colors, train = 100, probe = 300, test = 60, steps = 60, lrs = { 0.1, 1 } }
    for key, value in pairs(more or {}) do options[key] = value end
    return benchmark.new(options)
  end

  it("finds that nothing changed when nothing was done", function()
    local result = bench():measure(colors, "shape")
    assert.are.equal(0, result.delta_lp)
    assert.are.same({ color = 0 }, result.tasks)
    assert.are.same({ color = 0, shape = 0 }, result.l2)
    assert.is_nil(result.otdd)
  end)

  it("finds what was forgotten", function()
    local b = bench { drift = 40 }
    local result = b:measure(function(images) return colors(images) * 0 + 1 end, "shape")
    assert.is_true(b:before "color".accuracy > 0.2)
    assert.is_true(result.tasks.color < -0.1)
    assert.is_true(result.l2.color > 0.5)
    assert.is_true(result.otdd.color > 0.1)
    assert.are.equal(result.tasks.color, result.delta_lp)
  end)

  it("trains and tests the fine-tuned task on parts of its own", function()
    local b = bench()
    assert.are.equal(100, b:train "shape".labels:numel())
    assert.are.equal(60, b:before("shape", true).labels:numel())
    assert.are.equal(60, b:images("shape"):size(1))
  end)

  it("plans every method with every weight on every task", function()
    local plan = benchmark.plan({ "a", "b" }, "naive,linear_probe,wise_ft,fda:10,l2sp", "0.1,1", { "l2sp", "fda" })
    local told = {}
    for i, row in ipairs(plan) do
      told[i] = ("%s %s %s %s"):format(row.task, row.method, tostring(row.weight), row.head)
    end
    assert.are.same({ "a naive nil random", "a linear_probe nil nil", "a wise_ft 0.1 text", "a wise_ft 1 text", "a fda 10 probe",
      "a l2sp 0.1 probe", "a l2sp 1 probe" }, { unpack(told, 1, 7) })
    assert.are.equal(14, #plan)
    assert.are.equal(0.5, benchmark.plan({ "a" }, "wise_ft", "own", {})[1].weight)
    assert.is_nil(benchmark.plan({ "a" }, "fda", "own", { "fda" })[1].weight)
  end)

  it("refuses what it does not know, naming the nearest", function()
    raises("method: there is no 'lpft' (did you mean 'lp_ft'?)", benchmark.plan, { "a" }, "lpft", "own", {})
    raises("method: naive takes no weight, got naive:3", benchmark.plan, { "a" }, "naive:3", "own", {})
    raises("weight: 'heavy' is not a number", benchmark.plan, { "a" }, "fda:heavy", "own", { "fda" })
    raises("task: there is no 'shapes' (did you mean 'shape'?)", benchmark.tasks, "color,shapes")
    assert.are.equal(10, #benchmark.tasks "all")
    assert.are.same({ "position" }, benchmark.tasks "position")
    assert.are.same({ "b", "a", "c" }, benchmark.join({ "b", "a" }, { "a", "c" }))
  end)

  it("starts heads from nothing, from a probe, from the classes' texts", function()
    local features, labels = pg.randn(40, 8), pg.tensor({ 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4,
      1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4 }, { dtype = "int32" })
    local clip = pg.models.clip { embed = 8, vision = { image = 8, patch = 4, width = 8, depth = 1, heads = 1, hidden = 16 },
      text = { context = 6, vocab = 40, width = 8, depth = 1, heads = 1, hidden = 16, eos = 39 } }
    local tokenizer = { batch = function(_, texts)
      local ids = {}
      for i, text in ipairs(texts) do ids[i] = { 38, #text % 7 + 1, text:byte(-1) % 30, 39 } end
      return pg.tensor(ids, { dtype = "int32" })
    end }
    local o = { width = 8, classes = { "ant", "bee", "carp", "duck" }, features = features, labels = labels, steps = 40,
      clip = clip, tokenizer = tokenizer, prompt = "a {}" }
    local before = pg.heads.new("random", o):loss(features, labels):item()
    assert.is_true(pg.heads.new("probe", o):loss(features, labels):item() < before - 0.1)
    local head, ids = pg.heads.new("text", o), tokenizer:batch { "a ant", "a bee", "a carp", "a duck" }
    local wanted = features:normalize():matmul(clip:encode_text(ids):normalize():t()) * clip.logit_scale:exp()
    assert.is_true((head(features) - wanted):abs():max():item() < 1e-4)
    -- FLYP, by hand on two images of one class and one of another.
    local flyp = pg.heads.new("flyp", o)
    local x, y = features:narrow(1, 1, 3), pg.tensor({ 2, 2, 4 }, { dtype = "int32" })
    local texts = clip:encode_text(ids):normalize():index(1, y)
    local logits = (x:normalize():matmul(texts:t()) * clip.logit_scale:exp()):detach()
    local rows, columns = 0, 0
    for i = 1, 3 do
      rows = rows - logits:log_softmax(2):get(i, i) / 3
      columns = columns - logits:log_softmax(1):get(i, i) / 3
    end
    local loss = flyp:loss(x, y)
    assert.is_true(math.abs(loss:item() - (rows + columns) / 2) < 1e-5)
    loss:backward()
    assert.is_not_nil(clip.text.tokens.weight.grad)
    assert.is_nil(clip.logit_scale.grad) -- it stays as it was trained
    assert.are.equal(#clip.text:parameters(), #flyp:parameters())
    o.clip = nil
    raises("needs a model with a text tower", pg.heads.new, "flyp", o)
  end)

  it("mixes weights as WiSE-FT does", function()
    local a, b = pg.nn.Linear(3, 2), pg.nn.Linear(3, 2)
    local wanted = (a.weight * 0.25 + b.weight * 0.75):totable()
    pg.models.mix(a, b, 0.25)
    assert.is_true((a.weight - pg.tensor(wanted)):abs():max():item() < 1e-7)
    raises("share must be from 0 to 1", pg.models.mix, a, b, 1.5)
    raises("parameters to mix with", pg.models.mix, a, pg.nn.Sequential(a, b), 1)
  end)
end)
