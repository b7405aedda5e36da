-- tutorial_spec.lua - the op of docs/04-adding-an-op.md, built word for word: its C file and its CUDA sibling are copied
-- into a tree of links, its line into ops.def, and its samples go through the specs that every op goes through.

local process = require "process"
local device = require "cuda.device"
local sh, quote = process.sh, process.quote

local function block(kind)
  local inside, lines = false, {}
  for line in io.lines "docs/04-adding-an-op.md" do
    if line == "```" .. kind and #lines == 0 then inside = true
    elseif line:match "^```" then inside = false
    elseif inside then lines[#lines + 1] = line end
  end
  return table.concat(lines, "\n") .. "\n"
end

local function write(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
end

describe("the tutorial's op", function()
  if not device.simulated then return end
  local tree = os.tmpname()
  os.remove(tree)
  teardown(function() sh("rm -rf " .. quote(tree)) end)

  it("builds, and passes the registry's checks on the CPU and on the device", function()
    local status, said = sh(([[
      mkdir -p %s && cp -r core lua Makefile tests %s/ && cp -r build %s/build]]):gsub("%%s", quote(tree)))
    assert.are.equal(0, status, said)
    write(tree .. "/core/ops/softsign.c", block "c")
    write(tree .. "/core/ops/softsign.cu", block "cuda")
    write(tree .. "/tests/cuda/edges/softsign.lua", 'return { softsign = { "{x = randn(N)}" } }\n')
    local file = assert(io.open(tree .. "/core/ops.def", "ab"))
    file:write "OP(softsign)\n"
    file:close()
    status, said = sh(("cd %s && env -u LD_PRELOAD make cpu build/simt-san/libperigee_cuda_sim.so"):format(quote(tree)))
    assert.are.equal(0, status, said)
    status, said = sh(("cd %s && export LUA_PATH='lua/?.lua;lua/?/init.lua;tests/?.lua;;' && env -u LD_PRELOAD busted "
      .. "--lua=/usr/bin/luajit -o plainTerminal --filter=softsign tests/spec/registry_spec.lua"):format(quote(tree)))
    assert.are.equal(0, status, said)
    assert.is_truthy(said:find "6 successes / 0 failures / 0 errors", said)
    status, said = sh(("cd %s && tests/cuda/run.sh --filter=softsign tests/cuda/registry_spec.lua"):format(quote(tree)))
    assert.are.equal(0, status, said)
    assert.is_truthy(said:find "3 successes / 0 failures / 0 errors", said)
  end)
end)
