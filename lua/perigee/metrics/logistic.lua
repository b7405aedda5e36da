-- logistic.lua - logistic regression on features that stand still, to its optimum, by L-BFGS (Liu and Nocedal, Math.
-- Programming 45, 1989): full batch, no learning rate to choose.

local util = require "perigee.util"

local function pg() return require "perigee" end

local ONE_PASS = 2 ^ 14 -- weights up to which softmax_regression is the faster one
local MEMORY = 10 -- pairs of steps and changes of the gradient that stand for the curvature

-- -H g from the pairs {s, y, rho = 1 / y.s}, the newest last: the two loops of algorithm 7.4 of Nocedal and Wright.
local function direction(g, pairs_)
  local q, along = -g, {}
  for i = #pairs_, 1, -1 do
    local p = pairs_[i]
    along[i] = p.rho * (p.s * q):sum():item()
    q = q - p.y * along[i]
  end
  local last = pairs_[#pairs_]
  if last then q = q / (last.rho * (last.y * last.y):sum():item()) end
  for i, p in ipairs(pairs_) do q = q + p.s * (along[i] - p.rho * (p.y * q):sum():item()) end
  return q
end

return function(metrics)
  --- Multinomial logistic regression with an L2 penalty on the weights, none on the biases:
  --   mean_i cross_entropy(W x_i + b, y_i) + l2 / 2 |W|^2
  -- scikit-learn's LogisticRegression(C = c) minimises the same with l2 = 1 / (c N).
  -- @param features  (N, D) float32 or float64
  -- @param labels    (N) int32 from 1
  -- @param options   {classes = the greatest label, l2 = 1 / N, tolerance = 1e-6: it ends when a step gains less than this
  --                  share of the loss, steps = 1000 at most}
  -- @return {weight (C, D), bias (C), loss, steps}
  -- @raises when features and labels differ in number, on options out of range
  function metrics.logistic_regression(features, labels, options)
    local p, n = pg(), features:size(1)
    local o = util.options("metrics.logistic_regression", options, { classes = util.none, l2 = 1 / n, tolerance = 1e-6,
      steps = 1000 })
    util.check(features:dim() == 2 and labels:dim() == 1, "logistic_regression: takes features (N, D) and labels (N)")
    util.check(n == labels:numel(), "logistic_regression: %d features for %d labels", n, labels:numel())
    util.check(type(o.l2) == "number" and o.l2 >= 0, "logistic_regression: l2 must be 0 or more, got %s", tostring(o.l2))
    local classes, width = o.classes or labels:to("float32"):max():item(), features:size(2)
    local like = { dtype = features:dtype(), device = features:device() }
    features = features:detach()
    local in_one_pass = classes * width <= ONE_PASS

    -- loss and gradient at theta, W and b one after the other
    local function evaluate(theta)
      return p.scope(function()
        local leaf = theta:detach():requires_grad_(true)
        local weight, bias = leaf:narrow(1, 1, classes * width), leaf:narrow(1, classes * width + 1, classes)
        weight = weight:reshape(classes, width)
        local loss = in_one_pass and p.softmax_regression(features, weight, bias, labels)
          or p.cross_entropy(p.linear(features, weight, bias), labels)
        loss = loss + (weight * weight):sum() * (o.l2 / 2)
        loss:backward()
        return loss:item(), leaf.grad
      end)
    end

    local theta, past, steps = p.zeros({ classes * (width + 1) }, like), {}, 0
    local loss, grad = evaluate(theta)
    while steps < o.steps do
      local move = direction(grad, past)
      local slope = (move * grad):sum():item()
      local size = #past > 0 and 1 or 1 / math.max(1e-12, grad:abs():sum():item())
      local after, after_loss, after_grad
      for _ = 1, 30 do -- halved until the loss falls by a share of what the slope promises
        after = theta + move * size
        after_loss, after_grad = evaluate(after)
        if after_loss <= loss + 1e-4 * size * slope then break end
        size = size / 2
      end
      local falls = after_loss < loss -- false for NaN too
      if not falls then break end
      steps = steps + 1
      local s, y = after - theta, after_grad - grad
      local curvature = (s * y):sum():item()
      if curvature > 0 then
        past[#past + 1] = { s = s, y = y, rho = 1 / curvature }
        if #past > MEMORY then table.remove(past, 1) end
      end
      local gain = loss - after_loss
      theta, loss, grad = after, after_loss, after_grad
      if steps > 1 and gain < o.tolerance * loss then break end
    end
    return { weight = theta:narrow(1, 1, classes * width):reshape(classes, width):contiguous(),
      bias = theta:narrow(1, classes * width + 1, classes):contiguous(), loss = loss, steps = steps }
  end
end
