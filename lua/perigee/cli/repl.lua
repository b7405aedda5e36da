-- repl.lua - `perigee repl`: type Lua with `pg` loaded. Values are printed, an error does not end the session, Tab
-- completes, Ctrl-C drops the line or stops what runs, Ctrl-D leaves.
--
-- Ctrl-C stops Lua through a debug hook, and LuaJIT's compiled loops call none (http://luajit.org/status.html; a build
-- with LUAJIT_ENABLE_CHECKHOOK would pay for it everywhere, and Debian's is not one). What is typed, and every file
-- that is loaded here but the package's own, is therefore interpreted: a loop of tensor operations costs what they cost,
-- a loop of plain arithmetic about ten times what `perigee run` would take for it.

local args = require "perigee.cli.args"
local host = require "perigee.host"
local util = require "perigee.util"

local repl = {
  command = {
    usage = "repl [FILE.lua]", options = {},
    about = "Reads Lua and prints the values, with `pg` loaded; FILE.lua is run first. Tab completes, Ctrl-D leaves.",
  },
}

-- ---- completion -----------------------------------------------------------------------------------------------------

local MODULES = { "nn", "optim", "models", "data", "image", "npy", "npz", "safetensors", "fda", "regularize", "metrics",
  "linalg", "run", "recipe", "plot" } -- they load when first used, so that `pg` may not hold them yet

-- Every name that may follow `object` and a dot or a colon.
local function names_of(object, pg)
  local names, seen = {}, {}
  local function add(name)
    if type(name) == "string" and name:match "^[%a_][%w_]*$" and not seen[name] then
      seen[name], names[#names + 1] = true, name
    end
  end
  local hops = 0
  local function walk(t)
    hops = hops + 1
    if type(t) ~= "table" or hops > 8 then return end
    for name in pairs(t) do add(name) end
    local meta = getmetatable(t)
    if type(meta) == "table" and type(meta.__index) == "table" then walk(meta.__index) end
  end
  if type(object) == "table" then walk(object)
  elseif type(object) == "string" then walk(string)
  elseif pg.is_tensor(object) then
    walk(require("perigee.tensor").methods)
    add "grad"
  end
  if object == pg then
    for _, name in ipairs(MODULES) do add(name) end
  end
  return names
end

--- Completes the last word of `line`; only plain fields are followed, nothing is called.
-- @return the names that it may become, sorted, and how many letters of them are typed
function repl.complete(line)
  local pg = require "perigee"
  local path, dot, word = line:match "([%w_%.]-)([%.:]?)([%a_]?[%w_]*)$"
  local object = _G
  if path == "" and dot ~= "" then return {}, 0 end -- behind a call, whose result is not known
  if path ~= "" then
    for part in path:gmatch "[^%.]+" do
      if type(object) ~= "table" then return {}, 0 end
      object = object[part]
    end
  end
  local found = {}
  for _, name in ipairs(names_of(object, pg)) do
    if name:sub(1, #word) == word then found[#found + 1] = name end
  end
  table.sort(found)
  return found, #word
end

-- ---- reading and running --------------------------------------------------------------------------------------------

local function history_path()
  local state = os.getenv "XDG_STATE_HOME"
  local home = os.getenv "HOME"
  if not state or state == "" then
    if not home then return nil end
    state = home .. "/.local/state"
  end
  local folder, at = state .. "/perigee", ""
  for part in folder:gmatch "[^/]+" do
    at = at .. "/" .. part
    require("lfs").mkdir(at)
  end
  return folder .. "/history"
end

-- Keeps a chunk and all its functions out of the compiler, so that Ctrl-C is heard in them.
local function interpreted(chunk, ...)
  if type(chunk) == "function" then jit.off(chunk, true) end
  return chunk, ...
end

-- So too what is loaded from now on, but for the package itself: its loops end.
local function interpret_what_is_loaded()
  for _, name in ipairs { "load", "loadstring", "loadfile" } do
    local original = _G[name]
    rawset(_G, name, function(...) return interpreted(original(...)) end)
  end
  rawset(_G, "dofile", function(path)
    local chunk, why = loadfile(path)
    if not chunk then error(why, 0) end
    return chunk()
  end)
  local find = package.loaders[2]
  package.loaders[2] = function(name)
    local path = package.searchpath(name, package.path)
    if path and path:sub(1, #util.folder) == util.folder then return find(name) end
    return interpreted(find(name))
  end
end

-- A chunk for `source`: as an expression where it is one. "more" when the text stops in the middle.
local function compile(source)
  local chunk, one = loadstring("return " .. source, "=repl")
  if chunk then return chunk end
  local statement, other = loadstring(source:gsub("^%s*=", "return "), "=repl")
  if statement then return statement end
  return nil, (one:match "'<eof>'%s*$" or other:match "'<eof>'%s*$") and "more" or other
end

-- Short tables show their values, long ones their size.
local function show(value)
  if type(value) ~= "table" or (getmetatable(value) or {}).__tostring then return tostring(value) end
  local parts, count = {}, 0
  for i, v in ipairs(value) do parts[i] = i <= 20 and tostring(v) or nil end
  for key, v in pairs(value) do
    count = count + 1
    if not (type(key) == "number" and value[key] ~= nil and key >= 1 and key <= #value) and #parts < 20 then
      parts[#parts + 1] = tostring(key) .. " = " .. tostring(v)
    end
  end
  return "{" .. table.concat(parts, ", ") .. (count > #parts and (", ... %d in all"):format(count) or "") .. "}"
end

local function print_error(err)
  local message = tostring(err):gsub("^repl:%d+: ", "") -- the typed line itself is no place worth naming
  if message:sub(1, #util.folder) == util.folder then message = message:gsub("^.-%.lua:%d+: ", "") end
  io.stderr:write(message, "\n")
end

local function print_values(...)
  local n, texts = select("#", ...), {}
  for i = 1, n do texts[i] = show((select(i, ...))) end
  if n > 0 then io.write(table.concat(texts, "\t"), "\n") end
  io.flush()
end

-- Runs a chunk and prints what it returns. Whatever happens inside, the session is then as it was: no hook waits, and
-- operations are recorded again even if no_grad was left by force.
local function execute(chunk)
  local lib = require "perigee.ffi"
  local recording = lib.pg_grad_enabled(-1)
  host.resume_signals()
  local ok, err = pcall(function() print_values(chunk()) end)
  host.resume_signals()
  lib.pg_grad_enabled(recording)
  if not ok then print_error(err) end
end

-- The next line: value; nil, "interrupted" after Ctrl-C; nil at the end.
local function line_source(typed)
  if not typed then return function() return io.read "*l" end end
  return function(prompt) return host.readline(prompt) end
end

local function loop(typed)
  local next_line, history = line_source(typed), typed and history_path()
  if typed then
    io.write("perigee ", host.version, " - pg is loaded; Tab completes, Ctrl-D leaves\n")
    host.completer(repl.complete)
    if history then host.load_history(history) end
  end
  local pending
  while true do
    local line, why = next_line(pending and ">> " or "> ")
    if why == "interrupted" then
      io.write "^C\n"
      pending = nil
    elseif not line then
      if typed then io.write "\n" end
      if pending then print_error "the last lines were not complete" end
      return 0
    elseif pending or line:match "%S" then
      if typed then
        if line:match "%S" then host.add_history(line) end
        if history then host.save_history(history) end
      end
      local source = pending and pending .. "\n" .. line or line
      local chunk, problem = compile(source)
      pending = nil
      if chunk then
        execute(chunk)
      elseif problem == "more" then
        pending = source
      else
        print_error(problem)
      end
    end
  end
end

function repl.main(_, words)
  if #words > 1 then args.usage("repl: one file at a time, got %d", #words) end
  rawset(_G, "pg", require "perigee")
  interpret_what_is_loaded()
  if words[1] then
    local chunk, why = loadfile(words[1])
    if not chunk then args.usage("%s", why) end
    execute(chunk)
  end
  return loop(host.isatty(0) and host.isatty(1))
end

return repl
