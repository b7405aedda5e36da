-- sweep.lua - every continual method on a sequence of five tasks and on Fashion-MNIST's classes two at a time, five seeds.
-- Methods of one list share a process, and with it the data. collect.lua makes the tables.

local s = require("perigee").sweep

local ALL = "naive,joint,proxy_fda,fda,ldifs,l2sp,lwf,ewc,zscl,icarl,slca,l2p,dual_prompt,coda_prompt"
local REFERENCE = "proxy_fda,fda" -- once more, kept to the pre-trained model in place of the previous one
local ADDED = "lwf+proxy_fda,icarl+proxy_fda,slca+proxy_fda,coda_prompt+proxy_fda"
local STILL = 1e-12 -- a rate at which nothing moves: the pre-trained model as it is

return {
  folder = "runs/04_continual",
  recipe = "recipes/continual.lua",
  options = {
    setting = { "tasks", "classes" }, method = { "naive", ALL, REFERENCE, ADDED },
    lr = s.when({ method = "naive" }, { STILL, 0 }), -- 0 is the recipe's own
    logits = s.when(function(o) return o.method == "naive" and o.lr == 0 end, "current"), -- over the step's own classes
    reference = s.when({ method = REFERENCE }, "pretrained"),
    steps = 40, classes = 8, per_class = 4, train = 500, test = 200, checkpoint = 40, measure = "both",
  },
  drop = { { method = "naive", lr = 0, setting = "tasks" } },
  seeds = 5, threads = 1,
  metric = "rows.1.figures.last", direction = "max",
}
