-- npy.lua - NumPy's .npy files.

local ffi = require "ffi"
local lib = require "perigee.ffi"
local call = require "perigee.call"
local util = require "perigee.util"

local npy = {}

--- Reads a .npy file in C or Fortran order: float32, float64, int32 and uint8 as they are; float16 as float32; int8,
-- int16, int64, uint16, uint32 and uint64 as int32; bool as uint8 of 0 and 1.
-- @param path  file name
-- @return a tensor of the file's shape: float32, float64, int32 or uint8
-- @raises one line naming the file when it is missing, damaged, big-endian or of another dtype, or has an integer that
--   does not fit int32
function npy.load(path)
  util.check(type(path) == "string", "npy.load: path must be a string, got %s", type(path))
  local out = ffi.new "pg_tensor *[1]"
  call.check(lib.pg_npy_load(path, out))
  return call.own(out[0])
end

--- Writes a tensor, whole or not at all: a failure or a kill leaves the old file.
-- @param path  file name
-- @param t     tensor of any shape, dtype and device
-- @raises one line naming the file and the system's reason
function npy.save(path, t)
  util.check(type(path) == "string", "npy.save: path must be a string, got %s", type(path))
  util.check(call.is_tensor(t), "npy.save: takes a path and a tensor, got %s", type(t))
  call.check(lib.pg_npy_save(path, t:detach():to("cpu")))
end

return npy
