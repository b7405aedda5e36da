-- registry_spec.lua - walks the op table and puts every op's samples through the same checks: views, gradients,
-- determinism, float32 against float64, and the text of errors. An op that is added is tested by being added.

local pg = require "perigee"
local call = require "perigee.call"

local samples = require "samples"
local sample, largest_difference, layouts, each_tensor, fresh, writes = samples.of, samples.largest_difference,
  samples.layouts, samples.each_tensor, samples.fresh, samples.writes

local function supports(op, args)
  local ok, result = pcall(call.named, op.name, args)
  if not ok then return false, result end
  return true
end

local function results(op, args) return { call.named(op.name, args) } end

-- The floating inputs that gradients flow to, as a list, and a function of such a list.
local function differentiable(op, args)
  local inputs, places = {}, {}
  for _, input in ipairs(op.inputs) do
    local value = args[input.name]
    if value ~= nil and not input.index and not input.no_grad then
      for i, t in ipairs(input.list and value or { value }) do
        if t:dtype() == "float64" then
          inputs[#inputs + 1] = t
          places[#places + 1] = { input.name, input.list and i }
        end
      end
    end
  end
  return inputs, function(...)
    local again = each_tensor(args, function(t) return t end)
    for k, place in ipairs(places) do
      if place[2] then again[place[1]][place[2]] = select(k, ...) else again[place[1]] = select(k, ...) end
    end
    pg.seed(11) -- an op that draws random numbers draws the same ones each time
    return call.named(op.name, again)
  end
end

-- ---- the walk ---------------------------------------------------------------------------------------------------------------

describe("every registered op", function()
  for _, name in ipairs(call.names) do
    local op = call.ops[name]

    it(name .. " has a doc line, samples, and a gradient or the reason why not", function()
      assert.is_true(#op.doc > 0)
      assert.is_true(#op.samples > 0)
      for _, p in ipairs(op.params) do assert.is_true(#p.help > 0, p.name .. " has no help") end
    end)

    for number, text in ipairs(op.samples) do
      local label = name .. " sample " .. number

      it(label .. ": views, runs and dtypes agree", function()
        local args = sample(op, text, "float32")
        local first = results(op, fresh(args))
        pg.seed(7) sample(op, text, "float32")
        for layout, change in pairs(layouts) do
          if not writes(op) then
            local random = op.name == "dropout"
            if not random then
              local again = results(op, each_tensor(args, change))
              for i = 1, #first do
                assert.is_true(largest_difference(first[i], again[i]) < 2e-6, layout .. " input, output " .. i)
              end
            end
          end
        end
        local same = sample(op, text, "float32")
        local repeated = results(op, fresh(same))
        for i = 1, #first do assert.are.equal(0, largest_difference(first[i], repeated[i])) end
        local double = sample(op, text, "float64")
        if supports(op, fresh(double)) then
          pg.seed(7)
          local wide = results(op, fresh(sample(op, text, "float64")))
          for i = 1, #first do
            if wide[i]:dtype() == "float64" then
              assert.is_true(largest_difference(wide[i], first[i]) < 1e-4, "float32 against float64, output " .. i)
            end
          end
        end
      end)

      if not op.no_backward then
        it(label .. ": gradient against central differences", function()
          local inputs, fn = differentiable(op, sample(op, text, "float64"))
          if #inputs > 0 then pg.gradcheck(fn, inputs, { tolerance = 1e-6 }) end -- else a sample of integers
          assert.is_true(#inputs > 0 or number > 1, "the sample has nothing to differentiate")
        end)

        it(label .. ": float32 gradients are the same bits twice, and computed again in a checkpoint", function()
          local function gradients(run)
            local args = sample(op, text, "float32")
            local leaves = {}
            for _, input in ipairs(op.inputs) do
              local value = args[input.name]
              for _, t in ipairs(value == nil and {} or input.list and value or { value }) do
                if t:dtype() == "float32" then leaves[#leaves + 1] = t:requires_grad_(true) end
              end
            end
            pg.seed(11)
            local y, total = { run(function()
              return call.named(name, each_tensor(args, function(t) return t:requires_grad() and t * 1 or t end))
            end) }, nil
            for _, out in ipairs(y) do
              if out:requires_grad() then total = total and total + out:sum() or out:sum() end
            end
            if total then total:backward() end
            return leaves
          end
          local function plain(fn) return fn() end
          local first, second, third = gradients(plain), gradients(plain), gradients(pg.checkpoint)
          local any = #first == 0 and number > 1 -- a sample of integers
          for i, leaf in ipairs(first) do
            if leaf.grad then
              any = true
              assert.are.equal(0, largest_difference(leaf.grad, second[i].grad))
              assert.are.equal(0, largest_difference(leaf.grad, third[i].grad))
            end
          end
          assert.is_true(any)
        end)
      end
    end

    it(name .. " names itself and its argument when a tensor is missing", function()
      if op.inputs[1].optional then return end
      local ok, message = pcall(op.call)
      assert.is_false(ok)
      assert.is_truthy(message:find(name, 1, true))
      assert.is_truthy(message:find(op.inputs[1].name, 1, true))
    end)

    it(name .. " refuses an unknown parameter and names the nearest", function()
      local args = sample(op, op.samples[1], "float32")
      args.no_such_parameter = 1
      local ok, message = pcall(call.named, name, args)
      assert.is_false(ok)
      assert.is_truthy(message:find("no_such_parameter", 1, true))
    end)
  end
end)
