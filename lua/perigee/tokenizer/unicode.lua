-- unicode.lua - the core's Unicode functions for Lua strings (core/text/unicode.c).

local ffi = require "ffi"
local lib = require "perigee.ffi"
local call = require "perigee.call"

local unicode = { OTHER = lib.PG_TEXT_OTHER, LETTER = lib.PG_TEXT_LETTER, NUMBER = lib.PG_TEXT_NUMBER,
  SPACE = lib.PG_TEXT_SPACE, FOLLOWS = lib.PG_TEXT_FOLLOWS }

local room, buffer = 0, nil
local length = ffi.new "int64_t[1]"

local function reserve(bytes)
  if bytes > room then
    room = math.max(4096, 2 * bytes)
    buffer = ffi.new("char[?]", room)
  end
end

-- growth: how many bytes may come of one.
local function map(text, form, growth)
  reserve(growth * #text)
  call.check(lib.pg_text_map(text, #text, form, buffer, room, length))
  return ffi.string(buffer, length[0])
end

--- The text with every run of bytes that is no UTF-8 replaced by U+FFFD, as Python's errors="replace" does.
function unicode.valid(text)
  return text:find "[\128-\255]" and map(text, lib.PG_TEXT_VALID, 3) or text
end

--- Normal form C of valid UTF-8: composed characters.
function unicode.nfc(text)
  return text:find "[\128-\255]" and map(text, lib.PG_TEXT_NFC, 3) or text
end

--- Normal form KC of valid UTF-8: variants of characters first become these.
function unicode.nfkc(text)
  return text:find "[\128-\255]" and map(text, lib.PG_TEXT_NFKC, 11) or text
end

--- Lower case.
-- @param final  true: a sigma that ends a word is the final one, as in Python; false: character by character
function unicode.lower(text, final)
  if not text:find "[\128-\255]" then return text:lower() end
  return map(text, final and lib.PG_TEXT_LOWER_FINAL or lib.PG_TEXT_LOWER, 3)
end

--- Upper case, where it is one character.
function unicode.upper(text) return map(text, lib.PG_TEXT_UPPER, 3) end

--- The position of the first byte that is no UTF-8, or nil.
function unicode.fault(text)
  local at = tonumber(lib.pg_text_fault(text, #text))
  return at >= 0 and at + 1 or nil
end

local classes, held = nil, 0

--- One class a byte, from 0: unicode.LETTER, NUMBER, SPACE or OTHER at the first byte of a character, FOLLOWS at its
-- others; and 255 after the last. The array is good until the next call.
function unicode.classes(text)
  if #text >= held then
    held = 2 * #text + 256
    classes = ffi.new("uint8_t[?]", held)
  end
  lib.pg_text_classes(text, #text, classes)
  classes[#text] = 255
  return classes
end

--- The character of a code point.
function unicode.char(point)
  if point < 0x80 then return string.char(point) end
  local tail, lead, limit = "", 0x80, 0x40
  repeat
    tail = string.char(0x80 + point % 64) .. tail
    point, lead, limit = math.floor(point / 64), lead / 2 + 0x80, limit / 2
  until point < limit
  return string.char(lead + point) .. tail
end

return unicode
