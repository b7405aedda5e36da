-- halving.lua - early stopping by asynchronous successive halving (Li et al., "A System for Massively Parallel
-- Hyperparameter Tuning", MLSys 2020), in its stopping form: nobody waits, nobody is taken up again.
--
-- Rungs are steps: first, first * factor, first * factor^2, ... A run that logs the step of a rung, or the first one
-- beyond it, leaves its metric in its own folder (rungs.json) and compares it with what other runs have left there. Among
-- n runs it goes on when it is one of the best max(1, floor(n / factor)); else it stops, with a checkpoint, and its
-- folder says so (stopped.json). Every run decides for itself, so that no launcher need be alive.

local folder = require "perigee.sweep.folder"

local halving = {}

--- The rung that a step reaches: the highest that is not beyond it. @return a step, or nil
function halving.rung(stop, step)
  if step < stop.first then return nil end
  local rung, at = stop.first, stop.first
  while true do
    at = at * stop.factor
    local whole = math.floor(at + 0.5)
    if whole > step or stop.last and whole > stop.last then return rung end
    rung = whole
  end
end

--- Whether a value is among those that go on. @param stop {factor =, direction =} @param values of all runs, own included
-- @return boolean, the value's rank, and how many go on
function halving.goes_on(stop, own, values)
  local rank = 1
  for _, value in ipairs(values) do
    if stop.direction == "max" and value > own or stop.direction == "min" and value < own then rank = rank + 1 end
  end
  local room = math.max(1, math.floor(#values / stop.factor))
  return rank <= room, rank, room
end

-- What the sweep's runs have left at a rung; a value that was not finite is the worst.
local function left_at(sweep, names, rung, worst)
  local values = {}
  for _, name in ipairs(names) do
    local rungs = folder.json(sweep .. "/" .. name .. "/rungs.json")
    local value = rungs and rungs[tostring(rung)]
    if value ~= nil then values[#values + 1] = type(value) == "number" and value or worst end
  end
  return values
end

-- The mean of the last `window` lines: one batch's loss alone would make it a lottery.
local function recent(path, stop)
  local lines, sum = folder.logged(path, stop.metric, stop.window), 0
  for _, line in ipairs(lines) do sum = sum + line[stop.metric] end
  return #lines > 0 and sum / #lines or nil
end

--- Makes what run.watch calls with each logged line.
-- @param sweep  the sweep's folder
-- @param plan   {stop =, runs =}
-- @return a function of the run and the entry that returns true when the run shall stop
function halving.watcher(sweep, plan)
  local stop, names = plan.stop, {}
  for i, planned in ipairs(plan.runs) do names[i] = planned.name end
  local worst = stop.direction == "max" and -math.huge or math.huge
  return function(run, entry)
    local rung = entry.step and entry[stop.metric] ~= nil and halving.rung(stop, entry.step)
    local own = rung and (folder.json(run.folder .. "/rungs.json") or {})
    if not rung or own[tostring(rung)] ~= nil then return false end -- a resumed run has been judged here before
    local finite = entry[stop.metric] - entry[stop.metric] == 0
    local value = finite and recent(run.folder, stop) or worst
    own[tostring(rung)] = finite and value or "not finite"
    folder.write(run.folder .. "/rungs.json", own)
    local values = left_at(sweep, names, rung, worst)
    local on, rank, room = halving.goes_on(stop, value, values)
    if on and finite then return false end
    folder.write(run.folder .. "/stopped.json", { step = entry.step, rung = rung, metric = stop.metric, value = value,
      rank = rank, of = #values, room = room })
    run:note(("stopped early at step %d: %s %g is number %d of %d, and %d go on"):format(entry.step, stop.metric, value,
      rank, #values, room))
    return true
  end
end

return halving
