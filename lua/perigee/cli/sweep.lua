-- sweep.lua - `perigee sweep FILE.lua`: many runs of a recipe, on this machine or through Slurm.

local args = require "perigee.cli.args"
local process = require "perigee.process"
local lfs = require "lfs"

local command = {}

command.command = {
  usage = "sweep FILE.lua [options]",
  about = "Runs a recipe with many options and seeds: lists, ranges and conditions as FILE.lua says (docs/07-sweeps.md).\n"
    .. "What is finished is never done again; a sweep that was cut off, at any instant, goes on with --resume. Ctrl-C lets\n"
    .. "every run save its checkpoint first.",
  options = {
    { "--launcher", "local|slurm", "where runs go: processes on this machine (local), or job arrays" },
    { "--jobs", "N", "runs side by side (as many as processors; Slurm: the array's throttle)", kind = "whole", min = 1,
      max = 100000 },
    { "--resume", nil, "go on with a sweep that has been begun, or whose file has been edited" },
    { "--retries", "N", "start a failed run again, up to N times; with --resume also those that have failed before",
      kind = "whole", min = 0, max = 1000 },
    { "--list", nil, "print the runs and what has become of them, and start nothing" },
    { "--reindex", nil, "make index.sqlite anew from the run folders, print the summary, and start nothing" },
    { "--quiet", nil, "print the summary and what goes wrong alone" },
    { "--task", "NAME", "do one run of the sweep whose folder stands in place of FILE.lua (what launchers start)" },
    { "--array", "LIST", "the same for a task of a job array: the run in line SLURM_ARRAY_TASK_ID of LIST" },
  },
}

local function say(format, ...) io.stderr:write(format:format(...), "\n") end

-- A word for the shell of whoever copies the line.
local function shell(word)
  return word:match "^[%w_./=-]+$" and word or "'" .. word:gsub("'", "'\\''") .. "'"
end

local function print_list(plan, folder, summary)
  local names = summary.varying(plan)
  for _, planned in ipairs(plan.runs) do
    local state = folder.state(plan.folder .. "/" .. planned.name)
    io.write(("%-10s  %s  %s seed=%s\n"):format(state, planned.name, summary.words(names, planned.options),
      require("perigee.util").number(planned.seed)))
  end
end

-- The plan, with the thread count that the sweep began with: results depend on it to the last bit.
local function make_plan(spec, runs, values, folder)
  local before = folder.load_plan(spec.folder)
  if before and before.recipe ~= spec.recipe and #folder.names(spec.folder) > 0 then
    args.usage("%s: %s holds a sweep of %s: choose another folder", spec.file, spec.folder, tostring(before.recipe))
  end
  local threads = spec.threads
  local launcher = require "perigee.sweep.launch_local"
  if values.launcher == "slurm" then threads = threads or before and before.threads or spec.slurm and spec.slurm.cpus or 1
  else
    threads = threads or before and before.threads or select(2, launcher.share(spec, values.jobs))
  end
  spec.threads = threads
  return folder.save_plan(spec, runs)
end

-- The runs that are to be done. @return names in the plan's order, and how many were begun before
local function unfinished(plan, folder)
  local names, begun = {}, 0
  for _, planned in ipairs(plan.runs) do
    local path = plan.folder .. "/" .. planned.name
    local state, about = folder.state(path)
    if state ~= "new" then begun = begun + 1 end
    local conflict = folder.conflict(path, planned)
    if conflict then args.usage("%s: %s", plan.file, conflict) end
    local over = state == "done" or state == "stopped" or state == "failed" and about.attempts > plan.retries
    if not over then names[#names + 1] = planned.name end
  end
  return names, begun
end

local function launch(plan, spec, names, values)
  local screen = require("perigee.sweep.screen").new(plan, names, values.quiet)
  local index = require("perigee.sweep.index").open(plan, function(line) screen:say("%s", line) end)
  local ok, ended
  if values.launcher == "slurm" then
    ok, ended = pcall(require("perigee.sweep.launch_slurm").run, plan, names, { slurm = spec.slurm, throttle = values.jobs,
      screen = screen, index = index })
  else
    local launcher = require "perigee.sweep.launch_local"
    local jobs = launcher.share(plan, values.jobs)
    if not values.quiet then
      screen:say("%d of %d runs to do, %d at a time, %d thread%s each", #names, #plan.runs, math.min(jobs, #names),
        plan.threads, plan.threads == 1 and "" or "s")
    end
    ok, ended = pcall(launcher.run, plan, names, { jobs = jobs, threads = plan.threads, screen = screen, index = index })
    ended = ended ~= true and "interrupted" or nil
  end
  screen:close()
  index:close()
  if not ok then error(ended, 0) end
  return ended
end

local function check(path, values, words)
  if not path then args.usage "sweep: which file? (perigee sweep FILE.lua)" end
  if #words > 1 then args.usage("sweep: one file at a time, got %d", #words) end
  values.launcher = values.launcher or "local"
  if values.launcher ~= "local" and values.launcher ~= "slurm" then
    args.usage("--launcher: is local or slurm, got '%s'", values.launcher)
  end
end

function command.main(values, words)
  local path = words[1]
  check(path, values, words)
  if values.task then return require("perigee.sweep.worker").main(path, values.task) end
  if values.array then return require("perigee.sweep.worker").array(path, values.array) end

  local sweep, folder = require "perigee.sweep", require "perigee.sweep.folder"
  local summary, index = require "perigee.sweep.summary", require "perigee.sweep.index"
  local spec = sweep.load(path)
  local runs = sweep.expand(spec)
  spec.retries = values.retries or spec.retries
  local dry = { folder = spec.folder, metric = spec.metric, direction = spec.direction, runs = runs, name = spec.name,
    retries = spec.retries, file = spec.file }
  if values.list then
    print_list(dry, folder, summary)
    return 0
  end
  if values.reindex then
    if lfs.attributes(spec.folder, "mode") ~= "directory" then error("there is no folder " .. spec.folder, 0) end
    local count = index.rebuild(dry)
    say("%s/index.sqlite: %d runs", spec.folder, count)
    io.write(table.concat(summary.lines(dry), "\n"), "\n")
    return 0
  end

  folder.make(spec.folder)
  local free, who = process.lock(spec.folder .. "/.lock")
  if not free then error(("%s is in use by another sweep: %s"):format(spec.folder, who), 0) end
  local names, begun = unfinished(dry, folder)
  if begun > 0 and not values.resume then
    args.usage("%s: %d of %d runs in %s have been begun: add --resume to go on", path, begun, #runs, spec.folder)
  end
  local plan = make_plan(spec, runs, values, folder)
  local ended = #names > 0 and launch(plan, spec, names, values) or nil
  if #names == 0 then index.open(plan, function(line) say("%s", line) end):close() end

  local lines, counts = summary.lines(plan)
  io.write(table.concat(lines, "\n"), "\n")
  if ended then
    local again = ("perigee sweep %s%s --resume"):format(shell(path), values.launcher == "slurm" and " --launcher slurm" or "")
    local job = values.launcher == "slurm" and require("perigee.sweep.launch_slurm").job_name(plan)
    if job and ended == "interrupted" then
      say("perigee: interrupted; the jobs go on (scancel -n %s ends them); watch them again with: %s", job, again)
    elseif job then
      say("perigee: the rest was cancelled; submit it again with: %s", again)
    else
      say("perigee: interrupted; continue with: %s", again)
    end
    return ended == "cancelled" and 1 or 130
  end
  return counts.failed > 0 and 1 or 0
end

return command
