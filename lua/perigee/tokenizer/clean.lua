-- clean.lua - what becomes of a caption before it is cut into pieces (docs/method.md 6.4). There are two ways, and a
-- model needs the one that it was trained with:
--
--   openai    OpenAI's and open_clip's: text repaired as ftfy.fix_text does, HTML references decoded twice, white space
--             collapsed, lower case with Python's final sigma
--   hf        that of transformers' CLIPTokenizerFast: normal form C, white space collapsed, lower case by character
--
-- Of ftfy this is everything but the guess at text that was decoded with a wrong code page ("cafÃ©"): such text stays
-- as it is. That guess is a table of some forty rules over twelve classes of characters and ten code pages.

local unicode = require "perigee.tokenizer.unicode"

local clean = {}

local CHARACTER = "[\194-\244][\128-\191]+" -- one that is not ASCII, in valid UTF-8

-- ---- HTML's character references ----------------------------------------------------------------------------------

-- named: every name; bare: those that also count without a semicolon, the longest of them first in a longer word.
local named, bare, LONGEST_BARE = {}, {}, 6
for name, star, points in require("perigee.tokenizer.entities"):gmatch "(%w+)(%*?)=(%S+)" do
  named[name] = points:gsub("(%x+),?", function(hex) return unicode.char(tonumber(hex, 16)) end)
  if star == "*" then bare[name] = named[name] end
end

-- Windows-1252 from 0x80 to 0x9f, which HTML reads for the C1 controls; what it leaves open stays a control.
local WINDOWS = {}
for i, point in ipairs { 0x20AC, 0x81, 0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021, 0x02C6, 0x2030, 0x0160, 0x2039,
  0x0152, 0x8D, 0x017D, 0x8F, 0x90, 0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014, 0x02DC, 0x2122, 0x0161,
  0x203A, 0x0153, 0x9D, 0x017E, 0x0178 } do WINDOWS[0x7F + i] = unicode.char(point) end

-- The character of a numeric reference (HTML 13.2.5.80 as Python's html.unescape has it): none for controls and
-- noncharacters, U+FFFD for what is no character.
local function numbered(point)
  if point == 0 or point > 0x10FFFF or (point >= 0xD800 and point <= 0xDFFF) then return "\239\191\189" end
  if WINDOWS[point] then return WINDOWS[point] end
  local control = point < 0x20 and point ~= 9 and point ~= 10 and point ~= 12 and point ~= 13 or point == 0x7F
  local no_character = point >= 0xFDD0 and point <= 0xFDEF or point % 0x10000 >= 0xFFFE
  return (control or no_character) and "" or unicode.char(point)
end

local function decode(hash, word, semicolon)
  if hash == "#" then
    local x, digits, rest = word:match "^([xX])(%x+)(.*)$"
    if not x then digits, rest = word:match "^(%d+)(.*)$" end
    if not digits then return nil end
    return numbered(tonumber(digits, x and 16 or 10)) .. rest .. (rest ~= "" and semicolon or "")
  end
  if semicolon == ";" and named[word] then return named[word] end
  for length = math.min(#word, LONGEST_BARE), 2, -1 do
    local found = bare[word:sub(1, length)]
    if found then return found .. word:sub(length + 1) .. semicolon end
  end
end

--- Decodes HTML's named and numeric character references once, as Python's html.unescape does: a name without its
-- semicolon counts where browsers take it, and the longest that the word begins with.
-- @param text  UTF-8
-- @return UTF-8
function clean.unescape(text)
  if not text:find("&", 1, true) then return text end
  return (text:gsub("&(#?)(%w*)(;?)", decode))
end

-- Text that was put into capitals took its references along: &EACUTE; is a capital É. Only of names in small letters,
-- and where the capitals are no reference of their own.
local shouted
local function in_capitals(name)
  if not shouted then
    shouted = { FFILIG = "FFI", FFLIG = "FF", FFLLIG = "FFL", FILIG = "FI", FLLIG = "FL", NAPOS = "\202\188N",
      SZLIG = "SS" }
    for small, value in pairs(named) do
      local capital = "&" .. small:upper() .. ";"
      if small == small:lower() and not shouted[small:upper()] and clean.unescape(capital) == capital then
        shouted[small:upper()] = unicode.upper(value)
      end
    end
  end
  return shouted[name]
end

-- A whole reference, "&" to ";"; nil leaves it.
local function decode_whole(reference)
  local word = reference:match "^&#?(%w+);$"
  if #word > 24 then return nil end
  if reference:byte(2) ~= 35 then return named[word] or in_capitals(word) end
  local result = clean.unescape(reference)
  return not result:find(";", 1, true) and result or nil
end

-- ---- repairs, as ftfy.fix_text makes them -------------------------------------------------------------------------

local PLAIN = {} -- characters -> what they are a variant of, by everyone's reading
do
  for point, value in pairs(WINDOWS) do PLAIN[unicode.char(point)] = value end
  -- Latin letters that stand for two or three.
  for ligature, letters in pairs { [0x132] = "IJ", [0x133] = "ij", [0x149] = "\202\188n", [0x1C4] = "D\197\189",
    [0x1C5] = "D\197\190", [0x1C6] = "d\197\190", [0x1C7] = "LJ", [0x1C8] = "Lj", [0x1C9] = "lj", [0x1CA] = "NJ",
    [0x1CB] = "Nj", [0x1CC] = "nj", [0x1F1] = "DZ", [0x1F2] = "Dz", [0x1F3] = "dz", [0xFB00] = "ff", [0xFB01] = "fi",
    [0xFB02] = "fl", [0xFB03] = "ffi", [0xFB04] = "ffl", [0xFB05] = "\197\191t", [0xFB06] = "st" } do
    PLAIN[unicode.char(ligature)] = letters
  end
  -- Wide and narrow forms, and the wide space.
  for point = 0xFF01, 0xFFEF do PLAIN[unicode.char(point)] = unicode.nfkc(unicode.char(point)) end
  PLAIN["\227\128\128"] = " "
  -- Curly quotes; line and paragraph separators. The letters above may hold a quote.
  local quotes = { ["\202\188"] = "'", ["\226\128\168"] = "\n", ["\226\128\169"] = "\n" }
  for point = 0x2018, 0x201B do quotes[unicode.char(point)] = "'" end
  for point = 0x201C, 0x201F do quotes[unicode.char(point)] = '"' end
  for character, value in pairs(PLAIN) do PLAIN[character] = value:gsub(CHARACTER, quotes) end
  for character, value in pairs(quotes) do PLAIN[character] = value end
end

local UNSEEN = { ["\239\187\191"] = "" } -- byte order mark; old Arabic controls; annotations and replaced objects
for point = 0x206A, 0x206F do UNSEEN[unicode.char(point)] = "" end
for point = 0xFFF9, 0xFFFC do UNSEEN[unicode.char(point)] = "" end

-- One line. A repair may open the way for another, so all are made until none changes anything.
local function fix_line(text, references)
  local before
  repeat
    before = text
    if references and text:find("&", 1, true) then text = text:gsub("&#?%w+;", decode_whole) end
    local beyond_ascii = text:find "[\128-\255]"
    if beyond_ascii then text = text:gsub(CHARACTER, PLAIN) end
    text = text:gsub("\r\n?", "\n"):gsub("\27%[[%d;]*%a", ""):gsub("[%z\1-\8\11\14-\31\127]", "")
    if beyond_ascii then text = unicode.nfc(text:gsub(CHARACTER, UNSEEN)) end
  until text == before
  return text
end

-- The first "<" says that the text is HTML, whose references are meant: they stay from there on.
local function fix(text)
  local references, lines = true, {}
  for line in text:gmatch "[^\n]*\n?" do
    references = references and not line:find("<", 1, true)
    lines[#lines + 1] = fix_line(line, references)
  end
  return table.concat(lines)
end

-- ---- the two cleanings ----------------------------------------------------------------------------------------------

local SPACES = {} -- Unicode's White_Space beyond ASCII
for _, range in ipairs { { 0x85, 0x85 }, { 0xA0, 0xA0 }, { 0x1680, 0x1680 }, { 0x2000, 0x200A }, { 0x2028, 0x2029 },
  { 0x202F, 0x202F }, { 0x205F, 0x205F }, { 0x3000, 0x3000 } } do
  for point = range[1], range[2] do SPACES[unicode.char(point)] = " " end
end

local function collapse(text, ascii_spaces)
  if text:find "[\128-\255]" then text = text:gsub(CHARACTER, SPACES) end
  return (text:gsub(ascii_spaces, " "))
end

--- Cleans as OpenAI's CLIP and open_clip do.
-- @param text  UTF-8
-- @return UTF-8 in lower case; one space between words, none at the ends
function clean.openai(text)
  text = clean.unescape(clean.unescape(fix(text)))
  text = collapse(text, "[%s\28-\31]+") -- Python's \s has four separators of files and records
  return unicode.lower(text:match "^ ?(.-) ?$", true)
end

--- Cleans as transformers' CLIPTokenizerFast does.
-- @param text  UTF-8
-- @return UTF-8 in lower case, one space for each run of white space
function clean.hf(text)
  return unicode.lower(collapse(unicode.nfc(text), "%s+"), false)
end

return clean
