-- registry_spec.lua - every op's samples on the device against the CPU, forward and backward; sizes around the edges of
-- tiles (tests/cuda/edges); other layouts; and the same bits whatever the order in which the device runs its threads.
--
-- Runs on the simulated device under sanitizers, and on a GPU with `make test-cuda CUDA=real`: nothing here knows which.

local pg = require "perigee"
local call = require "perigee.call"
local samples = require "samples"
local device = require "cuda.device"
local lfs = require "lfs"

local SIZES = { 1, 31, 32, 33, 127, 128, 129, 1000 }
local SEEDS = { 2, 3, 4, 5 } -- compared with seed 1, bit for bit
local TOLERANCE = { float32 = 2e-5, float64 = 1e-11 }

local edges = {} -- op -> templates in which N stands for a size
for file in lfs.dir "tests/cuda/edges" do
  if file:match "%.lua$" then
    for name, list in pairs(dofile("tests/cuda/edges/" .. file)) do
      assert(call.ops[name], file .. " names no op: " .. name)
      edges[name] = list
    end
  end
end

local function to_device(args) return samples.each_tensor(args, function(t) return t:to("cuda") end) end
local function to_host(t) return t:to("cpu") end

-- What an op gives, and what it leaves in the inputs that it writes to.
local function outputs(op, args)
  pg.seed(11)
  local list = { call.named(op.name, args) }
  for _, input in ipairs(op.inputs) do
    if input.written and args[input.name] ~= nil then
      for _, t in ipairs(input.list and args[input.name] or { args[input.name] }) do list[#list + 1] = t end
    end
  end
  for i, t in ipairs(list) do list[i] = to_host(t) end
  return list
end

-- Gradients of sum(w * output) over all outputs, with w the same on both sides. `again`: what backward reads is computed
-- by running the op, and one before it, once more.
local function gradients(op, args, again)
  local leaves = {}
  for _, input in ipairs(op.inputs) do
    local value = args[input.name]
    for _, t in ipairs(value == nil and {} or input.list and value or { value }) do
      if t:dtype():match "^float" and not input.no_grad then leaves[#leaves + 1] = t:requires_grad_(true) end
    end
  end
  if #leaves == 0 then return {} end
  local function run()
    return call.named(op.name, samples.each_tensor(args, function(t) return t:requires_grad() and t * 1 or t end))
  end
  pg.seed(11)
  local outs = { (again and pg.checkpoint or pg.scope)(run) }
  for i, out in ipairs(outs) do
    if out:requires_grad() then
      pg.seed(20 + i)
      out:backward { grad = pg.randn(out:shape()):to(out:dtype()):to(out:device()), retain = true }
    end
  end
  local list = {}
  for i, leaf in ipairs(leaves) do list[i] = leaf.grad and to_host(leaf.grad) or false end
  return list
end

local function compare(expected, got, tolerance, label)
  assert.are.equal(#expected, #got, label)
  for i = 1, #expected do
    assert.are.equal(not expected[i], not got[i], label .. " " .. i .. " is there on one side only")
    if expected[i] then
      assert.are.equal(expected[i]:dtype(), got[i]:dtype(), label)
      local worst = samples.largest_difference(expected[i], got[i])
      assert.is_true(worst <= tolerance, ("%s %d: differs by %g"):format(label, i, worst))
    end
  end
end

-- One call: device against host, then the other seeds against the first.
local function check(op, args, dtype, what)
  local tolerance = TOLERANCE[dtype]
  local run = what == "gradient" and gradients or outputs
  device.seed(1)
  local first = run(op, to_device(samples.fresh(args)))
  compare(run(op, samples.fresh(args)), first, tolerance, what)
  for _, seed in ipairs(SEEDS) do
    device.seed(seed)
    compare(first, run(op, to_device(samples.fresh(args))), 0, what .. " with seed " .. seed)
  end
  if run == gradients then compare(first, gradients(op, to_device(samples.fresh(args)), true), 0, "computed again") end
end

describe("on the device", function()
  for _, name in ipairs(call.names) do
    local op = call.ops[name]
    local has_gradient = not op.no_backward

    for number, text in ipairs(op.samples) do
      it(("%s sample %d: as on the CPU"):format(name, number), function()
        for _, dtype in ipairs { "float32", "float64" } do
          local args = samples.of(op, text, dtype)
          if pcall(call.named, name, samples.fresh(args)) then
            check(op, args, dtype, "output")
            if has_gradient then check(op, args, dtype, "gradient") end
          end
        end
      end)

      if not samples.writes(op) then
        it(("%s sample %d: other layouts"):format(name, number), function()
          local args = samples.of(op, text, "float32")
          local first = outputs(op, to_device(args))
          for layout, change in pairs(samples.layouts) do
            if name ~= "dropout" then
              compare(first, outputs(op, samples.each_tensor(to_device(args), change)), 2e-6, layout)
            end
          end
        end)
      end
    end

    for number, template in ipairs(edges[name] or {}) do
      it(("%s edge %d: %s"):format(name, number, template), function()
        for _, size in ipairs(SIZES) do
          local args = samples.of(op, (template:gsub("%f[%w]N%f[%W]", size)), "float32")
          local ok, message = pcall(function()
            check(op, args, "float32", "output")
            if has_gradient then check(op, args, "float32", "gradient") end
          end)
          if not ok then error(("N = %d: %s"):format(size, type(message) == "table" and message.message or message), 0) end
        end
      end)
    end
  end
end)
