-- l2sp.lua - the distance from the starting point:
--
--   weight * sum_p |p - p0|^2,    p over the encoder's parameters; the head is free
--
-- Source: docs/method.md, section 2.1.

local regularize = require "perigee.regularize"

return {
  help = "squared distance of the encoder's parameters from the pre-trained ones",
  source = "L2-SP: Li, Grandvalet, Davoine, arXiv 1802.01483",
  options = {
    { "weight", 0.5, min = 0, real = true, help = "factor of the penalty" },
  },
  new = function(pretrained, o)
    local start = {}
    for i, p in ipairs(pretrained:parameters()) do start[i] = p:detach():clone() end
    return { loss = function(batch)
      local total
      for i, p in ipairs(regularize.parameters("l2sp", batch, start)) do
        local distance = ((p - start[i]) ^ 2):sum()
        total = total and total + distance or distance
      end
      return total * o.weight
    end }
  end,
}
