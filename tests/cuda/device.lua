-- device.lua - which device the specs in this folder run on, and the seed of the simulated one's schedule.

local ffi = require "ffi"

local device = {}
local path = os.getenv "PERIGEE_CUDA" or ""
device.simulated = path ~= ""

local library
if device.simulated then
  ffi.cdef "void simt_seed(uint64_t seed);"
  library = ffi.load(path == "sim" and "build/libperigee_cuda_sim.so" or path)
end

--- The order in which the simulated device runs blocks and threads from now on; a GPU has its own each time.
function device.seed(seed)
  if library then library.simt_seed(seed) end
end

return device
