-- The command line, spawned as a person would: exit statuses, one clear line an error, run folders, resume.

local lfs = require "lfs"
local cjson = require "cjson"

local PERIGEE = "build/perigee"
local folder

-- Runs a shell command; returns its status and what it printed, stderr included.
local function sh(command, input)
  local feed = input and ("printf '%s' '" .. input:gsub("'", "'\\''"):gsub("%%", "%%%%") .. "' | ") or ""
  local pipe = io.popen("{ " .. feed .. command .. " ; } 2>&1; echo \":$?\"")
  local said, status = pipe:read "*a":match "^(.*):(%d+)\n$"
  pipe:close()
  return tonumber(status), said
end

local function write(name, text)
  local path = folder .. "/" .. name
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
  return path
end

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end

local TOY = [[
local pg = require "perigee"
local opt = pg.recipe { name = "toy", help = "A toy.", options = {
  { "steps", 6, min = 1, help = "steps" }, { "lr", 0.5, max = 1 }, { "method", "naive", choices = { "naive", "l2sp" } } } }
local run = pg.run.open(opt)
local saved, w, first = run:restore(), pg.zeros(3, { dtype = "float64" }), 1
if saved then
  saved:into { w = w }
  first = saved.state.step + 1
end
for step = first, opt.steps do
  w = w + pg.randn(3, { dtype = "float64" }) * opt.lr
  run:log { step = step, loss = w:sum():item() }
  if step % 2 == 0 then run:checkpoint({ w = w }, { step = step }) end
  if step == 5 and os.getenv "STOP" then error "stopped" end
  if os.getenv "WAIT" then
    run:say "waiting"
    while not run:interrupted() do pg.randn(1000):sum() end
    run:checkpoint({ w = w }, { step = step })
    return
  end
end
run:finish { w = w:totable() }
]]

describe("the command line", function()
  local toy

  setup(function()
    folder = os.tmpname()
    os.remove(folder)
    lfs.mkdir(folder)
    toy = write("toy.lua", TOY)
  end)

  teardown(function() os.execute("rm -rf '" .. folder .. "'") end)

  it("answers --version and --help everywhere", function()
    local status, said = sh(PERIGEE .. " --version")
    assert.equal(0, status)
    assert.truthy(said:match "^perigee %d+%.%d+%.%d+\n$")
    for _, command in ipairs { "", "run", "repl", "inspect", "doctor" } do
      status, said = sh(PERIGEE .. " " .. command .. " --help")
      assert.equal(0, status)
      assert.truthy(said:match "^usage: perigee")
    end
  end)

  it("gives status 2 and the nearest word for a wrong use", function()
    for command, words in pairs {
      ["ran"] = "did you mean 'run'", ["run"] = "which recipe", ["run " .. folder] = "cannot read",
      ["run " .. toy .. " step=3"] = "did you mean 'steps'", ["run " .. toy .. " steps=0"] = "1 or more",
      ["run " .. toy .. " steps=1.5"] = "whole number", ["run " .. toy .. " method=l3sp"] = "did you mean 'l2sp'",
      ["run " .. toy .. " lr=2"] = "1 or less", ["run " .. toy .. " --thread 2"] = "did you mean '--threads'",
      ["run " .. toy .. " --seed x"] = "whole number", ["run " .. toy .. " --resume " .. folder] = "not a run folder",
      ["inspect"] = "which file",
    } do
      local status, said = sh(PERIGEE .. " " .. command)
      assert.equal(2, status, command)
      assert.truthy(said:find(words, 1, true), said)
      assert.equal(1, select(2, said:gsub("\n", "")), said)
    end
  end)

  it("prints a recipe's options", function()
    local status, said = sh(PERIGEE .. " run " .. toy .. " --help")
    assert.equal(0, status)
    assert.truthy(said:find("steps=6", 1, true) and said:find("one of naive, l2sp", 1, true))
  end)

  it("says in one line that there is no CUDA plug-in", function()
    local status, said = sh(PERIGEE .. " run " .. toy .. " --device cuda")
    assert.equal(1, status)
    assert.truthy(said:find "no CUDA plug%-in")
  end)

  it("runs any Lua file, with a folder of its own, and from any working directory", function()
    local plain = write("plain.lua", "")
    local here = lfs.currentdir()
    local status = sh(("cd / && '%s/%s' run '%s' --out '%s/plain'"):format(here, PERIGEE, plain, folder))
    assert.equal(0, status)
    assert.equal("plain", cjson.decode(read(folder .. "/plain/config.json")).recipe)
  end)

  it("gives status 1, one line, and the traceback in log.txt, when a recipe fails", function()
    local status, said = sh("STOP=1 " .. PERIGEE .. " run " .. toy .. " --out " .. folder .. "/failed")
    assert.equal(1, status)
    assert.truthy(said:find "stopped")
    assert.equal(1, select(2, said:gsub("\n", "")))
    assert.truthy(read(folder .. "/failed/log.txt"):find "stack traceback")
  end)

  it("resumes to the same bits, with no line of metrics doubled", function()
    local whole, parts = folder .. "/whole", folder .. "/parts"
    assert.equal(0, (sh(PERIGEE .. " run " .. toy .. " --seed 7 --out " .. whole)))
    assert.equal(1, (sh("STOP=1 " .. PERIGEE .. " run " .. toy .. " --seed 7 --out " .. parts)))
    assert.equal(0, (sh(PERIGEE .. " run " .. toy .. " --resume " .. parts)))
    assert.equal(read(whole .. "/result.json"):match '"w".-\n', read(parts .. "/result.json"):match '"w".-\n')
    local steps = {}
    for line in io.lines(parts .. "/metrics.jsonl") do steps[#steps + 1] = cjson.decode(line).step end
    assert.same({ 1, 2, 3, 4, 5, 6 }, steps)
    local status, said = sh(PERIGEE .. " inspect " .. parts)
    assert.equal(0, status)
    assert.truthy(said:find "float64" and said:find "3 parameters, 24 B")
  end)

  it("refuses a folder of other options", function()
    local status, said = sh(PERIGEE .. " run " .. toy .. " steps=9 --seed 7 --out " .. folder .. "/whole")
    assert.equal(1, status)
    assert.truthy(said:find("steps=6, not 9", 1, true))
  end)

  it("saves a checkpoint and gives status 130 when interrupted", function()
    local out = folder .. "/stopped"
    local status, said = sh(("WAIT=1 timeout --foreground --preserve-status -k 5 -s INT 0.5 %s run %s --out %s")
      :format(PERIGEE, toy, out))
    assert.equal(130, status)
    assert.truthy(said:find("--resume " .. out, 1, true), said)
    assert.truthy(lfs.attributes(out .. "/checkpoint.safetensors", "size"))
  end)

  it("names the command that continues, also where the recipe left by an error after its checkpoint", function()
    local late = write("late.lua", [[
      local pg = require "perigee"
      local run = pg.run.open(pg.recipe { name = "late", options = {} })
      if os.getenv "SAVE" then run:checkpoint({}, { step = 1 }) end
      error("interrupted", 0)]])
    local status, said = sh(("SAVE=1 %s run %s --out %s/late"):format(PERIGEE, late, folder))
    assert.equal(130, status)
    assert.truthy(said:find("continue with: perigee run " .. late .. " --resume " .. folder .. "/late", 1, true), said)
    status, said = sh(("%s run %s --out %s/early"):format(PERIGEE, late, folder))
    assert.equal(130, status)
    assert.truthy(said:find("before a checkpoint", 1, true), said)
  end)

  it("reads lines in the REPL, and an error does not end it", function()
    local status, said = sh(PERIGEE .. " repl", "1 + 1\nfor i = 1, 2 do\nprint(i * 10)\nend\nerror(\"boom\")\npg.ones(2):shape()\n")
    assert.equal(0, status)
    for _, words in ipairs { "2\n", "10\n20\n", "boom", "{2}" } do assert.truthy(said:find(words, 1, true), said) end
  end)

  it("shows the machine", function()
    local status, said = sh(PERIGEE .. " doctor")
    assert.equal(0, status)
    for _, word in ipairs { "cpu", "simd", "blas", "threads", "gpu", "data", "gnuplot" } do
      assert.truthy(said:find("\n" .. word, 1, true) or said:find("^" .. word), word)
    end
  end)
end)
