-- first_step.lua - from nothing to the first training step of the demo: the pre-trained image tower and pictures from the
-- disk, a head, one step of AdamW on 64 of them. first_step.py is the same in PyTorch.

local pg = require "perigee"
pg.seed(1)

local model = pg.models.load("recipes/clip_small").visual
local set = pg.data.fashion_mnist { split = "test" }
local head = pg.models.head(model.width, 10)
local parameters = model:parameters()
for _, t in ipairs(head:parameters()) do parameters[#parameters + 1] = t end
local adamw = pg.optim.AdamW(parameters, { lr = 1e-3, weight_decay = 0.1 })

local batch = pg.randperm(set.images:size(1)):narrow(1, 1, 64)
local images, labels = pg.data.to_float(set.images:index(1, batch)), set.labels:index(1, batch)
local loss = pg.cross_entropy(head(model(images)), labels)
loss:backward()
pg.optim.clip_grad_norm(parameters, 1)
adamw:step()
print(loss:item())
