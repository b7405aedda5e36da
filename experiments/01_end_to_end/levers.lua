-- levers.lua - what else FDA and Proxy-FDA could do, one lever at a time: the features of every block in place of the last;
-- more neighbours; non-neighbours that push with full weight; a sharper temperature. The rest is as in sweep.lua.

local pg = require "perigee"

local USUAL = { depths = "own", k = 8, negative = "similarity", tau = 0.1 }

local tasks = {}
for i, task in ipairs(pg.data.tasks()) do tasks[i] = task.name end

return {
  folder = "runs/01_levers",
  recipe = "recipes/end_to_end.lua",
  options = { method = "fda:10,proxy_fda:10", task = tasks, steps = 60, probe_steps = 100,
    depths = { "own", "all" }, k = { 8, 24 }, negative = { "similarity", "one" }, tau = { 0.1, 0.05 } },
  drop = function(o)
    local pulled = 0
    for name, value in pairs(USUAL) do pulled = pulled + (o[name] == value and 0 or 1) end
    return pulled ~= 1
  end,
  seeds = 2, threads = 1,
  metric = "rows.1.delta_lp", direction = "max",
}
