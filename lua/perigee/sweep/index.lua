-- index.lua - one SQLite file about all runs of a sweep, for questions: SWEEP/index.sqlite. It holds nothing that is not
-- in the run folders, and is made anew from them whenever a sweep starts, ends or is asked to (--reindex).
--
--   runs     name, id, seed, planned (1: the sweep file still asks for it), state, metric, seconds, attempts, error, folder
--   options  name, key, value                       results  name, key (dotted path), value

local util = require "perigee.util"
local folder = require "perigee.sweep.folder"

local index, Index = {}, {}
Index.__index = Index

local SCHEMA = {
  "CREATE TABLE runs (name TEXT PRIMARY KEY, id TEXT, seed INTEGER, planned INTEGER, state TEXT, metric REAL, "
    .. "seconds REAL, attempts INTEGER, error TEXT, folder TEXT)",
  "CREATE TABLE options (name TEXT, key TEXT, value, PRIMARY KEY (name, key))",
  "CREATE TABLE results (name TEXT, key TEXT, value, PRIMARY KEY (name, key))",
}

local function quote(value)
  if value == nil then return "NULL" end
  if type(value) == "number" then return value - value == 0 and util.number(value) or "NULL" end
  if type(value) == "boolean" then return value and "1" or "0" end
  return "'" .. tostring(value):gsub("%z", ""):gsub("'", "''") .. "'"
end

local function insert(kind, ...)
  local parts = {}
  for i = 1, select("#", ...) do parts[i] = quote((select(i, ...))) end
  return ("INSERT OR REPLACE INTO %s VALUES (%s)"):format(kind, table.concat(parts, ", "))
end

--- What the index says of one run: everything comes from its folder and the plan.
-- @return a list of SQL statements
function index.statements(plan, name, planned)
  local path = plan.folder .. "/" .. name
  local state, about = folder.state(path)
  local config = folder.json(path .. "/config.json") or {}
  local failed = folder.json(path .. "/failed.json") or {}
  local result = folder.json(path .. "/result.json")
  local id, seed = name:match "^(%x+)%-(%d+)$"
  local metric
  if state == "done" then metric = folder.metric(path, about, plan.metric) end
  local list = { ("DELETE FROM options WHERE name = %s"):format(quote(name)),
    ("DELETE FROM results WHERE name = %s"):format(quote(name)),
    insert("runs", name, id, tonumber(seed), planned and 1 or 0, state, metric, result and result.seconds,
      failed.attempts or 0, failed.error, path) }
  for key, value in pairs(planned and planned.options or config.options or {}) do
    list[#list + 1] = insert("options", name, key, value)
  end
  for _, leaf in ipairs(folder.leaves(result or {})) do list[#list + 1] = insert("results", name, leaf[1], leaf[2]) end
  return list
end

local function each_run(plan)
  local planned, list = {}, {}
  for _, entry in ipairs(plan.runs) do
    planned[entry.name] = entry
    list[#list + 1] = entry.name
  end
  for _, name in ipairs(folder.names(plan.folder)) do
    if not planned[name] then list[#list + 1] = name end
  end
  return list, planned
end

local function connect(path)
  local found, luasql = pcall(require, "luasql.sqlite3")
  if not found then error("the index needs lua-sql-sqlite3 (apt-get install lua-sql-sqlite3)", 0) end
  local environment = luasql.sqlite3()
  local connection, why = environment:connect(path)
  if not connection then error(("cannot open %s: %s"):format(path, tostring(why)), 0) end
  return connection
end

local function execute(connection, sql)
  local done, why = connection:execute(sql)
  if not done then error(tostring(why), 0) end
  if type(done) == "userdata" then done:close() end
end

local function transaction(connection, statements)
  execute(connection, "BEGIN")
  local ok, why = pcall(function()
    for _, sql in ipairs(statements) do execute(connection, sql) end
    execute(connection, "COMMIT")
  end)
  if not ok then
    connection:execute "ROLLBACK"
    error(why, 0)
  end
end

--- Makes the index anew from the run folders, beside the old one and then in its place.
-- @param plan  the sweep's plan
-- @return the number of runs in it
-- @raises one line with the reason; the old index is then untouched
function index.rebuild(plan)
  local path = plan.folder .. "/index.sqlite"
  local temporary = path .. ".tmp"
  os.remove(temporary)
  local names, planned = each_run(plan)
  local connection = connect(temporary)
  local ok, why = pcall(function()
    for _, sql in ipairs(SCHEMA) do execute(connection, sql) end
    local statements = {}
    for _, name in ipairs(names) do
      for _, sql in ipairs(index.statements(plan, name, planned[name])) do statements[#statements + 1] = sql end
    end
    transaction(connection, statements)
  end)
  connection:close()
  if ok then ok, why = os.rename(temporary, path) end
  if not ok then
    os.remove(temporary)
    error(("the index %s cannot be made: %s"):format(path, tostring(why)), 0)
  end
  return #names
end

--- An index that is kept up to date while a sweep goes on. Nothing in it can stop a sweep: what goes wrong here is said
-- once, and made good when the sweep ends.
-- @param plan  the sweep's plan
-- @param say   a function of one line of text
function index.open(plan, say)
  local self = setmetatable({ plan = plan, planned = {}, say = say }, Index)
  for _, entry in ipairs(plan.runs) do self.planned[entry.name] = entry end
  local ok, why = pcall(function()
    index.rebuild(plan)
    self.connection = connect(plan.folder .. "/index.sqlite")
    execute(self.connection, "PRAGMA busy_timeout = 2000")
  end)
  if not ok then self:complain(why) end
  return self
end

function Index:complain(why)
  if not self.said then self.say("perigee: " .. tostring(why) .. "; the run folders have everything") end
  self.said, self.stale = true, true
end

--- Brings the rows of one run up to date. @param name of the run
function Index:update(name)
  if not self.connection or self.stale then return end
  local ok, why = pcall(function()
    transaction(self.connection, index.statements(self.plan, name, self.planned[name]))
  end)
  if not ok then self:complain(why) end
end

--- The end: made anew where an update was missed.
function Index:close()
  if self.connection then self.connection:close() end
  if not self.stale then return end
  self.said = nil
  local ok, why = pcall(index.rebuild, self.plan)
  if not ok then self:complain(why) end
end

return index
