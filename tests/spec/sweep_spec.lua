-- sweep_spec.lua - sweeps on this machine: what a file expands to, what is refused, what happens to runs that fail, stop
-- early, are interrupted or killed. tests/workbench has the long versions, and Slurm.

local ffi = require "ffi"
local lfs = require "lfs"
local cjson = require "cjson"
local pg = require "perigee"
local process = require "process"
local sweeps = require "sweeps"

local INT, KILL = 2, 9
local home, folder = lfs.currentdir(), sweeps.folder()
local PERIGEE = home .. "/build/perigee"
sweeps.write(folder .. "/walk.lua", sweeps.RECIPE)

teardown(function()
  for _, pid in ipairs(sweeps.processes("sweep", folder)) do ffi.C.kill(pid, KILL) end
  os.execute("rm -rf '" .. folder .. "'")
end)

-- Writes a sweep file whose runs go to a folder of its own. @return its path, and that folder
local function sweep_file(name, fields)
  local runs = folder .. "/runs/" .. name
  return sweeps.write(("%s/%s.lua"):format(folder, name), ([[
    local pg = require "perigee"
    local s = pg.sweep
    return { recipe = "walk.lua", folder = %q, %s }
  ]]):format(runs, fields)), runs
end

local function expand(name, fields) return pg.sweep.expand(pg.sweep.load((sweep_file(name, fields)))) end

local function sh(format, ...) return process.sh("timeout -s KILL 60 " .. format:format(...)) end

local function names(runs)
  local list = {}
  for i, run in ipairs(runs) do list[i] = run.name end
  return list
end

local function await(seconds, fn)
  local last = pg.now() + seconds
  repeat
    local found = fn()
    if found then return found end
    ffi.C.usleep(10000)
  until pg.now() > last
  error("it did not come", 2)
end

describe("a sweep file", function()
  it("is every point of the grid with every sample and seed, the same each time", function()
    local fields = "seeds = { 3, 5 }, samples = 4, options = { kind = { 'plain', 'drift' }, lr = s.log_uniform(1e-3, 1),"
      .. "steps = s.integer(1, 9), bias = s.uniform(-1, 1), every = s.choice { 1, 3 } }"
    local runs = expand("grid", fields)
    assert.are.equal(2 * 4 * 2, #runs)
    assert.are.same(runs, expand("grid", fields))
    local lrs, seen = {}, {}
    for i, run in ipairs(runs) do
      local o = run.options
      assert.is_true(o.lr >= 1e-3 and o.lr <= 1 and o.steps >= 1 and o.steps <= 9 and o.steps % 1 == 0)
      assert.is_true(math.abs(o.bias) <= 1 and (o.every == 1 or o.every == 3))
      assert.are.equal(i <= 8 and 3 or 5, run.seed)
      assert.are.equal(run.id .. "-" .. run.seed, run.name)
      assert.is_nil(seen[run.name])
      lrs[o.lr], seen[run.name] = true, true
    end
    local count = 0
    for _ in pairs(lrs) do count = count + 1 end
    assert.are.equal(4, count) -- a sample has the same draws at each point of the grid
    assert.are_not.same(names(runs), names(expand("grid", fields .. ", draw = 2")))
  end)

  it("draws uniformly, and uniformly in the logarithm", function()
    local sum, squares, low, n = 0, 0, 0, 2000
    for _, run in ipairs(expand("draws", "samples = 2000, options = { bias = s.uniform(0, 1), lr = s.log_uniform(1e-4, 1) }")) do
      sum, squares = sum + run.options.bias, squares + run.options.bias ^ 2
      if run.options.lr < 1e-2 then low = low + 1 end
    end
    assert.is_true(math.abs(sum / n - 1 / 2) < 4 * math.sqrt(1 / 12 / n), sum / n)
    assert.is_true(math.abs(squares / n - 1 / 3) < 4 * math.sqrt(4 / 45 / n), squares / n)
    assert.is_true(math.abs(low / n - 1 / 2) < 4 * math.sqrt(1 / 4 / n), low / n)
  end)

  it("keeps the runs that it had when it is edited", function()
    local before = expand("edited", "samples = 2, options = { kind = { 'plain' }, lr = s.uniform(0, 1) }")
    local after = expand("edited", "samples = 3, options = { kind = { 'plain', 'drift' }, lr = s.uniform(0, 1), steps = 12 }")
    local ids = {}
    for _, run in ipairs(after) do ids[run.name] = run.options end
    assert.are.equal(6, #after)
    for _, run in ipairs(before) do -- steps = 12 is the recipe's default, and makes no other run
      assert.are.equal(run.options.lr, ids[run.name].lr)
    end
  end)

  it("gives an option only where its condition holds, and drops combinations", function()
    local runs = expand("conditions", [[options = { kind = { "plain", "drift" },
      bias = s.when({ kind = "drift" }, { 1, 2, 3 }), steps = s.when({ bias = { 2, 3 } }, { 4, 5 }),
      every = s.when(function(o) return o.kind == "drift" and o.lr == 0.5 and o.steps ~= 12 end, 7) },
      drop = { { kind = "drift", bias = 3, steps = 5 } }]])
    local list = {}
    for i, run in ipairs(runs) do list[i] = pg.run.encode(run.options) end
    table.sort(list)
    assert.are.same({ '{"bias": 1, "kind": "drift"}', '{"bias": 2, "every": 7, "kind": "drift", "steps": 4}',
      '{"bias": 2, "every": 7, "kind": "drift", "steps": 5}', '{"bias": 3, "every": 7, "kind": "drift", "steps": 4}',
      '{"kind": "plain"}' }, list)
    assert.are.equal(1, #expand("dropped", "options = { lr = { 0.1, 0.2 } }, drop = function(o) return o.lr > 0.15 end"))
    assert.are.equal(1, #expand("double", "options = { lr = { 0.1, 0.1 } }"))
  end)

  it("is refused in one line that names file and field, with status 2, before anything starts", function()
    for fields, words in pairs {
      ["options = { ler = 0.1 }"] = "options.ler: walk: unknown option 'ler' (did you mean 'lr'?)",
      ["options = { lr = { 0.1, 3 } }"] = "options.lr: lr=3: must be a number from 0 to 1",
      ["options = { lr = s.uniform(0, 1.5) }, samples = 2"] = "options.lr: lr=1.5: must be",
      ["options = { kind = { 'dirft' } }"] = "options.kind: kind=dirft: must be one of plain, drift (did you mean 'drift'?)",
      ["options = { steps = 1.5 }"] = "options.steps: steps=1.5: must be a whole number",
      ["options = { lr = {} }"] = "options.lr: a list of values is empty",
      ["options = { lr = s.uniform(0, 1) }"] = "options.lr is drawn at random: give samples",
      ["samples = 3"] = "samples: nothing in options is drawn at random",
      ["options = { lr = s.uniform(1, 0) }"] = "sweep.uniform: needs two numbers, the lesser first, got 1 and 0",
      ["options = { lr = s.log_uniform(0, 1) }"] = "sweep.log_uniform: begins above 0",
      ["option = {}"] = "there is no field 'option' (did you mean 'options'?)",
      ["seeds = 'many'"] = "seeds: a number of seeds, or a list of them",
      ["seeds = { 1.5 }"] = "seeds: must be whole numbers, 0 or more, got 1.5",
      ["metric = 'score'"] = "direction: must be \"max\" or \"min\", got nil",
      ["device = 'gpu'"] = "device: is cpu or cuda, got 'gpu'",
      ["retries = -1"] = "retries: must be a whole number, 0 or more",
      ["stop = { metric = 'score', direction = 'max' }"] = "stop: needs first",
      ["stop = { metric = 'score', direction = 'max', first = 3, factor = 1 }"] = "stop: factor: must be above 1",
      ["slurm = { partiton = 'x' }"] = "slurm: there is no field 'partiton' (did you mean 'partition'?)",
      ["drop = function() return true end"] = "drop leaves no run",
      ["drop = function(o) return o.x.y end"] = "drop: ",
      ["options = { lr = s.when({ kind = 'x' }, 0.1) }"] = "options.kind: kind=x: must be one of",
      ["options = { lr = s.when({ bias = 1 }, 0.1), bias = s.when({ lr = 0.1 }, 1) }"] = "its condition hangs on itself",
    } do
      local file, runs = sweep_file("wrong", fields)
      local status, said = sh("%s sweep %s", PERIGEE, file)
      assert.are.equal(2, status, fields .. "\n" .. said)
      assert.is_truthy(said:find("wrong.lua", 1, true) and said:find(words, 1, true), fields .. "\n" .. said)
      assert.are.equal(1, select(2, said:gsub("\n", "")), said)
      assert.is_nil(lfs.attributes(runs, "mode"))
    end
    local other = sweeps.write(folder .. "/other.lua", "return { recipe = 'wlak.lua' }")
    local number = sweeps.write(folder .. "/number.lua", "return 3")
    for arguments, words in pairs {
      [other] = "recipe: there is no file 'wlak.lua'", [number] = "must return a table, it returns number",
      [folder .. "/none.lua"] = "cannot read the sweep file", [""] = "which file?", [other .. " b"] = "one file at a time",
      [other .. " --launcher pbs"] = "is local or slurm, got 'pbs'", [other .. " --jobs 0"] = "whole number, 1 to",
      [other .. " --job 2"] = "did you mean '--jobs'", [folder .. " --task x-1"] = "sweep.json is no plan of a sweep",
      [folder .. " --array x"] = "SLURM_ARRAY_TASK_ID is not set",
    } do
      local status, said = sh("%s sweep %s", PERIGEE, arguments)
      assert.are.equal(2, status, arguments)
      assert.is_truthy(said:find(words, 1, true), said)
    end
    local status, said = sh("%s sweep --help", PERIGEE)
    assert.are.equal(0, status)
    assert.is_truthy(said:find("--launcher local|slurm", 1, true) and said:find("--resume", 1, true), said)
  end)
end)

describe("figures over seeds", function()
  it("are mean and half of Student's 95% interval", function() -- scipy.stats.t.interval(0.95, n - 1, mean, sem)
    local summary = require "perigee.sweep.summary"
    local mean, half = summary.interval { 1, 2, 3, 4 }
    assert.are.equal(2.5, mean)
    assert.is_true(math.abs(half - 2.0542603) < 1e-3, half)
    mean, half = summary.interval { 0.71, 0.73, 0.69, 0.74, 0.70 }
    assert.is_true(math.abs(mean - 0.714) < 1e-12 and math.abs(half - 0.0257467) < 1e-4, half)
    assert.is_nil(select(2, summary.interval { 1 }))
  end)
end)

describe("a local sweep", function()
  it("runs all, says what was best, and does nothing twice", function()
    local file, runs = sweep_file("whole", "seeds = 2, metric = 'rows.1.lr', direction = 'max', "
      .. "options = { lr = { 0.1, 0.2, 0.3 }, steps = 4 }")
    local status, said = sh("%s sweep %s --jobs 2", PERIGEE, file)
    assert.are.equal(0, status, said)
    assert.is_truthy(said:find("[6/6]", 1, true) and said:find("whole: 6 of 6 runs done", 1, true), said)
    assert.is_truthy(said:find("\n1        0.3  ± 0      2  lr=0.3   " .. runs, 1, true), said)
    sweeps.assert_whole(runs)
    local config = sweeps.json(runs .. "/" .. sweeps.planned(runs)[1].name .. "/config.json")
    assert.are.equal(math.max(1, math.floor(require("perigee.process").processors() / 2)), config.threads)
    local before = lfs.attributes(runs .. "/" .. sweeps.planned(runs)[1].name .. "/result.json")
    status, said = sh("%s sweep %s", PERIGEE, file)
    assert.are.equal(2, status)
    assert.is_truthy(said:find("6 of 6 runs in " .. runs .. " have been begun: add --resume to go on", 1, true), said)
    status, said = sh("%s sweep %s --resume", PERIGEE, file)
    assert.are.equal(0, status, said)
    local after = lfs.attributes(runs .. "/" .. sweeps.planned(runs)[1].name .. "/result.json")
    assert.are.equal(before.ino, after.ino)
    sweep_file("whole", "seeds = 2, metric = 'score', direction = 'min', options = { lr = { 0.1, 0.2, 0.4 }, steps = 4 }")
    status, said = sh("%s sweep %s --resume", PERIGEE, file) -- an edited grid: what is new is done, what is old stays
    assert.are.equal(0, status, said)
    assert.is_truthy(said:find("2 of 6 runs to do", 1, true) and said:find("6 of 6 runs done", 1, true), said)
    assert.are.equal(8, sweeps.assert_indexed(runs))
    status, said = sh("%s sweep %s --list", PERIGEE, file)
    assert.are.equal(0, status)
    assert.are.equal(6, select(2, said:gsub("done ", "")), said)
  end)

  it("shares out processors and passes values as they are", function()
    local odd = [[a b'c"$(touch hurt)\nd]]
    sweeps.write(folder .. "/odd.lua", [=[
      local pg = require "perigee"
      local opt = pg.recipe { name = "odd", options = { { "text", "" }, { "more", "x" } } }
      local cpus
      for line in io.lines "/proc/self/status" do cpus = line:match "^Cpus_allowed_list:%s*(.*)" or cpus end
      pg.run.open(opt):finish { text = opt.text, more = opt.more, omp = os.getenv "OMP_NUM_THREADS", cpus = cpus }
    ]=])
    local runs = folder .. "/runs/odd"
    local file = sweeps.write(folder .. "/odd_sweep.lua", ("return { recipe = 'odd.lua', folder = %q, threads = 1, "
      .. "options = { text = { %q, 3 } } }"):format(runs, odd))
    local status, said = sh("%s sweep %s --jobs 2", PERIGEE, file)
    assert.are.equal(0, status, said)
    local seen = {}
    for _, planned in ipairs(sweeps.planned(runs)) do
      local result = sweeps.json(("%s/%s/result.json"):format(runs, planned.name))
      assert.are.equal(planned.options.text, result.text)
      assert.are.equal("1", result.omp)
      seen[result.text], seen[#seen + 1] = true, result.cpus
    end
    assert.is_true(seen[odd] and seen["3"])
    assert.is_nil(lfs.attributes(folder .. "/hurt", "mode") or lfs.attributes("hurt", "mode"))
    if require("perigee.process").processors() >= 2 then
      assert.is_truthy(seen[1]:match "^%d+$" and seen[2]:match "^%d+$" and seen[1] ~= seen[2], seen[1] .. " and " .. seen[2])
    end
  end)

  it("records what fails with its error, and goes on", function()
    local file, runs = sweep_file("failing", "metric = 'score', direction = 'max', "
      .. "options = { steps = 6, bad = { 'error', 'crash', 'silent', 'no' } }")
    local status, said = sh("%s sweep %s --jobs 2", PERIGEE, file)
    assert.are.equal(1, status, said)
    assert.is_truthy(said:find("1 of 4 runs done, 3 failed", 1, true), said)
    for bad, words in pairs { error = "walk.lua:22: this one fails", crash = "crashed: segmentation fault (signal 11)",
      silent = "the recipe ended without run:finish" } do
      for _, planned in ipairs(sweeps.planned(runs)) do
        if planned.options.bad == bad then
          local failed = sweeps.json(("%s/%s/failed.json"):format(runs, planned.name))
          assert.are.equal(1, failed.attempts)
          assert.is_truthy(failed.error:find(words, 1, true), failed.error)
        end
      end
      assert.is_truthy(said:find(words, 1, true), said)
    end
    assert.are.equal(4, sweeps.assert_indexed(runs))
    status, said = sh("%s sweep %s --resume", PERIGEE, file) -- what has failed stays failed
    assert.are.equal(1, status, said)
    status, said = sh("%s sweep %s --resume --retries 2", PERIGEE, file)
    assert.are.equal(1, status, said)
    for _, planned in ipairs(sweeps.planned(runs)) do
      local failed = process.read(("%s/%s/failed.json"):format(runs, planned.name))
      assert.are.equal(planned.options.bad ~= "no" and 3 or nil, failed and cjson.decode(failed).attempts)
    end
  end)

  it("starts a failed run again, from its checkpoint, as often as it is told", function()
    local file, runs = sweep_file("once", "retries = 1, options = { bad = 'once' }")
    local status, said = sh("%s sweep %s", PERIGEE, file)
    assert.are.equal(0, status, said)
    sweeps.assert_whole(runs)
  end)

  it("refuses a second sweep in its folder, and a run in a folder that is in use", function()
    local file, runs = sweep_file("alone", "options = { wait = 0.3 }")
    local sweep = process.start(("%s sweep %s"):format(PERIGEE, file), folder .. "/said")
    await(10, function() return lfs.attributes(runs .. "/index.sqlite", "mode") and #sweeps.processes("--task", runs) == 1 end)
    local status, said = sh("%s sweep %s --resume", PERIGEE, file)
    assert.are.equal(1, status, said)
    assert.is_truthy(said:match "^perigee: [^\n]* is in use by another sweep: process %d+ on [^\n]*\n$", said)
    local run = runs .. "/" .. sweeps.planned(runs)[1].name
    await(10, function() return process.read(run .. "/config.json") end)
    status, said = sh("%s run %s/walk.lua --resume %s", PERIGEE, folder, run)
    assert.are.equal(1, status, said)
    assert.is_truthy(said:match "is in use by process %d+ on ", said)
    sweep:kill(KILL)
    sweep:wait()
  end)

  it("refuses a folder whose runs had other options", function()
    local file, runs = sweep_file("changed", "options = { steps = 2, lr = 0.25 }")
    assert.are.equal(0, (sh("%s sweep %s", PERIGEE, file)))
    local path = runs .. "/" .. sweeps.planned(runs)[1].name .. "/config.json"
    sweeps.write(path, (process.read(path):gsub("0.25", "0.75")))
    local status, said = sh("%s sweep %s --resume", PERIGEE, file)
    assert.are.equal(2, status)
    assert.is_truthy(said:find("was run with lr=0.75, not 0.25: move it away", 1, true), said)
  end)

  it("makes its index anew, whatever has become of it", function()
    local file, runs = sweep_file("indexed", "seeds = 3, metric = 'score', direction = 'max', options = { on = false }")
    assert.are.equal(0, (sh("%s sweep %s --jobs 2", PERIGEE, file)))
    assert.are.equal(3, sweeps.assert_indexed(runs))
    sweeps.write(runs .. "/index.sqlite", "no data base")
    local status, said = sh("%s sweep %s --reindex", PERIGEE, file)
    assert.are.equal(0, status, said)
    assert.is_truthy(said:find("index.sqlite: 3 runs", 1, true), said)
    assert.are.equal(3, sweeps.assert_indexed(runs))
  end)

  it("says which path the metric may have meant", function()
    local file = sweep_file("metric", "metric = 'rows.1.rl', direction = 'max', options = { steps = 1 }")
    local _, said = sh("%s sweep %s", PERIGEE, file)
    assert.is_truthy(said:find("no finished run has a 'rows.1.rl' (did you mean 'rows.1.lr'?)", 1, true), said)
  end)

  it("gives runs on GPUs one each", function()
    if not lfs.attributes("build/libperigee_cuda_sim.so", "mode") then
      pending "the simulated device is not built"
      return
    end
    sweeps.write(folder .. "/gpu.lua", [=[
      local pg = require "perigee"
      local opt = pg.recipe { name = "gpu", options = { { "i", 1 } } }
      pg.process.sleep(0.5)
      pg.run.open(opt):finish { gpu = os.getenv "CUDA_VISIBLE_DEVICES" }
    ]=])
    local runs = folder .. "/runs/gpu"
    local file = sweeps.write(folder .. "/gpu_sweep.lua", ("return { recipe = 'gpu.lua', device = 'cuda', folder = %q, "
      .. "options = { i = { 1, 2 } } }"):format(runs))
    local status, said = sh("env PERIGEE_CUDA=sim CUDA_VISIBLE_DEVICES=4,7 %s sweep %s", PERIGEE, file)
    assert.are.equal(0, status, said)
    local seen = {}
    for _, planned in ipairs(sweeps.planned(runs)) do
      seen[sweeps.json(("%s/%s/result.json"):format(runs, planned.name)).gpu] = true
    end
    assert.are.same({ ["4"] = true, ["7"] = true }, seen)
  end)
end)

describe("early stopping", function()
  local halving = require "perigee.sweep.halving"

  it("keeps the best floor(n / factor) of a rung, at least one", function()
    local stop = { first = 3, factor = 3, direction = "max" }
    assert.are.same({ false, 3, 3, 9, 9, 27, 81 }, { halving.rung(stop, 2) or false, halving.rung(stop, 3), halving.rung(stop, 8),
      halving.rung(stop, 9), halving.rung(stop, 26), halving.rung(stop, 27), halving.rung(stop, 100) })
    assert.are.equal(9, halving.rung({ first = 3, factor = 3, last = 20 }, 100))
    for own, on in pairs { [6] = true, [5] = true, [4] = false, [1] = false } do
      assert.are.equal(on, (halving.goes_on(stop, own, { 1, 2, 3, 4, 5, 6 })), own)
      assert.are.equal(not on and own < 3, (halving.goes_on({ factor = 3, direction = "min" }, own, { 1, 2, 3, 4, 5, 6 })), own)
    end
    assert.is_true((halving.goes_on(stop, 1, { 1 })))
  end)

  it("stops the worse runs at a rung, with a checkpoint, and they are neither failed nor done again", function()
    -- one after another, so that who is stopped is known: the first goes on, a better one goes on, the others stop
    local file, runs = sweep_file("halving", "metric = 'score', direction = 'max', options = { lr = 0, "
      .. "bias = { 1, 0.5, 2, 0.25, 3 }, steps = 20, every = 50, bad = s.when({ bias = 0.25 }, 'nan') }, "
      .. "stop = { metric = 'score', first = 3, factor = 3 }")
    local status, said = sh("%s sweep %s --jobs 1", PERIGEE, file)
    assert.are.equal(0, status, said)
    assert.is_truthy(said:find("halving: 3 of 5 runs done, 2 stopped early", 1, true), said)
    for _, planned in ipairs(sweeps.planned(runs)) do
      local path = runs .. "/" .. planned.name
      local early = planned.options.bias < 1
      assert.are.equal(early, lfs.attributes(path .. "/stopped.json", "mode") ~= nil, planned.name)
      local _, lines = process.read(path .. "/metrics.jsonl"):gsub("\n", "")
      assert.are.equal(early and 3 or 20, lines)
      assert.is_truthy(not early or lfs.attributes(path .. "/checkpoint.safetensors", "mode"))
      assert.are.equal(early, lfs.attributes(path .. "/result.json", "mode") == nil)
      local rungs = sweeps.json(path .. "/rungs.json")
      if planned.options.bias == 2 then assert.are.same({ ["3"] = 18, ["9"] = 54 }, rungs) end -- the sum of three walks
      if planned.options.bias == 0.25 then assert.are.same({ ["3"] = "not finite" }, rungs) end
    end
    assert.are.equal(5, sweeps.assert_indexed(runs))
    status, said = sh("%s sweep %s --resume", PERIGEE, file)
    assert.are.equal(0, status, said)
    assert.is_nil(said:find("to do", 1, true), said)
  end)
end)

describe("a sweep that is cut off", function()
  -- Starts one and waits until two of its runs have checkpoints.
  local function begin(name, more)
    local file, runs = sweep_file(name, "seeds = 2, metric = 'score', direction = 'max', options = { lr = { 0.1, 0.2 }, "
      .. "wait = 0.08, steps = 16, " .. (more or "") .. "}")
    local sweep = process.start(("%s sweep %s --jobs 2"):format(PERIGEE, file), folder .. "/said")
    await(20, function()
      local _, count = process.sh(("ls %s/*/checkpoint.safetensors 2>/dev/null | wc -l"):format(runs))
      return tonumber(count) >= 2
    end)
    return sweep, file, runs
  end

  it("saves checkpoints at Ctrl-C, ends with status 130 and the command that goes on, and goes on", function()
    local sweep, file, runs = begin "interrupted"
    sweep:kill(INT)
    local status, said = sweep:wait()
    assert.are.equal(130, status, said)
    assert.is_truthy(said:find(("continue with: perigee sweep %s --resume"):format(file), 1, true), said)
    assert.is_truthy(said:find("0 of 4 runs done, 2 unfinished, 2 not begun", 1, true), said)
    assert.are.equal(0, #sweeps.processes("--task", runs))
    sweeps.assert_indexed(runs)
    status, said = sh("%s sweep %s --resume --jobs 3", PERIGEE, file) -- another number of jobs, the same threads
    assert.are.equal(0, status, said)
    sweeps.assert_whole(runs)
  end)

  it("leaves no child behind when it is killed, and takes up what they had", function()
    local sweep, file, runs = begin("killed", "steps = 40")
    sweep:kill(KILL)
    sweep:wait()
    await(5, function() return #sweeps.processes("--task", runs) == 0 end)
    local _, list = sh("%s sweep %s --list", PERIGEE, file)
    assert.is_nil(list:find("done ", 1, true), list) -- they left in the middle
    local status, said = sh("%s sweep %s --resume --jobs 2", PERIGEE, file)
    assert.are.equal(0, status, said)
    sweeps.assert_whole(runs)
    assert.are.equal(4, sweeps.assert_indexed(runs))
  end)

  it("waits for a run whose process is still there instead of starting it twice", function()
    local sweep, file, runs = begin("orphaned", "bad = 'deaf'") -- at step 5 it hears nothing for two seconds
    await(10, function() return process.sh(("grep -q '\"step\": 4,' %s/*/metrics.jsonl"):format(runs)) == 0 end)
    ffi.C.usleep(200000)
    local pids = sweeps.processes("--task", runs)
    sweep:kill(KILL)
    sweep:wait()
    assert.are.equal(2, #pids)
    local again = process.start(("%s sweep %s --resume --jobs 2"):format(PERIGEE, file), folder .. "/said")
    await(30, function() return process.read(folder .. "/said"):find("runs go on in processes of an earlier sweep", 1, true) end)
    for _, pid in ipairs(pids) do
      local line = process.read("/proc/" .. pid .. "/cmdline")
      local name = line and line:gsub("%z", " "):match "%-%-task (%S+)"
      if name then assert.are.same({ pid }, sweeps.processes("--task", runs, name)) end
    end
    await(60, function() return not again:alive() end)
    local status, said = again:wait()
    assert.are.equal(0, status, said)
    sweeps.assert_whole(runs)
  end)

  it("resumes a run whose process was killed", function()
    local sweep, _, runs = begin "worker"
    ffi.C.kill(sweeps.processes("--task", runs)[1], KILL)
    await(60, function() return not sweep:alive() end)
    local status, said = sweep:wait()
    assert.are.equal(0, status, said)
    sweeps.assert_whole(runs)
  end)

  it("gives a run up that is killed again and again before it comes anywhere", function()
    local file, runs = sweep_file("hopeless", "options = { every = 50, bad = 'no' }")
    sweeps.write(folder .. "/hopeless_recipe.lua", [[
      local pg = require "perigee"
      pg.run.open(pg.recipe { name = "walk", options = { { "every", 1 }, { "bad", "" } } })
      require("ffi").cdef "int raise(int number);"
      require("ffi").C.raise(9)]])
    sweeps.write(file, (process.read(file):gsub("walk.lua", "hopeless_recipe.lua")))
    local status, said = sh("%s sweep %s", PERIGEE, file)
    assert.are.equal(1, status, said)
    assert.is_truthy(said:find("killed 20 times in a row before a new checkpoint (signal 9)", 1, true), said)
    assert.are.equal(1, sweeps.assert_indexed(runs))
  end)

  it("shows one live screen on a terminal", function()
    local file, runs = sweep_file("shown", "seeds = 2, metric = 'score', direction = 'max', "
      .. "options = { lr = { 0.1, 0.2 }, wait = 0.1 }")
    local terminal = process.terminal(("%s sweep %s --jobs 1"):format(PERIGEE, file))
    assert.is_truthy(terminal:expect("0/4 done  1 running", 20))
    assert.is_truthy(terminal:expect("step ", 20))
    assert.is_truthy(terminal:expect("1/4 done  1 running", 20))
    assert.is_truthy(terminal:expect("runs/min", 20))
    assert.is_truthy(terminal:expect(" left", 20))
    assert.is_truthy(terminal:expect("best score ", 20))
    terminal:type "\3"
    assert.is_truthy(terminal:expect("continue with: perigee sweep", 20))
    assert.are.equal(130, terminal:finish())
    assert.are.equal(0, #sweeps.processes("--task", runs))
    local status, said = sh("%s sweep %s --resume --quiet", PERIGEE, file)
    assert.are.equal(0, status, said)
    sweeps.assert_whole(runs)
  end)
end)

describe("other programs", function()
  local own = require "perigee.process"

  it("are started without a shell, and tell how they ended", function()
    local status, said = own.capture { "printf", "%s|", "a b", "$HOME", "'\"" }
    assert.are.same({ 0, "a b|$HOME|'\"|" }, { status, said })
    assert.are.equal(3, (own.capture { "sh", "-c", "exit 3" }))
    assert.are.equal(137, (own.capture { "sh", "-c", "kill -9 $$" }))
    assert.has_error(function() own.spawn { "/no/such/program" } end,
      "cannot start /no/such/program: No such file or directory")
  end)

  it("lock files for as long as they live", function()
    local path = folder .. "/a.lock"
    assert.is_true((own.lock(path)))
    assert.is_true((own.lock(path)))
    assert.is_false(own.is_locked(path))
    local script = sweeps.write(folder .. "/lock.lua",
      ("local p = require('perigee').process print(p.is_locked %q, (p.lock %q))"):format(path, path))
    local _, said = sh("%s run %s --out %s/lock1", PERIGEE, script, folder)
    assert.is_truthy(said:find("true\tfalse", 1, true), said)
    own.unlock(path)
    _, said = sh("%s run %s --out %s/lock2", PERIGEE, script, folder)
    assert.is_truthy(said:find("false\ttrue", 1, true), said)
    assert.is_true((own.lock(path)))
    own.unlock(path)
  end)
end)
