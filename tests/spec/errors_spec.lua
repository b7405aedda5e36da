-- errors_spec.lua - wrong calls, one a row: each is one line, at the line of the caller's chunk, and says the op, the
-- shapes and the positions (from 1) that the row lists.

local pg = require "perigee"

local words = { pg = pg, inf = math.huge, nan = 0 / 0, z = pg.zeros }
function words.ints(...) return pg.tensor({ ... }, { dtype = "int32" }) end
function words.bytes(...) return pg.tensor({ ... }, { dtype = "uint8" }) end
function words.table32(list) return pg.tensor(list, { dtype = "int32" }) end
function words.wide(...) return pg.zeros(...):to "float64" end

-- { an expression, or statements that begin with `local`; what the message must hold, ... }
local ROWS = {
  -- elementwise
  { [[z(2, 3) + z(4)]], "a (2, 3), b (4)" },
  { [[z(2) + wide(2)]], "a is float32, b is float64" },
  { [[z(2) * ints(1, 2)]], "a is float32, b is int32" },
  { [[bytes(1) - ints(1)]], "sub: dtypes differ: a is uint8, b is int32" },
  { [[z(2):lt(bytes(1, 2))]], "lt: dtypes differ: a is float32, b is uint8" },
  { [[z(2, 3):eq(z(3, 2))]], "a (2, 3), b (3, 2)" },
  { [[z(2):maximum(z(3))]], "maximum: shapes do not broadcast: a (2), b (3)" },
  { [[table32 { { 1, 2 }, { 3, 4 } } / table32 { { 1, 1 }, { 0, 1 } }]],
    "div: b[2, 1] is 0", "a (2, 2), b (2, 2)" },
  { [[ints(1, 2) / 0]], "div: b is 0" },
  { [[bytes(4) / bytes(0)]], "div: b[1] is 0, and uint8 has no quotient by 0" },
  { [[ints(2, 3) ^ ints(1, -2)]], "pow: b[2] is -2", "a (2), b (2)" },
  { [[ints(2, 3) ^ -1]], "pow_scalar: value = -1", "x (2)" },
  { [[ints(2) ^ 0.5]], "pow_scalar: value = 0.5 is no int32" },
  { [[ints(1) + 0.5]], "add_scalar: value = 0.5 is no int32" },
  { [[ints(1) + nan]], "add_scalar: value =", "nan is no int32" },
  { [[ints(1) * 2 ^ 31]], "value = 2147483648 is no int32" },
  { [[bytes(1) * -1]], "mul_scalar: value = -1 is no uint8" },
  { [[ints(1):gt(0.5)]], "gt: 0.5 is no int32" },
  { [[z(2, 3):clamp(1, 0)]], "clamp: lo = 1 and hi = 0; lo must be at most hi: x (2, 3)" },
  { [[z(2):clamp(nan, 0)]], "clamp: lo =", "lo must be at most hi: x (2)" },
  { [[pg.where(z(2), z(2), z(2))]], "where: cond must be uint8", "float32" },
  { [[bytes(1):where(z(1), wide(1))]], "where: dtypes differ: a is float32" },
  { [[bytes(1, 0):where(z(3), z(1))]], "do not broadcast: cond (2), a (3), b (1)" },
  -- shapes
  { [[z(3, 4):reshape(5, 3)]], "reshape: 12 elements do not fill (5, 3): x (3, 4)" },
  { [[z(3, 4):reshape(-1, 5)]], "12 elements do not fill (-1, 5): x (3, 4)" },
  { [[z(3, 4):reshape(-1, -1)]], "reshape: size -1; one size may be -1", "(3, 4)" },
  { [[z(3, 4):reshape(2 ^ 40, 2 ^ 40)]], "do not fill (1099511627776, 1099" },
  { [[z(3, 4):expand(2, 3, 5)]], "expand: dimension 3 of the result cannot be 5 where x has 4", "x (3, 4)" },
  { [[z(1):expand(2 ^ 40, 2 ^ 40)]], "expand: the result has more than 2^63" },
  { [[z(3, 5):narrow(2, 4, 3)]], "narrow: 3 elements from position 4 are not all within the 5 of dimension 2: x (3, 5)" },
  { [[z(3, 5):narrow(-1, -9, 1)]], "from position -9 are not", "x (3, 5)" },
  { [[z(3, 5):select(1, 4)]], "select: position 4 is outside the 3 of dimension 1: x (3, 5)" },
  { [[z(3):select(1, -4)]], "select: position -4 is outside the 3" },
  { [[z(3):select(1, 0)]], "select: index must be 1 or more, or negative", "got 0" },
  { [[z(3, 5):sum(3)]], "sum: dimension 3 does not exist: x (3, 5)" },
  { [[z(3, 5):sum(0)]], "sum: dim must be 1 or more", "got 0" },
  { [[z(3, 5):sum { 1, -2 }]], "sum: dimension 1 is named twice: x (3, 5)" },
  { [[z(3, 5):permute(1, 1)]], "permute: dimension 1 is named twice: x (3, 5)" },
  { [[z(3, 5):permute(1)]], "permute: 1 dimensions given for a tensor of 2" },
  { [[z(3, 5):squeeze(2)]], "squeeze: dimension 2 is not of size 1: x (3, 5)" },
  { [[z(3, 5):unsqueeze(4)]], "unsqueeze: dimension 4 is outside 1..3", "x (3, 5)" },
  { [[z(2, 3, 4):t()]], "t: takes a matrix", "a tensor (2, 3, 4) float32" },
  { [[z(6):split(0)]], "split: size 1 must be a whole number of 1 or more, got 0" },
  { [[z(6, 2):split { 2, 3 }]], "split: sizes {2, 3} add up to 5, dimension 1 has 6: a tensor (6, 2)" },
  { [[z(6, 2):split(2, 3)]], "split: dimension 3 does not exist: a tensor (6, 2)" },
  { [[z(2, 3):pad { 1, 2, 3 }]], "pad: pads come in pairs", "x (2, 3)" },
  { [[z(2, 3):pad { 1, 1, 1, 1, 1, 1 }]], "pad: pads for 3 dimensions, x has 2: x (2, 3)" },
  { [[bytes(1):pad({ 1, 1 }, -1)]], "pad: value = -1 is no uint8" },
  { [[z(4, 5, 3):crop(2, 1, 4, 5)]], "crop: 4 rows from position 2 are not all within 4: x (4, 5, 3)" },
  { [[z(4, 5):flip { 1, 1 }]], "flip: dimension 1 is named twice: x (4, 5)" },
  -- joining and picking
  { [[pg.cat({ z(2, 3), z(2, 3), z(2, 4) }, 1)]],
    "cat: tensor 1 is 3 wide in dimension 2, tensor 3 is 4; only dimension 1 may differ", "tensors (2, 3)", "(2, 4)" },
  { [[pg.cat { z(2, 3), z(2) }]], "cat: tensor 1 has 2 dimensions, tensor 2 has 1" },
  { [[pg.cat { z(2), ints(2) }]], "cat: dtypes differ: tensor 1 is float32, tensor 2 is int32" },
  { [[pg.cat(z(2, 3), z(2, 3))]], "cat: tensors must be a list", "a tensor (2, 3) float32" },
  { [[pg.cat {}]], "cat: tensors is missing" },
  { [[pg.stack { z(2), z(2), z(3) }]], "stack: tensor 3 has another shape", "(2)", "(3)" },
  { [[z(3, 5):index(2, ints(1, 5, 6))]], "index: index[3] = 6 is outside 1..5: x (3, 5), index (3)" },
  { [[z(3):index(1, ints(0))]], "index: index[1] = 0 is outside 1..3: x (3), index (1)" },
  { [[z(3):index(1, z(1))]], "index: index must be int32, it is float32" },
  { [[z(3):index(1, bytes(1))]], "index: index must be int32, it is uint8" },
  { [[z(2, 3):gather(2, table32 { { 1 }, { 4 } })]],
    "gather: index[2, 1] = 4 is outside 1..3: x (2, 3), index (2, 1)" },
  { [[z(2, 3):gather(2, table32 { { 1 } })]],
    "gather: x is 2 wide in dimension 1, index is 1; only dimension 2 may differ: x (2, 3), index (1, 1)" },
  { [[pg.scatter_add(z(3), ints(1, 2), z(3))]], "index and src need one shape", "src (3)" },
  { [[pg.embedding(z(5, 2), table32 { { 1, 2 }, { 3, 9 } })]],
    "embedding: index[2, 2] = 9 is outside 1..5: weight (5, 2), index (2, 2)" },
  { [[pg.cross_entropy(z(3, 4), ints(1, 2, 5))]], "labels[3] = 5 is outside 1..4", "(3, 4)" },
  { [[z(2, 3):topk(4)]], "topk: k = 4 is more than the 3 elements of dimension 2: x (2, 3)" },
  { [[z(2, 3):topk(0)]], "topk: k = 0 is outside 1.." },
  { [[pg.knn(z(2, 3), z(4, 3), { k = 5 })]], "knn: k = 5", "queries (2, 3), database (4, 3)" },
  { [[pg.knn(z(4, 3), z(4, 3), { k = 4, exclude_self = true })]], "k = 4", "3 others" },
  { [[pg.knn(pg.full({ 1, 2 }, nan), z(3, 2), { k = 1 })]], "knn: queries holds 2 values" },
  -- reductions
  { [[z(0, 3):max()]], "max: zero elements have no max: x (0, 3)" },
  { [[z(2, 0):argmin(2)]], "argmin: zero elements have no argmin: x (2, 0)" },
  { [[z(0):mean()]], "mean: zero elements have no mean: x (0)" },
  { [[ints(1, 2):mean()]], "mean: int32 is not supported on cpu; it takes float32, float64" },
  { [[z(3, 1):var(2)]], "var: one element has no unbiased variance", "x (3, 1)" },
  { [[z(3):norm { p = 0 }]], "norm: p = 0; it must be above 0: x (3)" },
  { [[z(3):norm { p = nan }]], "norm: p =", "is outside 0..inf" },
  { [[ints(2 ^ 31 - 1, 1):sum()]], "sum: the sum does not fit int32", "x (2)" },
  -- others
  { [[z(2, 3):matmul(z(4, 2))]], "matmul", "(2, 3)", "(4, 2)" },
  { [[pg.linear(z(2, 3), z(4, 2))]], "linear", "(2, 3)", "(4, 2)" },
  { [[pg.conv2d(z(1, 3, 5, 5), z(4, 2, 3, 3))]], "conv2d", "(1, 3, 5, 5)", "(4, 2, 3, 3)" },
  { [[bytes(1, 2):resize(2, 2)]], "resize: takes pictures (H, W, C)", "x (2)" },
  { [[pg.tensor(1):normalize()]], "normalize: needs at least one dimension" },
  { [[z(2, 3):normalize(3)]], "normalize: dimension 3 does not exist: x (2, 3)" },
  { [[z(2):softmax { dmi = 1 }]], "softmax: unknown parameter 'dmi' (did you mean 'dim'?)" },
  { [[z(2):exp(1)]], "exp: too many arguments" },
  { [[pg.add(z(2), nil)]], "add: b must be a tensor", "got nothing" },
  -- making, reading and changing
  { [[z(2 ^ 31, 2 ^ 31)]], "float32 (2147483648, 2147483648) asks for more than 64 TiB" },
  { [[z(2 ^ 53, 2 ^ 53, 2 ^ 53, 2 ^ 53, 2 ^ 53, 2 ^ 53, 2 ^ 53, 2 ^ 53)]], "asks for more than 64 TiB" },
  { [[z(0, 2 ^ 40, 2 ^ 40)]], "(0, 1099511627776, 1099511627776) asks for" },
  { [[z(2 ^ 70)]], "zeros: size 1 must be a whole number" },
  { [[z(2, 1.5)]], "zeros: size 2 must be a whole number, got 1.5" },
  { [[z(inf)]], "zeros: size 1 must be a whole number, got inf" },
  { [[z(1, 1, 1, 1, 1, 1, 1, 1, 1)]], "9 dimensions, at most 8" },
  { [[pg.full({ 2 }, 0.5, { dtype = "int32" })]], "full: 0.5 is no int32" },
  { [[pg.full(2, 3, 1)]], "full: takes a list of sizes" },
  { [[ints(1, 1.5)]], "tensor: 1.5 is no int32" },
  { [[bytes(300)]], "tensor: 300 is no uint8" },
  { [[pg.tensor { 1, "a" }]], "tensor: expected a number, got 'a'" },
  { [[pg.tensor { { 1, 2 }, { 3 } }]], "tensor: lists of unequal length: dimension 2 has 2" },
  { [[pg.arange(1, 2, 0)]], "arange: the step is 0" },
  { [[pg.arange(nan)]], "arange: expected a finite number" },
  { [[z(2, 3):get(1, 4)]], "get: position 4 is outside 1..3 of dimension 2: a tensor (2, 3)" },
  { [[z(2, 3):get(1)]], "get: 1 positions for a tensor (2, 3) float32" },
  { [[z(2, 3):item()]], "item: needs a tensor of one element, got a tensor (2, 3)" },
  { [[z(2, 3):size(3)]], "size: dimension 3 does not exist: a tensor (2, 3)" },
  { [[local x = z(2) x.grad = z(3)]], "grad: float32 (3) does not fit the tensor float32 (2)" },
  { [[local x = z(2) x.grad = wide(2)]], "grad: float64 (2) does not fit" },
  { [[local x = z(2) x.grad = 1]], "grad: expected a tensor, got 1" },
  { [[local x = z(2) x.gard = 1]], "a tensor has no field 'gard'" },
  { [[z(2):normalise()]], "no method 'normalise' (did you mean 'normalize'?)" },
  { [[z(2):copy_(z(3))]], "copy: shapes differ: destination (2), source (3)" },
  { [[z(2):copy_(3)]], "copy_: expected a tensor, got 3" },
  { [[z(2):fill_("a")]], "fill_: expected a number, got 'a'" },
  { [[bytes(1):fill_(256)]], "fill_: 256 is no uint8" },
  { [[z(2, { dtype = "float16" })]], "unknown dtype 'float16'", "float32, float64" },
  { [[z(2):to "int64"]], "to: 'int64' is neither a dtype", "int32" },
  { [[z(2):requires_grad_(true):backward()]], "this tensor has shape (2)" },
  { [[ints(1):requires_grad_(true)]], "requires_grad_: only float32 and float64" },
}

describe("a wrong call", function()
  it("there are many of them", function() assert.is_true(#ROWS >= 100) end)

  for _, row in ipairs(ROWS) do
    it(row[1], function()
      local code = row[1]:find "^local" and row[1] or "local _ = " .. row[1] -- no tail call: it would leave no line
      local ok, message = pcall(setfenv(assert(loadstring("\n" .. code, "@wrong.lua")), words))
      assert.is_false(ok)
      local text = message:match "^wrong%.lua:2: (.*)$"
      assert.is_truthy(text, message)
      assert.is_nil(text:find "\n", message)
      for i = 2, #row do assert.is_truthy(text:find(row[i], 1, true), ("%q lacks %q"):format(message, row[i])) end
    end)
  end
end)
