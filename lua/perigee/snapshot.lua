-- snapshot.lua - what a checkpoint holds, gathered from the objects themselves and given back to them.
--
--   local parts = { model = model, head = head, adamw = adamw, sampler = sampler }
--   run:checkpoint(parts, { step = step })            -- later, with the same objects made anew:
--   local saved = run:restore();  saved:into(parts)
--
-- An object is a module (state_dict), an optimiser (state() gives {tensors =, scalars =}), anything else whose state()
-- is plain data (a sampler, batches, a loader), or a tensor.

local util = require "perigee.util"

local snapshot, Saved = {}, {}
Saved.__index = Saved
local function pg() return require "perigee" end

-- An object's tensors by name, and its plain data.
local function pieces(name, object)
  if pg().is_tensor(object) then return { [""] = object }, nil end
  if object.state_dict then return object:state_dict(), nil end
  util.check(object.state, "snapshot: '%s' has neither state_dict() nor state()", name)
  local state = object:state()
  if state.tensors then return state.tensors, state.scalars end
  return {}, state
end

--- What there is to save of some objects.
-- @param parts  name -> object
-- @return name -> tensor, sharing memory with the objects, and name -> plain data
-- @raises on an object that has neither state_dict() nor state()
function snapshot.take(parts)
  local tensors, data = {}, {}
  for name, object in pairs(parts) do
    local own, plain = pieces(name, object)
    for key, t in pairs(own) do tensors[key == "" and name or name .. "." .. key] = t end
    data[name] = plain
  end
  return tensors, data
end

--- A checkpoint as read from a file.
-- @param tensors  name -> tensor
-- @param decoded  {state = what was saved with it, parts = plain data by name, generator = the global one's state}
-- @return an object with .state, :into(parts)
function snapshot.new(tensors, decoded)
  return setmetatable({ tensors = tensors, data = decoded.parts, generator = decoded.generator, state = decoded.state },
    Saved)
end

--- What was saved of one object, for one that is made from it: its tensors are not there yet, so that into() cannot fill
-- them.
-- @param name  as it was given to run:checkpoint
-- @return {tensors = name -> tensor, scalars = plain data}, as the object's state() gave it
-- @raises when nothing was saved of it
function Saved:part(name)
  local tensors = {}
  for key, t in pairs(self.tensors) do
    if key:sub(1, #name + 1) == name .. "." then tensors[key:sub(#name + 2)] = t end
  end
  util.check(next(tensors) or self.data[name], "checkpoint: nothing was saved of '%s'", name)
  return { tensors = tensors, scalars = self.data[name] }
end

--- Puts everything back, the global generator last.
-- @param parts name -> object, as they were given to run:checkpoint
-- @raises when a part is missing from the checkpoint or has another shape
function Saved:into(parts)
  for name, object in pairs(parts) do
    local own, plain = pieces(name, object)
    pg().no_grad(function()
      for key, t in pairs(own) do
        local full = key == "" and name or name .. "." .. key
        t:copy_(util.check(self.tensors[full], "checkpoint: there is no tensor '%s'", full))
      end
    end)
    if plain then
      local data = util.check(self.data[name], "checkpoint: nothing was saved of '%s'", name)
      object:restore(next(own) and { tensors = own, scalars = data } or data)
    end
  end
  pg().rng_state(self.generator)
end

return snapshot
