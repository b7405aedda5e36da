-- gentle.lua - the same methods with a third of the learning rate and four times the steps, nearer to how large models are
-- fine-tuned. The rest is as in sweep.lua.

local pg = require "perigee"

local tasks = {}
for i, task in ipairs(pg.data.tasks()) do tasks[i] = task.name end

return {
  folder = "runs/01_gentle",
  recipe = "recipes/end_to_end.lua",
  options = { method = "naive,lp_ft,l2sp:0.01,ldifs:100,fda:10,proxy_fda:10", task = tasks, lr = 3e-4, steps = 240,
    probe_steps = 100 },
  seeds = 2, threads = 1,
  metric = "rows.1.delta_lp", direction = "max",
}
