-- templates.lua - the sentences of zero-shot classification: one a data set, and a list to average over.

local util = require "perigee.util"

local templates = {}

-- The eleven data sets of CoOp (Zhou et al., arXiv 2109.01134), by their names in pg.data.load, with the sentence that
-- its code has for each; any other set has "a photo of a {}.".
local OF = {
  oxford_pets = "a photo of a {}, a type of pet.",
  oxford_flowers = "a photo of a {}, a type of flower.",
  fgvc_aircraft = "a photo of a {}, a type of aircraft.",
  dtd = "{} texture.",
  eurosat = "a centered satellite photo of {}.",
  food101 = "a photo of {}, a type of food.",
  ucf101 = "a photo of a person doing {}.",
}

--- The sentence of a data set or task. @param name of pg.data.load or pg.data.tasks @return a sentence with {}
function templates.of(name)
  for _, task in ipairs(require("perigee.data.tasks").list { aside = true }) do
    if task.name == name then return task.prompt end
  end
  return OF[name] or "a photo of a {}."
end

-- What may be said of any picture of a thing: every medium with every word for how it looks. Ours; CLIP's authors have
-- eighty for ImageNet, which templates.read takes from a file.
templates.list = {}
for _, medium in ipairs { "photo", "picture", "drawing" } do
  for _, look in ipairs { "a %s of a {}", "a good %s of a {}", "a bad %s of a {}", "a small %s of a {}",
    "a large %s of a {}", "a bright %s of a {}", "a dark %s of a {}", "a grey %s of a {}" } do
    templates.list[#templates.list + 1] = look:format(medium)
  end
end

--- Sentences of a file, one a line, each with {}. @param path of it @return a list
-- @raises one line on a file that is not there, on a line without {}
function templates.read(path)
  local file, why = io.open(path, "rb")
  util.check(file, "templates: %s", why)
  local list = {}
  for line in file:lines() do
    local text = line:gsub("%s+$", "")
    if text ~= "" then
      util.check(text:find("{}", 1, true), "%s: '%s' has no {} for the class's name", path, text)
      list[#list + 1] = text
    end
  end
  file:close()
  util.check(#list > 0, "%s: holds no sentence", path)
  return list
end

return templates
