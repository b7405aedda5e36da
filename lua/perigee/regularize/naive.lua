-- naive.lua - nothing is added: plain fine-tuning. LP-FT differs from it in its head alone, a linear probe in that the
-- encoder stays.

return {
  help = "plain fine-tuning: nothing is added to the task loss",
  source = "Kumar et al., arXiv 2202.10054",
  options = {},
  new = function() return { loss = function() end } end,
}
