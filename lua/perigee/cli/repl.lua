-- repl.lua - `perigee repl`: type Lua with `pg` loaded. Values are printed, an error does not end the session, Tab
-- completes, Ctrl-C drops the line or stops what runs, Ctrl-D leaves.

local host = require "perigee.host"
local util = require "perigee.util"

local repl = {
  command = {
    usage = "repl [FILE.lua]", options = {},
    about = "Reads Lua and prints the values, with `pg` loaded; FILE.lua is run first. Tab completes, Ctrl-D leaves.",
  },
}

-- ---- completion -----------------------------------------------------------------------------------------------------

local MODULES = { "nn", "optim", "models", "data", "image", "npy", "safetensors", "fda", "regularize", "metrics", "run", "plot" }
local METHODS = { "shape", "dim", "size", "dtype", "device", "numel", "item", "totable", "get", "to", "clone", "detach",
  "requires_grad_", "backward", "grad", "free", "data", "copy_", "fill_", "zero_", "is_contiguous", "stride" }

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
    for _, name in ipairs(METHODS) do add(name) end
    for name, op in pairs(pg.ops) do
      if op.method then add(name) end
    end
  end
  if object == pg then
    for _, name in ipairs(MODULES) do add(name) end
  end
  return names
end

-- Completes the last word of `line`; only plain fields are followed, nothing is called.
local function complete(line, pg)
  local path, word = line:match "([%w_%.]-)[%.:]?([%a_]?[%w_]*)$"
  local object = _G
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

-- A chunk for `source`: as an expression where it is one. "more" when the text stops in the middle.
local function compile(source)
  local chunk = loadstring("return " .. source, "=repl")
  if chunk then return chunk end
  local why
  chunk, why = loadstring(source:gsub("^%s*=", "return "), "=repl")
  if chunk then return chunk end
  return nil, why:match "'<eof>'%s*$" and "more" or why
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

local function print_values(ok, ...)
  if not ok then
    local message = tostring((...)):gsub("^repl:%d+: ", "")
    if message:sub(1, #util.folder) == util.folder then -- the typed line itself is no place worth naming
      message = message:gsub("^.-%.lua:%d+: ", "")
    end
    io.stderr:write(message, "\n")
    return
  end
  local n, texts = select("#", ...), {}
  for i = 1, n do texts[i] = show((select(i, ...))) end
  if n > 0 then io.write(table.concat(texts, "\t"), "\n") end
  io.flush()
end

-- The next line: value; nil, "interrupted" after Ctrl-C; nil at the end.
local function line_source(typed)
  if not typed then return function() return io.read "*l" end end
  return function(prompt) return host.readline(prompt) end
end

local function loop(pg, typed)
  local next_line, history = line_source(typed), typed and history_path()
  if typed then
    io.write("perigee ", host.version, " - pg is loaded; Tab completes, Ctrl-D leaves\n")
    host.completer(function(line) return complete(line, pg) end)
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
      if pending then print_values(pcall(error, "the last lines were not complete", 0)) end
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
        host.resume_signals()
        jit.off(chunk, true) -- Ctrl-C arrives through a hook, which compiled loops never call
        print_values(pcall(chunk))
        host.resume_signals()
      elseif problem == "more" then
        pending = source
      else
        print_values(false, problem)
      end
    end
  end
end

function repl.main(_, words)
  local pg = require "perigee"
  rawset(_G, "pg", pg)
  if words[1] then
    local chunk, why = loadfile(words[1])
    if not chunk then error(why, 0) end
    print_values(pcall(chunk))
  end
  return loop(pg, host.isatty(0) and host.isatty(1))
end

return repl
