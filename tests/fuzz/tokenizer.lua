-- tokenizer.lua - mutates the files of a small tokenizer and reads them, and encodes random bytes with what was read:
-- ids from start to end, or an error of one line that names a file. Files are read by Lua, out of libFuzzer's sight.
--   LUA_PATH="lua/?.lua;lua/?/init.lua;tests/?.lua;;" luajit -e 'print(require("fuzz.tokenizer")(200000, 800000, 1))'

local lfs = require "lfs"
local pg = require "perigee"
local fuzz = require "fuzz.mutate"

local ALPHABET = '{}[]":,0123456789.-eE\\u nulltruefalse\n\r </w>&#;\'aeinrst\195\132\196\160\0\127\128\255'
local NAMES = { "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json" }
local WORDS = { "&amp;", "&#x", "&#39;", "\27[0m", "<|endoftext|>", "<start_of_text>", "it's", "\226\128\153",
  "\206\163", "\204\129", "\205\133", "\196\176", "\240\159\152\128", "\239\187\191", "\r\n", "\194\133", "\227\128\128",
  "&EACUTE;" }

local function write(path, text)
  os.remove(path) -- ext4 waits for the disk when a file that was cut to nothing is closed
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
end

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end

local function one_line(message, folder)
  message = tostring(message)
  assert(message:find(folder, 1, true) and not message:find "%c" and #message < 600, message)
end

-- Bytes, some of them in words that cleaning knows.
local function random_text(below)
  local parts = {}
  for i = 1, below(12) do
    local kind = below(4)
    parts[i] = kind == 1 and WORDS[below(#WORDS)] or kind == 2 and string.char(below(95) + 31)
      or kind == 3 and string.char(below(256) - 1, below(64) + 127) or string.char(below(26) + 96, below(26) + 96)
  end
  return table.concat(parts)
end

local function check_ids(t, text)
  local ids = t:encode(text)
  assert(ids[1] == t.bos and ids[#ids] == t.eos)
  for i = 1, #ids do assert(t.tokens[ids[i]], "an id without a token") end
  t:decode(ids)
end

--- Runs the fuzzer.
-- @param loads    sets of files to read
-- @param encodes  texts to encode
-- @param seed     a whole number; the same seed makes the same files and texts
-- @return how many sets were read, and how many were refused
return function(loads, encodes, seed)
  local below, read_well = fuzz.generator(seed), 0
  local folder = os.tmpname()
  os.remove(folder)
  assert(lfs.mkdir(folder))
  local list, valid = folder .. "/list.txt", {}
  local captions = { "the cat and the hat, it's in the rain", "inner and outer" }
  pg.tokenizer.train(captions, { size = 530, special = { "<|x|>" } }):save(folder)
  for _, name in ipairs { NAMES[1], NAMES[2], NAMES[3] } do valid[name] = read(folder .. "/" .. name) end
  valid[NAMES[4]] = '{"pad_token": "!", "eos_token": {"content": "<|endoftext|>", "normalized": true}}'
  -- Most of the vocabulary is the alphabet, where a change is always the same fault: half of the changes go to what
  -- follows.
  local front, back = valid[NAMES[1]]:match '^(.*)(\n"[^"]*": 511.*)$'

  local function load(name)
    local text = valid[name]
    if name == NAMES[1] and below(2) == 1 then
      write(folder .. "/" .. name, front .. fuzz.mutate(back, below, ALPHABET))
    else
      for _ = 1, below(3) do text = fuzz.mutate(text, below, ALPHABET) end
      write(folder .. "/" .. name, text)
    end
    local good, t = pcall(pg.tokenizer.load, folder)
    write(folder .. "/" .. name, valid[name])
    return good, t
  end

  write(folder .. "/" .. NAMES[4], valid[NAMES[4]])
  local ok, message = pcall(function()
    for i = 1, loads do
      local good, t
      if i % 5 == 0 then
        write(list, fuzz.mutate(fuzz.mutate(valid[NAMES[2]], below, ALPHABET), below, ALPHABET))
        good, t = pcall(pg.tokenizer.load, list)
      else
        good, t = load(NAMES[i % 5])
      end
      if good then
        read_well = read_well + 1
        check_ids(t, random_text(below))
      else
        one_line(t, folder)
      end
    end
    write(list, valid[NAMES[2]])
    local both = { pg.tokenizer.load(folder), pg.tokenizer.load(list) }
    for i = 1, encodes do check_ids(both[i % 2 + 1], random_text(below)) end
  end)
  if not ok then error(("%s (the files are in %s)"):format(tostring(message), folder), 0) end
  for _, name in ipairs { NAMES[1], NAMES[2], NAMES[3], NAMES[4], "list.txt" } do os.remove(folder .. "/" .. name) end
  os.remove(folder)
  return read_well, loads - read_well
end
