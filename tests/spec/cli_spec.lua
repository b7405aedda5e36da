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

-- A recipe of 400 kB a checkpoint that fails when it is told to.
local FRAGILE = [=[
local pg = require "perigee"
local opt = pg.recipe { name = "fragile", options = { { "steps", 6 }, { "size", 100000 }, { "bad", "none" } } }
local run = pg.run.open(opt)
local saved, w, first = run:restore(), pg.zeros(opt.size):requires_grad_(true), 1
if saved then
  saved:into { w = w }
  first = saved.state.step + 1
end
for step = first, opt.steps do
  if step == 4 and os.getenv "STOP" then error "stopped" end
  local features = pg.randn(opt.size)
  if step == 4 and opt.bad == "features" then features = features * (0 / 0) end
  local loss = (w * features):sum()
  run:check_finite(step, { task_loss = loss }, { ["blocks.1.w"] = w })
  if step == 4 and opt.bad == "loss" then run:check_finite(step, { l2sp = loss * math.huge }, { ["blocks.1.w"] = w }) end
  if step == 4 and opt.bad == "parameter" then features = features * (1 / 0) end
  pg.no_grad(function() w:copy_(w + features) end)
  if opt.bad == "parameter" and step == 5 then run:check_finite(step, { loss = w:sum() }, { ["blocks.1.w"] = w }) end
  run:log { step = step }
  if step % 2 == 0 and not (opt.bad == "parameter" and step == 4 and os.getenv "LATE") then
    run:checkpoint({ w = w }, { step = step })
  end
end
run:finish { w = w:sum():item() }
]=]

describe("the command line", function()
  local toy, fragile

  setup(function()
    folder = os.tmpname()
    os.remove(folder)
    lfs.mkdir(folder)
    toy, fragile = write("toy.lua", TOY), write("fragile.lua", FRAGILE)
  end)

  teardown(function() os.execute("rm -rf '" .. folder .. "'") end)

  it("answers --version and --help everywhere", function()
    local status, said = sh(PERIGEE .. " --version")
    assert.equal(0, status)
    assert.truthy(said:match "^perigee %d+%.%d+%.%d+\n$")
    for _, command in ipairs { "", "run", "repl", "report", "watch", "inspect", "doctor" } do
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
      ["run " .. toy .. " --seed x"] = "whole number",
      ["run " .. toy .. " --seed 1e20"] = "0 to 9007199254740992", ["run " .. toy .. " --threads 0"] = "1 to 1024",
      ["run " .. toy .. " --threads 5000"] = "1 to 1024", ["run " .. toy .. " --out ''"] = "--out: needs a value",
      ["run " .. toy .. " --resume"] = "--resume: needs a value", ["run " .. toy .. " --device gpu"] = "cpu or cuda",
      ["run " .. toy .. " --resume " .. folder .. "/none"] = "it has no config.json",
      ["run " .. toy .. " --out " .. folder .. "/x --resume " .. folder] = "give one of them",
      ["run " .. folder .. "/none.lua"] = "cannot read the recipe", ["repl a b"] = "one file at a time",
      ["run " .. toy .. " --resume " .. folder] = "not a run folder",
      ["--versoin"] = "unknown option '--versoin' (did you mean '--version'",
      ["inspekt x"] = "did you mean 'inspect'", ["doctor all"] = "takes no 'all'", ["inspect a b"] = "one file at a time",
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
    local status, said = sh("PERIGEE_CUDA=/no/such/plugin.so " .. PERIGEE .. " run " .. toy .. " --device cuda")
    assert.equal(1, status)
    assert.truthy(said:find("--device cuda: device \"cuda\" is not available: there is no plug-in /no/such/plugin.so", 1, true))
    assert.equal(1, select(2, said:gsub("\n", "")), said)
  end)

  it("names the op that made a value that is not finite, with PERIGEE_DEBUG=1", function()
    local script = write("debug.lua", 'local pg = require "perigee"\npg.zeros(3):log()\n')
    local status, said = sh(("%s run '%s' --out '%s/quiet'"):format(PERIGEE, script, folder))
    assert.equal(0, status, said)
    status, said = sh(("PERIGEE_DEBUG=1 %s run '%s' --out '%s/debug'"):format(PERIGEE, script, folder))
    assert.equal(1, status)
    assert.truthy(said:find("debug.lua:2: log: 3 values are not finite, though all inputs are", 1, true), said)
  end)

  it("runs any Lua file, with a folder of its own, and from any working directory", function()
    local plain = write("plain.lua", "")
    local here = lfs.currentdir()
    local status = sh(("cd / && '%s/%s' run '%s' --out '%s/plain'"):format(here, PERIGEE, plain, folder))
    assert.equal(0, status)
    assert.equal("plain", cjson.decode(read(folder .. "/plain/config.json")).recipe)
  end)

  it("says before a plain script runs what is wrong with its folder", function()
    local plain = write("loud.lua", "print 'it ran'")
    local function run(rest) return sh(("%s run '%s' %s"):format(PERIGEE, plain, rest)) end
    local status, said = run("--seed 1 --out '" .. folder .. "/loud'")
    assert.equal(0, status, said)
    status, said = run("--seed 2 --out '" .. folder .. "/loud'")
    assert.equal(1, status)
    assert.equal(("perigee: %s/loud was run with seed=1, not 2: choose another folder\n"):format(folder), said)
    status, said = run("--out '" .. plain .. "'")
    assert.equal(1, status)
    assert.equal(("perigee: cannot make the folder %s: File exists\n"):format(plain), said)
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

  it("inspects an array, its NaN counted and not averaged", function()
    local pg, array = require "perigee", folder .. "/array.npy"
    pg.npy.save(array, pg.tensor { 1, 2, 0 / 0 })
    local status, said = sh(PERIGEE .. " inspect " .. array)
    assert.equal(0, status, said)
    assert.truthy(said:find "float32" and said:find "1.5", said)
  end)

  it("inspects an archive of arrays, and a checkpoint of several files by its index", function()
    local status, said = sh(PERIGEE .. " inspect tests/fixtures/files/stored.npz")
    assert.equal(0, status, said)
    assert.truthy(said:find "weights +%(2, 3, 4%) +float32" and said:find "10 tensors, 298 parameters", said)
    status, said = sh(PERIGEE .. " inspect tests/fixtures/files/sharded/model.safetensors.index.json")
    assert.equal(0, status, said)
    assert.truthy(said:find "head.bias" and said:find "5 tensors, 50 parameters, 200 B" and said:find "total_size: 196", said)
    status, said = sh(PERIGEE .. " inspect tests/fixtures/files/plain.npz.json")
    assert.equal(1, status, said)
  end)

  -- ---- what goes wrong: one line, status 1, and the last checkpoint stays ----------------------------------------------

  -- Runs a command that must fail. @return the one line that it prints
  local function fails(command, ...)
    local status, said = sh(command)
    assert.equal(1, status, said)
    assert.equal(1, select(2, said:gsub("\n", "")), said)
    for _, words in ipairs { ... } do assert.is_truthy(said:find(words, 1, true), said) end
    return said
  end

  local function tensor_at(out)
    local tensors, data = require("perigee.safetensors").load(out .. "/checkpoint.safetensors")
    return tensors.w, cjson.decode(data.state).step
  end

  -- An untouched run, and one that was stopped behind its checkpoint of step 2.
  local function stopped_run(name)
    local out = folder .. "/" .. name
    if not lfs.attributes(folder .. "/fragile", "mode") then
      assert.equal(0, (sh(("%s run %s --out %s/fragile"):format(PERIGEE, fragile, folder))))
    end
    fails(("STOP=1 %s run %s --out %s"):format(PERIGEE, fragile, out), "stopped")
    assert.equal(2, select(2, tensor_at(out)))
    return out
  end

  local function assert_goes_on(out)
    assert.equal(2, select(2, tensor_at(out)))
    assert.is_nil(lfs.attributes(out .. "/checkpoint.safetensors.tmp", "size"))
    assert.equal(0, (sh(("%s run %s --resume %s"):format(PERIGEE, fragile, out))))
    assert.same(tensor_at(folder .. "/fragile"):totable(), tensor_at(out):totable())
  end

  it("keeps the last checkpoint when a file may not grow", function()
    local out = stopped_run "limited"
    fails(("(ulimit -f 100; %s run %s --resume %s)"):format(PERIGEE, fragile, out), "cannot write", "checkpoint.safetensors",
      "File too large")
    assert_goes_on(out)
  end)

  it("keeps the last checkpoint when the disk is full", function()
    local disk = folder .. "/disk"
    lfs.mkdir(disk)
    if sh(("unshare -m mount -t tmpfs none %s"):format(disk)) ~= 0 then
      pending "mounting a small disk needs root; the limit on a file's size stands for it"
      return
    end
    local out = stopped_run "copied"
    -- 1 MiB holds the checkpoint and the next one; 300 kB are taken away
    fails(("unshare -m sh -c 'mount -t tmpfs -o size=1m none %s && cp -r %s %s/run && head -c 400000 /dev/zero >%s/more && "
      .. "%s run %s --resume %s/run; status=$?; cp %s/run/checkpoint.safetensors %s; rm %s/run/checkpoint.safetensors.tmp "
      .. "2>%s/gone; exit $status'"):format(disk, out, disk, disk, PERIGEE, fragile, disk, disk, out, disk, folder),
      "cannot write", "No space left on device")
    assert_goes_on(out)
  end)

  it("does not die of a full disk while it says so", function()
    if not lfs.attributes("/dev/full", "mode") then pending "there is no /dev/full" return end
    local out = stopped_run "full"
    os.remove(out .. "/log.txt")
    assert(lfs.link("/dev/full", out .. "/log.txt", true))
    fails(("STOP=1 %s run %s --resume %s"):format(PERIGEE, fragile, out), "stopped")
    os.remove(out .. "/metrics.jsonl")
    assert(lfs.link("/dev/full", out .. "/metrics.jsonl", true))
    os.remove(out .. "/log.txt")
    os.remove(out .. "/checkpoint.safetensors")
    fails(("%s run %s --out %s"):format(PERIGEE, fragile, out), "cannot write", "metrics.jsonl", "No space left on device")
  end)

  it("stops at the first NaN, naming step, term and parameter", function()
    for bad, words in pairs {
      features = { "step 4: task_loss is not finite", "every parameter is finite" },
      loss = { "step 4: l2sp is not finite", "every parameter is finite" },
      parameter = { "step 4: 'w' is not finite and is not saved" }, -- the checkpoint that would have replaced a good one
    } do
      local out = folder .. "/bad_" .. bad
      fails(("%s run %s bad=%s --out %s"):format(PERIGEE, fragile, bad, out), "the last checkpoint is kept", unpack(words))
      local w, step = tensor_at(out)
      assert.equal(2, step)
      assert.is_true(require("perigee").is_finite(w))
      assert.is_nil(lfs.attributes(out .. "/result.json", "size"))
    end
    fails(("LATE=1 %s run %s bad=parameter --out %s/bad_late"):format(PERIGEE, fragile, folder), "step 5: task_loss",
      "parameter 'blocks.1.w' is not finite")
    fails(("%s run recipes/end_to_end.lua method=l2sp weight=1e39 steps=2 probe=40 test=50 train=64 probe_steps=1 --out %s/inf")
      :format(PERIGEE, folder), "step 1: l2sp is not finite")
  end)

  it("refuses a folder that it cannot use", function()
    local whole = stopped_run "other"
    fails(("%s run %s --out %s"):format(PERIGEE, toy, whole), "belongs to the recipe 'fragile', not 'toy'")
    fails(("%s run %s --out /dev/null"):format(PERIGEE, toy), "cannot make the folder /dev/null")
    fails(("%s run %s --out /proc/none/x"):format(PERIGEE, toy), "cannot make the folder /proc/none")
    lfs.mkdir(folder .. "/broken")
    write("broken/config.json", '{"recipe": "to')
    fails(("%s run %s --out %s/broken"):format(PERIGEE, toy, folder), "broken/config.json is not the configuration of a run")
    local status, said = sh(("%s run %s --resume %s/broken"):format(PERIGEE, toy, folder))
    assert.equal(2, status)
    assert.is_truthy(said:find("broken/config.json cannot be read", 1, true), said)
    local half = read(whole .. "/checkpoint.safetensors"):sub(1, 5000)
    write("other/checkpoint.safetensors", half)
    fails(("%s run %s --resume %s"):format(PERIGEE, fragile, whole), "other/checkpoint.safetensors", "the file holds")
    fails(("%s inspect %s/checkpoint.safetensors"):format(PERIGEE, whole), "other/checkpoint.safetensors", "the file holds")
    if sh "setpriv --reuid 65534 --clear-groups true" == 0 then
      lfs.mkdir(folder .. "/locked")
      fails(("setpriv --reuid 65534 --clear-groups %s run %s --out %s/locked"):format(PERIGEE, toy, folder),
        "Permission denied")
    end
  end)

  it("shows a run: what was asked, what came out, what is saved", function()
    local out = folder .. "/shown"
    local script = write("shown.lua", [=[
      local pg = require "perigee"
      local opt = pg.recipe { name = "shown", options = { { "k", 8 }, { "method", "fda" } } }
      local run = pg.run.open(opt)
      if os.getenv "SHORT" then return end
      run:finish { task = "color", curve = pg.arange(100):totable(), before = { color = 0.5, size = 0.25 },
        rows = { { method = "naive", a_lp = 0.75, tasks = { size = 0 } }, { method = "fda", a_lp = 0.5, weight = 10 } } }]=])
    assert.equal(0, (sh(("SHORT=1 %s run %s --out %s"):format(PERIGEE, script, out))))
    local status, said = sh(PERIGEE .. " inspect " .. out)
    assert.equal(0, status)
    assert.is_truthy(said:find("not finished", 1, true) and said:find("no checkpoint", 1, true), said)
    assert.equal(0, (sh(("%s run %s --out %s"):format(PERIGEE, script, out))))
    status, said = sh(PERIGEE .. " inspect " .. out)
    assert.equal(0, status)
    for _, words in ipairs { "recipe   shown, seed 1, cpu\n", "options  k=8 method=fda\n", "task     color\n", "... 100 values\n",
      "before   color 0.5, size 0.25\n", "\nrows\nmethod  a_lp  weight\nnaive   0.75\nfda      0.5      10\n" } do
      assert.is_truthy(said:find(words, 1, true), words .. said)
    end
  end)

  it("installs, runs from there whatever the folder, and uninstalls without a trace", function()
    local root = folder .. "/root"
    local target = (" DESTDIR=%s PREFIX=/usr"):format(root)
    local status, said = sh("make -o all install" .. target)
    assert.equal(0, status, said)
    local script = write("where.lua", "print(require('perigee.util').folder)")
    status, said = sh(("cd / && %s/usr/bin/perigee run %s --out %s/installed"):format(root, script, folder))
    assert.equal(0, status, said)
    assert.equal(root .. "/usr/share/perigee/lua/perigee/\n", said)
    status, said = sh(("cd / && %s/usr/bin/perigee run %s --out %s/installed_toy --quiet"):format(root, toy, folder))
    assert.equal(0, status, said)
    assert.is_truthy(read(folder .. "/installed_toy/result.json"):find '"w"')
    status, said = sh(("cd / && %s/usr/bin/perigee run %s/usr/share/perigee/recipes/end_to_end.lua --help"):format(root, root))
    assert.equal(0, status, said)
    status, said = sh("make uninstall" .. target)
    assert.equal(0, status, said)
    assert.is_nil(lfs.attributes(root .. "/usr", "mode"))
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
    local status, said = sh(PERIGEE .. " repl",
      "1 + 1\nfor i = 1, 2 do\nprint(i * 10)\nend\nerror(\"boom\")\npg.ones(2):shape()\n")
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
