-- run.lua - the run folder: what was asked, what happened, and how to continue.
--
--   config.json   every option, seed, device, versions, git revision      metrics.jsonl  a line a logged step
--   result.json   the final figures     log.txt  what was said            checkpoint.safetensors  to continue from
--   plots/*.png         events.out.tfevents.*  for TensorBoard, where it was asked for
--
-- Whole files are written to a temporary name, flushed and renamed, so that a kill at any instant leaves the previous
-- one; metrics.jsonl and log.txt grow by whole flushed lines, and metrics are cut back to the checkpoint on resume.
-- run.watch(run, entry), which a sweep may set, sees each logged line and returns true when the run shall stop early.
-- Where the run is several processes (pg.distributed), rank 0 alone writes; all must read the folder to resume from it.

local util = require "perigee.util"
local process = require "perigee.process"
local distributed = require "perigee.distributed"
local lfs = require "lfs"

local run, Run = {}, {}
Run.__index = Run

local found, host = pcall(require, "perigee.host")
if not found then host = { interrupted = function() return false end, graceful = function() end } end

-- ---- JSON with sorted keys and every digit (cjson rounds to 14, and a resumed run must be the same to the bit) ----

local escapes = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }

local function quote(text)
  return '"' .. text:gsub('[%c"\\]', function(c) return escapes[c] or ("\\u%04x"):format(c:byte()) end) .. '"'
end

local function number(x)
  if x ~= x or x == math.huge or x == -math.huge then return "null" end -- JSON has neither
  return util.number(x)
end

local function encode(value, indent)
  local kind = type(value)
  if kind == "number" then return number(value) end
  if kind == "boolean" then return tostring(value) end
  if kind ~= "table" then return quote(tostring(value)) end
  local parts, keys = {}, {}
  if #value > 0 then
    for i, v in ipairs(value) do parts[i] = encode(v) end
    return "[" .. table.concat(parts, ", ") .. "]"
  end
  for key in pairs(value) do keys[#keys + 1] = tostring(key) end
  -- the step first: a person reads these lines
  table.sort(keys, function(a, b) return a ~= b and (a == "step" or (b ~= "step" and a < b)) end)
  local inner = indent and indent .. "  "
  for i, key in ipairs(keys) do
    local v = value[key]
    if v == nil then v = value[tonumber(key)] end
    parts[i] = (inner or "") .. quote(key) .. ": " .. encode(v, inner)
  end
  if #parts == 0 then return "{}" end
  return indent and "{\n" .. table.concat(parts, ",\n") .. "\n" .. indent .. "}" or "{" .. table.concat(parts, ", ") .. "}"
end

-- The configuration that a folder already has, or nil.
local function read_config(folder)
  local path = folder .. "/config.json"
  if not lfs.attributes(path, "mode") then return nil end
  local file, why = io.open(path, "rb")
  if not file then util.fail(0, "cannot read %s", why) end
  local ok, value = pcall(require("cjson").decode, file:read "*a" or "")
  file:close()
  if not ok or type(value) ~= "table" then
    util.fail(0, "%s is not the configuration of a run (it is not JSON): choose another folder", path)
  end
  return value
end

-- ---- the folder -----------------------------------------------------------------------------------------------------

local make_folder = util.make_folder

-- runs/NAME-DATE-TIME, with -2, -3 ... where two runs begin in one second.
local function fresh_folder(name)
  local base = ("runs/%s-%s"):format(name, os.date "%Y%m%d-%H%M%S")
  local folder, count = base, 1
  while lfs.attributes(folder, "mode") do
    count = count + 1
    folder = base .. "-" .. count
  end
  return folder
end

-- The commit of the working folder, read from .git itself: no process is started.
local function git_revision()
  local function line(path)
    local file = io.open(path, "rb")
    local text = file and file:read "*l"
    if file then file:close() end
    return text
  end
  local folder = util.folder .. "../../.git/"
  local head = line(folder .. "HEAD")
  local branch = head and head:match "^ref: (.+)$"
  if not branch then return head or "unknown" end
  local revision = line(folder .. branch)
  local packed = not revision and io.open(folder .. "packed-refs", "rb")
  if packed then
    for entry in packed:lines() do
      if entry:sub(42) == branch then revision = entry:sub(1, 40) end
    end
    packed:close()
  end
  return revision or "unknown"
end

local function configuration(opt)
  local meta = getmetatable(opt) or {}
  local declaration, options = meta.declaration or { name = opt.name or "run" }, {}
  for _, option in ipairs(declaration.options or {}) do options[option[1]] = opt[option[1]] end
  return {
    recipe = declaration.name, file = meta.path, options = options, seed = opt.seed or 1, device = opt.device or "cpu",
    threads = opt.threads, git = git_revision(),
    processes = distributed.size() > 1 and distributed.size() or nil,
    versions = { perigee = host.version or require("perigee").version, luajit = jit.version },
  }
end

-- One line when the folder belongs to another recipe or to other options.
local function check_same(folder, old, new)
  if old.recipe ~= new.recipe then
    util.fail(0, "%s belongs to the recipe '%s', not '%s': choose another folder", folder, tostring(old.recipe), new.recipe)
  end
  for _, key in ipairs { "seed", "device", "threads" } do
    if old[key] ~= new[key] then
      util.fail(0, "%s was run with %s=%s, not %s: choose another folder", folder, key, tostring(old[key]),
        tostring(new[key]))
    end
  end
  for key, value in pairs(new.options) do
    local before = old.options and old.options[key]
    if before ~= value then
      util.fail(0, "%s was run with %s=%s, not %s: choose another folder", folder, key, tostring(before), tostring(value))
    end
  end
end

-- The writer of TensorBoard's events: asked for by --tensorboard or options, or begun before the run was cut off. A run
-- that begins again takes the old file away; one that goes on cuts it with the metrics.
local function open_events(folder, opt, options, resuming)
  local tensorboard = require "perigee.tensorboard"
  local old = tensorboard.find(folder)
  if options.tensorboard or opt.tensorboard or resuming and old then
    return tensorboard.open(folder, resuming and math.huge or nil)
  end
  if old then os.remove(old) end
end

local function append_to(path, mode)
  local file, why = io.open(path, mode)
  if not file then util.fail(0, "cannot write %s", why) end
  return file
end

local function append(self, handle, path, text)
  local ok, why = handle:write(text)
  if ok then ok, why = handle:flush() end
  if not ok then util.fail(0, "cannot write %s/%s: %s", self.folder, path, why) end
end

-- Two processes in one folder would spoil each other's files. Some file systems have no locks; there we trust the user.
local function lock_folder(folder)
  local ok, free, who = pcall(process.lock, folder .. "/.lock")
  if ok and not free then util.fail(0, "%s is in use by %s: choose another folder", folder, who) end
end

-- What one process alone may do: takes the folder, and begins its files.
local function begin(self, old, opt, options)
  local folder = self.folder
  if old then check_same(folder, old, self.config) end
  make_folder(folder)
  lock_folder(folder)
  os.remove(folder .. "/stopped.json") -- who goes on with a run that a sweep stopped early has its reasons
  if not self.resuming then -- a run that begins again must not be taken for the old one's end
    os.remove(folder .. "/result.json")
    os.remove(folder .. "/checkpoint.safetensors")
    util.write_file(folder .. "/config.json", encode(self.config, "") .. "\n")
  end
  self.metrics = append_to(folder .. "/metrics.jsonl", self.resuming and "ab" or "wb")
  self.log_file = append_to(folder .. "/log.txt", self.resuming and "ab" or "wb")
  self.events = open_events(folder, opt, options, self.resuming)
end

local function without_slash(folder) return #folder > 1 and folder:gsub("/+$", "") or folder end

--- Makes the folder that a run will be opened in, so that what is wrong with it is said before anything has run.
-- @param opt  what pg.recipe returned; without opt.out nothing is made
-- @raises when the folder belongs to another recipe or to other options, or cannot be made
function run.prepare(opt)
  if not opt.out or distributed.rank() > 0 then return end
  local folder = without_slash(opt.out)
  local old = read_config(folder)
  if old then check_same(folder, old, configuration(opt)) end
  make_folder(folder)
end

--- Opens the run folder: opt.out, or runs/NAME-DATE-TIME. It is this run's alone until it ends.
-- @param opt      what pg.recipe returned
-- @param options  {tensorboard = true} writes events for TensorBoard too, as --tensorboard does
-- @return the run: .folder, .config, .resuming, and the methods below
-- @raises when the folder belongs to another recipe or to other options, is in use, or cannot be made
function run.open(opt, options)
  options = util.options("run.open", options, { tensorboard = util.none })
  local config = configuration(opt)
  local folder = without_slash(distributed.text(opt.out or fresh_folder(config.recipe)))
  local other = distributed.rank() > 0
  local self = setmetatable({ folder = folder, config = config, opt = opt, other = other,
    resuming = opt.resume ~= nil and opt.resume ~= false, quiet = opt.quiet or other, began = os.time(), logged = 0 }, Run)
  if not other then begin(self, read_config(folder), opt, options) end
  distributed.begun(getmetatable(opt) and getmetatable(opt).path, folder)
  run.current = self
  return self
end

--- A path inside the run folder; the folder that it is in is made. Processes other than rank 0 have folders of their own
-- in it, rank-1 and so on, so that what all of them write is not written to one file.
-- @param name such as "maps/1.npy" @return text
function Run:path(name)
  local path = self.folder .. (self.other and "/rank-" .. distributed.rank() or "") .. "/" .. name
  make_folder(path:match "^(.*)/[^/]*$")
  return path
end

--- Writes a line into log.txt only. @param text without the line's end
function Run:note(text)
  if not self.other then append(self, self.log_file, "log.txt", text .. "\n") end
end

--- Says a formatted line: printed unless --quiet, and kept in log.txt. @param format as string.format, with its values
function Run:say(format, ...)
  local text = select("#", ...) > 0 and format:format(...) or format
  if not self.quiet then
    io.write(text, "\n")
    io.flush()
  end
  self:note(text)
end

--- Logs one step as a line of metrics.jsonl; live_bytes and peak_bytes are added.
-- @param entry  {step =, epoch =, loss =, lr =, images_per_s =, ...}: numbers, text, true or false; NaN becomes null
function Run:log(entry)
  if self.other then return end
  local memory = require("perigee").memory(self.opt.device)
  local line = { live_bytes = memory.live, peak_bytes = memory.peak }
  for key, value in pairs(entry) do line[key] = value end
  if self.stopping then error("interrupted", 0) end -- it was asked to stop a step ago, and does not ask
  append(self, self.metrics, "metrics.jsonl", encode(line) .. "\n")
  self.logged = self.logged + 1
  if self.events then self.events:entry(line, self.logged) end
  if run.watch then self.stopping = run.watch(self, entry) end
end

--- Writes result.json: the final figures, and the seconds that this process took.
-- @param result  a table of anything that JSON holds, or nil
-- @return what was written, a table
function Run:finish(result)
  local final = { seconds = os.difftime(os.time(), self.began) }
  for key, value in pairs(result or {}) do final[key] = value end
  if not self.other then util.write_file(self.folder .. "/result.json", encode(final, "") .. "\n") end
  return final
end

-- ---- checkpoints ----------------------------------------------------------------------------------------------------

--- Saves a checkpoint in place of the last one, whole or not at all; a value that is NaN or infinite is refused, so that
-- the last one stays.
-- @param parts  name -> module, optimiser, regulariser, sampler, batches or tensor (pg.snapshot)
-- @param state  a table of anything that JSON holds, with the step: {step =, ...}; the generator's state is added
-- @raises on a part that cannot be saved, or one line with the system's reason
function Run:checkpoint(parts, state)
  if self.other then return end
  local pg = require "perigee"
  local tensors, data = require("perigee.snapshot").take(parts)
  for name, t in pairs(tensors) do
    if not pg.is_finite(t) then
      util.fail(0, "step %s: '%s' is not finite and is not saved; the last checkpoint is kept",
        tostring(state and state.step or "?"), name)
    end
  end
  pg.safetensors.save(self.folder .. "/checkpoint.safetensors", tensors,
    { state = encode(state or {}), parts = encode(data), generator = encode(pg.rng_state()),
      logged = tostring(self.logged) })
end

--- Whether the folder holds a checkpoint to continue from.
function Run:has_checkpoint() return lfs.attributes(self.folder .. "/checkpoint.safetensors", "mode") ~= nil end

-- Keeps the lines that were there at the checkpoint: their number, since steps begin again with each method of a recipe.
local function cut_metrics(self, count)
  if self.other then return end
  local path, kept = self.folder .. "/metrics.jsonl", {}
  for line in io.lines(path) do
    if #kept == count then break end
    kept[#kept + 1] = line .. "\n"
  end
  self.metrics:close()
  util.write_file(path, table.concat(kept))
  self.metrics, self.logged = append_to(path, "ab"), #kept
  if self.events then
    self.events:close()
    self.events = require("perigee.tensorboard").open(self.folder, #kept)
  end
end

--- Reads the checkpoint back when resuming; metrics are cut to its line.
-- @return nil when the run is not resumed or was stopped before its first checkpoint; else {state =, :into(parts)}, where
--   into(parts) puts everything back, the global generator too
-- @raises when the file is damaged or no checkpoint of a run
function Run:restore()
  local path = self.folder .. "/checkpoint.safetensors"
  if not self.resuming then return nil end
  if not lfs.attributes(path, "mode") then
    cut_metrics(self, 0)
    return nil
  end
  local tensors, metadata = require("perigee").safetensors.load(path)
  local decoded = {}
  for _, key in ipairs { "state", "parts", "generator" } do
    local ok, value = pcall(require("cjson").decode, metadata and metadata[key] or "")
    if not ok then util.fail(0, "%s is not a checkpoint of a run: it holds no %s", path, key) end
    decoded[key] = value
  end
  distributed.barrier() -- nobody goes on and saves the next one while somebody still reads
  cut_metrics(self, tonumber(metadata.logged) or math.huge)
  return require("perigee.snapshot").new(tensors, decoded)
end

--- True once Ctrl-C was pressed, or a sweep stops the run early. A loop that asks each step saves its checkpoint and
-- returns; the exit status is 130. From the first call on, one Ctrl-C no longer stops the program by itself; a second
-- does. The processes of a run all ask, and get one answer. @return boolean
function Run:interrupted()
  host.graceful(true)
  return distributed.any(host.interrupted() or self.stopping or false)
end

-- ---- guards and pictures --------------------------------------------------------------------------------------------

--- Raises when a loss term, a parameter or a gradient is NaN or infinite; the last checkpoint stays as it is.
-- @param step        for the message
-- @param terms       name -> tensor or number
-- @param parameters  name -> tensor; asked only when a term is bad, to name the culprit
function Run:check_finite(step, terms, parameters) -- luacheck: ignore 212
  local pg = require "perigee"
  for name, value in pairs(terms) do
    local good
    if type(value) == "number" then good = value - value == 0 else good = pg.is_finite(value) end
    if not good then
      local culprit = "every parameter is finite"
      for parameter, t in pairs(parameters or {}) do
        if not pg.is_finite(t) then culprit = "parameter '" .. parameter .. "' is not finite" end
        if t.grad and not pg.is_finite(t.grad) then culprit = "the gradient of '" .. parameter .. "' is not finite" end
      end
      util.fail(0, "step %d: %s is not finite; %s; the last checkpoint is kept", step, name, culprit)
    end
  end
end

--- Draws plots/NAME.png in the run folder with pg.plot[kind](path, ...).
-- @param kind  "lines", "bars", "scatter_curves" or "grid"
-- @param name  of the file, without .png
-- @return true when the picture was made
function Run:plot(kind, name, ...)
  if self.other then return true end
  return require("perigee.plot")[kind](self:path("plots/" .. name .. ".png"), ...)
end

--- A progress bar on stderr; silent with --quiet or when stderr is no terminal.
-- @param title, total  what is being done, and in how many steps
-- @return a bar (pg.progress)
function Run:progress(title, total)
  return require("perigee.progress").new(title, total, { quiet = self.quiet })
end

--- pg.run.encode(value) -> JSON text with sorted keys and every digit; pg.run.decode(text) -> value.
run.encode, run.decode = encode, function(text) return require("cjson").decode(text) end

return run
