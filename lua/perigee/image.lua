-- image.lua - pictures as (H, W, 3) uint8 tensors, from and to PNG and JPEG files.

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

--- Reads a PNG or a JPEG of any kind, or a binary PPM (P6); which of them a file is, its first bytes say. PNG: palette
-- and grey are expanded, 16 bits rounded to 8, alpha composited on white. JPEG: grey and CMYK become RGB as Pillow's
-- convert("RGB") makes them, and the picture is turned as EXIF says (Pillow's ImageOps.exif_transpose): the same bytes,
-- where both stand on the same libjpeg-turbo.
-- @param path  file name
-- @return uint8 (H, W, 3)
-- @raises one line naming the file when it is missing, cut short (Pillow too refuses that) or damaged, or more than
--   64 MB decoded (then use thumbnail). As in Pillow, wrong codes within a JPEG's data spoil pixels and are no error
function image.load(path)
  check_path("image.load", path)
  return made(lib.pg_image_load, path)
end

--- Reads a large PNG or JPEG as a small square: the whole picture, its longer side scaled to `size`, centred on white.
-- A JPEG of more than 64 MB is decoded at a half, a quarter or an eighth of its size.
-- @param path  file name
-- @param size  side in pixels, 1..1024
-- @return uint8 (size, size, 3)
-- @raises one line naming the file when it is missing or damaged
function image.thumbnail(path, size)
  check_path("image.thumbnail", path)
  check_size("image.thumbnail", "size", size)
  return made(lib.pg_image_load_reduced, path, size)
end

--- Writes a JPEG (4:2:0) when the name ends in .jpg or .jpeg, a PNG otherwise; whole or not at all.
-- @param path     file name
-- @param t        uint8 (H, W, 3) or (H, W)
-- @param options  {quality = 90}, 1..100, of JPEG alone
-- @raises one line naming the file and the reason, or the tensor's shape
function image.save(path, t, options)
  check_path("image.save", path)
  util.check(call.is_tensor(t), "image.save: takes a path and a tensor, got %s", type(t))
  local quality = util.options("image.save", options, { quality = util.none }).quality
  local extension = path:lower():match "%.(%w+)$"
  if extension ~= "jpg" and extension ~= "jpeg" then
    util.check(quality == nil, "image.save: %s: quality is of JPEG, and the name must then end in .jpg", path)
    return call.check(lib.pg_image_save(path, t))
  end
  quality = quality or 90
  util.check(type(quality) == "number" and quality % 1 == 0 and quality >= 1 and quality <= 100,
    "image.save: %s: quality must be a whole number within 1..100, got %s", path, tostring(quality))
  call.check(lib.pg_jpeg_save(path, t, quality))
end

--- Shows a picture in the terminal, and leaves it as a PNG.
-- @param t     uint8 (H, W, 3) or (H, W)
-- @param path  the png; by default a new one in TMPDIR or /tmp
-- @return the path
-- @raises on another dtype or shape
function image.show(t, path)
  util.check(call.is_tensor(t), "image.show: takes a uint8 tensor (H, W, 3) or (H, W), got %s", call.describe(t))
  local terminal = require "perigee.terminal"
  path = path or terminal.temporary()
  image.save(path, t)
  terminal.show(path, function() return terminal.characters(t) end)
  return path
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
