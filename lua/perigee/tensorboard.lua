-- tensorboard.lua - writes the event files that TensorBoard reads: records with checksums (TFRecord), each an Event in
-- protocol buffers' encoding. Only what a run needs is here: scalars by step.
--
--   local events = pg.tensorboard.open("runs/a")
--   events:scalars(1, { loss = 2.3 })
--   events:close()
--
-- Formats: TensorFlow's lib/io/record_writer.h (length, masked CRC, bytes, masked CRC) and util/event.proto, whose
-- fields are wall_time = 1 (double), step = 2 (int64), file_version = 3 (string), summary = 5; framework/summary.proto:
-- value = 1 {tag = 1 (string), simple_value = 2 (float)}; protobuf.dev/programming-guides/encoding.

local ffi = require "ffi"
local util = require "perigee.util"
local lfs = require "lfs"

local tensorboard, Events = {}, {}
Events.__index = Events

-- ---- checksums ----------------------------------------------------------------------------------------------------

local remainders = ffi.new "uint32_t[256]" -- CRC-32C, the polynomial of Castagnoli with its bits reversed
for byte = 0, 255 do
  local r = byte
  for _ = 1, 8 do r = bit.bxor(bit.rshift(r, 1), bit.band(r, 1) == 1 and 0x82F63B78 or 0) end
  remainders[byte] = r
end

local function crc_bits(bytes)
  local crc = -1
  for i = 1, #bytes do
    crc = bit.bxor(remainders[bit.band(bit.bxor(crc, bytes:byte(i)), 255)], bit.rshift(crc, 8))
  end
  return bit.bnot(crc)
end

--- The CRC-32C of some bytes (RFC 3720, appendix B.4). @param bytes text @return a whole number, 0 to 2^32 - 1
function tensorboard.crc32c(bytes) return crc_bits(bytes) % 2 ^ 32 end

local function fixed32(x) -- a whole number as four bytes, the least significant first
  local function byte(shift) return bit.band(bit.rshift(x, shift), 255) end
  return string.char(byte(0), byte(8), byte(16), byte(24))
end

-- A checksum beside the bytes it is of would itself be summed one day, so that it is stored rotated and shifted.
local function masked(bytes)
  return fixed32(bit.tobit(bit.ror(crc_bits(bytes), 15) + 0xA282EAD8))
end

local function record(bytes)
  local length = fixed32(#bytes) .. "\0\0\0\0"
  return length .. masked(length) .. bytes .. masked(bytes)
end

-- ---- protocol buffers ---------------------------------------------------------------------------------------------

local function varint(x) -- a whole number, 0 to 2^53, seven bits a byte
  local bytes = {}
  repeat
    local low = x % 128
    x = (x - low) / 128
    bytes[#bytes + 1] = string.char(x > 0 and low + 128 or low)
  until x == 0
  return table.concat(bytes)
end

local function raw(kind, x) return ffi.string(ffi.new(kind .. "[1]", x), ffi.sizeof(kind)) end

local VARINT, EIGHT, LENGTH, FOUR = 0, 1, 2, 5 -- wire types
local function key(field, wire) return string.char(field * 8 + wire) end
local function text_field(field, bytes) return key(field, LENGTH) .. varint(#bytes) .. bytes end

local function event(wall_time, step, field)
  local at = step > 0 and key(2, VARINT) .. varint(step) or "" -- a zero is not written
  return record(key(1, EIGHT) .. raw("double", wall_time) .. at .. field)
end

-- ---- the file -----------------------------------------------------------------------------------------------------

--- The event file of a folder. @param folder @return its path, or nil when there is none
function tensorboard.find(folder)
  if lfs.attributes(folder, "mode") ~= "directory" then return nil end
  for name in lfs.dir(folder) do
    if name:match "^events%.out%.tfevents%.%d+%.perigee$" then return folder .. "/" .. name end
  end
end

-- The first records of a file, as bytes: one for the version, and `count` more. What is torn at the end is left away.
local function first_records(bytes, count)
  local at = 1
  for _ = 0, count do
    local a, b, c, d = bytes:byte(at, at + 3)
    local last = d and at + 15 + a + b * 2 ^ 8 + c * 2 ^ 16 + d * 2 ^ 24
    if not last or last > #bytes then break end
    at = last + 1
  end
  return bytes:sub(1, at - 1)
end

local function write(self, bytes)
  local ok, why = self.file:write(bytes)
  if ok then ok, why = self.file:flush() end
  if not ok then util.fail(0, "cannot write %s: %s", self.path, why) end
end

--- Opens the event file of a run folder: a new one, or, with `keep`, the old one cut back to its first `keep` steps.
-- @param folder     path of a folder that exists
-- @param keep       whole number, or nil for a new file in the place of an old one
-- @param wall_time  of a new file: seconds since 1970, now if not given
-- @return an object with :scalars(step, values, wall_time) and :close()
-- @raises when the file cannot be written
function tensorboard.open(folder, keep, wall_time)
  local old, kept = tensorboard.find(folder), ""
  if old and keep then
    local file = io.open(old, "rb")
    kept = file and first_records(file:read "*a" or "", keep) or ""
    if file then file:close() end
  elseif old then
    os.remove(old)
    old = nil
  end
  local path = old or ("%s/events.out.tfevents.%010d.perigee"):format(folder, os.time())
  if old then util.write_file(path, kept) end
  local file, why = io.open(path, "ab")
  if not file then util.fail(0, "cannot write %s", why) end
  local self = setmetatable({ path = path, file = file }, Events)
  if kept == "" then write(self, event(wall_time or os.time(), 0, text_field(3, "brain.Event:2"))) end
  return self
end

--- Writes the scalars of one step.
-- @param step       whole number, 0 or more
-- @param values     tag -> number; tags with a common part before a slash stand together in TensorBoard
-- @param wall_time  seconds since 1970, now if not given
function Events:scalars(step, values, wall_time)
  local tags, parts = {}, {}
  for tag in pairs(values) do tags[#tags + 1] = tag end
  table.sort(tags)
  for i, tag in ipairs(tags) do
    parts[i] = text_field(1, text_field(1, tag) .. key(2, FOUR) .. raw("float", values[tag]))
  end
  write(self, event(wall_time or os.time(), step, text_field(5, table.concat(parts))))
end

--- Writes a line of metrics.jsonl: its numbers are scalars, and its text, such as the method, stands before their
-- names.
-- @param entry  what pg.run's log was given
-- @param count  the line's number, its step where the entry names none
function Events:entry(entry, count)
  local words, values = {}, {}
  for name, value in pairs(entry) do
    if type(value) == "string" then words[#words + 1] = name end
  end
  table.sort(words)
  for i, name in ipairs(words) do words[i] = entry[name] .. "/" end
  local before = table.concat(words)
  for name, value in pairs(entry) do
    if type(value) == "number" and name ~= "step" then values[before .. name] = value end
  end
  local step = entry.step
  local good = type(step) == "number" and step >= 0 and step < 2 ^ 53
  self:scalars(good and math.floor(step) or count, values)
end

--- Closes the file.
function Events:close() self.file:close() end

return tensorboard
