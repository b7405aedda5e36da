-- sweep.lua - few-shot adaptation: every method alone, with FDA and with Proxy-FDA, on every task, on five draws of the shots.
-- collect.lua makes the tables.

local pg = require "perigee"
local experiment = dofile "experiments/03_few_shot/methods.lua"

local function each(method, batches)
  local weight = experiment.weights[method]
  local list = { method, ("%s+fda:%g"):format(method, weight[1]), ("%s+proxy_fda:%g"):format(method, weight[2]) }
  if batches then table.insert(list, 2, method .. "+fda:0") end -- FDA's batches without its loss
  return list
end

local HEADS = "zero_shot,tip_adapter," .. experiment.list("heads", each)
local WORDS = experiment.list("words", each)
local TOWERS = experiment.list("towers", function(method) return each(method, true) end)
local TOWERS_FEW = experiment.list("towers", each)

local options = { method = { HEADS, WORDS, TOWERS, TOWERS_FEW }, tasks = { experiment.tasks, experiment.kind },
  shots = { "16", "4", "1,4" }, first = { 1, 2, 3, 4, 5 }, seeds = 1 }
for name, value in pairs(experiment.towers) do
  options[name] = pg.sweep.when(function(o) return o.method == TOWERS or o.method == TOWERS_FEW end, value)
end

return {
  folder = "runs/03_few_shot",
  recipe = "recipes/few_shot.lua",
  options = options,
  drop = function(o)
    local few, kind = o.shots == "1,4", o.tasks == experiment.kind
    return kind ~= (o.shots == "4") or few and o.method == TOWERS or not few and o.method == TOWERS_FEW
  end,
  threads = 1,
  metric = "table.1.h", direction = "max",
}
