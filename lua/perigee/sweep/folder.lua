-- folder.lua - the run folders of a sweep are the truth about it: what they say of each run is read here, and the files
-- that a sweep adds to them are written here.
--
--   SWEEP/sweep.json    the plan: recipe, metric, every run's options and seed      SWEEP/.lock   held by the launcher
--   SWEEP/index.sqlite  the index (sweep/index.lua)                                 SWEEP/slurm/  lists, jobs, their output
--   SWEEP/ID-SEED/      a run folder (run.lua), with: .lock, held by the run's process; output.txt, what it printed;
--                       failed.json {attempts, error}; stopped.json {step, value, ...}; rungs.json {step: value}

local cjson = require "cjson"
local lfs = require "lfs"
local util = require "perigee.util"
local run = require "perigee.run"

local folder = {}

--- The table in a JSON file, or nil: every file here is written whole or not at all.
function folder.json(path)
  local file = io.open(path, "rb")
  if not file then return nil end
  local ok, value = pcall(cjson.decode, file:read "*a" or "")
  file:close()
  return ok and type(value) == "table" and value or nil
end

--- Writes a table as JSON, whole or not at all.
function folder.write(path, value) util.write_file(path, run.encode(value, "") .. "\n") end

--- Makes a folder where there is none.
function folder.make(path)
  local at = path:sub(1, 1) == "/" and "/" or ""
  for part in path:gmatch "[^/]+" do
    at = at .. part
    local ok, why = lfs.mkdir(at)
    if not ok and lfs.attributes(at, "mode") ~= "directory" then util.fail(0, "cannot make the folder %s: %s", at, why) end
    at = at .. "/"
  end
end

-- ---- the plan ---------------------------------------------------------------------------------------------------------

--- Writes SWEEP/sweep.json, where it changes, from what sweep.load and sweep.expand returned. @return the plan
function folder.save_plan(spec, runs)
  local plan = { name = spec.name, file = spec.file, folder = spec.folder, recipe = spec.recipe, metric = spec.metric,
    direction = spec.direction, stop = spec.stop, retries = spec.retries, device = spec.device, threads = spec.threads,
    runs = runs }
  local path, text = spec.folder .. "/sweep.json", run.encode(plan, "") .. "\n"
  local file = io.open(path, "rb")
  local before = file and file:read "*a"
  if file then file:close() end
  if before ~= text then util.write_file(path, text) end
  return plan
end

--- Reads SWEEP/sweep.json. @return the plan, or nil
function folder.load_plan(path) return folder.json(path .. "/sweep.json") end

--- The names of the run folders that there are, planned or not. @return a sorted list
function folder.names(path)
  local names = {}
  for name in lfs.dir(path) do
    if name:match "^%x+%-%d+$" and lfs.attributes(path .. "/" .. name, "mode") == "directory" then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

-- ---- one run ----------------------------------------------------------------------------------------------------------

--- What a run folder says: "done", "stopped" (early), "failed", "unfinished" or "new", and that file's table.
function folder.state(path)
  if not lfs.attributes(path, "mode") then return "new" end
  local stopped = folder.json(path .. "/stopped.json")
  if stopped then return "stopped", stopped end
  local result = folder.json(path .. "/result.json")
  if result then return "done", result end
  local failed = folder.json(path .. "/failed.json")
  if failed then return "failed", failed end
  return lfs.attributes(path .. "/config.json", "mode") and "unfinished" or "new"
end

--- One line where a run folder was begun with other options than the plan's, or nil.
function folder.conflict(path, planned)
  local config = folder.json(path .. "/config.json")
  if not config then return nil end
  local options = config.options or {}
  for name, value in pairs(planned.options) do
    if options[name] ~= value then
      return ("%s was run with %s=%s, not %s: move it away"):format(path, name, tostring(options[name]), tostring(value))
    end
  end
  if config.seed ~= planned.seed then
    return ("%s was run with seed=%s, not %d: move it away"):format(path, tostring(config.seed), planned.seed)
  end
end

--- The last `count` lines of metrics.jsonl that have a number under `key` (any line, when key is nil), the oldest first.
function folder.logged(path, key, count)
  local file = io.open(path .. "/metrics.jsonl", "rb")
  if not file then return {} end
  local size, window = file:seek "end", 4096
  local found
  repeat -- a longer end of the file until it holds enough
    window = math.min(window * 4, size)
    file:seek("set", size - window)
    local text = file:read(window) or ""
    if window < size then text = text:gsub("^[^\n]*\n?", "", 1) end
    found = {}
    for line in text:gmatch "([^\n]*)\n" do
      local ok, entry = pcall(cjson.decode, line)
      if ok and type(entry) == "table" and (not key or type(entry[key]) == "number") then found[#found + 1] = entry end
    end
  until window == size or #found >= count
  file:close()
  while #found > count do table.remove(found, 1) end
  return found
end

--- The value at a dotted path into a table, such as rows.1.a_lp; a number, or nil.
function folder.dig(value, path)
  if type(value) == "table" and type(value[path]) == "number" then return value[path] end
  for part in path:gmatch "[^.]+" do
    if type(value) ~= "table" then return nil end
    local inner = value[part]
    if inner == nil then inner = value[tonumber(part)] end
    value = inner
  end
  return type(value) == "number" and value or nil
end

--- The metric of a finished run: from its result, else the last that it logged. @return number or nil
function folder.metric(path, result, metric)
  if not metric then return nil end
  local value = folder.dig(result, metric)
  if value then return value end
  local last = folder.logged(path, metric, 1)[1]
  return last and last[metric]
end

--- Dotted paths of the numbers, text and truths in a result; long lists of numbers, such as curves, are left out.
-- @return a list of {path, value}
function folder.leaves(value, prefix, list)
  list = list or {}
  if type(value) == "table" then
    if #value > 16 and type(value[1]) ~= "table" then return list end
    local keys = {}
    for key in pairs(value) do keys[#keys + 1] = key end
    table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
    for _, key in ipairs(keys) do folder.leaves(value[key], (prefix and prefix .. "." or "") .. tostring(key), list) end
  elseif value ~= cjson.null and prefix then
    list[#list + 1] = { prefix, value }
  end
  return list
end

return folder
