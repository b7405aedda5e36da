-- run.lua - `perigee run RECIPE.lua [key=value ...]`.

local host = require "perigee.host"
local args = require "perigee.cli.args"
local recipe = require "perigee.recipe"

local run = {}

run.command = {
  usage = "run RECIPE.lua [key=value ...] [options]",
  about = "Runs a recipe, or any Lua file. `perigee run RECIPE.lua --help` lists the recipe's own key=value options.\n"
      .. "Under mpirun or srun the processes are one run (docs/scale.md).",
  options = {
    { "--device", "cpu|cuda", "where tensors live (cpu)" },
    { "--threads", "N", "threads of OpenMP and OpenBLAS together", kind = "whole", min = 1, max = 1024 },
    { "--seed", "N", "seed of the one generator (1)", kind = "whole", min = 0, max = 2 ^ 53 },
    { "--out", "DIR", "the run folder (runs/NAME-DATE-TIME)" },
    { "--resume", "DIR", "continue the run in DIR from its checkpoint" },
    { "--tensorboard", nil, "write the metrics as events for TensorBoard too" },
    { "--quiet", nil, "print nothing but errors" },
  },
}

local function read_pairs(words)
  local given = {}
  for i = 2, #words do
    local key, value = words[i]:match "^([%w_]+)=(.*)$"
    if not key then args.usage("'%s' is not key=value", words[i]) end
    if given[key] then args.usage("%s is given twice", key) end
    given[key] = value
  end
  return given
end

local function read_source(path)
  local file = io.open(path, "rb")
  local source = file and file:read "*a" -- reading a folder gives nil
  if file then file:close() end
  if not source then args.usage("cannot read the recipe '%s'", path) end
  return source
end

-- A usage error stays a table; anything else gains the traceback, while the stack is still there.
local function describe(err)
  if type(err) == "table" then return err end
  return { message = tostring(err), traceback = debug.traceback(tostring(err), 2) }
end

-- A run that was stopped can be continued once its checkpoint is there, whether its loop returned or raised.
local function say_interrupted(path, current)
  local distributed = require "perigee.distributed"
  distributed.close()
  if distributed.rank() > 0 then return 130 end
  if current and current:has_checkpoint() then
    io.stderr:write("perigee: interrupted; continue with: perigee run ", path, " --resume ", current.folder, "\n")
  else
    io.stderr:write "perigee: interrupted before a checkpoint could be saved\n"
  end
  return 130
end

local function report(err, path)
  if err.help then return 0 end
  if err.usage then error(err, 0) end
  local folder = package.loaded["perigee.run"]
  local current = folder and folder.current
  if current then pcall(current.note, current, err.traceback or tostring(err)) end -- the disk may be what is full
  if err.message == "interrupted" then
    return say_interrupted(path, current)
  end
  run.failure = tostring(err.message):match "^[^\n]*" -- a sweep keeps it
  require("perigee.distributed").fail(run.failure)
  if os.getenv "PERIGEE_TRACEBACK" == "1" and err.traceback then io.stderr:write(err.traceback, "\n") end
  return 1
end

local function need_cuda()
  local ffi, lib = require "ffi", require "perigee.ffi"
  if lib.pg_device_describe(lib.PG_CUDA) == nil then error("--device cuda: " .. ffi.string(lib.pg_last_error()), 0) end
end

--- Runs a recipe as the command line does.
-- @param values, words  as args.parse gives them
-- @param watch  nil from the command line, else {source = fn(text) -> text, loaded = fn(chunk), failed = fn()}: changes
--   the recipe's text, is told of its chunk, and may look at the stack where it failed
-- @return the exit status
function run.main(values, words, watch)
  if not words[1] then args.usage "run: which recipe? (perigee run RECIPE.lua)" end
  host.stop_signals() -- a scheduler's SIGTERM is as good as Ctrl-C
  require("perigee.distributed").start()
  local path = words[1]
  local device = values.device or "cpu"
  if device ~= "cpu" and device ~= "cuda" then args.usage("--device: is cpu or cuda, got '%s'", device) end
  if values.out and values.resume then args.usage "--out and --resume: give one of them, --resume names the folder too" end
  local source = read_source(path):gsub("^#[^\n]*", "")
  local chunk, why = loadstring(watch and watch.source(source) or source, "@" .. path)
  if not chunk then error(why, 0) end
  if watch then watch.loaded(chunk) end

  local name = path:match "([^/]+)$":gsub("%.lua$", "")
  recipe.given = {
    path = path, name = name, options = read_pairs(words), device = device, threads = values.threads,
    seed = values.seed, out = values.out, resume = values.resume, quiet = values.quiet,
    tensorboard = values.tensorboard, help = values.help,
  }
  local declares = source:find("recipe", 1, true) ~= nil
  if not declares and next(recipe.given.options) then
    args.usage("%s declares no options, so '%s=' means nothing to it", path, (next(recipe.given.options)))
  end
  if values.help and not declares then
    io.write(path, " declares no options.\n\n", args.help(run.command))
    return 0
  end
  if device == "cuda" then need_cuda() end

  local folder = require "perigee.run"
  if not declares then -- a plain script: its folder, which is opened when it has ended, is looked at before
    folder.prepare(recipe.plain())
    if values.seed or values.threads then recipe.apply(recipe.given) end
  end
  local ok, err = xpcall(chunk, function(problem)
    if watch then watch.failed() end
    return describe(problem)
  end)
  if not ok then return report(err, path) end
  if values.help then
    io.write(path, " declares no options.\n\n", args.help(run.command))
    return 0
  end
  if not folder.current then -- a plain script: its folder says that it ran, and with what
    local opened, problem = xpcall(function() folder.open(recipe.plain()):finish {} end, describe)
    if not opened then return report(problem, path) end
  end
  if host.interrupted() then return say_interrupted(path, folder.current) end
  return 0
end

return run
