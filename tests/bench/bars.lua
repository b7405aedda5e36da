-- bars.lua - Perigee beside PyTorch, scikit-learn and POT: one table, a row a bar. Each side is a process of its own
-- (ours.lua, theirs.py) that does its work once when told; they are told in turns, so that what else the machine does meets
-- all, and what counts are medians of seven rounds or more after one that does not.
--
--   luajit tests/bench/bars.lua [PATTERNS] [ROUNDS]     only rows whose name holds one of PATTERNS, with ; between
--
-- tests/bench/run.sh sets the environment that this needs.

local pg = require "perigee"
local timing = dofile "tests/bench/timing.lua"
local ffi = require "ffi"
local lib = require "perigee.ffi"
local pattern, ROUNDS = arg[1] or "", tonumber(arg[2] or 7)
local PYTHON = os.getenv "PYTHON" or "/usr/bin/python3"
-- PyTorch at its best on this machine: OpenBLAS's OpenMP flavour instead of its own threads, and memory that it keeps.
local BLAS = os.getenv "BLAS_FOLDER" or ""
local TUNED = "MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=67108864 "
  .. (BLAS ~= "" and "LD_LIBRARY_PATH=" .. BLAS .. " " or "")

-- ---- two processes in turns -------------------------------------------------------------------------------------------

local fifos = 0

-- Starts a side; nil where it has nothing to offer. .again() makes it work once; .stop() returns its peak of memory.
local function start(command)
  fifos = fifos + 1
  local fifo = ("build/bench-%d.fifo"):format(fifos)
  os.execute("rm -f " .. fifo .. " && mkfifo " .. fifo)
  local output = io.popen(command .. " < " .. fifo .. " 2>> build/bench-errors.txt")
  local input = assert(io.open(fifo, "w"))
  input:setvbuf "line"
  if output:read "*l" ~= "ready" then
    input:close()
    output:close()
    os.remove(fifo)
    return nil
  end
  local side = {}
  function side.again()
    input:write "again\n"
    local line = output:read "*l" or error("it ended: " .. command .. " (see build/bench-errors.txt)", 0)
    local seconds, number = line:match "^(%S+)%s*(%S*)"
    return tonumber(seconds), tonumber(number)
  end
  function side.stop()
    input:write "end\n" -- closing it would not do: sides that were started later hold it open too
    local peak = tonumber(output:read "*l")
    input:close()
    output:close()
    os.remove(fifo)
    return peak
  end
  return side
end

local function threaded(threads, command) return ("OMP_NUM_THREADS=%d %s"):format(threads, command) end
local function ours(threads, what) return threaded(threads, "luajit tests/bench/ours.lua " .. what) end
local function theirs(threads, what) return TUNED .. threaded(threads, PYTHON .. " tests/bench/theirs.py " .. what) end

-- A whole program each time.
local function program(command)
  return { again = function()
    local began = pg.now()
    local status = os.execute(command .. " > build/bench-output.txt 2>> build/bench-errors.txt")
    if status ~= 0 then error("it failed: " .. command .. " (see build/bench-errors.txt)", 0) end
    return pg.now() - began
  end, stop = function() end }
end

-- sides: {name = side}; returns {name = {seconds = median, number, peak}}
local function measure(sides, rounds)
  local result = {}
  for name in pairs(sides) do result[name] = { times = {} } end
  for round = 0, rounds do
    for name, side in pairs(sides) do
      local seconds, number = side.again()
      if round > 0 then table.insert(result[name].times, seconds) end
      result[name].number = number
    end
  end
  for name, side in pairs(sides) do
    result[name].seconds, result[name].peak = timing.median(result[name].times), side.stop()
  end
  return result
end

-- ---- the table --------------------------------------------------------------------------------------------------------

local function has(module)
  local pipe = io.popen(PYTHON .. " tests/bench/theirs.py has " .. module .. " 2>/dev/null")
  local line = pipe:read "*l"
  pipe:close()
  return line
end
local torch, sklearn, ot = has "torch", has "sklearn", has "ot"

local function time_text(seconds)
  if seconds < 1e-3 then return ("%.2f us"):format(1e6 * seconds) end
  return seconds < 1 and ("%.1f ms"):format(1e3 * seconds) or ("%.2f s"):format(seconds)
end

local COLUMNS = "%-46s %10s  %-26s %-14s %-10s %s"
local function row(name, mine, other, figure, bar, met)
  print(COLUMNS:format(name, type(mine) == "number" and time_text(mine) or mine, other or "", figure or "", bar or "",
    met == nil and "" or met and "ok" or "MISSED"))
  io.stdout:flush()
end
local function against(name, mine, other, label, bar, slower)
  local ratio = other / mine
  row(name, mine, label .. " " .. time_text(other), ("%.2fx"):format(ratio), ("%sx"):format(bar), ratio >= bar)
  return slower
end
local function skipped(name, what) row(name, "", what .. " is not installed", "", "", nil) end

local function wanted(name)
  for part in (pattern == "" and name or pattern):gmatch "[^;]+" do
    if name:find(part, 1, true) then return true end
  end
end

-- ---- training steps ---------------------------------------------------------------------------------------------------

local step_of_64 -- seconds, two threads: what shares are shares of
local function training_step(title, model, batch, threads, bar, gemm_bar)
  local name = ("%s, batch %d, %d thread%s"):format(title, batch, threads, threads > 1 and "s" or "")
  if not wanted(name) then return end
  -- PyTorch's models compute every token of the last block. So does the side that is held against the bar; `short` does
  -- what the recipes do.
  local sides = { mine = start(ours(threads, ("vit %s %d all"):format(model, batch))),
    short = start(ours(threads, ("vit %s %d"):format(model, batch))) }
  for _, attention in ipairs { "explicit", "sdpa" } do
    sides[attention] = torch and start(theirs(threads, ("vit %s %d %s"):format(model, batch, attention)))
  end
  if gemm_bar then sides.gemms = start(ours(threads, ("gemms %s %d"):format(model, batch))) end
  local whole = model == "b32" and batch == 64 and threads == 2
  if whole then sides.again = start(ours(threads, "vit b32 64 recompute")) end
  local r = measure(sides, ROUNDS)
  if whole then step_of_64 = r.short.seconds end
  local best = r.explicit
  if r.sdpa and r.sdpa.seconds < best.seconds then best = r.sdpa end
  if best then
    against(name, r.mine.seconds, best.seconds, best == r.sdpa and "PyTorch, sdpa" or "PyTorch", bar)
  else
    skipped(name, "PyTorch")
    row(name, r.mine.seconds)
  end
  row("  the last block for the class token alone", r.short.seconds, "",
    best and ("%.2fx"):format(best.seconds / r.short.seconds))
  if r.gemms then
    local share = r.gemms.seconds / r.mine.seconds
    row("  products of its linear layers by BLAS alone", r.gemms.seconds, "", ("%.1f%%"):format(100 * share),
      ("%d%%"):format(100 * gemm_bar), share >= gemm_bar)
  end
  if best and gemm_bar and batch == 64 then
    local part = r.mine.peak / best.peak
    row("  peak resident size", ("%.2f GB"):format(r.mine.peak / 1e9), ("PyTorch %.2f GB"):format(best.peak / 1e9),
      ("%.2f of it"):format(part), "0.5", part <= 0.5)
    row("  the same for the class token alone", ("%.2f GB"):format(r.short.peak / 1e9), "",
      ("%.2f of it"):format(r.short.peak / best.peak))
  end
  if whole then
    local slower = r.again.seconds / r.mine.seconds
    row("  activations computed again in backward", r.again.seconds, "", ("%.2f of time"):format(slower), "1.3", slower <= 1.3)
    local part = best and r.again.peak / best.peak
    row("    peak resident size", ("%.2f GB"):format(r.again.peak / 1e9), "", part and ("%.2f of it"):format(part), "0.25",
      part and part <= 0.25)
  end
end

-- ---- all rows -----------------------------------------------------------------------------------------------------------

print(("%s, %s"):format(ffi.string(lib.pg_cpu_name()), table.concat({ torch or "no PyTorch", sklearn or "no scikit-learn",
  ot and ot:gsub("^ot", "POT") or "no POT" }, ", ")))
print(COLUMNS:format("work", "Perigee", "other side", "figure", "bar", ""))

for _, batch in ipairs { 64, 16 } do
  for _, threads in ipairs { 2, 1 } do
    training_step("ViT-B/32 step", "b32", batch, threads, batch == 64 and 1.12 or 1.2, 0.93)
  end
end
for _, threads in ipairs { 2, 1 } do training_step("ViT 192 x 6, 65 tokens, step", "small", 64, threads, 1.5) end

if wanted "FDA, batch 64" then
  for _, kind in ipairs { { "plain", "FDA, batch 64", 0.01 }, { "proxy", "Proxy-FDA, batch 64", 0.04 } } do
    local t = measure({ mine = start(ours(2, "fda " .. kind[1])) }, 15).mine.seconds
    local share = step_of_64 and t / (t + step_of_64)
    row(kind[2] .. ", features cached", t, "", share and ("%.2f%% of step"):format(100 * share) or "(no step timed)",
      share and ("%d%%"):format(100 * kind[3]), share and share <= kind[3])
  end
end

if wanted "FDA, B = 4,096" then
  local r = measure({ half = start(ours(2, "fda_large 2048")), whole = start(ours(2, "fda_large 4096")) }, ROUNDS)
  local growth = r.whole.seconds / r.half.seconds
  row("FDA, B = 4,096, d = 768: against B = 2,048", r.whole.seconds, "B = 2,048: " .. time_text(r.half.seconds),
    ("%.2fx"):format(growth), "4x, B^2", growth <= 4.4)
  row("  (B, B) matrices alive at once", ("%.1f"):format(r.whole.number), "", "", "3", r.whole.number <= 3.2)
end

if wanted "probe" then
  local sides = { mine = start(ours(2, "probe build")) } -- it has written the files when it is ready
  sides.other = sklearn and start(theirs(2, "probe build"))
  local r = measure(sides, ROUNDS)
  if r.other then
    against("linear probe, 50,000 x 512, 10 classes", r.mine.seconds, r.other.seconds, "scikit-learn", 5)
    row("  its loss", ("%.7f"):format(r.mine.number), ("scikit-learn %.7f"):format(r.other.number),
      ("%+.1e"):format(r.mine.number / r.other.number - 1), "1e-5", r.mine.number <= r.other.number * (1 + 1e-5))
  else
    row("linear probe, 50,000 x 512, 10 classes", r.mine.seconds, "scikit-learn is not installed")
  end
end

if wanted "Sinkhorn" then
  local sides = { mine = start(ours(2, "sinkhorn")) }
  sides.torch, sides.ot = torch and start(theirs(2, "sinkhorn torch")), ot and start(theirs(2, "sinkhorn ot"))
  local r, name = measure(sides, ROUNDS), "Sinkhorn 2,000 x 2,000, 100 iterations"
  for _, other in ipairs { { r.torch, "PyTorch" }, { r.ot, "POT" } } do
    if other[1] then against(name, r.mine.seconds, other[1].seconds, other[2], 4) else skipped(name, other[2]) end
  end
end

if wanted "call" then
  local t = measure({ mine = start(ours(1, "call")) }, 21).mine.seconds
  row("a recorded op on 4 x 4, a call", t, "", "", "1.50 us", t < 1.5e-6)
end

if wanted "start" then
  local sides = { mine = program(threaded(2, "luajit tests/bench/first_step.lua")),
    other = torch and program(TUNED .. threaded(2, PYTHON .. " tests/bench/first_step.py")) }
  local r, name = measure(sides, ROUNDS), "start to first training step of the demo"
  if r.other then against(name, r.mine.seconds, r.other.seconds, "PyTorch", 5) else row(name, r.mine.seconds) end
end

if wanted "two processes" then -- ranks.lua prints the median of a step
  local ROOT = "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 "
  local function ranks(launch, threads)
    return { again = function()
      local pipe = io.popen(("%s build/perigee run tests/bench/ranks.lua --threads %d 2>> build/bench-errors.txt"):format(launch,
        threads))
      local said = pipe:read "*a"
      pipe:close()
      return tonumber(said:match "(%S+) s a step") or error("ranks.lua failed (see build/bench-errors.txt)", 0)
    end, stop = function() end }
  end
  local name = "a step by two processes of one thread, MPI"
  if os.execute "command -v mpirun > /dev/null" == 0 then
    local r = measure({ mine = ranks(ROOT .. "mpirun --bind-to core -n 2", 1), other = ranks("OMP_NUM_THREADS=2", 2) }, 3)
    against(name, r.mine.seconds, r.other.seconds, "two threads", 0.9)
  else
    skipped(name, "mpirun")
  end
end
