-- exemplars.lua - a memory of old images with a stated budget: which of a class are kept, and how classes are told by
-- them.

local util = require "perigee.util"
local pg = require "perigee"

local exemplars = {}

--- How many images of each class a budget leaves: floor(budget / classes).
-- @param budget   images in all
-- @param classes  how many classes share it
-- @return a whole number, 1 or more
-- @raises when there would be less than one image a class
function exemplars.share(budget, classes)
  util.check(budget >= classes, "memory: %d images are less than one for each of %d classes", budget, classes)
  return math.floor(budget / classes)
end

--- Herding: the images whose mean stays nearest to the class's mean, one after the other (iCaRL: Rebuffi et al., arXiv
-- 1611.07725, algorithm 4), on features of length one. Dropping the last ones leaves the choice of a smaller memory.
--   p_k = argmin over x not yet taken of | mu - (phi(x) + sum over j < k of phi(p_j)) / k |
-- @param features  (N, D) of one class
-- @param count     how many; all where there are fewer
-- @return a list of positions, first chosen first; of equal distances the lower position
function exemplars.herd(features, count)
  return pg.no_grad(function()
    local unit = features:detach():to("float64"):normalize()
    local mu, sum, taken, order = unit:mean(1, true), nil, {}, {}
    for k = 1, math.min(count, unit:size(1)) do
      local means = (sum and unit + sum or unit) * (1 / k)
      local distance, best = ((means - mu) ^ 2):sum(2):totable(), nil
      for i, d in ipairs(distance) do
        if not taken[i] and (not best or d < distance[best]) then best = i end
      end
      order[k], taken[best] = best, true
      local own = unit:narrow(1, best, 1)
      sum = sum and sum + own or own
    end
    return order
  end)
end

--- Mean of features of length one, brought to length one again. @param features (N, D) @return (1, D)
function exemplars.prototype(features)
  return pg.no_grad(function() return features:detach():normalize():mean(1, true):normalize() end)
end

--- Nearest mean: minus the squared distance of features of length one from each class's prototype.
-- @param features    (N, D)
-- @param prototypes  (C, D) of length one
-- @return (N, C); the greatest is the nearest
function exemplars.nearest(features, prototypes)
  return pg.no_grad(function() return features:normalize():matmul(prototypes:t()) * 2 - 2 end)
end

return exemplars
