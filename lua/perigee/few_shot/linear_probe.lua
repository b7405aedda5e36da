-- linear_probe.lua - a linear layer on frozen image features; the text tower is not used.
--
--   logits = W f + b,   cross-entropy over all images at once
--
-- It knows nothing of names that it was not trained on: these are told by the zero-shot classifier.
-- Source: docs/method.md, section 2.4.

local pg = require "perigee"

return {
  help = "a linear layer on frozen features; names that it was not trained on are told zero-shot",
  source = "Radford et al., arXiv 2103.00020, section 3.2",
  training = { optimizer = "AdamW", lr = 0.1, batch = 4096, epochs = 300, weight_decay = 0.01, schedule = "constant" },
  options = {},
  new = function(task)
    local f = task.features
    local layer = pg.nn.Linear(f:size(2), #task.classes):to(f:dtype()):to(f:device())
    return {
      module = layer, rows = #task.classes,
      classes = function(names, prompt)
        local weight = task:by_name(names, prompt, layer.weight)
        local shift = pg.cat({ layer.bias:reshape(#task.classes, 1),
          pg.zeros(#names, 1, { dtype = weight:dtype(), device = weight:device() }) }, 1)
        local known = {}
        for c, name in ipairs(task.classes) do known[name] = c end
        local index, scale = {}, {}
        for i, name in ipairs(names) do
          index[i], scale[i] = known[name] or #task.classes + i, known[name] and 1 or task.scale
        end
        local options = { dtype = weight:dtype(), device = weight:device() }
        return { weight = weight * pg.tensor(scale, options):reshape(#names, 1),
          bias = shift:index(1, pg.tensor(index, { dtype = "int32", device = weight:device() })):reshape(#names) }
      end,
      logits = function(batch, set) return batch.features:linear(set.weight, set.bias) end,
      loss = function(batch)
        return pg.cross_entropy(layer(batch.features), batch.labels), layer.weight, task.texts
      end,
    }
  end,
}
