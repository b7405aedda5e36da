-- repl.lua - `perigee repl`: type Lua with `pg` loaded. Values are printed, an error does not end the session, Tab
-- completes, Ctrl-C drops the line or stops what runs, Ctrl-D leaves. What begins with % or ? is in repl/commands.lua.
--
-- Ctrl-C stops Lua through a debug hook, and LuaJIT's compiled loops call none (http://luajit.org/status.html; a build
-- with LUAJIT_ENABLE_CHECKHOOK would pay for it everywhere, and Debian's is not one). What is typed, and every file
-- that is loaded here but the package's own, is therefore interpreted: a loop of tensor operations costs what they cost,
-- a loop of plain arithmetic about ten times what `perigee run` would take for it.

local args = require "perigee.cli.args"
local commands = require "perigee.cli.repl.commands"
local complete = require "perigee.cli.repl.complete"
local help = require "perigee.cli.repl.help"
local host = require "perigee.host"
local values = require "perigee.cli.repl.values"
local util = require "perigee.util"

local repl = {
  command = {
    usage = "repl [FILE.lua]", options = {},
    about = "Reads Lua and prints the values, with `pg` loaded; FILE.lua is run first. Tab completes, Ctrl-D leaves.",
  },
}

--- What Tab offers for the end of a line. @param line @return names, and how many letters of them are typed
function repl.complete(line)
  local names = {}
  for name, command in pairs(commands) do
    if type(command) == "function" then names[#names + 1] = name end
  end
  return complete(line, names)
end

-- ---- reading and running --------------------------------------------------------------------------------------------

local KEPT = 2000 -- lines of history

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

-- One line of the file is one that was typed. Lines are appended, so that a kill loses none and sessions side by side
-- keep each other's; a file that has grown to twice its length is cut.
local function load_history(path)
  local lines = {}
  local file = io.open(path, "r")
  if not file then return end
  for line in file:lines() do
    if line ~= "_HiStOrY_V2_" and line:match "%S" and not line:find "%z" then
      lines[#lines + 1] = line:gsub("\\(%d%d%d)", function(octal) -- as libedit wrote them
        return tonumber(octal, 8) < 256 and string.char(tonumber(octal, 8)) or nil
      end)
    end
  end
  file:close()
  local kept = {}
  for i = math.max(1, #lines - KEPT + 1), #lines do
    host.add_history(lines[i])
    kept[#kept + 1] = lines[i]
  end
  if #lines > 2 * KEPT then pcall(util.write_file, path, table.concat(kept, "\n") .. "\n") end
end

local function save_history(path, line)
  local file = io.open(path, "a")
  if not file then return end
  file:write(line, "\n")
  file:close()
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
  local name = values.name(source)
  local chunk, one = loadstring("return " .. source, name)
  if chunk then return chunk end
  local statement, other = loadstring(source:gsub("^%s*=", "return "), name)
  if statement then return statement end
  return nil, (one:match "'<eof>'%s*$" or other:match "'<eof>'%s*$") and "more" or other
end

local session = {}

--- Compiles and runs a text for one of the commands. @return its values @raises what it raises
function session.evaluate(source)
  local chunk, problem = compile(source)
  if not chunk then error(problem == "more" and "the expression stops in the middle" or problem, 0) end
  return chunk()
end

-- A function for a line that begins with % or ?, nil for any other.
local function command_of(line)
  local name, rest = line:match "^%s*%%(%w*)%s*(.-)%s*$"
  local asked = line:match "^%s*%?+%s*(.-)%s*$" or line:match "^%s*([%a_][%w_%.:]*)%?%s*$"
  if asked then
    return function() io.write(asked == "" and commands.HELP or help(asked) .. "\n") end
  elseif not name then return nil end
  return function()
    local command = name == "" and commands.help or commands[name]
    if type(command) ~= "function" then
      error(("there is no %%%s; %%help lists what there is"):format(name), 0)
    end
    return command(rest, session)
  end
end

-- The last values: _ is the newest. A statement without a value leaves them.
local function remember(...)
  local value = ...
  if value ~= nil then
    rawset(_G, "___", rawget(_G, "__"))
    rawset(_G, "__", rawget(_G, "_"))
    rawset(_G, "_", value)
  end
  values.print(...)
end

-- Runs a chunk and prints what it returns. Whatever happens inside, the session is then as it was: no hook waits, and
-- operations are recorded again even if no_grad was left by force.
local function execute(chunk)
  local lib = require "perigee.ffi"
  local recording = lib.pg_grad_enabled(-1)
  host.resume_signals()
  local ok, err = xpcall(function() remember(chunk()) end, values.caught)
  host.resume_signals()
  lib.pg_grad_enabled(recording)
  io.flush()
  if not ok then values.complain(err) end
end

-- The next line: value; nil, "interrupted" after Ctrl-C; nil at the end.
local function line_source(typed)
  if not typed then return function() return io.read "*l" end end
  return function(prompt) return host.readline(prompt) end
end

local function loop(typed)
  local next_line, history = line_source(typed), typed and history_path()
  if typed then
    io.write("perigee ", host.version, " - pg is loaded; Tab completes, %help lists more, Ctrl-D leaves\n")
    host.completer(repl.complete)
    if history then load_history(history) end
  end
  local pending
  while true do
    local line, why = next_line(pending and ">> " or "> ")
    if why == "interrupted" then
      io.write "^C\n"
      pending = nil
    elseif not line then
      if typed then io.write "\n" end
      if pending then values.complain "the last lines were not complete" end
      return 0
    elseif pending or line:match "%S" then
      if typed and line:match "%S" then
        host.add_history(line)
        if history then save_history(history, line) end
      end
      local source = pending and pending .. "\n" .. line or line
      local chunk, problem = not pending and command_of(line), nil
      if not chunk then chunk, problem = compile(source) end
      pending = nil
      if chunk then
        execute(chunk)
      elseif problem == "more" then
        pending = source
      else
        values.complain(problem)
      end
    end
  end
end

-- The locals of the recipe that %run ran last answer to their names where no global does.
local function offer_locals()
  local meta = getmetatable(_G) or {}
  meta.__index = function(_, name)
    local found = rawget(_G, "locals")
    return type(found) == "table" and rawget(found, name) or nil
  end
  setmetatable(_G, meta)
end

function repl.main(_, words)
  if #words > 1 then args.usage("repl: one file at a time, got %d", #words) end
  rawset(_G, "pg", require "perigee")
  interpret_what_is_loaded()
  offer_locals()
  if words[1] then
    local chunk, why = loadfile(words[1])
    if not chunk then args.usage("%s", why) end
    execute(chunk)
  end
  return loop(host.isatty(0) and host.isatty(1))
end

return repl
