-- doctor.lua - `perigee doctor`: what this machine has, and how to get what is missing.

local args = require "perigee.cli.args"
local host = require "perigee.host"
local ffi = require "ffi"

local doctor = {
  command = {
    usage = "doctor", options = {},
    about = "Shows CPU, BLAS and its kernel, threads, GPU, MPI, data sets found and versions.",
  },
}

local function say(name, format, ...) io.write(("%-10s "):format(name), format:format(...), "\n") end

local function first_line(command)
  local pipe = io.popen(command .. " 2>/dev/null")
  local line = pipe and pipe:read "*l"
  if pipe then pipe:close() end
  return line
end

-- What pg.data.load finds without being told where, then what it does not find.
local function say_data(sets)
  local head, absent = "data", {}
  for _, set in ipairs(sets) do
    if set.path or set.unread then
      say(head, "%-14s %s", set.name, set.path or set.unread .. ": not read (pg.data.load says what to take instead)")
      head = ""
    else
      absent[#absent + 1] = set
    end
  end
  for _, set in ipairs(absent) do
    say(head, "%-14s missing: %s", set.name, set.package and "apt-get install " .. set.package or set.download)
    head = ""
  end
end

function doctor.main(_, words)
  if words[1] then args.usage("doctor: takes no '%s'", words[1]) end
  local lib = require "perigee.ffi"
  local pg = require "perigee"
  say("perigee", "%s (ABI %d), %s", host.version, tonumber(lib.pg_abi()), host.executable)
  say("lua", "%s, %s", jit.version, jit.status() and "compiler on" or "compiler off")
  say("cpu", "%s", ffi.string(lib.pg_cpu_name()))
  say("simd", "%s", ffi.string(lib.pg_simd_name()))
  say("blas", "%s", ffi.string(lib.pg_blas_name()))
  say("bf16", "%s", lib.pg_bf16_native(-1) == 1 and "AVX-512 BF16" or "emulated in float32: no gain in speed")
  say("threads", "%d (OpenMP and BLAS together; --threads N)", pg.threads())
  local gpu = lib.pg_device_describe(lib.PG_CUDA)
  say("gpu", "%s", ffi.string(gpu ~= nil and gpu or lib.pg_last_error()))
  local mpi = lib.pg_comm_describe()
  say("mpi", "%s", mpi ~= nil and ffi.string(mpi) or ffi.string(lib.pg_last_error()) .. " (apt-get install libopenmpi-dev)")
  say("ops", "%d", #require("perigee.call").names)
  say("gnuplot", "%s", first_line "gnuplot --version" or "missing, so no charts: apt-get install gnuplot-nox")
  say_data(pg.data.sets())
  return 0
end

return doctor
