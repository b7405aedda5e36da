-- report.lua - `perigee report RUN...`: one HTML file, and on request PNG files, Markdown and CSV, of many runs.

local args = require "perigee.cli.args"
local host = require "perigee.host"

local report = {
  command = {
    usage = "report RUN... [--html FILE] [--png DIR] [--md FILE] [--csv FILE] [options]",
    about = "Lays runs side by side: a table of options and results, curves, mean and 95% interval over seeds,\n"
      .. "methods by tasks, pictures, and the command that repeats each. RUN is a run folder or a folder that holds\n"
      .. "some. Without a target it writes report.html. A damaged run is one line of warning, and listed as broken.",
    options = {
      { "--html", "FILE", "one HTML file that needs nothing else (report.html)" },
      { "--png", "DIR", "the charts as PNG files" },
      { "--md", "FILE", "the tables as Markdown" },
      { "--csv", "FILE", "every option and figure as CSV" },
      { "--group", "A,B", "options whose equal values make a group (all that differ but the seed)" },
      { "--title", "TEXT", "title of the report (Perigee report)" },
      { "--pictures", "MB", "pictures that the HTML file holds at most (20)", kind = "whole", min = 0, max = 1000 },
    },
  },
}

-- The command as a reader of this copy starts it: from the source tree, or installed.
local function program() return host.executable:match "/build/perigee$" and "build/perigee" or "perigee" end

local function write(path, text)
  require("perigee.util").write_file(path, text)
  io.write(path, "\n")
end

function report.main(values, words)
  if not words[1] then args.usage "report: which runs? (perigee report RUN...)" end
  local pg = require "perigee"
  local collected = pg.report.collect(words, { program = program(), metrics = values.html or values.png
    or not (values.md or values.csv) })
  for _, line in ipairs(collected.warnings) do io.stderr:write("perigee: ", (line:gsub("%c", " ")), "\n") end
  local options = { title = values.title, group = values.group }
  if values.html or not (values.png or values.md or values.csv) then
    write(values.html or "report.html", pg.report.html(collected, { title = values.title, group = values.group,
      pictures = values.pictures }))
  end
  if values.md then write(values.md, pg.report.markdown(collected, options)) end
  if values.csv then write(values.csv, pg.report.csv(collected)) end
  if values.png then
    for _, path in ipairs(pg.report.png(collected, values.png, options)) do io.write(path, "\n") end
  end
  return 0
end

return report
