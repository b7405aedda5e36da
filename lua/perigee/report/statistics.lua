-- statistics.lua - mean and interval over seeds. The interval is Student's: mean -+ t s / sqrt(n), where s is the
-- sample's standard deviation and t the 97.5% quantile with n - 1 degrees of freedom.

local ffi = require "ffi"
ffi.cdef "double lgamma(double x);"

local statistics = {}

-- The regularised incomplete beta function I_x(a, b) for x < (a + 1) / (a + b + 2), by its continued fraction
-- (Abramowitz and Stegun 26.5.8), evaluated as Lentz does.
local function beta_fraction(a, b, x)
  local tiny = 1e-300
  local c, d = 1, 1 - (a + b) * x / (a + 1)
  d = 1 / (math.abs(d) < tiny and tiny or d)
  local h = d
  for m = 1, 300 do
    local step = 1
    for _, term in ipairs { m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
      -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)) } do
      d, c = 1 + term * d, 1 + term / c
      d = 1 / (math.abs(d) < tiny and tiny or d)
      c = math.abs(c) < tiny and tiny or c
      step = d * c
      h = h * step
    end
    if math.abs(step - 1) < 1e-15 then break end
  end
  local log = ffi.C.lgamma(a + b) - ffi.C.lgamma(a) - ffi.C.lgamma(b) + a * math.log(x) + b * math.log(1 - x)
  return math.exp(log) * h / a
end

-- P(|T| > t) for Student's t with `df` degrees of freedom (Abramowitz and Stegun 26.7.1).
local function two_tails(t, df)
  local a, b, x = df / 2, 0.5, df / (df + t * t)
  if x < (a + 1) / (a + b + 2) then return beta_fraction(a, b, x) end
  return 1 - beta_fraction(b, a, 1 - x)
end

local quantiles = {}

--- The 97.5% quantile of Student's t. @param df  degrees of freedom, 1 or more @return a number, right to twelve digits
function statistics.t(df)
  if not quantiles[df] then
    local low, high = 1.9, quantiles[df - 1] or 13 -- 1.96 for infinitely many, 12.71 for one; it falls in between
    while high - low > 1e-12 do
      local middle = (low + high) / 2
      if two_tails(middle, df) > 0.05 then low = middle else high = middle end
    end
    quantiles[df] = (low + high) / 2
  end
  return quantiles[df]
end

--- Mean and half the width of its 95% interval.
-- @param values  list of numbers
-- @return the mean, NaN when there is no value; half the width, NaN for fewer than two values
function statistics.interval(values)
  local n, sum, squares = #values, 0, 0
  for _, v in ipairs(values) do sum = sum + v end
  if n == 0 then return 0 / 0, 0 / 0 end
  local mean = sum / n
  for _, v in ipairs(values) do squares = squares + (v - mean) ^ 2 end
  if n < 2 then return mean, 0 / 0 end
  return mean, statistics.t(n - 1) * math.sqrt(squares / (n - 1) / n)
end

return statistics
