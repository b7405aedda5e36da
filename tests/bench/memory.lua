-- memory.lua - what fine-tuning the image tower of CLIP ViT-B/32 takes: random weights, float32, batch 64, AdamW, with the
-- text tower beside it, as a loaded model has it. Peak resident size at most 3 GB; a second word, "recompute", has the
-- blocks' activations computed again in backward.
--
--   LUA_PATH="lua/?.lua;lua/?/init.lua;;" luajit tests/bench/memory.lua [STEPS [recompute]]

local pg = require "perigee"
local timing = dofile "tests/bench/timing.lua"
pg.seed(1)

local BATCH, CLASSES, STEPS, RECOMPUTE = 64, 100, tonumber(arg[1]) or 3, arg[2] == "recompute"

local model, head = pg.models.clip(), pg.models.head(512, CLASSES)
pg.models.recompute(model, RECOMPUTE)
local parameters = model.visual:parameters()
for _, t in ipairs(head:parameters()) do parameters[#parameters + 1] = t end
local optimiser = pg.optim.AdamW(parameters, { lr = 1e-5 })
local images, labels = pg.randn(BATCH, 3, 224, 224), pg.arange(BATCH)
for step = 1, STEPS do
  local began, cpu = pg.now(), os.clock()
  optimiser:zero_grad()
  local loss = pg.scope(function()
    local loss = pg.cross_entropy(head(model:encode_image(images)), labels)
    loss:backward()
    return loss
  end)
  pg.scope(function() optimiser:step() end)
  print(("step %d: loss %.6f, %.2f s, %.2f s of all threads, live at most %.2f GB, resident at most %.2f GB"):format(step,
    loss:item(), pg.now() - began, os.clock() - cpu, pg.memory().peak / 1e9, timing.peak() / 1e9))
  io.stdout:flush()
end
