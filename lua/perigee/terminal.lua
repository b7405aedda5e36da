-- terminal.lua - pictures and charts in the terminal: as pixels where it speaks kitty's, iTerm2's or the sixel protocol,
-- as characters where it does not.
--
-- Which protocol a terminal speaks is told by the environment it sets; PERIGEE_PICTURES=kitty, iterm, sixel or none says
-- it where that is wrong. Within tmux and screen none is assumed, since they pass none on.

local bit = require "bit"
local ffi = require "ffi"
local util = require "perigee.util"

local terminal = {}

local found, host = pcall(require, "perigee.host")
if not found then host = { isatty = function() return false end, columns = function() return 80 end } end

-- ---- pixels ---------------------------------------------------------------------------------------------------------

--- How pictures reach this terminal.
-- @return "kitty", "iterm", "sixel", or nil: not at all
function terminal.protocol()
  local told = os.getenv "PERIGEE_PICTURES"
  if told and told ~= "" then
    util.check(({ kitty = 1, iterm = 1, sixel = 1, none = 1 })[told],
      "PERIGEE_PICTURES=%s: is kitty, iterm, sixel or none", told)
    return told ~= "none" and told or nil
  end
  local term, program = os.getenv "TERM" or "", os.getenv "TERM_PROGRAM" or ""
  if os.getenv "TMUX" or term:find "^screen" or term:find "^tmux" then return nil end
  if term == "xterm-kitty" or os.getenv "KITTY_WINDOW_ID" or term == "xterm-ghostty" or program == "ghostty" then
    return "kitty"
  end
  if program == "iTerm.app" or program == "WezTerm" or os.getenv "LC_TERMINAL" == "iTerm2" then return "iterm" end
  if term:find "sixel" or term:find "^foot" or term:find "^mlterm" or term:find "^yaft" then return "sixel" end
  return nil
end

local LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

local function base64(bytes)
  local out = {}
  for i = 1, #bytes, 3 do
    local a, b, c = bytes:byte(i, i + 2)
    local word = a * 65536 + (b or 0) * 256 + (c or 0)
    for k = 0, 3 do
      local at = bit.band(bit.rshift(word, 18 - 6 * k), 63) + 1
      out[#out + 1] = (k == 2 and not b or k == 3 and not c) and "=" or LETTERS:sub(at, at)
    end
  end
  return table.concat(out)
end

local function kitty(png)
  local text, parts = base64(png), {}
  for i = 1, #text, 4096 do
    local more = i + 4096 <= #text and 1 or 0
    parts[#parts + 1] = ("\27_G%sm=%d;%s\27\\"):format(i == 1 and "a=T,f=100,q=2," or "", more, text:sub(i, i + 4095))
  end
  return table.concat(parts)
end

local function iterm(png) return ("\27]1337;File=inline=1;size=%d:%s\7"):format(#png, base64(png)) end

-- A picture (H, W, 3) in 216 colours: bands of six rows, each a line of characters for every colour that is in it.
local function sixel(t)
  local h, w, p = t:size(1), t:size(2), t:data()
  local out = { ('\27P0;1q"1;1;%d;%d'):format(w, h) }
  local defined = {}
  for top = 0, h - 1, 6 do
    local rows, first = {}, true
    for y = top, math.min(top + 5, h - 1) do
      for x = 0, w - 1 do
        local q = p + (y * w + x) * 3
        local color = math.floor(q[0] / 255 * 5 + 0.5) * 36 + math.floor(q[1] / 255 * 5 + 0.5) * 6
          + math.floor(q[2] / 255 * 5 + 0.5)
        local row = rows[color]
        if not row then
          row = ffi.new("uint8_t[?]", w)
          rows[color] = row
        end
        row[x] = row[x] + bit.lshift(1, y - top)
      end
    end
    for color, row in pairs(rows) do
      if not defined[color] then
        defined[color] = true
        out[#out + 1] = ("#%d;2;%d;%d;%d"):format(color, math.floor(color / 36) * 20, math.floor(color / 6) % 6 * 20,
          color % 6 * 20)
      end
      out[#out + 1] = (first and "" or "$") .. "#" .. color
      first = false
      local x = 0
      while x < w do
        local same = x
        while same < w and row[same] == row[x] do same = same + 1 end
        out[#out + 1] = ("!%d%s"):format(same - x, string.char(63 + row[x]))
        x = same
      end
    end
    out[#out + 1] = "-"
  end
  out[#out + 1] = "\27\\"
  return table.concat(out)
end

--- A PNG file as the text that makes a terminal show it.
-- @param path      file name
-- @param protocol  "kitty", "iterm" or "sixel"
-- @return text
-- @raises one line naming the file when it cannot be read
function terminal.pixels(path, protocol)
  if protocol == "sixel" then return sixel(require("perigee.image").load(path)) end
  local file, why = io.open(path, "rb")
  if not file then util.fail(0, "cannot read %s", why) end
  local png = file:read "*a"
  file:close()
  return protocol == "kitty" and kitty(png) or iterm(png)
end

-- ---- characters -----------------------------------------------------------------------------------------------------

local SHADES = " .:-=+*#%@"

local function letters_are_wide() -- whether the terminal shows more than ASCII
  local locale = os.getenv "LC_ALL"
  if not locale or locale == "" then locale = os.getenv "LC_CTYPE" end
  if not locale or locale == "" then locale = os.getenv "LANG" or "" end
  return locale:lower():gsub("%-", ""):find "utf8" ~= nil
end

--- A picture in characters: two pixels a character in 24-bit colour where COLORTERM says that there is such, else shades.
-- @param t  uint8 (H, W, 3) or (H, W)
-- @param columns  characters across; the window's by default, at most 80
-- @return text of several lines
function terminal.characters(t, columns)
  columns = columns or math.min(host.columns() - 1, 80)
  local depth = os.getenv "COLORTERM"
  local colored = letters_are_wide() and (depth == "truecolor" or depth == "24bit")
  if t:dim() == 2 then t = require("perigee").stack({ t, t, t }, 3) end
  local h, w = t:size(1), t:size(2)
  local wide = math.max(1, math.min(columns, w * 2))
  local tall = math.max(1, math.min(math.floor(wide * h / w / 2 + 0.5), 40))
  if colored then tall = tall * 2 end
  local small = require("perigee.image").resize(t, tall, wide)
  local p, lines = small:data(), {}
  for y = 0, tall - 1, colored and 2 or 1 do
    local line = {}
    for x = 0, wide - 1 do
      local a = p + (y * wide + x) * 3
      if colored then
        local b = p + ((y + 1) * wide + x) * 3
        line[x + 1] = ("\27[38;2;%d;%d;%dm\27[48;2;%d;%d;%dm\226\150\128"):format(a[0], a[1], a[2], b[0], b[1], b[2])
      else
        local at = math.floor((0.299 * a[0] + 0.587 * a[1] + 0.114 * a[2]) / 255 * (#SHADES - 1) + 0.5) + 1
        line[x + 1] = SHADES:sub(at, at)
      end
    end
    lines[#lines + 1] = table.concat(line) .. (colored and "\27[0m" or "")
  end
  return table.concat(lines, "\n")
end

local function finite(x) return x == x and x ~= math.huge and x ~= -math.huge end

local function bounds(list)
  local lo, hi = math.huge, -math.huge
  for _, x in ipairs(list) do
    if finite(x) then lo, hi = math.min(lo, x), math.max(hi, x) end
  end
  if lo > hi then return 0, 1 end
  if lo == hi then return lo - 0.5, hi + 0.5 end
  return lo, hi
end

--- Points in characters, with the ends of both axes: dots of two by four to a character, or stars without UTF-8.
-- @param x, y  lists of numbers, as many of one as of the other; what is not finite is left out
-- @param options  {joined = false: lines from each point to the next, columns, rows = 12}
-- @return text of several lines
function terminal.chart(x, y, options)
  options = util.options("terminal.chart", options, { joined = false, columns = util.none, rows = 12 })
  util.check(#x == #y, "terminal.chart: %d x and %d y", #x, #y)
  local fine = letters_are_wide()
  local x0, x1 = bounds(x)
  local y0, y1 = bounds(y)
  local top, bottom = ("%.4g"):format(y1), ("%.4g"):format(y0)
  local margin = math.max(#top, #bottom)
  local columns = math.max(8, (options.columns or math.min(host.columns(), 80)) - margin - 3)
  local across, down = fine and 2 or 1, fine and 4 or 1
  local w, h, grid = columns * across, options.rows * down, {}
  local function place(i)
    if not (finite(x[i]) and finite(y[i])) then return nil end
    return math.floor((x[i] - x0) / (x1 - x0) * (w - 1) + 0.5), math.floor((y1 - y[i]) / (y1 - y0) * (h - 1) + 0.5)
  end
  local px, py
  for i = 1, #x do
    local cx, cy = place(i)
    if cx then
      local steps = options.joined and px and math.max(math.abs(cx - px), math.abs(cy - py)) or 0
      for s = 0, steps do
        local share = steps == 0 and 1 or s / steps
        local gx = math.floor((px or cx) + (cx - (px or cx)) * share + 0.5)
        local gy = math.floor((py or cy) + (cy - (py or cy)) * share + 0.5)
        grid[gy * w + gx] = true
      end
    end
    px, py = cx, cy
  end
  local DOTS = { { 1, 8 }, { 2, 16 }, { 4, 32 }, { 64, 128 } } -- of a braille character, by row and column
  local lines = {}
  for r = 0, options.rows - 1 do
    local line = {}
    for c = 0, columns - 1 do
      local dots = 0
      for dy = 0, down - 1 do
        for dx = 0, across - 1 do
          if grid[(r * down + dy) * w + c * across + dx] then dots = dots + (fine and DOTS[dy + 1][dx + 1] or 1) end
        end
      end
      if not fine then line[c + 1] = dots > 0 and "*" or " "
      else line[c + 1] = string.char(226, 160 + math.floor(dots / 64), 128 + dots % 64) end
    end
    local label = r == 0 and top or r == options.rows - 1 and bottom or ""
    lines[r + 1] = (" "):rep(margin - #label) .. label .. " |" .. table.concat(line)
  end
  local left, right = ("%.4g"):format(x0), ("%.4g"):format(x1)
  lines[#lines + 1] = (" "):rep(margin + 2) .. left .. (" "):rep(math.max(1, columns - #left - #right)) .. right
  return table.concat(lines, "\n")
end

-- ---- either ---------------------------------------------------------------------------------------------------------

--- A name for a PNG that nobody has named. @return a path in TMPDIR or /tmp, of a file that is there and empty
function terminal.temporary()
  ffi.cdef "int mkstemps(char *template_name, int suffix); int close(int fd);"
  local folder = os.getenv "TMPDIR"
  local template = (folder and folder ~= "" and folder or "/tmp") .. "/perigee-XXXXXX.png"
  local name = ffi.new("char[?]", #template + 1, template)
  local fd = ffi.C.mkstemps(name, 4)
  util.check(fd >= 0, "cannot make a file in %s", template:match "^(.*)/")
  ffi.C.close(fd)
  return ffi.string(name)
end

--- Shows a PNG on stdout, when that is a terminal: as it is, or through `characters` where no protocol is spoken.
-- @param path  file name
-- @param characters  fn() -> text, or nil
-- @return true when anything was shown
function terminal.show(path, characters)
  if not host.isatty(1) then return false end
  local protocol = terminal.protocol()
  if not protocol and not characters then return false end
  io.write(protocol and terminal.pixels(path, protocol) or characters(), "\n")
  io.flush()
  return true
end

return terminal
