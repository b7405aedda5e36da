-- memory.lua - the collector sees a few bytes where the core holds a gigabyte, so Lua watches the core's own count: past
-- a limit it collects, and the limit follows what then proves to be in use.

local ffi = require "ffi"
local lib = require "perigee.ffi"

local memory = {}
local stats = ffi.new "pg_memory"
local FLOOR, SLACK = 96e6, 1.25
local limit = FLOOR

--- Collects, and sets the next limit a quarter above what is still live.
function memory.collect()
  collectgarbage()
  lib.pg_memory_stats(lib.PG_CPU, stats)
  limit = math.max(FLOOR, tonumber(stats.live) * SLACK + FLOOR / 2)
end

--- Called for every new tensor.
function memory.watch()
  lib.pg_memory_stats(lib.PG_CPU, stats)
  if stats.live > limit then memory.collect() end
end

--- Bytes that tensors hold.
-- @param device  the core's number of a device; default the cpu
-- @return {live = bytes in use, peak = the most so far, cached = kept for reuse, tensors = handles alive}
function memory.stats(device)
  lib.pg_memory_stats(device or lib.PG_CPU, stats)
  return { live = tonumber(stats.live), peak = tonumber(stats.peak), cached = tonumber(stats.cached),
    tensors = tonumber(stats.tensors) }
end

return memory
