-- memory.lua - the collector sees a few bytes where the core holds a gigabyte, so Lua watches the core's own count: past
-- a limit it collects, and the limit follows what then proves to be in use. Each device has its own count and limit.

local ffi = require "ffi"
local lib = require "perigee.ffi"
local util = require "perigee.util"

local memory = {}
local stats = ffi.new "pg_memory"
local FLOOR, SLACK = 96e6, 1.25
local limit = { [lib.PG_CPU] = FLOOR, [lib.PG_CUDA] = FLOOR }
for device, bytes in pairs(limit) do lib.pg_memory_watch(device, bytes) end

--- Not 0 once a tensor has taken a device past its limit: whoever makes tensors then calls memory.heed.
memory.flag = lib.pg_memory_flag()

--- Collects, and sets the next limits a quarter above what is still live.
function memory.collect()
  collectgarbage()
  for device in pairs(limit) do
    lib.pg_memory_stats(device, stats)
    limit[device] = math.max(FLOOR, tonumber(stats.live) * SLACK + FLOOR / 2)
    lib.pg_memory_watch(device, limit[device])
  end
  memory.flag[0] = 0
end

--- Collects if more is live than a limit says: what set the flag may have been a moment inside one long call.
function memory.heed()
  memory.flag[0] = 0
  for device, bytes in pairs(limit) do
    lib.pg_memory_stats(device, stats)
    if tonumber(stats.live) > bytes then return memory.collect() end
  end
end

--- Bytes that tensors hold on a device.
-- @param device  "cpu" (default) or "cuda"
-- @return {live = bytes in use, peak = the most so far, cached = kept for reuse, tensors = storages alive}
-- @raises on another word
function memory.stats(device)
  local number = ({ cpu = lib.PG_CPU, cuda = lib.PG_CUDA })[device or "cpu"]
  util.check(number, "memory: the device is cpu or cuda, got '%s'", tostring(device))
  lib.pg_memory_stats(number, stats)
  return { live = tonumber(stats.live), peak = tonumber(stats.peak), cached = tonumber(stats.cached),
    tensors = tonumber(stats.tensors) }
end

return memory
