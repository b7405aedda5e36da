-- repl_spec.lua - the REPL on a terminal of its own, typed into as a person would: Ctrl-C, Tab, history, several lines.

local lfs = require "lfs"
local process = require "process"

local pg_now = require("perigee.ffi").pg_now

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
    local status, seen = session:finish(), session.seen
    session = nil
    return status, seen
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
      graph = pg.fda.graph(pg.eye(3), { k = 1 })
      local complete = require("perigee.cli.repl").complete
      for _, line in ipairs { "pg.zer", "print(pg.optim.Ada", "t:requires_grad", "x = t.gra", "pg.safetens", "no.such.",
        "1 + t:item():x", "graph.pos" } do
        local names, typed = complete(line)
        print(line, table.concat(names, " "), typed)
      end
      print(#complete "t:" > 60, #complete "pg." > 60)]])
    local status, said = process.sh(("%s run %s --out %s/complete"):format(PERIGEE, path, folder))
    assert.equal(0, status, said)
    assert.equal("pg.zer\tzeros\t3\nprint(pg.optim.Ada\tAdamW\t3\nt:requires_grad\trequires_grad requires_grad_\t13\n"
      .. "x = t.gra\tgrad\t3\npg.safetens\tsafetensors\t8\nno.such.\t\t0\n1 + t:item():x\t\t0\n"
      .. "graph.pos\tpositive\t3\ntrue\ttrue\n", said)
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
    local endless = write("endless.lua", "answer = 44 print 'begun' local n = 0 while true do n = n + 1 end")
    session = process.terminal(("%s repl %s"):format(PERIGEE, endless))
    assert.is_truthy(session:expect("begun\r\n", 20), session.seen)
    assert.is_nil(session:expect("> ", 0.2))
    session:type(CTRL_C)
    assert.is_truthy(session:expect("> ", 5), session.seen)
    ask("answer", "44")
    leave()
    local status, said = process.sh(PERIGEE .. " repl /nowhere.lua </dev/null")
    assert.equal(2, status)
    assert.equal("perigee: cannot open /nowhere.lua: No such file or directory\n", said)
  end)

  -- A second, or as much more as the processors are shared by: what a spin takes by the clock over what it used.
  local function a_second()
    local now, cpu = pg_now(), os.clock()
    while os.clock() - cpu < 0.1 do end
    return math.max(1, (pg_now() - now) / (os.clock() - cpu))
  end

  it("stops one long call of the core within a second, and gives its memory back", function()
    open()
    ask("a = pg.ones(4000, 4000, { dtype = 'float64' }) q = pg.ones(20000, 256) print 'ready'", "ready")
    ask("s = pg.ones(1e7) r = pg.ones(5000, 600):requires_grad_(true) print 'ready'", "ready")
    ask("x = pg.ones(128, 64, 32, 32) k = pg.ones(256, 64, 9, 9) print 'ready'", "ready")
    ask("m = pg.ones(1, 512, 16384) n = pg.ones(1500, 16384, 4) print 'ready'", "ready")
    for _, long in ipairs {
      "b = a:matmul(a)", "b = m:matmul(n)", "b = pg.knn(q, q, 5)", "b = pg.knn(q, q, { k = 5, metric = 'l2' })", "b = s:sort()",
      "b = pg.squared_distances(q, q)", "b = pg.conv2d(x, k)", "b = pcall(pg.knn, q, q, 5)",
    } do
      ask("b = nil collectgarbage() collectgarbage() before = pg.memory().live print 'ready'", "ready")
      session:type(long .. "\n")
      assert.is_nil(session:expect("\n> ", 0.4), long .. " ended by itself")
      session:type(CTRL_C)
      local seconds = session:expect("interrupted\r\n> ", 20)
      assert.is_truthy(seconds, long .. " goes on:\n" .. session.seen)
      assert.is_true(seconds < a_second(), ("%s took %.2f s to stop"):format(long, seconds))
      ask("collectgarbage() collectgarbage() print(b, pg.memory().live == before)", "nil\ttrue")
    end
    session:type "l = (r:matmul(r:t()) * 1):matmul(r):sum() print 'forward' l:backward()\n"
    assert.is_truthy(session:expect("forward\r\n", 60), session.seen)
    session:type(CTRL_C)
    local seconds = session:expect("interrupted\r\n> ", 20)
    assert.is_true(seconds and seconds < a_second(), session.seen)
    ask("r.grad = nil (r:narrow(1, 1, 2) * 3):sum():backward() print(r.grad:sum():item())", "3600")
    assert.equal(0, leave())
  end)

  it("leaves the last values in _, __ and ___", function()
    open()
    ask("2 * 21", "42")
    ask("_ + 1", "43")
    ask("x = 5 print 'no value'", "no value")
    ask("_ .. ' ' .. __", "43 42")
    ask("___", "42")
    assert.equal(0, leave())
  end)

  it("fits tensors in the window", function()
    open()
    ask("pg.arange(6):reshape(2, 3)", "tensor (2, 3) int32 cpu\r\n[[1, 2, 3],\r\n [4, 5, 6]]")
    ask("pg.randn(50, 1000)", "tensor (50, 1000) float32 cpu")
    ask("pg.zeros(3, 40, 50, 30)", "tensor (3, 40, 50, 30) float32 cpu")
    local rows = 0
    for line in session.seen:gsub("\27%[[%d;?]*%a", ""):gmatch "[^\r\n]+" do
      if line:match "^%s*%[" then
        rows = rows + 1
        assert.is_true(#line <= 80, line)
      end
    end
    assert.is_true(rows > 10 and rows < 50, "rows: " .. rows)
    ask("{ 1, { a = 'b' }, pg.ones(2) }", '{1, {a = "b"}, tensor (2) float32}')
    assert.equal(0, leave())
  end)

  it("says which of the user's own lines led to an error", function()
    write("broken.lua", "local t = {}\nfunction t.add(x)\n  return pg.ones(2) + x\nend\nreturn t")
    open()
    ask(("package.path = '%s/?.lua;' .. package.path print 'ready'"):format(folder), "ready")
    session:type "function outer(x)\n  local y = require('broken').add(x)\n  return y\nend\n"
    assert.is_truthy(session:expect("> ", 5))
    ask("outer(pg.ones(3))", folder .. "/broken.lua:3: add: shapes do not broadcast: a (2), b (3)\r\n"
      .. "  in t.add, " .. folder .. "/broken.lua, line 3: return pg.ones(2) + x\r\n"
      .. "  in outer, line 2: local y = require('broken').add(x)")
    ask("pg.ones(2) + pg.ones(3)", "add: shapes do not broadcast: a (2), b (3)")
    assert.is_nil(session.seen:match "b %(3%)\r\n  [^\n]*\r\n> $")
    ask("error(setmetatable({}, { __tostring = function() error 'no' end }))", "an error value that cannot be printed")
    assert.equal(0, leave())
  end)

  it("explains names with a question mark", function()
    open()
    ask("?pg.fda.loss", "pg.fda.loss(x, graph, options)\r\n  The FDA loss")
    ask("pg.image.load?", "pg.image.load(path)\r\n  Reads a PNG")
    ask("?knn", "knn(queries, database, k, metric = \"cosine\", exclude_self = false, screen = true)\r\n  the k nearest rows")
    ask("?pg.randn", "pg.randn(...)\r\n  pg.randn(2, 3, options) and pg.rand: normal")
    ask("?pg.plot", "plot.lua")
    ask("t = pg.ones(2, 3) print 'ready'", "ready")
    ask("?t", "t: tensor (2, 3) float32 cpu, no gradient, 24 bytes")
    ask("?t:sum", "sum(x, dim = {}, keepdim = false)")
    ask("?rand_n", "nothing is called rand_n (did you mean rand")
    ask("?", "  ?name")
    ask("%help", "  ?name")
    ask("%halp", "there is no %halp; %help lists what there is")
    assert.equal(0, leave())
  end)

  it("times, counts memory", function()
    open()
    session:type "%time pg.ones(100):sum():item()\n"
    assert.is_truthy(session:expect("; processor time ", 5), session.seen)
    assert.is_truthy(session:expect("\n100\r\n> ", 5), session.seen)
    ask("%time 1 +", "the expression stops in the middle")
    ask("%time nosuch.field", "attempt to index global 'nosuch'")
    ask("big = pg.zeros(1000, 500) print 'ready'", "ready")
    ask("%memory", "tensors: ")
    assert.is_truthy(session.seen:find("big%s+2.0 MB  %(1000, 500%) float32 cpu"), session.seen)
    assert.equal(0, leave())
  end)

  it("runs a recipe and leaves its locals to be looked at", function()
    local recipe = write("tiny.lua", [[
local pg = require "perigee"
local opt = pg.recipe { name = "tiny", options = { { "steps", 3, min = 1 }, { "word", "none" } } }
local run = pg.run.open(opt)
local total = pg.zeros(2)
local function add(n)
  local share = n / opt.steps
  if n > 5 then error "too many steps" end
  return share
end
for i = 1, opt.steps do total = total + add(i) end
run:finish { total = total:get(1) }
return total]])
    open()
    ask(("%%run %s steps=4 word='two words' --out %s/tiny"):format(recipe, folder), "")
    assert.is_truthy(session.seen:find("locals: add opt pg run total", 1, true), session.seen)
    ask("opt.steps, opt.word, total:get(1)", "4\ttwo words\t2.5")
    ask("total = 'mine' print 'set'", "set")
    ask("total, locals.total:get(1)", "mine\t2.5")
    ask(("%%run %s steps=9 --out %s/fails"):format(recipe, folder), "")
    assert.is_truthy(session.seen:find("tiny.lua:7: too many steps", 1, true), session.seen)
    ask("n, share * 9, opt.steps", "6\t6\t9")
    ask(("%%run %s stops=9"):format(recipe), "")
    assert.is_truthy(session.seen:find("unknown option 'stops' (did you mean 'steps'?)", 1, true), session.seen)
    ask("%run " .. folder .. "/nowhere.lua", "cannot read the recipe")
    ask("%run 'half", "%run: a quote is not closed")
    ask("1 + 1", "2")
    session:type(("%%run %s/ti"):format(folder) .. TAB .. TAB)
    assert.is_truthy(session:expect("tiny.lua", 5), session.seen)
    session:type(CTRL_C)
    assert.is_truthy(session:expect("^C\r\n> ", 5), session.seen)
    assert.equal(0, leave())
  end)

  it("plots in characters where the terminal shows no pictures, in its protocol where it does", function()
    local function plots(environment, first, command)
      session = process.terminal(("TERM=xterm LC_ALL=C TERM_PROGRAM= %s TMPDIR=%s XDG_STATE_HOME=%s %s repl"):format(
        environment, folder, folder, PERIGEE))
      assert.is_truthy(session:expect "> ", session.seen)
      session:type(command .. "\n")
      assert.is_truthy(session:expect(first, 20), session.seen)
      assert.is_truthy(session:expect("\n" .. folder .. "/perigee-", 20), session.seen)
      assert.is_truthy(session:expect("\n> ", 5))
      local path = session.seen:match("\n(" .. folder .. "/perigee%-%w+%.png)")
      assert.equal("\137PNG", process.read(path):sub(1, 4))
      local status, seen = leave()
      assert.equal(0, status, seen)
    end
    plots("TMUX=", " 0 |*", "%plot pg.ones(5):sub(pg.arange(5):to 'float32')")
    plots("PERIGEE_PICTURES=kitty", "\27_Ga=T,f=100,q=2,m=", "%plot pg.randn(20, 20)")
    plots("PERIGEE_PICTURES=iterm", "\27]1337;File=inline=1;size=", "%plot pg.zeros(8, 8, 3, { dtype = 'uint8' })")
    plots("PERIGEE_PICTURES=sixel", "\27P0;1q", "%plot pg.full({ 8, 8, 3 }, 255, { dtype = 'uint8' })")
    open()
    ask("%plot 'word'", "%plot: takes a tensor, got 'word'")
    ask("%plot pg.ones(2, 2, 2)", "%plot: draws (N), (K, N), (N, M)")
    assert.equal(0, leave())
  end)

  it("completes file names within quotes, commands, and the locals of a recipe", function()
    lfs.mkdir(folder .. "/some where")
    write("some where/data.npy", "")
    open()
    ask(("print('%s/some"):format(folder) .. TAB .. TAB .. "')", folder .. "/some where/data.npy")
    ask("%he" .. TAB, "  ?name")
    ask("?pg.image.loa" .. TAB, "pg.image.load(path)")
    ask("locals = { only_here = 3 } print 'ready'", "ready")
    ask("only_h" .. TAB .. " + 1", "4")
    assert.equal(0, leave())
  end)

  it("keeps what was typed when it is killed, and what two sessions typed", function()
    local first = process.terminal(("TERM=xterm XDG_STATE_HOME=%s/two %s repl"):format(folder, PERIGEE))
    assert.is_truthy(first:expect "> ")
    first:type "'from the first'\n"
    assert.is_truthy(first:expect("from the first\r\n> ", 5))
    local second = process.terminal(("TERM=xterm XDG_STATE_HOME=%s/two %s repl"):format(folder, PERIGEE))
    assert.is_truthy(second:expect "> ")
    second:type "'from the second'\n"
    assert.is_truthy(second:expect("from the second\r\n> ", 5))
    first:type "'first again'\n"
    assert.is_truthy(first:expect("first again\r\n> ", 5))
    first:stop()
    second:stop()
    assert.equal("'from the first'\n'from the second'\n'first again'\n", process.read(folder .. "/two/perigee/history"))
    write("two/perigee/history", "_HiStOrY_V2_\n'as\\040it\\040was\\040written'\n" .. ("\0\255\1\n"):rep(9) .. "'newest'\n")
    session = process.terminal(("TERM=xterm XDG_STATE_HOME=%s/two %s repl"):format(folder, PERIGEE))
    assert.is_truthy(session:expect "> ")
    session:type(UP .. UP .. "\n")
    assert.is_truthy(session:expect("\nas it was written\r\n> ", 5), session.seen)
    assert.equal(0, leave())
  end)

  it("outlives whatever is typed", function()
    local state = 12345
    local function random(n)
      state = (state * 1103515245 + 12345) % 2 ^ 31
      return math.floor(state / 2 ^ 31 * n)
    end
    local pieces = { "pg", ".", "(", ")", "[[", "]]", "'", '"', "%", "?", "%time ", "%plot ", "%run ", "_", "x", "=", "1", "+",
      "\t", "--", "\\", "error", "pg.ones(2)", "{", "}", "\27[A", "\27[D", "end", "function", "\255", "\200\150", "\n", "\18",
      "~", "`" }
    -- the terminal's own: Ctrl-C, -D, -Z, -\, -Q, -S, -V
    local not_sent = { [3] = true, [4] = true, [26] = true, [28] = true, [17] = true, [19] = true, [22] = true }
    open()
    for _ = 1, 60 do
      local line = {}
      for i = 1, 1 + random(12) do
        local byte = random(256)
        line[i] = random(3) > 0 and pieces[1 + random(#pieces)] or not_sent[byte] and "" or string.char(byte)
      end
      session:type(table.concat(line) .. "\n")
      while session:take(0.02) do end
    end
    for _ = 1, 3 do -- whatever is open is dropped
      session:type(CTRL_C)
      while session:take(0.2) do end
    end
    session:type "print('still ' .. 'here')\n"
    assert.is_truthy(session:expect("still here\r\n", 10), session.seen:sub(-2000))
    assert.equal(0, leave())
  end)

  -- The page's session, typed anew. Figures may differ, as may the time, memory and the name of a temporary file.
  it("does what its page shows", function()
    local page = process.read "docs/12-repl.md"
    for name, text in page:gmatch "```lua (%S+)\n(.-)```" do write(name, text) end
    local shown = page:match "```text\n(> .-\n)```"
    session = process.terminal(("cd %s; TERM=xterm LC_ALL=C.UTF-8 TMPDIR=%s TERM_PROGRAM= TMUX= PERIGEE_PICTURES=none "
      .. "OMP_NUM_THREADS=1 XDG_STATE_HOME=%s exec %s/%s repl"):format(folder, folder, folder, lfs.currentdir(), PERIGEE))
    assert.is_truthy(session:expect "leaves\r\n> ", session.seen)
    for line in shown:gmatch "[^\n]+" do
      local typed = line:match "^>+ (.*)"
      if typed then
        local least, answered = #session.seen + #typed + 2, false
        session:type(typed .. "\n")
        for _ = 1, 200 do
          answered = #session.seen > least and session.seen:find "\n>+ $"
          if answered then break end
          session:take(0.1)
        end
        assert.is_truthy(answered, session.seen)
      end
    end
    local function plain(text)
      return (text:gsub("\r", ""):gsub("\27%[[%d;?]*%a", ""):gsub(" +\n", "\n"):gsub("%-?%d+%.%d+", "#"):gsub("%d+ us", "# ms")
        :gsub("# [KM]B so far", "# MB so far"):gsub("# s;", "# ms;"):gsub("/%S+/perigee%-%w+%.png", "PNG"):gsub(" +#", " #")
        :gsub("# KB", "# MB"))
    end
    local seen = plain(session.seen:match "leaves\r\n(.*)> $")
    assert.equal(plain(shown), seen)
    assert.equal(0, leave())
  end)

  it("draws tensors for scripts: to a path, or to a new PNG", function()
    local path = write("draw.lua", [=[
      local pg = require "perigee"
      local picture = pg.full({ 6, 9, 3 }, 7, { dtype = "uint8" })
      local m = pg.arange(12):reshape(3, 4)
      for name, t in pairs { line = m, hist = pg.randn(99), heatmap = m, scatter = pg.randn(9, 2),
        grid = pg.stack { picture, picture } } do
        local given = os.getenv "DIR" .. "/" .. name .. ".png"
        assert(pg.plot[name](t, given) == given)
        assert(pg.image.load(given):size(3) == 3)
        local made = pg.plot[name](t)
        assert(made:match("^" .. os.getenv "DIR" .. "/perigee%-%w+%.png$") and pg.image.load(made):numel() > 0)
      end
      assert(pg.image.load(pg.image.show(picture)):eq(7):to("int32"):sum():item() == picture:numel())
      for _, bad in ipairs { { "line", pg.ones(2, 2, 2) }, { "heatmap", pg.ones(2) }, { "scatter", pg.ones(4, 3) },
        { "grid", pg.ones(2, 4, 4, 3) }, { "hist", pg.ones(2):mul(0 / 0) }, { "line", pg.zeros(0) }, { "hist", 3 } } do
        print(select(2, pcall(pg.plot[bad[1]], bad[2])))
      end]=])
    local status, said = process.sh(("DIR=%s TMPDIR=%s %s run %s --out %s/draw"):format(folder, folder, PERIGEE, path, folder))
    assert.equal(0, status, said)
    assert.equal(([[
plot.line: takes a tensor of shape (N) or (K, N), got a tensor (2, 2, 2) float32
plot.heatmap: takes a tensor of shape (N, M), got a tensor (2) float32
plot.scatter: takes two columns, got 3
plot.grid: takes uint8 (N, H, W, 3), got a tensor (2, 4, 4, 3) float32
plot.hist: no value is finite
plot.line: takes a tensor of shape (N) or (K, N), got a tensor (0) float32
plot.hist: takes a tensor of any shape, got 3
]]), (said:gsub(path:gsub("%p", "%%%0") .. ":%d+: ", "")))
  end)

  it("takes Ctrl-D that was typed before the prompt came, and Ctrl-W as a shell does", function()
    for _, typed in ipairs { CTRL_D, "x = 7\n" .. CTRL_D } do
      open()
      session:type "for i = 1, 1e7 do end\n"
      session:take(0.2)
      session:type(typed)
      local status = session:finish()
      assert.equal(0, status, session.seen)
      session = nil
    end
    open()
    ask("print(1 +" .. " nonsense words" .. "\23\23" .. "2)", "3")
    ask("4\0 + 5", "9") -- Ctrl-Space is nothing
    assert.equal(0, leave())
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
