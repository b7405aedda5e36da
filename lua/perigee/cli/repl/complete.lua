-- complete.lua - what Tab offers at the prompt: variables, fields, methods, the prompt's own commands, file names
-- within quotes. Nothing is called and nothing made for it: only plain fields are followed.

local MODULES = { "nn", "optim", "models", "data", "image", "npy", "npz", "safetensors", "tokenizer", "fda",
  "regularize", "metrics", "linalg", "run", "recipe", "plot", "snapshot", "progress", "forgetting", "gradcheck", "terminal" }
-- they load when first used, so that `pg` may not hold them yet

-- What a dot or a colon leads to from a table or a tensor; nil elsewhere.
local function field(object, name)
  if type(object) ~= "table" then return nil end
  if type((getmetatable(object) or {}).__names) == "table" then return rawget(object, name) end -- __index may make it
  local ok, value = pcall(function() return object[name] end)
  return ok and value or nil
end

-- Every name that may follow `object` and a dot or a colon.
local function names_of(object, pg)
  local names, seen, hops = {}, {}, 0
  local function add(name)
    if type(name) == "string" and name:match "^[%a_][%w_]*$" and not seen[name] then
      seen[name], names[#names + 1] = true, name
    end
  end
  local function walk(t)
    hops = hops + 1
    if type(t) ~= "table" or hops > 8 then return end
    for name in next, t do add(name) end
    local meta = getmetatable(t)
    if type(meta) == "table" then
      walk(meta.__index)
      walk(meta.__names) -- where __index is a function
    end
  end
  if type(object) == "table" then walk(object)
  elseif type(object) == "string" then walk(string)
  elseif pg.is_tensor(object) then
    walk(require("perigee.tensor").methods)
    add "grad"
  end
  if object == pg then
    for _, name in ipairs(MODULES) do add(name) end
  elseif object == _G then
    for name in pairs(rawget(_G, "locals") or {}) do add(name) end -- of the recipe that %run ran last
  end
  return names
end

-- The part of a text that is open at its end: what follows a quote that is not closed yet, or nil.
local function open_quote(line)
  local quote, from
  local i = 1
  while i <= #line do
    local c = line:sub(i, i)
    if quote and c == "\\" then i = i + 1
    elseif quote then
      if c == quote then quote = nil end
    elseif c == '"' or c == "'" then quote, from = c, i + 1
    elseif line:sub(i, i + 1) == "--" then return nil end
    i = i + 1
  end
  return quote and line:sub(from)
end

-- Files whose names begin as the last part of `path` does; folders end in a slash.
local function files(path)
  local lfs = require "lfs"
  local folder, word = path:match "^(.*/)([^/]*)$"
  if not folder then folder, word = "", path end
  local place = folder:gsub("^~/", (os.getenv "HOME" or "~") .. "/")
  local found = {}
  local ok, next_name, state = pcall(lfs.dir, place == "" and "." or place)
  if not ok then return found, 0 end
  for name in next_name, state do
    local hidden = name:sub(1, 1) == "." and word:sub(1, 1) ~= "."
    if not hidden and name ~= "." and name ~= ".." and name:sub(1, #word) == word and not name:find "[%c'\"\\]" then
      found[#found + 1] = name .. (lfs.attributes(place .. name, "mode") == "directory" and "/" or "")
    end
  end
  table.sort(found)
  return found, #word
end

local function starting_with(word, names)
  local found = {}
  for _, name in ipairs(names) do
    if name:sub(1, #word) == word then found[#found + 1] = name end
  end
  table.sort(found)
  return found, #word
end

--- Completes the end of `line`.
-- @param line      what stands before the cursor
-- @param commands  names of the prompt's own commands, without their sign
-- @return the names that it may become, sorted, and how many letters of them are typed
return function(line, commands)
  local pg = require "perigee"
  if not line:match "%S" then return { "  " }, 0 end -- a step further in, as pasted code has it
  local command = line:match "^%s*%%(%w*)$"
  if command then return starting_with(command, commands or {}) end
  local path = line:match "^%s*%%run%s+([^%s=]*)$" or open_quote(line)
  if path then return files(path) end
  local word, dot
  path, dot, word = line:match "([%w_%.]-)([%.:]?)([%a_]?[%w_]*)$"
  local object = _G
  if path == "" and dot ~= "" then return {}, 0 end -- behind a call, whose result is not known
  for part in path:gmatch "[^%.]+" do
    object = field(object, part)
    if object == nil then return {}, 0 end
  end
  return starting_with(word, names_of(object, pg))
end
