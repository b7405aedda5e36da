-- inspect.lua - `perigee inspect FILE`: the tensors of a .safetensors or .npy file, a checkpoint or a run folder.

local args = require "perigee.cli.args"
local lfs = require "lfs"

local inspect = {
  command = {
    usage = "inspect FILE", options = {},
    about = "Lists the tensors in a .safetensors or .npy file, a checkpoint or a run folder: name, shape, dtype, least, mean and\n"
      .. "greatest value, and how many values are NaN or infinite.",
  },
}

local BYTES = { float32 = 4, float64 = 8, int32 = 4, uint8 = 1 }

local function size_text(bytes)
  local units, at = { "B", "KiB", "MiB", "GiB" }, 1
  while bytes >= 1024 and at < #units do bytes, at = bytes / 1024, at + 1 end
  return (at == 1 and "%d %s" or "%.1f %s"):format(bytes, units[at])
end

-- Least, mean and greatest of the finite values, and the number of the others, in one pass over the host memory.
local function statistics(t)
  local whole = t:is_contiguous() and t or t:contiguous()
  local data, n = whole:data(), t:numel()
  local least, greatest, sum, bad = math.huge, -math.huge, 0, 0
  for i = 0, n - 1 do
    local v = tonumber(data[i])
    if v - v ~= 0 then
      bad = bad + 1
    else
      least, greatest, sum = math.min(least, v), math.max(greatest, v), sum + v
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
  local widths = {}
  for _, row in ipairs(rows) do
    for i, cell in ipairs(row) do widths[i] = math.max(widths[i] or 0, #cell) end
  end
  for _, row in ipairs(rows) do
    for i, cell in ipairs(row) do -- words to the left, numbers to the right
      io.write((("%" .. (i <= 3 and "-" or "") .. widths[i] .. "s"):format(cell)), i < #row and "  " or "\n")
    end
  end
  io.write(("\n%d tensors, %d parameters, %s\n"):format(#names, total, size_text(bytes)))
end

local function reader(name)
  local found, module = pcall(require, "perigee." .. name)
  if not found then error("inspect: this build cannot read ." .. name .. " files", 0) end
  return module
end

local function print_file(path, title)
  if title then io.write(path, "\n\n") end
  if path:match "%.npy$" then
    print_tensors { [path:match "[^/]+$"] = reader("npy").load(path) }
    return
  end
  local tensors, metadata = reader("safetensors").load(path)
  print_tensors(tensors)
  for key, value in pairs(metadata or {}) do
    local text = tostring(value)
    io.write(key, ": ", #text > 200 and text:sub(1, 200) .. " ..." or text, "\n")
  end
end

local function print_folder(folder)
  for _, name in ipairs { "config.json", "result.json" } do
    local file = io.open(folder .. "/" .. name, "rb")
    if file then
      io.write(name, "\n", file:read "*a", "\n")
      file:close()
    end
  end
  local any = false
  for name in lfs.dir(folder) do
    if name:match "%.safetensors$" or name:match "%.npy$" then
      print_file(folder .. "/" .. name, true)
      any = true
    end
  end
  if not any then io.write "no checkpoint in this folder\n" end
end

function inspect.main(_, words)
  local path = words[1]
  if not path then args.usage "inspect: which file? (perigee inspect FILE)" end
  if #words > 1 then args.usage("inspect: one file at a time, got %d", #words) end
  local mode = lfs.attributes(path, "mode")
  if not mode then error(("inspect: there is no '%s'"):format(path), 0) end
  if mode == "directory" then print_folder(path)
  elseif path:match "%.npy$" or path:match "%.safetensors$" then print_file(path)
  else error(("inspect: '%s' is neither .safetensors nor .npy nor a run folder"):format(path), 0) end
  return 0
end

return inspect
