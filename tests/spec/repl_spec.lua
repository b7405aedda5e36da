-- repl_spec.lua - the REPL on a terminal of its own, typed into as a person would: Ctrl-C, Tab, history, several lines.

local lfs = require "lfs"
local process = require "process"

local PERIGEE = "build/perigee"
local CTRL_C, CTRL_D, TAB, UP = "\3", "\4", "\t", "\27[A"

describe("the REPL", function()
  local folder, session

  local function write(name, text)
    local file = assert(io.open(folder .. "/" .. name, "wb"))
    file:write(text)
    file:close()
    return folder .. "/" .. name
  end

  local function open(arguments)
    session = process.terminal(("TERM=xterm OMP_NUM_THREADS=1 XDG_STATE_HOME=%s %s repl %s"):format(folder, PERIGEE,
      arguments or ""))
    assert.is_truthy(session:expect "> ", session.seen)
  end

  -- Types a line and waits for what it prints, then for the prompt.
  local function ask(line, answer)
    session:type(line .. "\n")
    assert.is_truthy(session:expect("\n" .. answer), ("%s did not print %s:\n%s"):format(line, answer, session.seen))
    assert.is_truthy(session:expect "\n> ", session.seen)
  end

  local function leave()
    session:type(CTRL_D)
    local status = session:finish()
    session = nil
    return status
  end

  setup(function()
    folder = os.tmpname()
    os.remove(folder)
    lfs.mkdir(folder)
  end)
  after_each(function()
    if session then session:stop() end
    session = nil
  end)
  teardown(function() os.execute("rm -rf " .. folder) end)

  it("returns to the prompt within a second of Ctrl-C, with every object usable", function()
    local compiled = write("compiled.lua", "local n = 0 while true do n = (n * 5 + 1) % 7 end")
    write("found.lua", "return function() local n = 0 while true do n = (n * 5 + 1) % 7 end end")
    open()
    ask("w = pg.ones(2, 3):requires_grad_(true) print 'ready'", "ready")
    ask(("package.path = '%s/?.lua;' .. package.path print 'ready'"):format(folder), "ready")
    for _, endless in ipairs {
      "for i = 1, 1e9 do pg.randn(1000):sum() end", -- operations of the core
      "while true do end", -- nothing but Lua
      "local n = 0 while true do n = (n * 5 + 1) % 7 end", -- arithmetic that the compiler would take
      "dofile '" .. compiled .. "'", -- the same from a file, from a module and from text
      "require 'found' ()",
      "loadstring 'local n = 0 while true do n = (n * 5 + 1) % 7 end' ()",
      "pg.no_grad(function() while true do pg.scope(function() return w * 2 end) end end)",
      "while true do pg.gradcheck(function(x) return (x * x):sum() end, { pg.ones(3, { dtype = 'float64' }) }) end",
      "while true do (w * w):sum():backward() end",
    } do
      session:type(endless .. "\n")
      assert.is_nil(session:expect("\n> ", 0.4), endless .. " ended by itself")
      session:type(CTRL_C)
      local seconds = session:expect("interrupted\r\n> ", 10)
      assert.is_truthy(seconds, endless .. " goes on:\n" .. session.seen)
      assert.is_true(seconds < 1, ("%s took %.2f s to stop"):format(endless, seconds))
      ask("w.grad = nil (w * 3):sum():backward() print(w:sum():item(), w.grad:sum():item())", "6\t18")
    end
    assert.equal(0, leave())
  end)

  it("outlives Ctrl-C pressed twice, and drops a half-typed line", function()
    open()
    session:type "while true do end\n"
    assert.is_nil(session:expect("\n> ", 0.3))
    session:type(CTRL_C .. CTRL_C .. CTRL_C)
    assert.is_truthy(session:expect("> ", 5), session.seen)
    while session:take(0.5) do end -- the second and third come to the prompt, which takes what is half typed with it
    session:type("nonsense" .. CTRL_C)
    assert.is_truthy(session:expect("^C\r\n> ", 5), session.seen)
    ask("6 * 7", "42")
    session:type("for i = 1, 2 do\n")
    assert.is_truthy(session:expect("\n>> ", 5), session.seen)
    session:type(CTRL_C)
    assert.is_truthy(session:expect("^C\r\n> ", 5), session.seen)
    ask("6 * 8", "48")
    assert.equal(0, leave())
  end)

  it("prints values, goes on after an error, reads several lines", function()
    open()
    ask("1 + 1", "2")
    ask("= 'a', nil", "a\tnil")
    ask("pg.arange(3):to 'float32'", "tensor (3) float32 cpu")
    ask("{ 1, 2 }", "{1, 2}")
    ask("error 'boom'", "boom")
    ask("x = = 1", "unexpected symbol")
    ask("pg.ones(2) + pg.ones(3)", "add: shapes do not broadcast: a (2), b (3)")
    ask("setmetatable({}, { __tostring = function() error 'unprintable' end })", "unprintable")
    session:type "function double(v)\n"
    assert.is_truthy(session:expect("\n>> ", 5), session.seen)
    session:type "  return 2 * v\n"
    assert.is_truthy(session:expect("\n>> ", 5), session.seen)
    session:type "end\n"
    assert.is_truthy(session:expect("\n> ", 5), session.seen)
    ask("double(21)", "42")
    assert.equal(0, leave())
  end)

  it("completes names with Tab", function()
    open()
    ask("y = pg.ones(4) print 'ready'", "ready")
    ask("pg.aran" .. TAB .. "(3):sum():item()", "6")
    ask("y:is_contig" .. TAB .. "()", "true")
    session:type("pg.rand" .. TAB)
    for _, name in ipairs { "rand ", "randn", "randperm" } do assert.is_truthy(session:expect(name, 5), session.seen) end
    session:type(CTRL_C)
    assert.is_truthy(session:expect("^C\r\n> ", 5), session.seen)
    assert.equal(0, leave())
  end)

  it("computes the completions", function()
    local path = write("complete.lua", [[
      pg = require "perigee"
      t = pg.ones(2)
      local complete = require("perigee.cli.repl").complete
      for _, line in ipairs { "pg.zer", "print(pg.optim.Ada", "t:requires_grad", "x = t.gra", "pg.safetens", "no.such.",
        "1 + t:item():x" } do
        local names, typed = complete(line)
        print(line, table.concat(names, " "), typed)
      end
      print(#complete "t:" > 60, #complete "pg." > 60)]])
    local status, said = process.sh(("%s run %s --out %s/complete"):format(PERIGEE, path, folder))
    assert.equal(0, status, said)
    assert.equal("pg.zer\tzeros\t3\nprint(pg.optim.Ada\tAdamW\t3\nt:requires_grad\trequires_grad requires_grad_\t13\n"
      .. "x = t.gra\tgrad\t3\npg.safetens\tsafetensors\t8\nno.such.\t\t0\n1 + t:item():x\t\t0\ntrue\ttrue\n", said)
  end)

  it("keeps its history in a file", function()
    open()
    ask("'an old ' .. 'line'", "an old line")
    leave()
    assert.is_truthy(process.read(folder .. "/perigee/history"):find("line", 1, true))
    open()
    session:type(UP .. "\n")
    assert.is_truthy(session:expect("\nan old line\r\n", 5), session.seen)
    leave()
  end)

  it("runs a file first, which may fail or be stopped", function()
    open(write("first.lua", "answer = 42"))
    ask("answer", "42")
    leave()
    open(write("fails.lua", "answer = 43 error 'half-way'"))
    assert.is_truthy(session.seen:find("half-way", 1, true))
    ask("answer", "43")
    leave()
    local endless = write("endless.lua", "answer = 44 local n = 0 while true do n = n + 1 end")
    session = process.terminal(("%s repl %s"):format(PERIGEE, endless))
    assert.is_nil(session:expect("> ", 0.6))
    session:type(CTRL_C)
    assert.is_truthy(session:expect("> ", 5), session.seen)
    ask("answer", "44")
    leave()
    local status, said = process.sh(PERIGEE .. " repl /nowhere.lua </dev/null")
    assert.equal(2, status)
    assert.equal("perigee: cannot open /nowhere.lua: No such file or directory\n", said)
  end)

  it("works without a terminal", function()
    local status, said = process.sh("printf "
      .. "'1 + 1\\nerror(7)\\nfor i = 1, 2 do\\nprint(i)\\nend\\n3 +\\n' | " .. PERIGEE .. " repl")
    assert.equal(0, status)
    assert.equal("2\n7\n1\n2\nthe last lines were not complete\n", said)
  end)
end)

describe("Ctrl-C in `perigee run`", function()
  local folder, terminal

  setup(function()
    folder = os.tmpname()
    os.remove(folder)
    lfs.mkdir(folder)
  end)
  teardown(function()
    if terminal then terminal:stop() end
    os.execute("rm -rf " .. folder)
  end)

  it("saves a checkpoint, gives status 130, and --resume ends with the same bits", function()
    local recipe = folder .. "/walk.lua"
    local file = assert(io.open(recipe, "wb"))
    file:write [[
      local pg = require "perigee"
      local opt = pg.recipe { name = "walk", options = { { "steps", 100 } } }
      local run = pg.run.open(opt)
      local w, first, saved = pg.zeros(3), 1, run:restore()
      if saved then
        saved:into { w = w }
        first = saved.state.step + 1
      end
      for step = first, opt.steps do
        w = w + pg.randn(3)
        run:log { step = step, w = w:totable() }
        if step == 25 then print "a quarter" io.flush() end
        if not os.getenv "FAST" then for _ = 1, 10 do pg.ones(50000):exp() end end
        if run:interrupted() then
          run:checkpoint({ w = w }, { step = step })
          error("interrupted", 0)
        end
      end
      run:finish { w = w:totable() }]]
    file:close()
    local command = ("%s run %s --threads 1 --seed 5 --out %s"):format(PERIGEE, recipe, folder)
    assert.equal(0, (process.sh("FAST=1 " .. command .. "/whole")))
    terminal = process.terminal(command .. "/stopped")
    assert.is_truthy(terminal:expect("a quarter", 20), terminal.seen)
    terminal:type(CTRL_C)
    local stopped, seen = terminal:finish(), terminal.seen
    terminal = nil
    assert.equal(130, stopped)
    assert.is_truthy(seen:find("--resume " .. folder .. "/stopped", 1, true), seen)
    assert.is_truthy(lfs.attributes(folder .. "/stopped/checkpoint.safetensors", "size"))
    assert.is_nil(lfs.attributes(folder .. "/stopped/result.json", "size"))
    local status, said = process.sh(("FAST=1 %s run %s --resume %s/stopped"):format(PERIGEE, recipe, folder))
    assert.equal(0, status, said)
    assert.equal(process.read(folder .. "/whole/result.json"):match '"w".-\n',
      process.read(folder .. "/stopped/result.json"):match '"w".-\n')
    local steps = 0
    for _ in io.lines(folder .. "/stopped/metrics.jsonl") do steps = steps + 1 end
    assert.equal(100, steps)
  end)
end)
