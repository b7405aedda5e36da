-- data_spec.lua - datasets, splits, tasks and batches.

local pg = require "perigee"
local ffi = require "ffi"
local data = pg.data

local function bytes(images) return ffi.string(images:data(), images:numel()) end
local function exists(path)
  local file = io.open(path, "rb")
  if file then file:close() end
  return file ~= nil
end
local function raises(pattern, fn)
  local ok, message = pcall(fn)
  assert.is_false(ok)
  assert.is_truthy(tostring(message):match(pattern), ("'%s' does not match '%s'"):format(tostring(message), pattern))
end

describe("concepts", function()
  it("renders the same scenes from the same seed, whatever the number of threads", function()
    local threads = pg.threads()
    local a = data.concepts { n = 40, seed = 5 }
    pg.threads(1)
    local b = data.concepts { n = 40, seed = 5 }
    pg.threads(threads)
    assert.are.equal(bytes(a.images), bytes(b.images))
    assert.are_not.equal(bytes(a.images), bytes(data.concepts { n = 40, seed = 6 }.images))
  end)

  it("never moves the global generator", function()
    pg.seed(1)
    local before = pg.rng_state()
    data.task("shape", { train = 20, val = 10, test = 10 })
    assert.are.same(before, pg.rng_state())
  end)

  it("labels each scene by the task's property", function()
    for _, task in ipairs { "shape", "color", "texture", "position", "count", "size" } do
      local scenes = data.concepts { n = 30, task = task, seed = 2 }
      assert.are.same({ 30, 32, 32, 3 }, scenes.images:shape())
      for i, label in ipairs(scenes.labels:totable()) do
        local caption = scenes:caption(i)
        assert.is_truthy(caption:find(scenes.classes[label], 1, true), caption)
        local answered = false
        for _, q in ipairs(scenes:questions(i)) do
          answered = answered or q.about == task and q.answer == scenes.classes[label]
        end
        assert.is_true(answered)
      end
    end
  end)

  it("keeps held-out combinations out", function()
    local scenes = data.concepts { n = 400, hold_out = { { color = "red", shape = "star" } } }
    for i = 1, 400 do
      local caption = scenes:caption(i)
      assert.is_false(caption:find "red" ~= nil and caption:find "star" ~= nil)
    end
  end)

  it("says what is wrong", function()
    raises("did you mean 'shape'", function() data.concepts { task = "shap" } end)
    raises("did you mean 'seed'", function() data.concepts { sed = 1 } end)
    raises("outside 8..512", function() data.concepts { n = 1, size = 4 } end)
    raises("at least two properties", function() data.concepts { hold_out = { { color = "red" } } } end)
  end)
end)

describe("parts", function()
  local scenes = data.concepts { n = 200, task = "texture", seed = 3 }

  it("splits without overlap, keeping every class's share", function()
    local parts = data.split(scenes, { train = 0.7, val = 0.1, test = 0.2 }, 4)
    local seen, total = {}, 0
    for _, part in pairs(parts) do
      local n = part.labels:numel()
      total = total + n
      for i = 0, n - 1 do
        local picture = ffi.string(part.images:data() + i * 3072, 3072)
        assert.is_nil(seen[picture])
        seen[picture] = true
      end
    end
    assert.are.equal(200, total)
    local all, train = data.class_counts(scenes), data.class_counts(parts.train)
    for c, count in ipairs(all) do assert.is_true(math.abs(train[c] - 0.7 * count) <= 1) end
    local again = data.split(scenes, { train = 0.7, val = 0.1, test = 0.2 }, 4)
    assert.are.equal(bytes(parts.val.images), bytes(again.val.images))
  end)

  it("takes subsets in the order given", function()
    local part, labels = data.subset(scenes, { 7, 2, 7 }), scenes.labels:totable()
    assert.are.same({ labels[7], labels[2], labels[7] }, part.labels:totable())
  end)

  it("says what is wrong", function()
    raises("more than 1", function() data.split(scenes, { a = 0.7, b = 0.7 }) end)
    raises("would be empty", function() data.split(scenes, { a = 0.0001 }) end)
    raises("is empty", function() data.subset(scenes, {}) end)
    raises("201", function() data.subset(scenes, { 201 }) end)
    raises("200 images and 3 labels", function()
      data.split({ name = "x", images = scenes.images, labels = pg.arange(3), classes = {} }, { a = 1 })
    end)
    raises("did you mean 'texture'", function() data.task("textur") end)
  end)
end)

describe("batches", function()
  local scenes = data.concepts { n = 50, task = "color" }

  it("visits every image once an epoch, normalised, channels first", function()
    local batches, seen = data.batches { dataset = scenes, batch = 10, seed = 1 }, {}
    for _ = 1, 5 do
      local images, labels = batches:next()
      assert.are.same({ 10, 3, 32, 32 }, images:shape())
      assert.are.equal("int32", labels:dtype())
      for i = 1, 10 do
        seen[images:get(i, 1, 5, 5) + 1e3 * images:get(i, 2, 20, 9) + 1e6 * images:get(i, 3, 30, 30)] = true
      end
    end
    local distinct = 0
    for _ in pairs(seen) do distinct = distinct + 1 end
    assert.is_true(distinct >= 45)
    local x = data.to_float(scenes.images)
    assert.is_true(math.abs(x:get(3, 2, 4, 5) - (scenes.images:get(3, 4, 5, 2) / 255 - 0.5) / 0.25) < 1e-5)
  end)

  it("goes on from a saved state as if it had never stopped", function()
    local a = data.batches { dataset = scenes, batch = 16, seed = 9 }
    for _ = 1, 4 do a:next() end
    local state = a:state()
    local b = data.batches { dataset = scenes, batch = 16, seed = 0 }:restore(state)
    for _ = 1, 5 do
      local x, y = a:next()
      local u, v = b:next()
      assert.are.same(y:totable(), v:totable())
      assert.are.same(x:totable(), u:totable())
    end
  end)

  it("says what is wrong", function()
    raises("a batch of 64 from a dataset of 50", function() data.batches { dataset = scenes } end)
    raises("needs a dataset", function() data.batches { batch = 3 } end)
    local batches = data.batches { dataset = scenes, batch = 5 }
    raises("in batches of 7", function() batches:restore { n = 50, batch = 7 } end)
  end)
end)

describe("datasets of the system", function()
  it("names the package of a missing one", function()
    raises("dataset%-fashion%-mnist", function() data.fashion_mnist { path = "/nowhere" } end)
    raises("openclipart%-png", function() data.openclipart { path = "/nowhere" } end)
    raises("tuxpaint%-stamps%-default", function() data.tuxpaint { path = "/nowhere" } end)
    raises("not a folder", function() data.folder { path = "/nowhere" } end)
  end)

  it("reads Fashion-MNIST", function()
    if not exists "/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz" then
      return pending "dataset-fashion-mnist is not installed"
    end
    local test = data.fashion_mnist { split = "test" }
    assert.are.same({ 10000, 32, 32, 3 }, test.images:shape())
    for _, count in ipairs(data.class_counts(test)) do assert.are.equal(1000, count) end
    assert.are.equal("ankle boot", test.classes[test.labels:get(1)])
    assert.are.equal(0, test.images:get(1, 1, 1, 1))
  end)

  it("reads a folder of class folders, once per distinct picture, the second time from the cache", function()
    local root = os.tmpname()
    os.remove(root)
    ffi.cdef "int setenv(const char *name, const char *value, int overwrite);"
    local home = os.getenv "XDG_CACHE_HOME" or ""
    os.execute(("mkdir -p %s/tree/a %s/tree/b"):format(root, root))
    ffi.C.setenv("XDG_CACHE_HOME", root .. "/cache", 1)
    local lib = require "perigee.ffi"
    for i, name in ipairs { "a/1", "a/2", "a/3", "b/1" } do
      local picture = pg.full({ 40, 40, 3 }, i == 3 and 20 or 10 * i, { dtype = "uint8" })
      assert.are.equal(0, lib.pg_image_save(("%s/tree/%s.png"):format(root, name), picture))
    end
    local first, second = data.folder { path = root .. "/tree" }, data.folder { path = root .. "/tree" }
    assert.are.same({ 2, 1 }, data.class_counts(first))
    assert.are.equal(bytes(first.images), bytes(second.images))
    assert.are.same(first.files, second.files)
    os.execute(("mkdir %s/tree/c"):format(root))
    raises("tree/c holds no PNG", function() data.folder { path = root .. "/tree" } end)
    ffi.C.setenv("XDG_CACHE_HOME", home, 1)
    os.execute("rm -r " .. root)
  end)

  it("carries files and captions into a subset, and puts datasets side by side", function()
    local red, blue = data.concepts { n = 20, task = "color", seed = 1 }, data.concepts { n = 10, task = "shape", seed = 2 }
    local part = data.subset(red, { 20, 3 })
    assert.are.equal(red:caption(3), part:caption(2))
    local both = data.merge { red, blue }
    assert.are.equal(16, #both.classes)
    assert.are.equal(blue.labels:get(10) + 8, both.labels:get(30))
    assert.are.equal(8, #data.merge({ red, red }).classes)
    raises("needs a list", function() data.merge {} end)
  end)
end)

describe("tasks", function()
  local function pictures(...)
    local set, n = {}, 0
    for _, part in ipairs { ... } do
      local size = part.images:numel() / part.images:size(1)
      for i = 1, part.images:size(1) do
        local image = ffi.string(part.images:data() + (i - 1) * size, size)
        n = n + (set[image] and 0 or 1)
        set[image] = true
      end
    end
    return set, n
  end
  local function shared(a, b)
    local n = 0
    for image in pairs(a) do n = n + (b[image] and 1 or 0) end
    return n
  end

  it("are ten and those aside, each with a prompt and a word on whether pre-training saw its labels", function()
    assert.are.equal(10, #data.tasks())
    assert.is_true(#data.tasks { aside = true } > 10)
    for _, task in ipairs(data.tasks { aside = true }) do
      assert.is_truthy(({ seen = 1, partly = 1, ["held out"] = 1 })[task.label], task.name)
      assert.is_truthy(task.prompt:find("{}", 1, true), task.name)
    end
  end)

  it("of kinds of drawings keep openclipart's parts, 25 to 100 pictures a kind", function()
    if not exists "/usr/share/openclipart/png/animals" then pending "openclipart-png is not installed" return end
    local kind = data.task("clipart_kind", { train = 1000, val = 100, test = 1000 })
    local subject = data.task("openclipart", { train = 600, val = 50, test = 2000 })
    local all = data.merge { kind.train, kind.val, kind.test, data.pretraining "clipart_kind" }
    for c, count in ipairs(data.class_counts(all)) do
      assert.is_true(count >= 20 and count <= 100, all.classes[c] .. ": " .. count)
    end
    for i, file in ipairs(kind.test.files) do
      assert.is_truthy(file:find("/" .. kind.test.classes[kind.test.labels:get(i)] .. "/", 1, true), file)
    end
    assert.are.equal(0, shared(pictures(kind.test), (pictures(subject.train, subject.val, data.pretraining "openclipart"))))
  end)

  it("have captions from narrow to broad, and prompts", function()
    local captions = data.captions
    assert.are.same({ "a drawing of food", "a drawing of fruit", "a drawing of lemon slice", "lemon slice, fruit" },
      captions.drawing("/x/png/food/fruit/lemon_slice_02_ganson.png", "food"))
    assert.are.same({ "a drawing of signs and symbols" }, captions.drawing("/x/signs_and_symbols/01.png", "signs_and_symbols"))
    local scene = data.concepts { n = 3, seed = 5 }
    local words, texts = scene:words(2), captions.scene(scene:words(2))
    assert.are.equal(("a %s %s %s %s at the %s"):format(words.size, words.color, words.texture, words.shape,
      words.position), texts[1])
    assert.are.same({ "a photo of a t-shirt", "a photo of a 100% ankle boot" },
      captions.prompts("a photo of a {}", { "t-shirt", "100%_ankle_boot" }))
    raises("has no {} for the class's name", function() captions.prompts("a photo", { "x" }) end)
  end)

  it("show pre-training four kinds of clothes, or all ten of the same half", function()
    if not exists "/usr/share/datasets/fashion-mnist" then pending "dataset-fashion-mnist is not installed" return end
    local four, ten = data.pretraining "fashion_mnist", data.pretraining("fashion_mnist", { classes = "all" })
    assert.are.same({ 4, 10 }, { #four.classes, #ten.classes })
    assert.are.equal(30000, ten.labels:numel())
    assert.are.equal(0, shared(pictures(data.subset(ten, { 1, 2, 3, 4, 5, 6, 7, 8 })), (pictures(data.task("fashion_mnist",
      { train = 3000, test = 3000 }).train))))
  end)

  it("never show a test picture in training, for any seed, nor across tasks of one source", function()
    if not exists "/usr/share/openclipart/png/animals" then pending "openclipart-png is not installed" return end
    local pretraining = pictures(data.pretraining "openclipart")
    local first = data.task("openclipart", { train = 300, test = 300, seed = 1 })
    local other = data.task("openclipart", { train = 900, test = 2000, seed = 2 })
    local turned = data.task("clipart_rotation", { train = 600, val = 50, test = 2000 })
    local tests = pictures(first.test, other.test)
    assert.are.equal(0, shared(tests, pictures(first.train, first.val, other.train, other.val, turned.train, turned.val)))
    assert.are.equal(0, shared(pretraining, tests))
    assert.are.equal(0, shared(pretraining, pictures(first.train, other.train, turned.test, turned.train)))
    raises("has no part for pre%-training", function() data.pretraining "tuxpaint" end)
  end)

  it("draw scenes of their own, the same tests for every seed", function()
    local a = data.task("shape", { train = 30, val = 20, test = 40, seed = 1 })
    local b = data.task("color", { train = 30, val = 20, test = 40, seed = 1 })
    local c = data.task("shape", { train = 30, val = 20, test = 40, seed = 2 })
    assert.are.equal(0, shared(pictures(a.train, a.val, a.test), (pictures(b.train, b.val, b.test))))
    assert.are.equal(0, shared(pictures(a.train), (pictures(a.test, a.val))))
    assert.are.equal(bytes(a.test.images), bytes(c.test.images))
    assert.are_not.equal(bytes(a.train.images), bytes(c.train.images))
  end)
end)
