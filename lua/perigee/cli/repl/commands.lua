-- commands.lua - what begins with a sign at the prompt: %time, %memory, %run, %plot, %help and ?name. Each is given the
-- rest of its line and a session {evaluate = fn(source) -> values; raises}.

local util = require "perigee.util"

local commands = {}

commands.HELP = [[
  ?name                  the doc block of a function, the arguments of an op, what a module has
  %time expression       runs it once; time by the clock, and of all processors together
  %memory                what tensors hold, and the largest that have a name here
  %plot tensor           (N) or (K, N): curves; (N, M): colours; uint8 (H, W, 3) or (N, H, W, 3): pictures
  %run FILE key=value    runs a recipe; its locals then answer to their names, and are all in `locals`
  %help                  this list
  _  __  ___             the last values, the newest first
  Tab  completes         Ctrl-C  stops what runs, drops the line         Ctrl-D  leaves
]]

function commands.help()
  io.write(commands.HELP)
end

-- ---- %time, %memory -------------------------------------------------------------------------------------------------

function commands.time(rest, session)
  util.check(rest:match "%S", "%%time: takes an expression, as in %%time x:matmul(y)")
  local now = require("perigee.ffi").pg_now
  collectgarbage()
  local clock, cpu = now(), os.clock()
  local results = { n = 0 }
  local function keep(...) results = { n = select("#", ...), ... } end
  keep(session.evaluate(rest))
  clock, cpu = now() - clock, os.clock() - cpu
  local function short(s)
    return s < 1e-3 and ("%.0f us"):format(s * 1e6) or s < 1 and ("%.1f ms"):format(s * 1e3) or ("%.2f s"):format(s)
  end
  io.write(("%s; processor time %s\n"):format(short(clock), short(cpu)))
  return unpack(results, 1, results.n)
end

local function sized(bytes)
  return bytes < 1e6 and ("%.1f KB"):format(bytes / 1e3) or ("%.1f MB"):format(bytes / 1e6)
end

function commands.memory()
  local pg = require "perigee"
  local held = pg.memory()
  io.write(("tensors: %d in %s, at most %s so far, %s kept for reuse; Lua: %s\n"):format(held.tensors, sized(held.live),
    sized(held.peak), sized(held.cached), sized(collectgarbage "count" * 1024)))
  local named = {}
  for _, place in ipairs { _G, rawget(_G, "locals") or {} } do
    for name, value in next, place do
      if pg.is_tensor(value) and value:numel() > 0 and require("perigee.ffi").pg_data(value) ~= nil then
        local width = ({ float32 = 4, float64 = 8, int32 = 4, uint8 = 1 })[value:dtype()]
        named[#named + 1] = { name = tostring(name), bytes = value:numel() * width,
          about = ("(%s) %s %s"):format(table.concat(value:shape(), ", "), value:dtype(), value:device()) }
      end
    end
  end
  table.sort(named, function(a, b)
    if a.bytes == b.bytes then return a.name < b.name end
    return a.bytes > b.bytes
  end)
  for i = 1, math.min(#named, 10) do
    io.write(("  %-12s %12s  %s\n"):format(named[i].name, sized(named[i].bytes), named[i].about))
  end
end

-- ---- %plot ----------------------------------------------------------------------------------------------------------

function commands.plot(rest, session)
  util.check(rest:match "%S", "%%plot: takes a tensor, as in %%plot x")
  local pg = require "perigee"
  local t = session.evaluate(rest)
  util.check(pg.is_tensor(t), "%%plot: takes a tensor, got %s", require("perigee.call").describe(t))
  local d, picture = t:dim(), t:dtype() == "uint8"
  if d == 3 and picture and t:size(3) == 3 then return pg.image.show(t) end
  if d == 4 and picture and t:size(4) == 3 then return pg.plot.grid(t) end
  if d == 1 or d == 2 and t:size(1) <= 8 and t:size(2) > 3 * t:size(1) then return pg.plot.line(t) end
  if d == 2 then return pg.plot.heatmap(t) end
  util.fail(0, "%%plot: draws (N), (K, N), (N, M), uint8 (H, W, 3) and uint8 (N, H, W, 3), got %s",
    require("perigee.call").describe(t))
end

-- ---- %run -----------------------------------------------------------------------------------------------------------

-- Words of a line; quotes hold blanks together.
local function words_of(text)
  local words, at = {}, 1
  while true do
    at = text:find("%S", at)
    if not at then return words end
    local word = ""
    while at <= #text and not text:sub(at, at):match "%s" do
      local quote = text:match("^['\"]", at)
      local stop = quote and util.check(text:find(quote, at + 1, true), "%%run: a quote is not closed")
      word = word .. (quote and text:sub(at + 1, stop - 1) or text:sub(at, at))
      at = (stop or at) + 1
    end
    words[#words + 1] = word
  end
end

-- The locals of a chunk and, where it failed, of its functions on the stack, inner ones over outer ones.
local function read_locals(chunk, into)
  local source, frames = debug.getinfo(chunk, "S").source, {}
  for level = 2, 250 do
    local info = debug.getinfo(level, "Sf")
    if not info then break end
    if info.source == source then frames[#frames + 1] = level end
    if info.func == chunk then break end
  end
  for f = #frames, 1, -1 do
    for i = 1, 250 do
      local name, value = debug.getlocal(frames[f], i)
      if not name then break end
      if name:match "^[%a_]" then into[name] = value end
    end
  end
end

-- A recipe is text that ends somewhere: a call there sees all its locals. Before a `return` at the end, if it has one.
local function with_call_at_end(source, name)
  local ended = source .. "\n" .. name .. "()"
  if loadstring(ended) then return ended end
  local last
  for at in source:gmatch "()%f[%w_]return%f[^%w_]" do last = at end
  ended = last and source:sub(1, last - 1) .. name .. "() " .. source:sub(last)
  return ended and loadstring(ended) and ended or source
end

function commands.run(rest)
  local run, args = require "perigee.cli.run", require "perigee.cli.args"
  local values, words = args.parse(run.command, words_of(rest))
  local NAME = "perigee_end_of_recipe"
  local found, chunk = {}, nil
  rawset(_G, NAME, function() read_locals(chunk, found) end)
  local ok, status = pcall(run.main, values, words, {
    source = function(source) return with_call_at_end(source, NAME) end,
    loaded = function(loaded) chunk = loaded end,
    failed = function() read_locals(chunk, found) end,
  })
  rawset(_G, NAME, nil)
  local recipe = require "perigee.recipe"
  recipe.given, recipe.declared = { options = {} }, nil
  local folder = package.loaded["perigee.run"]
  if folder then folder.current = nil end
  local refused = not ok and type(status) == "table" and status.usage -- it never began
  if next(found) and not refused then
    rawset(_G, "locals", found)
    local names = {}
    for name in pairs(found) do names[#names + 1] = name end
    table.sort(names)
    local some = table.concat(names, " ", 1, math.min(#names, 24))
    io.write("locals: ", some, #names > 24 and " ...\n" or "\n")
  end
  if not ok then error(status, 0) end
end

return commands
