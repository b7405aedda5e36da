-- values.lua - what the prompt prints: tensors as tables as wide as the window allows, short tables whole, an error
-- with the lines that led to it.

local util = require "perigee.util"

local values = {}

-- ---- values ---------------------------------------------------------------------------------------------------------

local MOST, DEEPEST = 20, 3 -- entries of a table that are shown, and tables within tables

local function printable(text)
  return (("%q"):format(text):gsub("\\\n", "\\n"):gsub("%c", function(c) return ("\\%d"):format(c:byte()) end))
end

local function text_of(value, depth)
  local kind = type(value)
  if kind == "string" then return depth > 0 and printable(value) or value end
  if require("perigee.call").is_tensor(value) then
    if depth == 0 then return require "perigee.print"(value, require("perigee.host").columns()) end
    return ("tensor (%s) %s"):format(table.concat(value:shape(), ", "), value:dtype())
  end
  if kind ~= "table" or (getmetatable(value) or {}).__tostring then return tostring(value) end
  if depth > DEEPEST then return "{...}" end
  local parts, keys, count = {}, {}, 0
  for i, v in ipairs(value) do
    if i <= MOST then parts[i] = text_of(v, depth + 1) end
  end
  for key in next, value do
    count = count + 1
    if not (type(key) == "number" and key % 1 == 0 and key >= 1 and key <= #value) then keys[#keys + 1] = key end
  end
  table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
  for _, key in ipairs(keys) do
    if #parts >= MOST then break end
    parts[#parts + 1] = tostring(key) .. " = " .. text_of(rawget(value, key), depth + 1)
  end
  return "{" .. table.concat(parts, ", ") .. (count > #parts and (", ... %d in all"):format(count) or "") .. "}"
end

--- Prints values side by side, those that take several lines one below the other.
function values.print(...)
  local n, texts, tall = select("#", ...), {}, false
  for i = 1, n do
    texts[i] = text_of((select(i, ...)), 0)
    tall = tall or texts[i]:find("\n", 1, true) ~= nil
  end
  if n > 0 then io.write(table.concat(texts, tall and "\n" or "\t"), "\n") end
  io.flush()
end

-- ---- errors ---------------------------------------------------------------------------------------------------------

local typed, count = {}, 0 -- chunk name -> what was typed

--- A chunk name for a statement, by which errors find its lines again.
function values.name(source)
  count = count + 1
  local name = "=repl" .. count
  typed[name] = source
  return name
end

local function line_of(source, number)
  local at = 0
  for line in (source .. "\n"):gmatch "(.-)\n" do
    at = at + 1
    if at == number then return (line:gsub("^%s+", "")) end
  end
end

-- The text of a chunk: what was typed, or a file; nil for the package's own and for what has none.
local function text_of_chunk(source)
  local path = source:match "^@(.*)"
  if not path or path:sub(1, #util.folder) == util.folder then return typed[source] end
  local file = io.open(path, "r")
  local text = file and file:read(2 ^ 20)
  if file then file:close() end
  return text
end

-- "in name, ": as the line that begins a function has it, since expressions at the prompt are tail calls.
local function function_name(text, info)
  local head = info.what == "Lua" and line_of(text, info.linedefined) or ""
  local name = head:match "function%s+([%w_%.:]+)%s*%(" or head:match "([%w_%.]+)%s*=%s*function"
  return name and "in " .. name .. ", " or ""
end

--- What was typed under a chunk name, or nil.
function values.source(name) return typed[name] end

--- To be called where an error is raised: its message, and the lines of the user's own that led to it, innermost first.
-- @return {message, frames = {"line 2 of what was typed: ...", ...}}
function values.caught(err)
  local ok, message = pcall(tostring, err)
  local caught = { message = ok and tostring(message) or "an error value that cannot be printed", frames = {} }
  for level = 2, 200 do
    local info = debug.getinfo(level, "Sl")
    if not info then break end
    local source, line, text = info.source, info.currentline, text_of_chunk(info.source)
    local alone = info.what == "main" and typed[source] and not text:find "\n" -- the very line that was typed
    if text and not alone then
      caught.frames[#caught.frames + 1] = ("%s%s %d: %s"):format(function_name(text, info),
        typed[source] and "line" or source:sub(2) .. ", line", line, line_of(text, line) or "")
    end
    if #caught.frames >= 6 then break end
  end
  return caught
end

--- Prints what values.caught made, or a message.
function values.complain(err)
  local caught = type(err) == "table" and err.frames and err or { message = tostring(err), frames = {} }
  local message = caught.message:gsub("^repl%d*:%d+: ", "") -- the place is shown below, or is the very line typed
  if message:sub(1, #util.folder) == util.folder then message = message:gsub("^.-%.lua:%d+: ", "") end
  io.stderr:write(message, "\n")
  if message ~= "interrupted" then
    for _, frame in ipairs(caught.frames) do io.stderr:write("  ", frame, "\n") end
  end
end

return values
