-- args.lua - reads a command's arguments from one declaration, which also makes its --help. (Ours is a page long because
-- an empty recipe must start in tens of milliseconds, and because key=value words belong to the recipe.)

local util = require "perigee.util"

local args = {}

--- Raises a wrong use of the command line; the executable prints the line and leaves with status 2.
function args.usage(format, ...)
  error(setmetatable({ usage = format:format(...) }, { __tostring = function(e) return e.usage end }), 0)
end

--- The --help text of a command: {usage=, about=, options = {{"--name", "VALUE" or nil, "help", kind}}}.
function args.help(command)
  local lines = { "usage: perigee " .. command.usage, "", command.about }
  lines[#lines + 1] = ""
  for _, option in ipairs(command.options) do
    lines[#lines + 1] = ("  %-18s %s"):format(option[1] .. (option[2] and " " .. option[2] or ""), option[3])
  end
  lines[#lines + 1] = ("  %-18s %s"):format("--help", "this text")
  return table.concat(lines, "\n") .. "\n"
end

local function value_of(option, text)
  if option.kind ~= "whole" then return text end
  local value = tonumber(text)
  if not value or value % 1 ~= 0 or value < option.min or value > option.max then
    args.usage("%s: needs a whole number, %.0f to %.0f, got '%s'", option[1], option.min, option.max, text)
  end
  return value
end

--- Splits `words` into positional words and options by name.
-- @return {values by option name without dashes}, {positional words}; `values.help` where --help was given
function args.parse(command, words)
  local known, names = {}, { "--help" }
  for _, option in ipairs(command.options) do known[option[1]], names[#names + 1] = option, option[1] end
  local values, rest, i = {}, {}, 1
  while i <= #words do
    local word = words[i]
    local name, attached = word:match "^(%-%-[%w-]+)=(.*)$"
    name = name or word
    local option = known[name]
    if name == "--help" or name == "-h" then values.help = true
    elseif option and option[2] then
      if not attached then
        i = i + 1
        attached = words[i]
      end
      if not attached or attached == "" then args.usage("%s: needs a value (%s)", name, option[2]) end
      values[name:sub(3)] = value_of(option, attached)
    elseif option then
      if attached then args.usage("%s: takes no value", name) end
      values[name:sub(3)] = true
    elseif word:match "^%-." then
      args.usage("unknown option '%s' (did you mean '%s'?)", word, util.nearest(name, names))
    else
      rest[#rest + 1] = word
    end
    i = i + 1
  end
  return values, rest
end

return args
