-- page.lua - writes a report as one HTML file. page.html is the frame; style.css and the .js files beside it are put
-- into it as they are, and the data as JSON: the page makes every element from text, so that no name can become markup.
--
-- The policy in the frame allows this file's own scripts and styles, by a number that is drawn anew for each page, and
-- pictures inside it; nothing else is run or loaded, whatever the data hold.

local ffi = require "ffi"
local util = require "perigee.util"
local encode = require("perigee.run").encode
local tables = require "perigee.report.tables"

local page = {}

local SCRIPTS = { "data.js", "table.js", "charts.js", "page.js" }
local POINTS, FEWEST, MOST = 600000, 32, 400 -- of all curves together; of one curve
local PICTURE_BYTES = 2 ^ 20                 -- of one picture

local function source(name)
  local file = assert(io.open(util.folder .. "report/" .. name, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end

-- ---- JSON inside HTML: a "<" would be read as markup before the JSON is, and is written as its escape -------------

local function embedded(text) return (text:gsub("<", "\\u003c")) end

local function array(list, write)
  local parts = {}
  for i = 1, #list do parts[i] = write(list[i], i) end
  return "[" .. table.concat(parts, ",") .. "]"
end

local function json(value) return value == nil and "null" or encode(value) end

local function record(fields) -- a list of {name, JSON}, in this order
  return "{" .. table.concat((function()
    local parts = {}
    for i, field in ipairs(fields) do parts[i] = json(field[1]) .. ":" .. field[2] end
    return parts
  end)(), ",") .. "}"
end

local function short(x) return x % 1 == 0 and math.abs(x) < 2 ^ 53 and ("%d"):format(x) or ("%.5g"):format(x) end

-- ---- curves -------------------------------------------------------------------------------------------------------

--- Fewer points of a curve that look the same: largest triangle, three buckets (S. Steinarsson, "Downsampling time
-- series for visual representation", 2013, section 4.2). The first and the last point stay.
-- @param x, y   lists of numbers, equally long
-- @param count  points to keep, 3 or more
-- @return x and y, at most `count` each
function page.thin(x, y, count)
  local n = #x
  if n <= count then return x, y end
  local kept_x, kept_y, width, at = { x[1] }, { y[1] }, (n - 2) / (count - 2), 1
  for bucket = 1, count - 2 do
    local first, last = math.floor((bucket - 1) * width) + 2, math.floor(bucket * width) + 1
    local next_first, next_last = last + 1, math.min(n, math.floor((bucket + 1) * width) + 1)
    local mean_x, mean_y = 0, 0
    for i = next_first, next_last do mean_x, mean_y = mean_x + x[i], mean_y + y[i] end
    local many, best, area = next_last - next_first + 1, first, -1
    mean_x, mean_y = mean_x / many, mean_y / many
    for i = first, last do
      local size = math.abs((x[at] - mean_x) * (y[i] - y[at]) - (x[at] - x[i]) * (mean_y - y[at]))
      if size > area then best, area = i, size end
    end
    kept_x[#kept_x + 1], kept_y[#kept_y + 1], at = x[best], y[best], best
  end
  kept_x[#kept_x + 1], kept_y[#kept_y + 1] = x[n], y[n]
  return kept_x, kept_y
end

-- A line of text for each line of the report, which the page reads when it is chosen: metric -> list of [label, x, y].
local function curves_of(collected)
  local series, metrics, seen, texts = 0, {}, {}, {}
  for _, line in ipairs(collected.lines) do
    series = series + #line.curves
    for _, curve in ipairs(line.curves) do
      if not seen[curve.metric] then seen[curve.metric], metrics[#metrics + 1] = true, curve.metric end
    end
  end
  local points = math.max(FEWEST, math.min(MOST, math.floor(POINTS / math.max(1, series))))
  for l, line in ipairs(collected.lines) do
    local names, by_name = {}, {}
    for _, curve in ipairs(line.curves) do
      local x, y = page.thin(curve.x, curve.y, points)
      if not by_name[curve.metric] then by_name[curve.metric], names[#names + 1] = {}, curve.metric end
      local parts = { json(curve.label), array(x, short), array(y, short) }
      table.insert(by_name[curve.metric], "[" .. table.concat(parts, ",") .. "]")
    end
    for i, name in ipairs(names) do names[i] = { name, "[" .. table.concat(by_name[name], ",") .. "]" } end
    texts[l] = record(names)
  end
  table.sort(metrics, function(a, b) -- what is minimised is looked at first
    local loss_a, loss_b = a:find "loss" ~= nil, b:find "loss" ~= nil
    return loss_a ~= loss_b and loss_a or loss_a == loss_b and a < b
  end)
  return metrics, table.concat(texts, "\n")
end

-- ---- pictures -----------------------------------------------------------------------------------------------------

local ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

--- Bytes as base64 (RFC 4648, section 4). @param bytes text @return text
function page.base64(bytes)
  local n, out = #bytes, ffi.new("char[?]", math.ceil(#bytes / 3) * 4)
  local input, letters, at = ffi.cast("const uint8_t *", bytes), ffi.cast("const char *", ALPHABET), 0
  for i = 0, n - 1, 3 do
    local a, b, c = input[i], i + 1 < n and input[i + 1] or 0, i + 2 < n and input[i + 2] or 0
    out[at] = letters[bit.rshift(a, 2)]
    out[at + 1] = letters[bit.bor(bit.lshift(bit.band(a, 3), 4), bit.rshift(b, 4))]
    out[at + 2] = i + 1 < n and letters[bit.bor(bit.lshift(bit.band(b, 15), 2), bit.rshift(c, 6))] or 61
    out[at + 3] = i + 2 < n and letters[bit.band(c, 63)] or 61
    at = at + 4
  end
  return ffi.string(out, at)
end

-- The PNG's base64, or nil and why it is not in the page.
local function embed(picture, left)
  if picture.bytes > PICTURE_BYTES then return nil, ("has %.1f MB"):format(picture.bytes / 2 ^ 20) end
  if picture.bytes > left then return nil, "the pictures before it filled the page's share" end
  local file = io.open(picture.path, "rb")
  local bytes = file and file:read(PICTURE_BYTES)
  if file then file:close() end
  if not bytes or bytes:sub(1, 8) ~= "\137PNG\r\n\26\n" then return nil, "is no PNG" end
  return page.base64(bytes)
end

-- A line of text for each run: list of [name, path, base64 or null, why not].
local function pictures_of(collected, megabytes)
  local left, texts = megabytes * 2 ^ 20, {}
  for r, run in ipairs(collected.runs) do
    texts[r] = array(run.pictures, function(picture)
      local data, why = embed(picture, left)
      if data then left = left - picture.bytes end
      return "[" .. json(picture.name) .. "," .. json(require("perigee.report.runs").utf8(picture.path)) .. ","
        .. (data and '"' .. data .. '"' or "null") .. "," .. json(why or "") .. "]"
    end)
  end
  return table.concat(texts, "\n")
end

-- ---- the page -----------------------------------------------------------------------------------------------------

local function cell(value) return value == nil and "null" or encode(value) end

local function data_of(report, collected, options, metrics)
  local quantiles = {}
  for df = 1, math.max(1, #collected.lines - 1) do quantiles[df] = report.stats.t(df) end
  local by = options.group ~= "all" and tables.group_by(report, collected, options.group)
  if by then report.groups(collected, by) end -- raises on a name that is none
  return record {
    { "title", json(options.title) }, { "made", json(os.date "!%Y-%m-%d %H:%M UTC") },
    { "group", by and array(by, json) or "null" }, { "differing", array(report.differing(collected), json) },
    { "columns", array(collected.columns, function(c)
      return json { key = c.key, kind = c.kind, family = c.family, numeric = c.numeric, differs = c.differs or false,
        shown = c.shown or false, decimals = c.decimals }
    end) },
    { "lines", array(collected.lines, function(line)
      return record { { "run", json(line.run - 1) }, { "name", json(line.name) }, { "status", json(line.status) },
        { "cells", array(collected.columns, function(c) return cell(line[c.kind][c.key]) end) } }
    end) },
    { "runs", array(collected.runs, function(run)
      return record { { "name", json(run.name) }, { "folder", json(require("perigee.report.runs").utf8(run.folder)) },
        { "status", json(run.status) }, { "error", json(run.error) }, { "command", json(run.command) } }
    end) },
    { "metrics", array(metrics, json) }, { "quantiles", array(quantiles, json) },
    { "warnings", array(collected.warnings, json) },
  }
end

local function nonce()
  local file = assert(io.open("/dev/urandom", "rb"))
  local bytes = file:read(18)
  file:close()
  return page.base64(bytes)
end

local ENTITIES = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;" }
local function html(text) return (text:gsub('[&<>"]', ENTITIES)) end

--- See pg.report.html.
function page.write(report, collected, options)
  options = util.options("report.html", options, { title = "Perigee report", pictures = 20, group = "all" })
  local scripts = {}
  for i, name in ipairs(SCRIPTS) do scripts[i] = source(name) end
  local metrics, curves = curves_of(collected)
  local parts = {
    title = html(options.title), nonce = nonce(), style = source "style.css", script = table.concat(scripts, "\n"),
    data = embedded(data_of(report, collected, options, metrics)), curves = embedded(curves),
    pictures = embedded(pictures_of(collected, options.pictures)),
  }
  return (source "page.html":gsub("{{(%l+)}}", parts))
end

return page
