-- memory.lua - the collector sees a few bytes where the core holds a gigabyte, so Lua watches the core's own count: past
-- a limit it collects, and the limit follows what then proves to be in use. Each device has its own count and limit.

local ffi = require "ffi"
local lib = require "perigee.ffi"
local util = require "perigee.util"

local memory = {}
local stats = ffi.new "pg_memory"
local FLOOR, SLACK = 96e6, 1.25
local limit = { [lib.PG_CPU] = FLOOR, [lib.PG_CUDA] = FLOOR }

--- Collects, and sets the next limits a quarter above what is still live.
function memory.collect()
  collectgarbage()
  for device in pairs(limit) do
    lib.pg_memory_stats(device, stats)
    limit[device] = math.max(FLOOR, tonumber(stats.live) * SLACK + FLOOR / 2)
  end
end

--- Called for every new tensor. @param device the core's number of the device that it is on
function memory.watch(device)
  lib.pg_memory_stats(device, stats)
  if stats.live > limit[device] then memory.collect() end
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
