-- prompt_pool.lua - what prompt-based continual learners share: prompts chosen or mixed for an image by how a frozen
-- encoder's feature of it, the query, agrees with keys.

local pg = require "perigee"

local pool = {}

--- Cosines of queries and keys. @param query (B, D) @param keys (P, D) @return (B, P)
function pool.cosine(query, keys) return query:normalize():matmul(keys:normalize():t()) end

--- The k prompts of an image whose keys agree most with its query (L2P: Wang et al., arXiv 2112.08654, equation 3).
-- @param query    (B, D)
-- @param keys     (P, D)
-- @param prompts  (P, L, W)
-- @param k        how many are taken
-- @return (B, k L, W), and the mean over images of the sum over those taken of 1 - cosine
function pool.select(query, keys, prompts, k)
  local b, length, width = query:size(1), prompts:size(2), prompts:size(3)
  local cosines = pool.cosine(query, keys)
  local _, index = pg.no_grad(function() return cosines:topk(k, 2) end)
  local chosen = prompts:reshape(prompts:size(1), length * width):index(1, index:reshape(b * k))
  return chosen:reshape(b, k * length, width), (1 - cosines:gather(2, index)):sum() * (1 / b)
end

--- Components mixed by attended queries (CODA-Prompt: Smith et al., arXiv 2211.13218, equations 3 to 5):
--   P(x) = sum_m cos(q * A_m, K_m) P_m
-- @param query       (B, D)
-- @param attention   A (M, D)
-- @param keys        K (M, D)
-- @param components  P (M, L, W)
-- @return (B, L, W)
function pool.mix(query, attention, keys, components)
  local m, length, width = components:size(1), components:size(2), components:size(3)
  local attended = query:matmul((attention * keys:normalize()):t())
  local size = (query ^ 2):matmul((attention ^ 2):t()):clamp(1e-24):sqrt() -- |q * A_m|
  return (attended / size):matmul(components:reshape(m, length * width)):reshape(query:size(1), length, width)
end

--- How far rows are from being orthonormal: mean over entries of (M M^T - 1)^2. @param m (N, D), or more dimensions,
-- which are taken as one
-- @return a scalar
function pool.orthogonality(m)
  local rows = m:reshape(m:size(1), m:numel() / m:size(1))
  return ((rows:matmul(rows:t()) - pg.eye(rows:size(1)):to(rows:dtype()):to(rows:device())) ^ 2):mean()
end

--- Gram-Schmidt: brings rows to length one, each at a right angle to the ones before it and to older ones, as far as
-- there is room; a row for which there is none keeps only its length.
-- @param rows   (N, D) or more dimensions, changed in place
-- @param older  (M, ...) orthonormal rows, or nil
function pool.gram_schmidt(rows, older)
  pg.no_grad(function()
    local n, width = rows:size(1), rows:numel() / rows:size(1)
    local flat = rows:detach():reshape(n, width):to("float64")
    local basis = older and { (older:detach():reshape(older:size(1), width):to("float64")) } or {}
    local done = {}
    for i = 1, n do
      local row = flat:narrow(1, i, 1):normalize()
      local rest = row
      for _ = 1, 2 do -- twice is enough (Kahan; Parlett)
        for _, b in ipairs(basis) do rest = rest - rest:matmul(b:t()):matmul(b) end
      end
      if rest:norm():item() > 1e-6 then
        rest = rest:normalize()
        basis[#basis + 1] = rest
      else rest = row end
      done[i] = rest
    end
    rows:copy_(pg.cat(done, 1):reshape(rows:shape()):to(rows:dtype()))
  end)
end

--- Runs a frozen tower with a prefix of keys and values at some of its blocks.
-- @param model   a tower
-- @param images  (B, C, S, S)
-- @param at      layer -> (B, 2 L, W): the first half of its tokens are keys, the second values
-- @return (B, D)
function pool.prefixed(model, images, at)
  return (model:forward_features(images, nil, { prompts = function(layer, x)
    local both = at[layer]
    if not both then return x end
    local half = both:size(2) / 2
    return x, { both:narrow(2, 1, half), both:narrow(2, half + 1, half) }
  end }))
end

--- Layers as an option gives them. @param where, text such as "1,2" @param model the tower @return a list of numbers
-- @raises on a layer that does not exist
function pool.layers(where, text, model) return pg.regularize.depths(where, text, model, 1) end

return pool
