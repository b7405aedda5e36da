-- chaos_spec.lua - a sweep of 60 short runs whose processes, and itself, are killed at random every second or so, and whose
-- disk fills up once, ends with 60 correct results: none lost, none done twice, and the index equal to the folders.

local ffi = require "ffi"
local lfs = require "lfs"
local process = require "process"
local sweeps = require "sweeps"
local now = require("perigee.ffi").pg_now

local KILL, LIMIT = 9, 150 -- seconds that it may take
local home = lfs.currentdir()

-- A disk of 16 MiB, where tests/run.sh has given us a mount namespace of our own (unshare -m, which needs root): it is gone
-- with this process. Elsewhere a limit on the size of files stands in for it.
local function small_disk(folder)
  return os.getenv "PRIVATE_MOUNTS" and os.execute(("mount -t tmpfs -o size=16m none '%s'"):format(folder)) == 0
end

local function fill(path)
  local file = io.open(path, "wb")
  local block = ("x"):rep(65536)
  while file:write(block) and file:flush() do end -- luacheck: ignore 542
  file:close()
end

describe("a sweep under fire", function()
  local folder = sweeps.folder()
  local ledger, file, said = folder .. "/ledger", folder .. "/chaos.lua", folder .. "/said"
  lfs.mkdir(folder .. "/disk")

  teardown(function()
    for _, pid in ipairs(sweeps.processes("sweep", folder)) do ffi.C.kill(pid, KILL) end
    os.execute(("umount -l '%s/disk' 2>/dev/null; rm -rf '%s'"):format(folder, folder))
  end)

  it("ends with 60 correct results, each done once", function()
    local disk, runs = small_disk(folder .. "/disk"), folder .. "/disk/runs"
    sweeps.write(folder .. "/walk.lua", sweeps.RECIPE)
    sweeps.write(file, ([[
      return { recipe = "walk.lua", folder = %q, seeds = 3, metric = "score", direction = "max", retries = %d,
        options = { lr = { 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1 }, kind = { "plain", "drift" },
          wait = 0.08 } }
    ]]):format(runs, disk and 0 or 20))

    math.randomseed(tonumber(os.getenv "CHAOS_SEED" or "") or 7)
    local began, kills, deaths, full, told, last = now(), 0, 0, nil, "", nil
    local sweep, next_kill, next_death = nil, now() + 1, now() + 3
    local function start()
      local limit = not disk and full and now() < full and "ulimit -f 0; " or "" -- stands in for the full disk
      sweep = process.start(("sh -c '%sLEDGER=%s exec %s/build/perigee sweep %s --jobs 4 --resume'")
        :format(limit, ledger, home, file), said)
    end
    local function ended()
      local text
      last, text = sweep:wait()
      told = told .. text
      return last
    end
    start()
    while now() - began < LIMIT do
      ffi.C.usleep(20000)
      if not sweep:alive() then
        if ended() == 0 then break end
        assert.is_truthy(last == 137 or full and told:find("No space left on device", 1, true), told)
        start()
      end
      if not full and now() - began > 5 then -- the disk is full for six seconds
        full = now() + 6
        if disk then fill(folder .. "/disk/filler") else
          sweep:kill(KILL)
          ended()
          start()
        end
      elseif full and disk and now() > full then
        os.remove(folder .. "/disk/filler")
      end
      if now() > next_kill then
        local workers = sweeps.processes("--task", runs)
        if #workers > 0 then ffi.C.kill(workers[math.random(#workers)], KILL) end
        kills, next_kill = kills + 1, now() + 0.2 + 0.8 * math.random()
      elseif now() > next_death then
        sweep:kill(KILL)
        deaths, next_death = deaths + 1, now() + 3 + 4 * math.random()
        ended()
        start()
      end
    end
    assert.are.equal(0, last, told)
    if disk then assert.is_truthy(told:find("the disk is full: waiting for room", 1, true), told) end
    assert.is_true(kills > 10 and deaths > 1, ("%d workers and %d sweeps killed"):format(kills, deaths))
    assert.are.equal(60, #sweeps.planned(runs))
    sweeps.assert_whole(runs)
    assert.are.equal(60, sweeps.assert_indexed(runs))
    local times = {}
    for name in io.lines(ledger) do
      times[name] = (times[name] or 0) + 1
      assert.are.equal(1, times[name], name .. " was run to its end twice")
    end
    if os.getenv "CHAOS_SAY" then
      print(("%d workers and %d sweeps killed in %.0f s; %s"):format(kills, deaths, now() - began,
        disk and "the disk was full" or "files could not grow"))
    end
  end)
end)
