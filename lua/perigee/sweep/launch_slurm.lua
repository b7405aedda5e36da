-- launch_slurm.lua - the runs of a sweep as job arrays of Slurm.
--
-- A task is `perigee sweep FOLDER --array LIST` (worker.lua): it takes the run that line SLURM_ARRAY_TASK_ID of the list
-- names, and its options from sweep.json. Nothing of a sweep becomes shell text: the one script is the same for all, and
-- what it needs are its arguments. This process only submits and watches. What has become of a run is in its folder; the
-- queue, which squeue tells, says whether somebody is still at it. So both this process and the controller may be killed
-- and started again.

local lfs = require "lfs"
local host = require "perigee.host"
local process = require "perigee.process"
local folder = require "perigee.sweep.folder"
local worker = require "perigee.sweep.worker"
local util = require "perigee.util"
local now = require("perigee.ffi").pg_now

local launch, Launch = {}, {}
Launch.__index = Launch

local SCRIPT = [[
#!/bin/sh
# Submitted by `perigee sweep --launcher slurm` with three arguments: perigee, the sweep's folder, a list of runs.
exec "$1" sweep "$2" --array "$3"
]]
local LOOK, ASK = 1, 15   -- seconds between two looks into the folders, and between two questions to the controller
local WARNING = 120       -- seconds before a job's time is over at which it is told
local MOST_DEATHS = 20    -- submissions of one run that came to nothing, though it did not fail
local ROOM = 2 ^ 20       -- bytes that must be free before anything is submitted
-- What squeue calls jobs that are over, but for those that somebody cancelled.
local OVER = { CD = true, F = true, TO = true, NF = true, BF = true, DL = true, OOM = true, PR = true }

local function absolute(path) return path:sub(1, 1) == "/" and path or lfs.currentdir() .. "/" .. path end

--- The name that all jobs of a sweep have, which is how they are found again.
function launch.job_name(plan)
  local sum = 5381
  for character in absolute(plan.folder):gmatch "." do sum = (sum * 33 + character:byte()) % 2 ^ 32 end
  return ("perigee-%s-%08x"):format(plan.name:gsub("[^%w_-]", "_"), sum)
end

local function run_program(...)
  local ok, status, said = pcall(process.capture, { ... })
  if not ok then return nil, tostring(status) end
  said = said:gsub("%s+$", "")
  return status == 0 and said or nil, said ~= "" and said or ("%s ended with status %d"):format((...), status)
end

-- ---- what Slurm knows --------------------------------------------------------------------------------------------------

local function read_list(path)
  local names = {}
  local file = io.open(path, "rb")
  if not file then return names end
  for line in file:lines() do names[#names + 1] = line end
  file:close()
  return names
end

-- name -> "active", "over" or "cancelled", after the newest job that has it; nil and a reason when nobody answers.
function Launch:queue()
  local said, why = run_program("squeue", "-h", "-r", "-t", "all", "-n", self.job, "-o", "%F %K %t %k %r")
  if not said then return nil, why end
  local newest, states = {}, {}
  self.held = nil
  for job, task, state, list, reason in said:gmatch "(%d+) (%d+) (%S+) (%S+) ([^\n]*)" do
    if state == "PD" and reason:lower():find "held" then self.held = ("job %s_%s is held: %s"):format(job, task, reason) end
    self.lists[list] = self.lists[list] or read_list(self.plan.folder .. "/slurm/" .. list)
    local name = self.lists[list][tonumber(task)]
    if name and tonumber(job) >= (newest[name] or 0) then
      newest[name] = tonumber(job)
      states[name] = state == "CA" and "cancelled" or OVER[state] and "over" or "active"
    end
  end
  return states
end

-- Most tasks of one array.
local function array_size()
  local said = run_program("scontrol", "show", "config") or ""
  return (tonumber(said:match "MaxArraySize%s*=%s*(%d+)") or 1001) - 1
end

-- ---- submitting -------------------------------------------------------------------------------------------------------

local function options_of(self, count, list)
  local slurm, words = self.slurm, { "sbatch", "--parsable", "--requeue", "--open-mode=append", "--ntasks=1" }
  local function add(name, value)
    if value ~= nil then words[#words + 1] = "--" .. name .. "=" .. tostring(value) end
  end
  local throttle = self.throttle or slurm.throttle
  add("array", "1-" .. count .. (throttle and "%" .. throttle or ""))
  add("job-name", self.job)
  add("comment", list)
  add("output", absolute(self.plan.folder):gsub("%%", "%%%%") .. "/slurm/%A_%a.txt")
  add("signal", "B:USR1@" .. (slurm.warning or WARNING))
  add("cpus-per-task", slurm.cpus or self.plan.threads)
  for _, name in ipairs { "partition", "time", "mem", "gres", "account" } do add(name, slurm[name]) end
  for _, word in ipairs(slurm.args or {}) do words[#words + 1] = word end
  return words
end

-- A list that no earlier submission has.
local function fresh_list(where)
  local count = 1
  while lfs.attributes(where .. "/list-" .. count .. ".txt", "mode") do count = count + 1 end
  return "list-" .. count .. ".txt"
end

--- Submits runs by their names, as one array or several. @return nothing, or the reason why not
function Launch:submit(names)
  local where = absolute(self.plan.folder) .. "/slurm"
  folder.make(where)
  util.write_file(where .. "/submit.sh", SCRIPT)
  local most = array_size()
  for first = 1, #names, most do
    local part = {}
    for i = first, math.min(#names, first + most - 1) do part[#part + 1] = names[i] end
    local list = fresh_list(where)
    util.write_file(where .. "/" .. list, table.concat(part, "\n") .. "\n")
    local words = options_of(self, #part, list)
    for _, word in ipairs { where .. "/submit.sh", host.executable, absolute(self.plan.folder), where .. "/" .. list } do
      words[#words + 1] = word
    end
    local said, why = run_program(unpack(words))
    if not said then
      os.remove(where .. "/" .. list)
      return why
    end
    self.screen:say("submitted %d runs as job %s", #part, said:match "%d+" or "?")
  end
end

-- ---- watching ---------------------------------------------------------------------------------------------------------

function Launch:settle(name, state, about)
  local metric
  if state == "done" then metric = folder.metric(self.plan.folder .. "/" .. name, about, self.plan.metric) end
  self.open[name] = nil
  self.index:update(name)
  self.screen:ended(name, state, about, metric)
end

-- Takes what is finished off the list of open runs.
function Launch:look()
  for _, name in ipairs(self.names) do
    if self.open[name] then
      local state, about = folder.state(self.plan.folder .. "/" .. name)
      if state == "done" or state == "stopped" then self:settle(name, state, about)
      elseif state == "failed" and about.attempts > self.plan.retries then self:settle(name, state, about) end
    end
  end
end

-- Open runs that no job is at: those to submit again, and how many were cancelled. The answer of squeue is older than the
-- folders that are looked into after it, so that a run which has just ended is not taken for lost.
function Launch:lost(states)
  self:look()
  local list, cancelled = {}, 0
  for _, name in ipairs(self.names) do
    if self.open[name] and states[name] == "cancelled" and not self.fresh[name] then cancelled = cancelled + 1
    elseif self.open[name] and states[name] ~= "active"
      and not process.is_locked(self.plan.folder .. "/" .. name .. "/.lock") then
      self.deaths[name] = (self.deaths[name] or -1) + 1
      if self.deaths[name] < MOST_DEATHS then list[#list + 1] = name
      else worker.failed(self.plan.folder .. "/" .. name, ("%d jobs in a row ended without a result; see slurm/ in %s")
        :format(MOST_DEATHS, self.plan.folder)) end
    end
  end
  return list, cancelled
end

-- Asks the controller, and submits what nobody is at. @return true when only cancelled runs are left
function Launch:ask()
  local states, why = self:queue()
  self.asked = now()
  if not states then
    if self.first then error("squeue: " .. why:match "^[^\n]*", 0) end
    self.note = "the controller does not answer: " .. why:match "^[^\n]*"
    return false
  end
  self.note, self.states = self.held, states
  if (process.disk_free(self.plan.folder) or ROOM) < ROOM then
    self.note = ("the disk is full: waiting for room in %s"):format(self.plan.folder)
    return false
  end
  local list, cancelled = self:lost(states)
  if #list > 0 then
    why = self:submit(list)
    if why and self.first then error("sbatch: " .. why:match "^[^\n]*", 0) end
    self.note = why and why:match "^[^\n]*" or self.note
    for _, name in ipairs(why and {} or list) do self.fresh[name], states[name] = nil, "active" end
  end
  self.first = false
  return cancelled > 0 and cancelled == self:count()
end

function Launch:count()
  local count = 0
  for _ in pairs(self.open) do count = count + 1 end
  return count
end

function Launch:running()
  local list = {}
  for _, name in ipairs(self.names) do
    local path = self.plan.folder .. "/" .. name
    if self.open[name] and self.states[name] == "active" and lfs.attributes(path .. "/config.json", "mode") then
      list[#list + 1] = { name = name }
    end
  end
  return list
end

function Launch:loop()
  local running, looked = {}, 0
  while self:count() > 0 do
    if now() - self.asked >= self.period and self:ask() then return "cancelled" end
    if now() - looked >= LOOK then
      self:look()
      running, looked = self:running(), now()
    end
    self.screen:tick(running, self.note)
    if host.interrupted() then return "interrupted" end
    process.sleep(0.1)
  end
end
jit.off(Launch.loop, true)

--- Does the runs `names` of a plan. @param given {slurm = of the sweep file, throttle =, screen =, index =}
-- @return nothing when all came to an end; "interrupted" or "cancelled" when the queue or the folders have more
-- @raises when the first jobs cannot be submitted
function launch.run(plan, names, given)
  local self = setmetatable({ plan = plan, names = names, open = {}, slurm = given.slurm or {}, throttle = given.throttle,
    screen = given.screen, index = given.index, job = launch.job_name(plan), lists = {}, states = {}, deaths = {},
    fresh = {}, asked = -math.huge, first = true }, Launch)
  self.period = tonumber(os.getenv "PERIGEE_SLURM_POLL" or "") or ASK
  for _, name in ipairs(names) do self.open[name], self.fresh[name] = true, true end
  host.graceful(true)
  return self:loop()
end

return launch
