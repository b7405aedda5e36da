-- concepts.lua - procedural scenes (core/data/concepts.c) as labelled datasets, with captions and questions.
--
-- Each scene is drawn uniformly over shape, colour, texture, position, count, size and background; the task says which
-- of them is the label. Where the number or the place of shapes would be ambiguous there is one shape.

local ffi = require "ffi"
local lib = require "perigee.ffi"
local call = require "perigee.call"
local util = require "perigee.util"
local pg = require "perigee"
local random = require "perigee.data.random"

local concepts = {}

-- Value names of each property, in the order of the spec's columns.
concepts.fields = { "shape", "color", "texture", "position", "count", "size", "background" }
--- Value names of each property: a table name -> list, in the order of the labels.
concepts.values = {
  shape = { "circle", "square", "triangle", "star", "cross", "ring", "diamond", "pentagon" },
  color = { "red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink" },
  texture = { "solid", "striped", "checked", "dotted" },
  position = { "top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right" },
  count = { "one", "two", "three", "four" },
  size = { "small", "medium", "large" },
  background = { "dark", "grey", "light", "tinted", "gradient down", "gradient across", "dark clouds", "light clouds" },
}
local TASKS = { "shape", "color", "texture", "position", "count", "size" }

local Dataset = {}

local function spec_of(self, i)
  util.check(type(i) == "number" and i >= 1 and i <= #self.specs and i % 1 == 0, "concepts: scene %s is outside 1..%d",
    tostring(i), #self.specs)
  local words = {}
  for f, name in ipairs(concepts.fields) do words[name] = concepts.values[name][self.specs[i][f]] end
  return words, self.specs[i][5]
end

--- The properties of scene i. @param i scene, from 1 @return {shape =, color =, ... = a word of concepts.values} for every
-- field @raises on a scene that does not exist
function Dataset:words(i) return (spec_of(self, i)) end

--- The caption of scene i, such as "two small red striped stars" or "one large blue solid ring at the top left".
-- @param i  scene, from 1
-- @return text
-- @raises on a scene that does not exist
function Dataset:caption(i)
  local w, count = spec_of(self, i)
  local noun = count == 1 and w.shape or w.shape == "cross" and "crosses" or w.shape .. "s"
  local place = count == 1 and " at the " .. w.position or ""
  return ("%s %s %s %s %s%s"):format(w.count, w.size, w.color, w.texture, noun, place)
end

--- Questions about scene i with their answers.
-- @param i  scene, from 1
-- @return a list of {question =, answer =, about = property}
function Dataset:questions(i)
  local w, count = spec_of(self, i)
  local list = {
    { about = "shape", question = "what shape is it?", answer = w.shape },
    { about = "color", question = "what color is it?", answer = w.color },
    { about = "texture", question = "what is its texture?", answer = w.texture },
    { about = "count", question = "how many shapes are there?", answer = w.count },
    { about = "size", question = "how large is it?", answer = w.size },
  }
  if count == 1 then list[#list + 1] = { about = "position", question = "where is it?", answer = w.position } end
  return list
end

--- The labels of any one property, whatever the dataset's own task is.
-- @param name one of concepts.fields, such as "shape"
-- @return int32 (N) from 1, in the order of concepts.values[name]
function Dataset:property(name)
  local column
  for f, field in ipairs(concepts.fields) do
    if field == name then column = f end
  end
  util.check(column, "concepts: unknown property '%s' (did you mean '%s'?)", tostring(name),
    util.nearest(tostring(name), concepts.fields))
  local values = {}
  for i, spec in ipairs(self.specs) do values[i] = spec[column] end
  return pg.tensor(values, { dtype = "int32" })
end

-- A scene's spec: every property uniform, drawn again while a held-out combination comes up.
local function draw(generator, task, hold_out)
  local spec = {}
  repeat
    for f, name in ipairs(concepts.fields) do spec[f] = generator:below(#concepts.values[name]) end
    if task ~= "count" then spec[5] = 1 end
    local held = false
    for _, combination in ipairs(hold_out) do
      local all = true
      for f, name in ipairs(concepts.fields) do
        local value = combination[name]
        if value and value ~= concepts.values[name][spec[f]] then all = false end
      end
      held = held or all
    end
  until not held
  return spec
end

local function check_hold_out(hold_out)
  for _, combination in ipairs(hold_out) do
    util.check(type(combination) == "table" and next(combination) ~= nil,
      "concepts: hold_out must be a list of tables such as {color = 'red', shape = 'star'}")
    local fields = 0
    for name, value in pairs(combination) do
      local known = concepts.values[name]
      util.check(known, "concepts: hold_out: unknown property '%s' (did you mean '%s'?)", tostring(name),
        util.nearest(tostring(name), concepts.fields))
      local found = false
      for _, word in ipairs(known) do found = found or word == value end
      util.check(found, "concepts: hold_out: %s has no value '%s' (did you mean '%s'?)", name, tostring(value),
        util.nearest(tostring(value), known))
      fields = fields + 1
    end
    util.check(fields > 1, "concepts: hold_out: name at least two properties; one alone would empty a class")
  end
end

--- Renders a dataset of procedural scenes.
-- @param options {n = 1000, seed = 0, task = "shape" (color, texture, position, count, size), size = 32 pixels,
--   hold_out = list of combinations that never appear, each such as {color = "red", shape = "star"}}
-- @return dataset {name, images uint8 (N, S, S, 3), labels int32 (N), classes, specs}, with :words(i), :caption(i),
--   :questions(i), :property(name)
-- @raises on an unknown option, task, property or value
function concepts.new(options)
  options = util.options("concepts", options, { n = 1000, seed = 0, task = "shape", size = 32, hold_out = {} })
  local n, task, column = options.n, options.task, nil
  util.check(type(n) == "number" and n >= 1 and n % 1 == 0, "concepts: n must be a whole number, 1 or more, got %s",
    tostring(n))
  util.check(type(options.size) == "number", "concepts: size must be a number, got %s", tostring(options.size))
  for f, name in ipairs(TASKS) do
    if name == task then column = f end
  end
  util.check(column, "concepts: unknown task '%s' (did you mean '%s'?)", tostring(task),
    util.nearest(tostring(task), TASKS))
  check_hold_out(options.hold_out)
  local generator, specs = random.new(options.seed), {}
  for i = 1, n do specs[i] = draw(generator, task, options.hold_out) end
  local columns = #concepts.fields
  local table_of_specs, labels = pg.empty(n, columns, { dtype = "int32" }), pg.empty(n, { dtype = "int32" })
  local spec_data, label_data = table_of_specs:data(), labels:data()
  for i = 1, n do
    for f = 1, columns do spec_data[(i - 1) * columns + f - 1] = specs[i][f] - 1 end
    label_data[i - 1] = specs[i][column]
  end
  local out = ffi.new "pg_tensor *[1]"
  call.check(lib.pg_concepts_render(table_of_specs, options.size, options.seed, out))
  return { name = task, images = call.own(out[0]), labels = labels, classes = concepts.values[task], specs = specs,
    words = Dataset.words, caption = Dataset.caption, questions = Dataset.questions, property = Dataset.property }
end

return concepts
