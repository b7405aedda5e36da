-- process.lua - other programs, started without a shell, and locks that end with the process that holds them.

local ffi = require "ffi"
local lib = require "perigee.ffi"
local call = require "perigee.call"

local process = { INT = 2, KILL = 9, USR1 = 10, TERM = 15 }

local function words(list)
  local array = ffi.new("const char *[?]", #list + 1)
  for i, word in ipairs(list) do array[i - 1] = word end
  array[#list] = nil
  return array
end

local anchor -- what the last call's addresses point into

--- Starts a program in a process group of its own, with nothing to read.
-- @param argv     list: a path, or a name that is looked for on PATH; then its arguments, each as it is
-- @param options  {output = file that stdout and stderr are appended to (nowhere), env = {NAME = value},
--   orphan_signal = sent to it when this process ends first, cpu =, cpus = which of this process's processors it gets,
--   from 0}
-- @return its process id
-- @raises one line with the system's reason when it cannot be started
function process.spawn(argv, options)
  options = options or {}
  local additions = {}
  for name, value in pairs(options.env or {}) do additions[#additions + 1] = name .. "=" .. value end
  anchor = { argv, additions, words(argv), words(additions), options.output }
  local o = ffi.new("pg_spawn_options", { argv = anchor[3], env = anchor[4], output = options.output,
    orphan_signal = options.orphan_signal or 0, cpu = options.cpu or 0, cpus = options.cpus or 0 })
  local pid = ffi.new "int32_t[1]"
  call.check(lib.pg_process_spawn(o, pid))
  return pid[0]
end

--- Whether a child has ended; does not wait.
-- @param pid  what process.spawn returned
-- @return nil while it runs; else its exit status, or nil and the number of the signal that ended it, after true
function process.ended(pid)
  local ended, status, signal = ffi.new "int32_t[1]", ffi.new "int32_t[1]", ffi.new "int32_t[1]"
  call.check(lib.pg_process_wait(pid, ended, status, signal))
  if ended[0] == 0 then return nil end
  if signal[0] ~= 0 then return true, nil, signal[0] end
  return true, status[0], nil
end

--- Sends a signal; a process that is gone already is no error. @param pid, signal  numbers; -pid is its whole group
function process.kill(pid, signal) lib.pg_process_kill(pid, signal) end

--- Runs a program to its end. @param argv as process.spawn's @return its exit status (128 + a signal), what it printed
-- @raises when it cannot be started
function process.capture(argv)
  local path = os.tmpname()
  local started, pid = pcall(process.spawn, argv, { output = path })
  local status, signal
  if started then
    local over
    repeat
      over, status, signal = process.ended(pid)
      if not over then process.sleep(0.01) end
    until over
  end
  local file = io.open(path, "rb")
  local said = file and file:read "*a" or ""
  if file then file:close() end
  os.remove(path)
  if not started then error(pid, 0) end
  return status or 128 + signal, said
end

-- ---- locks ------------------------------------------------------------------------------------------------------------

local held = {} -- device and inode -> descriptor: what this process has locked, whatever name it was called by

local function identity(path)
  local file = require("lfs").attributes(path)
  return file and file.dev .. ":" .. file.ino
end

--- Takes the lock of a file, which is made where it is missing, until process.unlock or the end of this process.
-- @param path  text; a lock that this process has already is its own
-- @return true; or false and who holds it, as text
-- @raises when the file cannot be made, or the file system has no locks
function process.lock(path)
  if held[identity(path)] then return true end
  local fd = ffi.new "int32_t[1]"
  call.check(lib.pg_lock(path, fd))
  if fd[0] >= 0 then
    held[identity(path) or path] = fd[0]
    return true
  end
  local file = io.open(path, "rb")
  local who = file and file:read "*l"
  if file then file:close() end
  return false, who and who ~= "" and who or "another process"
end

--- Lets go of a lock. @param path text
function process.unlock(path)
  local key = identity(path) or path
  if held[key] then lib.pg_unlock(held[key]) end
  held[key] = nil
end

--- Whether another process holds the lock of a file. @param path text @return boolean
function process.is_locked(path)
  if not identity(path) or held[identity(path)] then return false end
  local got = process.lock(path)
  if got then process.unlock(path) end
  return not got
end

-- ---- the system -------------------------------------------------------------------------------------------------------

--- Waits; a signal ends it early. @param seconds number
function process.sleep(seconds) lib.pg_sleep(seconds) end

--- Processors that this process may use. @return a number
function process.processors() return lib.pg_processors() end

--- Bytes that files in a folder may still take. @param path text @return a number, or nil where it is not known
function process.disk_free(path)
  local bytes = tonumber(lib.pg_disk_free(path))
  return bytes >= 0 and bytes or nil
end

return process
