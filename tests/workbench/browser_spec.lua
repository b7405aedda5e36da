-- browser_spec.lua - the HTML report in headless Chromium (Debian package chromium): no error on the console, sorting
-- and filtering, keys, hostile names, 2,000 runs, a phone's width. Without Chromium it is one pending line.

local process = require "process"
local folders = require "run_folders"
local cjson = require "cjson"
local report = require "perigee.report"

local function installed()
  for _, name in ipairs { "chromium", "chromium-browser", "google-chrome" } do
    if process.sh("command -v " .. name) == 0 then return name end
  end
end

local BROWSER = installed()
-- Limits, in ms, are for a machine that has nothing else to do: they grow with the load on a processor.
local OPENED, ANSWERED = 500, 100
local function busy()
  local load = tonumber(process.read "/proc/loadavg":match "^%S+")
  local _, cores = process.sh "nproc"
  return math.max(1, load / tonumber(cores))
end

local PICTURE = process.read "tests/fixtures/report/dot.png"

describe("the HTML report in Chromium", function()
  if not BROWSER then
    pending "chromium is not installed: make deps-test"
    return
  end

  local folder
  setup(function() folder = folders.fresh() end)
  teardown(function() os.execute("rm -rf '" .. folder .. "'") end)

  -- Puts the checks into a page: a listener before everything, the chosen checks behind everything.
  local function armed(html, chosen, keep_policy)
    local nonce = html:match "'nonce%-([^']+)'"
    local open = '<script nonce="' .. nonce .. '">'
    if not keep_policy then
      local count
      html, count = html:gsub('<meta http%-equiv="Content%-Security%-Policy".-">', "")
      assert.equal(1, count)
    end
    local early = open .. [[
"use strict"; const problems = []; let executed = 0; function boom() { executed++; }
addEventListener("error", (e) => problems.push(e.message));
addEventListener("unhandledrejection", (e) => problems.push(e.reason));
</script><title>]]
    local late = open .. ("const CHOSEN = %q, opened = performance.now();\n"):format(chosen)
      .. process.read "tests/workbench/browser_checks.js" .. "</script>\n</body>"
    html = html:gsub("<title>", function() return early end, 1)
    return (html:gsub("</body>%s*</html>%s*$", function() return late .. "</html>" end))
  end

  -- Opens a page; returns the lines that the checks left, and fails when the console or a check complains.
  local function open(path, flags)
    local _, said = process.sh(("timeout 120 %s --headless=new --no-sandbox --disable-gpu --enable-logging=stderr "
      .. "--user-data-dir='%s/profile' %s --dump-dom 'file://%s'"):format(BROWSER, folder, flags or "", path))
    local lines = said:match '.*<pre id="checks">(.-)</pre>'
    assert.is_truthy(lines, said:sub(1, 3000))
    lines = lines:gsub("&lt;", "<"):gsub("&gt;", ">"):gsub("&amp;", "&")
    assert.is_nil(said:match "CONSOLE[^\n]*", lines)
    assert.is_nil(lines:match "FAIL[^\n]*", lines)
    assert.is_truthy(lines:find("ok ", 1, true), lines)
    return lines
  end

  local function page(name, html, chosen, flags, keep_policy)
    return open(folders.write(folder .. "/" .. name .. ".html", armed(html, chosen, keep_policy)), flags)
  end

  describe("with a sweep of 60 runs", function()
    local collected
    setup(function()
      folders.sweep(folder .. "/sweep", 60, 40)
      collected = report.collect(folder .. "/sweep")
    end)

    it("sorts, filters, groups and draws, and its groups are those of the Lua side", function()
      local lines = page("use", report.html(collected), "use", "--virtual-time-budget=5000", true)
      local groups, by_name = report.groups(collected, { "method" }), {}
      for _, group in ipairs(groups) do by_name[group.name] = group.figures.delta_lp end
      local shown = cjson.decode(lines:match "\nmeans ([^\n]+)")
      assert.equal(#groups, #shown)
      for _, pair in ipairs(shown) do
        local expected, got = by_name[pair[1]], pair[2]
        assert.equal(expected.n, got.n)
        assert.is_true(math.abs(expected.mean - got.mean) < 1e-12, pair[1])
        assert.is_true(math.abs(expected.half - got.half) < 1e-9, pair[1])
      end
    end)

    it("does so in the dark", function()
      page("dark", report.html(collected), "use",
        "--blink-settings=preferredColorScheme=0 --virtual-time-budget=5000", true)
    end)

    it("fits a phone of 390 pixels", function()
      local inner = folders.write(folder .. "/inner.html", armed(report.html(collected), "phone", true))
      open(folders.write(folder .. "/phone.html", ([[<!doctype html><meta charset="utf-8">
<iframe src="file://%s" width="390" height="844" style="border: 0"></iframe>
<script>addEventListener("message", (e) => {
  const pre = document.createElement("pre");
  pre.id = "checks";
  pre.textContent = e.data;
  document.body.append(pre);
});</script>]]):format(inner)), "--window-size=800,900 --virtual-time-budget=5000")
    end)
  end)

  describe("with names that are markup", function()
    local html
    setup(function()
      local evil = folder .. "/evil"
      local script = "</script><script>boom()</script>"
      local names = { "<img src=x onerror=boom()>", "<script>boom()<", "\"'><svg onload=boom()>", "&lt;b&gt;<b>bold<" }
      for i, name in ipairs(names) do
        local run = evil .. "/" .. name
        folders.run(run, { seed = i, options = { [name] = name .. i, lr = i / 10, [script] = i },
          config = { recipe = name, file = name .. ".lua", git = "</title></style>" .. script .. i },
          metrics = { { step = 1, [name] = 1, loss = 2 }, { step = 2, [name] = 2, loss = i } },
          log = i == 2 and names[1] .. script .. "\nstack traceback:\n\t[C]: in ?\n" or "",
          result = i ~= 2 and { score = i, ["<!--<script>"] = { [name] = i, b = 2 }, words = script } or nil })
        folders.write(run .. "/plots/<img src=x onerror=boom()>.png", PICTURE)
        folders.write(run .. "/plots/script.png", script)
      end
      folders.write(evil .. "/<iframe src=x>/config.json", script)
      html = report.html(report.collect(evil), { title = "</title><script>boom()</script>" })
    end)

    it("shows them and executes nothing", function() page("evil", html, "hostile", "--virtual-time-budget=5000") end)

    it("would not run what slipped in", function()
      local path = folders.write(folder .. "/policy.html", armed(html, "policy", true))
      local _, said = process.sh(("%s --headless=new --no-sandbox --disable-gpu --user-data-dir='%s/profile' "
        .. "--virtual-time-budget=5000 --dump-dom 'file://%s' 2>/dev/null"):format(BROWSER, folder, path))
      assert.equal("ok nothing was executed", said:match '.*<pre id="checks">(.-)</pre>')
    end)
  end)

  it("opens 2,000 runs in half a second, and sorts, filters and scrolls them in a tenth", function()
    folders.sweep(folder .. "/many", 2000, 20)
    local html, best = report.html(report.collect(folder .. "/many")), {}
    for _ = 1, 3 do
      local lines = page("many", html, "many", nil, true)
      for name, ms in lines:match "times ([^\n]+)":gmatch "(%l+) (%d+)" do
        best[name] = math.min(best[name] or math.huge, tonumber(ms))
      end
      local limit = busy()
      if best.open < OPENED * limit and math.max(best.sort, best.filter, best.scroll) < ANSWERED * limit then return end
    end
    assert.is_nil(("best of three, in ms: open %d, sort %d, filter %d, scroll %d"):format(best.open, best.sort,
      best.filter, best.scroll))
  end)
end)
