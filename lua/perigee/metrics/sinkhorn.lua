-- sinkhorn.lua - entropic optimal transport between two weighted sets, by Sinkhorn's algorithm in the log domain
-- (docs/method.md, section 5; Peyre and Cuturi, arXiv 1803.00567, chapter 4).
--
--   OT(a, b) = min <C, P> + eps KL(P | a b^T)  over P with the marginals a and b
--            = max <a, f> + <b, g>,   f = softmin(C, g, log b),   g = softmin(C^T, f, log a)
--
-- A half-step is the op `softmin`; P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps) is only ever made when it is asked for.

local util = require "perigee.util"
local call = require "perigee.call"

local function pg() return require "perigee" end

local TOLERANCE = { float32 = 1e-4, float64 = 1e-7 }
local MOST = 80 -- exponents of the error: beyond, it is as wrong as can be, and still a number

local function weights_of(name, given, n, like)
  if given == nil then return (pg().zeros(n, { dtype = "float64" }) + 1 / n):to(like:dtype()):to(like:device()) end
  util.check(pg().is_tensor(given) and given:dim() == 1 and given:size(1) == n,
    "sinkhorn: %s must be a tensor of %d weights, got %s", name, n, call.describe(given))
  local weights = given:detach():to("float64")
  local sum = weights:sum():item()
  util.check(weights:min():item() >= 0 and math.abs(sum - 1) < 1e-4,
    "sinkhorn: %s must be 0 or more and sum to 1, got a least of %g and a sum of %g", name, weights:min():item(), sum)
  return weights:to(like:dtype()):to(like:device())
end

-- The blurs to pass through, from wide to eps: geomloss's schedule for p = 2, where each is scaling^2 times the last.
local function schedule(first, eps, scaling)
  local list, step = { first }, 2 * math.log(scaling)
  for i = 0, math.ceil((math.log(eps) - math.log(first)) / step) - 1 do
    list[#list + 1] = math.exp(math.log(first) + i * step)
  end
  list[#list + 1] = eps
  return list
end

-- sum_i a_i |exp((f_i - f'_i) / eps) - 1|: how far the plan's rows are from a, f' being the next f.
local function violation(a, f, after, eps)
  return (a * (((f - after) / eps):clamp(-math.huge, MOST):exp() - 1):abs()):sum():item()
end

local function expectation(a, f) return (a:to("float64") * f:to("float64")):sum():item() end

local function check_options(o)
  local function positive(name) util.check(type(o[name]) == "number" and o[name] > 0 and o[name] < math.huge,
    "sinkhorn: %s must be a number above 0, got %s", name, call.describe(o[name])) end
  positive "eps"
  positive "first_eps"
  util.check(type(o.scaling) == "number" and o.scaling >= 0 and o.scaling < 1,
    "sinkhorn: scaling must be at least 0 and below 1, got %s", call.describe(o.scaling))
  util.check(type(o.n_iter) == "number" and o.n_iter >= 0 and o.n_iter % 1 == 0,
    "sinkhorn: n_iter must be a whole number, 0 or more, got %s", call.describe(o.n_iter))
  util.check(type(o.tolerance) == "number" and o.tolerance >= 0, "sinkhorn: tolerance must be 0 or more, got %s",
    call.describe(o.tolerance))
end

-- From a wide blur down to eps: both sides at once, averaged with what they were; one whole step at the end. Returns the
-- potentials (of a symmetric problem, one) and how many steps that were.
local function anneal(o, to_f, to_g, f, g)
  local list = schedule(o.first_eps, o.eps, o.scaling)
  local function step(eps, share) -- share: of what is new
    local next_f, next_g = to_f(g, eps), not o.symmetric and to_g(f, eps)
    f = f * (1 - share) + next_f * share
    g = o.symmetric and f or g * (1 - share) + next_g * share
  end
  step(list[1], 1)
  for _, eps in ipairs(list) do step(eps, 0.5) end
  step(o.eps, 1)
  return f, g, #list
end

local function solve(cost, o)
  local p, n, m = pg(), cost:size(1), cost:size(2)
  local a = weights_of("a", o.a, n, cost)
  local b = o.symmetric and a or weights_of("b", o.b, m, cost)
  local log_a, log_b = a:log(), b:log()
  local f, g, iterations, err = a * 0, b * 0, 0, nil
  local function to_f(from, eps) return p.softmin(cost, from, log_b, eps) end
  local function to_g(from, eps) return p.softmin(cost, from, log_a, { eps = eps, transpose = true }) end

  if o.scaling > 0 then f, g, iterations = anneal(o, to_f, to_g, f, g) end
  if not o.symmetric and (o.n_iter > 0 or o.scaling == 0) then g = to_g(f, o.eps) end -- the columns are right
  for k = 0, o.n_iter do
    local after = to_f(g, o.eps)
    err = violation(a, f, after, o.eps)
    if err <= o.tolerance or k == o.n_iter then break end
    iterations = iterations + 1
    f = o.symmetric and (f + after) / 2 or after
    g = o.symmetric and f or to_g(f, o.eps)
  end
  local result = { value = expectation(a, f) + expectation(b, g), iterations = iterations, error = err }
  if not o.plan then return result, f, g end
  local plan = ((f:unsqueeze(2) + g:unsqueeze(1) - cost) / o.eps):exp() * a:unsqueeze(2) * b:unsqueeze(1)
  result.cost = expectation(plan, cost)
  return result, f, g, plan
end

return function(metrics)
  --- Entropic optimal transport between two weighted sets, in the log domain (docs/method.md, section 5). Alternates the two
  -- half-steps until the rows of the plan are within `tolerance` of a, its columns being exact. With `scaling`, that starts
  -- where geomloss ends: from a wide blur down to eps, both sides at once and averaged with what they were, then one whole
  -- step; `n_iter = 0` stops there, which is geomloss's answer.
  -- @param cost     C (N, M) float32 or float64, finite; no gradient flows back
  -- @param options  {eps = 0.1, n_iter = 1000, tolerance = 1e-4 for float32 and 1e-7 for float64, scaling = 0,
  --                 first_eps = max C, a, b, symmetric = false, plan = false}
  --   eps        the blur, in units of C: an absolute number, not a share of anything
  --   n_iter     the most iterations of two half-steps
  --   tolerance  on sum_i |(rows of P)_i - a_i|
  --   scaling    0: none; else eps shrinks by its square, from first_eps on (geomloss's 0.5)
  --   a, b       weights (N) and (M) that sum to one; uniform when absent
  --   symmetric  C is symmetric and b is a: one averaged potential, which converges in a few steps
  --   plan       also return the plan
  -- @return {value, f, g, iterations, error, plan, cost}
  --   value       <a, f> + <b, g>: at convergence <C, P> + eps KL(P | a b^T)
  --   f, g        the potentials, (N) and (M)
  --   iterations  done in all
  --   error       of the rows, as for tolerance
  --   plan, cost  P (N, M) and <C, P>, with plan = true
  -- @raises on a cost that is no finite matrix, on weights that do not fit it, and on options out of range
  function metrics.sinkhorn(cost, options)
    local p = pg()
    util.check(p.is_tensor(cost) and cost:dim() == 2 and TOLERANCE[cost:dtype()] and cost:numel() > 0,
      "sinkhorn: cost must be (N, M) float32 or float64 with at least one element, got %s", call.describe(cost))
    util.check(p.is_finite(cost), "sinkhorn: cost holds values that are not finite")
    cost = cost:detach():contiguous()
    local o = util.options("metrics.sinkhorn", options, { eps = 0.1, n_iter = 1000, tolerance = TOLERANCE[cost:dtype()],
      scaling = 0, first_eps = util.none, a = util.none, b = util.none, symmetric = false, plan = false })
    o.first_eps = o.first_eps or math.max(cost:max():item(), 1e-30)
    check_options(o)
    util.check(not o.symmetric or cost:size(1) == cost:size(2), "sinkhorn: symmetric, but cost is %s", call.describe(cost))
    local result, f, g, plan = p.scope(function()
      return p.no_grad(function() return solve(cost, o) end)
    end)
    result.f, result.g, result.plan = f, g, plan
    return result
  end
end
