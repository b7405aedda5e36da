-- generate_ops.lua - writes docs/ops.md from the op table, and from the doc blocks of lua/perigee/tensor.lua for what is
-- not an op: `make docs`. Nothing in that page is edited by hand.

local call = require "perigee.call"
local lib = require "perigee.ffi"
local util = require "perigee.util"

local lines = { "# Ops", "", "Written by `make docs` from the op table. Dimensions and positions count from 1 in Lua; negative",
  "dimensions count from the end. Inputs come first in a call, then parameters, in order or by name in one last table:",
  "`x:sum(2)`, `x:sum(2, true)` and `x:sum{dim = 2, keepdim = true}`. What takes a list takes a single number too.", "",
  "Where NaN is among the values, reductions, `maximum` and `minimum` give NaN, `argmax` and `argmin` its first position;",
  "`sort` and `topk` put it last; comparisons with it are false, but for `ne`.", "" }
local function add(format, ...) lines[#lines + 1] = select("#", ...) > 0 and format:format(...) or format end

local names = { unpack(call.names) }
table.sort(names)

local function number(value)
  if value % 1 == 0 and math.abs(value) < 1e10 then return ("%d"):format(value) end
  return ("%g"):format(value)
end

-- A parameter's default as Lua writes it; nil where it must be given.
local function default(p)
  if p.kind == lib.PG_P_DIMS or p.kind == lib.PG_P_INTS then return "{}" end
  if p.def ~= p.def then return nil end
  if p.words then return '"' .. p.words[p.def + 1] .. '"' end
  if p.kind == lib.PG_P_BOOLEAN then return tostring(p.def ~= 0) end
  if p.kind == lib.PG_P_DIM and p.def >= 0 then return number(p.def + 1) end
  return number(p.def)
end

local function note(p)
  local notes = { default(p) and "default " .. default(p) or "required" }
  if p.words then notes[2] = "one of " .. table.concat(p.words, ", ")
  elseif p.kind ~= lib.PG_P_BOOLEAN and p.lo < p.hi then notes[2] = number(p.lo) .. ".." .. number(p.hi) end
  return table.concat(notes, "; ")
end

for _, name in ipairs(names) do
  local op, words = call.ops[name], {}
  for i, input in ipairs(op.inputs) do words[i] = input.optional and "[" .. input.name .. "]" or input.name end
  for _, p in ipairs(op.params) do words[#words + 1] = default(p) and p.name .. " = " .. default(p) or p.name end
  add("## %s(%s)", name, table.concat(words, ", "))
  add ""
  add("%s.", op.doc)
  add ""
  for _, input in ipairs(op.inputs) do add("- `%s`: %s", input.name, input.help) end
  for _, p in ipairs(op.params) do add("- `%s` (%s): %s", p.name, note(p), p.help) end
  for _, output in ipairs(op.outputs) do
    if not output.hidden then add("- returns `%s`: %s", output.name, output.help) end
  end
  if op.no_backward then add("- no gradient: %s", op.no_backward) end
  if op.source then add("- source: %s", op.source) end
  add ""
end

add "# What is not an op"
add ""
add "Functions of `pg` that make tensors, and methods of a tensor `t`."
add ""
local block
for line in io.lines(util.folder .. "tensor.lua") do
  local text, more = line:match "^%-%-%- (.*)", block and line:match "^%-%- +(.*)"
  local owner, name, args = line:match "^function (%a+)[.:]([%w_]+)(%b())"
  local first, second = line:match "^tensor%.([%w_]+), tensor%.([%w_]+) ="
  if first then owner, name, args = "tensor", first, "(...), pg." .. second .. "(...)" end
  if text then block = { text }
  elseif more then block[#block + 1] = more
  elseif block then
    if owner == "tensor" or owner == "methods" then
      add("## %s%s%s", owner == "tensor" and "pg." or "t:", name, args)
      add ""
      for i, part in ipairs(block) do
        local tag, rest = part:match "^@(%a+)%s+(.*)"
        local item = tag == "param" and "- `" .. rest:gsub("%s+", "` ", 1) or tag and "- " .. tag .. ": " .. rest
        if item and i == 2 then add "" end
        add(item or part)
      end
      add ""
    end
    block = nil
  end
end

util.write_file("docs/ops.md", table.concat(lines, "\n"))
