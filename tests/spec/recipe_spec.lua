-- recipe_spec.lua - the recipes as a user runs them: they finish, and a run that was killed at ten instants and resumed
-- each time ends with the same bits as one that was never touched.

local ffi = require "ffi"
local lfs = require "lfs"
local cjson = require "cjson"
local pg = require "perigee"
local process = require "process"

local SMALL = "build/vit_of_the_test.safetensors" -- a model of two narrow blocks: the runs are short, and do the same
local folder = os.tmpname()
os.remove(folder)

local RECIPES = {
  { name = "end_to_end", options = "method=naive,proxy_fda steps=10 checkpoint=1 train=64 probe=40 test=50 probe_steps=5 "
    .. "model=../" .. SMALL .. " --threads 1 --seed 3 --quiet", early = 6,
    late = { { 0.5, 0.7 }, { 0.7, 0.95 }, "plots/neighbours.png.tmp", "result.json.tmp" } },
  -- fewer, since reading and probing take it seconds
  { name = "pretrain", options = "steps=8 checkpoint=1 probe=20 scenes=8 drawings=4 clothes=4 width=16 depth=1 "
    .. "save=" .. folder .. "/%s.safetensors --threads 1 --seed 3 --quiet", early = 2, late = {} },
  { name = "few_shot", options = "method=coop,prompt_src,coop+proxy_fda tasks=shape seeds=1 shots=4 epochs=5 batch=4 "
    .. "pool=100 test=60 checkpoint=1 --threads 1 --seed 3 --quiet", early = 4, late = { "result.json.tmp" } },
}

local function start(recipe, out, resume)
  local command = ("build/perigee run recipes/%s.lua %s %s"):format(recipe.name,
    resume and "--quiet" or recipe.options:format(recipe.name), resume and "--resume" or "--out")
  return process.start(command .. " " .. out, out .. ".said")
end

-- ---- ten instants -----------------------------------------------------------------------------------------------------

-- A small linear congruential generator of its own: the test's draws must not depend on what is tested.
local function draws(seed)
  return function(least, most)
    seed = (seed * 1103515245 + 12345) % 2 ^ 31
    return least + (most - least) * (seed / 2 ^ 31)
  end
end

-- Some instants are a share of the whole run's time; others a moment after the n-th time that a file is written anew, so
-- that steps, checkpoints and final files are hit while they are written, however busy the machine is. In any order
-- while the model trains; the late ones follow, since a finished run trains no more.
local function instants(recipe, seed, whole_seconds)
  local draw, list = draws(seed), {}
  local function time(from, to) return { seconds = whole_seconds * draw(from, to) } end
  local function moment(file, most, count) return { file = file, delay = draw(0, most), count = count } end
  for i = 1, recipe.early do
    list[i] = i % 3 == 0 and time(0, 0.5)
      or moment(i % 3 == 1 and "checkpoint.safetensors" or "checkpoint.safetensors.tmp", 1e-3, math.floor(draw(1, 4)))
  end
  for i = #list, 2, -1 do
    local j = math.floor(draw(1, i + 1))
    list[i], list[j] = list[j], list[i]
  end
  for _, late in ipairs(recipe.late) do
    list[#list + 1] = type(late) == "table" and time(unpack(late)) or moment(late, 1e-4, 1)
  end
  return list
end

-- Kills the child at the instant; says what it was and whether the child was still there.
local function kill_at(child, instant, out)
  local said
  if instant.seconds then
    child:await(function() return false end, instant.seconds)
    said = ("%.3f s"):format(instant.seconds)
  else
    local function watch(path) -- counts how often it becomes another file: a renamed one is another inode
      local before, seen = lfs.attributes(path, "ino"), 0
      return function()
        local ino = lfs.attributes(path, "ino")
        if ino and ino ~= before then seen = seen + 1 end
        before = ino
        return seen
      end
    end
    -- a temporary file may come and go between two looks; what it became does not
    local file, became = watch(out .. "/" .. instant.file), watch(out .. "/" .. instant.file:gsub("%.tmp$", ""))
    child:await(function() return math.max(file(), became()) >= instant.count end, 60)
    ffi.C.usleep(instant.delay * 1e6)
    said = ("%.0f us after the new %s no. %d"):format(instant.delay * 1e6, instant.file, instant.count)
  end
  child:kill(9)
  local status, text = child:wait()
  local half = lfs.attributes(out .. "/checkpoint.safetensors.tmp", "size")
  return ("%s: status %d%s%s"):format(said, status, half and ", an unfinished checkpoint stays" or "",
    status ~= 137 and status ~= 0 and ": " .. text or ""), status
end

-- ---- equal to the bit ---------------------------------------------------------------------------------------------------

-- Every key but the seconds, which differ from run to run.
local function without_seconds(value)
  if type(value) ~= "table" then return value end
  local kept = {}
  for key, v in pairs(value) do
    if key ~= "seconds" then kept[key] = without_seconds(v) end
  end
  return kept
end

local BYTES = { float32 = 4, float64 = 8, int32 = 4, uint8 = 1 }

local function assert_same_tensors(a, b, context)
  local left, left_data = pg.safetensors.load(a)
  local right, right_data = pg.safetensors.load(b)
  local count = 0
  for name, t in pairs(left) do
    local other = assert(right[name], name .. context)
    assert.same(t:shape(), other:shape(), name .. context)
    assert.equal(t:dtype(), other:dtype())
    local bytes = t:numel() * BYTES[t:dtype()]
    assert.is_true(ffi.string(t:data(), bytes) == ffi.string(other:data(), bytes), name .. " differs" .. context)
    count, right[name] = count + 1, nil
  end
  assert.is_true(count > 20)
  assert.is_nil(next(right))
  for _, key in ipairs { "state", "parts", "generator" } do
    if left_data[key] then
      assert.same(without_seconds(cjson.decode(left_data[key])), without_seconds(cjson.decode(right_data[key])), context)
    end
  end
end

describe("a recipe", function()
  setup(function()
    lfs.mkdir(folder)
    pg.seed(1)
    pg.models.save(SMALL, pg.models.vit { width = 16, depth = 2, heads = 2, patch = 8 }, {})
  end)
  teardown(function()
    os.execute("rm -rf " .. folder)
    os.remove(SMALL)
  end)

  for _, recipe in ipairs(RECIPES) do
    it(recipe.name .. " ends with the same bits after being killed at " .. recipe.early + #recipe.late .. " instants", function()
      local whole, out = ("%s/%s_whole"):format(folder, recipe.name), ("%s/%s"):format(folder, recipe.name)
      local began = pg.now()
      local status, said = start(recipe, whole):wait()
      assert.equal(0, status, said)
      local seconds = pg.now() - began
      for _, name in ipairs { "config.json", "metrics.jsonl", "result.json", "checkpoint.safetensors", "log.txt" } do
        assert.is_truthy(lfs.attributes(whole .. "/" .. name, "size"), name)
      end
      local seed = tonumber(os.getenv "PERIGEE_KILL_SEED") or 20
      local context, killed = (" (seed %d)"):format(seed), 0
      -- A run that was through before its instant makes room for a new one; early instants then make up the number.
      local planned, wanted, tries = instants(recipe, seed, seconds), recipe.early + #recipe.late, 0
      while killed < wanted and tries < 4 * wanted do
        tries = tries + 1
        local instant = planned[tries] or { seconds = seconds * (0.2 + 0.05 * (tries % 5)) }
        local how, ended = kill_at(start(recipe, out, lfs.attributes(out .. "/config.json", "mode")), instant, out)
        context, killed = context .. "\n  " .. how, killed + (ended == 137 and 1 or 0)
        assert.is_true(ended == 137 or ended == 0, context)
        if ended == 0 and killed < wanted then os.execute("rm -rf " .. out) end
      end
      status, said = start(recipe, out, true):wait()
      assert.equal(0, status, said .. context)
      assert.equal(wanted, killed, "too few instants fell into a run:" .. context)
      local result = process.read(whole .. "/result.json")
      assert.same(without_seconds(cjson.decode(result)),
        without_seconds(cjson.decode(process.read(out .. "/result.json"))), context)
      assert_same_tensors(whole .. "/checkpoint.safetensors", out .. "/checkpoint.safetensors", context)
      assert.is_nil(lfs.attributes(out .. "/checkpoint.safetensors.tmp", "size"))
      if os.getenv "PERIGEE_KILL_SEED" then print(context) end
    end)
  end

  it("leaves its pictures", function()
    for _, name in ipairs { "delta_lp", "task_loss", "neighbours" } do
      assert.is_true((lfs.attributes(folder .. "/end_to_end/plots/" .. name .. ".png", "size") or 0) > 0, name)
    end
  end)

  it("names the nearest option for a wrong one, with status 2", function()
    local status, text = process.sh "build/perigee run recipes/end_to_end.lua stepz=3"
    assert.equal(2, status, text)
    assert.is_truthy(text:find("steps", 1, true))
  end)
end)
