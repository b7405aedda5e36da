-- perigee - tensors with automatic differentiation, and fine-tuning that forgets less. `local pg = require "perigee"`.
--
-- Ops stand here by name (docs/ops.md lists them); the rest is in modules that load when first used: pg.nn, pg.optim,
-- pg.models, pg.data, pg.image, pg.npy, pg.npz, pg.safetensors, pg.tokenizer, pg.fda, pg.regularize, pg.continual, pg.metrics,
-- pg.linalg, pg.run, pg.recipe, pg.plot and the others in this folder (docs/api.md).

local ffi = require "ffi"
local lib = require "perigee.ffi"
local call = require "perigee.call"
local util = require "perigee.util"
local tensor = require "perigee.tensor"
local memory = require "perigee.memory"

local pg = {}

for _, name in ipairs(call.names) do pg[name] = call.ops[name].call end
for name, fn in pairs(tensor) do
  if type(fn) == "function" then pg[name] = fn end
end

-- pg.ops: name -> descriptor {name, doc, inputs, outputs, params, samples, method, no_backward, source, call}.
pg.is_tensor, pg.scope, pg.ops = call.is_tensor, call.scope, call.ops
pg.version = ffi.string(lib.pg_version())
pg.memory = memory.stats

--- Seeds the one generator, Philox 4x32-10, that randn, rand, randperm, dropout and initial weights draw from.
-- @param seed  whole number, 0 or more
-- @raises on anything else
function pg.seed(seed)
  util.check(type(seed) == "number" and seed >= 0 and seed % 1 == 0, "seed: must be a whole number, 0 or more, got %s",
    tostring(seed))
  lib.pg_seed(seed)
end

--- The generator's state, for a checkpoint; with a state given, restores it first.
-- @param state  {seed, offset} as returned before, or nil
-- @return {seed, offset}, two whole numbers
function pg.rng_state(state)
  local pair = ffi.new "uint64_t[2]"
  if state then
    pair[0], pair[1] = state[1], state[2]
    lib.pg_rng_restore(pair)
  end
  lib.pg_rng_state(pair)
  return { tonumber(pair[0]), tonumber(pair[1]) }
end

--- Sets (with n) and returns the number of threads of OpenMP and OpenBLAS together.
-- @param n  whole number, 1 or more; nil only asks
-- @return the number in force
-- @raises on a number that is none
function pg.threads(n)
  if n then call.check(lib.pg_set_threads(n)) end
  return lib.pg_threads()
end

--- True when every value is finite: neither NaN nor infinite.
-- @param t  tensor of any shape and dtype
-- @return boolean
function pg.is_finite(t)
  local bad = ffi.new "int64_t[1]"
  call.check(lib.pg_count_nonfinite(t, bad))
  return bad[0] == 0
end

--- Seconds of a monotonic clock, for differences. @return a number
function pg.now() return lib.pg_now() end

return setmetatable(pg, {
  __index = function(_, name)
    local path = package.searchpath and package.searchpath("perigee." .. name, package.path)
    if path == nil then return nil end
    local module = require("perigee." .. name)
    rawset(pg, name, module)
    return module
  end,
})
