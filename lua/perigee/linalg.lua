-- linalg.lua - the decompositions of the core: float64 on the CPU, without gradients. They are what comparing Gaussians
-- needs (metrics/otdd.lua), by the LAPACK that comes with OpenBLAS.

local ffi = require "ffi"
local lib = require "perigee.ffi"
local call = require "perigee.call"
local util = require "perigee.util"

local linalg = {}

local function tensor(where, value)
  return util.check(call.is_tensor(value) and value, "%s: expected a tensor, got %s", where, call.describe(value))
end

--- Eigenvalues and eigenvectors of a symmetric matrix: x = V diag(w) V^T.
-- @param x  (N, N) float64 on the CPU; the lower half is read
-- @return w (N), rising, and V (N, N), whose column k belongs to w[k]
-- @raises on another shape, dtype or device, and on values that are not finite
function linalg.eigh(x)
  local out = ffi.new "pg_tensor *[2]"
  call.check(lib.pg_eigh(tensor("eigh", x), out, out + 1))
  return call.own(out[0]), call.own(out[1]):t()
end

--- Nuclear norms (sums of singular values) of F_i F_j^T for all pairs of a list of matrices. With centred samples as rows,
-- divided by the root of their number less one, F^T F is a covariance S, and the norm is tr((S_i^1/2 S_j S_i^1/2)^1/2):
-- what the distance of Bures and Wasserstein needs, for covariances without full rank too.
-- @param factors  list of (N_i, D) float64 on the CPU
-- @return (#factors, #factors) float64, symmetric; on the diagonal the traces of F_i F_i^T
-- @raises on another shape, dtype or device, and on values that are not finite
function linalg.nuclear_norms(factors)
  util.check(type(factors) == "table", "nuclear_norms: expected a list of tensors, got %s", call.describe(factors))
  local handles, out = ffi.new("pg_tensor *[?]", math.max(#factors, 1)), ffi.new "pg_tensor *[1]"
  for i, f in ipairs(factors) do handles[i - 1] = tensor("nuclear_norms", f) end
  call.check(lib.pg_nuclear_norms(handles, #factors, out))
  return call.own(out[0])
end

return linalg
