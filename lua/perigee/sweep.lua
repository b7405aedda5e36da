-- sweep.lua - what a sweep file says, and the list of runs that follows from it: the same file gives the same list, each
-- run with an id made of its options, so that a sweep can be cut off, continued and edited.
--
--   local pg = require "perigee"
--   return {
--     recipe = "recipes/end_to_end.lua",
--     options = { method = { "fda", "l2sp" }, lr = pg.sweep.log_uniform(1e-4, 1e-2) },
--     samples = 10, seeds = 3, metric = "rows.1.a_lp", direction = "max",
--   }

local ffi = require "ffi"
local lib = require "perigee.ffi"
local util = require "perigee.util"
local recipe = require "perigee.recipe"

local sweep = {}
local Range, When = {}, {} -- the metatables of what the functions below return

local MOST_RUNS = 100000

local function usage(format, ...)
  error(setmetatable({ usage = format:format(...) }, { __tostring = function(e) return e.usage end }), 0)
end

local function is_number(x) return type(x) == "number" and x - x == 0 end
local function is_scalar(x) return is_number(x) or type(x) == "string" or type(x) == "boolean" end

-- ---- values that are drawn, and conditions ----------------------------------------------------------------------------

-- Six digits are enough for what is drawn, and are read more easily.
local function rounded(x, low, high) return math.max(low, math.min(high, tonumber(("%.6g"):format(x)))) end

local function range(name, low, high, from)
  util.check(is_number(low) and is_number(high) and low < high, "sweep.%s: needs two numbers, the lesser first, got %s and %s",
    name, tostring(low), tostring(high))
  return setmetatable({ name = name, from = from }, Range)
end

--- A value drawn uniformly, anew for each sample. @param low, high numbers @return what an option of a sweep file may be
function sweep.uniform(low, high)
  return range("uniform", low, high, function(u) return rounded(low + u * (high - low), low, high) end)
end

--- A value whose logarithm is drawn uniformly. @param low, high numbers above 0 @return as sweep.uniform
function sweep.log_uniform(low, high)
  util.check(is_number(low) and low > 0, "sweep.log_uniform: begins above 0, got %s", tostring(low))
  return range("log_uniform", low, high,
    function(u) return rounded(math.exp(math.log(low) + u * (math.log(high) - math.log(low))), low, high) end)
end

--- A whole number drawn uniformly, both ends included. @param low, high whole numbers @return as sweep.uniform
function sweep.integer(low, high)
  util.check(is_number(low) and is_number(high) and low % 1 == 0 and high % 1 == 0,
    "sweep.integer: needs whole numbers, got %s and %s", tostring(low), tostring(high))
  return range("integer", low, high, function(u) return low + math.floor(u * (high - low + 1)) end)
end

--- One of several values, drawn uniformly. @param values list of numbers, text, true or false @return as sweep.uniform
function sweep.choice(values)
  util.check(type(values) == "table" and #values > 0, "sweep.choice: needs a list of values")
  for _, value in ipairs(values) do
    util.check(is_scalar(value), "sweep.choice: values are numbers, text, true or false, got %s", type(value))
  end
  return setmetatable({ name = "choice", from = function(u) return values[math.floor(u * #values) + 1] end }, Range)
end

--- An option that is given only where a condition holds; elsewhere the recipe's default stands.
-- @param condition  {name = value or list of values, ...}, all of which must hold, or a function of the options that
--   returns whether they do; options that the file leaves out have the recipe's defaults there
-- @param value      what the option is then: a value, a list of them, or one of the draws above
-- @return what an option of a sweep file may be
function sweep.when(condition, value)
  util.check(type(condition) == "function" or type(condition) == "table" and next(condition) ~= nil,
    "sweep.when: the condition is a table of options or a function, got %s", type(condition))
  util.check(value ~= nil and getmetatable(value) ~= When, "sweep.when: needs a value, a list, or a draw")
  return setmetatable({ condition = condition, value = value }, When)
end

-- ---- reading the file -------------------------------------------------------------------------------------------------

local FIELDS = { recipe = "text", options = "table", folder = "text", drop = "any", seeds = "any", samples = "count",
  draw = "count", metric = "text", direction = "text", stop = "table", retries = "count", device = "text",
  threads = "count", slurm = "table" }
local STOP = { metric = "text", direction = "text", first = "count", factor = "number", last = "count", window = "count" }
local SLURM = { partition = "text", time = "any", mem = "any", cpus = "count", gres = "text", account = "text",
  throttle = "count", warning = "count", args = "table" }

local KINDS = {
  text = { "text", function(v) return type(v) == "string" and v ~= "" end },
  table = { "a table", function(v) return type(v) == "table" end },
  count = { "a whole number, 0 or more", function(v) return is_number(v) and v % 1 == 0 and v >= 0 end },
  number = { "a number", is_number },
  any = { "a value", function(v) return v ~= nil end },
}

local function check_fields(where, given, fields)
  local known = {}
  for name in pairs(fields) do known[#known + 1] = name end
  table.sort(known)
  for name, value in pairs(given) do
    if not fields[name] then
      usage("%s: there is no field '%s' (did you mean '%s'?)", where, tostring(name), util.nearest(tostring(name), known))
    end
    local kind = KINDS[fields[name]]
    if not kind[2](value) then usage("%s: %s: must be %s, got %s", where, name, kind[1], tostring(value)) end
  end
end

local function check_direction(where, direction)
  if direction ~= "max" and direction ~= "min" then
    usage("%s: direction: must be \"max\" or \"min\", got %s", where, tostring(direction))
  end
end

local function check_stop(path, spec)
  local stop, where = spec.stop, path .. ": stop"
  check_fields(where, stop, STOP)
  if not stop.metric then usage("%s: needs a metric: a key of the lines of metrics.jsonl", where) end
  stop.direction = stop.direction or (stop.metric == spec.metric and spec.direction) or nil
  check_direction(where, stop.direction)
  if not stop.first or stop.first < 1 then usage("%s: needs first: the step of the first rung, 1 or more", where) end
  stop.factor, stop.window = stop.factor or 3, stop.window or 1
  if stop.factor <= 1 then usage("%s: factor: must be above 1, got %g", where, stop.factor) end
  if stop.window < 1 then usage("%s: window: must be 1 or more", where) end
end

local function seeds_of(path, seeds)
  if seeds == nil then return { 1 } end
  local list = {}
  if type(seeds) == "number" then
    for i = 1, seeds do list[i] = i end
  else
    list = seeds
  end
  if type(list) ~= "table" or #list == 0 then usage("%s: seeds: a number of seeds, or a list of them", path) end
  for _, seed in ipairs(list) do
    if not (is_number(seed) and seed % 1 == 0 and seed >= 0) then
      usage("%s: seeds: must be whole numbers, 0 or more, got %s", path, tostring(seed))
    end
  end
  return list
end

local function exists(path) return require("lfs").attributes(path, "mode") == "file" end

-- The recipe as seen from the working folder, else from the sweep file's own.
local function find_recipe(path, name)
  if not name then usage("%s: needs a recipe", path) end
  local beside = (path:match "^(.*/)" or "") .. name
  if not exists(name) and not exists(beside) then usage("%s: recipe: there is no file '%s'", path, name) end
  return exists(name) and name or beside
end

--- Reads and checks a sweep file.
-- @param path  of a Lua file that returns a table with these fields:
--   recipe  the recipe's file, as seen from the working folder or from the sweep file's
--   options  name -> a value, a list (a grid), or what sweep.uniform, log_uniform, integer, choice or when return
--   samples  how many times what is random is drawn, for each point of the grid
--   draw  seed of these draws (1)
--   seeds  a number n (1 to n), or a list; each run is done with each (1)
--   drop  combinations to leave out: a list of tables of options, or a function that returns true for them
--   metric  what to compare: a dotted path into result.json such as rows.1.a_lp, or a key of metrics.jsonl
--   direction  "max" or "min"
--   stop  early stopping: {metric =, direction =, first =, factor = 3, last =, window = 1} (perigee.sweep.halving)
--   retries  how many times a failed run is started again (0)
--   folder  where the run folders go (runs/ and the file's name)
--   device, threads  of each run (cpu; the processors shared out)
--   slurm  {partition, time, mem, cpus, gres, account, throttle, warning, args} for sbatch
-- @return the table, completed, with .file, .name and .declaration (the recipe's)
-- @raises a wrong-usage error that names the file and the field
function sweep.load(path)
  local chunk, why = loadfile(path)
  if not chunk then usage("%s", (why:gsub("^cannot open ", "cannot read the sweep file "))) end
  local ok, spec = pcall(chunk)
  if not ok then usage("%s", tostring(spec):match "^[^\n]*") end
  if type(spec) ~= "table" then usage("%s: must return a table, it returns %s", path, type(spec)) end
  check_fields(path, spec, FIELDS)
  spec.file, spec.name = path, path:match "([^/]+)$":gsub("%.lua$", "")
  spec.recipe = find_recipe(path, spec.recipe)
  spec.folder = (spec.folder or "runs/" .. spec.name):gsub("(.)/+$", "%1")
  spec.options, spec.seeds = spec.options or {}, seeds_of(path, spec.seeds)
  spec.retries, spec.device, spec.draw = spec.retries or 0, spec.device or "cpu", spec.draw or 1
  if spec.metric or spec.direction then check_direction(path, spec.direction) end
  if spec.device ~= "cpu" and spec.device ~= "cuda" then usage("%s: device: is cpu or cuda, got '%s'", path, spec.device) end
  if spec.stop then check_stop(path, spec) end
  if spec.slurm then check_fields(path .. ": slurm", spec.slurm, SLURM) end
  if spec.drop ~= nil and type(spec.drop) ~= "function" and type(spec.drop) ~= "table" then
    usage("%s: drop: must be a list of tables of options or a function, got %s", path, type(spec.drop))
  end
  spec.declaration = recipe.inspect(spec.recipe)
  return spec
end

-- ---- from options to axes ---------------------------------------------------------------------------------------------

-- One value as the recipe takes it; errors say where it stands in the sweep file.
local function value_of(spec, name, value)
  local ok, result = pcall(recipe.value, spec.declaration, name, value)
  if not ok then usage("%s: options.%s: %s", spec.file, name, tostring(result)) end
  return result
end

-- {name, kind = "fixed"|"grid"|"random", values = list or draw = fn, condition =}
local function axis_of(spec, name, given)
  local axis, value = { name = name, kind = "fixed" }, given
  if type(name) ~= "string" then usage("%s: options: names are text, got %s", spec.file, tostring(name)) end
  if getmetatable(value) == When then axis.condition, value = value.condition, value.value end
  if getmetatable(value) == Range then
    axis.kind, axis.draw = "random", value.from
    for _, u in ipairs { 0, 0.5, 1 - 2 ^ -53 } do value_of(spec, name, value.from(u)) end -- both ends are in range
    return axis
  end
  if type(value) == "table" and #value == 0 then
    usage("%s: options.%s: a list of values is empty or has names; ranges are made by pg.sweep", spec.file, name)
  end
  if type(value) == "table" then axis.kind = "grid" end
  axis.values = {}
  for i, v in ipairs(type(value) == "table" and value or { value }) do
    if not is_scalar(v) then
      usage("%s: options.%s: values are numbers, text, true or false, got %s", spec.file, name, type(v))
    end
    axis.values[i] = value_of(spec, name, v)
  end
  return axis
end

-- A condition's table with its values as lists of the recipe's own kind; a function as it is.
local function condition_of(spec, axis)
  if type(axis.condition) ~= "table" then return axis.condition end
  local wanted = {}
  for name, value in pairs(axis.condition) do
    local list = {}
    for i, v in ipairs(type(value) == "table" and value or { value }) do list[i] = value_of(spec, name, v) end
    wanted[name] = list
  end
  return wanted
end

local function among(value, list)
  for _, v in ipairs(list) do
    if v == value then return true end
  end
  return false
end

local function matches(options, wanted)
  for name, list in pairs(wanted) do
    if not among(options[name], list) then return false end
  end
  return true
end

-- Conditional axes behind those that their tables name; functions see everything and come last.
local function in_order(spec, axes)
  local ordered, settled, waiting = {}, {}, {}
  for _, axis in ipairs(axes) do waiting[axis.name] = axis end
  local function ready(axis)
    if type(axis.condition) == "function" then return false end
    for name in pairs(axis.condition or {}) do
      if waiting[name] and not settled[name] then return false end
    end
    return true
  end
  repeat
    local moved = false
    for _, axis in ipairs(axes) do
      if not settled[axis.name] and ready(axis) then
        ordered[#ordered + 1], settled[axis.name], moved = axis, true, true
      end
    end
  until not moved
  for _, axis in ipairs(axes) do
    if not settled[axis.name] then
      if type(axis.condition) ~= "function" then
        usage("%s: options.%s: its condition hangs on itself or on a function's option", spec.file, axis.name)
      end
      ordered[#ordered + 1] = axis
    end
  end
  return ordered
end

local function axes_of(spec)
  local names, axes = {}, {}
  for name in pairs(spec.options) do names[#names + 1] = name end
  table.sort(names, function(a, b) return tostring(a) < tostring(b) end)
  for i, name in ipairs(names) do
    axes[i] = axis_of(spec, name, spec.options[name])
    axes[i].condition = condition_of(spec, axes[i])
  end
  return in_order(spec, axes)
end

-- ---- the list of runs -------------------------------------------------------------------------------------------------

-- FNV-1a, 64 bits, with MurmurHash3's last step: texts that differ at their ends differ in all bits.
local function hash(text)
  local h = 0xcbf29ce484222325ULL
  for i = 1, #text do h = bit.bxor(h, text:byte(i)) * 0x100000001b3ULL end
  h = bit.bxor(h, bit.rshift(h, 33)) * 0xff51afd7ed558ccdULL
  h = bit.bxor(h, bit.rshift(h, 33)) * 0xc4ceb9fe1a85ec53ULL
  return bit.bxor(h, bit.rshift(h, 33))
end

-- Uniform in [0, 1): a function of the option's name, the sample and the file's seed of draws alone, so that another
-- value in the grid or another option changes nothing that was drawn before.
local function uniform(name, sample, seed)
  local h = hash(name)
  local key = ffi.new("uint32_t[2]", tonumber(h % 2 ^ 32), tonumber(h / 2 ^ 32))
  local counter, out = ffi.new("uint32_t[4]", sample, seed % 2 ^ 32, 0, 0x5eeb), ffi.new "uint32_t[4]"
  lib.pg_philox(counter, key, out)
  return (math.floor(out[0] / 32) * 2 ^ 26 + math.floor(out[1] / 64)) / 2 ^ 53
end

local function as_text(value) return type(value) == "number" and util.number(value) or tostring(value) end

-- Options that have the recipe's default do not enter: giving one changes nothing, and so it is the same run.
local function id_of(spec, options, defaults)
  local parts = {}
  for name, value in pairs(options) do
    if value ~= defaults[name] then parts[#parts + 1] = name .. "=" .. as_text(value) end
  end
  table.sort(parts)
  local text = spec.declaration.name .. "\n" .. table.concat(parts, "\n")
  return bit.tohex(hash(text)):sub(1, 12), text
end

local function call(spec, field, fn, options)
  local ok, answer = pcall(fn, options)
  if not ok then usage("%s: %s: %s", spec.file, field, (tostring(answer):match "^[^\n]*")) end
  return answer
end

local function dropper(spec)
  if type(spec.drop) == "function" then
    return function(options) return call(spec, "drop", spec.drop, options) end
  end
  local wanted = {}
  for i, entry in ipairs(spec.drop or {}) do
    if type(entry) ~= "table" then usage("%s: drop: entry %d is no table of options", spec.file, i) end
    wanted[i] = condition_of(spec, { condition = entry })
  end
  return function(options)
    for _, entry in ipairs(wanted) do
      if matches(options, entry) then return true end
    end
    return false
  end
end

-- Calls visit(options) for each point of the grid, with what is drawn for this sample.
local function walk(spec, axes, sample, defaults, visit)
  local options = setmetatable({}, { __index = defaults })
  local function holds(axis)
    if type(axis.condition) == "function" then return call(spec, "options." .. axis.name, axis.condition, options) end
    return not axis.condition or matches(options, axis.condition)
  end
  local function from(i)
    local axis = axes[i]
    if not axis then return visit(options) end
    if not holds(axis) then return from(i + 1) end
    local values = axis.values
      or { value_of(spec, axis.name, axis.draw(uniform(axis.name, sample, spec.draw))) }
    for _, value in ipairs(values) do
      options[axis.name] = value
      from(i + 1)
    end
    options[axis.name] = nil
  end
  from(1)
end

local function check_samples(spec, axes)
  local random
  for _, axis in ipairs(axes) do random = random or axis.kind == "random" and axis.name end
  if random and not spec.samples then
    usage("%s: options.%s is drawn at random: give samples, how many times", spec.file, random)
  elseif spec.samples and not random then
    usage("%s: samples: nothing in options is drawn at random", spec.file)
  elseif spec.samples == 0 then
    usage("%s: samples: must be 1 or more", spec.file)
  end
end

--- The runs of a sweep: every point of the grid with every sample, first with the first seed, then with the next.
-- @param spec  what sweep.load returned
-- @return a list of {name = id-seed, id = of the options alone, seed =, options = name -> value}, without doubles
-- @raises a wrong-usage error that names the file and the field
function sweep.expand(spec)
  local axes, defaults, points, seen = axes_of(spec), {}, {}, {}
  check_samples(spec, axes)
  for _, option in ipairs(spec.declaration.options or {}) do defaults[option[1]] = option[2] end
  local dropped = dropper(spec)
  for sample = 1, spec.samples or 1 do
    walk(spec, axes, sample, defaults, function(options)
      if dropped(options) then return end
      local id, text = id_of(spec, options, defaults)
      if seen[id] == text then return end
      if seen[id] then usage("%s: two runs have the id %s: change one of them a little", spec.file, id) end
      seen[id] = text
      local own = {}
      for name, value in pairs(options) do own[name] = value end
      points[#points + 1] = { id = id, options = own }
      if #points * #spec.seeds > MOST_RUNS then usage("%s: more than %d runs", spec.file, MOST_RUNS) end
    end)
  end
  if #points == 0 then usage("%s: drop leaves no run", spec.file) end
  local runs = {}
  for _, seed in ipairs(spec.seeds) do
    for _, point in ipairs(points) do
      runs[#runs + 1] = { name = point.id .. "-" .. as_text(seed), id = point.id, seed = seed, options = point.options }
    end
  end
  return runs
end

return sweep
