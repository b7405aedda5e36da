-- tensorboard_spec.lua - event files for TensorBoard: bytes that its own writer made (tests/fixtures/make_report.py),
-- known checksums, and a run that is cut off and resumed. tests/workbench/tensorboard_spec.lua lets TensorBoard read
-- them.

local process = require "process"
local folders = require "run_folders"
local tensorboard = require "perigee.tensorboard"

local RECIPE = [[
local pg = require "perigee"
local opt = pg.recipe { name = "toy", options = { { "steps", 6 } } }
local run = pg.run.open(opt)
local saved, first = run:restore(), 1
if saved then first = saved.state.step + 1 end
for step = first, opt.steps do
  run:log { step = step, method = step < 4 and "naive" or "fda", loss = 1 / step }
  if step == 4 then run:checkpoint({ w = pg.zeros(2) }, { step = step }) end
  if step == 5 and os.getenv "STOP" then error "stopped" end
end
run:finish { loss = 1 }
]]

-- The payloads of a file of records, their checksums not looked at.
local function payloads(bytes)
  local list, at = {}, 1
  while at <= #bytes do
    local a, b = bytes:byte(at, at + 1)
    local length = a + 256 * b
    list[#list + 1] = bytes:sub(at + 12, at + 11 + length)
    at = at + 16 + length
  end
  assert.equal(#bytes + 1, at)
  return list
end

describe("event files", function()
  local folder
  before_each(function() folder = folders.fresh() end)
  after_each(function() os.execute("rm -rf '" .. folder .. "'") end)

  it("sums as RFC 3720 does", function() -- appendix B.4
    local ascending, descending = {}, {}
    for i = 0, 31 do ascending[i + 1], descending[32 - i] = string.char(i), string.char(i) end
    for _, case in ipairs {
      { ("\0"):rep(32), 0x8A9136AA }, { ("\255"):rep(32), 0x62A8AB43 }, { table.concat(ascending), 0x46DD794E },
      { table.concat(descending), 0x113FDB5C }, { "123456789", 0xE3069283 }, { "", 0 },
    } do assert.equal(case[2], tensorboard.crc32c(case[1])) end
  end)

  it("has the bytes that TensorBoard's writer gives", function()
    local events = tensorboard.open(folder, nil, 1700000000)
    events:scalars(0, { loss = 2.5 }, 1700000001.5)
    events:scalars(300, { ["fda/loss"] = 0.1, lr = -2.5e-4 }, 1700000001.5)
    events:scalars(2 ^ 40, { [("x"):rep(200)] = math.huge }, 1700000001.5)
    events:close()
    assert.equal(process.read "tests/fixtures/report/events.bin", process.read(tensorboard.find(folder)))
  end)

  it("goes on after the steps that are kept, and forgets a torn end", function()
    local events = tensorboard.open(folder)
    for step = 1, 5 do events:scalars(step, { loss = step }) end
    events:close()
    local path = tensorboard.find(folder)
    folders.write(path, process.read(path):sub(1, -4))
    events = tensorboard.open(folder, math.huge)
    events:scalars(9, { loss = 9 })
    events:close()
    assert.equal(1 + 4 + 1, #payloads(process.read(path)))
    tensorboard.open(folder, 2):close()
    assert.equal(1 + 2, #payloads(process.read(path)))
    tensorboard.open(folder):close()
    assert.equal(1, #payloads(process.read(tensorboard.find(folder))))
  end)

  describe("of a run", function()
    local toy, out
    before_each(function() toy, out = folders.write(folder .. "/toy.lua", RECIPE), folder .. "/out" end)
    local function perigee(words, before)
      local status, said = process.sh(("%s build/perigee run '%s' %s"):format(before or "", toy, words))
      return status, said
    end

    it("are written only when they are asked for", function()
      assert.equal(0, (perigee("--out " .. out)))
      assert.is_nil(tensorboard.find(out))
      assert.equal(0, (perigee("--tensorboard --out " .. out)))
      assert.equal(1 + 6, #payloads(process.read(tensorboard.find(out))))
      assert.equal(0, (perigee("--out " .. out)))
      assert.is_nil(tensorboard.find(out)) -- not those of another run
    end)

    it("hold each step once after a resume", function()
      assert.equal(1, (perigee("--tensorboard --out " .. out, "STOP=1")))
      assert.equal(1 + 5, #payloads(process.read(tensorboard.find(out))))
      assert.equal(0, (perigee("--resume " .. out)))
      local list = payloads(process.read(tensorboard.find(out)))
      assert.equal(1 + 6, #list)
      for step = 1, 6 do
        assert.equal(string.char(0x10, step), list[step + 1]:sub(10, 11))
        assert.is_truthy(list[step + 1]:find((step < 4 and "naive" or "fda") .. "/loss", 1, true))
      end
    end)

    it("stay through the interface of the library too", function()
      local run = require("perigee.run")
      local opened = run.open({ name = "x", out = out, quiet = true }, { tensorboard = true })
      opened:log { loss = 1 }
      assert.equal(2, #payloads(process.read(tensorboard.find(out))))
      assert.has_error(function() run.open({ name = "x", out = out }, { tensorbord = true }) end)
    end)
  end)
end)
