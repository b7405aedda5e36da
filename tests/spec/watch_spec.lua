-- watch_spec.lua - `perigee watch`: a run that has not begun, runs, ends or failed, on a terminal of its own and off one.

local lfs = require "lfs"
local process = require "process"
local folders = require "run_folders"
local chart = require "perigee.cli.chart"

describe("charts in characters", function()
  it("draw a line from corner to corner", function()
    assert.same({ "2 |          *", "  |        **", "  |      **", "1 |     *", "  |   **", "  | **", "0 |*",
      "   0         1" }, chart.lines({ { x = { 0, 1 }, y = { 0, 2 } } }, { width = 14, height = 8 }))
  end)

  it("draw it in dots of Braille", function()
    local lines = chart.lines({ { x = { 0, 1 }, y = { 0, 1 } } }, { width = 11, height = 4, unicode = true })
    assert.same({ "  1 │     ⢀⠔⠊", "0.5 │  ⢀⡠⠊⠁", "  0 │⡠⠔⠁", "     0      1" }, lines)
  end)

  it("tell curves apart by marks, or by colours", function()
    local series = { { x = { 0, 1 }, y = { 0, 0 } }, { x = { 0, 1 }, y = { 1, 1 } } }
    local plain = table.concat(chart.lines(series, { width = 20, height = 5, unicode = true }), "\n")
    assert.is_truthy(plain:find("+++", 1, true) and plain:find("***", 1, true))
    local coloured = table.concat(chart.lines(series, { width = 20, height = 5, unicode = true, color = true }), "\n")
    assert.is_truthy(coloured:find("\27[34m⣀", 1, true) and coloured:find("\27[33m⠉", 1, true), coloured)
  end)

  it("draw one point, a level line, and nothing", function()
    assert.equal(5, #chart.lines({ { x = { 3 }, y = { 7 } } }, { width = 30, height = 5 }))
    assert.equal(5, #chart.lines({ { x = { 3, 4 }, y = { 0, 0 } } }, { width = 30, height = 5 }))
    assert.same({}, chart.lines({ { x = {}, y = {} } }, { width = 30, height = 5 }))
  end)
end)

describe("perigee watch", function()
  local folder
  setup(function() folder = folders.fresh() end)
  teardown(function() os.execute("rm -rf '" .. folder .. "'") end)

  local function metrics(count)
    local list = {}
    for step = 1, count do list[step] = { step = step, loss = 1 / step, lr = 0.1 } end
    return list
  end

  describe("off a terminal prints what there is, and leaves:", function()
    local function watch(name)
      local status, said = process.sh(("LC_ALL=C build/perigee watch '%s/%s'"):format(folder, name))
      assert.equal(0, status, said)
      assert.is_nil(said:find("\27", 1, true))
      return said
    end

    it("a run that has not begun", function()
      assert.equal(folder .. "/none: waiting for the run to begin\n", watch "none")
      lfs.mkdir(folder .. "/empty")
      assert.equal(folder .. "/empty: waiting for the run to begin\n", watch "empty")
      folders.run(folder .. "/started", { options = { steps = 9 } })
      assert.equal(folder .. "/started  toy, seed 1  running\nno metrics yet\n", watch "started")
    end)

    it("a run that runs, with rate and time left", function()
      folders.run(folder .. "/running", { options = { steps = 100 }, metrics = metrics(50) })
      lfs.touch(folder .. "/running/config.json", os.time() - 105, os.time() - 105)
      lfs.touch(folder .. "/running/metrics.jsonl", os.time() - 5, os.time() - 5)
      local said = watch "running"
      assert.is_truthy(said:find("step 50 of 100   2 s a step   1:40 left\n", 1, true), said)
      assert.is_truthy(said:find("[===============               ]", 1, true), said)
      assert.is_truthy(said:find("loss 0.02   lr 0.1\n", 1, true), said)
      assert.is_truthy(said:find("\n     1 |*", 1, true) or said:find("\n   1 |*", 1, true), said)
    end)

    it("a run of several passes, the last one of which it shows", function()
      local lines = {}
      for _, method in ipairs { "naive", "fda" } do
        for step = 1, 4 do lines[#lines + 1] = { step = step, method = method, loss = #lines } end
      end
      folders.run(folder .. "/passes", { options = { steps = 4 }, metrics = lines, result = { loss = 1 } })
      local said = watch "passes"
      assert.is_truthy(said:find("finished: fda\n", 1, true), said)
      assert.is_truthy(said:find("step 4 of 4", 1, true) and said:find("loss 7\n", 1, true), said)
    end)

    it("a run that failed, and what a terminal would obey is no more than text", function()
      folders.run(folder .. "/failed", { options = {},
        metrics = { { step = 1, ["a\27[2J"] = 1, method = "\27]0;x\7\194\155" } },
        log = "\27[31mno disk\nstack traceback:\n\t[C]: in ?\n" })
      local said = watch "failed"
      assert.is_truthy(said:find("failed: ?]0;x??\n?[31mno disk\n", 1, true), said)
      assert.is_truthy(said:find("a?[2J 1", 1, true), said)
    end)

    it("nothing of a file", function()
      for words, expected in pairs { [""] = { 2, "which run?" }, ["a b"] = { 2, "one run at a time" },
        Makefile = { 1, "'Makefile' is no run folder" } } do
        local status, said = process.sh("build/perigee watch " .. words)
        assert.equal(expected[1], status)
        assert.is_truthy(said:find(expected[2], 1, true), said)
      end
    end)
  end)

  describe("on a terminal", function()
    local session
    after_each(function() if session then session:stop() end end)

    -- Starts it in a shell that says, when it has left, whether the terminal is as it was.
    local function open(name)
      session = process.terminal(("LC_ALL=C TERM=xterm build/perigee watch '%s/%s'; "
        .. "echo left $? $(stty -a | grep -o ' icanon')"):format(folder, name))
      return session
    end

    local function left()
      assert.is_truthy(session:expect("left 0 icanon", 30), session.seen)
      session:finish()
      session = nil
    end

    it("waits, follows, and leaves at q", function()
      open "later"
      assert.is_truthy(session:expect("waiting for the run to begin", 30), session.seen)
      folders.run(folder .. "/later", { options = { steps = 20 }, metrics = metrics(3) })
      assert.is_truthy(session:expect("step 3 of 20", 30), session.seen)
      local file = io.open(folder .. "/later/metrics.jsonl", "ab")
      file:write('{"step": 4, "loss": 0.125}\n{"step": 5, "lo')
      file:flush()
      assert.is_truthy(session:expect("step 4 of 20", 30), session.seen)
      file:write 'ss": 0.0625}\n'
      file:close()
      assert.is_truthy(session:expect("step 5 of 20", 30), session.seen)
      assert.is_truthy(session:expect("loss 0.0625", 30), session.seen)
      session:type "xq"
      left()
    end)

    it("leaves at Ctrl-C", function()
      folders.run(folder .. "/stays", { options = { steps = 20 }, metrics = metrics(3) })
      open "stays"
      assert.is_truthy(session:expect("step 3 of 20", 30), session.seen)
      session:type "\3"
      left()
    end)

    it("leaves by itself when the run ends, and the last picture stays", function()
      folders.run(folder .. "/ends", { options = { steps = 20 }, metrics = metrics(20) })
      open "ends"
      assert.is_truthy(session:expect("running", 30), session.seen)
      folders.write(folder .. "/ends/result.json", '{"loss": 1}')
      assert.is_truthy(session:expect("\27[?1049l", 30), session.seen)
      assert.is_truthy(session:expect("finished", 30), session.seen)
      left()
    end)

    it("reads anew what a resume cut back", function()
      folders.run(folder .. "/cut", { options = { steps = 20 }, metrics = metrics(10) })
      open "cut"
      assert.is_truthy(session:expect("step 10 of 20", 30), session.seen)
      folders.run(folder .. "/cut", { options = { steps = 20 }, metrics = metrics(4) })
      assert.is_truthy(session:expect("step 4 of 20", 30), session.seen)
      session:type "q"
      left()
    end)
  end)
end)
