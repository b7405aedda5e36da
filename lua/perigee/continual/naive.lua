-- naive.lua - plain fine-tuning, one task after the other: the lower bound.

return {
  help = "plain fine-tuning on each task in turn",
  source = "the lower bound of every comparison",
  options = { require("perigee.continual").logits "all" },
  new = function() return {} end,
}
