-- doctor.lua - `perigee doctor`: what this machine has, and how to get what is missing.

local args = require "perigee.cli.args"
local host = require "perigee.host"
local ffi = require "ffi"
local lfs = require "lfs"

local doctor = {
  command = {
    usage = "doctor", options = {},
    about = "Shows CPU, BLAS and its kernel, threads, GPU, data sets found and versions.",
  },
}

local function say(name, format, ...) io.write(("%-10s "):format(name), format:format(...), "\n") end

local function first_line(command)
  local pipe = io.popen(command .. " 2>/dev/null")
  local line = pipe and pipe:read "*l"
  if pipe then pipe:close() end
  return line
end

-- {name, a folder or file that shows it is there, the Debian package that brings it}
local DATA = {
  { "fashion-mnist", { "/usr/share/datasets/fashion-mnist" }, "dataset-fashion-mnist" },
  { "openclipart", { "/usr/share/openclipart/png", "/usr/share/openclipart" }, "openclipart-png" },
  { "tuxpaint", { "/usr/share/tuxpaint/stamps" }, "tuxpaint-stamps-default" },
}

local function say_data()
  for i, set in ipairs(DATA) do
    local where
    for _, path in ipairs(set[2]) do
      if not where and lfs.attributes(path, "mode") == "directory" then where = path end
    end
    say(i == 1 and "data" or "", "%-14s %s", set[1], where or "missing: apt-get install " .. set[3])
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
  say("threads", "%d (OpenMP and BLAS together; --threads N)", pg.threads())
  local gpu = lib.pg_device_describe(lib.PG_CUDA)
  say("gpu", "%s", ffi.string(gpu ~= nil and gpu or lib.pg_last_error()))
  say("ops", "%d", #require("perigee.call").names)
  say("gnuplot", "%s", first_line "gnuplot --version" or "missing, so no charts: apt-get install gnuplot-nox")
  say_data()
  return 0
end

return doctor
