-- bf16.lua - mixed precision against float32, in turns in one process: op linear, forward and backward, at the shapes of
-- ViT-B/32, and a training step of it (AdamW). At least 1.7 times as fast. Beside the wall's time stands the processor's,
-- of all threads, which says more where other work runs.
--
--   LUA_PATH="lua/?.lua;lua/?/init.lua;;" luajit tests/bench/bf16.lua [BATCH=64] [TURNS=7] [THREADS]

local pg = require "perigee"
local timing = dofile "tests/bench/timing.lua"
local lib = require "perigee.ffi"
pg.seed(1)

local BATCH, TURNS, CLASSES, BAR = tonumber(arg[1]) or 64, tonumber(arg[2]) or 7, 100, 1.7
if arg[3] then pg.threads(tonumber(arg[3])) end

-- Medians of fn(precision) in either, in turns after one of each: {wall =, cpu =} by precision.
local function compare(turns, fn)
  local times = { fp32 = { wall = {}, cpu = {} }, bf16 = { wall = {}, cpu = {} } }
  for turn = 0, turns do
    for _, precision in ipairs { "fp32", "bf16" } do
      local wall, cpu = pg.now(), os.clock()
      fn(precision)
      if turn > 0 then
        table.insert(times[precision].wall, pg.now() - wall)
        table.insert(times[precision].cpu, os.clock() - cpu)
      end
    end
  end
  for _, t in pairs(times) do t.wall, t.cpu = timing.median(t.wall), timing.median(t.cpu) end
  return times
end

local function row(name, t, note)
  print(("%-34s %8.1f ms  bf16 %8.1f ms  %.2f times   CPU %8.1f, %8.1f ms  %.2f times%s"):format(name,
    1e3 * t.fp32.wall, 1e3 * t.bf16.wall, t.fp32.wall / t.bf16.wall, 1e3 * t.fp32.cpu, 1e3 * t.bf16.cpu,
    t.fp32.cpu / t.bf16.cpu, note or ""))
end

print(("batch %d, %d threads, bfloat16 by %s"):format(BATCH, pg.threads(),
  lib.pg_bf16_native(-1) == 1 and "AVX-512 BF16" or "emulation in float32"))
for _, s in ipairs { { 768, 2304 }, { 768, 768 }, { 768, 3072 }, { 3072, 768 } } do
  local rows, inputs, outputs = 50 * BATCH, s[1], s[2]
  local x, w = pg.randn(rows, inputs):requires_grad_(true), (pg.randn(outputs, inputs) * 0.02):requires_grad_(true)
  local b, dy = pg.zeros(outputs):requires_grad_(true), pg.randn(rows, outputs)
  row(("linear %dx%dx%d f+b"):format(rows, inputs, outputs), compare(2 * TURNS + 1, function(precision)
    x.grad, w.grad, b.grad = nil, nil, nil
    pg.scope(function() pg.autocast(precision, pg.linear, x, w, b):backward { grad = dy } end)
  end))
end

local model = pg.models.vit { image = 224, patch = 32, width = 768, depth = 12, heads = 12 }
local head = pg.models.head(768, CLASSES)
local images, list = pg.randn(BATCH, 3, 224, 224), {}
for i = 1, BATCH do list[i] = (i - 1) % CLASSES + 1 end
local labels = pg.tensor(list, { dtype = "int32" })
local parameters = model:parameters()
for _, t in ipairs(head:parameters()) do parameters[#parameters + 1] = t end
local adamw = pg.optim.AdamW(parameters, { lr = 1e-5 })

local step = compare(TURNS, function(precision)
  pg.scope(function()
    adamw:zero_grad()
    local loss = pg.autocast(precision, function() return pg.cross_entropy(head(model(images)), labels) end)
    loss:backward()
    adamw:step()
  end)
end)
row("ViT-B/32 step, batch " .. BATCH, step,
  ("   (%.1f)  %s"):format(BAR, step.fp32.wall >= BAR * step.bf16.wall and "ok" or "MISSED"))
