-- screen.lua - what a sweep shows while it goes on: on a terminal a few lines that are drawn again and again, with how many
-- runs are done, the best so far, the rate and the time left, and what is running; elsewhere a line for each event.

local host = require "perigee.host"
local folder = require "perigee.sweep.folder"
local progress = require "perigee.progress"
local summary = require "perigee.sweep.summary"
local util = require "perigee.util"
local now = require("perigee.ffi").pg_now

local screen, Screen = {}, {}
Screen.__index = Screen

local INTERVAL = 0.5 -- seconds between two drawings
local ROWS = 8       -- running runs that are shown

--- A screen.
-- @param plan   of the sweep
-- @param todo   names of the runs that are about to be done, failed ones that are tried again among them
-- @param quiet  whether to print nothing but what goes wrong
function screen.new(plan, todo, quiet)
  local counts, runs = summary.scan(plan)
  local self = setmetatable({ plan = plan, counts = counts, names = summary.varying(plan), by_name = {}, began = now(),
    finished = 0, drawn = 0, height = 0, quiet = quiet, live = host.isatty(2) and not quiet }, Screen)
  for _, planned in ipairs(plan.runs) do
    self.by_name[planned.name] = planned
    self:consider(planned, runs[planned.name].metric)
  end
  for _, name in ipairs(todo) do
    if runs[name].state == "failed" then counts.failed = counts.failed - 1 end
  end
  self.left = #todo
  return self
end

function Screen:consider(planned, metric)
  if metric and (not self.best or summary.better(self.plan, metric, self.best.metric)) then
    self.best = { metric = metric, planned = planned }
  end
end

function Screen:erase()
  if self.height > 0 then io.stderr:write(("\27[%dA\r\27[J"):format(self.height)) end
  self.height = 0
end

--- Says a line that stays.
function Screen:say(format, ...)
  local text = select("#", ...) > 0 and format:format(...) or format
  self:erase()
  io.stderr:write(text, "\n")
  self.drawn = 0
end

--- A run has come to its end: "done", "stopped" or "failed".
-- @param name     of the run
-- @param state    what its folder says now
-- @param about    the table of result.json, stopped.json or failed.json
-- @param metric   of a run that is done, or nil
-- @param seconds  that it took here, or nil
function Screen:ended(name, state, about, metric, seconds)
  local planned = self.by_name[name]
  self.finished, self.left = self.finished + 1, self.left - 1
  self.counts[state] = self.counts[state] + 1
  self:consider(planned, metric)
  local total, over = #self.plan.runs, self.counts.done + self.counts.stopped + self.counts.failed
  local what = ("[%d/%d] %s  %s seed=%d"):format(over, total, name, summary.words(self.names, planned.options), planned.seed)
  if state == "failed" then self:say("%s: failed: %s", what, tostring(about.error)) end
  if self.live or self.quiet then return end
  local took = seconds and ("  (%s)"):format(progress.clock(seconds)) or ""
  if state == "done" then
    self:say("%s: done%s%s", what, metric and ("  %s %s"):format(self.plan.metric, summary.short(metric)) or "", took)
  elseif state == "stopped" then
    self:say("%s: stopped early at step %s%s", what, tostring(about.step), took)
  end
end

local function last_words(path)
  local last = folder.logged(path, nil, 1)[1]
  if not last then return "no step yet" end
  local loss = type(last.loss) == "number" and "loss" or type(last.task_loss) == "number" and "task_loss"
  return ("step %s%s"):format(tostring(last.step or "?"), loss and ("  %s %s"):format(loss, summary.short(last[loss])) or "")
end

function Screen:lines(running, note)
  local counts, elapsed = self.counts, now() - self.began
  local words = { ("%s  %d/%d done"):format(self.plan.name, counts.done, #self.plan.runs), ("%d running"):format(#running) }
  if counts.stopped > 0 then words[#words + 1] = ("%d stopped early"):format(counts.stopped) end
  if counts.failed > 0 then words[#words + 1] = ("%d failed"):format(counts.failed) end
  if self.finished > 0 then
    local rate = self.finished / elapsed
    words[#words + 1] = rate * 60 >= 1 and ("%.1f runs/min"):format(rate * 60) or ("%.1f runs/h"):format(rate * 3600)
    words[#words + 1] = progress.clock(self.left / rate) .. " left"
  else
    words[#words + 1] = progress.clock(elapsed)
  end
  local list = { table.concat(words, "  ") }
  if self.best then
    list[2] = ("best %s %s  %s seed=%d"):format(self.plan.metric, summary.short(self.best.metric),
      summary.words(self.names, self.best.planned.options), self.best.planned.seed)
  end
  if note then list[#list + 1] = note end
  for i = 1, math.min(#running, ROWS) do
    local name, since = running[i].name, running[i].since
    list[#list + 1] = ("  %s  %s  %s  %s"):format(name, since and progress.clock(now() - since) or "",
      last_words(self.plan.folder .. "/" .. name), summary.words(self.names, self.by_name[name].options))
  end
  if #running > ROWS then list[#list + 1] = ("  ... and %d more"):format(#running - ROWS) end
  return list
end

--- Draws, where there is a terminal and it is time.
-- @param running  list of {name =, since = pg.now() or nil}
-- @param note     one more line, or nil
function Screen:tick(running, note)
  if note and note ~= self.note and not self.live then self:say("%s", note) end
  self.note = note
  if not self.live or now() - self.drawn < INTERVAL then return end
  local lines, width = self:lines(running, note), host.columns() - 1
  self:erase()
  for _, line in ipairs(lines) do io.stderr:write(util.clip(line, width), "\27[K\n") end
  self.height, self.drawn = #lines, now()
end

--- Takes the live lines away.
function Screen:close() self:erase() end

return screen
