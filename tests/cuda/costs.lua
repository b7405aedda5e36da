-- costs.lua - the operations that report.lua counts and bench.lua times: how to call each, at which sizes, and the least
-- that it can cost.
--
-- An entry: sizes, of three kinds: `tiny` for a test, `counted` for the simulated device, `real` for a GPU;
-- make(pg, s, on) -> a function that runs it forward on tensors that are there, a list of those that want gradients, and
-- the gradient of its output (nil for a scalar); forward and backward, or either, as formulas over the sizes:
--
--   bytes     the least that must pass through global memory: every input that is used read once, every output written
--             once, outputs kept for backward included; float32 and int32 have 4 bytes
--   products  floating-point operations of matrix products, two a multiply-add
--   rest      of everything else: an addition or a multiplication 1; exp, log, erf, a root or a division 16, since a GPU
--             gives 16 of them in the time of 128 multiply-adds

local costs = {}

local function grows(pg, on, ...) return pg.randn({ ... }, on):requires_grad_(true) end

-- Labels 1..classes in turn.
local function labels(pg, n, classes, on)
  local list = {}
  for i = 1, n do list[i] = i % classes + 1 end
  return pg.tensor(list, { dtype = "int32" }):to(on.device)
end

local function attention(name, tiny, counted, real, about)
  return { name = name, sizes = { tiny = tiny, counted = counted, real = real }, about = about,
    make = function(pg, s, on)
      local q, k, v = grows(pg, on, s.B, s.H, s.T, s.D), grows(pg, on, s.B, s.H, s.T, s.D), grows(pg, on, s.B, s.H, s.T, s.D)
      return function() return pg.attention(q, k, v) end, { q, k, v }, pg.randn(s.B, s.H, s.T, s.D, on)
    end,
    forward = { bytes = "4*B*H*T*(4*D + 1)", products = "4*B*H*T*T*D", rest = "20*B*H*T*T" },
    backward = { bytes = "4*B*H*T*(8*D + 1)", products = "10*B*H*T*T*D", rest = "20*B*H*T*T + 2*B*H*T*D" } }
end

costs.list = {
  { name = "gelu", about = "the hidden layer of ViT-B/32's blocks, batch 256",
    sizes = { tiny = { N = 4, D = 64 }, counted = { N = 64, D = 3072 }, real = { N = 12800, D = 3072 } },
    make = function(pg, s, on)
      local x = grows(pg, on, s.N, s.D)
      return function() return x:gelu() end, { x }, pg.randn(s.N, s.D, on)
    end,
    forward = { bytes = "8*N*D", rest = "20*N*D" }, backward = { bytes = "12*N*D", rest = "40*N*D" } },

  { name = "softmax", about = "rows of 1,024",
    sizes = { tiny = { N = 4, D = 64 }, counted = { N = 256, D = 1024 }, real = { N = 16384, D = 1024 } },
    make = function(pg, s, on)
      local x = grows(pg, on, s.N, s.D)
      return function() return x:softmax(-1) end, { x }, pg.randn(s.N, s.D, on)
    end,
    forward = { bytes = "8*N*D", rest = "20*N*D" }, backward = { bytes = "12*N*D", rest = "4*N*D" } },

  { name = "layer_norm", about = "ViT-B/32, batch 256",
    sizes = { tiny = { N = 4, D = 64 }, counted = { N = 512, D = 768 }, real = { N = 12800, D = 768 } },
    make = function(pg, s, on)
      local x, w, b = grows(pg, on, s.N, s.D), grows(pg, on, s.D), grows(pg, on, s.D)
      return function() return pg.layer_norm(x, w, b) end, { x, w, b }, pg.randn(s.N, s.D, on)
    end,
    forward = { bytes = "4*(2*N*D + 2*D + 2*N)", rest = "8*N*D" },
    backward = { bytes = "4*(3*N*D + 3*D + 2*N)", rest = "14*N*D" } },

  { name = "cross_entropy", about = "1,000 classes, batch 256",
    sizes = { tiny = { N = 4, C = 10 }, counted = { N = 256, C = 1000 }, real = { N = 256, C = 1000 } },
    make = function(pg, s, on)
      local x, y = grows(pg, on, s.N, s.C), labels(pg, s.N, s.C, on)
      return function() return pg.cross_entropy(x, y) end, { x }
    end,
    forward = { bytes = "4*(N*C + 2*N + 1)", rest = "19*N*C" },
    backward = { bytes = "4*(2*N*C + 2*N)", rest = "19*N*C" } },

  { name = "linear", about = "the widening layer of ViT-B/32's blocks, batch 256",
    sizes = { tiny = { M = 4, K = 32, N = 32 }, counted = { M = 512, K = 768, N = 768 },
      real = { M = 12800, K = 768, N = 3072 } },
    make = function(pg, s, on)
      local x, w, b = grows(pg, on, s.M, s.K), grows(pg, on, s.N, s.K), grows(pg, on, s.N)
      return function() return pg.linear(x, w, b) end, { x, w, b }, pg.randn(s.M, s.N, on)
    end,
    forward = { bytes = "4*(M*K + N*K + N + M*N)", products = "2*M*N*K", rest = "M*N" },
    backward = { bytes = "4*(M*N + 2*M*K + 2*N*K + N)", products = "4*M*N*K", rest = "M*N" } },

  attention("attention", { B = 1, H = 1, T = 5, D = 8 }, { B = 2, H = 3, T = 50, D = 64 },
    { B = 256, H = 12, T = 50, D = 64 }, "ViT-B/32, batch 256"),
  attention("attention, long", { B = 1, H = 1, T = 40, D = 8 }, { B = 1, H = 2, T = 197, D = 64 },
    { B = 256, H = 12, T = 197, D = 64 }, "ViT-B/16, batch 256"),

  { name = "self_attention", about = "ViT-B/32, batch 256",
    sizes = { tiny = { B = 1, H = 1, T = 5, D = 8 }, counted = { B = 2, H = 3, T = 50, D = 64 },
      real = { B = 256, H = 12, T = 50, D = 64 } },
    make = function(pg, s, on)
      local qkv = grows(pg, on, s.B, s.T, 3 * s.H * s.D)
      return function() return pg.self_attention(qkv, { heads = s.H }) end, { qkv }, pg.randn(s.B, s.T, s.H * s.D, on)
    end,
    forward = { bytes = "4*B*H*T*(4*D + 1)", products = "4*B*H*T*T*D", rest = "20*B*H*T*T" },
    backward = { bytes = "4*B*H*T*(8*D + 1)", products = "10*B*H*T*T*D", rest = "20*B*H*T*T + 2*B*H*T*D" } },

  { name = "softmax_regression", about = "a probe's step: 50,000 features, 10 classes",
    sizes = { tiny = { N = 8, D = 16, C = 3 }, counted = { N = 512, D = 256, C = 10 },
      real = { N = 50000, D = 512, C = 10 } },
    make = function(pg, s, on)
      local x, w, b = pg.randn(s.N, s.D, on), grows(pg, on, s.C, s.D), grows(pg, on, s.C)
      local y = labels(pg, s.N, s.C, on)
      return function() return (pg.softmax_regression(x, w, b, y)) end, { w, b }
    end,
    forward = { bytes = "4*(N*D + 2*C*D + 2*C + N + 1)", products = "4*N*C*D", rest = "36*N*C" },
    backward = { bytes = "8*C*(D + 1) + 4", rest = "C*(D + 1)" } },

  { name = "knn", about = "a probe: 10,000 queries among 50,000 features",
    sizes = { tiny = { Q = 4, N = 16, D = 8, k = 2 }, counted = { Q = 128, N = 512, D = 128, k = 20 },
      real = { Q = 10000, N = 50000, D = 512, k = 20 } },
    make = function(pg, s, on)
      local q, x = pg.randn(s.Q, s.D, on), pg.randn(s.N, s.D, on)
      return function() return pg.knn(q, x, { k = s.k }) end
    end,
    forward = { bytes = "4*(Q*D + N*D + 2*Q*k)", products = "2*Q*N*D", rest = "3*Q*N" } },

  { name = "fda_weights", about = "the graph of a batch of 256, CLIP ViT-B/32 features",
    sizes = { tiny = { B = 8, D = 16, k = 2 }, counted = { B = 256, D = 512, k = 16 },
      real = { B = 256, D = 512, k = 16 } },
    make = function(pg, s, on)
      local unit = pg.randn(s.B, s.D, on):normalize()
      local nearest, neighbors = pg.knn(unit, unit, { k = s.k })
      return function() return pg.fda_weights(unit, neighbors, nearest) end
    end,
    forward = { bytes = "4*(B*D + 2*B*k + B*B)", products = "2*B*B*D", rest = "3*B*B" } },

  { name = "fda_loss", about = "batch 256, CLIP ViT-B/32 features",
    sizes = { tiny = { B = 8, D = 16 }, counted = { B = 256, D = 512 }, real = { B = 256, D = 512 } },
    make = function(pg, s, on)
      local x, w = grows(pg, on, s.B, s.D), pg.randn(s.B, s.B, on)
      return function() return pg.fda_loss(x, w, nil, nil, { tau = 0.1, bias_value = 5 }) end, { x }
    end,
    forward = { bytes = "4*(2*B*D + 2*B*B + B + 3)", products = "2*B*B*D", rest = "58*B*B + 3*B*D" },
    backward = { bytes = "4*(2*B*D + B*B + 1)", products = "2*B*B*D", rest = "B*D" } },

  { name = "proxy_pool", about = "batch 256, 0.4 of the others as proxies",
    sizes = { tiny = { B = 4, N = 8, P = 2, D = 16 }, counted = { B = 16, N = 64, P = 24, D = 128 },
      real = { B = 256, N = 256, P = 99, D = 512 } },
    make = function(pg, s, on)
      local logits, mask, x = grows(pg, on, s.B, s.N, s.P), pg.ones(s.B, s.N, on), grows(pg, on, s.N, s.D)
      return function() return (pg.proxy_pool(logits, mask, x)) end, { logits, x }, pg.randn(s.B, s.P, s.D, on)
    end,
    forward = { bytes = "4*(2*B*N*P + B*N + N*D + B*P*D)", products = "2*B*P*N*D", rest = "20*B*N*P" },
    backward = { bytes = "4*(3*B*N*P + B*P*D + 2*N*D)", products = "4*B*P*N*D", rest = "5*B*N*P" } },

  { name = "adamw_", about = "the 88 million parameters of ViT-B/32",
    sizes = { tiny = { L = 2, N = 100 }, counted = { L = 8, N = 32768 }, real = { L = 152, N = 577536 } },
    make = function(pg, s, on)
      local tensors = {}
      for role = 1, 4 do
        for _ = 1, s.L do tensors[#tensors + 1] = role < 3 and pg.randn(s.N, on) or pg.zeros(s.N, on) end
      end
      local options = { lr = 1e-4, weight_decay = 0.01, step = 10 }
      return function() return pg.adamw_(tensors, options) end
    end,
    forward = { bytes = "28*L*N", rest = "44*L*N" } },
}

--- A formula's value at sizes s; 0 for none.
function costs.value(formula, s)
  return formula and setfenv(assert(loadstring("return " .. formula)), s)() or 0
end

--- "N=512 D=768", in the order of the alphabet.
function costs.size_text(s)
  local words = {}
  for name, value in pairs(s) do words[#words + 1] = name .. "=" .. value end
  table.sort(words)
  return table.concat(words, " ")
end

-- An H100 SXM: measured copy bandwidth, float32 outside of tensor cores, bfloat16 and TF32 in them, dense.
costs.h100 = { bytes = 3.0e12, float32 = 67e12, bfloat16 = 990e12, tf32 = 495e12 }

--- The least time on an H100 and what sets it, "memory" or "arithmetic".
-- @param pass   an entry's forward or backward
-- @param s      sizes
-- @param kind   "float32"; "tf32": float32 whose products take tensor cores; "bfloat16": half the bytes too
-- @return seconds, word
function costs.bound(pass, s, kind)
  local h = costs.h100
  local memory = costs.value(pass.bytes, s) / h.bytes / (kind == "bfloat16" and 2 or 1)
  local products, rest = costs.value(pass.products, s) / h[kind], costs.value(pass.rest, s) / h.float32
  local arithmetic = kind == "float32" and products + rest or math.max(products, rest) -- two kinds of units at once
  return math.max(memory, arithmetic), memory >= arithmetic and "memory" or "arithmetic"
end

--- A pass of an entry as a function that can be called again and again.
-- @param pg     the package
-- @param entry  of costs.list
-- @param s      sizes
-- @param which  "forward" or "backward"
-- @return the function; what it needs stands on the device
-- @raises where the device has no kernel
function costs.prepare(pg, entry, s, which)
  local run, leaves, grad = entry.make(pg, s, { device = "cuda" })
  if which == "forward" then return function() pg.scope(function() pg.no_grad(run) end) end end
  local out = run()
  return function()
    for _, leaf in ipairs(leaves) do leaf.grad = nil end
    out:backward { grad = grad, retain = true }
  end
end

--- What an error of prepare, or of what it gave, says in one line, without the place that raised it.
function costs.reason(raised)
  return (tostring(type(raised) == "table" and raised.message or raised):match("[^\n]*"):gsub("^%S+:%d+: ", ""))
end

return costs
