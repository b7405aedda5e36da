-- slurm_spec.lua - sweeps through a real Slurm on the loopback address: munged, slurmctld and slurmd are started by hand with
-- their files in a folder of the test's own. Jobs, the controller and the sweep are killed in the middle, and all ends whole.

local ffi = require "ffi"
local lfs = require "lfs"
local process = require "process"
local sweeps = require "sweeps"
ffi.cdef "int getuid(void); int setenv(const char *name, const char *value, int replace); int getpid(void);"
local now = require("perigee.ffi").pg_now

local KILL = 9
local home, folder = lfs.currentdir(), sweeps.folder()
local cluster = folder .. "/cluster"

-- cred_expire: a job that is put back waits until its credential has run out, two minutes unless told otherwise.
local CONFIG = [[
ClusterName=perigee
SlurmctldHost=HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=FOLDER/munge.sock,cred_expire=5
SlurmctldPort=PORT1
SlurmdPort=PORT2
SlurmctldPidFile=FOLDER/slurmctld.pid
SlurmdPidFile=FOLDER/slurmd.pid
SlurmctldLogFile=FOLDER/slurmctld.log
SlurmdLogFile=FOLDER/slurmd.log
StateSaveLocation=FOLDER/state
SlurmdSpoolDir=FOLDER/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName=node NodeHostname=HOST NodeAddr=127.0.0.1 CPUs=4 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
]]

local function sh(command) return process.sh("timeout -s KILL 120 " .. command) end

local function await(what, seconds, fn)
  local last = now() + seconds
  repeat
    local found = fn()
    if found then return found end
    ffi.C.usleep(50000)
  until now() > last
  error(what .. " did not come in " .. seconds .. " seconds", 2)
end

local function pid_of(name) return tonumber(process.read(cluster .. "/" .. name .. ".pid")) end

local function start_controller()
  local status, said = sh("slurmctld -f " .. cluster .. "/slurm.conf")
  assert.are.equal(0, status, said)
  await("the controller", 20, function() return sh "scontrol ping | grep -q UP" == 0 and sh "sinfo -h" == 0 end)
end

local function start_cluster()
  assert(lfs.mkdir(cluster) and lfs.mkdir(cluster .. "/state") and lfs.mkdir(cluster .. "/spool"))
  local _, host = sh "hostname -s"
  local port = 20000 + ffi.C.getpid() % 20000
  local values = { HOST = host:gsub("%s", ""), FOLDER = cluster, PORT1 = port, PORT2 = port + 1 }
  sweeps.write(cluster .. "/slurm.conf", (CONFIG:gsub("%f[%u]%u+%d?%f[%W]", values)))
  ffi.C.setenv("SLURM_CONF", cluster .. "/slurm.conf", 1)
  local status, said = process.sh(([[
    cd %s && head -c 1024 /dev/urandom > munge.key && chmod 400 munge.key && chmod 711 .. . &&
    munged --force --key-file=$PWD/munge.key --socket=$PWD/munge.sock --pid-file=$PWD/munged.pid --log-file=$PWD/munged.log \
      --seed-file=$PWD/munged.seed]]):format(cluster))
  assert.are.equal(0, status, said)
  start_controller()
  status, said = sh("slurmd -f " .. cluster .. "/slurm.conf -N node")
  assert.are.equal(0, status, said)
  await("the node", 20, function() return sh "sinfo -h -t idle | grep -q main" == 0 end)
end

describe("a sweep through Slurm", function()
  local ledger = folder .. "/ledger"
  if ffi.C.getuid() ~= 0 then
    pending "starting slurmd needs root"
    return
  end

  setup(function()
    sweeps.write(folder .. "/walk.lua", sweeps.RECIPE)
    ffi.C.setenv("LEDGER", ledger, 1)
    ffi.C.setenv("PERIGEE_SLURM_POLL", "1", 1)
    start_cluster()
  end)

  teardown(function()
    for _, pid in ipairs(sweeps.processes("sweep", folder)) do ffi.C.kill(pid, KILL) end
    for _, name in ipairs { "slurmd", "slurmctld", "munged" } do
      local pid = pid_of(name)
      if pid then ffi.C.kill(pid, 15) end
    end
    for _, pid in ipairs(sweeps.processes("slurmstepd")) do
      if (process.read("/proc/" .. pid .. "/environ") or ""):find(cluster, 1, true) then ffi.C.kill(pid, KILL) end
    end
    ffi.C.usleep(500000)
    os.execute("rm -rf '" .. folder .. "'")
  end)

  -- A sweep file of its own folder. @return its path, and where its runs are
  local function sweep_file(name, fields)
    local runs = folder .. "/runs/" .. name
    return sweeps.write(folder .. "/" .. name .. ".lua", ([[
      return { recipe = "walk.lua", folder = %q, metric = "score", direction = "max", %s }
    ]]):format(runs, fields)), runs
  end

  local function command(file, more)
    return ("%s/build/perigee sweep %s --launcher slurm %s"):format(home, file, more or "")
  end

  -- Does something to the last running job but for one, as it may just be over. @return the job
  local function with_running(what, but)
    local found
    for job in select(2, sh "squeue -h -r -t R -o %i"):gmatch "%d+_%d+" do found = job ~= but and job or found end
    return found and sh(what .. found) == 0 and found
  end

  local function workers(runs) return sweeps.processes("--array /", runs) end

  it("is no part of a recipe on several tasks: srun starts one run on two", function()
    if not select(2, sh "build/perigee doctor"):find "\nmpi +Open MPI" or sh "srun --mpi=list 2>&1 | grep -q pmix" ~= 0 then
      return pending "there is no MPI here, or Slurm without PMIx: make deps-test, then make"
    end
    local out = folder .. "/tasks"
    local status, said = sh(("srun --mpi=pmix -n 2 build/perigee run recipes/end_to_end.lua task=color method=fda steps=3 "
      .. "train=64 probe=20 test=50 probe_steps=3 classes=4 per_class=4 k=4 probes=shape --threads 1 --out %s"):format(out))
    assert.are.equal(0, status, said)
    assert.is_truthy(process.read(out .. "/config.json"):find('"processes": 2', 1, true), said)
    assert.are.equal(3, select(2, process.read(out .. "/metrics.jsonl"):gsub("\n", "")))
    status, said = sh "srun --mpi=none -n 2 build/perigee run tests/workbench/ranks.lua" -- which MPI hears nothing of
    assert.are.equal(1, status)
    assert.is_truthy(said:find("this is one of 2 tasks, of which srun has told MPI nothing", 1, true), said)
  end)

  it("ends whole, though jobs, the controller and the sweep itself are killed", function()
    local file, runs = sweep_file("fire", "seeds = 3, options = { lr = { 0.1, 0.2, 0.3, 0.4 }, wait = 0.25, steps = 24 },"
      .. "slurm = { time = '10', mem = '100M', cpus = 1, warning = 60, args = { '--nice=0' } }")
    local sweep = process.start(command(file), folder .. "/said")
    await("four jobs", 30, function() return #workers(runs) == 4 end)
    await("a checkpoint of each", 30, function()
      local _, count = process.sh(("ls %s/*/checkpoint.safetensors 2>/dev/null | wc -l"):format(runs))
      return tonumber(count) >= 4
    end)
    ffi.C.kill(workers(runs)[1], KILL) -- a crash: submitted again
    local function told(words) return process.read(folder .. "/said"):find(words, 1, true) end
    await("another job for it", 20, function() return told "submitted 1 runs as job" end)

    -- Its time is nearly over: it saves, and puts itself back into the queue.
    local job = await("a job to warn", 20, function() return with_running("scancel --signal=USR1 --batch ") end)
    await("the requeue", 30, function()
      local restarts = select(2, sh("scontrol show job " .. job)):match "Restarts=(%d+)"
      return tonumber(restarts or 0) >= 1
    end)
    -- What preemption does: SIGTERM, then back into the queue.
    await("a job to preempt", 30, function() return with_running("scontrol requeue ", job) end)

    ffi.C.usleep(6e6) -- a controller saves what it knows every few seconds; what is younger, its death would lose
    ffi.C.kill(pid_of "slurmctld", KILL)
    await("the complaint", 30, function() return told "the controller does not answer" end)
    start_controller()
    sweep:kill(KILL)
    assert.are.equal(137, (sweep:wait()))
    assert.is_true(#workers(runs) + tonumber((select(2, sh "squeue -h -r -t PD | wc -l"))) > 0) -- jobs do not need it

    sweep = process.start(command(file, "--resume"), folder .. "/said")
    await("the end", 120, function() return not sweep:alive() end)
    local status, said = sweep:wait()
    assert.are.equal(0, status, said)
    assert.is_truthy(said:find("fire: 12 of 12 runs done", 1, true), said)
    sweeps.assert_whole(runs)
    assert.are.equal(12, sweeps.assert_indexed(runs))
    local times = {}
    for name in io.lines(ledger) do
      times[name] = (times[name] or 0) + 1
      assert.are.equal(1, times[name], name .. " was run to its end twice")
    end
  end)

  it("stops early what is not among the best, though its job is killed in the middle", function()
    local file, runs = sweep_file("halving", "threads = 1, options = { bias = { 3, 4, 1, 0.5, 0 }, lr = 0.01, steps = 20, "
      .. "wait = 0.15 }, stop = { metric = 'score', direction = 'max', first = 6, factor = 3 }")
    local sweep = process.start(command(file, "--jobs 1"), folder .. "/said")
    await("a worker", 30, function() return workers(runs)[1] end)
    await("a checkpoint", 30, function()
      local _, count = process.sh(("ls %s/*/checkpoint.safetensors 2>/dev/null | wc -l"):format(runs))
      return tonumber(count) >= 1
    end)
    ffi.C.kill(workers(runs)[1], KILL) -- it is submitted again, and comes to its rung from its checkpoint
    await("the end", 120, function() return not sweep:alive() end)
    local status, said = sweep:wait()
    assert.are.equal(0, status, said)
    local finished, early = said:match "halving: (%d) of 5 runs done, (%d) stopped early"
    assert.are.equal(5, tonumber(finished) + tonumber(early), said)
    assert.is_true(tonumber(early) >= 2, said)
    for _, planned in ipairs(sweeps.planned(runs)) do
      local path = runs .. "/" .. planned.name
      local stopped = lfs.attributes(path .. "/stopped.json", "mode") ~= nil
      local _, lines = process.sh("wc -l < " .. path .. "/metrics.jsonl")
      assert.are.equal(stopped, lfs.attributes(path .. "/result.json", "mode") == nil, planned.name)
      assert.are.equal(stopped and 6 or 20, tonumber(lines), planned.name)
      assert.is_true(not stopped or planned.options.bias < 4, "the best was stopped")
    end
    status, said = sh(command(file, "--resume")) -- a stopped run is not taken up again
    assert.are.equal(0, status, said)
    assert.is_truthy(said:find(finished .. " of 5 runs done, " .. early .. " stopped early", 1, true), said)
  end)

  it("leaves alone what somebody cancelled, until it is resumed", function()
    local file, runs = sweep_file("cancelled", "seeds = 6, options = { wait = 0.2, lr = 0.3 }")
    local sweep = process.start(command(file, "--jobs 2"), folder .. "/said")
    await("two jobs", 30, function() return #workers(runs) == 2 end)
    assert.are.equal(2, #workers(runs)) -- the array's throttle
    sh "scancel -u root"
    await("the end", 60, function() return not sweep:alive() end)
    local status, said = sweep:wait()
    assert.are.equal(1, status, said)
    assert.is_truthy(said:find("the rest was cancelled; submit it again with: perigee sweep", 1, true), said)
    status, said = sh(command(file, "--resume"))
    assert.are.equal(0, status, said)
    sweeps.assert_whole(runs)
  end)

  it("lets jobs go on when only the watching is interrupted, and records what fails", function()
    local file, runs = sweep_file("watched", "seeds = 2, options = { wait = 0.4, bad = { 'no', 'error' } }")
    local sweep = process.start(command(file), folder .. "/said")
    await("a job", 30, function() return #workers(runs) > 0 end)
    sweep:kill(2)
    local status, said = sweep:wait()
    assert.are.equal(130, status, said)
    assert.is_truthy(said:find("the jobs go on (scancel -n perigee-watched-", 1, true), said)
    assert.is_true(#workers(runs) > 0)
    status, said = sh(command(file, "--resume"))
    assert.are.equal(1, status, said)
    assert.is_truthy(said:find("2 of 4 runs done, 2 failed", 1, true), said)
    assert.is_truthy(said:find("walk.lua:22: this one fails", 1, true), said)
    local _, lists = sh(("ls %s/slurm | grep -c list-"):format(runs))
    assert.are.equal(1, tonumber(lists)) -- nothing was submitted twice
  end)

  it("says in one line why nothing could be submitted", function()
    local file = sweep_file("refused", "slurm = { partition = 'nowhere; rm -rf /' }")
    local status, said = sh(command(file))
    assert.are.equal(1, status, said)
    assert.is_truthy(said:find("perigee: sbatch: ", 1, true) and said:lower():find("partition", 1, true), said)
  end)
end)
