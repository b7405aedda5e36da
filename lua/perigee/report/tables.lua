-- tables.lua - a report as Markdown and as CSV. Names, options and errors come from outside: nothing in them is markup,
-- and no spreadsheet takes them for a formula.

local tables = {}

--- A value as a table shows it: numbers of a column with its decimals, else with six digits; nothing as "".
-- @param value     number, text, boolean or nil
-- @param decimals  of the column, or nil
-- @return text
function tables.text(value, decimals)
  if value == nil or value ~= value then return "" end
  if type(value) ~= "number" then return tostring(value) end
  if decimals then return ("%%.%df"):format(decimals):format(value) end
  return value % 1 == 0 and math.abs(value) < 1e9 and ("%d"):format(value) or ("%.6g"):format(value)
end

-- "0.8123 ± 0.0145"
local function mean_text(figure, decimals)
  if not figure then return "" end
  local mean = decimals and math.max(decimals, 2) or nil
  local text = tables.text(figure.mean, mean)
  return figure.half == figure.half and text .. " ± " .. tables.text(figure.half, mean) or text
end

-- ---- Markdown -----------------------------------------------------------------------------------------------------

local MARKUP = "[\\`*_{}%[%]()#+!|~$]"
local ENTITIES = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;" }

local function plain(text)
  local escaped = text:gsub("[&<>]", ENTITIES):gsub(MARKUP, "\\%0"):gsub("%c", " ")
  return (escaped:gsub("(%w)\\_%f[%w]", "%1_")) -- an underscore inside a word marks nothing
end

local function markdown_table(out, heads, numeric, rows)
  local marks, cells = {}, {}
  for i, head in ipairs(heads) do marks[i], cells[i] = numeric[i] and "---:" or "---", plain(head) end
  out[#out + 1] = "| " .. table.concat(cells, " | ") .. " |"
  out[#out + 1] = "| " .. table.concat(marks, " | ") .. " |"
  for _, row in ipairs(rows) do
    local line = {}
    for i = 1, #heads do line[i] = numeric[i] and row[i] or plain(row[i]) end
    out[#out + 1] = "| " .. table.concat(line, " | ") .. " |"
  end
  out[#out + 1] = ""
end

local function table_of_lines(collected, out)
  local heads, numeric, columns, rows = { "run", "status" }, { false, false }, {}, {}
  for _, column in ipairs(collected.columns) do
    if column.shown then
      columns[#columns + 1] = column
      heads[#heads + 1], numeric[#numeric + 1] = column.key, column.numeric
    end
  end
  for r, line in ipairs(collected.lines) do
    rows[r] = { line.name, line.status }
    for i, column in ipairs(columns) do rows[r][i + 2] = tables.text(line[column.kind][column.key], column.decimals) end
  end
  markdown_table(out, heads, numeric, rows)
end

local function table_of_groups(groups, by, columns, out)
  local heads, numeric, rows = {}, {}, {}
  for i, key in ipairs(by) do heads[i], numeric[i] = key, false end
  if #by == 0 then heads[1], numeric[1] = "runs", false end
  local first = #heads
  heads[first + 1], numeric[first + 1] = "n", true
  for _, column in ipairs(columns) do heads[#heads + 1], numeric[#numeric + 1] = column.title, true end
  for g, group in ipairs(groups) do
    rows[g] = {}
    for i = 1, #by do rows[g][i] = tables.text(group.values[i]) end
    if #by == 0 then rows[g][1] = group.name end
    rows[g][first + 1] = tostring(group.count)
    for i, column in ipairs(columns) do
      rows[g][first + 1 + i] = mean_text(group.figures[column.key], column.decimals)
    end
  end
  markdown_table(out, heads, numeric, rows)
end

local function commas(text)
  local list = {}
  for word in text:gmatch "[^,%s]+" do list[#list + 1] = word end
  return list
end

--- The options that a report is grouped by: {group = "all" or "a,b"} as a list. @param report, collected, group @return
-- list
function tables.group_by(report, collected, group)
  return (group == nil or group == "all") and report.differing(collected) or commas(group)
end

--- Whether a group has any of a family's figures. @param group of report.groups @param keys list @return boolean
function tables.has_any(group, keys)
  for _, key in ipairs(keys) do
    if group.figures[key] then return true end
  end
  return false
end

--- See pg.report.markdown.
function tables.markdown(report, collected, options)
  options = require("perigee.util").options("report.markdown", options, { title = "Perigee report", group = "all" })
  local by = tables.group_by(report, collected, options.group)
  local groups = report.groups(collected, by)
  local out = { "# " .. plain(options.title), "", ("%d runs, %d lines."):format(#collected.runs, #collected.lines), "" }
  table_of_lines(collected, out)
  local figures = {}
  for _, column in ipairs(collected.columns) do
    if column.kind == "results" and column.numeric and not column.family then
      figures[#figures + 1] = { key = column.key, title = column.key, decimals = column.decimals }
    end
  end
  if #figures > 0 then
    out[#out + 1] = "## Mean and 95% interval\n"
    table_of_groups(groups, by, figures, out)
  end
  for _, family in ipairs(report.families(collected)) do
    local members = {}
    for i, key in ipairs(family.keys) do
      for _, column in ipairs(collected.columns) do
        if column.key == key and column.kind == "results" then
          members[i] = { key = key, title = family.members[i], decimals = column.decimals }
        end
      end
    end
    out[#out + 1] = "## " .. plain(family.name) .. "\n"
    local those = {}
    for _, group in ipairs(groups) do those[#those + 1] = tables.has_any(group, family.keys) and group or nil end
    table_of_groups(those, by, members, out)
  end
  if #collected.warnings > 0 then
    out[#out + 1] = "## Warnings\n"
    for _, text in ipairs(collected.warnings) do out[#out + 1] = "- " .. plain(text) end
  end
  return (table.concat(out, "\n"):gsub("%s+$", "")) .. "\n"
end

-- ---- CSV ----------------------------------------------------------------------------------------------------------

-- Text that opens as a formula does (OWASP, CSV injection) gets an apostrophe before it; numbers are numbers.
local function csv_cell(value)
  if value == nil then return "" end
  if type(value) == "number" then return (require("perigee.run").encode(value)) end
  local text = tostring(value)
  if text:match "^%s*[=+@\t\r-]" or text:match "^[\t\r\n]" then text = "'" .. text end
  if text:find '[",\r\n;]' or text:match "^%s" or text:match "%s$" then text = '"' .. text:gsub('"', '""') .. '"' end
  return text
end

--- See pg.report.csv.
function tables.csv(collected)
  local heads = { "run", "status", "error" }
  for _, column in ipairs(collected.columns) do heads[#heads + 1] = column.key end
  heads[#heads + 1] = "command"
  for i, head in ipairs(heads) do heads[i] = csv_cell(head) end
  local out = { table.concat(heads, ",") }
  for l, line in ipairs(collected.lines) do
    local run = collected.runs[line.run]
    local cells = { csv_cell(line.name), csv_cell(line.status), csv_cell(run.error) }
    for _, column in ipairs(collected.columns) do
      local value = line[column.kind][column.key]
      cells[#cells + 1] = csv_cell(value)
    end
    cells[#cells + 1] = csv_cell(run.command)
    out[l + 1] = table.concat(cells, ",")
  end
  return table.concat(out, "\n") .. "\n"
end

return tables
