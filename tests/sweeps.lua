-- sweeps.lua - what the specs of sweeps share: a small recipe whose result is known, and looking at what a sweep left.

local lfs = require "lfs"
local cjson = require "cjson"
local process = require "process"
local assert = require "luassert"

local sweeps = {}

-- A random walk with a checkpoint every `every` steps and a line in the ledger when it is complete.
sweeps.RECIPE = [=[
local pg = require "perigee"
local opt = pg.recipe { name = "walk", help = "A random walk.", options = {
  { "steps", 12, min = 1, help = "steps" }, { "every", 2, min = 1, help = "steps between checkpoints" },
  { "lr", 0.5, min = 0, max = 1, help = "length of a step" }, { "wait", 0.0, min = 0, real = true, help = "seconds a step" },
  { "kind", "plain", choices = { "plain", "drift" } }, { "bias", 0.0, real = true }, { "on", true },
  { "bad", "no", choices = { "no", "error", "nan", "crash", "silent", "once", "deaf" } } } }
local run = pg.run.open(opt)
local w, first, saved = pg.zeros(3, { dtype = "float64" }), 1, run:restore()
if saved then
  saved:into { w = w }
  first = saved.state.step + 1
end
for step = first, opt.steps do
  w = w + pg.randn(3, { dtype = "float64" }) * opt.lr + opt.bias
  if opt.wait > 0 then pg.process.sleep(opt.wait) end
  run:log { step = step, score = opt.bad == "nan" and 0 / 0 or w:sum():item(), lr = opt.lr }
  local stop = run:interrupted()
  if stop or step % opt.every == 0 then run:checkpoint({ w = w }, { step = step }) end
  if stop then return end
  if opt.bad == "deaf" and step == 4 then os.execute "sleep 2" end
  if opt.bad == "crash" then require("ffi").cast("int *", 8)[0] = 1 end
  if opt.bad == "error" or opt.bad == "once" and not saved and step == 4 then error "this one fails" end
end
if opt.bad == "silent" then return end
run:finish { w = w:totable(), score = w:sum():item(), rows = { { lr = opt.lr } } }
if os.getenv "LEDGER" then
  local ledger = assert(io.open(os.getenv "LEDGER", "a"))
  ledger:write(run.folder:match "[^/]+$", "\n")
  ledger:close()
end
]=]

--- The result that the recipe must have for these options. @return a list of three numbers
function sweeps.expected(options, seed)
  local pg = require "perigee"
  pg.seed(seed)
  local w = pg.zeros(3, { dtype = "float64" })
  for _ = 1, options.steps or 12 do
    w = w + pg.randn(3, { dtype = "float64" }) * (options.lr or 0.5) + (options.bias or 0)
  end
  return w:totable()
end

--- A fresh folder under /tmp, with a link to the build.
function sweeps.folder()
  local folder = os.tmpname()
  os.remove(folder)
  assert(lfs.mkdir(folder))
  return folder
end

function sweeps.write(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
  return path
end

function sweeps.json(path) return cjson.decode((assert(process.read(path), path))) end

--- The runs that sweep.json plans.
function sweeps.planned(folder) return sweeps.json(folder .. "/sweep.json").runs end

--- Ids of the processes whose command line has all the words.
function sweeps.processes(...)
  local list = {}
  for name in lfs.dir "/proc" do
    local line = name:match "^%d+$" and process.read("/proc/" .. name .. "/cmdline")
    if line then
      line = line:gsub("%z", " ")
      local all = line ~= ""
      for _, word in ipairs { ... } do all = all and line:find(word, 1, true) ~= nil end
      if all then list[#list + 1] = tonumber(name) end
    end
  end
  return list
end

--- Fails unless every planned run is complete and right, and nothing half-written is left.
function sweeps.assert_whole(folder)
  for _, planned in ipairs(sweeps.planned(folder)) do
    local path = folder .. "/" .. planned.name
    local result = sweeps.json(path .. "/result.json")
    assert.are.same(sweeps.expected(planned.options, planned.seed), result.w, planned.name)
    local steps = 0
    for line in io.lines(path .. "/metrics.jsonl") do
      steps = steps + 1
      assert.are.equal(steps, cjson.decode(line).step, planned.name)
    end
    assert.are.equal(planned.options.steps or 12, steps, planned.name)
    for name in lfs.dir(path) do assert.is_nil(name:match "%.tmp$", path .. "/" .. name) end
    assert.is_nil(lfs.attributes(path .. "/failed.json", "mode"), path)
  end
end

--- Fails unless index.sqlite says what the folders say. @return the number of runs in it
function sweeps.assert_indexed(folder)
  local environment = require("luasql.sqlite3").sqlite3()
  local connection = assert(environment:connect(folder .. "/index.sqlite"))
  local function rows(sql)
    local list, cursor = {}, assert(connection:execute(sql))
    local row = cursor:fetch({}, "a")
    while row do
      list[#list + 1] = row
      row = cursor:fetch({}, "a")
    end
    cursor:close()
    return list
  end
  local runs, seen = rows "SELECT * FROM runs", {}
  for _, row in ipairs(runs) do
    local path = folder .. "/" .. row.name
    seen[row.name] = true
    local result = lfs.attributes(path .. "/result.json", "mode") and sweeps.json(path .. "/result.json")
    local stopped = lfs.attributes(path .. "/stopped.json", "mode")
    local failed = lfs.attributes(path .. "/failed.json", "mode") and sweeps.json(path .. "/failed.json")
    local state = stopped and "stopped" or result and "done" or failed and "failed"
      or lfs.attributes(path .. "/config.json", "mode") and "unfinished" or "new"
    assert.are.equal(state, row.state, row.name)
    assert.are.equal(failed and failed.error or nil, row.error)
    if state == "done" then
      assert.are.equal(("%.12g"):format(result.score), ("%.12g"):format(row.metric), row.name)
      local values = rows(("SELECT * FROM results WHERE name = '%s' AND key LIKE 'w.%%' ORDER BY key"):format(row.name))
      for i = 1, 3 do assert.are.equal(("%.12g"):format(result.w[i]), ("%.12g"):format(values[i].value)) end
    end
    if state ~= "new" then
      local options = sweeps.json(path .. "/config.json").options
      for _, option in ipairs(rows(("SELECT * FROM options WHERE name = '%s'"):format(row.name))) do
        local value = options[option.key]
        if type(value) == "boolean" then value = value and 1 or 0 end
        assert.are.equal(tostring(value), tostring(option.value), row.name .. " " .. option.key)
      end
    end
  end
  for name in lfs.dir(folder) do
    if name:match "^%x+%-%d+$" then assert.is_true(seen[name], name .. " is not in the index") end
  end
  connection:close()
  environment:close()
  return #runs
end

return sweeps
