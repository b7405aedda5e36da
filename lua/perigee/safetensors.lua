-- safetensors.lua - named tensors in one file: 8 bytes of header length, a JSON header, then little-endian values.
-- Layout: https://github.com/huggingface/safetensors, "Format". Nothing in the header is believed before it is checked
-- against the file: offsets must tile the data exactly, and each size must follow from its shape and dtype.

local ffi = require "ffi"
local bit = require "bit"
local json = require "cjson.safe"
local lib = require "perigee.ffi"
local call = require "perigee.call"
local util = require "perigee.util"
local tensor = require "perigee.tensor"

local safetensors = {}

local LARGEST_HEADER = 100e6 -- bytes; the reference implementation's limit
local CODE = { float32 = "F32", float64 = "F64", int32 = "I32", uint8 = "U8" }
local NATIVE = { F32 = { "float32", 4 }, F64 = { "float64", 8 }, I32 = { "int32", 4 }, U8 = { "uint8", 1 } }

-- ---- dtypes that are widened on reading ---------------------------------------------------------------------------

local Word = ffi.typeof "union { uint32_t bits; float value; }"

local function bfloat16(word, bits) -- the upper half of a float32
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

-- Checks one header entry; returns {name, dtype, shape, first, last}.
local function entry(path, name, given)
  local function check(condition, format, ...)
    return util.check(condition, "%s: tensor '%s' " .. format, path, name, ...)
  end
  check(type(given) == "table", "has no description")
  local kind = type(given.dtype) == "string" and (NATIVE[given.dtype] or WIDENED[given.dtype])
  check(kind, "has dtype %s; F32, F64, I32, U8, F16, BF16 and I64 can be read", tostring(given.dtype))
  local shape, offsets = given.shape, given.data_offsets
  check(type(shape) == "table" and #shape <= lib.PG_MAX_DIMS, "must have a shape of at most %d sizes", lib.PG_MAX_DIMS)
  local count = 1
  for i = 1, #shape do
    check(whole(shape[i]), "has a size that is not a whole number: %s", tostring(shape[i]))
    count = count * shape[i]
  end
  check(type(offsets) == "table" and whole(offsets[1]) and whole(offsets[2]) and offsets[1] <= offsets[2],
    "must have data_offsets [first, last]")
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
    if not value then util.fail(0, "%s: tensor '%s' has I64 values outside int32", path, e.name) end
    out[i] = value
  end
end

local function read_header(path, file)
  local size = file:seek "end"
  file:seek "set"
  local prefix = file:read(8)
  util.check(prefix and #prefix == 8, "%s: not a safetensors file: shorter than its 8-byte prefix", path)
  local length = 0
  for i = 8, 1, -1 do length = length * 256 + prefix:byte(i) end
  util.check(length <= size - 8 and length <= LARGEST_HEADER,
    "%s: not a safetensors file: its header would be %.0f bytes, the file has %.0f", path, length, size)
  local text = file:read(length)
  local header = text and json.decode(text)
  util.check(type(header) == "table", "%s: not a safetensors file: its header is not JSON", path)
  return header, 8 + length, size - 8 - length
end

-- The entries in the file's order; together they must cover its data without a gap or an overlap.
local function read_entries(path, header, bytes)
  local list = {}
  for name, given in pairs(header) do
    util.check(type(name) == "string", "%s: not a safetensors file: its header is a list, not a map of tensors", path)
    if name ~= "__metadata__" then list[#list + 1] = entry(path, name, given) end
  end
  table.sort(list, function(a, b) return a.first < b.first or (a.first == b.first and a.last < b.last) end)
  local at = 0
  for _, e in ipairs(list) do
    util.check(e.first == at, "%s: tensor '%s' starts at byte %.0f of the data, where %.0f was expected", path, e.name,
      e.first, at)
    at = e.last
  end
  util.check(at == bytes, "%s: the header describes %.0f bytes of data, the file holds %.0f", path, at, bytes)
  return list
end

--- Reads every tensor of a file. F32, F64, I32 and U8 come as they are; F16 and BF16 as float32; I64 as int32.
-- @param path  file name
-- @return a table name -> tensor, and the file's metadata (a table of strings, empty when there is none)
-- @raises when the file is missing, truncated, or its header disagrees with its data
function safetensors.load(path)
  util.check(type(path) == "string", "safetensors.load: path must be a string, got %s", type(path))
  local file, why = io.open(path, "rb")
  util.check(file, "cannot read %s", why)
  local function read()
    local header, start, bytes = read_header(path, file)
    local tensors = {}
    for _, e in ipairs(read_entries(path, header, bytes)) do
      local t = tensor.empty(e.shape, { dtype = e.dtype })
      if e.last > e.first then
        file:seek("set", start + e.first)
        local data = file:read(e.last - e.first)
        util.check(data and #data == e.last - e.first, "%s: cannot read tensor '%s': the file shrank", path, e.name)
        if WIDENED[e.code] then widen(path, e, data, t) else ffi.copy(t:data(), data, #data) end
      end
      tensors[e.name] = t
    end
    local metadata = {}
    for key, value in pairs(type(header.__metadata__) == "table" and header.__metadata__ or {}) do
      metadata[key] = type(value) == "string" and value or nil
    end
    return tensors, metadata
  end
  local ok, tensors, metadata = pcall(read)
  file:close()
  if not ok then util.raise((tostring(tensors):gsub("^[^:\n]+:%d+: ", ""))) end
  return tensors, metadata
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
