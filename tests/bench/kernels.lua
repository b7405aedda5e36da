-- kernels.lua - the kernels against the machine's own limits, bare GEMM and copy bandwidth, as ratios. A kernel and its
-- reference are timed in turns in this process, so that what else the machine does meets both; medians.

local pg = require "perigee"
local timing = dofile "tests/bench/timing.lua"
local ffi = require "ffi"
ffi.cdef "void cblas_sgemm(int, int, int, int, int, int, float, const float *, int, const float *, int, float, float *, int);"
local blas = ffi.load "libopenblas.so.0"

-- torch_kernels.py writes "name seconds" lines; without PyTorch the file is empty
local torch = {}
for line in io.lines(arg[1] or "/dev/null") do
  local name, seconds = line:match "^(.+)\t(%S+)$"
  if name then torch[name] = tonumber(seconds) end
end

-- Medians of functions called in turns. A function may return the seconds that count; otherwise all of it does.
local function medians(repeats, ...)
  local fns, times, result = { ... }, {}, {}
  for i = -1, repeats do
    for k, fn in ipairs(fns) do
      local own
      local all = timing.clock(function() own = fn() end)
      times[k] = times[k] or {}
      if i > 0 then times[k][i] = own or all end
    end
  end
  for k in ipairs(fns) do result[k] = timing.median(times[k]) end
  return unpack(result)
end

local function row(name, seconds, note, met)
  local against = torch[name] and (" %5.2fx PyTorch"):format(torch[name] / seconds) or ""
  print(("%-46s %9.3f ms   %-32s%s"):format(name, 1e3 * seconds,
    (note or "") .. (met == nil and "" or met and "  ok" or "  MISSED"), against))
end

-- ---- linear, forward and backward, against the bare products: at least 95% ----
for _, s in ipairs { { 3200, 768, 2304 }, { 3200, 768, 3072 }, { 3200, 3072, 768 } } do
  local m, k, n = unpack(s)
  local x, w = pg.randn(m, k):requires_grad_(true), (pg.randn(n, k) * 0.02):requires_grad_(true)
  local b, g = pg.zeros(n):requires_grad_(true), pg.randn(m, n)
  local y, dx, dw = pg.empty(m, n), pg.empty(m, k), pg.empty(n, k)
  local bare, ours = medians(11, function()
    blas.cblas_sgemm(101, 111, 112, m, n, k, 1, x:data(), k, w:data(), k, 0, y:data(), n)
    blas.cblas_sgemm(101, 111, 111, m, k, n, 1, g:data(), n, w:data(), k, 0, dx:data(), k)
    blas.cblas_sgemm(101, 112, 111, n, k, m, 1, g:data(), n, x:data(), k, 0, dw:data(), k)
  end, function()
    x.grad, w.grad, b.grad = nil, nil, nil
    local out = pg.linear(x, w, b)
    out:backward(g)
    out:free()
  end)
  row(("linear %dx%dx%d f+b"):format(m, k, n), ours, ("%.0f%% of bare sgemm (95%%)"):format(100 * bare / ours),
    bare / ours >= 0.95)
end

-- ---- bandwidth, bytes read plus bytes written, against a copy between warm buffers: at least 70% forward ----
for _, shape in ipairs { { 3200, 3072 }, { 16384, 1024 } } do
  local rows, width = unpack(shape)
  local size = ("%dx%d"):format(rows, width)
  local x, y, g = pg.randn(rows, width), pg.empty(rows, width), pg.randn(rows, width)
  local w, b = pg.ones(width):requires_grad_(true), pg.zeros(width):requires_grad_(true)
  local bytes, tracked = 8 * rows * width, x:detach():requires_grad_(true)
  local function copy() y:copy_(x) end
  for _, op in ipairs { { "layer_norm", function(t) return pg.layer_norm(t, w, b) end },
    { "gelu", function(t) return t:gelu() end }, { "softmax", function(t) return t:softmax(-1) end } } do
    local name, fn = unpack(op)
    local reference, forward, backward = medians(15, copy, function() pg.no_grad(function() fn(x):free() end) end, function()
      local out = fn(tracked)
      local seconds = timing.clock(function() out:backward(g) end)
      tracked.grad, w.grad, b.grad = nil, nil, nil
      out:free()
      return seconds
    end)
    row(("%s %s forward"):format(name, size), forward,
      ("%.0f%% of copy at %.0f GB/s (70%%)"):format(100 * reference / forward, bytes / reference / 1e9),
      reference / forward >= 0.7)
    row(("%s %s backward"):format(name, size), backward, ("%.0f%% of copy, 3 streams"):format(150 * reference / backward))
  end
end

-- ---- FDA: 0.2 ms and 30 ms ----
for _, s in ipairs { { 64, 512, 8, 0.2e-3 }, { 1024, 768, 32, 30e-3 } } do
  local f = pg.randn(s[1], s[2]):requires_grad_(true)
  local graph = pg.fda.graph(pg.randn(s[1], s[2]), { k = s[3] })
  local t = medians(s[1] == 64 and 301 or 21, function()
    f.grad = nil
    pg.fda.loss(f, graph):backward()
  end)
  row(("fda_loss B=%d d=%d k=%d f+b"):format(unpack(s)), t, ("at most %g ms"):format(1e3 * s[4]), t <= s[4])
end

-- ---- what a call costs ----
do
  local small = pg.randn(4, 4):requires_grad_(true)
  local calls = 2000
  local t = medians(21, function()
    for _ = 1, calls do small:gelu() end
  end) / calls
  row("a recorded op on 4x4, a call", t, ("%.2f us (1.5 us)"):format(1e6 * t), t <= 1.5e-6)
end
