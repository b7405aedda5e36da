-- run.lua - every continual method on a sequence of five tasks and on Fashion-MNIST's classes two at a time, five seeds.
-- A process for each (group, seed), seed after seed; what is finished is kept, what was cut off is resumed. collect.lua
-- reads them.

local pg = require "perigee"
local lfs = require "lfs"

local opt = pg.recipe {
  name = "04_continual",
  help = "Run every continual method; then: build/perigee run experiments/04_continual/collect.lua",
  options = {
    { "jobs", 1, min = 1, help = "runs side by side, one thread each" },
    { "seeds", 5, min = 1, help = "seeds 1, 2, ..." },
    { "folder", "runs/04_continual", help = "where the run folders go" },
  },
}

-- A process takes one reference and one cross-entropy; its methods share the data. "frozen" is the pre-trained model
-- as it is, at a rate at which nothing moves.
local ALL = "method=naive,joint,proxy_fda,fda,ldifs,l2sp,lwf,ewc,zscl,icarl,slca,l2p,dual_prompt,coda_prompt"
local GROUPS = {
  { "frozen", "method=naive lr=1e-12" },
  { "previous", ALL },
  { "pretrained", "method=proxy_fda,fda reference=pretrained" },
  { "current", "method=naive logits=current", only = "classes" },
  { "added", "method=lwf+proxy_fda,icarl+proxy_fda,slca+proxy_fda,coda_prompt+proxy_fda" },
}
local SIZE = "steps=40 classes=8 per_class=4 train=500 test=200 checkpoint=40 measure=both"

-- What collect.lua has gathered already need not be run again.
local done, rows = {}, io.open "experiments/04_continual/rows.jsonl"
for line in rows and rows:lines() or function() end do
  local entry = require("cjson").decode(line)
  done[("%s-%s-%d"):format(entry.setting, entry.group, entry.seed)] = true
end

local commands = {}
lfs.mkdir "runs"
lfs.mkdir(opt.folder)
for seed = 1, opt.seeds do
  for _, group in ipairs(GROUPS) do
    for _, setting in ipairs { "tasks", "classes" } do
      local name = ("%s-%s-%d"):format(setting, group[1], seed)
      local out = opt.folder .. "/" .. name
      local wanted = not group.only or group.only == setting
      if wanted and not done[name] and not lfs.attributes(out .. "/result.json") then
        local where = lfs.attributes(out .. "/checkpoint.safetensors") and "--resume" or "--out"
        commands[#commands + 1] = table.concat({ "build/perigee run recipes/continual.lua", "setting=" .. setting,
          group[2], SIZE, "--seed " .. seed, "--threads 1 --quiet", where, out }, " ")
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
