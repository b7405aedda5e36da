-- runs.lua - reads run folders for a report. They may be half-written, still growing, damaged or not ours at all:
-- whatever is wrong with one is a line of warning that names it, and the others are read.

local util = require "perigee.util"
local json = require "cjson"
local lfs = require "lfs"

local runs = {}

-- ---- limits: beyond them a file is not what a run writes ----------------------------------------------------------

local JSON_BYTES = 16 * 2 ^ 20    -- of config.json and result.json
local METRICS_BYTES = 16 * 2 ^ 20 -- of metrics.jsonl that are decoded; of a larger file every n-th line is
local LINE_BYTES = 2 ^ 20         -- of one line
local METRICS = 64                -- figures of a line
local DEPTH = 5                   -- folders that are searched below the one named
local FRESH = 120                 -- seconds since the last write, within which an unfinished run counts as running

-- What a run leaves; a folder with one of them is a run.
local MARKS = { "config.json", "metrics.jsonl", "result.json", "checkpoint.safetensors" }

-- ---- text from outside --------------------------------------------------------------------------------------------

-- The bytes of the well-formed character at `i` (Unicode, table 3-7), or nil.
local function character(text, i)
  local a, b = text:byte(i, i + 1)
  if a < 0x80 then return 1 end
  local n = a >= 0xC2 and a <= 0xDF and 2 or a >= 0xE0 and a <= 0xEF and 3 or a >= 0xF0 and a <= 0xF4 and 4
  if not n or not b or b < (a == 0xE0 and 0xA0 or a == 0xF0 and 0x90 or 0x80)
    or b > (a == 0xED and 0x9F or a == 0xF4 and 0x8F or 0xBF) then return nil end
  for k = i + 2, i + n - 1 do
    local c = text:byte(k)
    if not c or c < 0x80 or c > 0xBF then return nil end
  end
  return n
end

--- Text as UTF-8, whatever it was: bytes that are none become U+FFFD. @param text @return text
function runs.utf8(text)
  if not text:find "[\128-\255]" then return text end
  local parts, i = {}, 1
  while i <= #text do
    local n = character(text, i)
    parts[#parts + 1] = n and text:sub(i, i + n - 1) or "\239\191\189"
    i = i + (n or 1)
  end
  return table.concat(parts)
end

-- A word for the shell, whatever it holds.
local function shell(word)
  if word:match "^[%w_./,:=@%%+-]+$" then return word end
  return "'" .. word:gsub("'", "'\\''") .. "'"
end

local function sorted_keys(t)
  local keys = {}
  for key in pairs(t) do keys[#keys + 1] = key end
  table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
  return keys
end

-- ---- files --------------------------------------------------------------------------------------------------------

-- The size of a regular file, or nil: a pipe in the place of one would wait for ever.
local function size_of(path)
  return lfs.attributes(path, "mode") == "file" and lfs.attributes(path, "size") or nil
end

-- The table in a JSON file; nil when there is no such file; nil and a reason when it holds none.
local function read_json(path)
  local size = size_of(path)
  if not size then return nil end
  if size > JSON_BYTES then return nil, ("has %.0f MB"):format(size / 2 ^ 20) end
  local file = io.open(path, "rb")
  local text = file and file:read "*a"
  if file then file:close() end
  if not text then return nil, "cannot be read" end
  local ok, value = pcall(json.decode, text)
  if not ok then return nil, text == "" and "is empty" or "is not JSON" end
  if type(value) ~= "table" then return nil, "is no JSON object" end
  return value
end

-- The lines of a file, each with whether its end was there; a line longer than LINE_BYTES is false.
local function lines_of(file)
  local buffer, at, ended, long = "", 1, false, false
  return function()
    while true do
      local stop = buffer:find("\n", at, true)
      if stop then
        local line = not long and buffer:sub(at, stop - 1)
        at, long = stop + 1, false
        return line, true
      end
      buffer, at = buffer:sub(at), 1
      if ended then
        local rest = buffer
        buffer = ""
        if rest == "" or long then return nil end
        return rest, false
      end
      if #buffer > LINE_BYTES then buffer, long = "", true end
      local block = file:read(65536)
      if block then buffer = buffer .. block else ended = true end
    end
  end
end

-- The message of the error that ended the run: log.txt closes with its traceback.
local function last_error(folder)
  local file = size_of(folder .. "/log.txt") and io.open(folder .. "/log.txt", "rb")
  if not file then return nil end
  local size = file:seek "end"
  if not size then return nil end
  file:seek("set", math.max(0, size - 65536))
  local tail = "\n" .. (file:read "*a" or "")
  file:close()
  local message, trace = tail:match "^.*\n([^\n]*)\nstack traceback:\n(.*)$"
  if not message then return nil end
  for line in trace:gmatch "[^\n]+" do -- what was said after it: the run was continued
    if not line:match "^%s" then return nil end
  end
  return message
end

-- ---- metrics: figures by step, cut where the steps begin again ----------------------------------------------------

-- The text fields of a line, such as the method, tell one pass of a recipe from another.
local function words_of(entry)
  local words = {}
  for _, key in ipairs(sorted_keys(entry)) do
    if type(key) == "string" and type(entry[key]) == "string" then words[#words + 1] = key end
  end
  return words
end

local function new_pass(entry, words)
  local pass, values = { fields = {}, metrics = {}, count = 0 }, {}
  for i, key in ipairs(words) do
    pass.fields[key] = runs.utf8(entry[key])
    values[i] = pass.fields[key]
  end
  pass.label = table.concat(values, " ")
  return pass
end

local function same_pass(pass, entry, words, step)
  for _, key in ipairs(words) do
    if pass.fields[key] ~= runs.utf8(entry[key]) then return false end
  end
  return not (step and pass.step and step <= pass.step)
end

local function add_entry(passes, entry)
  local pass, words = passes[#passes], words_of(entry)
  local step = type(entry.step) == "number" and entry.step - entry.step == 0 and entry.step or nil
  if not pass or not same_pass(pass, entry, words, step) then
    pass = new_pass(entry, words)
    passes[#passes + 1] = pass
  end
  pass.count, pass.step = pass.count + 1, step
  local room = METRICS
  for _, key in ipairs(sorted_keys(entry)) do
    local value = entry[key]
    if type(key) == "string" and key ~= "step" and type(value) == "number" and value - value == 0 and room > 0 then
      room = room - 1
      local name = runs.utf8(key)
      local series = pass.metrics[name]
      if not series then
        series = { x = {}, y = {} }
        pass.metrics[name] = series
      end
      series.x[#series.x + 1], series.y[#series.y + 1] = step or pass.count, value
    end
  end
end

--- Takes a line of metrics.jsonl into the passes of runs.metrics.
-- @param passes  list, which grows
-- @param line    text, or anything else for a line that is none
-- @return whether it was a line of metrics
function runs.add(passes, line)
  local ok, entry = pcall(json.decode, line or "")
  if not ok or type(entry) ~= "table" then return false end
  add_entry(passes, entry)
  return true
end

--- Reads a metrics.jsonl.
-- @param path  file name
-- @return list of passes {label =, fields = text fields, metrics = name -> {x =, y =}, step = the last, count = lines};
--   a pass ends where the steps begin again or a text field changes
-- @return list of warnings
function runs.metrics(path)
  local passes, warnings, size = {}, {}, size_of(path)
  if not size then return passes, warnings end
  local file = io.open(path, "rb")
  if not file then return passes, { "metrics.jsonl cannot be read" } end
  local stride, number, bad = math.ceil(math.max(1, size / METRICS_BYTES)), 0, 0
  for line, whole in lines_of(file) do
    if number % stride == 0 and line ~= "" then
      -- the last half line of a run that was killed, or still writes, is none
      if not runs.add(passes, line) and whole then bad = bad + 1 end
    end
    number = number + 1
  end
  file:close()
  if stride > 1 then
    warnings[1] = ("metrics.jsonl has %.0f MB: every %d lines one is shown"):format(size / 2 ^ 20, stride)
  end
  if bad > 0 then warnings[#warnings + 1] = ("metrics.jsonl has %d lines that are not JSON"):format(bad) end
  return passes, warnings
end

-- ---- options, results, pictures -----------------------------------------------------------------------------------

local function plain_value(value)
  local kind = type(value)
  if kind == "string" then return runs.utf8(value) end
  if kind == "number" then return value - value == 0 and value or nil end
  if kind == "boolean" then return value end
  if kind == "table" then return runs.utf8(require("perigee.run").encode(value)) end -- null is nothing
end

local function options_of(config)
  local options = {}
  for key, value in pairs(config.options) do options[runs.utf8(tostring(key))] = plain_value(value) end
  for _, key in ipairs { "recipe", "seed", "device", "threads", "git" } do options[key] = plain_value(config[key]) end
  options.perigee = type(config.versions) == "table" and plain_value(config.versions.perigee) or nil
  return options
end

-- key=value words hold what the shell needs quoted; %.17g is every bit of a number.
local function word_of(value)
  if type(value) ~= "number" then return tostring(value) end
  local short = ("%.15g"):format(value)
  return tonumber(short) == value and short or ("%.17g"):format(value)
end

--- The command that repeats a run: each option that it had, its seed, device and threads.
-- @param config   what config.json holds
-- @param program  how to start Perigee
-- @return a line for the shell, or nil when the configuration does not say which file was run
function runs.command(config, program)
  if type(config.file) ~= "string" or config.file == "" then return nil end
  local file = config.file:match "^%-" and "./" .. config.file or config.file
  local words = { program, "run", shell(file) }
  for _, key in ipairs(sorted_keys(config.options)) do
    local value = config.options[key]
    if value ~= json.null then
      if type(value) == "table" then value = require("perigee.run").encode(value) end
      words[#words + 1] = shell(tostring(key) .. "=" .. word_of(value))
    end
  end
  for _, key in ipairs { "seed", "device", "threads" } do
    if type(config[key]) == "number" or type(config[key]) == "string" then
      words[#words + 1] = "--" .. key .. " " .. shell(word_of(config[key]))
    end
  end
  return runs.utf8(table.concat(words, " "))
end

local function pictures_of(folder)
  local list = {}
  if lfs.attributes(folder .. "/plots", "mode") ~= "directory" then return list end
  local ok, iterate, state = pcall(lfs.dir, folder .. "/plots")
  if not ok then return list end
  for name in iterate, state do
    local path = folder .. "/plots/" .. name
    if name:match "%.[pP][nN][gG]$" and size_of(path) then
      list[#list + 1] = { name = runs.utf8(name:sub(1, -5)), path = path, bytes = size_of(path) }
    end
  end
  table.sort(list, function(a, b) return a.path < b.path end)
  return list
end

-- ---- one folder ---------------------------------------------------------------------------------------------------

local function last_write(folder)
  local last = 0
  for _, name in ipairs { "config.json", "metrics.jsonl", "log.txt", "checkpoint.safetensors" } do
    last = math.max(last, lfs.attributes(folder .. "/" .. name, "modification") or 0)
  end
  return last
end

-- A sweep leaves a file in a run that it stopped early, and one in a run that failed.
local function status_of(run, now)
  if run.result then return "finished" end
  if size_of(run.folder .. "/stopped.json") then return "stopped" end
  local failed = read_json(run.folder .. "/failed.json")
  if failed and type(failed.error) == "string" then return "failed", runs.utf8(failed.error) end
  local message = last_error(run.folder)
  if message == "interrupted" then return "interrupted" end
  if message then return "failed", runs.utf8(message) end
  return now - last_write(run.folder) <= FRESH and "running" or "unfinished"
end

--- Reads one run folder.
-- @param folder   path
-- @param options  {program = how the repeating command starts Perigee, metrics = false leaves the metrics out}
-- @return {folder, status = "finished", "running", "unfinished", "stopped", "interrupted",
--   "failed" or "broken", error = text or
--   nil, config, options = name -> value, result, passes (runs.metrics), pictures = list of {name, path, bytes},
--   command, warnings = list of text}; a broken one has no more than folder, status, error and warnings
function runs.read(folder, options)
  local run = { folder = folder, options = {}, passes = {}, pictures = {}, warnings = {} }
  local function broken(why)
    run.status, run.error = "broken", why
    run.warnings[#run.warnings + 1] = why
    return run
  end
  if lfs.attributes(folder, "mode") ~= "directory" then return broken "is no folder" end
  local config, why = read_json(folder .. "/config.json")
  if not config then return broken("config.json " .. (why or "is missing")) end
  if type(config.options) ~= "table" or type(config.recipe) ~= "string" then
    return broken "config.json is not the configuration of a run"
  end
  local result, damage = read_json(folder .. "/result.json")
  run.config, run.options, run.result = config, options_of(config), result
  if options.metrics ~= false then
    local said
    run.passes, said = runs.metrics(folder .. "/metrics.jsonl")
    for _, line in ipairs(said) do run.warnings[#run.warnings + 1] = line end
  end
  run.pictures, run.command = pictures_of(folder), runs.command(config, options.program or "perigee")
  if damage then return broken("result.json " .. damage) end
  run.status, run.error = status_of(run, os.time())
  return run
end

-- ---- many folders -------------------------------------------------------------------------------------------------

local function is_run(folder)
  for _, name in ipairs(MARKS) do
    if lfs.attributes(folder .. "/" .. name, "mode") == "file" then return true end
  end
  return false
end

local function search(folder, depth, found)
  if is_run(folder) then
    found[#found + 1] = folder
    return
  end
  local ok, iterate, state = pcall(lfs.dir, folder)
  if not ok or depth == 0 then return end
  local names = {}
  for name in iterate, state do
    if name:sub(1, 1) ~= "." and lfs.symlinkattributes(folder .. "/" .. name, "mode") == "directory" then
      names[#names + 1] = name
    end
  end
  table.sort(names)
  for _, name in ipairs(names) do search(folder .. "/" .. name, depth - 1, found) end
end

-- Folders are named by what tells them apart: without the path that all share.
local function name_all(list)
  local common
  for _, run in ipairs(list) do
    local parent = run.folder:match "^(.*/)[^/]*$" or ""
    common = common or parent
    while parent:sub(1, #common) ~= common do common = common:sub(1, -2):match "^(.*/)" or "" end
  end
  for _, run in ipairs(list) do run.name = runs.utf8(run.folder:sub(#common + 1)) end
end

--- Finds and reads runs.
-- @param paths    list of run folders, and of folders that are searched for them
-- @param options  as runs.read
-- @return list of runs as runs.read gives them, each with a name
-- @raises when a path does not exist
function runs.collect(paths, options)
  local folders, seen, list = {}, {}, {}
  for _, path in ipairs(paths) do
    local trimmed = #path > 1 and path:gsub("/+$", "") or path
    util.check(lfs.attributes(trimmed, "mode"), "report: there is no '%s'", path)
    local before = #folders
    search(trimmed, DEPTH, folders)
    if #folders == before then folders[#folders + 1] = trimmed end -- named, and no run: it is listed as broken
  end
  for _, folder in ipairs(folders) do
    if not seen[folder] then
      seen[folder] = true
      list[#list + 1] = runs.read(folder, options or {})
    end
  end
  name_all(list)
  return list
end

return runs
