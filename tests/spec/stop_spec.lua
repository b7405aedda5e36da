-- stop_spec.lua - what a stop, which Ctrl-C asks for, does to each long call of the core: it leaves in the middle of its
-- work with "interrupted", gives its memory back, and every tensor and file is as it was. The flag is set before the call, so
-- that nothing hangs on time; repl_spec.lua presses Ctrl-C.

local ffi = require "ffi"
local lfs = require "lfs"
local pg = require "perigee"
local call = require "perigee.call"
local lib = require "perigee.ffi"

local read = require("process").read

describe("a stop", function()
  local folder, flag = os.tmpname(), lib.pg_stop_flag()
  local wide, square, positions, files, big = nil, nil, nil, {}, 2 ^ 18

  setup(function()
    os.remove(folder)
    lfs.mkdir(folder)
    pg.seed(1)
    wide, square = pg.rand(600, 200), pg.randn(600, 600, { dtype = "float64" })
    square, positions = square + square:t(), pg.randperm(200)
    local picture = (pg.rand(300, 400, 3) * 255):to "uint8"
    for i, name in ipairs { "a.png", "b.jpg" } do
      files[i] = folder .. "/" .. name
      pg.image.save(files[i], picture)
    end
    pg.safetensors.save(folder .. "/t.safetensors", { wide = wide, half = wide }, nil, { dtype = "bfloat16" })
    pg.safetensors.save_sharded(folder, { a = wide, b = square }, { largest = 1000 })
    pg.npy.save(folder .. "/t.npy", wide)
    pg.npz.save(folder .. "/t.npz", { wide = wide })
    local idx = assert(io.open(folder .. "/t.idx", "wb"))
    idx:write("\0\0\8\1\0\0\0\009", "123456789")
    idx:close()
  end)
  after_each(function() flag[0] = 0 end)
  teardown(function() os.execute("rm -rf " .. folder) end)

  local function loaded(load, ...)
    local out, arguments = ffi.new "pg_tensor *[1]", { ... }
    arguments[#arguments + 1] = out
    call.check(load(unpack(arguments)))
    return call.own(out[0])
  end

  local double = { dtype = "float64" }
  local CALLS = {
    ones = function() return pg.ones(big) end,
    full = function() return pg.full({ 3, 7 }, 2) end,
    randn = function() return pg.randn(3) end,
    rand = function() return pg.rand(3) end,
    randperm = function() return pg.randperm(9) end,
    arange = function() return pg.arange(9) end,
    totable = function() return pg.tensor(wide:totable()) end,
    contiguous = function() return wide:t():contiguous() end,
    to = function() return wide:to "float64" end,
    clone = function() return wide:clone() end,
    cat = function() return pg.cat({ wide, wide }, 2) end,
    pad = function() return pg.pad(wide, { 1, 1 }) end,
    exp = function() return wide:exp() end,
    add = function() return wide + wide end,
    sum = function() return wide:sum(1) end,
    argmax = function() return wide:argmax(2) end,
    integers = function() return wide:gt(0.5):to("int32"):sum(1) end,
    softmax = function() return wide:softmax(2) end,
    columns = function() return wide:softmax(1) end,
    layer_norm = function() return pg.layer_norm(wide) end,
    normalize = function() return pg.normalize(wide, { dim = 1 }) end,
    dropout = function() return pg.dropout(wide, 0.5) end,
    index = function() return wide:index(2, positions) end,
    gather = function() return wide:gather(2, positions:reshape(1, -1):expand(600, 200)) end,
    scatter_add = function() return wide:scatter_add(2, positions:reshape(1, -1):expand(600, 200), wide) end,
    embedding = function() return pg.embedding(wide, positions) end,
    flip = function() return wide:flip { 1, 2 } end,
    cross_entropy = function() return pg.cross_entropy(wide, pg.ones(600, { dtype = "int32" })) end,
    matmul = function() return pg.ones(4000, 4000, double):matmul(pg.ones(4000, 9, double)) end,
    sort = function() return (wide:sort(1)) end,
    knn = function() return (pg.knn(wide, wide, 3)) end,
    squared_distances = function() return pg.squared_distances(wide, wide) end,
    softmin = function() return pg.softmin(wide, pg.zeros(200), { eps = 0.1 }) end,
    backward = function()
      local w = wide:clone():requires_grad_(true)
      w:exp():sum():backward()
      return w.grad
    end,
    eigh = function() return (pg.linalg.eigh(square)) end,
    nuclear_norms = function() return pg.linalg.nuclear_norms { square, square:narrow(2, 1, 600) } end,
    safetensors = function() return pg.safetensors.load(folder .. "/t.safetensors").half end,
    shards = function() return pg.safetensors.load_sharded(folder .. "/model.safetensors.index.json").b end,
    npy = function() return pg.npy.load(folder .. "/t.npy") end,
    npz = function() return pg.npz.load(folder .. "/t.npz").wide end,
    idx = function() return loaded(lib.pg_idx_load, folder .. "/t.idx") end,
    bytes = function() return loaded(lib.pg_bytes_load, folder .. "/t.idx", 100) end,
    mat = function() return loaded(lib.pg_mat_load, "tests/fixtures/sets/mixed.mat", "halves") end,
    thumbnail = function() return pg.image.thumbnail(files[1], 2) end,
    preprocess = function() return pg.data.preprocess("clip", { size = 8 })(files) end,
    concepts = function() return pg.data.concepts({ n = 20, size = 16 }).images end,
  }

  for name, long in pairs(CALLS) do
    it("ends " .. name .. ", which then gives what it gives without one", function()
      pg.seed(7)
      local expected = long()
      pg.seed(7)
      collectgarbage()
      collectgarbage()
      local before, sum = pg.memory().live, wide:sum():item()
      flag[0] = 1
      local ok, why = pcall(long)
      flag[0] = 0
      assert.is_false(ok, "it was not stopped")
      assert.are.equal("interrupted", why)
      collectgarbage()
      collectgarbage()
      assert.are.equal(before, pg.memory().live)
      assert.are.equal(sum, wide:sum():item())
      pg.seed(7)
      assert.are.equal(0, long():ne(expected):to("int32"):sum():item())
    end)
  end

  it("leaves the old file where one is written, and nothing beside it", function()
    for _, name in ipairs { "t.safetensors", "t.npy", "t.npz", "a.png", "b.jpg" } do
      local path = folder .. "/" .. name
      local old = read(path)
      local picture = pg.zeros(9, 9, 3, { dtype = "uint8" })
      flag[0] = 1
      local ok, why = pcall(function()
        if name == "t.npy" then pg.npy.save(path, square) end
        if name == "t.npz" then pg.npz.save(path, { square = square }) end
        if name == "t.safetensors" then pg.safetensors.save(path, { square = square }) end
        if name:find "g$" then pg.image.save(path, picture) end
      end)
      flag[0] = 0
      assert.is_false(ok, name)
      assert.are.equal("interrupted", why)
      assert.are.equal(old, read(path), name)
      assert.is_nil(lfs.attributes(path .. ".tmp"))
    end
  end)

  it("does not leave half of what is changed in place", function()
    local t, p = pg.zeros(big), pg.ones(big):requires_grad_(true)
    local sgd = pg.optim.SGD({ p }, { lr = 1 })
    p.grad = pg.ones(big)
    local twos = pg.full({ big }, 2)
    flag[0] = 1
    t:copy_(twos)
    sgd:step()
    flag[0] = 0
    assert.are.equal(2 * big, t:sum():item())
    assert.are.equal(0, p:sum():item())
    flag[0] = 1
    t:fill_(3)
    flag[0] = 0
    assert.are.equal(3 * big, t:sum():item())
  end)
end)
