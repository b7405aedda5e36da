-- run_folders.lua - run folders as the report's tests need them, written without running anything: many at once, or one
-- with whatever content, good or not.

local lfs = require "lfs"
local encode = require("perigee.run").encode

local folders = {}

--- Writes a file, the folders above it made. @return its path
function folders.write(path, text)
  for at in path:gmatch "()/" do
    if at > 1 then lfs.mkdir(path:sub(1, at - 1)) end
  end
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
  return path
end

--- An empty folder of its own. @return path
function folders.fresh()
  local folder = os.tmpname()
  os.remove(folder)
  lfs.mkdir(folder)
  return folder
end

--- Writes one run.
-- @param folder  path
-- @param spec    {options =, seed =, result = or nil, metrics = list of lines or nil, log = text or nil, config =
--   fields over the usual ones}
function folders.run(folder, spec)
  local config = { recipe = "toy", file = "toy.lua", options = spec.options or {}, seed = spec.seed or 1,
    device = "cpu", git = "unknown", versions = { perigee = "0.1.0", luajit = "LuaJIT" } }
  for key, value in pairs(spec.config or {}) do config[key] = value end
  folders.write(folder .. "/config.json", encode(config, "") .. "\n")
  folders.write(folder .. "/log.txt", spec.log or "")
  if spec.result then folders.write(folder .. "/result.json", encode(spec.result, "") .. "\n") end
  local lines = {}
  for i, entry in ipairs(spec.metrics or {}) do lines[i] = encode(entry) .. "\n" end
  folders.write(folder .. "/metrics.jsonl", table.concat(lines))
end

-- The same numbers on every machine (Park and Miller's generator).
local function generator(seed)
  local state = seed
  return function()
    state = state * 48271 % 2147483647
    return state / 2147483647
  end
end

local METHODS, WEIGHTS = { "naive", "l2sp", "ldifs", "fda", "proxy_fda" }, { 0, 0.01, 30, 10, 10 }
local TASKS = { "color", "count", "position", "shape", "texture" }

--- Writes a sweep of `count` runs: five methods, four rates, and as many seeds as it takes; one run in fifty failed.
-- @param folder  where they go, as run-0001 and so on
-- @param count   runs
-- @param steps   lines of metrics of each
function folders.sweep(folder, count, steps)
  for i = 1, count do
    local random, method, weight = generator(1000 + i), METHODS[(i - 1) % 5 + 1], WEIGHTS[(i - 1) % 5 + 1]
    local lr = ({ 1e-4, 3e-4, 1e-3, 3e-3 })[math.floor((i - 1) / 5) % 4 + 1]
    local seed = math.floor((i - 1) / 20) + 1
    local kept = (i - 1) % 5 / 4
    local metrics, tasks = {}, {}
    for step = 1, steps do
      local share = step / steps
      metrics[step] = { step = step, lr = lr * (1 - share),
        loss = 0.3 + 2 * math.exp(-4 * share * (1 + 300 * lr)) + 0.15 * random(),
        images_per_s = 300 + 40 * random(), method = method }
    end
    for k, task in ipairs(TASKS) do
      tasks[task] = -0.2 * (1 - kept) * (0.3 + 0.14 * k) - 20 * lr * (1 - kept) + 0.03 * (random() - 0.3)
    end
    local failed = i % 50 == 0
    folders.run(("%s/run-%04d"):format(folder, i), { seed = seed,
      options = { method = method, lr = lr, weight = weight, steps = steps, batch = 64 },
      metrics = metrics, log = failed and "step 3: loss is not finite\nstack traceback:\n\t[C]: in ?\n" or "done\n",
      result = not failed and { seconds = math.floor(20 + 10 * random()), task = "fashion_mnist",
        rows = { { method = method, weight = weight, a_lp = 0.8 + 0.02 * random() + 5 * lr,
          delta_lp = -0.12 * (1 - kept) - 15 * lr * (1 - kept) + 0.02 * (random() - 0.5), tasks = tasks } } } or nil })
  end
end

return folders
