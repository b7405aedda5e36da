-- recipe_spec.lua - the end-to-end recipe as a user runs it: it finishes, and a run that was killed and resumed ends with
-- the same bits as one that was never touched.

local lfs = require "lfs"

local OPTIONS = "method=naive,proxy_fda steps=10 checkpoint=3 train=200 probe=40 test=50 probe_steps=5 --threads 1 --seed 3 --quiet"

local function sh(command)
  local pipe = io.popen(command .. " 2>&1; echo status:$?")
  local text = pipe:read "*a"
  pipe:close()
  return tonumber(text:match "status:(%d+)%s*$"), text
end

local function result(folder)
  local file = assert(io.open(folder .. "/result.json"))
  local text = file:read "*a"
  file:close()
  return (text:gsub('"seconds": [%d.e+-]+', ""))
end

describe("the end-to-end recipe", function()
  local folder = os.tmpname()
  os.remove(folder)
  lfs.mkdir(folder)
  teardown(function() os.execute("rm -rf " .. folder) end)

  it("runs, and leaves its table, figures and pictures", function()
    local status, text = sh(("build/perigee run recipes/end_to_end.lua %s --out %s/whole"):format(OPTIONS, folder))
    assert.are.equal(0, status, text)
    for _, name in ipairs { "config.json", "metrics.jsonl", "result.json", "checkpoint.safetensors", "log.txt",
      "plots/delta_lp.png", "plots/task_loss.png", "plots/neighbours.png" } do
      assert.is_true((lfs.attributes(folder .. "/whole/" .. name, "size") or 0) > 0, name)
    end
  end)

  it("ends with the same bits after being killed three times", function()
    local out = folder .. "/killed"
    sh(("timeout -s KILL 1.3 build/perigee run recipes/end_to_end.lua %s --out %s"):format(OPTIONS, out))
    for _, seconds in ipairs { 1.7, 2.3 } do
      sh(("timeout -s KILL %g build/perigee run recipes/end_to_end.lua --resume %s --quiet"):format(seconds, out))
    end
    local status, text = sh(("build/perigee run recipes/end_to_end.lua --resume %s --quiet"):format(out))
    assert.are.equal(0, status, text)
    assert.are.equal(result(folder .. "/whole"), result(out))
  end)

  it("names the nearest option for a wrong one, with status 2", function()
    local status, text = sh "build/perigee run recipes/end_to_end.lua stepz=3"
    assert.are.equal(2, status)
    assert.is_truthy(text:find("steps", 1, true))
  end)
end)
