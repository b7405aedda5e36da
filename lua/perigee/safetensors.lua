-- safetensors.lua - named tensors in one file: 8 bytes of header length, a JSON header, then little-endian values.
-- Layout: https://github.com/huggingface/safetensors, "Format". Nothing in the header is believed before it is checked
-- against the file: offsets must tile the data exactly, each size must follow from its shape and dtype, and no name may
-- stand twice, since two readers would then see two models.

local ffi = require "ffi"
local bit = require "bit"
local json = require "cjson.safe"
local lib = require "perigee.ffi"
local call = require "perigee.call"
local util = require "perigee.util"
local tensor = require "perigee.tensor"

local safetensors = {}

local LARGEST_HEADER = 100e6 -- bytes; the reference implementation's limit
local MOST_VALUES = 2 ^ 43 -- 64 TiB of float64, the most that a tensor may ask for
local CODE = { float32 = "F32", float64 = "F64", int32 = "I32", uint8 = "U8" }
local NATIVE = { F32 = { "float32", 4 }, F64 = { "float64", 8 }, I32 = { "int32", 4 }, U8 = { "uint8", 1 } }

-- ---- dtypes that are widened on reading ---------------------------------------------------------------------------

local Word = ffi.typeof "union { uint32_t bits; float value; }"

local function bfloat16(word, bits) -- the upper half of a float32
  if bit.band(bits, 0x7fff) > 0x7f80 then return 0 / 0 end -- a NaN with bits of its own is no number to LuaJIT
  word.bits = bit.lshift(bits, 16)
  return word.value
end

local function float16(_, bits) -- 1 sign, 5 exponent, 10 fraction bits
  local sign = bits >= 0x8000 and -1 or 1
  local exponent, fraction = bit.band(bit.rshift(bits, 10), 31), bit.band(bits, 1023)
  if exponent == 0 then return sign * fraction * 2 ^ -24 end
  if exponent == 31 then return fraction == 0 and sign * math.huge or 0 / 0 end
  return sign * (1 + fraction / 1024) * 2 ^ (exponent - 15)
end

local function int64(_, value)
  value = tonumber(value)
  return value >= -2 ^ 31 and value < 2 ^ 31 and value or nil
end

local WIDENED = { BF16 = { "float32", 2, "uint16_t", bfloat16 }, F16 = { "float32", 2, "uint16_t", float16 },
  I64 = { "int32", 8, "int64_t", int64 } }

-- ---- loading ------------------------------------------------------------------------------------------------------

local function whole(x) return type(x) == "number" and x >= 0 and x % 1 == 0 and x <= 2 ^ 53 end

-- What the file says, as a message shows it: on one line, and not endless.
local function shown(text)
  text = tostring(text):gsub("%c", "?")
  if #text > 80 then text = text:sub(1, 77):gsub("[\192-\255][\128-\191]*$", "") .. "..." end
  return text
end

-- Checks one header entry; returns {name, dtype, shape, first, last}.
local function entry(path, name, given)
  local function check(condition, format, ...)
    return condition or util.fail(0, "%s: tensor '%s' " .. format, path, shown(name), ...)
  end
  check(type(given) == "table", "has no description")
  local kind = type(given.dtype) == "string" and (NATIVE[given.dtype] or WIDENED[given.dtype])
  check(kind, "has dtype %s; F32, F64, I32, U8, F16, BF16 and I64 can be read", shown(given.dtype))
  local shape, offsets = given.shape, given.data_offsets
  check(type(shape) == "table" and (shape[1] ~= nil or next(shape) == nil) and #shape <= lib.PG_MAX_DIMS,
    "must have a shape of at most %d sizes", lib.PG_MAX_DIMS)
  local count, span = 1, 1 -- span: as if no size were 0, since strides are so
  for i = 1, #shape do
    check(whole(shape[i]), "has a size that is not a whole number: %s", shown(shape[i]))
    count, span = count * shape[i], span * math.max(shape[i], 1)
  end
  check(span <= MOST_VALUES, "has a shape of %.3g values: more than any memory holds", span)
  check(type(offsets) == "table" and #offsets == 2 and whole(offsets[1]) and whole(offsets[2])
    and offsets[1] <= offsets[2], "must have data_offsets [first, last]")
  check(offsets[2] - offsets[1] == count * kind[2], "holds %.0f bytes, but its shape and dtype %s need %.0f",
    offsets[2] - offsets[1], given.dtype, count * kind[2])
  return { name = name, code = given.dtype, dtype = kind[1], shape = shape, first = offsets[1], last = offsets[2] }
end

local function widen(path, e, bytes, t)
  local kind = WIDENED[e.code]
  local raw, out, word, convert = ffi.new(kind[3] .. "[?]", #bytes / kind[2]), t:data(), Word(), kind[4]
  ffi.copy(raw, bytes, #bytes)
  for i = 0, #bytes / kind[2] - 1 do
    local value = convert(word, raw[i])
    if not value then util.fail(0, "%s: tensor '%s' has I64 values outside int32", path, shown(e.name)) end
    out[i] = value
  end
end

-- The position of the first byte that is no UTF-8 (RFC 3629: no overlong forms, no surrogates), or nil.
local function not_utf8(text)
  local at = text:find "[\128-\255]"
  while at do
    local a, b = text:byte(at, at + 1)
    local more = a >= 0xC2 and (a <= 0xDF and 1 or a <= 0xEF and 2 or a <= 0xF4 and 3)
    local low, high = a == 0xE0 and 0xA0 or a == 0xF0 and 0x90 or 0x80, a == 0xED and 0x9F or a == 0xF4 and 0x8F or 0xBF
    if not more or not b or b < low or b > high or not text:find("^" .. ("[\128-\191]"):rep(more), at + 1) then
      return at
    end
    at = text:find("[\128-\255]", at + more + 1)
  end
end

-- The first key that stands twice in one object of valid JSON, or nil: a decoder silently keeps one of the two.
local function repeated_key(text)
  local seen, depth, at = {}, 0, 1
  while true do
    local from, _, mark = text:find('(["{}])', at)
    if not from then return nil end
    at = from + 1
    if mark == "{" then
      depth = depth + 1
      seen[depth] = {}
    elseif mark == "}" then
      depth = depth - 1
    else
      while text:byte(at) ~= 34 do at = text:byte(at) == 92 and at + 2 or text:find('["\\]', at + 1) end -- " and \
      at = at + 1
      if text:find("^%s*:", at) then
        local key = json.decode("[" .. text:sub(from, at - 1) .. "]")[1]
        if seen[depth][key] then return key end
        seen[depth][key] = true
      end
    end
  end
end

local function read_header(path, file)
  local function check(condition, format, ...)
    return condition or util.fail(0, "%s: not a safetensors file: " .. format, path, ...)
  end
  local size = check(file:seek "end", "it has no end")
  file:seek "set"
  local prefix = file:read(8)
  check(prefix and #prefix == 8, "shorter than its 8-byte prefix")
  local length = 0
  for i = 8, 1, -1 do length = length * 256 + prefix:byte(i) end
  check(length <= size - 8 and length <= LARGEST_HEADER, "its header would be %.0f bytes, the file has %.0f", length,
    size)
  local text = file:read(length)
  local header = text and json.decode(text)
  check(type(header) == "table", "its header is not JSON")
  check(text:byte() == 123, "its header must be a map of tensors and begin with {")
  local fault = not_utf8(text)
  check(not fault, "its header is not UTF-8 at byte %d", fault or 0)
  local twice = repeated_key(text)
  check(twice == nil, "its header has '%s' twice", shown(twice))
  return header, 8 + length, size - 8 - length
end

-- The file's own notes: a map of strings.
local function read_metadata(path, given)
  local good = given == nil or type(given) == "table"
  for key, value in pairs(good and given or {}) do
    good = good and type(key) == "string" and type(value) == "string"
  end
  return util.check(good, "%s: its __metadata__ must be a map from strings to strings", path) and given or {}
end

-- The entries in the file's order; together they must cover its data without a gap or an overlap.
local function read_entries(path, header, bytes)
  local list = {}
  for name, given in pairs(header) do
    if name ~= "__metadata__" then list[#list + 1] = entry(path, name, given) end
  end
  table.sort(list, function(a, b) return a.first < b.first or (a.first == b.first and a.last < b.last) end)
  local at = 0
  for _, e in ipairs(list) do
    util.check(e.first == at, "%s: tensor '%s' starts at byte %.0f of the data, where %.0f was expected", path,
      shown(e.name), e.first, at)
    at = e.last
  end
  util.check(at == bytes, "%s: the header describes %.0f bytes of data, the file holds %.0f", path, at, bytes)
  return list
end

--- Reads every tensor of a file. F32, F64, I32 and U8 come as they are; F16 and BF16 as float32; I64 as int32.
-- @param path  file name
-- @return a table name -> tensor, and the file's metadata (a table of strings, empty when there is none)
-- @raises one line that begins with the file, and names the tensor where it is about one: the file is missing or
--   truncated, or its header is no JSON map in UTF-8, names something twice, or disagrees with its data
function safetensors.load(path)
  util.check(type(path) == "string", "safetensors.load: path must be a string, got %s", type(path))
  local file, why = io.open(path, "rb")
  util.check(file, "cannot read %s", why)
  local function read()
    local header, start, bytes = read_header(path, file)
    local tensors, metadata = {}, read_metadata(path, header.__metadata__)
    for _, e in ipairs(read_entries(path, header, bytes)) do
      local t = tensor.empty(e.shape, { dtype = e.dtype })
      if e.last > e.first then
        file:seek("set", start + e.first)
        local data = file:read(e.last - e.first)
        util.check(data and #data == e.last - e.first, "%s: cannot read tensor '%s': the file shrank", path,
          shown(e.name))
        if WIDENED[e.code] then widen(path, e, data, t) else ffi.copy(t:data(), data, #data) end
      end
      tensors[e.name] = t
    end
    return tensors, metadata
  end
  local ok, tensors, metadata = pcall(read)
  file:close()
  if ok then return tensors, metadata end
  local reason = tostring(tensors):gsub("^[^:\n]+:%d+: ", "")
  util.raise(reason:find(path, 1, true) and reason or path .. ": " .. reason) -- out of memory knows no file
end

-- ---- saving -------------------------------------------------------------------------------------------------------

local function header_text(names, tensors, metadata)
  local parts, at = {}, 0
  if metadata and next(metadata) then
    local keys, pairs_text = {}, {}
    for key in pairs(metadata) do keys[#keys + 1] = tostring(key) end
    table.sort(keys)
    for i, key in ipairs(keys) do
      pairs_text[i] = json.encode(key) .. ":" .. json.encode(tostring(metadata[key]))
    end
    parts[1] = '"__metadata__":{' .. table.concat(pairs_text, ",") .. "}"
  end
  for _, name in ipairs(names) do
    local t = tensors[name]
    local code = CODE[t:dtype()]
    local last = at + t:numel() * NATIVE[code][2]
    parts[#parts + 1] = ('%s:{"dtype":"%s","shape":[%s],"data_offsets":[%.0f,%.0f]}'):format(json.encode(name), code,
      table.concat(t:shape(), ","), at, last)
    at = last
  end
  local text = "{" .. table.concat(parts, ",") .. "}"
  return text .. (" "):rep(-#text % 8)
end

--- Writes tensors to one file, whole or not at all: a failure or a kill leaves the old file. Names are written sorted,
-- so the same tensors give the same bytes.
-- @param path      file name
-- @param tensors   table name -> tensor of any dtype and device
-- @param metadata  table of strings, or nil
-- @raises one line with the path and the system's reason (no space, no such folder)
function safetensors.save(path, tensors, metadata)
  util.check(type(path) == "string", "safetensors.save: path must be a string, got %s", type(path))
  util.check(type(tensors) == "table", "safetensors.save: tensors must be a table name -> tensor")
  util.check(metadata == nil or type(metadata) == "table", "safetensors.save: metadata must be a table of strings")
  local names, kept = {}, {}
  for name, t in pairs(tensors) do
    util.check(type(name) == "string" and name ~= "__metadata__", "safetensors.save: '%s' cannot be a tensor's name",
      tostring(name))
    util.check(call.is_tensor(t), "safetensors.save: '%s' must be a tensor, got %s", name, type(t))
    names[#names + 1] = name
    kept[name] = t:detach():to("cpu"):contiguous()
  end
  table.sort(names)
  local header = header_text(names, kept, metadata)
  local prefix, length = {}, #header
  for i = 1, 8 do
    prefix[i], length = string.char(length % 256), math.floor(length / 256)
  end
  local head = table.concat(prefix) .. header
  local parts, sizes = ffi.new("const void *[?]", #names + 1), ffi.new("int64_t[?]", #names + 1)
  parts[0], sizes[0] = ffi.cast("const char *", head), #head
  for i, name in ipairs(names) do
    local t = kept[name]
    parts[i], sizes[i] = t:data(), t:numel() * NATIVE[CODE[t:dtype()]][2]
  end
  call.check(lib.pg_file_write(path, #names + 1, parts, sizes))
end

return safetensors
