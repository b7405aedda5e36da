-- safetensors.lua - named tensors in one file: 8 bytes of header length, a JSON header, then little-endian values.
-- Layout: https://github.com/huggingface/safetensors, "Format". Nothing in the header is believed before it is checked
-- against the file: offsets must tile the data exactly, each size must follow from its shape and dtype, and no name may
-- stand twice, since two readers would then see two models.

local ffi = require "ffi"
local json = require "cjson.safe"
local lib = require "perigee.ffi"
local call = require "perigee.call"
local util = require "perigee.util"
local tensor = require "perigee.tensor"

local safetensors = {}

local LARGEST_HEADER = 100e6 -- bytes; the reference implementation's limit
local MOST_VALUES = 2 ^ 43 -- 64 TiB of float64, the most that a tensor may ask for
local CODE = { float32 = "F32", float64 = "F64", int32 = "I32", uint8 = "U8", float16 = "F16", bfloat16 = "BF16" }
local KIND = { F32 = lib.PG_FLOAT32, F64 = lib.PG_FLOAT64, I32 = lib.PG_INT32, U8 = lib.PG_UINT8, F16 = lib.PG_FLOAT16,
  BF16 = lib.PG_BFLOAT16, I64 = lib.PG_INT64, U64 = lib.PG_UINT64, U32 = lib.PG_UINT32, I16 = lib.PG_INT16,
  U16 = lib.PG_UINT16, I8 = lib.PG_INT8, BOOL = lib.PG_BOOL }

local function bytes_of(code) return tonumber(lib.pg_kind_bytes(KIND[code])) end

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
  local kind = type(given.dtype) == "string" and KIND[given.dtype]
  check(kind, "has dtype %s; F64, F32, F16, BF16, I8 to I64, U8 to U64 and BOOL can be read", shown(given.dtype))
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
  local bytes = count * bytes_of(given.dtype)
  check(offsets[2] - offsets[1] == bytes, "holds %.0f bytes, but its shape and dtype %s need %.0f",
    offsets[2] - offsets[1], given.dtype, bytes)
  local dtype = ffi.string(lib.pg_dtype_name(lib.pg_kind_dtype(kind)))
  return { name = name, kind = kind, dtype = dtype, shape = shape, first = offsets[1], last = offsets[2] }
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

-- The map that a JSON text is, in UTF-8 and with no name twice; check(condition, format, ...) raises.
local function read_map(text, check)
  local map = text and json.decode(text)
  check(type(map) == "table", "its header is not JSON")
  check(text:byte() == 123, "its header must be a map of tensors and begin with {")
  local fault = not_utf8(text)
  check(not fault, "its header is not UTF-8 at byte %d", fault or 0)
  local twice = repeated_key(text)
  check(twice == nil, "its header has '%s' twice", shown(twice))
  return map
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
  return read_map(file:read(length), check), 8 + length, size - 8 - length
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

-- An error's text without the line that it was raised at.
local function reason_of(err) return (tostring(err):gsub("^[^:\n]+:%d+: ", "")) end

-- Tensors and metadata of one file; look(entries), where given, may refuse them before any value is read.
local function read_file(path, look)
  local file, why = io.open(path, "rb")
  util.check(file, "cannot read %s", why)
  local function read()
    local header, start, bytes = read_header(path, file)
    local tensors, metadata, entries = {}, read_metadata(path, header.__metadata__), read_entries(path, header, bytes)
    if look then look(entries) end
    for _, e in ipairs(entries) do
      local t = tensor.empty(e.shape, { dtype = e.dtype })
      local status = lib.pg_values_read(ffi.C.fileno(file), start + e.first, e.kind, t)
      if status == lib.PG_ERR_INTERRUPTED then call.check(status) end
      if status ~= 0 then
        util.fail(0, "%s: tensor '%s': %s", path, shown(e.name), ffi.string(lib.pg_last_error()))
      end
      tensors[e.name] = t
    end
    return tensors, metadata
  end
  local ok, tensors, metadata = pcall(read)
  file:close()
  if ok then return tensors, metadata end
  if tensors == "interrupted" then error(tensors, 0) end
  local reason = reason_of(tensors)
  util.raise(reason:find(path, 1, true) and reason or path .. ": " .. reason) -- out of memory knows no file
end

--- Reads every tensor of a file: F32, F64, I32 and U8 as they are; F16 and BF16 as float32, every NaN the plain one; I8,
-- I16, I64, U16, U32 and U64 as int32; BOOL as uint8 of 0 and 1. Values are read into place on all threads, not mapped: a
-- file that is cut short or overwritten afterwards changes no tensor (docs/performance.md has what it costs).
-- @param path  file name
-- @return a table name -> tensor, and the file's metadata (a table of strings, empty when there is none)
-- @raises one line that begins with the file, and names the tensor where it is about one: the file is missing or
--   truncated, its header is no JSON map in UTF-8, names something twice, or disagrees with its data, or an integer does
--   not fit int32
function safetensors.load(path)
  util.check(type(path) == "string", "safetensors.load: path must be a string, got %s", type(path))
  return read_file(path)
end

-- ---- checkpoints of several files -----------------------------------------------------------------------------------

local function sorted_keys(map)
  local keys = {}
  for key in pairs(map) do keys[#keys + 1] = key end
  table.sort(keys)
  return keys
end

-- What an index says: name -> shard, shard -> its names, and its own metadata.
local function read_index(path)
  local function check(condition, format, ...) return condition or util.fail(0, "%s: " .. format, path, ...) end
  local file, why = io.open(path, "rb")
  util.check(file, "cannot read %s", why)
  local size = file:seek "end"
  local text = size and size <= LARGEST_HEADER and file:seek "set" == 0 and file:read "*a"
  file:close()
  check(text, "not an index: it is a file of at most %.0f bytes", LARGEST_HEADER)
  local index = read_map(text, function(condition, format, ...)
    return check(condition, "not an index: " .. format:gsub("its header", "it"), ...)
  end)
  check(type(index.weight_map) == "table", "not an index: it has no weight_map")
  check(index.metadata == nil or type(index.metadata) == "table", "its metadata must be a map")
  local shards, metadata = {}, {}
  for name, shard in pairs(index.weight_map) do
    check(type(name) == "string", "its weight_map must be a map from tensors to files")
    check(type(shard) == "string" and shard ~= "" and shard ~= "." and shard ~= ".." and not shard:find "[/\\%c]",
      "tensor '%s' is in '%s': a shard is a file beside the index, named without a folder", shown(name), shown(shard))
    shards[shard] = shards[shard] or {}
    shards[shard][name] = true
  end
  for key, value in pairs(index.metadata or {}) do
    local whole_number = type(value) == "number" and value % 1 == 0
    metadata[tostring(key)] = type(value) == "string" and value or whole_number and ("%.0f"):format(value)
      or json.encode(value)
  end
  return index.weight_map, shards, metadata
end

--- Reads a checkpoint of several files, as large models are published, by its index: model.safetensors.index.json.
-- @param path  file name of the index; its shards stand beside it
-- @return a table name -> tensor, and metadata: that of the shards, and over it the index's own, numbers as text
-- @raises one line that begins with the index, and names shard and tensor: the index is no JSON map in UTF-8, names
--   something twice, or a file elsewhere; a shard is missing, truncated or damaged, lacks a tensor that the index places
--   there, or holds one that the index does not
function safetensors.load_sharded(path)
  util.check(type(path) == "string", "safetensors.load_sharded: path must be a string, got %s", type(path))
  local places, shards, own = read_index(path)
  local folder, tensors, metadata = path:match "^.*/" or "", {}, {}
  for _, shard in ipairs(sorted_keys(shards)) do
    local function fail(format, ...) util.fail(0, "%s: shard '%s' " .. format, path, shown(shard), ...) end
    local function look(entries)
      local there = {}
      for _, e in ipairs(entries) do
        there[e.name] = true
        if places[e.name] ~= shard then
          fail("holds tensor '%s', which the index %s", shown(e.name),
            places[e.name] and "places in '" .. shown(places[e.name]) .. "'" or "does not list")
        end
      end
      for _, name in ipairs(sorted_keys(shards[shard])) do
        if not there[name] then fail("lacks tensor '%s', which the index places there", shown(name)) end
      end
    end
    local ok, found, notes = pcall(read_file, folder .. shard, look)
    if not ok then
      if found == "interrupted" then error(found, 0) end
      local reason, prefix = reason_of(found), folder .. shard .. ": "
      if reason:find(path .. ": ", 1, true) == 1 then util.raise(reason) end -- from look
      fail("is unreadable: %s", reason:find(prefix, 1, true) == 1 and reason:sub(#prefix + 1) or reason)
    end
    for name, t in pairs(found) do tensors[name] = t end
    for key, value in pairs(notes) do metadata[key] = value end
  end
  for key, value in pairs(own) do metadata[key] = value end
  return tensors, metadata
end

-- ---- saving -------------------------------------------------------------------------------------------------------

local function header_text(parts, metadata)
  local list, at = {}, 0
  if metadata and next(metadata) then
    local texts, pairs_text = {}, {}
    for key, value in pairs(metadata) do texts[tostring(key)] = tostring(value) end
    for i, key in ipairs(sorted_keys(texts)) do pairs_text[i] = json.encode(key) .. ":" .. json.encode(texts[key]) end
    list[1] = '"__metadata__":{' .. table.concat(pairs_text, ",") .. "}"
  end
  for _, part in ipairs(parts) do
    list[#list + 1] = ('%s:{"dtype":"%s","shape":[%s],"data_offsets":[%.0f,%.0f]}'):format(json.encode(part.name),
      part.code, table.concat(part.shape, ","), at, at + part.bytes)
    at = at + part.bytes
  end
  local text = "{" .. table.concat(list, ",") .. "}"
  return text .. (" "):rep(-#text % 8)
end

-- How a tensor will stand in a file: {name, tensor, code, shape, bytes}.
local function plan(where, name, t, half)
  util.check(type(name) == "string" and name ~= "__metadata__" and not not_utf8(name),
    "%s: '%s' cannot be a tensor's name", where, shown(name))
  util.check(call.is_tensor(t), "%s: '%s' must be a tensor, got %s", where, name, type(t))
  local dtype = t:dtype()
  local code = CODE[half and dtype:find "^float" and half or dtype]
  return { name = name, tensor = t, code = code, shape = t:shape(), bytes = t:numel() * bytes_of(code) }
end

local function plans(where, tensors, metadata, half)
  util.check(type(tensors) == "table", "%s: tensors must be a table name -> tensor", where)
  util.check(metadata == nil or type(metadata) == "table", "%s: metadata must be a table of strings", where)
  util.check(half == nil or half == "float16" or half == "bfloat16",
    "%s: dtype rounds floats to float16 or bfloat16, got '%s'", where, tostring(half))
  local list = {}
  for name, t in pairs(tensors) do list[#list + 1] = plan(where, name, t, half) end
  table.sort(list, function(a, b) return a.name < b.name end)
  return list
end

local function write(path, list, metadata)
  local header = header_text(list, metadata)
  local prefix, length = {}, #header
  for i = 1, 8 do
    prefix[i], length = string.char(length % 256), math.floor(length / 256)
  end
  local head = table.concat(prefix) .. header
  local parts, sizes = ffi.new("const void *[?]", #list + 1), ffi.new("int64_t[?]", #list + 1)
  parts[0], sizes[0] = ffi.cast("const char *", head), #head
  for i, part in ipairs(list) do
    local t = part.tensor:detach():to("cpu"):contiguous()
    if part.code == "F16" or part.code == "BF16" then
      local out = ffi.new "pg_tensor *[1]"
      call.check(lib.pg_values_pack(t, KIND[part.code], out))
      t = call.own(out[0])
    end
    part.kept, parts[i], sizes[i] = t, t:data(), part.bytes -- kept: from the collector
  end
  call.check(lib.pg_file_write(path, #list + 1, parts, sizes))
end

--- Writes tensors to one file, whole or not at all: a failure or a kill leaves the old file. Names are written sorted,
-- so the same tensors give the same bytes.
-- @param path      file name
-- @param tensors   table name -> tensor of any dtype and device
-- @param metadata  table of strings, or nil
-- @param options   {dtype = "float16" or "bfloat16": how float tensors are stored, rounded to nearest with ties to even;
--   NaN stays NaN, and what is too large becomes infinite. Without it they are stored as they are}
-- @raises one line with the path and the system's reason (no space, no such folder)
function safetensors.save(path, tensors, metadata, options)
  util.check(type(path) == "string", "safetensors.save: path must be a string, got %s", type(path))
  local o = util.options("safetensors.save", options, { dtype = util.none })
  write(path, plans("safetensors.save", tensors, metadata, o.dtype), metadata)
end

--- Writes tensors to several files, model-00001-of-0000N.safetensors and so on, in the order of their names, and then the
-- index model.safetensors.index.json. A kill on the way leaves no index, never one of another checkpoint's files.
-- @param directory  an existing folder
-- @param tensors    table name -> tensor of any dtype and device
-- @param options    {largest = 5e9: most bytes of values in one file, but for a tensor that is larger by itself;
--   dtype = as safetensors.save; metadata = table of strings, written to every file}
-- @return the index's file name, for safetensors.load_sharded
-- @raises one line with the path and the system's reason
function safetensors.save_sharded(directory, tensors, options)
  local where = "safetensors.save_sharded"
  util.check(type(directory) == "string", "%s: directory must be a string, got %s", where, type(directory))
  local o = util.options(where, options, { largest = 5e9, dtype = util.none, metadata = util.none })
  util.check(type(o.largest) == "number" and o.largest > 0, "%s: largest must be a number of bytes above 0", where)
  local shards, total, places = { {} }, 0, {}
  local filled = 0
  for _, part in ipairs(plans(where, tensors, o.metadata, o.dtype)) do
    if filled > 0 and filled + part.bytes > o.largest then shards[#shards + 1], filled = {}, 0 end
    table.insert(shards[#shards], part)
    filled, total = filled + part.bytes, total + part.bytes
  end
  local index = directory .. "/model.safetensors.index.json"
  os.remove(index)
  for i, shard in ipairs(shards) do
    local name = ("model-%05d-of-%05d.safetensors"):format(i, #shards)
    write(directory .. "/" .. name, shard, o.metadata)
    for _, part in ipairs(shard) do places[#places + 1] = ("%s:%s"):format(json.encode(part.name), json.encode(name)) end
  end
  util.write_file(index, ('{"metadata":{"total_size":%.0f},"weight_map":{%s}}\n'):format(total,
    table.concat(places, ",")))
  return index
end

return safetensors
