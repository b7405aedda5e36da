-- run.lua - the trade-off experiment: every regulariser over its grid of weights, five seeds, one fine-tuned task.
-- A process for each (group, seed); what is finished is kept, what was cut off is resumed. collect.lua reads the results.

local pg = require "perigee"
local lfs = require "lfs"

local opt = pg.recipe {
  name = "trade_off",
  help = "Fine-tune with every method, weight and seed; then: build/perigee run experiments/trade_off/collect.lua",
  options = {
    { "jobs", 2, min = 1, help = "runs side by side, one thread each" },
    { "seeds", 5, min = 1, help = "seeds 1, 2, ..." },
    { "folder", "runs/trade_off", help = "where the run folders go" },
    { "task", "fashion_mnist", help = "what to fine-tune on" },
    { "steps", 200, min = 1, help = "optimiser steps" },
    { "groups", "all", help = "comma-separated names of groups; all leaves out what goes beyond the paper" },
  },
}

-- A group shares its first probes. Rows are named by method, or by the group where that starts with the method's name.
local GROUPS = {
  { "core", "method=linear_probe,naive,lp_ft,proxy_fda weight=10" },
  { "fda", "method=fda weight=10" },
  { "ldifs_channel", "method=ldifs norm_axis=channel weight=10,100,1000" },
  { "ldifs_token", "method=ldifs norm_axis=token weight=3,30,300" },
  { "l2sp", "method=l2sp weight=0.001,0.01,0.1" },
  { "heavy", "method=fda,proxy_fda weight=1,100" },
  -- Beyond the paper, by name only (groups=...): graphs at every depth, more neighbours, firm negatives.
  { "fda_depths", "method=fda depths=all weight=3,30", extra = true },
  { "fda_k24", "method=fda k=24 weight=10", extra = true },
  { "fda_one", "method=fda negative=one weight=10", extra = true },
}

local wanted = opt.groups ~= "all" and ("," .. opt.groups .. ","):gsub("%s", "") or nil
local commands = {}
lfs.mkdir "runs"
lfs.mkdir(opt.folder)
for _, group in ipairs(GROUPS) do -- what the claim rests on first, over all seeds
  for seed = 1, opt.seeds do
    local name, settings = group[1], group[2]
    local out = ("%s/%s-%d"):format(opt.folder, name, seed)
    local chosen = not wanted and not group.extra or wanted and wanted:find("," .. name .. ",", 1, true)
    if chosen and not lfs.attributes(out .. "/result.json") then
      local where = lfs.attributes(out .. "/checkpoint.safetensors") and "--resume" or "--out"
      commands[#commands + 1] = table.concat({ "build/perigee run recipes/end_to_end.lua",
        "model=vit_small.safetensors", "task=" .. opt.task,
        "steps=" .. opt.steps, "test=2000", settings, "--seed " .. seed, "--threads 1 --quiet", where, out }, " ")
    end
  end
end
pg.run.open(opt):say("%d runs to do", #commands)
local list = os.tmpname()
pg.util.write_file(list, table.concat(commands, "\n") .. "\n")
local status = #commands == 0 and 0 or os.execute(("xargs -P %d -I{} sh -c '{}' < %s"):format(opt.jobs, list))
os.remove(list)
pg.util.check(status == 0, "some runs failed: look at their log.txt below %s, and start this again", opt.folder)
