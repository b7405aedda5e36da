-- inspect.lua - `perigee inspect FILE|RUN`: the tensors of a file, of one in several shards, or of a run folder, of which
-- also what was asked and the table of what came out.

local args = require "perigee.cli.args"
local ffi = require "ffi"
local lfs = require "lfs"
require "perigee" -- its tensors' methods
local call = require "perigee.call"
local lib = require "perigee.ffi"

local inspect = {
  command = {
    usage = "inspect FILE|RUN", options = {},
    about = "Lists the tensors in a .safetensors, .npy or .npz file, those behind a .safetensors.index.json, or in a run\n"
      .. "folder: name, shape, dtype, least, mean and greatest value, and how many values are NaN or infinite. Of a run\n"
      .. "folder also its options and its results.",
  },
}

local BYTES = { float32 = 4, float64 = 8, int32 = 4, uint8 = 1 }

local function size_text(bytes)
  local units, at = { "B", "KiB", "MiB", "GiB" }, 1
  while bytes >= 1024 and at < #units do bytes, at = bytes / 1024, at + 1 end
  return (at == 1 and "%d %s" or "%.1f %s"):format(bytes, units[at])
end

local function sorted_keys(t)
  local keys = {}
  for key in pairs(t) do keys[#keys + 1] = key end
  table.sort(keys)
  return keys
end

-- Rows of text in columns: the first `words` of them stand to the left, the others are numbers.
local function print_table(rows, words)
  local widths = {}
  for _, row in ipairs(rows) do
    for i, cell in ipairs(row) do widths[i] = math.max(widths[i] or 0, #cell) end
  end
  for _, row in ipairs(rows) do
    for i, cell in ipairs(row) do
      row[i] = i <= words and cell .. (" "):rep(widths[i] - #cell) or (" "):rep(widths[i] - #cell) .. cell
    end
    io.write((table.concat(row, "  "):gsub(" +$", "")), "\n")
  end
end

-- Least, mean and greatest of the finite values, and the number of the others, in one pass. Values are downloaded, piece
-- by piece, and not read where they lie: a file's NaN may hold bits that LuaJIT takes for a pointer.
local PIECE = 65536
local function statistics(t)
  local n = t:numel()
  local flat, values = t:contiguous():reshape(n), ffi.new("double[?]", PIECE)
  local least, greatest, sum, bad = math.huge, -math.huge, 0, 0
  for first = 1, n, PIECE do
    local count = math.min(PIECE, n - first + 1)
    call.check(lib.pg_download(flat:narrow(1, first, count):to("float64"), values, 8 * count))
    for i = 0, count - 1 do
      local v = values[i]
      if v - v ~= 0 then
        bad = bad + 1
      else
        least, greatest, sum = math.min(least, v), math.max(greatest, v), sum + v
      end
    end
  end
  if n == bad then return "-", "-", "-", bad end
  return ("%.4g"):format(least), ("%.4g"):format(sum / (n - bad)), ("%.4g"):format(greatest), bad
end

local function print_tensors(tensors)
  local names, rows = {}, { { "name", "shape", "dtype", "min", "mean", "max", "non-finite" } }
  for name in pairs(tensors) do names[#names + 1] = name end
  table.sort(names)
  local total, bytes = 0, 0
  for _, name in ipairs(names) do
    local t = tensors[name]
    local least, mean, greatest, bad = statistics(t)
    rows[#rows + 1] = { name, "(" .. table.concat(t:shape(), ", ") .. ")", t:dtype(), least, mean, greatest, tostring(bad) }
    total, bytes = total + t:numel(), bytes + t:numel() * BYTES[t:dtype()]
  end
  print_table(rows, 3)
  io.write(("\n%d tensors, %d parameters, %s\n"):format(#names, total, size_text(bytes)))
end

-- What reads a file, by how its name ends: returns a table name -> tensor, and metadata or nil.
local READERS = {
  { "%.safetensors$", function(path) return require("perigee.safetensors").load(path) end },
  { "%.safetensors%.index%.json$", function(path) return require("perigee.safetensors").load_sharded(path) end },
  { "%.npz$", function(path) return require("perigee.npz").load(path) end },
  { "%.npy$", function(path) return { [path:match "[^/]+$"] = require("perigee.npy").load(path) } end },
}

local function reader(path)
  for _, r in ipairs(READERS) do
    if path:match(r[1]) then return r[2] end
  end
end

local function print_file(path, title)
  if title then io.write(path, "\n\n") end
  local tensors, metadata = reader(path)(path)
  print_tensors(tensors)
  for _, key in ipairs(sorted_keys(metadata or {})) do
    local text = tostring(metadata[key])
    io.write(key, ": ", #text > 200 and text:sub(1, 200) .. " ..." or text, "\n")
  end
end

-- ---- a run folder ---------------------------------------------------------------------------------------------------

local SHOWN = 12 -- values of a long list

local function plain(value)
  if value == require("cjson").null then return "null" end -- NaN or infinite: JSON has neither
  return type(value) == "number" and ("%.6g"):format(value) or tostring(value)
end

local function is_record(value) return type(value) == "table" and #value == 0 and next(value) ~= nil end

-- A list as "1, 2, 3, ... 100 values"; a record as "color 0.1, size 0.3".
local function one_line(value)
  if type(value) ~= "table" then return plain(value) end
  local parts = {}
  if is_record(value) then
    for _, key in ipairs(sorted_keys(value)) do parts[#parts + 1] = key .. " " .. one_line(value[key]) end
    return table.concat(parts, ", ")
  end
  for i = 1, math.min(#value, SHOWN) do parts[i] = one_line(value[i]) end
  if #value > SHOWN then parts[#parts + 1] = ("... %d values"):format(#value) end
  return table.concat(parts, ", ")
end

-- Records of one kind, a row each: columns of text first; what is itself a table is left to result.json.
local function print_records(records)
  local kinds = {}
  for _, record in ipairs(records) do
    for key, value in pairs(record) do
      if type(value) ~= "table" then kinds[key] = kinds[key] == "string" and "string" or type(value) end
    end
  end
  local names = sorted_keys(kinds)
  local words, columns = {}, {}
  for _, name in ipairs(names) do
    local list = kinds[name] == "string" and words or columns
    list[#list + 1] = name
  end
  local count = #words
  for _, name in ipairs(columns) do words[#words + 1] = name end
  local rows = { { unpack(words) } }
  for i, record in ipairs(records) do
    rows[i + 1] = {}
    for j, name in ipairs(words) do rows[i + 1][j] = record[name] == nil and "" or plain(record[name]) end
  end
  print_table(rows, count)
end

local function read_json(path)
  local file = io.open(path, "rb")
  if not file then return nil end
  local ok, value = pcall(require("cjson").decode, file:read "*a" or "")
  file:close()
  if not ok or type(value) ~= "table" then error("inspect: " .. path .. " is not JSON", 0) end
  return value
end

local function print_config(config)
  io.write(("recipe   %s, seed %s, %s%s\n"):format(plain(config.recipe), plain(config.seed or 1), plain(config.device or "cpu"),
    config.threads and (", threads %d"):format(config.threads) or ""))
  io.write(("source   %s at git %s, perigee %s\n"):format(plain(config.file or "?"), plain(config.git or "unknown"),
    plain((config.versions or {}).perigee or "?")))
  local line = "options "
  for _, key in ipairs(sorted_keys(config.options or {})) do
    local word = (" %s=%s"):format(key, plain(config.options[key]))
    if #line + #word > 110 then
      io.write(line, "\n")
      line = "        "
    end
    line = line .. word
  end
  io.write(line, "\n")
end

local function print_result(result)
  local rows, tables = {}, {}
  for _, key in ipairs(sorted_keys(result)) do
    local value = result[key]
    if type(value) == "table" and is_record(value[1]) then tables[#tables + 1] = key
    else rows[#rows + 1] = { key, one_line(value) } end
  end
  io.write "\n"
  print_table(rows, 2)
  for _, key in ipairs(tables) do
    io.write("\n", key, "\n")
    print_records(result[key])
  end
end

local function print_folder(folder)
  local config, result = read_json(folder .. "/config.json"), read_json(folder .. "/result.json")
  if config then print_config(config) end
  if result then print_result(result)
  elseif config then io.write "\nno result yet: the run is not finished\n" end
  local names = {}
  for name in lfs.dir(folder) do
    if name:match "%.safetensors$" or name:match "%.np[yz]$" then names[#names + 1] = name end
  end
  table.sort(names)
  for _, name in ipairs(names) do
    io.write "\n"
    print_file(folder .. "/" .. name, true)
  end
  if #names == 0 then io.write "no checkpoint in this folder\n" end
end

function inspect.main(_, words)
  local path = words[1]
  if not path then args.usage "inspect: which file? (perigee inspect FILE|RUN)" end
  if #words > 1 then args.usage("inspect: one file at a time, got %d", #words) end
  local mode = lfs.attributes(path, "mode")
  if not mode then error(("inspect: there is no '%s'"):format(path), 0) end
  if mode == "directory" then print_folder(path)
  elseif reader(path) then print_file(path)
  else error(("inspect: '%s' is neither .safetensors (or its index) nor .npy, .npz or a run folder"):format(path), 0) end
  return 0
end

return inspect
