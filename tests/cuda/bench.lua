-- bench.lua - times the operations of costs.lua on this machine's GPU against the least that an H100 needs for each:
-- `make bench-cuda`; with an argument, only those whose name holds it. On the simulated device it runs at tiny sizes,
-- to show that it runs; its times mean nothing there.

local pg = require "perigee"
local lib = require "perigee.ffi"
local costs = require "cuda.costs"
local device = require "cuda.device"
local ffi = require "ffi"

local REPEATS, SAMPLE = 9, 0.02 -- medians of so many samples, each of at least so many seconds
if device.simulated then REPEATS, SAMPLE = 1, 0 end

local function wait()
  if lib.pg_synchronize(1) ~= 0 then error(ffi.string(lib.pg_last_error()), 0) end
end

local function seconds(run, calls)
  local began = pg.now()
  for _ = 1, calls do run() end
  wait()
  return pg.now() - began
end

-- Seconds a call: so many calls in a row that launching them is hidden behind what runs; median of samples.
local function time(run)
  seconds(run, 1)
  local calls = 1
  while seconds(run, calls) < SAMPLE do calls = calls * 2 end
  local times = {}
  for i = 1, REPEATS do times[i] = seconds(run, calls) / calls end
  table.sort(times)
  return times[math.ceil(REPEATS / 2)]
end

local about = lib.pg_device_describe(1)
if about == nil then
  io.stderr:write(ffi.string(lib.pg_last_error()), "\n")
  os.exit(1)
end
print("device: " .. ffi.string(about))
if device.simulated then print "simulated: tiny sizes, and the times mean nothing" end
local kind = os.getenv("PERIGEE_TF32") == "1" and "tf32" or "float32"
print(("bounds: an H100, 3.0 TB/s, 67 TFLOP/s%s; docs/cuda-report.md has the formulas"):format(
  kind == "tf32" and ", products 495" or ""))

local row = "%-26s %-34s %12s %12s %8s  %s"
print(row:format("operation", "sizes", "time", "bound", "of bound", "bound by"))
for _, entry in ipairs(costs.list) do
  local s = device.simulated and entry.sizes.tiny or entry.sizes.real
  for _, which in ipairs { "forward", "backward" } do
    if entry[which] and entry.name:find(arg[1] or "", 1, true) then
      local name, sizes = entry.name .. " " .. which, costs.size_text(s)
      local ok, result = pcall(function() return time(costs.prepare(pg, entry, s, which)) end)
      if ok then
        local bound, by = costs.bound(entry[which], s, kind)
        print(row:format(name, sizes, ("%.1f us"):format(1e6 * result), ("%.1f us"):format(1e6 * bound),
          ("%.0f%%"):format(100 * bound / result), by))
      else
        print(row:format(name, sizes, "-", "-", "-", costs.reason(result)))
      end
      collectgarbage()
    end
  end
end
