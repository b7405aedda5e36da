-- progress.lua - a bar on stderr for anything over two seconds: done, rate, time left. Silent when stderr is no terminal.
--
--   local bar = pg.progress.new("pre-training", 300)
--   for step = 1, 300 do ... bar:step(step) end
--   bar:done()

local progress, Bar = {}, {}
Bar.__index = Bar

local found, host = pcall(require, "perigee.host")
local now = require("perigee.ffi").pg_now

local PATIENCE, INTERVAL = 2, 0.1 -- seconds before a bar appears, and between two drawings

--- Seconds as "1:02:03" or "4:05". @param seconds number @return text
function progress.clock(seconds)
  local s = math.max(0, math.floor(seconds + 0.5))
  if s >= 3600 then return ("%d:%02d:%02d"):format(math.floor(s / 3600), math.floor(s / 60) % 60, s % 60) end
  return ("%d:%02d"):format(math.floor(s / 60), s % 60)
end

--- A bar.
-- @param title    what is being done
-- @param total    number of steps
-- @param options  {quiet = boolean, unit = "step"}
-- @return an object with :step(at, words), :done()
function progress.new(title, total, options)
  options = options or {}
  local visible = found and not options.quiet and host.isatty(2)
  return setmetatable({ title = title, total = total, unit = options.unit or "step", visible = visible,
    began = now(), drawn = 0, shown = false, at = 0 }, Bar)
end

--- Says how far it is; draws at most ten times a second.
-- @param at     steps done; nil is one more than before
-- @param words  text to show behind the bar, or nil
function Bar:step(at, words)
  self.at = at or self.at + 1
  if not self.visible then return end
  local t = now()
  if t - self.began < PATIENCE or t - self.drawn < INTERVAL then return end
  self.drawn, self.shown = t, true
  local share = math.min(1, self.at / math.max(1, self.total))
  local rate = self.at / (t - self.began)
  local left = rate > 0 and progress.clock((self.total - self.at) / rate) or "?"
  local tail = (" %d/%d  %.3g %ss/s  %s left%s"):format(self.at, self.total, rate, self.unit, left,
    words and "  " .. words or "")
  local columns = host.columns()
  local width = math.max(0, math.min(30, columns - #self.title - #tail - 4))
  local full = math.floor(share * width + 0.5)
  local line = self.title .. " [" .. ("="):rep(full) .. (" "):rep(width - full) .. "]" .. tail
  io.stderr:write("\r", line:sub(1, columns - 1), "\27[K")
end

--- Takes the bar away.
function Bar:done()
  if self.shown then io.stderr:write "\r\27[K" end
  self.shown, self.visible = false, false
end

return progress
