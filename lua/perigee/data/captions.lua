-- captions.lua - what a picture is called: the texts of contrastive pre-training, and the prompts of zero-shot
-- classification. Each picture has several texts, from narrow to broad; training draws one of them every time.

local util = require "perigee.util"

local captions = {}

local function words(name) return (name:gsub("[_%-]+", " "):gsub("^%s+", ""):gsub("%s+$", "")) end

-- The subject in a file's name, up to its first number: "lemon slice" of lemon_slice_02_ganson.png.
local function subject(file)
  local name = words(file:match "([^/]+)%.%w+$"):lower():gsub("%d.*$", ""):gsub("[^%a ]", "")
  return (name:gsub("%s+", " "):gsub("^ ", ""):gsub(" $", ""))
end

--- The texts of a drawing of openclipart: what its file is named after, and the folders that it lies in.
-- @param file   its path
-- @param class  its class, the top folder
-- @return a list of texts
function captions.drawing(file, class)
  local narrow, kind, broad = subject(file), file:match("/" .. class .. "/([^/]+)/"), words(class)
  local list = { "a drawing of " .. broad }
  if kind then list[#list + 1] = "a drawing of " .. words(kind) end
  if #narrow > 2 then
    list[#list + 1] = "a drawing of " .. narrow
    list[#list + 1] = narrow .. ", " .. (kind and words(kind) or broad)
  end
  return list
end

--- The texts of a piece of clothing. @param class such as "ankle boot" @return a list of texts
function captions.clothes(class) return { "a photo of a " .. class, "a " .. class, "a grey photo of a " .. class } end

--- The texts of a scene of one shape: everything that is true of it, and each property by itself.
-- @param w  {shape =, color =, texture =, position =, size =}, words of pg.data.concept_values
-- @return a list of texts
function captions.scene(w)
  return {
    ("a %s %s %s %s at the %s"):format(w.size, w.color, w.texture, w.shape, w.position),
    ("a %s %s %s"):format(w.color, w.texture, w.shape),
    ("a %s %s at the %s"):format(w.color, w.shape, w.position),
    "a " .. w.shape,
    ("a %s shape"):format(w.color),
    ("a %s shape"):format(w.texture),
    ("a %s shape"):format(w.size),
    "a shape at the " .. w.position,
  }
end

--- The sentences of zero-shot classification, one a class.
-- @param prompt   a sentence with {} where the name goes, such as "a photo of a {}"
-- @param classes  names; underscores become spaces
-- @return a list of texts
-- @raises when the prompt has no {}
function captions.prompts(prompt, classes)
  util.check(type(prompt) == "string" and prompt:find("{}", 1, true), "prompts: '%s' has no {} for the class's name",
    tostring(prompt))
  local list = {}
  for i, name in ipairs(classes) do list[i] = prompt:gsub("{}", (name:gsub("_", " "):gsub("%%", "%%%%"))) end
  return list
end

return captions
