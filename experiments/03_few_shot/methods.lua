-- methods.lua - what sweep.lua and weights.lua run: the methods in three groups, those of one sharing a process, and the tasks.

local experiment = {}

-- Heads are classifiers on frozen features, words learnt text prompts, towers act inside the image tower.
experiment.groups = {
  heads = { "linear_probe", "tip_adapter_f", "clap" },
  words = { "coop", "cocoop", "kgcoop", "prograd" },
  towers = { "maple", "prompt_src", "clipood", "fd_align" },
}

-- The weights of FDA and of Proxy-FDA, each the best by H of those that weights.lua tries.
experiment.weights = {
  linear_probe = { 1, 1 }, tip_adapter_f = { 10, 10 }, clap = { 0.1, 0.1 },
  coop = { 1, 1 }, cocoop = { 1, 0.1 }, kgcoop = { 0.1, 0.1 }, prograd = { 0.1, 0.1 },
  maple = { 10, 10 }, prompt_src = { 10, 1 }, clipood = { 10, 0.1 }, fd_align = { 10, 10 },
}

-- Two publications have four images a batch for towers and one 36, and FDA wants classes of several images: all have about 32,
-- so that a method and the same with FDA make as many steps of as many images.
experiment.towers = { batch = "32", epochs = "20", classes = 8, per_class = 4 }

-- Base halves of two classes have no neighbours to keep (texture, count, size, clipart_rotation). The rarest class of
-- clipart_kind has seven images in its training part: it is run with four.
experiment.tasks, experiment.kind = "fashion_mnist,openclipart,tuxpaint,shape,color", "clipart_kind"

--- A comma-separated list. @param group of the three @param each function: method -> list of texts @return text
function experiment.list(group, each)
  local list = {}
  for _, name in ipairs(experiment.groups[group]) do
    for _, text in ipairs(each(name)) do list[#list + 1] = text end
  end
  return table.concat(list, ",")
end

return experiment
