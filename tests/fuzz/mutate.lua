-- mutate.lua - blind changes to a text, the same for the same seed, for readers that are written in Lua.

local bit = require "bit"

local fuzz = {}

-- A source of whole numbers: xorshift32 (Marsaglia 2003). below(n) is within 1..n.
function fuzz.generator(seed)
  local state = bit.tobit(seed * 2654435769 + 1)
  return function(n)
    state = bit.bxor(state, bit.lshift(state, 13))
    state = bit.bxor(state, bit.rshift(state, 17))
    state = bit.bxor(state, bit.lshift(state, 5))
    return (state % 4294967296) % n + 1
  end
end

-- One change: `alphabet` holds the bytes that the format is made of.
function fuzz.mutate(text, below, alphabet)
  local at = below(#text + 1)
  local kind = below(8)
  if kind <= 3 then -- another byte of the format
    local pick = below(#alphabet)
    return text:sub(1, at - 1) .. alphabet:sub(pick, pick) .. text:sub(at + 1)
  elseif kind == 4 then -- a bit
    local byte = text:byte(at) or 0
    return text:sub(1, at - 1) .. string.char(bit.bxor(byte, 2 ^ (below(8) - 1))) .. text:sub(at + 1)
  elseif kind == 5 then -- some bytes less
    return text:sub(1, at - 1) .. text:sub(at + below(12))
  elseif kind == 6 then -- some bytes twice
    return text:sub(1, at) .. text:sub(math.max(1, at - below(60)), at) .. text:sub(at + 1)
  elseif kind == 7 then -- some bytes of the format more
    local pick = below(#alphabet)
    return text:sub(1, at - 1) .. alphabet:sub(pick, pick + below(4)) .. text:sub(at)
  end
  return (text:gsub("%d+", function(digits) -- another number
    local others = { "0", "-1", "1e400", "9007199254740993", "18446744073709551615", digits .. "0" }
    if below(30) == 1 then return others[below(#others)] end
  end))
end

return fuzz
