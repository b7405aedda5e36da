-- icarl.lua - iCaRL: a memory of exemplars, distillation of what old classes were, and the nearest mean for a
-- classifier.
--
--   loss  mean over images and classes of  softplus(z) - y z        (binary cross-entropy of sigmoid(z))
--         y = sigmoid(old logit) for classes of earlier tasks, one-hot for those of this one
--   after each task: memory / classes exemplars a class, by herding (perigee/exemplars.lua)
--   test: the class whose exemplars' mean feature is nearest
--
-- The paper sums over classes where mammoth's mean is taken here. A head's classes are told apart by single sigmoids,
-- so that it starts at random. flip averages each exemplar with its mirror image, as the authors' code does; not by
-- default, as left and right matter in some of our tasks. Batches stay class-balanced, so that exemplars come oftener
-- than by their number.

local pg = require "perigee"
local exemplars = require "perigee.exemplars"

return {
  help = "exemplars chosen by herding, distillation by sigmoids, nearest mean of exemplars",
  source = "iCaRL: Rebuffi et al., arXiv 1611.07725, algorithms 1 to 5",
  head = "random",
  options = {
    { "memory", 200, min = 1, help = "budget of the exemplar memory, in images" },
    { "flip", false, help = "means are over exemplars and their mirror images" },
  },
  new = function(learner, o)
    local hooks, notes = { wants_reference = true, all_heads = true }, learner.notes
    exemplars.share(o.memory, learner.tasks.classes)
    if not notes.exemplars then notes.exemplars = {} end -- class -> positions in the training images of its task

    local function task_of(class)
      for i, task in ipairs(learner.tasks) do
        if class <= task.first + #task.classes then return i, task end
      end
    end

    function hooks.images(t)
      local list = {}
      for class, positions in ipairs(learner.notes.exemplars) do
        local i = task_of(class)
        if i < t then list[#list + 1] = { i, positions } end
      end
      list[#list + 1] = { t }
      return list
    end

    function hooks.begin()
      hooks.features = learner.t > 1 and learner:features(learner.reference.model) or nil
      hooks.means = nil
    end

    function hooks.task_loss(batch)
      local logits, first = learner.heads(batch.features), learner.task.first
      local one_hot = pg.eye(logits:size(2)):to(logits:dtype()):to(logits:device()):index(1, batch.labels)
      local targets = one_hot:narrow(2, first + 1, logits:size(2) - first)
      if learner.t > 1 then
        local old = hooks.features:index(1, batch.positions)
        targets = pg.cat({ pg.no_grad(function() return learner.reference.heads(old):sigmoid() end), targets }, 2)
      end
      return (logits:softplus() - logits * targets):mean()
    end

    local function mean_of(encode, images)
      local features = pg.metrics.encode(encode, images)
      if o.flip then
        features = pg.cat({ features:normalize(), pg.metrics.encode(encode, images:flip { 3 }):normalize() }, 1)
      end
      return exemplars.prototype(features)
    end

    function hooks.finish()
      local task, encode = learner.task, learner:encoder()
      local count, list = exemplars.share(o.memory, task.first + #task.classes), learner.notes.exemplars
      for class = 1, task.first do
        for k = #list[class], count + 1, -1 do list[class][k] = nil end
      end
      local features, members = pg.metrics.encode(encode, task.train.images), {}
      for i, class in ipairs(task.train.labels:totable()) do
        members[class] = members[class] or {}
        table.insert(members[class], i)
      end
      for class = task.first + 1, task.first + #task.classes do
        list[class] = {}
        if members[class] then
          local own = pg.tensor(members[class], { dtype = "int32" }):to(features:device())
          for k, at in ipairs(exemplars.herd(features:index(1, own), count)) do list[class][k] = members[class][at] end
        end
      end
      hooks.means = nil
    end

    -- The means of all classes so far, by the model as it is now.
    local function means()
      local rows, encode = {}, learner:encoder()
      for class, positions in ipairs(learner.notes.exemplars) do
        local _, task = task_of(class)
        if #positions > 0 then
          rows[class] = mean_of(encode, task.train.images:index(1, pg.tensor(positions, { dtype = "int32" })
            :to(task.train.labels:device())))
        else -- no image, and never the nearest
          rows[class] = pg.zeros(1, learner.model.width):to(task.train.images:device())
        end
      end
      return pg.cat(rows, 1)
    end

    function hooks.scores(features, first, last)
      local from, to = learner.tasks[first].first, learner.tasks[last].first + #learner.tasks[last].classes
      if to > #learner.notes.exemplars then return nil end -- nothing is kept of these yet
      hooks.means = hooks.means or means()
      return exemplars.nearest(features, hooks.means:narrow(1, from + 1, to - from))
    end

    return hooks
  end,
}
