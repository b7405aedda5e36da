-- registry.lua - methods that are files: whatever stands in a folder perigee/KIND/NAME.lua on package.path is a method
-- of that kind, by its name (regularize.lua, few_shot.lua, continual.lua). Here is how they are found, and how their
-- options are read.
--
-- A method is a table {help = one line, source = paper, options = list, ...}. An option is {name, default, help =, min
-- =, max =, choices =, real = true, or_number = true, object = "what", required = true}, as pg.recipe declares them: a
-- whole default means whole numbers unless `real`; `or_number` lets a number stand in place of the word; `object` is
-- something that has no text (a module, an iterator).

local util = require "perigee.util"

local registry = {}

-- ---- one option ----------------------------------------------------------------------------------------------------

local function whole(option) return type(option[2]) == "number" and option[2] % 1 == 0 and not option.real end

local function wanted(option)
  if option.object then return option.object end
  if option.choices then return "one of " .. table.concat(option.choices, ", ") end
  if option.list then return ("\"%s\", \"all\" or a list of depths"):format(option[2]) end
  if type(option[2]) == "boolean" then return "true or false" end
  if type(option[2]) == "string" and not option.or_number then return "text" end
  local text = whole(option) and "a whole number" or "a number"
  if option.min then text = text .. (", %g or more"):format(option.min) end
  if option.max then text = text .. (", %g or less"):format(option.max) end
  return option.or_number and ("\"%s\" or %s"):format(option[2], text) or text
end

local function allowed(option, value)
  if option.object then return type(value) == "table" or type(value) == "function" end
  if option.list then return type(value) == "table" or type(value) == "string" end
  if option.choices then
    for _, choice in ipairs(option.choices) do
      if choice == value then return true end
    end
    return false
  end
  if type(option[2]) == "boolean" then return type(value) == "boolean" end
  if option.or_number and value == option[2] then return true end
  if type(option[2]) == "string" and not option.or_number then return type(value) == "string" end
  return type(value) == "number" and math.abs(value) < math.huge and (not whole(option) or value % 1 == 0)
    and value >= (option.min or -math.huge) and value <= (option.max or math.huge)
end

-- ---- the methods of a kind ----------------------------------------------------------------------------------------

local function listed(kind)
  local lfs, names, seen = require "lfs", {}, {}
  for template in package.path:gmatch "[^;]+" do
    local folder = template:match "^(.*)%?%.lua$"
    folder = folder and folder .. "perigee/" .. kind
    if folder and lfs.attributes(folder, "mode") == "directory" then
      for file in lfs.dir(folder) do
        local name = file:match "^([%a_][%w_]*)%.lua$"
        if name and not seen[name] then names[#names + 1], seen[name] = name, true end
      end
    end
  end
  table.sort(names)
  return names
end

--- The methods of one kind.
-- @param kind  the folder below perigee, which messages begin with
-- @return {names() -> sorted list, find(name) -> method or nil, known(name) -> method, or an error that names the
--   nearest, options(name) -> a copy of its list, settle(name, given) -> every option's value, recipe_options(names,
--   except) -> a list for pg.recipe, pick(name, opt) -> what of a recipe's options the method takes}
function registry.new(kind)
  local self = {}
  function self.names() return listed(kind) end

  function self.find(name)
    local module = type(name) == "string" and name:match "^[%a_][%w_]*$" and "perigee." .. kind .. "." .. name
    if module and (package.loaded[module] or package.searchpath(module, package.path)) then return require(module) end
  end

  function self.known(name)
    local method = self.find(name)
    if not method then
      util.fail(0, "%s: there is no method '%s' (did you mean '%s'?)", kind, tostring(name),
        tostring(util.nearest(tostring(name), self.names())))
    end
    return method
  end

  function self.options(name)
    local list = {}
    for i, option in ipairs(self.known(name).options) do
      list[i] = {}
      for key, value in pairs(option) do list[i][key] = value end
    end
    return list
  end

  -- `given` over the declared defaults; text stands for a number where a recipe has nothing else.
  function self.settle(name, given)
    local defaults, options = {}, self.known(name).options
    for _, option in ipairs(options) do defaults[option[1]] = option[2] == nil and util.none or option[2] end
    local result = util.options(name, given, defaults)
    for _, option in ipairs(options) do
      local key = option[1]
      if option.or_number and type(result[key]) == "string" then result[key] = tonumber(result[key]) or result[key] end
      util.check(result[key] ~= nil or not option.required, "%s: the option '%s' is missing: %s", name, key,
        wanted(option))
      util.check(result[key] == nil or allowed(option, result[key]), "%s: %s = %s, but it must be %s", name, key,
        tostring(result[key]), wanted(option))
    end
    return result
  end

  -- Where methods differ in a default it is "own", which is each method's own; objects are left out.
  function self.recipe_options(names, except)
    local list, seen = {}, {}
    for _, name in ipairs(names) do
      for _, option in ipairs(self.options(name)) do
        local key, other = option[1], seen[option[1]]
        if other then
          if other[2] ~= option[2] then
            if other.choices and other[2] ~= "own" then other.choices = { "own", unpack(other.choices) } end
            if other.help ~= option.help then other.help = other.help .. " (" .. name .. ": " .. option.help .. ")" end
            other[2] = "own"
          end
        elseif not option.object and not (except and except[key]) then
          seen[key], list[#list + 1] = option, option
        end
      end
    end
    return list
  end

  function self.pick(name, opt)
    local settings = {}
    for _, option in ipairs(self.options(name)) do
      local value = opt[option[1]]
      if type(value) == "string" and type(option[2]) == "number" then value = tonumber(value) or value end
      if value ~= "own" then settings[option[1]] = value end
    end
    return settings
  end

  return self
end

return registry
