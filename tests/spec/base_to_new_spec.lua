-- base_to_new_spec.lua - the few-shot protocol: halves, draws, lists, the table's arithmetic, and data sets of CoOp's
-- layout made here.

local lfs = require "lfs"
local cjson = require "cjson"
local pg = require "perigee"
local protocol = pg.base_to_new

local root = os.tmpname()
os.remove(root)

local function put(name, bytes)
  local path = root .. "/" .. name
  for at in path:gmatch "()/" do lfs.mkdir(path:sub(1, at - 1)) end
  local file = assert(io.open(path, "wb"))
  file:write(bytes)
  file:close()
  return path
end

local function ppm(r, g, b) return "P6\n4 4\n255\n" .. string.char(r, g, b):rep(16) end

local fails = require("expect").fails

describe("the protocol", function()
  teardown(function() os.execute("rm -rf " .. root) end)

  it("halves classes as CoOp does: the first ceil(n / 2) are base", function()
    assert.are.same({ { 1, 2, 3 }, { 4, 5 } }, { protocol.halves(5) })
    assert.are.same({ { 1, 2 }, { 3, 4 } }, { protocol.halves(4) })
    fails("1 class cannot be halved", protocol.halves, 1)
  end)

  it("draws as many of each class, fewer among more, others for validation, and not more than there are", function()
    local labels, names = {}, { "ant", "bee" }
    for i = 1, 30 do labels[i] = (i - 1) % 3 + 1 end
    local four, val = protocol.draw(labels, names, 4, 7)
    local count, used = {}, {}
    for _, i in ipairs(four) do
      count[labels[i]], used[i] = (count[labels[i]] or 0) + 1, true
    end
    assert.are.same({ 4, 4 }, count)
    assert.are.equal(8, #val)
    for _, i in ipairs(val) do assert.is_nil(used[i]) end
    for _, i in ipairs((protocol.draw(labels, names, 2, 7))) do assert.is_true(used[i]) end
    assert.are_not.same(four, (protocol.draw(labels, names, 4, 8)))
    assert.are.same(four, (protocol.draw(labels, names, 4, 7)))
    assert.are.equal(0, #select(2, protocol.draw(labels, names, 10, 7)))
    fails("11 shots of class 'ant', which has 10 training images", protocol.draw, labels, names, 11, 1)
  end)

  it("averages as the paper's table does", function()
    -- CoOp's row of CoOp's and CoCoOp's tables: 82.69 base and 63.22 new have the harmonic mean 71.66.
    assert.is_true(math.abs(protocol.harmonic(0.8269, 0.6322) - 0.7166) < 5e-5)
    assert.are.equal(0, protocol.harmonic(0, 0))
    local rows, zero_shot = {}, { a = { new = 0.5 }, b = { new = 0.7 } }
    for _, row in ipairs { { "a", 1, 0.9, 0.4 }, { "a", 2, 0.7, 0.6 }, { "b", 1, 0.6, 0.8 }, { "b", 2, 0.6, 1 } } do
      rows[#rows + 1] = { task = row[1], seed = row[2], base = row[3], new = row[4], shots = 4, method = "m",
        transfer = { c = row[3] } }
    end
    local lines = protocol.table(rows, function(name) return zero_shot[name] end)
    assert.are.equal(1, #lines)
    local line, a = lines[1], lines[1].tasks[1]
    local function near(want, got) assert.is_true(math.abs(want - got) < 1e-12, got) end
    near(0.8, a.base)
    near(0.5, a.new)
    near(0, a.delta_new)
    near(math.tan(0.475 * math.pi) * 0.1, a.half) -- Student's t of one degree of freedom
    near(0.8 / 1.3, a.h)
    near(0.7, line.base)
    near(0.7, line.new)
    near(0.7, line.h) -- of the averages
    near((0.8 / 1.3 + 2 * 0.6 * 0.9 / 1.5) / 2, line.mean_h)
    near(0.1, line.delta_new)
    near(0.7, line.transfer.c)
  end)

  it("finds the images of an exported list by the end of their paths", function()
    local files = { "/data/pets/images/cat_1.jpg", "/data/pets/images/dog_1.jpg", "/data/pets/images/dog_2.jpg" }
    local list = put("shots.json", cjson.encode { train = { { "dog_2.jpg", 1, "dog" }, "images/cat_1.jpg" }, val = {} })
    assert.are.same({ 3, 1 }, protocol.listed(list, files, "train"))
    fails("its part 'val' is empty", protocol.listed, list, files, "val")
    fails("it must be JSON {test", protocol.listed, list, files, "test")
    put("shots.json", cjson.encode { train = { "bird.jpg" } })
    fails("bird.jpg is not among the training images", protocol.listed, list, files, "train")
    fails("No such file", protocol.listed, root .. "/none.json", files, "train")
  end)

  it("runs on a data set of CoOp's layout, its list beside the pictures, its shots from a list", function()
    local split, colors = { train = {}, val = {}, test = {} }, { { 255, 0, 0 }, { 0, 255, 0 }, { 0, 0, 255 } }
    for c, name in ipairs { "red_thing", "green_thing", "blue_thing" } do
      for i = 1, 4 do
        local path = ("%s_%d.ppm"):format(name, i)
        put("sets/oxford_pets/images/" .. path, ppm(unpack(colors[c])))
        table.insert(i <= 3 and split.train or split.test, { path, c - 1, name })
      end
    end
    put("sets/oxford_pets/split_zhou_OxfordPets.json", cjson.encode(split))
    put("shots_2_1.json", cjson.encode { train = { { "red_thing_3.ppm", 0, "red_thing" },
      { "green_thing_1.ppm", 1, "green_thing" }, { "blue_thing_2.ppm", 2, "blue_thing" } } })
    local stderr = io.stderr
    rawset(io, "stderr", { write = function() end }) -- of the small number of pictures
    local ok, why = pcall(function()
      local o = { clip = pg.models.load "recipes/clip_small", tokenizer = pg.tokenizer.load "recipes/clip_small",
        tasks = { "oxford_pets" }, transfer = { "color" }, root = root .. "/sets", test = 40, pool = 40 }
      local bench = protocol.new(o)
      local task = bench:task("oxford_pets", 2, 1)
      assert.are.same({ "red thing", "green thing" }, task.classes)
      assert.are.equal("a photo of a {}, a type of pet.", task.prompt)
      assert.are.same({ 1, 1, 2, 2 }, task.labels:totable())
      assert.are.equal(2, task.val.labels:numel())
      assert.are.same({ 4, 32, 32, 3 }, task.images:shape())
      local result = bench:test(pg.few_shot.new("zero_shot", task), task, "oxford_pets")
      assert.are.equal(1, result.new) -- one name alone
      assert.is_true(result.transfer.color > 0.5)
      assert.are.equal(result.base, bench:zero_shot("oxford_pets").base)
      fails("4 shots of class 'red thing', which has 3 training images", bench.task, bench, "oxford_pets", 4, 1)
      o.shots_list = root .. "/shots_{shots}_{seed}.json"
      local listed = protocol.new(o):task("oxford_pets", 2, 1)
      assert.are.same({ 1, 2 }, listed.labels:totable())
      assert.are.equal(255, listed.images:get(1, 9, 9, 1))
      assert.are.equal(0, listed.images:get(2, 9, 9, 1))
    end)
    rawset(io, "stderr", stderr)
    assert.is_true(ok, tostring(why))
  end)

  it("reads aircraft by its own lists", function()
    put("sets/fgvc_aircraft/variants.txt", "A1\nB 2\n")
    for _, part in ipairs { "train", "val", "test" } do
      put("sets/fgvc_aircraft/images_variant_" .. part .. ".txt", "0000001 B 2\n0000002 A1\n")
    end
    for i = 1, 2 do put(("sets/fgvc_aircraft/images/000000%d.jpg"):format(i), ppm(i, i, i)) end
    local stderr = io.stderr
    rawset(io, "stderr", { write = function() end })
    local ok, set = pcall(pg.data.load, "fgvc_aircraft", { root = root .. "/sets", split = "val" })
    put("sets/fgvc_aircraft/images_variant_test.txt", "0000001 C3\n")
    local bad, why = pcall(pg.data.load, "fgvc_aircraft", { root = root .. "/sets", split = "test" })
    rawset(io, "stderr", stderr)
    assert.is_true(ok, tostring(set))
    assert.are.same({ 2, 1 }, set.labels:totable())
    assert.are.same({ "A1", "B 2" }, set.classes)
    assert.is_false(bad)
    assert.is_truthy(tostring(why):find("line 1 must be NUMBER VARIANT", 1, true))
  end)

  it("plans rows, and refuses what it does not know in one line", function()
    local bench = protocol.new { tasks = { "shape", "color" }, clip = {}, tokenizer = {} }
    local plan = bench:plan("coop,clap+fda:2", "1,16", 2)
    assert.are.equal(16, #plan)
    assert.are.same({ task = "shape", shots = 1, seed = 1, method = "clap+fda:2" }, plan[2])
    fails("shots: 'few' is not a whole number", bench.plan, bench, "coop", "few", 1)
    fails("no method 'koop' (did you mean 'coop'?)", bench.plan, bench, "koop", "1", 1)
    fails("task: there is no 'shap' (did you mean 'shape'?)", bench.task, bench, "shap", 1, 1)
    fails("names no task, method", bench.plan, bench, "", "1", 1)
  end)

  it("tries a plan whole before anything is trained", function()
    local bench = protocol.new { clip = pg.models.load "recipes/clip_small", transfer = { "color" }, pool = 60, test = 40,
      tokenizer = pg.tokenizer.load "recipes/clip_small", tasks = { "shape", "texture" }, templates = { "one {}", "{}" } }
    local function check(text, shots, settings)
      bench:check(bench:plan(text, shots, 1), settings and function() return settings end)
    end
    check("zero_shot,coop,maple+fda,tip_adapter_f+proxy_fda", "2,3")
    assert.are.same({ "one {}", "{}" }, bench:task("shape", 1, 1).templates)
    fails("texture: few_shot: +fda needs 3 classes or images, and there are 2", check, "coop+fda", "2")
    fails("shape: few_shot: 30 shots of class 'circle', which has", check, "zero_shot", "30")
    fails("shape: coop: length = 0", check, "coop", "1", { length = 0 })
    bench.loaded.texture.base_names[2] = " "
    fails("texture: few_shot.task: class 2 has no name", check, "coop", "1")
    for _, names in ipairs { { tasks = { "shap" } }, { tasks = { "shape" }, transfer = { "shap" } } } do
      names.clip, names.tokenizer, names.pool, names.test = bench.options.clip, bench.options.tokenizer, 60, 40
      local other = protocol.new(names)
      fails("task: there is no 'shap' (did you mean 'shape'?)", other.check, other, other:plan("zero_shot", "1", 1))
    end
  end)

  it("numbers draws from the first that is asked for, and tests what was learnt on other tasks by their names", function()
    local bench = protocol.new { clip = pg.models.load "recipes/clip_small", pool = 200, test = 80, tasks = { "shape" },
      tokenizer = pg.tokenizer.load "recipes/clip_small", transfer = { "color", "shape" } }
    local plan = bench:plan("coop", "2", 2, 7)
    assert.are.same({ 7, 8 }, { plan[1].seed, plan[2].seed })
    local task = bench:task("shape", 2, 7)
    local learner = pg.few_shot.coop(task)
    local found = bench:test(learner, task, "shape").transfer
    assert.is_nil(found.shape) -- not another one
    local color = bench.loaded.color
    local texts = learner.classes(color.names, color.prompt).texts
    local named = task:encode(color.every.images):matmul(texts:t())
    assert.are.equal(pg.metrics.accuracy(named, color.every.labels), found.color)
    pg.no_grad(function() learner.module.context:copy_(pg.randn(4, 128) * 5) end) -- a context that says other things
    assert.is_true(bench:test(learner, task, "shape").transfer.color < found.color)
  end)

  it("gives a method the settings that it has", function()
    local pick = pg.few_shot.pick
    assert.are.same({ length = 2, place = "front" }, pick("coop+fda", "length=2, place=front,depth=3"))
    assert.are.same({ length = 2, depth = 3 }, pick("maple", "length=2,place=front,depth=3"))
    assert.are.same({ specific = true }, pick("coop", "specific=true"))
    assert.are.same({}, pick("zero_shot", "none"))
    fails("no method has the option 'lenght' (did you mean 'length'?)", pick, "coop", "lenght=2")
    fails("'length' must be name=value", pick, "coop", "length")
  end)
end)
