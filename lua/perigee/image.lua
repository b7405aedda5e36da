-- image.lua - pictures as (H, W, 3) uint8 tensors, from and to PNG files.

local ffi = require "ffi"
local lib = require "perigee.ffi"
local call = require "perigee.call"
local util = require "perigee.util"

local image = {}

local function made(fn, ...)
  local out, args = ffi.new "pg_tensor *[1]", { ... }
  args[#args + 1] = out
  call.check(fn(unpack(args)))
  return call.own(out[0])
end

local function check_path(where, path)
  util.check(type(path) == "string", "%s: path must be a string, got %s", where, type(path))
end

local function check_size(where, name, size)
  util.check(type(size) == "number" and size >= 1 and size % 1 == 0, "%s: %s must be a whole number, 1 or more, got %s",
    where, name, tostring(size))
end

--- Reads a PNG of any kind, or a binary PPM (P6): palette and grey are expanded, 16 bits rounded to 8, alpha composited on white.
-- @param path  file name
-- @return uint8 (H, W, 3)
-- @raises one line naming the file when it is missing, damaged, or more than 64 MB decoded (then use thumbnail)
function image.load(path)
  check_path("image.load", path)
  return made(lib.pg_image_load, path)
end

--- Reads a PNG of any size as a small square: the whole picture, its longer side scaled to `size`, centred on white.
-- @param path  file name
-- @param size  side in pixels, 1..1024
-- @return uint8 (size, size, 3)
-- @raises one line naming the file when it is missing or damaged
function image.thumbnail(path, size)
  check_path("image.thumbnail", path)
  check_size("image.thumbnail", "size", size)
  return made(lib.pg_image_load_reduced, path, size)
end

--- Writes a PNG, whole or not at all.
-- @param path  file name
-- @param t     uint8 (H, W, 3) or (H, W)
-- @raises one line naming the file and the reason, or the tensor's shape
function image.save(path, t)
  check_path("image.save", path)
  util.check(call.is_tensor(t), "image.save: takes a path and a tensor, got %s", type(t))
  call.check(lib.pg_image_save(path, t))
end

--- Resizes as Pillow does: antialiased when shrinking.
-- @param t       uint8 (H, W, C)
-- @param height  rows of the result
-- @param width   columns of the result
-- @param method  "bicubic" (default) or "bilinear"
-- @return uint8 (height, width, C)
-- @raises on another dtype, shape or method
function image.resize(t, height, width, method)
  util.check(call.is_tensor(t), "image.resize: takes a tensor (H, W, C), got %s", type(t))
  check_size("image.resize", "height", height)
  check_size("image.resize", "width", width)
  return call.ops.resize.call(t, { height = height, width = width, mode = method or "bicubic" })
end

return image
