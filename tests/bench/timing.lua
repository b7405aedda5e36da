-- timing.lua - what the benchmarks measure with: dofile "tests/bench/timing.lua".

local pg = require "perigee"

local timing = {}

--- Seconds that a call takes. @param fn, ... what is called, with what @return seconds, and the call's first result
function timing.clock(fn, ...)
  local began = pg.now()
  local value = fn(...)
  return pg.now() - began, value
end

--- The middle one of some numbers, the lower of two. @param list of numbers, which is sorted @return a number
function timing.median(list)
  table.sort(list)
  return list[math.ceil(#list / 2)]
end

--- The most that this process has had resident. @return bytes
function timing.peak()
  for line in io.lines "/proc/self/status" do
    local kib = line:match "^VmHWM:%s*(%d+)"
    if kib then return tonumber(kib) * 1024 end
  end
end

return timing
