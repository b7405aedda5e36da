-- knn.lua - exact nearest neighbours by inner product, top 32, against FAISS's flat index and against the bare products by
-- OpenBLAS, in turns; medians. Python's FAISS runs in a process of its own, which is asked for one search at a time.
--
--   luajit tests/bench/knn.lua [PYTHON [REPEATS]]

local pg = require "perigee"
local timing = dofile "tests/bench/timing.lua"
local ffi = require "ffi"
ffi.cdef "void cblas_sgemm(int, int, int, int, int, int, float, const float *, int, const float *, int, float, float *, int);"
local blas = ffi.load "libopenblas.so.0"
local python, repeats = arg[1] or "/usr/bin/python3", tonumber(arg[2]) or 7

local ask, answers
if os.execute(python .. " -c 'import faiss' 2>/dev/null") == 0 then
  local pipe = "build/bench-knn.pipe"
  os.execute(("rm -f %s && mkfifo %s"):format(pipe, pipe))
  answers = io.popen(("%s tests/bench/faiss_knn.py %d <%s"):format(python, pg.threads(), pipe))
  ask = assert(io.open(pipe, "w"))
  print("FAISS " .. answers:read "*l" .. ", flat, inner product")
else
  print("FAISS: skipped, " .. python .. " cannot import it")
end

-- what, queries, database, width, bars: times FAISS in float32 and screened, share of the rate of the products
for _, case in ipairs { { "query", 10000, 100000, 512, 1.08, 1.8, 0.92 }, { "self", 20000, 20000, 768, 1.7, 1.7 } } do
  local what, q, n, d, bar, screened_bar, rate_bar = unpack(case)
  local b = pg.randn(n, d)
  local a = what == "self" and b or pg.randn(q, d)
  local block = 10000 -- columns of the products at a time
  local products = pg.empty(q, block)
  local function ours(screen) return function() pg.knn(a, b, { k = 32, metric = "ip", screen = screen }) end end
  local runs = { float32 = ours(false), screened = ours(true), products = function()
    for j = 0, n - block, block do
      blas.cblas_sgemm(101, 111, 112, q, block, d, 1, a:data(), d, b:data() + j * d, d, 0, products:data(), block)
    end
  end }
  local times = { float32 = {}, screened = {}, products = {}, faiss = {} }
  for i = 0, repeats do -- the first one warms up
    for name, fn in pairs(runs) do times[name][i] = timing.clock(fn) end
    if ask then
      ask:write(what, "\n")
      ask:flush()
      times.faiss[i] = answers:read "*n"
    end
  end
  local faiss = ask and timing.median(times.faiss)
  local bare = timing.median(times.products)
  for _, way in ipairs { { "float32", bar, rate_bar }, { "screened", screened_bar } } do
    local name, least, least_rate = unpack(way)
    local t = timing.median(times[name])
    local against = faiss and ("%5.2fx FAISS at %.2f s (%.2f)  %s"):format(faiss / t, faiss, least,
      faiss / t >= least and "ok" or "MISSED") or ""
    local rate = least_rate and ("%4.0f%% of the products' rate (%.0f%%)  %s"):format(100 * bare / t, 100 * least_rate,
      bare / t >= least_rate and "ok" or "MISSED") or ""
    print(("%-46s %9.3f s    %s  %s"):format(("knn %s %d x %d, d = %d, %s"):format(what, n, q, d, name), t, against, rate))
  end
end
if ask then ask:close() answers:close() end
