-- util.lua - what every module needs: errors at the user's line, options tables, whole-file writes.

local util = {}

local here = debug.getinfo(1, "S").source:match("^@(.*)util%.lua$")

-- The folder that holds the package's own files, with a trailing slash.
util.folder = here

-- The level of the first caller outside the package: an error shows the line that the user wrote, and no line when it was
-- the command line that asked.
local function user_level()
  for level = 3, 60 do
    local info = debug.getinfo(level, "S")
    if not info then return 0 end
    local source = info.source
    if source:sub(1, 1) == "@" and source:sub(2, #here + 1) ~= here then return level - 1 end
    if info.what == "main" and source:sub(1, 1) ~= "@" then return level - 1 end
  end
  return 0
end

--- Raises an error at the user's line.
-- @param message  one line: what is wrong, and what would be right
function util.raise(message) error(message, user_level()) end

--- Raises a formatted error at the user's line.
-- @param _       kept for symmetry with error(): the level is found, not counted
-- @param format  as string.format, with its values
function util.fail(_, format, ...) error(format:format(...), user_level()) end

--- Raises unless `condition` holds; returns it otherwise. @param condition, format as assert and string.format
function util.check(condition, format, ...)
  if not condition then error(format:format(...), user_level()) end
  return condition
end

--- A finite number as text that reads back as the same: the shortest of 15 digits, or 17. @param x number @return text
function util.number(x)
  if x % 1 == 0 and math.abs(x) < 2 ^ 53 then return ("%d"):format(x) end
  local short = ("%.15g"):format(x)
  return tonumber(short) == x and short or ("%.17g"):format(x)
end

--- The first characters of a line of UTF-8 text; control characters become blanks. @param text, width @return text
function util.clip(text, width)
  local count, out = 0, {}
  for character in text:gsub("%c", " "):gmatch "[%z\1-\127\194-\244][\128-\191]*" do
    count = count + 1
    if count > width then break end
    out[count] = character
  end
  return table.concat(out)
end

-- Edit distance, for "did you mean".
local function distance(a, b)
  local row = {}
  for j = 0, #b do row[j] = j end
  for i = 1, #a do
    local diagonal = row[0]
    row[0] = i
    for j = 1, #b do
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      diagonal, row[j] = row[j], math.min(row[j] + 1, row[j - 1] + 1, diagonal + cost)
    end
  end
  return row[#b]
end

--- The word of a list with the least edit distance.
-- @param word, list
-- @return a word and its distance, or nil when the list is empty
function util.nearest(word, list)
  local best, least
  for _, candidate in ipairs(list) do
    local d = distance(word:lower(), candidate:lower())
    if not least or d < least then best, least = candidate, d end
  end
  return best, least
end

-- Marks an option without a default.
util.none = setmetatable({}, { __tostring = function() return "none" end })

--- Lays `given` over `defaults`.
-- @param where     the function's name, for the message
-- @param given     table or nil
-- @param defaults  table of every allowed key; util.none marks one without a default
-- @return a new table
-- @raises on an unknown key, naming the nearest
function util.options(where, given, defaults)
  local result = {}
  for key, value in pairs(defaults) do
    if value ~= util.none then result[key] = value end
  end
  if given ~= nil and type(given) ~= "table" then
    util.fail(0, "%s: options must be a table, got %s", where, type(given))
  end
  for key, value in pairs(given or {}) do
    if defaults[key] == nil then
      local known = {}
      for name in pairs(defaults) do known[#known + 1] = tostring(name) end
      table.sort(known)
      local nearest = util.nearest(tostring(key), known)
      util.fail(0, "%s: unknown option '%s'%s", where, tostring(key),
        nearest and (" (did you mean '" .. nearest .. "'?)") or ": it takes none")
    end
    result[key] = value
  end
  return result
end

--- Makes a folder and those above it that are not there. @param path @raises one line with the system's reason
function util.make_folder(path)
  local lfs = require "lfs"
  local at = path:sub(1, 1) == "/" and "/" or ""
  for part in path:gmatch "[^/]+" do
    at = at .. part
    local ok, why = lfs.mkdir(at)
    util.check(ok or lfs.attributes(at, "mode") == "directory", "cannot make the folder %s: %s", at, why)
    at = at .. "/"
  end
end

local ffi = require "ffi"
ffi.cdef [[
int fsync(int fd); int fileno(void *stream); int rename(const char *from, const char *to); int unlink(const char *path);
]]

--- Writes a whole file: to a temporary name, flushed to the disk, renamed. A kill at any instant leaves the old file.
-- @param path, text  strings
-- @raises one line with the path and the system's reason; the old file is then untouched
function util.write_file(path, text)
  local kind = require("lfs").attributes(path, "mode") -- a device would be replaced
  util.check(kind == nil or kind == "file", "cannot write %s: not a regular file", path)
  local temporary = path .. ".tmp"
  local file, why = io.open(temporary, "wb")
  if not file then util.fail(0, "cannot write %s", why) end
  local ok, reason = file:write(text)
  if ok then ok, reason = file:flush() end
  if ok and ffi.C.fsync(ffi.C.fileno(file)) ~= 0 then ok, reason = nil, "cannot flush to the disk" end
  local closed, close_reason = file:close()
  if not ok or not closed then
    ffi.C.unlink(temporary)
    util.fail(0, "cannot write %s: %s", path, reason or close_reason)
  end
  if ffi.C.rename(temporary, path) ~= 0 then util.fail(0, "cannot rename %s to %s", temporary, path) end
end

return util
