-- worker.lua - does one run of a sweep, in this process: `perigee sweep FOLDER --task NAME`, which is what every launcher
-- starts. All it needs is in FOLDER/sweep.json. It is safe to start it twice, at any time and on any machine: the run
-- folder's lock lets one of them work, and what is finished is not done again.

local lfs = require "lfs"
local host = require "perigee.host"
local folder = require "perigee.sweep.folder"
local process = require "perigee.process"

local worker = {
  -- Exit statuses beside those of `perigee run`: 0 done or stopped early, 1 failed and recorded, 130 interrupted.
  NO_SPACE = 75, -- the disk is full: nobody's fault, try again when it is not
  IN_USE = 76, -- another process is at this run
}

local PATIENCE = 2 -- seconds that a lock may be held by somebody who only looks

local function lock(path)
  local last = require("perigee.ffi").pg_now() + PATIENCE
  while true do
    local free, who = process.lock(path .. "/.lock")
    if free or require("perigee.ffi").pg_now() > last then return free, who end
    process.sleep(0.05)
  end
end

--- Whether an error's text says that the disk has no room.
function worker.is_full(text)
  return text:find("No space left on device", 1, true) ~= nil or text:find("Disk quota exceeded", 1, true) ~= nil
end

-- The words of `perigee run` for it: continued where it was begun, with the options that are stored there.
local function arguments(plan, planned, path)
  if lfs.attributes(path .. "/config.json", "mode") then
    return { resume = path, device = plan.device, quiet = true }, { plan.recipe }
  end
  local words = { plan.recipe }
  for name, value in pairs(planned.options) do
    words[#words + 1] = name .. "=" .. (type(value) == "number" and require("perigee.util").number(value) or tostring(value))
  end
  return { out = path, seed = planned.seed, threads = plan.threads, device = plan.device, quiet = true }, words
end

--- Records that a run failed. @return whether it could be recorded
function worker.failed(path, message)
  local before = folder.json(path .. "/failed.json")
  return pcall(folder.write, path .. "/failed.json", { attempts = (before and before.attempts or 0) + 1, error = message,
    when = os.date "!%Y-%m-%dT%H:%M:%SZ" })
end

local function conclude(path, status, message)
  local run = require "perigee.run"
  if run.current and run.current.stopping then return 0 end
  if status == 130 then return 130 end
  if status == 0 then
    if folder.state(path) == "done" then
      os.remove(path .. "/failed.json")
      return 0
    end
    message = "the recipe ended without run:finish, so that there is no result"
    io.stderr:write("perigee: ", message, "\n")
  end
  if worker.is_full(message) or not worker.failed(path, message) then return worker.NO_SPACE end
  return 1
end

--- Does the run `name` of the sweep in `sweep`. @return an exit status
function worker.main(sweep, name)
  local args = require "perigee.cli.args"
  local plan = folder.load_plan(sweep)
  if not plan then args.usage("sweep: %s/sweep.json is no plan of a sweep", sweep) end
  local planned
  for _, candidate in ipairs(plan.runs) do planned = candidate.name == name and candidate or planned end
  if not planned then args.usage("sweep: %s has no run '%s'", sweep, name) end
  local path = sweep .. "/" .. name
  host.stop_signals()
  local ok, problem = pcall(folder.make, path)
  if not ok then
    io.stderr:write("perigee: ", tostring(problem), "\n")
    return worker.is_full(tostring(problem)) and worker.NO_SPACE or 1
  end
  local free, who = lock(path)
  if not free then
    io.stderr:write("perigee: ", path, " is in use by ", who, "\n")
    return worker.IN_USE
  end
  local state = folder.state(path)
  if state == "done" or state == "stopped" then return 0 end
  local conflict = folder.conflict(path, planned)
  if conflict then return conclude(path, 1, conflict) end
  if plan.stop then require("perigee.run").watch = require("perigee.sweep.halving").watcher(sweep, plan) end
  local command = require "perigee.cli.run"
  local fine, status = pcall(command.main, arguments(plan, planned, path))
  if not fine then -- wrong usage: the recipe has changed since the sweep was planned
    io.stderr:write("perigee: ", tostring(status), "\n")
    return conclude(path, 1, tostring(status))
  end
  return conclude(path, status, command.failure or "")
end

--- Does the run that a line of a list names: a task of a job array (launch_slurm.lua). Before its time is over Slurm sends
-- SIGUSR1; the checkpoint is then saved and the task put back into the queue.
-- @param sweep  the sweep's folder
-- @param list   a file with a run's name in each line; SLURM_ARRAY_TASK_ID says which
-- @return an exit status
function worker.array(sweep, list)
  local args = require "perigee.cli.args"
  local number = tonumber(os.getenv "SLURM_ARRAY_TASK_ID" or "")
  if not number then args.usage "sweep --array: SLURM_ARRAY_TASK_ID is not set: this is for the jobs of --launcher slurm" end
  local file = io.open(list, "rb")
  if not file then args.usage("sweep --array: cannot read %s", list) end
  local count, name = 0, nil
  for line in file:lines() do
    count = count + 1
    if count == number then name = line end
  end
  file:close()
  if not name then args.usage("sweep --array: %s has no line %d", list, number) end
  local status = worker.main(sweep, name)
  local job = os.getenv "SLURM_JOB_ID"
  if status == 130 and host.last_signal() == process.USR1 and job then
    local _, said = process.capture { "scontrol", "requeue", job }
    io.stderr:write(said)
  end
  return status
end

return worker
