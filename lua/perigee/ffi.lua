-- ffi.lua - loads the core. The declarations are the header's own slice, embedded by make; a library of another version
-- is refused with both numbers.

local ffi = require "ffi"
local util = require "perigee.util"

local function readable(path)
  local file = io.open(path, "rb")
  if file then file:close() end
  return file ~= nil
end

-- In the source tree the build folder stands beside lua/; installed, library and package share one folder.
local root = util.folder .. "../../"
local home
for _, folder in ipairs { root .. "build/", root } do
  if readable(folder .. "libperigee.so") and readable(folder .. "cdef.lua") then home = folder break end
end
if not home then error("libperigee.so is not built: run `make` in the folder that holds lua/perigee", 0) end

-- OpenMP's waiting threads spin for milliseconds unless told otherwise, which stalls every small op once cores are
-- shared; some 0.1 ms still spans the gap between two ops (docs/performance.md). Read once, when the library is loaded.
if not (os.getenv "GOMP_SPINCOUNT" or os.getenv "OMP_WAIT_POLICY") then
  ffi.cdef "int setenv(const char *, const char *, int);"
  ffi.C.setenv("GOMP_SPINCOUNT", "2000", 0)
end

ffi.cdef(dofile(home .. "cdef.lua"))
local lib = ffi.load(home .. "libperigee.so")

local expected, found = ffi.C.PG_ABI or 0, lib.pg_abi()
if tonumber(expected) ~= tonumber(found) then
  error(("the Lua package speaks ABI %d and libperigee.so ABI %d: run `make` again so that both are of one version")
    :format(tonumber(expected), tonumber(found)), 0)
end
lib.pg_message_base(1)

-- Ctrl-C reaches long calls of the core where the host is Perigee's own.
local hosted, host = pcall(require, "perigee.host")
if hosted then host.stop_flag(tonumber(ffi.cast("intptr_t", lib.pg_stop_flag()))) end

return lib
