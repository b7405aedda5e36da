-- ldifs.lua - the distance of features at several depths:
--
--   weight * mean over depths, batch, tokens and channels of (u(z) - u(z0))^2,    z, z0 token maps (B, T, D)
--
-- u brings vectors to length one: along the tokens of each channel (norm_axis "token", which is what the authors' code
-- does), or along the channels of each token ("channel", as LPIPS does over its channels).
-- Source: docs/method.md, section 2.1.

local regularize = require "perigee.regularize"

-- The embedding and the blocks at each quarter of the depth.
local function quarters(depth)
  local list = { 0 }
  for i = 1, 4 do
    local at = math.floor(depth * i / 4 + 0.5)
    if at > list[#list] then list[#list + 1] = at end
  end
  return list
end

return {
  help = "squared distance of normalised token maps at several depths from the pre-trained ones",
  source = "LDIFS: Mukhoti et al., arXiv 2308.13320; omegafragger/ldifs_code",
  options = {
    { "weight", 10, min = 0, real = true, help = "factor of the penalty" },
    { "norm_axis", "token", choices = { "token", "channel" }, help = "what is brought to length one" },
    { "depths", "quarters", list = true,
      help = "maps compared: quarters (the embedding and each quarter), all, or a list; 0 is the embedding" },
  },
  new = function(pretrained, o)
    local depths = o.depths == "quarters" and quarters(pretrained.depth)
      or regularize.depths("ldifs", o.depths, pretrained, 0)
    local function unit(map)
      return (o.norm_axis == "token" and map:transpose(2, 3) or map):normalize { eps = 1e-10 }
    end
    return { depths = depths, loss = function(batch)
      local after, before = regularize.maps("ldifs", pretrained, batch, depths)
      local total
      for i, map in ipairs(after) do
        local distance = ((unit(map) - unit(before[i])) ^ 2):mean()
        total = total and total + distance or distance
      end
      return total * (o.weight / #depths)
    end }
  end,
}
