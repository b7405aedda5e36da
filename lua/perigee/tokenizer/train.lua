-- train.lua - byte pairs from counted pieces: merges in the order in which they pay most (Sennrich et al., 2016).

local bpe = require "perigee.tokenizer.bpe"

local SPAN = 2 ^ 21 -- more than there are tokens: a pair is one number, and numbers are in the order of their symbols

-- ---- a heap of {count, pair}: the largest count first, then the smallest pair --------------------------------------

local function before(a, b) return a[1] > b[1] or a[1] == b[1] and a[2] < b[2] end

local function push(heap, entry)
  local i = #heap + 1
  while i > 1 do
    local up = math.floor(i / 2)
    if not before(entry, heap[up]) then break end
    heap[i], i = heap[up], up
  end
  heap[i] = entry
end

local function pop(heap)
  local top, entry, n = heap[1], heap[#heap], #heap
  heap[n] = nil
  n = n - 1
  if n > 0 then
    local i = 1
    while 2 * i <= n do
      local down = 2 * i
      if down < n and before(heap[down + 1], heap[down]) then down = down + 1 end
      if not before(heap[down], entry) then break end
      heap[i], i = heap[down], down
    end
    heap[i] = entry
  end
  return top
end

-- ---- words ----------------------------------------------------------------------------------------------------------

-- The pieces as lists of ids with their counts.
local function words_of(counts, ids)
  local words = {}
  for piece, count in pairs(counts) do
    local word = { count = count }
    for i = 1, #piece do word[i] = ids[bpe.symbols[piece:byte(i) + 1] .. (i == #piece and bpe.END or "")] end
    words[#words + 1] = word
  end
  return words
end

local function replace(word, left, right, new)
  local kept, i, n = 0, 1, #word
  while i <= n do
    kept = kept + 1
    if word[i] == left and word[i + 1] == right then
      word[kept], i = new, i + 2
    else
      word[kept], i = word[i], i + 1
    end
  end
  for j = kept + 1, n do word[j] = nil end
end

--- Extends a vocabulary of symbols.
-- @param counts     piece -> how often it stands in the texts
-- @param tokens     id -> token, from 0: the alphabet; what is made is added
-- @param most       tokens to stop at
-- @param min_count  least count of a pair that is merged
-- @return list of {left token, right token}, the first merge first
return function(counts, tokens, most, min_count)
  local ids, size = {}, #tokens + 1
  for id = 0, size - 1 do ids[tokens[id]] = id end
  local words, pairs_of, where, heap, merges = words_of(counts, ids), {}, {}, {}, {}

  -- Counts the pairs of a word in (sign 1) or out (-1), and notes which pairs changed.
  local function count(number, sign, changed)
    local word = words[number]
    for i = 1, #word - 1 do
      local pair = word[i] * SPAN + word[i + 1]
      pairs_of[pair] = (pairs_of[pair] or 0) + sign * word.count
      changed[pair] = true
      if sign > 0 then
        where[pair] = where[pair] or {}
        where[pair][number] = true
      end
    end
  end

  local changed = {}
  for number = 1, #words do count(number, 1, changed) end
  while true do
    -- An entry whose count is no longer the pair's is passed over: there is a newer one.
    for pair in pairs(changed) do push(heap, { pairs_of[pair], pair }) end
    local best
    repeat best = #heap > 0 and pop(heap) or nil until not best or pairs_of[best[2]] == best[1]
    if not best or best[1] < min_count or size >= most then return merges end
    local right = best[2] % SPAN
    local left = (best[2] - right) / SPAN
    local made = tokens[left] .. tokens[right]
    if not ids[made] then ids[made], tokens[size], size = size, made, size + 1 end
    merges[#merges + 1] = { tokens[left], tokens[right] }
    changed = {}
    local affected = where[best[2]]
    where[best[2]] = nil
    for number in pairs(affected) do
      count(number, -1, changed)
      replace(words[number], left, right, ids[made])
      count(number, 1, changed)
    end
    pairs_of[best[2]], changed[best[2]] = nil, nil
  end
end
