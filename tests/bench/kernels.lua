-- kernels.lua - the kernels against the machine's own limits: bare GEMM, copy bandwidth. Medians of nine after warm-up.

local pg = require "perigee"
local ffi = require "ffi"
ffi.cdef "void cblas_sgemm(int, int, int, int, int, int, float, const float *, int, const float *, int, float, float *, int);"
local blas = ffi.load "libopenblas.so.0"

local function median(fn, repeats)
  fn() fn()
  local times = {}
  for i = 1, repeats or 9 do
    local began = pg.now()
    fn()
    times[i] = pg.now() - began
  end
  table.sort(times)
  return times[math.ceil(#times / 2)]
end

local function row(name, seconds, note) print(("%-52s %9.3f ms   %s"):format(name, 1e3 * seconds, note or "")) end

-- ---- linear, forward and backward, against the bare products ----
for _, s in ipairs { { 3200, 768, 2304 }, { 3200, 768, 3072 }, { 3200, 3072, 768 } } do
  local m, k, n = unpack(s)
  local x, w = pg.randn(m, k):requires_grad_(true), (pg.randn(n, k) * 0.02):requires_grad_(true)
  local b, g = pg.zeros(n):requires_grad_(true), pg.randn(m, n)
  local y, dx, dw = pg.empty(m, n), pg.empty(m, k), pg.empty(n, k)
  local bare = function()
    blas.cblas_sgemm(101, 111, 112, m, n, k, 1, x:data(), k, w:data(), k, 0, y:data(), n)
    blas.cblas_sgemm(101, 111, 111, m, k, n, 1, g:data(), n, w:data(), k, 0, dx:data(), k)
    blas.cblas_sgemm(101, 112, 111, n, k, m, 1, g:data(), n, x:data(), k, 0, dw:data(), k)
  end
  local ours = function()
    x.grad, w.grad, b.grad = nil, nil, nil
    pg.linear(x, w, b):backward(g)
  end
  local a, c = median(bare), median(ours)
  row(("linear %dx%dx%d forward + backward"):format(m, k, n), c, ("%.0f%% of bare sgemm"):format(100 * a / c))
end

-- ---- bandwidth: bytes read and written once, against a copy ----
local rows, width = 16384, 1024
local x, y = pg.randn(rows, width), pg.empty(rows, width)
local bytes = 2 * 4 * rows * width
local copy = median(function() y:copy_(x) end)
row("copy of 64 MB", copy, ("%.1f GB/s"):format(bytes / copy / 1e9))
local w, b = pg.ones(width), pg.zeros(width)
for _, op in ipairs { { "layer_norm", function() return pg.layer_norm(x, w, b) end }, { "gelu", function() return x:gelu() end },
  { "softmax", function() return x:softmax(-1) end } } do
  local t = median(function() op[2]():free() end)
  row(op[1] .. " of 64 MB, forward", t, ("%.0f%% of copy"):format(100 * copy / t))
end

-- ---- FDA ----
for _, s in ipairs { { 64, 512, 8 }, { 1024, 768, 32 } } do
  local f = pg.randn(s[1], s[2]):requires_grad_(true)
  local graph = pg.fda.graph(pg.randn(s[1], s[2]), { k = s[3] })
  local t = median(function()
    f.grad = nil
    pg.fda.loss(f, graph):backward()
  end, 21)
  row(("fda_loss B=%d d=%d k=%d forward + backward"):format(unpack(s)), t)
end
