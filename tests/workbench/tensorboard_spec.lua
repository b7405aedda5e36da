-- tensorboard_spec.lua - TensorBoard's own reader on the event files of a run. It needs the Python package tensorboard,
-- in build/tensorboard (make deps-test) or where python3 finds it; without it this is one pending line.

local process = require "process"
local folders = require "run_folders"

local function python()
  for _, name in ipairs { "build/tensorboard/bin/python", "python3" } do
    if process.sh(name .. " -c 'import tensorboard'") == 0 then return name end
  end
end

describe("TensorBoard", function()
  local reader = python()
  if not reader then
    pending "the Python package tensorboard is not installed: make deps-test"
    return
  end

  it("reads what a run wrote", function()
    local folder = folders.fresh()
    local toy = folders.write(folder .. "/toy.lua", [[
local pg = require "perigee"
local run = pg.run.open(pg.recipe { name = "toy", options = {} })
for step = 1, 3 do run:log { step = step, loss = 1 / step, method = "fda", note = "ü" } end
run:log { step = 1, loss = 0 / 0, lr = 1e-5 }
]])
    local status, said = process.sh(("build/perigee run '%s' --tensorboard --out '%s/out'"):format(toy, folder))
    assert.equal(0, status, said)
    status, said = process.sh(("%s tests/workbench/read_events.py '%s/out' 2>/dev/null"):format(reader, folder))
    assert.equal(0, status, said)
    local found = {}
    for tag, step, value in said:gmatch "([^\n ]+) (%d+) (%S+) %d+\n" do
      if not tag:find "bytes" then found[#found + 1] = tag .. " " .. step .. " " .. ("%.6g"):format(tonumber(value)) end
    end
    os.execute("rm -rf '" .. folder .. "'")
    assert.same({ "fda/ü/loss 1 1", "fda/ü/loss 2 0.5", "fda/ü/loss 3 0.333333", "loss 1 nan", "lr 1 1e-05" }, found)
  end)
end)
