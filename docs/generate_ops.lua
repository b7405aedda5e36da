-- generate_ops.lua - writes docs/ops.md from the op table: `make docs`. Nothing in that page is edited by hand.

local call = require "perigee.call"
local util = require "perigee.util"

local lines = { "# Ops", "", "Written by `make docs` from the op table. Dimensions and positions count from 1 in Lua; negative",
  "dimensions count from the end. Inputs come first in a call, then parameters, in order or by name in one last table.", "" }
local function add(format, ...) lines[#lines + 1] = select("#", ...) > 0 and format:format(...) or format end

local names = { unpack(call.names) }
table.sort(names)

local function default(p)
  if p.def ~= p.def then return "required" end
  if p.words then return p.words[p.def + 1] end
  return ("default %g"):format(p.def)
end

for _, name in ipairs(names) do
  local op, inputs = call.ops[name], {}
  for i, input in ipairs(op.inputs) do inputs[i] = input.optional and "[" .. input.name .. "]" or input.name end
  add("## %s(%s)", name, table.concat(inputs, ", "))
  add ""
  add("%s.", op.doc)
  add ""
  for _, input in ipairs(op.inputs) do add("- `%s`: %s", input.name, input.help) end
  for _, p in ipairs(op.params) do
    local range = p.lo < p.hi and (", %g..%g"):format(p.lo, p.hi) or ""
    add("- `%s` (%s%s%s): %s", p.name, default(p), range, p.words and "; " .. table.concat(p.words, ", ") or "", p.help)
  end
  for _, output in ipairs(op.outputs) do
    if not output.hidden then add("- returns `%s`: %s", output.name, output.help) end
  end
  if op.no_backward then add("- no gradient: %s", op.no_backward) end
  if op.source then add("- source: %s", op.source) end
  add ""
end

util.write_file("docs/ops.md", table.concat(lines, "\n"))
