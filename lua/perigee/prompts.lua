-- prompts.lua - learnt prompts and how they enter CLIP's towers: by encode_embedded and the hook `prompts(layer, x)`,
-- never by a copy of a tower.
--
--   a text of class c:   [start, v_1 .. v_M, name of c, stop, end]     v_m: vectors that are learnt (CoOp)
--   deep prompts:        before block l the M places hold vectors of that block's own (VPT, MaPLe)

local util = require "perigee.util"
local pg = require "perigee"
local nn = require "perigee.nn"

local prompts = {}

local Holder = nn.class "Prompts"
function Holder:init(tensors)
  local names = {}
  for name in pairs(tensors) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do self[name] = tensors[name] end
end

--- A module whose parameters are the tensors and modules given. @param tensors {name = tensor or module} @return a
--   module
function prompts.module(tensors) return Holder(tensors) end

--- Random vectors. @param like a tensor whose dtype and device they get @param ... sizes @return N(0, 0.02^2)
function prompts.random(like, ...) return (pg.randn(...) * 0.02):to(like:dtype()):to(like:device()) end

--- Vectors that a context starts from: the embedding of the first `length` tokens of a text, or random.
-- @param where   the method, for messages
-- @param task    of few_shot.task
-- @param length  M
-- @param init    a text, or "random"
-- @return (M, D)
-- @raises when the text has fewer tokens
function prompts.start(where, task, length, init)
  local tokens = task.clip.text.tokens.weight
  if init == "random" then return prompts.random(tokens, length, tokens:size(2)) end
  local ids = task.tokenizer:encode(init)
  util.check(#ids - 2 >= length, "%s: init = '%s' has %d tokens, and length = %d vectors start from it", where, init,
    #ids - 2, length)
  local row = pg.tensor({ { unpack(ids, 2, length + 1) } }, { dtype = "int32", device = tokens:device() })
  return pg.no_grad(function() return task.clip:embed_text(row):select(1, 1):clone() end)
end

--- The texts of names with places for M vectors. The stop is the end of the prompt's sentence: "." where it has one.
-- @param where   the method, for messages
-- @param task    of few_shot.task
-- @param names   list
-- @param prompt  sentence with {}; the task's own if not given
-- @param length  M
-- @param place   of the vectors' names: "end" (default: v name), "middle" (v/2 name v/2) or "front" (name v)
-- @return {count = C, length = M, rows = (C R, D) embeddings, index = (C T) places in [rows; vectors], own = (C T) the
--   same with vectors of each class's own, eos = list}
-- @raises one line when a text is too long for the model, with the most vectors that fit
function prompts.words(where, task, names, prompt, length, place)
  local stop = (prompt or task.prompt):sub(-1) == "." and "." or ""
  local texts, longest, context = {}, 0, task.clip.config.text.context
  for c, name in ipairs(names) do
    texts[c] = task.tokenizer:encode(name:gsub("_", " ") .. stop)
    longest = math.max(longest, #texts[c])
    util.check(#texts[c] + length <= context,
      "%s: '%s' and %d vectors take %d tokens, the model has %d: length may be %d", where, name, length,
      #texts[c] + length, context, context - #texts[c])
  end
  local index, own, eos, total = {}, {}, {}, #names * longest
  for c, ids in ipairs(texts) do
    local n, base = #ids, (c - 1) * longest
    local before = place == "front" and n - 1 - #stop or 1 -- of its own tokens that stand before the first vector
    local middle = place == "middle" and math.floor(length / 2) or length -- vectors before the name
    local line = {}
    local function word(i) line[#line + 1] = base + i end
    local function vector(m) line[#line + 1] = -m end
    for i = 1, before do word(i) end
    for m = 1, middle do vector(m) end
    local name_end = place == "middle" and n - 1 - #stop or before
    for i = before + 1, name_end do word(i) end
    for m = middle + 1, length do vector(m) end
    for i = name_end + 1, n do word(i) end
    eos[c] = n + length
    for t = 1, longest + length do -- what follows the end is seen by none
      local at = line[t] or base + 1
      index[#index + 1] = at < 0 and total - at or at
      own[#own + 1] = at < 0 and total + (c - 1) * length - at or at
    end
    for i = n + 1, longest do ids[i] = ids[n] end
  end
  local device = task.features:device()
  local function tensor(list) return pg.tensor(list, { dtype = "int32", device = device }) end
  local width = task.clip.config.text.width
  return { count = #names, length = length, eos = tensor(eos), index = tensor(index), own = tensor(own),
    rows = pg.no_grad(function() return task.clip:embed_text(tensor(texts)):reshape(total, width) end) }
end

--- The texts' embeddings with the vectors in their places.
-- @param words    of prompts.words
-- @param vectors  (M, D), or (C, M, D) of each class's own
-- @return (C, T, D)
function prompts.embed(words, vectors)
  local width, own = words.rows:size(2), vectors:dim() == 3
  if own then vectors = vectors:reshape(vectors:size(1) * vectors:size(2), width) end
  local all = pg.cat({ words.rows, vectors }, 1):index(1, own and words.own or words.index)
  return all:reshape(words.count, all:size(1) / words.count, width)
end

--- Text features of length one.
-- @param task            of few_shot.task
-- @param words, vectors  as prompts.embed
-- @param deep            list of (M, D): vectors that stand in the places before blocks 2, 3, ...; or nil
-- @return (C, width), length one
function prompts.encode(task, words, vectors, deep)
  local options = deep and { prompts = prompts.text_hook(deep) } or nil
  return task.clip:encode_embedded(prompts.embed(words, vectors), words.eos, options):normalize()
end

--- The hook that puts vectors behind the start token, in place of those that came out of the block before.
-- @param deep  list of (M, D), for blocks 2, 3, ...
-- @return function(layer, x) -> x
function prompts.text_hook(deep)
  return function(layer, x)
    local v = layer > 1 and deep[layer - 1]
    if not v then return x end
    local count, length, m = x:size(1), x:size(2), v:size(1)
    return pg.cat({ x:narrow(2, 1, 1), v:reshape(1, m, v:size(2)):expand(count, m, v:size(2)),
      x:narrow(2, 2 + m, length - 1 - m) }, 2)
  end
end

--- The hook that appends vectors to the patches, and puts others in their place before later blocks. CLIP's first
-- LayerNorm acts on the first ones too, as in VPT's use for CLIP.
-- @param visual  the image tower
-- @param list    of (M, D), for blocks 1, 2, ...
-- @return function(layer, x) -> x
function prompts.image_hook(visual, list)
  return function(layer, x)
    local v = list[layer]
    if not v then return x end
    if layer == 1 and visual.norm_pre then v = visual.norm_pre(v) end
    local count, m = x:size(1), v:size(1)
    local kept = layer == 1 and x or x:narrow(2, 1, x:size(2) - m)
    return pg.cat({ kept, v:reshape(1, m, v:size(2)):expand(count, m, v:size(2)) }, 2)
  end
end

--- A module with weights of its own, equal to another's. @param module of pg.nn @return a module that can be trained
function prompts.copy(module)
  local copy = setmetatable({}, getmetatable(module))
  for key, value in pairs(module) do
    if nn.is_module(value) then value = prompts.copy(value)
    elseif pg.is_tensor(value) then value = value:detach():clone():requires_grad_(true) end
    rawset(copy, key, value)
  end
  return copy
end

return prompts
