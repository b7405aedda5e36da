-- report_spec.lua - what `perigee report` makes of run folders, whole and broken: lines, groups, HTML, Markdown, CSV,
-- PNG. tests/workbench/browser_spec.lua opens the page in a browser.

local lfs = require "lfs"
local cjson = require "cjson"
local process = require "process"
local folders = require "run_folders"
local report = require "perigee.report"
local page = require "perigee.report.page"
local runs = require "perigee.report.runs"

local BOUNDS = cjson.decode(process.read "tests/fixtures/report/intervals.json")

local function near(expected, got, slack)
  assert.is_true(math.abs(expected - got) <= (slack or 1e-10) * math.max(1, math.abs(expected)),
    ("expected %.15g, got %.15g"):format(expected, got))
end

-- The JSON of one of the page's data blocks.
local function block(html, id)
  return html:match('<script id="' .. id:gsub("%-", "%%-") .. '" type="application/json">(.-)</script>')
end

-- Rows of a CSV file (RFC 4180), read by a reader of our own.
local function read_csv(text)
  local rows, row, cell, at, quoted = {}, {}, {}, 1, false
  while at <= #text do
    local c = text:sub(at, at)
    if quoted then
      if c == '"' and text:sub(at + 1, at + 1) == '"' then
        cell[#cell + 1], at = '"', at + 1
      elseif c == '"' then quoted = false
      else cell[#cell + 1] = c end
    elseif c == '"' then quoted = true
    elseif c == "," or c == "\n" then
      row[#row + 1], cell = table.concat(cell), {}
      if c == "\n" then rows[#rows + 1], row = row, {} end
    else cell[#cell + 1] = c end
    at = at + 1
  end
  return rows
end

describe("reports", function()
  local folder
  setup(function() folder = folders.fresh() end)
  teardown(function() os.execute("rm -rf '" .. folder .. "'") end)

  local function by_name(collected)
    local map = {}
    for _, line in ipairs(collected.lines) do map[line.name] = line end
    return map
  end

  -- ---- statistics -------------------------------------------------------------------------------------------------

  it("have scipy's quantiles and intervals", function()
    for df, t in pairs(BOUNDS.quantiles) do near(t, report.stats.t(tonumber(df)), 1e-9) end
    for _, sample in ipairs(BOUNDS.samples) do
      local mean, half = report.stats.interval(sample.values)
      near(sample.mean, mean)
      near(sample.half, half, 1e-9)
    end
    near(math.tan(0.475 * math.pi), report.stats.t(1), 1e-12) -- closed forms: scipy's quantiles end at ten digits
    near(0.95 * math.sqrt(2 / (1 - 0.95 ^ 2)), report.stats.t(2), 1e-12)
    local mean, half = report.stats.interval { 3 }
    assert.equal(3, mean)
    assert.is_true(half ~= half)
  end)

  it("group by every option that differs but the seed, or by those named", function()
    local place = folder .. "/groups"
    for i, values in ipairs { BOUNDS.samples[3].values, BOUNDS.samples[4].values } do
      for seed, value in ipairs(values) do
        folders.run(("%s/%d-%d"):format(place, i, seed), { seed = seed,
          options = { lr = i / 1000, steps = 5, batch = seed % 2 == 0 and 32 or 64 }, result = { accuracy = value } })
      end
    end
    local collected = report.collect(place)
    assert.same({ "batch", "lr" }, report.differing(collected))
    assert.equal(4, #report.groups(collected))
    local groups = report.groups(collected, { "lr" })
    for i, group in ipairs(groups) do
      local sample = BOUNDS.samples[i + 2]
      assert.equal(#sample.values, group.count)
      near(sample.mean, group.figures.accuracy.mean)
      near(sample.half, group.figures.accuracy.half, 1e-9)
    end
    assert.equal("all runs", report.groups(collected, {})[1].name)
    assert.has_error(function() report.groups(collected, { "lrr" }) end,
      "report: no run has an option 'lrr' (did you mean 'lr'?)")
    local text = report.markdown(collected, { group = "lr" })
    local sample = BOUNDS.samples[3]
    assert.is_truthy(text:find(("| 0.001 | 4 | %.4f ± %.4f |"):format(sample.mean, sample.half), 1, true), text)
  end)

  -- ---- what a line is ---------------------------------------------------------------------------------------------

  it("make a line of each row of a result, with its own curves", function()
    local place = folder .. "/rows"
    local metrics = {}
    for _, method in ipairs { "naive", "fda", "fda" } do
      for step = 1, 3 do metrics[#metrics + 1] = { step = step, method = method, loss = step + #metrics } end
    end
    folders.run(place .. "/a", { options = { method = "naive,linear_probe,fda", weight = "1,2" }, metrics = metrics,
      result = { seconds = 9, task = "shape", before = { color = 0.5, shape = 0.25 }, rows = {
        { method = "naive", a_lp = 0.5, tasks = { color = -0.1 }, seconds = 3, list = { 1, 2 } },
        { method = "linear_probe", a_lp = 0.6, tasks = { color = 0 } },
        { method = "fda", weight = 1, a_lp = 0.7, tasks = { color = 0.1 } },
        { method = "fda", weight = 2, a_lp = 0.8, tasks = { color = 0.2 } } } } })
    local collected = report.collect(place .. "/a")
    local lines = by_name(collected)
    assert.same({ "a: naive", "a: linear_probe", "a: fda 1", "a: fda 2" }, (function()
      local names = {}
      for i, line in ipairs(collected.lines) do names[i] = line.name end
      return names
    end)())
    assert.equal("naive", lines["a: naive"].options.method)
    assert.equal(2, lines["a: fda 2"].options.weight)
    assert.equal(3, lines["a: naive"].results.seconds)
    assert.equal(9, lines["a: fda 1"].results.seconds)
    assert.equal(0.5, lines["a: fda 1"].results["before.color"])
    assert.equal(0, #lines["a: linear_probe"].curves)
    assert.same({ 1, 3, 5 }, lines["a: naive"].curves[1].y)
    assert.same({ 4, 6, 8 }, lines["a: fda 1"].curves[1].y)
    assert.same({ 7, 9, 11 }, lines["a: fda 2"].curves[1].y)
    for _, column in ipairs(collected.columns) do -- the run gave text, its rows numbers or nothing
      if column.key == "weight" then assert.is_false(column.numeric) end
    end
    local families = report.families(collected)
    assert.same({ name = "tasks", keys = { "tasks.color" }, members = { "color" } }, families[2])
  end)

  it("take a word that is a number in every run for one", function()
    local place = folder .. "/words"
    for seed, weight in ipairs { "10", "0.5", 3 } do
      folders.run(place .. "/" .. seed, { seed = seed, options = { weight = weight, mixed = seed == 1 and "own" or "2" },
        result = { f = { a = seed / 1000, b = seed } } })
    end
    local collected = report.collect(place)
    local columns = {}
    for _, column in ipairs(collected.columns) do columns[column.key] = column end
    assert.is_true(columns.weight.numeric)
    assert.is_false(columns.mixed.numeric)
    assert.equal(0.5, collected.lines[2].options.weight)
    assert.equal("2", collected.lines[2].options.mixed)
    assert.equal(columns["f.b"].decimals, columns["f.a"].decimals) -- a family is aligned
    assert.is_truthy(collected.runs[1].command:find("weight=10 ", 1, true))
  end)

  it("say how a run stands", function()
    local place, lines = folder .. "/status", { { step = 1, loss = 2 }, { step = 2, loss = 1 } }
    local trace = "\nstack traceback:\n\t[C]: in function 'error'\n\ttoy.lua:1: in main chunk\n"
    folders.run(place .. "/finished", { result = { loss = 1 } })
    folders.run(place .. "/failed", { metrics = lines, log = "said\ntoy.lua:1: no <such> file" .. trace })
    folders.run(place .. "/interrupted", { metrics = lines, log = "interrupted" .. trace })
    folders.run(place .. "/continued", { metrics = lines, log = "toy.lua:1: no" .. trace .. "step 3\n" })
    folders.run(place .. "/killed", { metrics = lines })
    folders.run(place .. "/stopped", { metrics = lines, log = "interrupted" .. trace })
    folders.write(place .. "/stopped/stopped.json", '{"step": 2}')
    folders.run(place .. "/kept", { metrics = lines })
    folders.write(place .. "/kept/failed.json", '{"attempts": 1, "error": "no space"}')
    for _, name in ipairs { "config.json", "metrics.jsonl", "log.txt" } do
      lfs.touch(place .. "/killed/" .. name, os.time() - 1000, os.time() - 1000)
    end
    local found = by_name(report.collect(place))
    for name, status in pairs { finished = "finished", failed = "failed", interrupted = "interrupted",
      continued = "running", killed = "unfinished", stopped = "stopped", kept = "failed" } do
      assert.equal(status, found[name].status, name)
    end
    assert.equal("toy.lua:1: no <such> file", runs.read(place .. "/failed", {}).error)
    assert.equal("no space", runs.read(place .. "/kept", {}).error)
  end)

  it("give the command that repeats a run, safe for the shell", function()
    local config = { file = "-my recipe.lua", seed = 7, device = "cpu", threads = 2, options = { lr = 0.1 + 0.2,
      steps = 30, clamp = true, name = "it's $(rm -rf /) `x`\n;", ["a b"] = "" } }
    local command = runs.command(config, "perigee")
    local _, said = process.sh("set -- " .. command .. '; for w; do printf "%s|" "$w"; done')
    assert.equal("perigee|run|./-my recipe.lua|a b=|clamp=true|lr=0.30000000000000004|"
      .. "name=it's $(rm -rf /) `x`\n;|steps=30|--seed|7|--device|cpu|--threads|2|", said)
    assert.is_nil(runs.command({ options = {} }, "perigee"))
  end)

  it("of two recipes are told apart by the recipe, not by each option that one of them lacks", function()
    local place = folder .. "/two recipes"
    local function run(name, recipe, options)
      folders.run(place .. "/" .. name, { config = { recipe = recipe }, options = options, result = { loss = 1 } })
    end
    run("a1", "one", { lr = 1, steps = 5, mine = "x" })
    run("a2", "one", { lr = 2, steps = 5, mine = "x" })
    run("b1", "two", { lr = 1, other = 3 })
    assert.are.same({ "lr", "recipe" }, report.differing(report.collect(place)))
  end)

  it("repeat a run by its command to the same figures", function()
    local toy = folders.write(folder .. "/re peat/toy.lua", [[
local pg = require "perigee"
local opt = pg.recipe { name = "toy", options = { { "lr", 0.5 }, { "words", "a b" }, { "clamp", true } } }
local run = pg.run.open(opt)
run:finish { w = (pg.randn(3, { dtype = "float64" }) * opt.lr):sum():item(), words = opt.words .. tostring(opt.clamp) }
]])
    local first, second = folder .. "/first", folder .. "/second"
    assert.equal(0, (process.sh(("build/perigee run '%s' lr=0.1234567890123456 'words=x \"y'\\''' clamp=no --seed 3 "
      .. "--out '%s'"):format(toy, first))))
    local collected = report.collect(first, { program = "build/perigee" })
    local status, said = process.sh(collected.runs[1].command .. " --out " .. second)
    assert.equal(0, status, said)
    assert.equal(process.read(first .. "/result.json"):gsub('"seconds": %d+', ""),
      (process.read(second .. "/result.json"):gsub('"seconds": %d+', "")))
  end)

  -- ---- broken folders ---------------------------------------------------------------------------------------------

  describe("of broken folders", function()
    local place, collected
    setup(function()
      place = folder .. "/broken"
      folders.run(place .. "/good", { options = { lr = 1 }, result = { loss = 1 },
        metrics = { { step = 1, loss = 3 } } })
      folders.write(place .. "/no-config/metrics.jsonl", '{"step": 1, "loss": 2}\n')
      folders.write(place .. "/empty-config/config.json", "")
      folders.write(place .. "/half-config/config.json", '{"recipe": "toy", "opti')
      folders.write(place .. "/foreign/config.json", '{"architectures": ["CLIPModel"], "hidden_size": 512}')
      folders.write(place .. "/a-list/config.json", "[1, 2, 3]")
      folders.write(place .. "/deep/config.json", ("["):rep(5000) .. ("]"):rep(5000))
      folders.run(place .. "/half-result", { options = { lr = 2 } })
      folders.write(place .. "/half-result/result.json", '{"loss": 0.')
      folders.run(place .. "/odd-result", { options = { lr = 3 },
        result = { rows = { 1, 2 }, loss = 2, odd = { { 1 } } } })
      folders.run(place .. "/odd-metrics", { options = { lr = 4 }, result = { loss = 3 } })
      folders.write(place .. "/odd-metrics/metrics.jsonl",
        '{"step": 1, "loss": 2}\nnot json\n[]\n3\n{"step": null, "loss": {}}\n'
        .. ("x"):rep(3 * 2 ^ 20) .. '\n{"step": 3, "loss": 1}\n{"step": 4, "lo')
      folders.run(place .. "/no-metrics", { options = { lr = 5 }, result = { loss = 4 } })
      os.remove(place .. "/no-metrics/metrics.jsonl")
      folders.run(place .. "/bytes\255name", { options = { ["k\254"] = "v\255", list = "x" }, result = { loss = 5 } })
      lfs.mkdir(place .. "/config-is-a-folder")
      folders.write(place .. "/config-is-a-folder/config.json/x", "")
      folders.write(place .. "/config-is-a-folder/result.json", "{}")
      folders.run(place .. "/pipe", { options = { lr = 6 }, result = { loss = 1 } })
      os.remove(place .. "/pipe/metrics.jsonl")
      process.sh(("mkfifo '%s/pipe/metrics.jsonl'"):format(place))
      collected = report.collect(place)
    end)

    it("names each in one line, and lists it", function()
      local warned = table.concat(collected.warnings, "\n") .. "\n"
      for name, words in pairs { ["no-config"] = "config.json is missing", ["empty-config"] = "config.json is empty",
        ["half-config"] = "config.json is not JSON", foreign = "config.json is not the configuration of a run",
        ["a-list"] = "config.json is not the configuration", deep = "config.json is not JSON",
        ["half-result"] = "result.json is not JSON", ["odd-metrics"] = "metrics.jsonl has 3 lines that are not JSON",
        ["config-is-a-folder"] = "config.json is missing" } do
        local _, count = warned:gsub(("%s/%s: [^\n]*\n"):format(place, name):gsub("[%-]", "%%-"), "")
        assert.equal(1, count, name .. "\n" .. warned)
        assert.is_truthy(warned:find(place .. "/" .. name .. ": " .. words, 1, true), name .. "\n" .. warned)
      end
      local found = by_name(collected)
      for _, name in ipairs { "no-config", "foreign", "half-result", "a-list" } do
        assert.equal("broken", found[name].status)
      end
      for _, name in ipairs { "good", "odd-result", "odd-metrics", "no-metrics", "pipe", "bytes\239\191\189name" } do
        assert.equal("finished", found[name].status, name)
      end
      assert.same({ 2, 1 }, found["odd-metrics"].curves[1].y)
    end)

    it("writes every kind of report of them", function()
      for _, text in ipairs { report.html(collected), report.markdown(collected), report.csv(collected) } do
        assert.is_truthy(text:find("half-result", 1, true))
        assert.equal(text, runs.utf8(text))
      end
    end)

    it("does so from the command line: status 0, a line of warning each", function()
      local status, said = process.sh(("build/perigee report '%s' --html '%s/b.html' 2>&1 >/dev/null"):format(place,
        folder))
      assert.equal(0, status, said)
      local _, lines = said:gsub("\n", "")
      assert.equal(#collected.warnings, lines)
      assert.is_truthy(said:find("perigee: " .. place .. "/foreign: config.json is not the configuration of a run\n", 1,
        true))
    end)
  end)

  it("thin metrics of many megabytes, and say so", function()
    local place, lines = folder .. "/huge", {}
    folders.run(place, { result = { loss = 1 } })
    for step = 1, 300000 do
      lines[step] = ('{"step": %d, "loss": %.6f, "text": "%s"}\n'):format(step, 1 / step, ("x"):rep(60))
    end
    folders.write(place .. "/metrics.jsonl", table.concat(lines))
    local collected = report.collect(place)
    assert.is_truthy(collected.warnings[1]:match "/huge: metrics.jsonl has %d+ MB: every 2 lines one is shown$")
    assert.equal(150000, #collected.lines[1].curves[1].x)
    local html = report.html(collected)
    assert.is_true(#html < 200000)
    local x = cjson.decode(block(html, "curve-data")).loss[1][2]
    assert.equal(400, #x)
    assert.equal(299999, x[#x])
  end)

  it("keep the points that a curve is recognised by", function()
    local x, y = {}, {}
    for i = 1, 10000 do x[i], y[i] = i, math.sin(i / 900) end
    y[5000] = 9
    local thin_x, thin_y = page.thin(x, y, 100)
    assert.equal(100, #thin_x)
    assert.equal(1, thin_x[1])
    assert.equal(10000, thin_x[100])
    local peak = 0
    for i, v in ipairs(thin_y) do
      peak = math.max(peak, v)
      assert.equal(y[thin_x[i]], v)
      if i > 1 then assert.is_true(thin_x[i] > thin_x[i - 1]) end
    end
    assert.equal(9, peak)
    assert.equal(x, (page.thin(x, y, 10000)))
  end)

  -- ---- HTML -------------------------------------------------------------------------------------------------------

  describe("as HTML", function()
    local html, data, evil = nil, nil, "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    setup(function()
      local place = folder .. "/html"
      for seed = 1, 2 do
        folders.run(place .. "/r" .. seed, { seed = seed, options = { [evil] = evil .. seed, lr = 0.1 },
          config = { file = evil }, result = { accuracy = 0.5 * seed, [evil] = seed },
          metrics = { { step = 1, [evil] = 1 } } })
        folders.write(place .. "/r" .. seed .. "/plots/dot.png", process.read "tests/fixtures/report/dot.png")
        folders.write(place .. "/r" .. seed .. "/plots/wrong.png", evil)
      end
      folders.write(place .. "/r1/plots/large.png", "\137PNG\r\n\26\n" .. ("x"):rep(2 ^ 20))
      html = report.html(report.collect(place), { title = evil })
      data = cjson.decode(block(html, "data"))
    end)

    it("is one file that loads nothing", function()
      for _, loading in ipairs { "src=[\"']?http", "url%(", "<link", "@import", "fetch%(", "XMLHttp" } do
        assert.is_nil(html:match(loading))
      end
      local policy = html:match 'Content%-Security%-Policy"%s+content="([^"]*)"'
      assert.is_truthy(policy:find("default-src 'none'", 1, true))
      local nonce = policy:match "script%-src 'nonce%-([%w+/=]+)'"
      assert.is_truthy(nonce and #nonce >= 24)
      local _, scripts = html:gsub("<script nonce=\"" .. nonce:gsub("%p", "%%%0") .. "\">", "")
      assert.equal(1, scripts)
      assert.is_nil(html:match "{{%l+}}")
    end)

    it("holds the data as they are, and nothing of them as markup", function()
      local _, scripts = html:gsub("<script", "")
      assert.equal(4, scripts)
      local _, ends = html:gsub("</script", "")
      assert.equal(4, ends)
      assert.is_nil(html:match "<img")
      assert.equal(evil, data.title)
      assert.is_truthy(html:find("<title>&lt;/script&gt;", 1, true))
      local keys = {}
      for i, column in ipairs(data.columns) do keys[column.kind .. column.key] = i end
      assert.equal(evil .. "2", data.lines[2].cells[keys["options" .. evil]])
      assert.equal(2, data.lines[2].cells[keys["resultsresult." .. evil]])
      assert.equal(evil, data.metrics[1])
      assert.is_truthy(data.runs[1].command:find("'" .. evil .. "'", 1, true))
      near(BOUNDS.quantiles["1"], data.quantiles[1], 1e-9)
    end)

    it("embeds pictures that are PNG and small enough, and says why not", function()
      local first = cjson.decode(block(html, "picture-data"):match "^[^\n]*")
      assert.equal("dot", first[1][1])
      assert.equal(process.read "tests/fixtures/report/dot.png", (function()
        local _, said = process.sh(("printf %%s '%s' | base64 -d | od -An -v -tu1"):format(first[1][3]))
        return (said:gsub("%s*(%d+)", function(n) return string.char(tonumber(n)) end):gsub("%s+$", ""))
      end)())
      assert.equal("large", first[2][1])
      assert.equal(cjson.null, first[2][3])
      assert.equal("has 1.0 MB", first[2][4])
      assert.equal("is no PNG", first[3][4])
      local none = report.html(report.collect(folder .. "/html"), { pictures = 0 })
      assert.equal("the pictures before it filled the page's share",
        cjson.decode(block(none, "picture-data"):match "^[^\n]*")[1][4])
    end)

    it("takes base64 as RFC 4648 does", function() -- section 10
      for plain, coded in pairs { [""] = "", f = "Zg==", fo = "Zm8=", foo = "Zm9v", foob = "Zm9vYg==",
        fooba = "Zm9vYmE=", foobar = "Zm9vYmFy" } do assert.equal(coded, page.base64(plain)) end
    end)
  end)

  -- ---- Markdown, CSV, PNG -----------------------------------------------------------------------------------------

  it("escape what is markup in Markdown", function()
    local place = folder .. "/markdown"
    for seed = 1, 2 do
      folders.run(place .. "/*a* [x](y) `b` " .. seed, { seed = seed,
        options = { ["per|class"] = "<b>|_x_ a_b&\n" .. seed }, result = { accuracy = seed / 4 } })
    end
    local text = report.markdown(report.collect(place))
    assert.is_truthy(text:find("| run | status | per\\|class | seed | accuracy |", 1, true), text)
    assert.is_truthy(text:find("| \\*a\\* \\[x\\]\\(y\\) \\`b\\` 1 | finished | &lt;b&gt;\\|\\_x\\_ a_b&amp; 1 | 1 | "
      .. "0.2500 |", 1, true), text)
    for line in text:gmatch "[^\n]+" do
      if line:match "^|" then assert.equal("|", line:sub(-1)) end
    end
  end)

  it("quote CSV so that it reads back, and no text is a formula", function()
    local place = folder .. "/csv"
    local values = { "=1+1", "+2", "-3 apples", "@x", "\tcmd", 'a "b", c', "two\nlines", " blank", "plain" }
    for seed, value in ipairs(values) do
      folders.run(("%s/%02d"):format(place, seed), { seed = seed, options = { word = value, lr = -0.5 },
        result = { ["=head"] = -1e-7 * seed } })
    end
    local rows = read_csv(report.csv(report.collect(place)))
    assert.equal(1 + #values, #rows)
    local at = {}
    for i, head in ipairs(rows[1]) do at[head] = i end
    for i, value in ipairs(values) do
      local row = rows[i + 1]
      assert.equal(#rows[1], #row)
      assert.equal((i <= 5 and "'" or "") .. value, row[at.word])
      assert.equal("-0.5", row[at.lr]) -- a number is one
      assert.equal(-1e-7 * i, tonumber(row[at["'=head"]]))
      assert.is_truthy(row[at.command]:match "^perigee run toy.lua")
      for _, cell in ipairs(row) do assert.is_truthy(tonumber(cell) or not cell:match "^%s*[=+@-]", cell) end
    end
  end)

  it("draw their charts as PNG files, whatever the names hold", function()
    local place = folder .. "/png"
    folders.sweep(place, 20, 10)
    folders.run(place .. '/`touch x` "%s %n" \\', { seed = 9,
      options = { method = '"; system "touch x"; %s', lr = 1e-4 },
      metrics = { { step = 1, loss = 1 }, { step = 2, ["../../lo`ss"] = 1 } },
      result = { a_lp = 1, tasks = { color = 1, ['"%s`touch x`'] = 2 } } })
    local written = report.png(report.collect(place), folder .. "/charts/deep")
    local names = {}
    for i, path in ipairs(written) do
      names[i] = path:match "[^/]+$"
      assert.equal("\137PNG", process.read(path):sub(1, 4))
    end
    for _, name in ipairs { "curves-loss.png", "groups-a_lp.png", "heat-tasks.png", "parallel.png",
      "curves-.._.._lo_ss.png" } do
      assert.is_truthy((" " .. table.concat(names, " ") .. " "):find(" " .. name .. " ", 1, true), name)
    end
    assert.is_nil(lfs.attributes "x")
  end)

  -- ---- the command line -------------------------------------------------------------------------------------------

  it("are written where the command line says", function()
    local place, out = folder .. "/cli", folder .. "/out"
    folders.sweep(place, 5, 3)
    lfs.mkdir(out)
    local here = lfs.currentdir()
    local status, said = process.sh(("cd '%s' && '%s/build/perigee' report '%s'"):format(out, here, place))
    assert.equal(0, status, said)
    assert.equal("report.html\n", said)
    status, said = process.sh(("build/perigee report '%s/run-0001' '%s' --md '%s/a.md' --csv '%s/a.csv' --title T")
      :format(place, place, out, out))
    assert.equal(0, status, said)
    assert.is_truthy(process.read(out .. "/a.md"):match "^# T\n\n5 runs") -- named twice, read once
    assert.equal(6, #read_csv(process.read(out .. "/a.csv")))
    assert.is_nil(lfs.attributes(out .. "/a.html"))
    for words, expected in pairs { [""] = { 2, "which runs?" }, ["/no/such/run"] = { 1, "there is no '/no/such/run'" },
      [place .. " --pictures x"] = { 2, "--pictures: needs a whole number" },
      [place .. " --group lrr"] = { 1, "did you mean 'lr'" },
      [place .. " --html /no/such/folder/x.html"] = { 1, "cannot write /no/such/folder/x.html" } } do
      status, said = process.sh("build/perigee report " .. words)
      assert.equal(expected[1], status, said)
      assert.is_truthy(said:find(expected[2], 1, true), said)
    end
  end)
end)
