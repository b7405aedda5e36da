-- weights.lua - which weight of FDA and of Proxy-FDA suits a method: three of each, on two draws of the shots that sweep.lua has
-- not.

local pg = require "perigee"
local experiment = dofile "experiments/03_few_shot/methods.lua"

local function each(method)
  local list = {}
  for _, plug in ipairs { "fda", "proxy_fda" } do
    for _, weight in ipairs { 0.1, 1, 10 } do list[#list + 1] = ("%s+%s:%g"):format(method, plug, weight) end
  end
  return list
end

local TOWERS = experiment.list("towers", each)
local options = { method = { experiment.list("heads", each), experiment.list("words", each), TOWERS },
  tasks = experiment.tasks, shots = "16", first = { 101, 102 }, seeds = 1 }
for name, value in pairs(experiment.towers) do options[name] = pg.sweep.when({ method = TOWERS }, value) end

return {
  folder = "runs/03_weights",
  recipe = "recipes/few_shot.lua",
  options = options,
  threads = 1,
  metric = "table.1.h", direction = "max",
}
