-- help.lua - `?name` at the prompt: the doc block of a function, the descriptor of an op, the opening comment of a
-- module, what a tensor is. Everything is read from the sources, so that it says what docs/api.md says.

local util = require "perigee.util"

local function read(path)
  local lines = {}
  local file = io.open(path, "r")
  if not file then return lines end
  for line in file:lines() do lines[#lines + 1] = line end
  file:close()
  return lines
end

-- ---- functions ------------------------------------------------------------------------------------------------------

-- The comment right above a line, without its dashes.
local function block_above(lines, at)
  local from = at
  local function comment(line) return line:match "^%s*%-%-" and not line:match "^%-%- %-%-%-%-" end
  while from > 1 and comment(lines[from - 1]) do from = from - 1 end
  local out = {}
  for i = from, at - 1 do out[#out + 1] = "  " .. lines[i]:gsub("^%s*%-%-+ ?", "") end
  return out
end

-- Where a file gives a function its name by an assignment below a doc block, as in tensor.randn = filled(...).
local function assignment(lines, name)
  for i = 2, #lines do
    local left = lines[i]:match "^[%w_]+%.[%w_%.,%s]+ = "
    if left and lines[i - 1]:match "^%-%-" and (left .. " "):find("%." .. name .. "[%s,]") then return i end
  end
end

local function of_function(fn, name)
  local info = debug.getinfo(fn, "S")
  if info.what == "C" then return { name .. ": a function in C, without a doc block" } end
  local path, typed = info.source:match "^@(.*)", require("perigee.cli.repl.values").source(info.source)
  local lines = path and read(path) or {}
  for line in ((typed or "") .. "\n"):gmatch "(.-)\n" do
    if typed then lines[#lines + 1] = line end
  end
  local head = lines[info.linedefined]
  if not head then return { name .. ": a function whose text is not known" } end
  local arguments = head:match "function[^%(]*(%b())" or "(...)"
  local out, block = { name .. arguments }, block_above(lines, info.linedefined)
  local assigned = not (block[1] and head:match "function [%w_]*[%.:]") and assignment(lines, name:match "[%w_]+$")
  for _, line in ipairs(assigned and block_above(lines, assigned) or block) do out[#out + 1] = line end
  if #out == 1 then out[2] = typed and "  typed here" or "  (no doc block)" end
  if typed then return out end
  if path:sub(1, #util.folder) == util.folder then path = "perigee/" .. path:sub(#util.folder + 1) end
  out[#out + 1] = ("  %s:%d"):format(path, assigned or info.linedefined)
  return out
end

-- ---- ops ------------------------------------------------------------------------------------------------------------

local function default(p)
  local lib = require "perigee.ffi"
  if p.kind == lib.PG_P_DIMS or p.kind == lib.PG_P_INTS then return "{}" end
  if p.def ~= p.def then return nil end
  if p.words then return '"' .. p.words[p.def + 1] .. '"' end
  if p.kind == lib.PG_P_BOOLEAN then return tostring(p.def ~= 0) end
  return ("%g"):format(p.kind == lib.PG_P_DIM and p.def >= 0 and p.def + 1 or p.def)
end

local function of_op(op)
  local words, out = {}, {}
  for _, input in ipairs(op.inputs) do words[#words + 1] = input.optional and "[" .. input.name .. "]" or input.name end
  for _, p in ipairs(op.params) do words[#words + 1] = default(p) and p.name .. " = " .. default(p) or p.name end
  local note = op.method and "   also a method of its first tensor" or ""
  out[1] = ("%s(%s)%s"):format(op.name, table.concat(words, ", "), note)
  out[2] = "  " .. op.doc
  local function row(name, help) out[#out + 1] = ("  %-14s %s"):format(name, help) end
  for _, input in ipairs(op.inputs) do row(input.name, input.help) end
  for _, p in ipairs(op.params) do
    row(p.name, p.help .. (p.words and ": one of " .. table.concat(p.words, ", ") or ""))
  end
  for _, output in ipairs(op.outputs) do
    if not output.hidden then row("-> " .. output.name, output.help) end
  end
  if op.no_backward then row("no gradient", op.no_backward) end
  if op.source then row("source", op.source) end
  return out
end

-- ---- everything else ------------------------------------------------------------------------------------------------

local function op_of(fn)
  for _, op in pairs(require("perigee.call").ops) do
    if op.call == fn then return op end
  end
end

local function of_module(value, name)
  for loaded, module in pairs(package.loaded) do
    local path = module == value and loaded:match "^perigee" and package.searchpath(loaded, package.path)
    if path then
      local out = {}
      for _, line in ipairs(read(path)) do
        local text = line:match "^%-%-%s?(.*)$"
        if not text then break end
        out[#out + 1] = text
      end
      local names = {}
      for key in pairs(module) do
        if type(key) == "string" and key:match "^%a" then names[#names + 1] = key end
      end
      table.sort(names)
      out[#out + 1] = ""
      out[#out + 1] = name .. ": " .. table.concat(names, " ")
      return out
    end
  end
end

local function of_tensor(t, name)
  return { ("%s: tensor (%s) %s %s, %s, %d bytes"):format(name, table.concat(t:shape(), ", "), t:dtype(), t:device(),
    t:requires_grad() and "requires grad" or "no gradient",
    t:numel() * ({ float32 = 4, float64 = 8, int32 = 4, uint8 = 1 })[t:dtype()]) }
end

-- The value that a path of names leads to: from the globals, else from `pg`, else a method of tensors.
local function resolve(path)
  local pg, methods = require "perigee", require("perigee.tensor").methods
  local function follow(object)
    for part in path:gmatch "[^%.:]+" do
      if pg.is_tensor(object) then object = methods[part]
      elseif type(object) == "string" then object = string[part]
      elseif type(object) == "table" then object = object[part]
      else return nil end
    end
    return object
  end
  local value = follow(_G)
  if value == nil then value = follow(pg) end
  if value == nil then value = follow(methods) end
  return value
end

--- What is known of a name.
-- @param path  "pg.fda.loss", "t:sum", "randn"
-- @return text
-- @raises when nothing has that name, with the nearest
return function(path)
  local pg = require "perigee"
  util.check(path:match "^[%a_][%w_%.:]*$", "?: takes a name, as in ?pg.fda.loss, got '%s'", path)
  local value = resolve(path)
  if value == nil then
    local names = {}
    for name in pairs(pg) do names[#names + 1] = tostring(name) end
    for name in pairs(require("perigee.tensor").methods) do names[#names + 1] = name end
    local near, apart = util.nearest(path:match "[%w_]+$" or path, names)
    error("nothing is called " .. path .. (apart <= 2 and " (did you mean " .. near .. "?)" or ""), 0)
  end
  local lines
  if type(value) == "function" then
    local op = op_of(value) or pg.ops[path:match "[%w_]+$"]
    lines = op and of_op(op) or of_function(value, path)
  elseif pg.is_tensor(value) then lines = of_tensor(value, path)
  elseif type(value) == "table" then
    lines = of_module(value, path)
    local call = (getmetatable(value) or {}).__call
    if not lines and type(call) == "function" then lines = of_function(call, path) end
  end
  return table.concat(lines or { path .. ": a " .. type(value) }, "\n")
end
