-- recipes_spec.lua - every recipe in a small configuration on the device: the losses of 20 steps are the CPU's, within 1e-5
-- of their size.

local process = require "process"
local json = require "cjson"
local lfs = require "lfs"
local sh, quote = process.sh, process.quote

local STEPS, TOLERANCE = 20, 1e-5
local folder = os.tmpname()
os.remove(folder)
lfs.mkdir(folder)

-- Without sanitizers, which the recipes' sizes would keep busy for long; the kernels have been through them.
local PLUGIN = os.getenv "PERIGEE_CUDA" and "env -u LD_PRELOAD PERIGEE_CUDA=sim " or ""

local function run(recipe, options, device)
  local out = folder .. "/" .. device .. "-" .. recipe
  local status, said = sh(("%sbuild/perigee run recipes/%s.lua %s --seed 3 --quiet --device %s --out %s"):format(
    device == "cuda" and PLUGIN or "env -u LD_PRELOAD ", recipe, options:gsub("FOLDER", out), device, quote(out)))
  assert.are.equal(0, status, said)
  local lines = {}
  for line in io.lines(out .. "/metrics.jsonl") do lines[#lines + 1] = json.decode(line) end
  return lines
end

-- What is not a loss, or not the device's to decide.
local SKIPPED = { images_per_s = true, live_bytes = true, peak_bytes = true, step = true, lr = true, weight = true }

local function compare(recipe, options, steps)
  local host, there = run(recipe, options, "cpu"), run(recipe, options, "cuda")
  assert.are.equal(steps, #host)
  assert.are.equal(steps, #there)
  for i, line in ipairs(host) do
    for name, value in pairs(line) do
      if type(value) == "number" and not SKIPPED[name] then
        local difference = value == there[i][name] and 0 or math.abs(value - there[i][name]) / math.abs(value)
        assert.is_true(difference <= TOLERANCE, ("%s, step %d, %s: %.8g on the CPU, %.8g on the device (%.1e)"):format(
          line.method or recipe, line.step, name, value, there[i][name], difference))
      end
    end
    assert.is_true(there[i].live_bytes > 0)
  end
end

local METHODS = { "l2sp", "ldifs", "fda", "proxy_fda" } -- naive and lp_ft do nothing that these do not

describe("on the device", function()
  teardown(function() sh("rm -rf " .. quote(folder)) end)

  -- From vit_small: rounding, which each step passes on, stays within the bound there for twenty steps.
  it("end_to_end trains as on the CPU, with every regulariser", function()
    compare("end_to_end", ("model=vit_small.safetensors method=%s steps=%d train=64 probe=20 test=50 probe_steps=3 "
      .. "classes=4 per_class=2 k=4 probes=shape"):format(table.concat(METHODS, ","), STEPS), STEPS * #METHODS)
  end)

  it("pretrain trains as on the CPU", function()
    compare("pretrain", ("steps=%d scenes=8 drawings=4 clothes=4 width=32 depth=2 log=1 probe=20 probe_steps=2 test=50 "
      .. "save=FOLDER.safetensors"):format(STEPS), STEPS)
  end)
end)
