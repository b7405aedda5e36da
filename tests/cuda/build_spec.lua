-- build_spec.lua - `make` says what it built, with nvcc and without; the plug-in says why there is no GPU.

local process = require "process"
local device = require "cuda.device"
local sh = process.sh

local function last_line(text) return text:match "([^\n]*)\n*$" end

describe("make", function()
  it("does without nvcc, and says so", function()
    local status, said = sh "env -u LD_PRELOAD -u MAKEFLAGS -u MAKELEVEL make --no-print-directory NVCC= all"
    assert.are.equal(0, status, said)
    assert.is_truthy(last_line(said):find "^perigee [%d.]+: cpu.* %(no nvcc on PATH: no CUDA plug%-in%)$", said)
  end)

  it("builds the plug-in where nvcc is, for every generation from sm_75 to sm_120 that it knows", function()
    if sh "command -v nvcc" ~= 0 then return end
    local status, said = sh "env -u LD_PRELOAD -u MAKEFLAGS -u MAKELEVEL make --no-print-directory all"
    assert.are.equal(0, status, said)
    assert.is_truthy(last_line(said):find "^perigee [%d.]+: cpu.* and cuda %(sm_75 sm_80 sm_90 .*sm_120%)$", said)
    if device.simulated and sh "nvidia-smi" ~= 0 then
      status, said = sh "env -u LD_PRELOAD -u PERIGEE_CUDA build/perigee doctor"
      assert.are.equal(0, status, said)
      assert.is_truthy(said:find('gpu        device "cuda" is not available: there is no NVIDIA driver', 1, true), said)
    end
  end)
end)
