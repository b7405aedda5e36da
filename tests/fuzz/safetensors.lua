-- safetensors.lua - mutates a valid .safetensors file and reads what comes out of it: tensors that cover its data, or an
-- error of one line that begins with the file. The reader is Lua, out of libFuzzer's sight, so mutations are blind: bits,
-- bytes of JSON's alphabet, cuts and copies; the header's length mostly follows them. Or it mutates the index of a
-- checkpoint of two shards, which stay as they are.
--   LUA_PATH="lua/?.lua;lua/?/init.lua;tests/?.lua;;" luajit -e 'require("fuzz.safetensors")(1000000, 1)'
--   LUA_PATH="lua/?.lua;lua/?/init.lua;tests/?.lua;;" luajit -e 'require("fuzz.safetensors")(1000000, 1, true)'

local pg = require "perigee"
local fuzz = require "fuzz.mutate"

local generator, mutate = fuzz.generator, fuzz.mutate

local ALPHABET = '{}[]":,0123456789.-eE\\u nulltruefalse__metadata__F32F64I32U8F16BF16I64data_offsetsshapedtype\0\1\127\128\255'

local function length_of(n) return string.char(n % 256, math.floor(n / 256)) .. ("\0"):rep(6) end

-- The header of every dtype that is read, an empty tensor, a scalar and an escaped name; and its data.
local function valid()
  local parts, at = { '"__metadata__":{"step":"12","n\\u00e4me":"x\\"y"}' }, 0
  local function add(name, dtype, shape, bytes)
    parts[#parts + 1] = ('"%s":{"dtype":"%s","shape":[%s],"data_offsets":[%d,%d]}'):format(name, dtype, shape, at,
      at + bytes)
    at = at + bytes
  end
  add("a/b", "F32", "2,3", 24)
  add("none", "F32", "0,3", 0)
  add("c", "F64", "2", 16)
  add("scalar", "I32", "", 4)
  add("\195\164\\n", "U8", "3,1", 3)
  add("h", "F16", "2", 4)
  add("bf", "BF16", "1", 2)
  add("i", "I64", "1", 8)
  return "{" .. table.concat(parts, ",") .. "}", ("\0"):rep(at)
end

local function check(ok, tensors, path)
  if ok then
    for name, t in pairs(tensors) do
      assert(type(name) == "string" and t:numel() <= 64, name)
      t:data()
    end
  else
    local message = tostring(tensors)
    assert(message:find(path, 1, true) and not message:find "%c" and #message < 400, message)
  end
end

local function write(path, bytes)
  os.remove(path) -- ext4 waits for the disk when a file that was cut to nothing is closed
  local file = assert(io.open(path, "wb"))
  file:write(bytes)
  file:close()
end

-- One more file in the place of the last.
local function headers(path, below)
  local header, data = valid()
  return function()
    local text, rest = header, data
    for _ = 1, below(3) - 1 do text = mutate(text, below, ALPHABET) end
    if below(8) == 1 then rest = mutate(rest, below, ALPHABET) end
    local bytes = length_of(below(8) == 1 and #header or #text) .. text .. rest
    if below(16) == 1 then bytes = mutate(bytes, below, ALPHABET) end
    write(path, bytes)
    return pcall(pg.safetensors.load, path)
  end
end

local function indices(path, below)
  local one, two = path:match "[^/]+$" .. ".1", path:match "[^/]+$" .. ".2"
  pg.safetensors.save(path .. ".1", { a = pg.zeros(2), ["b/c"] = pg.zeros(3) }, { format = "pt" })
  pg.safetensors.save(path .. ".2", { d = pg.zeros(1) })
  local index = ('{"metadata": {"total_size": 24, "x": [1, {"y": null}]}, "weight_map": {"a": "%s", "b/c": "%s", "d": "%s"}}\n')
    :format(one, one, two)
  return function()
    local text = index
    for _ = 1, below(3) - 1 do text = mutate(text, below, ALPHABET) end
    write(path, text)
    return pcall(pg.safetensors.load_sharded, path)
  end
end

--- Runs the fuzzer.
-- @param runs   files to read
-- @param seed   a whole number; the same seed makes the same files
-- @param index  true: mutates an index; otherwise the header of one file
-- @return how many were read, and how many were refused
return function(runs, seed, index)
  local path, read = os.tmpname(), 0
  local ok, message = pcall(function()
    local next_one = (index and indices or headers)(path, generator(seed))
    for _ = 1, runs do
      local good, tensors = next_one()
      check(good, tensors, path)
      read = read + (good and 1 or 0)
    end
  end)
  if not ok then -- the file stays, to be looked at
    error(("%s (the file is %s)"):format(tostring(message), path), 0)
  end
  for _, ending in ipairs { "", ".1", ".2" } do os.remove(path .. ending) end
  return read, runs - read
end
