-- load.lua - what loading a file of 600 MB costs once it is in the page cache: seconds by the wall and of processor time
-- (medians of five fresh processes), against 1 s, or 2 s where values are widened to 1,200 MB; and how far resident memory
-- grows, against 1.1 times the size of the tensors.
--   luajit tests/bench/load.lua [FOLDER]          where the file is for the while, /tmp by default

local pg = require "perigee"
local timing = dofile "tests/bench/timing.lua"

local FOLDER, BYTES, TENSORS, RUNS = arg[1] or "/tmp", 600e6, 60, 5

-- In a process of its own: loads, and says for how long and by how many bytes the peak of resident memory grew.
local CHILD = [[
local pg = require "perigee"
local peak = dofile("tests/bench/timing.lua").peak
local before, began, used = peak(), pg.now(), os.clock()
local tensors = pg[arg[1] ].load(arg[2])
io.write(pg.now() - began, " ", os.clock() - used, " ", peak() - before, "\n")
]]

local function verdict(good) return good and "ok" or "MISSED" end

local function measure(name, module, path, limit, resident)
  local script = os.tmpname()
  local file = assert(io.open(script, "w"))
  file:write(CHILD)
  file:close()
  local seconds, cpu, growth = {}, {}, 0
  for i = 1, RUNS do
    local pipe = assert(io.popen(("luajit %s %s %s"):format(script, module, path)))
    local took, used, grew = pipe:read("*n", "*n", "*n")
    pipe:close()
    seconds[i], cpu[i], growth = took, used, math.max(growth, grew)
  end
  os.remove(script)
  local took = timing.median(seconds)
  print(("%-28s %5.2f s (%d)  %-6s  %5.2f s of CPU  %4.0f MB resident, %.2f of the tensors (1.1)  %s"):format(name, took,
    limit, verdict(took < limit), timing.median(cpu), growth / 1e6, growth / resident, verdict(growth < 1.1 * resident)))
end

local function tensors(values) -- the same values under each name: making them all would take a minute
  local list, t = {}, pg.randn(values / TENSORS / 1000, 1000)
  for i = 1, TENSORS do list[("layer.%d.weight"):format(i)] = t end
  return list
end

local path = FOLDER .. "/perigee-load"
local ok, reason = pcall(function()
  local single, half = tensors(BYTES / 4), tensors(BYTES / 2)
  pg.safetensors.save(path, single)
  measure("safetensors, float32", "safetensors", path, 1, BYTES)
  pg.npz.save(path, single)
  measure("npz, float32, stored", "npz", path, 1, BYTES)
  for _, dtype in ipairs { "bfloat16", "float16" } do
    pg.safetensors.save(path, half, nil, { dtype = dtype })
    measure("safetensors, " .. dtype, "safetensors", path, 2, 2 * BYTES)
  end
end)
os.remove(path)
assert(ok, reason)
