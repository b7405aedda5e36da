-- bpe.lua - what a vocabulary of byte pairs does to a cleaned text: pieces, symbols, merges (docs/method.md 6.4).
--
-- Symbols are written in an alphabet of 256 printable characters, one a byte; the last one of a piece ends with </w>.

local unicode = require "perigee.tokenizer.unicode"

local bpe = {}

bpe.END = "</w>"

-- ---- the alphabet ---------------------------------------------------------------------------------------------------

-- symbols[byte + 1] is its character; order is that of the first 256 ids: bytes that print, then the others.
local symbols, bytes, order = {}, {}, {}
do
  local function prints(byte) return byte >= 33 and byte <= 126 or byte >= 161 and byte ~= 173 end
  local others = 0
  for _, printing in ipairs { true, false } do
    for byte = 0, 255 do
      if prints(byte) == printing then
        symbols[byte + 1] = unicode.char(printing and byte or 256 + others)
        if not printing then others = others + 1 end
        bytes[symbols[byte + 1]] = string.char(byte)
        order[#order + 1] = symbols[byte + 1]
      end
    end
  end
end
bpe.symbols, bpe.order = symbols, order

--- The bytes that a token stands for; its end of a word is a space.
function bpe.bytes_of(token)
  local stem = token:match "^(.*)</w>$"
  return (stem or token):gsub("[%z\1-\127\194-\244][\128-\191]*", bytes) .. (stem and " " or "")
end

-- ---- pieces ---------------------------------------------------------------------------------------------------------

local CONTRACTIONS = { "^'[st]", "^'re", "^'ve", "^'m", "^'ll", "^'d" }

-- What a pattern that ignores case makes of two characters: the long s, whose capital is S, is an s; the iota below a
-- Greek vowel, a mark whose capital is a letter, is neither in \p{L} nor outside of it, and no piece has it.
local LONG_S, IOTA_BELOW = "\197\191", "\205\133"

-- Where the special token that begins at `at` ends, ignoring case; or nil.
local function special_at(text, at, specials)
  for _, special in ipairs(specials) do
    local rest = text:sub(at, at + 2 * #special - 1)
    if rest:sub(1, #special) == special then return at + #special - 1 end
    local plain = rest:gsub(LONG_S, "s")
    if plain:sub(1, #special) == special then
      local from, count = at, 0
      while count < #special do
        count, from = count + 1, from + (text:sub(from, from + 1) == LONG_S and 2 or 1)
      end
      return from - 1
    end
  end
end

local function contraction_at(text, at, long_s)
  for _, pattern in ipairs(CONTRACTIONS) do
    local _, last = text:find(pattern, at)
    if last then return last end
  end
  return long_s and text:sub(at + 1, at + 2) == LONG_S and at + 2 or nil
end

--- Cuts a cleaned text into pieces: special tokens where the pattern knows them, the endings 's 't 're 've 'm 'll 'd,
-- runs of letters (general category L), single numbers (N), runs of what is neither and no white space.
-- @param text      UTF-8, in lower case
-- @param specials  list of tokens of the pattern, or nil: then case is not ignored either
-- @param take      function(piece), called for each in order
function bpe.pieces(text, specials, take)
  if specials then text = text:gsub(IOTA_BELOW, " ") end
  local classes, at, n = unicode.classes(text), 0, #text
  while at < n do
    local class, last = classes[at], nil
    if class == unicode.OTHER then
      last = specials and special_at(text, at + 1, specials)
      if text:byte(at + 1) == 39 then last = last or contraction_at(text, at + 1, specials ~= nil) end
    end
    local from = at
    at = last or at + 1
    if not last then
      local run = class ~= unicode.NUMBER and class or unicode.FOLLOWS
      while classes[at] == unicode.FOLLOWS or classes[at] == run do at = at + 1 end
    end
    if class ~= unicode.SPACE then take(text:sub(from + 1, at)) end
  end
end

-- ---- merges ---------------------------------------------------------------------------------------------------------

local MOST_CACHED, LONGEST_CACHED = 65536, 128

local Merger = {}
Merger.__index = Merger

--- A merger of pieces into ids.
-- @param ids     table token -> id
-- @param size    more than the largest id
-- @param merges  list of {left id, right id, id of both}, the first goes first; a pair stands once
function bpe.merger(ids, size, merges)
  local m = setmetatable({ size = size, rank = {}, made = {}, cache = {}, cached = 0, inner = {}, last = {} }, Merger)
  for byte = 0, 255 do
    m.inner[byte], m.last[byte] = ids[symbols[byte + 1]], ids[symbols[byte + 1] .. bpe.END]
  end
  for rank, merge in ipairs(merges) do
    local key = merge[1] * size + merge[2]
    m.rank[key], m.made[key] = rank, merge[3]
  end
  return m
end

-- Merges every occurrence of the pair of least rank, from the left, until no pair has a rank.
local function merge(m, list, n)
  local rank, made, size = m.rank, m.made, m.size
  while n > 1 do
    local least, best = math.huge, nil
    for i = 1, n - 1 do
      local key = list[i] * size + list[i + 1]
      local r = rank[key]
      if r and r < least then least, best = r, key end
    end
    if not best then break end
    local new, kept, i = made[best], 0, 1
    while i <= n do
      kept = kept + 1
      if i < n and list[i] * size + list[i + 1] == best then
        list[kept], i = new, i + 2
      else
        list[kept], i = list[i], i + 1
      end
    end
    for j = kept + 1, n do list[j] = nil end
    n = kept
  end
  return list
end

--- The ids of one piece, a list that is not to be changed.
function Merger:ids(piece)
  local list = self.cache[piece]
  if list then return list end
  list = {}
  for i = 1, #piece - 1 do list[i] = self.inner[piece:byte(i)] end
  list[#piece] = self.last[piece:byte(#piece)]
  merge(self, list, #piece)
  if #piece <= LONGEST_CACHED then
    if self.cached == MOST_CACHED then self.cache, self.cached = {}, 0 end
    self.cache[piece], self.cached = list, self.cached + 1
  end
  return list
end

return bpe
