-- transformer.lua - what every tower is made of: the pre-LN block, and the walk through a tower's blocks.

local util = require "perigee.util"
local pg = require "perigee"
local nn = require "perigee.nn"

local transformer = {}

-- ---- blocks ---------------------------------------------------------------------------------------------------------

-- The gated layer of DINOv2's giant (Shazeer, arXiv 2002.05202): fc2(silu(a) * b), a and b the halves of fc1(x).
local SwiGLU = nn.class "SwiGLU"
function SwiGLU:init(width, hidden)
  self.hidden = hidden
  self.fc1 = nn.Linear(width, 2 * hidden, { std = 0.02 })
  self.fc2 = nn.Linear(hidden, width, { std = 0.02 })
end
function SwiGLU:forward(x)
  local both = self.fc1(x)
  return self.fc2(both:narrow(-1, 1, self.hidden):silu() * both:narrow(-1, self.hidden + 1, self.hidden))
end

-- x + scale1 * attention(norm1(x)), then the same with the MLP; the scales (LayerScale: Touvron et al., arXiv
-- 2103.17239) are DINOv2's alone.
local Block = nn.class "Block"
function Block:init(o)
  self.norm1 = nn.LayerNorm(o.width, { eps = o.eps })
  self.attention = nn.Attention(o.width, o.heads, { causal = o.causal })
  if o.scale then self.scale1 = pg.full({ o.width }, o.scale) end
  self.norm2 = nn.LayerNorm(o.width, { eps = o.eps })
  self.mlp = o.swiglu and SwiGLU(o.width, o.hidden) or nn.MLP(o.width, o.hidden, { act = o.act })
  if o.scale then self.scale2 = pg.full({ o.width }, o.scale) end
end
function Block:forward(x, prefix, at) -- with `at` that token alone, (B, 1, D); of the others it needs keys and values
  local change = self.attention(self.norm1(x), nil, prefix, at)
  if at then x = nn.token(x, at) end
  x = x + (self.scale1 and change * self.scale1 or change)
  change = self.mlp(self.norm2(x))
  return x + (self.scale2 and change * self.scale2 or change)
end

--- Blocks one after another.
-- @param o  {depth, width, heads, hidden, act, eps; causal, scale (where layer scale starts), swiglu}
-- @return nn.Sequential
function transformer.blocks(o)
  local blocks = nn.Sequential()
  for i = 1, o.depth do blocks[i] = Block(o) end
  return blocks
end

--- Marks every block in a module, itself included: backward computes again what the block made, or no longer.
-- @param module  nn.Module
-- @param on      boolean
-- @return how many blocks there are
function transformer.recompute(module, on)
  local count = 0
  if getmetatable(module) == Block then
    module.recompute, count = on, 1
  end
  for _, child in ipairs(module:children()) do count = count + transformer.recompute(child, on) end
  return count
end

-- ---- the walk -------------------------------------------------------------------------------------------------------

local function prompted(where, prompts, layer, x)
  local y, prefix = prompts(layer, x)
  util.check(pg.is_tensor(y) and y:dim() == 3 and y:size(1) == x:size(1) and y:size(3) == x:size(3),
    "%s: prompts(%d, x) must return tokens (%d, T, %d), got %s", where, layer, x:size(1), x:size(3),
    pg.is_tensor(y) and "(" .. table.concat(y:shape(), ", ") .. ")" or type(y))
  return y, prefix
end

--- Takes tokens through a tower's blocks.
-- @param where    the family, for messages
-- @param blocks   nn.Sequential
-- @param x        (B, T, D) tokens
-- @param depths   list of blocks after which the tokens are wanted, 0 being before the first; or nil
-- @param options  {prompts = function(layer, x) -> x, prefix}: called before block `layer`, 1 being the first; prefix, if
--   any, goes to its attention (nn.Attention); or nil
-- @param at       which token of each sequence is wanted at the end, as nn.token takes it, or a function of the tokens
--   before the last block that says which; the last block computes that one alone, unless its tokens are asked for
-- @return token `at` after the last block (B, D), and a list of the tokens asked for, in the order of `depths`
-- @raises on a depth that does not exist, and on prompts that return something else than tokens
function transformer.walk(where, blocks, x, depths, options, at)
  local wanted, maps, last = {}, {}, #blocks
  local prompts = options and util.options(where, options, { prompts = util.none }).prompts
  for i, depth in ipairs(depths or {}) do
    util.check(type(depth) == "number" and depth >= 0 and depth <= last and depth % 1 == 0,
      "%s: depth %s does not exist: they run from 0, the embedding, to %d", where, tostring(depth), last)
    wanted[depth] = wanted[depth] or {}
    table.insert(wanted[depth], i)
  end
  for depth = 0, last do
    if depth > 0 then
      local prefix
      if prompts then x, prefix = prompted(where, prompts, depth, x) end
      local block, before, only = blocks[depth], x, nil
      if depth == last then
        if type(at) == "function" then at = at(x) end
        only = not wanted[last] and at or nil
      end
      if block.recompute then x = pg.checkpoint(block, x, prefix, only)
      else -- a block's own tensors are let go of at once, but for what backward needs: a sixth of a step
        x = pg.scope(function() return block(before, prefix, only) end)
      end
      -- nobody else has it, and the collector would leave it until the next step's
      if depth > 1 and not prompts and not wanted[depth - 1] then before:free() end
    end
    for _, i in ipairs(wanted[depth] or {}) do maps[i] = x end
  end
  return (wanted[last] and nn.token(x, at) or x):select(2, 1), maps
end

-- ---- configurations -------------------------------------------------------------------------------------------------

local NO_COUNTS = { act = true, eps = true, eos = true }

--- Checks a tower's options: what counts something is a whole number, 1 or more; heads share the width evenly.
-- @param where    the function, for messages
-- @param options  table or nil
-- @param defaults table, as util.options takes it
-- @param free     {name = true} of further options that count nothing, or nil
-- @return a new table
-- @raises on an unknown option, and on a number that cannot be
function transformer.options(where, options, defaults, free)
  local o = util.options(where, options, defaults)
  for name, value in pairs(o) do
    util.check(NO_COUNTS[name] or free and free[name] or (type(value) == "number" and value >= 1 and value % 1 == 0),
      "%s: %s must be a whole number, 1 or more, got %s", where, name, tostring(value))
  end
  util.check(o.width % o.heads == 0, "%s: %d heads do not divide a width of %d", where, o.heads, o.width)
  util.check(not o.patch or o.image % o.patch == 0, "%s: patches of %s do not tile images of %s", where,
    tostring(o.patch), tostring(o.image))
  return o
end

return transformer
