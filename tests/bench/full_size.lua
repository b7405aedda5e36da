-- full_size.lua - CLIP at its published sizes, random weights: loads what tests/bench/full_size.py wrote, compares with
-- transformers, and fine-tunes the image tower of ViT-B/32 at batch 64 under AdamW, in one piece or in several whose
-- gradients add up. Peak resident size at most 3 GB.
--
--   python3 tests/bench/full_size.py FOLDER
--   LUA_PATH="lua/?.lua;lua/?/init.lua;;" luajit tests/bench/full_size.lua FOLDER/clip-b32 [PIECES]

local pg = require "perigee"
local timing = dofile "tests/bench/timing.lua"
pg.seed(1)

local BATCH, CLASSES, STEPS, PIECES = 64, 100, 2, tonumber(arg[2]) or 1
local folder = arg[1] or error("which folder? tests/bench/full_size.py makes them", 0)

local function timed(what, fn)
  local began = pg.now()
  local result = fn()
  print(("%-52s %8.2f s   peak %.2f GB"):format(what, pg.now() - began, timing.peak() / 1e9))
  return result
end

local function off(expected, got)
  return (expected - got):abs():max():item() / expected:abs():max():item()
end

local model = timed("load " .. folder:match "[^/]*$", function() return (pg.models.load(folder)) end)
local expected = pg.safetensors.load(folder .. "/expected.safetensors")
pg.no_grad(function()
  local image = timed("4 images", function() return model:encode_image(expected.images) end)
  local text = timed("4 texts", function() return model:encode_text(expected.ids) end)
  local logits = model(expected.images, expected.ids)
  print(("relative error: image %.1e, text %.1e, logits %.1e (1e-5)"):format(off(expected.image, image),
    off(expected.text, text), off(expected.logits, logits)))
end)
if model.config.vision.patch ~= 32 then return end

local head = pg.models.head(model.width, CLASSES)
local parameters = model.visual:parameters()
for _, t in ipairs(head:parameters()) do parameters[#parameters + 1] = t end
local optimiser = pg.optim.AdamW(parameters, { lr = 1e-5 })
local images, labels = pg.randn(BATCH, 3, 224, 224), pg.arange(BATCH)
local size = BATCH / PIECES
for step = 1, STEPS do
  timed(("step %d of ViT-B/32, batch %d in %d"):format(step, BATCH, PIECES), function()
    optimiser:zero_grad()
    for from = 1, BATCH, size do
      pg.scope(function()
        local logits = head(model:encode_image(images:narrow(1, from, size)))
        local loss = pg.cross_entropy(logits, labels:narrow(1, from, size)) * (1 / PIECES)
        loss:backward()
      end)
    end
    pg.scope(function() optimiser:step() end)
  end)
  io.stdout:flush()
end
print(("peak resident size %.2f GB (3 GB)  %s"):format(timing.peak() / 1e9, timing.peak() / 1e9 <= 3 and "ok" or "MISSED"))
