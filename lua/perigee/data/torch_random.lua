-- torch_random.lua - PyTorch's randperm on the CPU, to the bit, because published splits were drawn with it: the words
-- of a Mersenne Twister, MT19937 (Matsumoto, Nishimura 1998), and a Fisher-Yates shuffle from the front.

local bit = require "bit"
local ffi = require "ffi"
local util = require "perigee.util"

local N, M = 624, 397
local Words = ffi.typeof "int32_t[624]" -- signed, as the results of bit operations are: no conversion on the way
local band, bxor, lshift, rshift = bit.band, bit.bxor, bit.lshift, bit.rshift

local function turn(state)
  for i = 0, N - 1 do
    local y = bit.bor(band(state[i], 0x80000000), band(state[(i + 1) % N], 0x7fffffff))
    state[i] = bxor(state[(i + M) % N], rshift(y, 1), band(y, 1) == 1 and 0x9908b0df or 0)
  end
end

-- 1812433253 (x ^ x >> 30) + i modulo 2^32, in halves of the factor that doubles hold exactly
local function next_of(x, i)
  local word = bxor(x, rshift(x, 30)) % 2 ^ 32
  return bit.tobit((27655 * word % 2 ^ 16 * 2 ^ 16 + 35173 * word + i) % 2 ^ 32)
end

-- A function that gives the next word, 0 to 2^32 - 1.
local function twister(seed)
  local state, at = Words(), N
  state[0] = bit.tobit(seed)
  for i = 1, N - 1 do state[i] = next_of(state[i - 1], i) end
  return function()
    if at == N then
      turn(state)
      at = 0
    end
    local y = state[at]
    at = at + 1
    y = bxor(y, rshift(y, 11))
    y = bxor(y, band(lshift(y, 7), 0x9d2c5680))
    y = bxor(y, band(lshift(y, 15), 0xefc60000))
    return bxor(y, rshift(y, 18)) % 2 ^ 32
  end
end

local torch_random = {}

--- What torch.randperm(n, generator=torch.Generator().manual_seed(seed)) gives on the CPU, plus 1.
-- @param n     whole number, 1 to 2^31 - 1
-- @param seed  whole number from 0 to 2^32 - 1; default 0
-- @return a list: the numbers 1..n in that order
-- @raises on another n or seed
function torch_random.randperm(n, seed)
  seed = seed or 0
  util.check(type(n) == "number" and n % 1 == 0 and n >= 1 and n < 2 ^ 31,
    "randperm: n must be a whole number from 1 to 2147483647, got %s", tostring(n))
  util.check(type(seed) == "number" and seed % 1 == 0 and seed >= 0 and seed < 2 ^ 32,
    "randperm: seed must be a whole number from 0 to 4294967295, got %s", tostring(seed))
  local word, order = twister(seed), {}
  for i = 1, n do order[i] = i end
  for i = 1, n - 1 do
    local j = i + word() % (n - i + 1)
    order[i], order[j] = order[j], order[i]
  end
  return order
end

return torch_random
