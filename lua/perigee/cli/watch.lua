-- watch.lua - `perigee watch RUN`: follows a run in the terminal: its losses, the last values, rate, time left. It only
-- reads the folder, so that it may start before the run and stay after it.

local ffi = require "ffi"
local args = require "perigee.cli.args"
local chart = require "perigee.cli.chart"
local host = require "perigee.host"
local lfs = require "lfs"
local runs = require "perigee.report.runs"
local clock = require("perigee.progress").clock

ffi.cdef [[
struct pg_poll { int fd; short events, revents; };
int poll(struct pg_poll *fds, unsigned long count, int timeout_ms);
long read(int fd, void *buffer, size_t count);
int ioctl(int fd, unsigned long request, ...);
]]
local POLLIN, TIOCGWINSZ = 1, 0x5413

local watch = {
  command = {
    usage = "watch RUN", options = {},
    about = "Follows a run in the terminal: its losses, the last values, rate and time left, until it ends. q or\n"
      .. "Ctrl-C leaves. The run need not have begun. Where the output is no terminal, it prints what there is.",
  },
}

local INTERVAL, WINDOW = 500, 30 -- milliseconds between two looks; seconds over which the rate is measured
local ENDED = { finished = true, failed = true, interrupted = true, stopped = true, broken = true }
local CURVES = 4
local AT_ONCE = 16 * 2 ^ 20 -- bytes of metrics that are read at one look: of more, the last

-- Text from files may hold what a terminal obeys.
local function plain(text) return (runs.utf8(tostring(text)):gsub("%c", "?"):gsub("\194[\128-\159]", "?")) end

local function cut(text, columns)
  local count = 0
  for at in text:gmatch "()[%z\1-\127\194-\244][\128-\191]*" do
    count = count + 1
    if count > columns then return text:sub(1, at - 1) end
  end
  return text
end

-- ---- what the folder says -----------------------------------------------------------------------------------------

local Watch = {}
Watch.__index = Watch

local function new(folder) return setmetatable({ folder = folder, passes = {}, offset = 0, seen = {} }, Watch) end

-- Takes in the lines that came since the last look; a file that became shorter is read anew: the run was resumed.
function Watch:read_metrics()
  local path = self.folder .. "/metrics.jsonl"
  local size = lfs.attributes(path, "mode") == "file" and lfs.attributes(path, "size") or 0
  if size < self.offset then self.passes, self.offset, self.seen = {}, 0, {} end
  if size == self.offset then return end
  self.offset = math.max(self.offset, size - AT_ONCE) -- the torn line there is none
  local file = io.open(path, "rb")
  if not file then return end
  file:seek("set", self.offset)
  local text = file:read(size - self.offset) or ""
  file:close()
  for line, stop in text:gmatch "([^\n]*)\n()" do
    runs.add(self.passes, line)
    self.whole = stop
  end
  self.offset, self.whole = self.offset + (self.whole or 1) - 1, nil
end

function Watch:look(now)
  self.now = now
  self:read_metrics()
  local there = lfs.attributes(self.folder, "mode") == "directory"
  local started = there and lfs.attributes(self.folder .. "/config.json", "mode") == "file"
  self.run = started and runs.read(self.folder, { metrics = false }) or nil
  self.status = self.run and self.run.status or "waiting"
  local pass = self.passes[#self.passes]
  self.pass, self.step = pass, pass and (pass.step or pass.count)
  if pass then
    local seen = self.seen
    if seen.pass ~= #self.passes then seen = { pass = #self.passes } end
    if not seen[1] or seen[#seen].step ~= self.step then seen[#seen + 1] = { time = now, step = self.step } end
    while #seen > 2 and now - seen[1].time > WINDOW do table.remove(seen, 1) end
    self.seen = seen
  end
  return self.status
end

-- Steps a second: over the last half minute of watching; at first, over the life of the files.
function Watch:rate()
  local first, last = self.seen[1], self.seen[#self.seen]
  if first and last.step > first.step and last.time > first.time then
    return (last.step - first.step) / (math.max(self.now, last.time) - first.time)
  end
  local began = lfs.attributes(self.folder .. "/config.json", "modification")
  local ended = lfs.attributes(self.folder .. "/metrics.jsonl", "modification")
  local lines = 0
  for _, pass in ipairs(self.passes) do lines = lines + pass.count end
  if not began or not ended or ended <= began or lines == 0 then return nil end
  return lines / (ended - began) * self.step / self.pass.count
end

-- ---- the picture --------------------------------------------------------------------------------------------------

local function sorted_keys(t)
  local keys = {}
  for key in pairs(t) do keys[#keys + 1] = key end
  table.sort(keys)
  return keys
end

-- The losses of a pass, or where it has none its first figures that are no bytes.
local function chosen(pass)
  local losses, others = {}, {}
  for _, name in ipairs(sorted_keys(pass.metrics)) do
    local list = name:find "loss" and losses or others
    if not name:find "bytes" then list[#list + 1] = name end
  end
  local names = #losses > 0 and losses or others
  return { unpack(names, 1, CURVES) }
end

function Watch:head(columns)
  local run = self.run
  if not run then return { cut(("%s: waiting for the run to begin"):format(plain(self.folder)), columns) } end
  local name = run.config and plain(run.config.recipe) .. ", seed " .. plain(run.config.seed or 1) or "?"
  local lines = { cut(("%s  %s  %s%s"):format(plain(self.folder), name, self.status,
    self.pass and self.pass.label ~= "" and ": " .. plain(self.pass.label) or ""), columns) }
  if run.error then lines[2] = cut(plain(run.error), columns) end
  return lines
end

function Watch:progress(columns)
  local options = self.run and self.run.config and self.run.config.options or {}
  local total = type(options.steps) == "number" and options.steps
  local rate, ended = self:rate(), ENDED[self.status]
  local words = { total and ("step %d of %d"):format(self.step, total) or ("step %d"):format(self.step) }
  if rate then words[#words + 1] = rate >= 1 and ("%.3g steps/s"):format(rate) or ("%.3g s a step"):format(1 / rate) end
  if rate and total and not ended and total > self.step then
    local pass = self.pass.label ~= "" and " of this pass" or ""
    words[#words + 1] = clock((total - self.step) / rate) .. " left" .. pass
  end
  local written = lfs.attributes(self.folder .. "/metrics.jsonl", "modification") or self.now
  if not ended and os.time() - written > 10 then words[#words + 1] = "silent for " .. clock(os.time() - written) end
  local line = table.concat(words, "   ")
  local room = math.min(30, columns - #line - 4)
  if total and total > 0 and room >= 10 then
    local full = math.floor(math.min(1, self.step / total) * room + 0.5)
    line = "[" .. ("="):rep(full) .. (" "):rep(room - full) .. "] " .. line
  end
  return cut(line, columns)
end

-- "loss 2.193  lr 0.001", in as many lines as it takes.
function Watch:values(columns)
  local lines, line = {}, ""
  for _, name in ipairs(sorted_keys(self.pass.metrics)) do
    local y = self.pass.metrics[name].y
    local shown = name:find "bytes" and ("%.0f MB"):format(y[#y] / 2 ^ 20) or ("%.4g"):format(y[#y])
    local word = plain(name) .. " " .. shown
    if line ~= "" and #line + #word + 3 > columns then lines[#lines + 1], line = line, "" end
    line = line == "" and word or line .. "   " .. word
  end
  lines[#lines + 1] = line
  return lines
end

--- The whole picture. @param columns, rows  its size @param looks  {color =, unicode =} @return list of lines
function Watch:draw(columns, rows, looks)
  local lines = self:head(columns)
  if not self.pass then
    if self.run then lines[#lines + 1] = "no metrics yet" end
    return lines
  end
  lines[#lines + 1] = self:progress(columns)
  for i, line in ipairs(self:values(columns)) do
    if i <= 4 then lines[#lines + 1] = cut(line, columns) end
  end
  local names, series, legend = chosen(self.pass), {}, {}
  for i, name in ipairs(names) do
    local s = self.pass.metrics[name]
    local x, y = require("perigee.report.page").thin(s.x, s.y, math.max(3, 2 * columns))
    series[i], legend[i] = { x = x, y = y }, chart.mark(i, looks.color) .. " " .. plain(name)
  end
  local height = math.min(24, rows - #lines - 3)
  if height >= 4 then
    lines[#lines + 1] = ""
    local size = { width = columns, height = height, color = looks.color, unicode = looks.unicode }
    for _, line in ipairs(chart.lines(series, size)) do lines[#lines + 1] = line end
    if not looks.color and #series == 1 and looks.unicode then legend = { plain(names[1]) } end
    lines[#lines + 1] = table.concat(legend, "   ")
  end
  return lines
end

-- ---- the terminal -------------------------------------------------------------------------------------------------

local function window_size()
  local window = ffi.new "unsigned short[4]"
  if ffi.C.ioctl(1, TIOCGWINSZ, window) == 0 and window[0] > 0 and window[1] > 0 then return window[1], window[0] end
  return 80, 24
end

local function first_line(command)
  local pipe = io.popen(command)
  local line = pipe and pipe:read "*l"
  if pipe then pipe:close() end
  return line
end

-- Waits for a key. @return true when it is one to leave with, or the terminal is gone
local function left(keys)
  local one = ffi.new("struct pg_poll[1]", { { 0, POLLIN, 0 } })
  if ffi.C.poll(one, keys and 1 or 0, INTERVAL) <= 0 or not keys then return host.interrupted() end
  local buffer = ffi.new "char[64]"
  local n = tonumber(ffi.C.read(0, buffer, 64))
  return n <= 0 or ffi.string(buffer, n):find "[qQ\3\4]" ~= nil
end

local function follow(self, looks, now)
  while true do
    local status = self:look(now())
    local columns, rows = window_size()
    local lines = self:draw(columns, rows - 1, looks)
    lines[#lines + 1] = ENDED[status] and "" or "q leaves"
    io.write("\27[H", table.concat(lines, "\27[K\r\n"), "\27[K\27[J")
    io.flush()
    if ENDED[status] or left(looks.keys) then return end
  end
end

local function unicode()
  local locale = os.getenv "LC_ALL" or ""
  if locale == "" then locale = os.getenv "LC_CTYPE" or "" end
  if locale == "" then locale = os.getenv "LANG" or "" end
  return locale:lower():find "utf%-?8" ~= nil
end

function watch.main(_, words)
  local folder = words[1]
  if not folder then args.usage "watch: which run? (perigee watch RUN)" end
  if #words > 1 then args.usage("watch: one run at a time, got %d", #words) end
  folder = #folder > 1 and folder:gsub("/+$", "") or folder
  local mode = lfs.attributes(folder, "mode")
  if mode and mode ~= "directory" then error(("watch: '%s' is no run folder"):format(folder), 0) end
  local now, self = require("perigee.ffi").pg_now, new(folder)
  local looks = { unicode = unicode(), color = host.isatty(1) and not os.getenv "NO_COLOR", keys = host.isatty(0) }
  if host.isatty(1) then
    host.graceful(true)
    local settings = looks.keys and first_line "stty -g"
    if settings then os.execute "stty -icanon -echo" end
    io.write "\27[?1049h\27[?25l"
    local ok, why = pcall(follow, self, looks, now)
    io.write "\27[?25h\27[?1049l"
    if settings then os.execute("stty " .. settings) end
    if not ok then error(why, 0) end
  else
    self:look(now())
  end
  local columns, rows = 80, 24
  if host.isatty(1) then columns, rows = window_size() end
  io.write(table.concat(self:draw(columns, rows - 1, looks), "\n"), "\n")
  return 0
end

return watch
