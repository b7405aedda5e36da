-- planted_spec.lua - the simulated device catches one of each fault, in a kernel made for it (tests/simt/planted), and has
-- nothing to say of the sound kernel beside it. In both builds: under AddressSanitizer, and with red zones alone.

local device = require "cuda.device"

local function sh(command)
  local pipe = io.popen("env -u LD_PRELOAD ASAN_OPTIONS=detect_leaks=0 " .. command .. " 2>&1; echo \":$?\"")
  local said, status = pipe:read "*a":match "^(.*):(%d+)\n$"
  pipe:close()
  return tonumber(status), said
end

-- What each build says; AddressSanitizer where it sees the access itself.
local FAULTS = {
  { "global_read", san = "use%-after%-poison.*global_read", plain = "element 63 is" },
  { "global_write", san = "use%-after%-poison.*global_write", plain = "wrote before an allocation of 256 bytes" },
  { "shared_bounds", san = "index 64 out of bounds for type 'float %[64%]'",
    plain = "wrote outside of an array in shared memory" },
  { "missing_barrier", both = "seed %d: element %d+ is %-?nan" },
  { "left_barrier", both = "divergent barrier at line %d+: 1 threads have already ended" },
  { "divergent_barrier", both = "divergent barrier: threads wait at lines %d+ and %d+" },
  { "unwritten", both = "element 9 is %-?nan, not 9" },
  { "shuffle_mask", both = "mask 0x0000ffff of a warp operation at line %d+ leaves out its own lane" },
  { "absent_lane", both = "waits at line %d+ for the lanes of mask 0xffffffff, and some do not come" },
  { "host_pointer", both = "argument 1 is 0x%x+, which is not device memory" },
  { "host_pointer_in_struct", both = "argument 1 holds 0x%x+ at byte 0, which is the host's memory" },
  { "host_read", both = "host code touched device memory" },
  { "copy_too_long", both = "destination: 260 bytes at 0x%x+, which is byte 0 of an allocation of 256" },
  { "block_too_large", both = "invalid configuration argument" },
}

describe("the simulated device", function()
  if not device.simulated then return end

  it("has a test for every planted fault", function()
    local _, listed = sh "build/simt/planted"
    local names = {}
    for _, fault in ipairs(FAULTS) do names[fault[1]] = true end
    for name in listed:gmatch "%S+" do assert.is_true(names[name], name .. " is not tested") end
  end)

  for _, fault in ipairs(FAULTS) do
    for build, program in pairs { plain = "build/simt/planted", san = "build/simt-san/planted" } do
      it(("catches %s (%s)"):format(fault[1], build), function()
        local status, said = sh(program .. " " .. fault[1] .. " sound")
        assert.are.equal("sound\n", said)
        assert.are.equal(0, status)
        status, said = sh(program .. " " .. fault[1])
        assert.are_not.equal(0, status)
        assert.is_truthy(said:find(fault.both or fault[build]), said)
      end)
    end
  end
end)
