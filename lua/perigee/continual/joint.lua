-- joint.lua - all tasks so far at once: the upper bound. It keeps every image, which continual learning may not.
--
-- start "carried" goes on from the model of the task before, so that step t has had the steps of t tasks; "pretrained"
-- begins anew each time.

local pg = require "perigee"

return {
  help = "trains on the images of all tasks so far: the upper bound",
  source = "the upper bound of every comparison",
  options = {
    { "start", "carried", choices = { "carried", "pretrained" }, help = "the encoder that each task starts from" },
  },
  new = function(learner, o)
    return {
      all_heads = true,
      images = function(t)
        local list = {}
        for i = 1, t do list[i] = { i } end
        return list
      end,
      begin = function()
        if o.start == "pretrained" then pg.models.mix(learner.model, learner.pretrained, 0) end
      end,
    }
  end,
}
