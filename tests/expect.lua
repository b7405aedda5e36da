-- expect.lua - what several specs ask of tensors and of errors.

local assert = require "luassert"

local expect = {}

--- Calls fn, which must raise one line that holds a text. @param text plain @param fn, ... the call
function expect.fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, "expected an error with '" .. text .. "'")
  assert.is_truthy(tostring(message):find(text, 1, true), tostring(message))
  assert.is_nil(tostring(message):find("\n", 1, true))
end

--- A check that two tensors are close, by their largest difference over the larger of 1 and the largest value expected.
-- @param tolerance  unless a call gives its own
-- @return function(expected, got, what, tolerance)
function expect.closer(tolerance)
  return function(expected, got, what, own)
    assert.are.same(expected:shape(), got:shape(), what)
    local worst = (expected - got:detach()):abs():max():item() / math.max(1, expected:abs():max():item())
    assert.is_true(worst < (own or tolerance), ("%s is off by %g"):format(what, worst))
  end
end

return expect
