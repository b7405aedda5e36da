-- gradcheck.lua - a gradient against central differences.

local util = require "perigee.util"

--- Compares the recorded gradient of fn with (f(x + h) - f(x - h)) / 2h, element by element, in float64.
-- @param fn      takes the tensors of `inputs`, returns one or several tensors; must be deterministic
-- @param inputs  list of contiguous float64 tensors; all of them are differentiated
-- @param options {eps = 1e-6 step, tolerance = 1e-6 largest |a - n| / max(1, |a|, |n|)}
-- @return the largest relative error
-- @raises with the input, the element and both values when the tolerance is exceeded; on inputs that are not float64
return function(fn, inputs, options)
  local pg = require "perigee"
  options = util.options("gradcheck", options, { eps = 1e-6, tolerance = 1e-6 })
  for i, x in ipairs(inputs) do
    util.check(x:dtype() == "float64" and x:is_contiguous(), "gradcheck: input %d must be contiguous float64", i)
  end
  local weights
  local function scalar() -- every output element weighs differently, so that no error cancels
    local outputs, total = { fn(unpack(inputs)) }, nil
    weights = weights or {}
    for i, y in ipairs(outputs) do
      if y:dtype() == "float64" then
        if not weights[i] then
          local w = {}
          for k = 1, y:numel() do w[k] = 0.5 + math.sin(1.7 * k + i) end
          weights[i] = pg.tensor(w, { dtype = "float64" }):reshape(y:shape())
        end
        local part = (y * weights[i]):sum()
        total = total and total + part or part
      end
    end
    return total
  end
  for _, x in ipairs(inputs) do
    x:requires_grad_(true)
    x.grad = nil
  end
  scalar():backward()
  local worst = 0
  for i, x in ipairs(inputs) do
    local analytic = x.grad and x.grad:reshape(x:numel()):totable() or {}
    local data = x:data()
    for k = 1, x:numel() do
      local kept, h = data[k - 1], options.eps * math.max(1, math.abs(data[k - 1]))
      local up, down = pg.no_grad(function()
        data[k - 1] = kept + h
        local high = scalar():item()
        data[k - 1] = kept - h
        local low = scalar():item()
        data[k - 1] = kept
        return high, low
      end)
      local numeric, a = (up - down) / (2 * h), analytic[k] or 0
      local err = math.abs(a - numeric) / math.max(1, math.abs(a), math.abs(numeric))
      if not (err <= options.tolerance) then -- luacheck: ignore 581 (NaN fails, too)
        util.fail(0, "gradcheck: input %d, element %d: gradient %.9g, central difference %.9g (relative error %.2g)", i, k,
          a, numeric, err)
      end
      worst = math.max(worst, err)
    end
  end
  return worst
end
