-- npz.lua - NumPy's .npz files: named arrays in one ZIP archive.

local ffi = require "ffi"
local lib = require "perigee.ffi"
local call = require "perigee.call"
local util = require "perigee.util"

local npz = {}

--- Reads every array of a .npz file, stored or deflated (numpy.savez, numpy.savez_compressed), each of a dtype that
-- pg.npy.load reads. Checksums are checked.
-- @param path  file name
-- @return a table name -> tensor
-- @raises one line that names the file, and the array where it is about one: the file is missing, truncated or damaged,
--   has an array twice, or a member that is no .npy array, is encrypted, or compressed in another way
function npz.load(path)
  util.check(type(path) == "string", "npz.load: path must be a string, got %s", type(path))
  local archive, out, tensors = ffi.new "pg_npz *[1]", ffi.new "pg_tensor *[1]", {}
  call.check(lib.pg_npz_open(path, archive))
  local ok, reason = pcall(function()
    for i = 0, tonumber(lib.pg_npz_count(archive[0])) - 1 do
      local name = ffi.string(lib.pg_npz_name(archive[0], i))
      util.check(not tensors[name], "%s: it has '%s' twice", path, name)
      call.check(lib.pg_npz_read(archive[0], i, out))
      tensors[name] = call.own(out[0])
    end
  end)
  lib.pg_npz_close(archive[0])
  if not ok then error(reason, 0) end
  return tensors
end

--- Writes tensors as the arrays of one .npz file, not compressed, whole or not at all: a failure or a kill leaves the old
-- file. Names are written sorted, so the same tensors give the same bytes.
-- @param path     file name
-- @param tensors  table name -> tensor of any dtype and device
-- @raises one line naming the file and the system's reason, or the name that cannot be one
function npz.save(path, tensors)
  util.check(type(path) == "string", "npz.save: path must be a string, got %s", type(path))
  util.check(type(tensors) == "table", "npz.save: takes a path and a table name -> tensor, got %s", type(tensors))
  local names, kept = {}, {}
  for name, t in pairs(tensors) do
    util.check(type(name) == "string" and not name:find "%c",
      "npz.save: an array's name must be a string without control characters")
    util.check(call.is_tensor(t), "npz.save: '%s' must be a tensor, got %s", name, type(t))
    names[#names + 1] = name
  end
  table.sort(names)
  for i, name in ipairs(names) do kept[i] = tensors[name]:detach():to("cpu"):contiguous() end
  local n = #names
  call.check(lib.pg_npz_save(path, n, ffi.new("const char *[?]", n + 1, names), ffi.new("pg_tensor *[?]", n + 1, kept)))
end

return npz
