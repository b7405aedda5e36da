-- gather.lua - what the experiments' collect.lua share: the rows of finished runs, which are kept in rows.jsonl beside the
-- tables, so that these can be made again without the run folders.

local pg = require "perigee"
local lfs = require "lfs"
local json = require "cjson"

local gather = {}

local function read(path)
  local file = io.open(path, "rb")
  local text = file and file:read "*a"
  if file then file:close() end
  return text
end

local function key(entry)
  local row, parts = entry.row, { tostring(entry.setting), tostring(entry.seed) }
  for _, name in ipairs { "task", "method", "weight", "shots", "seed" } do parts[#parts + 1] = tostring(row[name]) end
  return table.concat(parts, " ")
end

local function short(value) -- as rows.jsonl has it, so that tables do not depend on where rows come from
  if type(value) == "number" then return tonumber(("%.6g"):format(value)) end
  if type(value) ~= "table" then return value end
  local copy = {}
  for name, inner in pairs(value) do copy[name] = short(inner) end
  return copy
end

--- The lines of rows.jsonl, then the rows of finished runs that are not among them.
-- @param into      the experiment's folder
-- @param folders   comma-separated folders of run folders; they may be missing
-- @param entry_of  function: config.json, row of result.json, result.json -> {row =, setting =, seed =}; what sets rows
--   apart
-- @return a list of entries
-- @raises one line where there is none
function gather.rows(into, folders, entry_of)
  local entries, known = {}, {}
  local function add(entry)
    if not known[key(entry)] then entries[#entries + 1], known[key(entry)] = entry, true end
  end
  for line in (read(into .. "/rows.jsonl") or ""):gmatch "[^\n]+" do add(json.decode(line)) end
  for folder in folders:gmatch "[^,%s]+" do
    local names = {}
    if lfs.attributes(folder, "mode") == "directory" then
      for name in lfs.dir(folder) do names[#names + 1] = name end
    end
    table.sort(names)
    for _, name in ipairs(names) do
      local place = folder .. "/" .. name
      local result, config = read(place .. "/result.json"), read(place .. "/config.json")
      if result and config then
        config, result = json.decode(config), json.decode(result)
        for _, row in ipairs(result.rows) do add(short(entry_of(config, row, result))) end
      end
    end
  end
  pg.util.check(#entries > 0, "collect: there is no finished run in %s", folders)
  return entries
end

--- Writes rows.jsonl, sorted. @param into the experiment's folder @param entries of gather.rows
function gather.keep(into, entries)
  local lines = {}
  for i, entry in ipairs(entries) do lines[i] = pg.run.encode(entry) end
  table.sort(lines)
  pg.util.write_file(into .. "/rows.jsonl", table.concat(lines, "\n") .. "\n")
end

--- "62.9 ± 0.4", or the mean alone where there is no interval. @param format of a number @param mean, half numbers
-- @return text
function gather.pair(format, mean, half)
  return format:format(mean) .. (half and half == half and (" ± " .. format:gsub("%+", "")):format(half) or "")
end

return gather
