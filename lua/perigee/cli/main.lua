-- main.lua - the `perigee` command: picks the subcommand and turns what it raises into an exit status.
-- 0 done; 1 it failed; 2 wrong usage; 130 interrupted.

local host = require "perigee.host"
local args = require "perigee.cli.args"
local util = require "perigee.util"

local COMMANDS = { "run", "repl", "sweep", "report", "watch", "inspect", "doctor" }
local WORDS = { "--version", "--help", unpack(COMMANDS) }

local HELP = [[
usage: perigee COMMAND ...

Fine-tunes vision models without forgetting.

  run RECIPE.lua     run a recipe, or any Lua file, with a run folder of its own
  repl [FILE.lua]    type Lua with `pg` loaded
  sweep FILE.lua     many runs of a recipe: grids, ranges, seeds, early stopping; on this machine or through Slurm
  report RUN...      many runs side by side: one HTML file, PNG files, Markdown, CSV
  watch RUN          follow a run in the terminal: losses, rate, time left
  inspect FILE|RUN   tensors in a .safetensors, .npy or .npz; options and results of a run folder
  doctor             CPU, BLAS and its kernel, threads, GPU, MPI, data sets found, versions
  --version          the version
  --help             this text; `perigee COMMAND --help` says more

Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted with the checkpoint saved.
]]

local function dispatch(words)
  local name = words[1]
  if name == nil then
    io.stderr:write(HELP)
    return 2
  end
  if name == "--help" or name == "-h" or name == "help" then
    io.write(HELP)
    return 0
  end
  if name == "--version" then
    io.write("perigee ", host.version, "\n")
    return 0
  end
  for _, command in ipairs(COMMANDS) do
    if command == name then
      local module = require("perigee.cli." .. name)
      local values, rest = args.parse(module.command, { unpack(words, 2) })
      if values.help and not (name == "run" and rest[1]) then
        io.write(args.help(module.command))
        return 0
      end
      return module.main(values, rest) or 0
    end
  end
  args.usage("unknown %s '%s' (did you mean '%s'?)", name:sub(1, 1) == "-" and "option" or "command", name,
    util.nearest(name, WORDS))
end

-- The traceback is made where the error is raised, the only moment when the stack is still there.
local function describe(err)
  if type(err) == "table" and err.usage then return err end
  return { message = tostring(err), traceback = debug.traceback(tostring(err), 2) }
end

-- One of several processes says what all of them have to say.
local function complain(text)
  local distributed = package.loaded["perigee.distributed"]
  if distributed then return distributed.fail(text) end
  io.stderr:write("perigee: ", text, "\n")
end

return function(words)
  local ok, result = xpcall(function() return dispatch(words) end, describe)
  if ok then return result end
  if result.usage then
    complain(result.usage)
    return 2
  end
  local line = result.message:match "^[^\n]*"
  if line == "interrupted" then
    io.stderr:write "perigee: interrupted\n"
    return 130
  end
  complain(line)
  if os.getenv "PERIGEE_TRACEBACK" == "1" then io.stderr:write(result.traceback, "\n") end
  return 1
end
