-- recipe.lua - a recipe declares its options once; the declaration gives --help, validation and the stored configuration.
--
--   local opt = pg.recipe {
--     name = "end_to_end", help = "one line",
--     options = { { "steps", 300, min = 1, help = "..." }, { "method", "naive", choices = { "naive", "l2sp" } } },
--   }
--
-- The command line leaves what the user gave in recipe.given; without one (busted, a plain luajit) the defaults hold.

local util = require "perigee.util"

local recipe = { given = { options = {} } }

local RESERVED = { seed = true, device = true, threads = true, out = true, resume = true, quiet = true,
  tensorboard = true }

local function usage(format, ...)
  error(setmetatable({ usage = format:format(...) }, { __tostring = function(e) return e.usage end }), 0)
end

-- ---- one option -----------------------------------------------------------------------------------------------------

-- A whole default means whole numbers, unless the option says real = true.
local function is_whole(option)
  return type(option[2]) == "number" and option[2] % 1 == 0 and not option.real and math.abs(option[2]) < 2 ^ 53
end

local function range_text(option)
  if option.choices then return "one of " .. table.concat(option.choices, ", ") end
  if type(option[2]) == "boolean" then return "true or false" end
  if type(option[2]) == "string" then return "text" end
  local kind = is_whole(option) and "a whole number" or "a number"
  if option.min and option.max then return ("%s from %g to %g"):format(kind, option.min, option.max) end
  if option.min then return ("%s, %g or more"):format(kind, option.min) end
  if option.max then return ("%s, %g or less"):format(kind, option.max) end
  return kind
end

local function read(option, text)
  local default, value = option[2], text
  if type(default) == "number" and type(text) == "string" then value = tonumber(text)
  elseif type(default) == "boolean" and type(text) == "string" then
    value = ({ ["true"] = true, ["1"] = true, yes = true, ["false"] = false, ["0"] = false, no = false })[text]
  end
  local good = type(value) == type(default)
  if good and type(value) == "number" then
    good = value == value and (not is_whole(option) or value % 1 == 0) and value >= (option.min or -math.huge)
      and value <= (option.max or math.huge)
  end
  if good and option.choices then
    good = false
    for _, choice in ipairs(option.choices) do good = good or choice == value end
  end
  if not good then
    local near = option.choices and util.nearest(tostring(text), option.choices)
    usage("%s=%s: must be %s%s", option[1], tostring(text), range_text(option),
      near and (" (did you mean '" .. near .. "'?)") or "")
  end
  return value
end

-- ---- the declaration ------------------------------------------------------------------------------------------------

local function check_declaration(declaration)
  util.check(type(declaration) == "table" and type(declaration.name) == "string",
    "recipe: needs a table with a name and options")
  local seen = {}
  for i, option in ipairs(declaration.options or {}) do
    local name, default = option[1], option[2]
    util.check(type(name) == "string" and name:match "^[%a_][%w_]*$", "recipe: option %d needs a name", i)
    util.check(not RESERVED[name], "recipe: '%s' is an option of every run (--%s); do not declare it", name, name)
    util.check(not seen[name], "recipe: option '%s' is declared twice", name)
    util.check(type(default) == "number" or type(default) == "string" or type(default) == "boolean",
      "recipe: option '%s' needs a default that is a number, text, true or false", name)
    seen[name] = true
  end
end

local function print_help(declaration, given)
  io.write("usage: perigee run ", given.path or declaration.name .. ".lua", " [key=value ...] [options]\n")
  if declaration.help then io.write("\n", declaration.help, "\n") end
  io.write "\n"
  local width = 8
  for _, option in ipairs(declaration.options or {}) do
    width = math.max(width, #option[1] + #tostring(option[2]) + 1)
  end
  for _, option in ipairs(declaration.options or {}) do
    local about = option.help and option.help .. "; " or ""
    io.write(("  %-" .. width .. "s  %s%s\n"):format(option[1] .. "=" .. tostring(option[2]), about, range_text(option)))
  end
  io.write("\n`perigee run --help` lists the options of every run: --device --threads --seed --out --resume",
    "\n--quiet --tensorboard.\n")
end

-- The options stored in the folder that is resumed, or nothing.
local function stored_options(folder)
  local file = io.open(folder .. "/config.json", "rb")
  if not file then usage("--resume: '%s' is not a run folder: it has no config.json", folder) end
  local text = file:read "*a"
  file:close()
  local ok, config = pcall(require("cjson").decode, text)
  if not ok or type(config) ~= "table" or type(config.options) ~= "table" then
    usage("--resume: %s/config.json cannot be read", folder)
  end
  return config
end

--- Seeds the generator (1 if not given) and sets the threads that were asked for. @param given {seed =, threads =}
function recipe.apply(given)
  local pg = require "perigee"
  if given.threads then pg.threads(given.threads) end
  pg.seed(given.seed or 1)
end

-- The option of a declaration that is called `key`.
local function find(declaration, key)
  local known = {}
  for i, option in ipairs(declaration.options or {}) do
    if option[1] == key then return option end
    known[i] = option[1]
  end
  local near = util.nearest(key, known)
  usage("%s: unknown option '%s'%s", declaration.name, key,
    near and (" (did you mean '" .. near .. "'?)") or ": it takes none")
end

local function build(declaration, given)
  for key in pairs(given.options) do find(declaration, key) end
  local stored = given.resume and stored_options(given.resume) or { options = {} }
  local opt = {}
  for _, option in ipairs(declaration.options or {}) do
    local name, value = option[1], given.options[option[1]]
    if value == nil then value = stored.options[name] end
    if value == nil then value = option[2] end
    opt[name] = read(option, value)
  end
  opt.seed = given.seed or stored.seed or 1
  opt.threads, opt.device = given.threads or stored.threads, given.device or stored.device or "cpu"
  opt.out, opt.resume, opt.quiet = given.out or given.resume, given.resume, given.quiet or false
  opt.tensorboard = given.tensorboard or false
  return setmetatable(opt, { declaration = declaration, path = given.path })
end

--- Declares a recipe and reads its options from the command line; pg.recipe(declaration) is the same. A default that is a
-- whole number asks for whole numbers, unless the option says real = true; text, true and false are the other kinds.
-- @param declaration  {name =, help =, options = {{name, default, min=, max=, choices=, real=, help=}, ...}}
-- @return table of option values plus seed, device, threads, out, resume, quiet; the generator is seeded
-- @raises a wrong-usage error naming the nearest valid key, or the allowed range
function recipe.declare(declaration)
  check_declaration(declaration)
  local given = recipe.given
  if given.inspect then error({ declaration = declaration }, 0) end
  if given.help then
    print_help(declaration, given)
    error({ help = true }, 0)
  end
  local opt = build(declaration, given)
  recipe.apply(opt)
  recipe.declared = opt
  return opt
end

--- What a recipe declares, without running it further than its declaration.
-- @param path  of the recipe
-- @return the table that it gives to pg.recipe
-- @raises a wrong-usage error when the file cannot be read or declares nothing, and what the file raises before
function recipe.inspect(path)
  local chunk, why = loadfile(path)
  if not chunk then usage("%s", (why:gsub("^cannot open ", "cannot read the recipe "))) end
  local before = recipe.given
  recipe.given = { options = {}, path = path, inspect = true }
  local ok, err = pcall(chunk)
  recipe.given = before
  if not ok and type(err) == "table" and err.declaration then return err.declaration end
  if not ok then error(err, 0) end
  usage("%s declares no options (pg.recipe)", path)
end

--- One option's value as the command line would read it.
-- @param declaration  what recipe.inspect returns
-- @param key, value   the option's name; a number, text, true or false
-- @return the value, of the option's own kind
-- @raises a wrong-usage error naming the nearest option, or the allowed range
function recipe.value(declaration, key, value)
  local option = find(declaration, key)
  if type(option[2]) == "string" and type(value) == "number" then value = util.number(value) end
  return read(option, value)
end

--- The options of a script that opens no run of its own. @return as pg.recipe.declare
function recipe.plain()
  return recipe.declared or build({ name = recipe.given.name or "script", options = {} }, recipe.given)
end

return setmetatable(recipe, { __call = function(_, declaration) return recipe.declare(declaration) end })
