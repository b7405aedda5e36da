-- ranks.lua - a training step on several processes against one: a vision transformer of width 192, 6 layers, 65 tokens,
-- batch 64 of all processes together, with FDA; prints the median time of a step.
--
--   build/perigee run tests/bench/ranks.lua --threads 2
--   mpirun -n 2 build/perigee run tests/bench/ranks.lua --threads 1

local pg = require "perigee"
local timing = dofile "tests/bench/timing.lua"
local opt = pg.recipe { name = "ranks", options = {
  { "steps", 9, min = 3, help = "steps that are timed, after three others" },
  { "batch", 64, min = 8, help = "images of all processes together" },
  { "width", 192, min = 8, help = "of the transformer" },
  { "depth", 6, min = 1, help = "its blocks" },
} }
local run, d = pg.run.open(opt), pg.distributed
local function model() return pg.models.vit { width = opt.width, depth = opt.depth, heads = 3 } end

local pretrained, encoder, head = model():requires_grad_(false), model(), pg.models.head(opt.width, 10)
local fda = pg.regularize.fda(pretrained, {})
local parameters = encoder:parameters()
for _, t in ipairs(head:parameters()) do parameters[#parameters + 1] = t end
d.share(parameters)
local adamw = pg.optim.AdamW(parameters, { lr = 1e-4 })
local images, before = d.slice(pg.randn(opt.batch, 3, 32, 32)):contiguous(), d.slice(pg.randn(opt.batch, opt.width)):contiguous()
local labels = pg.arange(images:size(1)) - (pg.arange(images:size(1)) - 1)

local times = {}
for step = 1, opt.steps + 3 do
  d.barrier()
  local began = pg.now()
  pg.scope(function()
    adamw:zero_grad()
    local features = encoder:forward_features(images)
    local loss = pg.cross_entropy(head(features), labels) + fda.loss { features = features, before = before }
    loss:backward()
    pg.optim.clip_grad_norm(parameters, 1)
    adamw:step()
  end)
  d.barrier()
  if step > 3 then times[#times + 1] = pg.now() - began end
end
local seconds = timing.median(times)
run:say("%d processes of %d threads: %.4f s a step, %.1f images/s", d.size(), pg.threads(), seconds, opt.batch / seconds)
