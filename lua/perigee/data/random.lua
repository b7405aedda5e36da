-- random.lua - a small generator of its own for the choices that data needs (orders, splits, specs), so that drawing a
-- batch never moves the global generator. Draws are Philox blocks of (seed, position), as in the core.

local ffi = require "ffi"
local lib = require "perigee.ffi"
local util = require "perigee.util"

local random, methods = {}, {}
random.SPLIT = 20250524 -- the seed of every split that is fixed for its source
local Words = ffi.typeof "uint32_t[?]"

--- A generator.
-- @param seed    whole number from 0 to 2^32 - 1
-- @param stream  whole number that sets apart generators of one seed, such as the epoch; default 0
-- @return an object with :below(n), :permutation(n)
-- @raises on a seed that is no such number
function random.new(seed, stream)
  util.check(type(seed) == "number" and seed >= 0 and seed < 2 ^ 32 and seed % 1 == 0,
    "seed: must be a whole number from 0 to 2^32 - 1, got %s", tostring(seed))
  local counter = Words(4)
  counter[2], counter[3] = stream or 0, 0xda7a -- 0xda7a: apart from the core's own streams, which leave it 0
  return setmetatable({ key = Words(2, seed, 0), counter = counter, block = Words(4), used = 4 }, { __index = methods })
end

--- A uniform whole number in 1..n. @param n whole number, 1 or more @return a number
function methods:below(n)
  if self.used == 4 then
    lib.pg_philox(self.counter, self.key, self.block)
    self.counter[0], self.used = self.counter[0] + 1, 0
  end
  local word = self.block[self.used]
  self.used = self.used + 1
  return math.floor(word * 2 ^ -32 * n) + 1
end

--- A uniformly random order of 1..n (Fisher-Yates). @param n whole number @return a list
function methods:permutation(n)
  local order = {}
  for i = 1, n do order[i] = i end
  for i = n, 2, -1 do
    local j = self:below(i)
    order[i], order[j] = order[j], order[i]
  end
  return order
end

return random
