-- distributed_spec.lua - one run on several processes by mpirun: gradients as of one process with the whole batch, each
-- image read once, one run folder, a process that is killed, and a resume on another number of them. On the simulated
-- device NCCL is simulated too. It needs MPI (make deps-test); without it this is one pending line.

local lfs = require "lfs"
local json = require "cjson"
local process = require "process"
local sh, quote = process.sh, process.quote
local pg = require "perigee"

local folder = os.tmpname()
os.remove(folder)
assert(lfs.mkdir(folder))

-- Root asks twice to be let; processes of a machine that has fewer processors shall not be refused.
local MPIRUN = "env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout -k 5 170 mpirun --oversubscribe "
  .. "--bind-to none -n "

-- Runs ranks.lua on n processes. @return what each of them saved, from rank 0 on
local tries = 0
local function try(n, what, options, front)
  tries = tries + 1
  local name = ("%s/%d-%s-%d"):format(folder, tries, what, n)
  local status, said = sh(("%s %sbuild/perigee run tests/workbench/ranks.lua what=%s save=%s %s --threads 1 --out %s"):format(
    front or "", n > 1 and MPIRUN .. n .. " " or "", what, name, options or "", name))
  assert.are.equal(0, status, said)
  local list = {}
  for rank = 0, n - 1 do list[rank] = pg.safetensors.load(name .. "." .. rank) end
  return list
end

local function lines_of(path)
  local list = {}
  for line in io.lines(path .. "/metrics.jsonl") do list[#list + 1] = json.decode(line) end
  return list
end

local function largest(t) return t:abs():max():item() end

local SMALL = "task=color train=64 probe=20 test=50 probe_steps=3 classes=4 per_class=4 k=4 probes=shape"

local function recipe(n, options, out)
  return ("%sbuild/perigee run recipes/end_to_end.lua %s --seed 3 --threads 1 %s"):format(
    n > 1 and MPIRUN .. n .. " " or "", options, out)
end

describe("several processes", function()
  local _, built = sh "build/perigee doctor"
  if not built:find "\nmpi +Open MPI" or sh "command -v mpirun" ~= 0 then
    pending "there is no MPI here: make deps-test, then make"
    return
  end

  teardown(function() sh("rm -rf " .. quote(folder)) end)

  -- The whole batch's loss of the task, FDA and Proxy-FDA, and every gradient that they give. Differences are over the
  -- largest value of a module's gradients: that of a shift that softmax takes away is zero but for rounding.
  local function same_gradients(options, counts, front, tolerance)
    local one, scale = try(1, "gradients", options .. " --device cpu")[0], {}
    local function group(name) return name:match "^(.-)%.%d+$" or name end
    for name, t in pairs(one) do scale[group(name)] = math.max(scale[group(name)] or 0, largest(t)) end
    for _, n in ipairs(counts) do
      local all, seen = try(n, "gradients", options, front), 0
      for name, expected in pairs(one) do
        local off = largest(expected - all[0][name]) / scale[group(name)]
        assert.is_true(off <= (tolerance or 1e-12), ("%s on %d processes: off by %.1e"):format(name, n, off))
        for rank = 1, n - 1 do assert.are.equal(0, largest(all[rank][name] - all[0][name]), name .. " of rank " .. rank) end
        seen = seen + (name:match "^grad" and 1 or 0)
      end
      assert.is_true(seen > 40, seen) -- of encoder, head, tau and b, generator
    end
  end

  it("give the gradients of one process with the whole batch, FDA's and Proxy-FDA's too, on 2, 4 and 8", function()
    same_gradients("dtype=float64", { 2, 4, 8 })
  end)

  it("give them in many buckets as in one, and in float32", function()
    same_gradients("dtype=float64 bucket=1000", { 2 })
    same_gradients("dtype=float32", { 2 }, nil, 1e-5) -- its own rounding: so far it is from float64 on one process too
  end)

  it("give them on the device, through NCCL's interface", function()
    if not lfs.attributes "build/libperigee_cuda_sim.so" then
      return pending "there is no simulated device: make build/libperigee_cuda_sim.so"
    end
    same_gradients("dtype=float64 --device cuda", { 2, 4 }, "env PERIGEE_CUDA=sim")
    local all = try(2, "gather", "--device cuda", "env PERIGEE_CUDA=sim")
    assert.are.same({ { 9, 9, 9 }, { 12, 12, 12 } }, all[1].grad:totable())
  end)

  it("gather rows in order, and scatter the sum of all their losses' gradients", function()
    local all = try(3, "gather")
    for rank = 0, 2 do
      local rows = all[rank].all:select(2, 1):totable()
      assert.are.same({ 1, 1, 2, 2, 3, 3 }, rows)
      assert.are.same({ 0, 1, 2 }, all[rank].labels:totable())
      local j = 2 * rank -- (1 + 2 + 3) times the weight of the row, which counts from 1
      assert.are.same({ { 6 * (j + 1), 6 * (j + 1), 6 * (j + 1) }, { 6 * (j + 2), 6 * (j + 2), 6 * (j + 2) } },
        all[rank].grad:totable())
    end
  end)

  it("agree on values", function()
    local all = try(3, "values")
    for rank = 0, 2 do
      local t = all[rank]
      assert.are.same({ 1, 2 }, t.mean:totable())
      assert.are.same({ 1, 0 }, t.any:totable())
      assert.are.same({ 10 }, t.first:totable())
      assert.are.same({ { 2 }, { 4 }, { 6 }, { 8 }, { 10 }, { 12 }, { 14 } }, t.map:totable())
      assert.are.same({ rank, 3, 3 }, t.rank:totable())
    end
  end)

  it("read each image once an epoch, augmented as one process would", function()
    local one, two = try(1, "loaders")[0], try(2, "loaders")
    for name, whole in pairs(one) do
      local joined = pg.cat({ two[0][name], two[1][name] }, 1)
      assert.are.same(whole:totable(), joined:totable(), name)
    end
    for _, kind in ipairs { "batches", "loader" } do
      local seen = {}
      for step = 1, 5 do
        for rank = 0, 1 do
          for _, i in ipairs(two[rank][("%s.%02d.y"):format(kind, step)]:totable()) do
            assert.is_nil(seen[i], kind .. " gives an image twice")
            seen[i] = true
          end
        end
      end
      assert.are.equal(40, #seen)
    end
  end)

  it("run end_to_end.lua as one process does, and leave one run folder", function()
    local found = {}
    for _, n in ipairs { 1, 2 } do
      local out = folder .. "/recipe-" .. n
      local status, said = sh(recipe(n, SMALL .. " method=fda,proxy_fda steps=4", "--out " .. out))
      assert.are.equal(0, status, said)
      assert.are.equal(1, select(2, said:gsub("pictures:", "")), said)
      found[n] = lines_of(out)
      for name in lfs.dir(out) do assert.is_nil(name:match "^rank", name) end
    end
    assert.are.equal(8, #found[2])
    for i, line in ipairs(found[1]) do
      for _, name in ipairs { "loss", "task_loss", "kept" } do
        local off = math.abs(line[name] - found[2][i][name]) / math.abs(line[name])
        assert.is_true(off < 1e-5, ("step %d, %s: off by %.1e"):format(line.step, name, off))
      end
    end
  end)

  it("end together with a line when one of them is killed, and go on from the checkpoint on another number", function()
    local out, options = folder .. "/killed", SMALL .. " method=fda steps=60 checkpoint=5"
    local child = process.start(recipe(2, options, "--out " .. out), folder .. "/said")
    local function checkpoint() return lfs.attributes(out .. "/checkpoint.safetensors", "mode") end
    assert.is_true(child:await(checkpoint, 120), process.read(folder .. "/said"))
    local _, pids = sh "pgrep -x perigee"
    for pid in pids:gmatch "%d+" do
      local environment = process.read("/proc/" .. pid .. "/environ") or ""
      local command = process.read("/proc/" .. pid .. "/cmdline") or ""
      if environment:find "OMPI_COMM_WORLD_RANK=1" and command:find(out, 1, true) then sh("kill -9 " .. pid) end
    end
    local status, said = child:wait()
    assert.are_not.equal(0, status)
    assert.are.equal(1, select(2, said:gsub("perigee: rank 1 %(process %d+ on [^)]+%) has died, and the run ends; start it "
      .. "again with: perigee run recipes/end_to_end.lua %-%-resume " .. out:gsub("%p", "%%%0") .. "\n", "")), said)
    local left = json.decode(select(2, pg.safetensors.load(out .. "/checkpoint.safetensors")).state).step
    assert.is_true(left % 5 == 0 and left < 60, left)

    local reference = folder .. "/whole"
    status, said = sh(recipe(1, options, "--out " .. reference))
    assert.are.equal(0, status, said)
    status, said = sh(recipe(4, "", "--resume " .. out))
    assert.are.equal(0, status, said)
    local whole, resumed = lines_of(reference), lines_of(out)
    assert.are.equal(60, #resumed)
    for i = 1, 60 do
      assert.are.equal(i, resumed[i].step)
      assert.is_true(math.abs(whole[i].loss - resumed[i].loss) / whole[i].loss < 2e-3, ("step %d: %g, %g"):format(i,
        whole[i].loss, resumed[i].loss))
    end
  end)

  it("say once why one of them failed, or all", function()
    local status, said = sh(MPIRUN .. "2 build/perigee run tests/workbench/ranks.lua what=fail --out " .. folder .. "/fail")
    assert.are_not.equal(0, status)
    assert.is_truthy(said:find("perigee: rank 1: rank 1 has had enough", 1, true), said)
    assert.is_nil(said:find("has died", 1, true), said)
    status, said = sh(MPIRUN .. "2 build/perigee run tests/workbench/ranks.lua wat=1")
    assert.are.equal(2, status, said)
    assert.are.equal(1, select(2, said:gsub("unknown option 'wat'", "")), said)
  end)

  it("are refused where MPI knows nothing of them", function()
    local status, said = sh("SLURM_STEP_NUM_TASKS=2 build/perigee run tests/workbench/ranks.lua")
    assert.are.equal(1, status)
    assert.is_truthy(said:find("this is one of 2 tasks, of which srun has told MPI nothing", 1, true), said)
  end)
end)
