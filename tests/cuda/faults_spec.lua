-- faults_spec.lua - what goes wrong on the device is said where values are next read, in one line, and the library goes
-- on: positions out of range, memory that does not suffice, a plug-in that is not there.

local pg = require "perigee"
local process = require "process"
local device = require "cuda.device"

local function on_device(values, dtype) return pg.tensor(values, { dtype = dtype }):to("cuda") end
local function positions(values) return on_device(values, "int32") end

-- The message of what fn raises, without the place in the source.
local function failure(fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, "no error")
  return (tostring(message):gsub("^[%w_/%.]+:%d+: ", ""))
end

-- Runs Lua text in a process of its own. @return its status, and what it printed
local function child(text, settings)
  local path = os.tmpname()
  local file = assert(io.open(path, "w"))
  file:write 'local pg = require "perigee"\n'
  file:write(text)
  file:close()
  local status, said = process.sh(("env %s luajit %s"):format(settings, path))
  os.remove(path)
  return status, said
end

describe("a position out of range", function()
  local x, other
  before_each(function()
    x, other = on_device({ { 1, 2, 3 }, { 4, 5, 6 } }, "float32"), on_device({ 7, 8 }, "float32")
  end)

  -- The device goes on after the error that a read has raised, and the error is not raised again.
  local function works_on()
    assert.are.same({ 7, 8 }, other:totable())
    assert.are.same({ { 4, 5, 6 }, { 1, 2, 3 } }, x:index(1, positions { 2, 1 }):totable())
    assert.are.same({ { 3 }, { 4 } }, x:gather(2, positions { { 3 }, { 1 } }):totable())
  end

  for name, case in pairs {
    index = { function() return x:index(2, positions { 1, 3, 4 }) end,
      "index on cuda: index, element 3 = 4 is outside 1..3: x (2, 3), index (3)" },
    embedding = { function() return pg.embedding(x, positions { { 1, 2 }, { 0, 1 } }) end,
      "embedding on cuda: index, element 3 = 0 is outside 1..2: weight (2, 3), index (2, 2)" },
    gather = { function() return x:gather(2, positions { { 1, 2, 3 }, { 1, -7, 3 } }) end,
      "gather on cuda: index, element 5 = -7 is outside 1..3: x (2, 3), index (2, 3)" },
    scatter_add = {
      function() return x:scatter_add(2, positions { { 99 }, { 1 } }, on_device({ { 1 }, { 1 } }, "float32")) end,
      "scatter_add on cuda: index, element 1 = 99 is outside 1..3: x (2, 3), index (2, 1), src (2, 1)",
    },
  } do
    it(("of %s is an error of the next read"):format(name), function()
      local y = case[1]() -- nothing has been waited for
      assert.are.equal(case[2], failure(y.totable, y))
      works_on()
    end)
  end

  it("is an error of whatever is read next, not only of what it spoilt", function()
    local y = x:index(1, positions { 3 })
    assert.are.equal("index on cuda: index, element 1 = 3 is outside 1..2: x (2, 3), index (1)",
      failure(other.totable, other))
    assert.are.equal(3, #y:totable()[1]) -- said once
    works_on()
  end)

  it("leaves zeros there and the rest as it should be", function()
    local y = x:index(1, positions { 2, 5, 1 })
    failure(other.totable, other)
    assert.are.same({ { 4, 5, 6 }, { 0, 0, 0 }, { 1, 2, 3 } }, y:totable())
    local sum = x:scatter_add(2, positions { { 1, 9 }, { 3, 3 } }, on_device({ { 10, 10 }, { 10, 10 } }, "float32"))
    failure(other.totable, other)
    assert.are.same({ { 11, 2, 3 }, { 4, 5, 26 } }, sum:totable())
  end)

  it("is named by the first call that met one", function()
    local _ = x:index(1, positions { 3 })
    _ = pg.embedding(x, positions { 4 })
    assert.is_truthy(failure(other.totable, other):find("index on cuda: index, element 1 = 3", 1, true))
    works_on()
  end)

  it("is found by the backward pass, too", function()
    x:requires_grad_(true)
    local y = x:index(1, positions { 1, 4, 1 })
    failure(other.totable, other)
    y:backward(pg.ones(3, 3):to("cuda"))
    assert.is_truthy(failure(other.totable, other):find("index on cuda: index, element 2 = 4 is outside 1..2", 1, true))
    assert.are.same({ { 2, 2, 2 }, { 0, 0, 0 } }, x.grad:totable())
  end)

  it("is remembered with its call for the thousand calls after it", function()
    local good, bad = positions { 1 }, positions { 8 }
    local _ = x:index(1, bad)
    for _ = 1, 1000 do x:index(1, good):free() end
    assert.are.equal("index on cuda: index, element 1 = 8 is outside 1..2: x (2, 3), index (1)",
      failure(other.totable, other))
    _ = x:index(1, bad)
    for _ = 1, 1100 do x:index(1, good):free() end
    assert.is_truthy(failure(other.totable, other):find("element 1 = 8 is outside 1..2", 1, true))
    works_on()
  end)
end)

describe("memory of the device that does not suffice", function()
  local SMALL = device.simulated and "PERIGEE_SIMT_MEMORY=64000000" or nil -- bytes

  it("is one line that says what is live, and the next call works", function()
    local held = pg.zeros(250000, { device = "cuda" })
    local message = failure(pg.zeros, 1e6, 1e7, { device = "cuda" })
    assert.is_truthy(message:find "^out of memory on cuda: 40000000%.0 MB asked for while %d+ tensors hold %d+%.%d MB$",
      message)
    assert.are.equal(0, held:exp():log():to("cpu"):totable()[250000])
  end)

  if not SMALL then return end

  it("is made by giving back what the cache holds", function()
    local status, said = child([[
      local a, b = pg.zeros(4e6, { device = "cuda" }), pg.zeros(4e6, { device = "cuda" })
      a:free() b:free()
      print(pg.memory("cuda").cached >= 32e6)
      local c = pg.zeros(12e6, { device = "cuda" }) -- 48 MB beside 32 in the cache
      print(pg.memory("cuda").cached < 1e6, c:to("cpu"):get(12e6))
    ]], SMALL)
    assert.are.equal("true\ntrue\t0\n", said)
    assert.are.equal(0, status)
  end)

  it("is made by collecting what Lua has dropped", function()
    local status, said = child([[
      collectgarbage "stop"
      for i = 1, 20 do
        local t = pg.zeros(4e6, { device = "cuda" }):exp() -- an op's output as well as a tensor asked for
        if i == 20 then print(t:to("cpu"):get(4e6)) end
      end
    ]], SMALL)
    assert.are.equal("1\n", said)
    assert.are.equal(0, status)
  end)

  it("says how much is held, and is no end", function()
    local status, said = child([[
      local held = {}
      local ok, message = pcall(function()
        for i = 1, 10 do held[i] = pg.zeros(4e6, { device = "cuda" }) end
      end)
      print(ok, #held, (message:gsub("^.-:%d+: ", "")))
      ok, message = pcall(held[1].exp, held[1])
      print(ok, (message:gsub("^.-:%d+: ", "")))
      held[2]:free()
      print(held[1]:exp():to("cpu"):get(4e6))
    ]], SMALL)
    local line = "out of memory on cuda: 16.0 MB asked for while 3 tensors hold 48.8 MB\n"
    assert.are.equal("false\t3\t" .. line .. "false\t" .. line .. "1\n", said)
    assert.are.equal(0, status)
  end)
end)

describe("--device cuda without its plug-in", function()
  local recipe = os.tmpname()
  setup(function()
    local file = assert(io.open(recipe, "w"))
    file:write 'print "it ran"\n'
    file:close()
  end)
  teardown(function() os.remove(recipe) end)

  -- The sanitised plug-in's preload stays out of a plain program.
  local function run(setting)
    return process.sh(("env -u LD_PRELOAD PERIGEE_CUDA=%s build/perigee run %s --device cuda"):format(setting, recipe))
  end

  for setting, reason in pairs {
    ["/nowhere/libperigee_cuda.so"] = 'device "cuda" is not available: there is no plug-in /nowhere/libperigee_cuda.so',
    ["./Makefile"] = 'device "cuda" is not available: ./Makefile: ',
    ["build/libperigee.so"] = 'device "cuda" is not available: build/libperigee.so is no plug-in of Perigee',
    simulated = "PERIGEE_CUDA=simulated: is sim, the simulated device, or the path of a plug-in",
  } do
    it(("is one line: %s"):format(setting), function()
      local status, said = run(setting)
      assert.are.equal(1, status)
      assert.is_truthy(said:find("perigee: --device cuda: " .. reason, 1, true), said)
      assert.are.equal(#said, said:find "\n", said)
    end)
  end
end)
