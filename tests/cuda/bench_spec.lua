-- bench_spec.lua - the bench of the kernels runs, on the simulated device at tiny sizes: every operation of costs.lua gives
-- a time, or says that the device has no kernel for it yet.

local device = require "cuda.device"
local costs = require "cuda.costs"

describe("make bench-cuda", function()
  if not device.simulated then return end

  it("has a row for every operation", function()
    local pipe = io.popen "luajit tests/cuda/bench.lua 2>&1"
    local said = pipe:read "*a"
    pipe:close()
    assert.is_truthy(said:find("the times mean nothing", 1, true), said)
    for _, entry in ipairs(costs.list) do
      for _, which in ipairs { "forward", "backward" } do
        local row = said:match("\n(" .. entry.name .. " " .. which .. " [^\n]*)")
        assert.are.equal(entry[which] ~= nil, row ~= nil, said)
        if row then assert.is_truthy(row:find "%d us .* %d+%%", row) end
      end
    end
  end)
end)
