-- run.lua - the forgetting benchmark: every method on every task of Perigee-10, five seeds; then every weight of the grids.
-- A process for each (group, task, seed); what is finished is kept, what was cut off is resumed. collect.lua reads them.

local pg = require "perigee"
local lfs = require "lfs"

local opt = pg.recipe {
  name = "01_end_to_end",
  help = "Fine-tune with every method on every task; then: build/perigee run experiments/01_end_to_end/collect.lua",
  options = {
    { "jobs", 2, min = 1, help = "runs side by side, one thread each" },
    { "seeds", 5, min = 1, help = "seeds 1, 2, ..." },
    { "folder", "runs/01_end_to_end", help = "where the run folders go" },
    { "steps", 60, min = 1, help = "optimiser steps" },
    { "groups", "main,weak,strong", help = "comma-separated: main is every method at its own weight, weak and strong the "
      .. "regularisers at a third and at three times that, levers what goes beyond the paper" },
  },
}

-- Rows of one process share the probes before. The weights of main were found on seed 1 of two tasks (README.md).
local GROUPS = {
  main = "method=naive,lp_ft,flyp,wise_ft:0.5,l2sp:0.01,ldifs:100,fda:10,proxy_fda:10 drift=200",
  weak = "method=wise_ft:0.75,l2sp:0.003,ldifs:30,fda:3,proxy_fda:3",
  strong = "method=wise_ft:0.25,l2sp:0.03,ldifs:300,fda:30,proxy_fda:30",
  levers = "method=fda:10 depths=all",
}

-- What collect.lua has gathered already need not be run again.
local done, rows = {}, io.open "experiments/01_end_to_end/rows.jsonl"
for line in rows and rows:lines() or pairs {} do
  local entry = require("cjson").decode(line)
  done[("%s-%s-%d"):format(entry.group, entry.row.task, entry.seed)] = true
end

local commands = {}
lfs.mkdir "runs"
lfs.mkdir(opt.folder)
for group in opt.groups:gmatch "[^,%s]+" do
  pg.util.check(GROUPS[group], "groups: there is no group '%s': main, weak, strong, levers", group)
  for seed = 1, opt.seeds do
    for _, task in ipairs(pg.data.tasks()) do
      local name = ("%s-%s-%d"):format(group, task.name, seed)
      local out = opt.folder .. "/" .. name
      if not done[name] and not lfs.attributes(out .. "/result.json") then
        local where = lfs.attributes(out .. "/checkpoint.safetensors") and "--resume" or "--out"
        commands[#commands + 1] = table.concat({ "build/perigee run recipes/end_to_end.lua", "task=" .. task.name,
          "probe_steps=100 steps=" .. opt.steps, GROUPS[group], "--seed " .. seed, "--threads 1 --quiet", where, out }, " ")
      end
    end
  end
end
local run = pg.run.open(opt)
run:say("%d runs to do", #commands)
local list = os.tmpname()
pg.util.write_file(list, table.concat(commands, "\n") .. "\n")
local status = #commands == 0 and 0 or os.execute(("xargs -P %d -I{} sh -c '{}' < %s"):format(opt.jobs, list))
os.remove(list)
pg.util.check(status == 0, "some runs failed: look at their log.txt below %s, and start this again", opt.folder)
