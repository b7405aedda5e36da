-- checkpoint.lua - files of other libraries: configurations read field by field, and tensors between their names and
-- ours.
--
-- A layout is a list of rows {our name, their name, ...}. Where there are several of theirs, ours is their rows one
-- below another (q, k and v). `shape` is given where theirs has other sizes than ours for the same numbers,
-- `transposed` where theirs is a matrix on its side. A * in the names of a row stands for weight and bias.

local util = require "perigee.util"
local pg = require "perigee"
local lfs = require "lfs"
local cjson = require "cjson.safe"

local checkpoint = {}

-- ---- configurations -------------------------------------------------------------------------------------------------

--- Reads a file that holds one JSON object.
-- @param path  file name
-- @return a table
-- @raises one line that begins with the file: it cannot be read, or is no such thing
function checkpoint.read_json(path)
  local file, why = io.open(path, "rb")
  util.check(file, "cannot read %s", why)
  local text = file:read "*a"
  file:close()
  local value, fault = cjson.decode(text or "")
  return util.check(type(value) == "table" and value, "%s: not a JSON object%s", path, fault and ": " .. fault or "")
end

local Fields = {}
Fields.__index = Fields

--- The fields of a configuration; each question names the file and the field when it has no good answer.
-- @param path      of the file
-- @param values    its table
-- @param prefix    of names in messages, "" at the top
-- @param defaults  values of fields that may be absent, or nil
-- @return an object with the methods below, each of which raises unless the field has that kind
function checkpoint.fields(path, values, prefix, defaults)
  return setmetatable({ path = path, values = values, prefix = prefix or "", defaults = defaults or {} }, Fields)
end

--- The value, or nil where it is absent or null and has no default.
function Fields:optional(name)
  local value = self.values[name]
  if value == nil or value == cjson.null then value = self.defaults[name] end
  return value
end

local function shown(value) return type(value) == "table" and "a list or an object" or tostring(value) end

local function typed(kind, what)
  return function(self, name)
    local value = self:optional(name)
    util.check(value ~= nil, "%s: lacks the field %s%s", self.path, self.prefix, name)
    util.check(type(value) == kind and (what ~= "a whole number" or value % 1 == 0), "%s: %s%s must be %s, got %s",
      self.path, self.prefix, name, what, shown(value))
    return value
  end
end
Fields.number, Fields.whole = typed("number", "a number"), typed("number", "a whole number")
Fields.flag, Fields.table = typed("boolean", "true or false"), typed("table", "an object")

--- The activation, which must be an op that computes the same.
function Fields:activation(name)
  local value = typed("string", "a string")(self, name)
  util.check(value == "gelu" or value == "quick_gelu" or value == "relu" or value == "silu",
    "%s: %s%s is '%s': the activations known are gelu, quick_gelu, relu and silu", self.path, self.prefix, name, value)
  return value
end

--- Raises when the field is there and has another value than the only one that is built.
function Fields:only(name, value)
  local given = self:optional(name)
  util.check(given == nil or given == value, "%s: %s%s = %s is not supported, only %s", self.path, self.prefix, name,
    shown(given), tostring(value))
end

-- ---- names ----------------------------------------------------------------------------------------------------------

--- Adds rows to a layout.
-- @param layout        list
-- @param ours, theirs  what stands before the names of either side
-- @param rows          list of rows
function checkpoint.add(layout, ours, theirs, rows)
  for _, row in ipairs(rows) do
    for _, part in ipairs(row[1]:find("*", 1, true) and { "weight", "bias" } or { "" }) do
      local entry = { shape = row.shape, transposed = row.transposed }
      for i, name in ipairs(row) do entry[i] = (i == 1 and ours or theirs) .. name:gsub("%*", part) end
      layout[#layout + 1] = entry
    end
  end
end

-- The shape of each of their tensors in a row, of which ours is `t`.
local function their_shape(row, t)
  local shape = row.shape or t:shape()
  if row.transposed then shape = { shape[2], shape[1] } end
  if #row > 2 then shape[1] = shape[1] / (#row - 1) end
  return shape
end

--- A model's tensors by our names: its parameters, and what it keeps for its files alone.
-- @param model  a module; .kept, {name = tensor} or nil
-- @return {name = tensor}
function checkpoint.state(model)
  local state = model:state_dict()
  for name, t in pairs(model.kept or {}) do state[name] = t end
  return state
end

--- Tensors under the names of the files.
-- @param layout   list of rows
-- @param tensors  {our name = tensor}, as checkpoint.state gives
-- @return {their name = tensor}
function checkpoint.to_theirs(layout, tensors)
  local out = {}
  for _, row in ipairs(layout) do
    local t = tensors[row[1]]
    local shape, count = their_shape(row, t), #row - 1
    if row.transposed then t = t:t() end
    for i = 1, count do
      local part = count == 1 and t or t:narrow(1, (i - 1) * shape[1] + 1, shape[1])
      out[row[i + 1]] = part:reshape(shape)
    end
  end
  return out
end

local function size_text(shape) return "(" .. table.concat(shape, ", ") .. ")" end

-- "missing: a, b, c and 9 more"
local function listed(kind, names)
  local most = 4
  local text = table.concat(names, ", ", 1, math.min(#names, most))
  return kind .. ": " .. text .. (#names > most and (" and %d more"):format(#names - most) or "")
end

--- Puts a file's tensors into a model.
-- @param path     of the file, for messages
-- @param model    whose tensors have our names
-- @param layout   list of rows
-- @param tensors  {their name = tensor}; emptied on the way, so that memory holds each value once
-- @param ignored  list of patterns of names that may be there and are not used
-- @raises one line that lists what is missing, extra and mis-shaped; the model is then unchanged
function checkpoint.fill(path, model, layout, tensors, ignored)
  local own, known, missing, extra, shapes = checkpoint.state(model), {}, {}, {}, {}
  for _, row in ipairs(layout) do
    local shape = their_shape(row, own[row[1]])
    for i = 2, #row do
      local t = tensors[row[i]]
      known[row[i]] = true
      if not t then missing[#missing + 1] = row[i]
      elseif size_text(t:shape()) ~= size_text(shape) then
        shapes[#shapes + 1] = ("%s is %s, should be %s"):format(row[i], size_text(t:shape()), size_text(shape))
      end
    end
  end
  for name in pairs(tensors) do
    local expected = known[name]
    for _, pattern in ipairs(ignored) do expected = expected or name:find(pattern) end
    if not expected then extra[#extra + 1] = name end
  end
  table.sort(extra)
  local wrong = {}
  if #missing > 0 then wrong[#wrong + 1] = listed("missing", missing) end
  if #extra > 0 then wrong[#wrong + 1] = listed("extra", extra) end
  if #shapes > 0 then wrong[#wrong + 1] = listed("mis-shaped", shapes) end
  util.check(#wrong == 0, "%s: does not fit its configuration: %s", path, table.concat(wrong, "; "))
  for _, row in ipairs(layout) do
    local target, first = own[row[1]], 1
    for i = 2, #row do
      local part = tensors[row[i]]:to(target:dtype())
      if row.transposed then part = part:t() end
      if #row == 2 then target:copy_(part:reshape(target:shape()))
      else
        target:narrow(1, first, part:size(1)):copy_(part)
        first = first + part:size(1)
      end
      tensors[row[i]]:free()
      tensors[row[i]] = nil
    end
  end
end

-- ---- folders --------------------------------------------------------------------------------------------------------

local function is_file(path) return lfs.attributes(path, "mode") == "file" end

--- The first of some files that is there.
-- @param folder  where
-- @param names   list
-- @return its path, or nil
function checkpoint.find(folder, names)
  for _, name in ipairs(names) do
    if is_file(folder .. "/" .. name) then return folder .. "/" .. name end
  end
end

--- Reads tensors from a file or, through its index, from shards.
-- @param path  *.safetensors or *.safetensors.index.json
-- @return {name = tensor} and metadata
-- @raises as pg.safetensors.load
function checkpoint.read_tensors(path)
  if path:match "%.index%.json$" then return pg.safetensors.load_sharded(path) end
  return pg.safetensors.load(path)
end

return checkpoint
