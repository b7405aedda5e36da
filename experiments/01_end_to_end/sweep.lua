-- sweep.lua - the forgetting benchmark: every method at three weights, on every task of Perigee-10, with five seeds. Methods
-- of one list share a process, and with it the probes before. collect.lua makes the tables.

local pg = require "perigee"

-- The weights of the first list were found on seed 1 of two tasks (README.md); the others are a third and three times that.
local LISTS = {
  "naive,lp_ft,flyp,wise_ft:0.5,l2sp:0.01,ldifs:100,fda:10,proxy_fda:10",
  "wise_ft:0.75,l2sp:0.003,ldifs:30,fda:3,proxy_fda:3",
  "wise_ft:0.25,l2sp:0.03,ldifs:300,fda:30,proxy_fda:30",
}

local tasks = {}
for i, task in ipairs(pg.data.tasks()) do tasks[i] = task.name end

return {
  folder = "runs/01_end_to_end",
  recipe = "recipes/end_to_end.lua",
  options = { method = LISTS, task = tasks, drift = pg.sweep.when({ method = LISTS[1] }, 200), steps = 60, probe_steps = 100 },
  seeds = 5, threads = 1,
  metric = "rows.1.delta_lp", direction = "max",
}
