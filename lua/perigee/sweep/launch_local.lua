-- launch_local.lua - the runs of a sweep on this machine, several at a time, each a process of its own.
--
-- A child is `perigee sweep FOLDER --task NAME` (worker.lua) on its own share of the processors. It stands in a process
-- group of its own, so that Ctrl-C reaches this process alone, which passes it on once: children save a checkpoint and
-- leave. When this process dies, however it does, the kernel sends its children the same signal. A run whose process is
-- still there holds the lock of its folder, and is waited for instead of being started again.

local lfs = require "lfs"
local host = require "perigee.host"
local process = require "perigee.process"
local folder = require "perigee.sweep.folder"
local worker = require "perigee.sweep.worker"
local now = require("perigee.ffi").pg_now

local launch, Launch = {}, {}
Launch.__index = Launch

local PAUSE = 0.05       -- seconds between two looks at the children
local MOST_DEATHS = 20   -- of one run in a row, killed from outside with no new checkpoint in between
local ROOM = 2 ^ 20      -- bytes that must be free before a run is started again after a full disk
local CRASHES = { [4] = "illegal instruction", [6] = "abort", [7] = "bus error", [8] = "arithmetic error",
  [11] = "segmentation fault" }

-- The GPUs that children may take turns on: those that this process sees.
local function gpus()
  local list, visible = {}, os.getenv "CUDA_VISIBLE_DEVICES"
  if visible then
    for name in visible:gmatch "[^,%s]+" do list[#list + 1] = name end
  else
    while lfs.attributes("/dev/nvidia" .. #list, "mode") do list[#list + 1] = tostring(#list) end
  end
  return list
end

--- How many runs side by side, and threads for each. @param given the number that was asked for, or nil
-- @return jobs, threads
function launch.share(plan, given)
  local cores = process.processors()
  local jobs = given or (plan.device == "cuda" and math.max(1, #gpus())) or (plan.threads and math.floor(cores / plan.threads))
    or cores
  jobs = math.max(1, jobs)
  return jobs, plan.threads or math.max(1, math.floor(cores / jobs))
end

local function state_of(self, name) return folder.state(self.plan.folder .. "/" .. name) end

-- What shows that a killed run had come further.
local function progress_of(path)
  local file = lfs.attributes(path .. "/checkpoint.safetensors")
  return file and ("%d.%d"):format(file.ino, file.modification) or ""
end

-- How often a run has failed.
local function attempts(path)
  local failed = folder.json(path .. "/failed.json")
  return failed and failed.attempts or 0
end

-- ---- a run begins -----------------------------------------------------------------------------------------------------

function Launch:start(slot, name)
  local path = self.plan.folder .. "/" .. name
  local env = { OMP_NUM_THREADS = tostring(self.threads) }
  if self.plan.device == "cuda" and #self.gpus > 0 then
    env.CUDA_VISIBLE_DEVICES = self.gpus[(slot - 1) % #self.gpus + 1]
  end
  local fits = self.jobs * self.threads <= process.processors()
  local output = lfs.attributes(path, "mode") == "directory" and path .. "/output.txt" or nil
  if not output and pcall(folder.make, path) then output = path .. "/output.txt" end
  local ok, pid = pcall(process.spawn, { host.executable, "sweep", self.plan.folder, "--task", name }, { output = output,
    env = env, orphan_signal = process.INT, cpu = (slot - 1) * self.threads, cpus = fits and self.threads or 0 })
  if not ok then
    if worker.is_full(pid) then return self:no_room(name, "the disk is full") end
    error(pid, 0)
  end
  self.slots[slot] = { name = name, pid = pid, since = now(), before = progress_of(path), attempts = attempts(path) }
end

function Launch:fill()
  for slot = 1, self.jobs do
    if not self.slots[slot] and #self.queue > 0 and not self.paused then
      local name = table.remove(self.queue, 1)
      local path = self.plan.folder .. "/" .. name
      if process.is_locked(path .. "/.lock") then self.elsewhere[#self.elsewhere + 1] = name
      else self:start(slot, name) end
    end
  end
end

-- ---- a run ends -------------------------------------------------------------------------------------------------------

function Launch:settle(name, state, about, seconds)
  local metric
  if state == "done" then metric = folder.metric(self.plan.folder .. "/" .. name, about, self.plan.metric) end
  self.index:update(name)
  self.screen:ended(name, state, about, metric, seconds)
end

-- The disk is full: nothing is started until there is room, and nobody is blamed.
function Launch:no_room(name, why)
  table.insert(self.queue, 1, name)
  local checkpoint = lfs.attributes(self.plan.folder .. "/" .. name .. "/checkpoint.safetensors", "size") or 0
  self.wait = math.min(60, (self.wait or 0.5) * 2)
  self.paused = { need = ROOM + 2 * checkpoint, until_when = now() + self.wait, why = why }
end

function Launch:look_for_room()
  if not self.paused or now() < self.paused.until_when then return end
  local free = process.disk_free(self.plan.folder)
  if free and free < self.paused.need then self.paused.until_when = now() + 0.5
  else self.paused = nil end
end

-- A failure that the run could not record itself.
function Launch:blame(name, message)
  if not worker.failed(self.plan.folder .. "/" .. name, message) then self:no_room(name, "the disk is full") end
end

-- After its process has gone: what has become of it, and what happens next.
function Launch:ended(child, status, signal)
  local path = self.plan.folder .. "/" .. child.name
  if status == worker.NO_SPACE then return self:no_room(child.name, "the disk is full") end
  if status == worker.IN_USE then
    self.elsewhere[#self.elsewhere + 1] = child.name
    return
  end
  local state, about = state_of(self, child.name)
  if state == "done" or state == "stopped" then
    self.wait = nil
    return self:settle(child.name, state, about, now() - child.since)
  end
  if self.stopping then
    self.index:update(child.name)
    return
  end
  if CRASHES[signal] then self:blame(child.name, ("crashed: %s (signal %d)"):format(CRASHES[signal], signal))
  elseif signal or status == 130 then -- by somebody else; where it came no further, not for ever
    local deaths = progress_of(path) == child.before and (self.deaths[child.name] or 0) + 1 or 1
    self.deaths[child.name] = deaths
    if deaths < MOST_DEATHS then
      self.queue[#self.queue + 1] = child.name
      return
    end
    self.deaths[child.name] = 0
    self:blame(child.name, ("killed %d times in a row before a new checkpoint (%s)"):format(deaths,
      signal and "signal " .. signal or "interrupted"))
  elseif status ~= 1 or attempts(path) == child.attempts then
    self:blame(child.name, ("ended with status %d; see output.txt in its folder"):format(status))
  end
  state, about = state_of(self, child.name)
  if state == "failed" and about.attempts > self.plan.retries then
    return self:settle(child.name, "failed", about, now() - child.since)
  end
  if not self.paused then self.queue[#self.queue + 1] = child.name end
end

function Launch:reap()
  for slot = 1, self.jobs do
    local child = self.slots[slot]
    local over, status, signal
    if child then over, status, signal = process.ended(child.pid) end
    if over then
      self.slots[slot] = nil
      self:ended(child, status, signal)
    end
  end
end

-- Runs that a process of another launcher, killed meanwhile, still works on.
function Launch:look_elsewhere()
  if now() < (self.looked or 0) + 1 then return end
  self.looked = now()
  for i = #self.elsewhere, 1, -1 do
    local name = self.elsewhere[i]
    if not process.is_locked(self.plan.folder .. "/" .. name .. "/.lock") then
      table.remove(self.elsewhere, i)
      local state, about = state_of(self, name)
      if state == "done" or state == "stopped" then self:settle(name, state, about)
      else table.insert(self.queue, 1, name) end
    end
  end
end

-- ---- the loop ---------------------------------------------------------------------------------------------------------

function Launch:running()
  local list = {}
  for slot = 1, self.jobs do list[#list + 1] = self.slots[slot] end
  return list
end

function Launch:signal(number)
  for slot = 1, self.jobs do
    local child = self.slots[slot]
    if child then process.kill(number == process.KILL and -child.pid or child.pid, number) end
  end
end

function Launch:note()
  if self.stopping then
    return ("stopping: %d runs save their checkpoints (Ctrl-C again ends them at once)"):format(#self:running())
  end
  if self.paused then return ("%s: waiting for room in %s"):format(self.paused.why, self.plan.folder) end
  if #self.elsewhere > 0 then return ("%d runs go on in processes of an earlier sweep"):format(#self.elsewhere) end
end

function Launch:loop()
  while true do
    self:reap()
    if not self.stopping and host.interrupted() then
      self.stopping = true
      self:signal(process.INT)
    end
    local running = #self:running()
    if self.stopping and running == 0 then return end
    if not self.stopping then
      self:look_elsewhere()
      self:look_for_room()
      self:fill()
      if #self:running() == 0 and #self.queue == 0 and #self.elsewhere == 0 then return end
    end
    self.screen:tick(self:running(), self:note())
    process.sleep(PAUSE)
  end
end
jit.off(Launch.loop, true) -- a second Ctrl-C is heard by what is interpreted

--- Does the runs `names` of a plan. @param given {jobs =, threads =, screen =, index =}
-- @return true when all came to an end; false when it was interrupted
function launch.run(plan, names, given)
  local self = setmetatable({ plan = plan, queue = {}, slots = {}, elsewhere = {}, deaths = {},
    jobs = math.min(given.jobs, math.max(1, #names)), threads = given.threads, gpus = gpus(), screen = given.screen,
    index = given.index }, Launch)
  for i, name in ipairs(names) do self.queue[i] = name end
  host.stop_signals()
  host.graceful(true)
  local ok, why = pcall(self.loop, self)
  if not ok then -- a second Ctrl-C, or something that should not be: no child is left behind
    self:signal(process.KILL)
    for slot = 1, self.jobs do
      while self.slots[slot] do
        if process.ended(self.slots[slot].pid) then self.slots[slot] = nil else process.sleep(PAUSE) end
      end
    end
    if why ~= "interrupted" then error(why, 0) end
  end
  return ok and not self.stopping
end

return launch
