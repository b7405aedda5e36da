-- docs_spec.lua - runs the documentation. The ```lua blocks of a page run in order in one environment; where a ```text
-- block follows at once, it must be what the block before it printed.
--
-- A block that opens with ```lua NAME.lua belongs to a file instead: all of that name, one after another, are written to
-- it, beside links to build and recipes. A ```sh block runs there, and a ```text block after it holds what it printed; its
-- numbers may differ by a little, as another processor rounds otherwise.

local lfs = require "lfs"

local PAGES = { "README.md", "docs/01-tensors-and-autograd.md", "docs/02-a-first-recipe.md", "docs/03-proxy-fda.md",
  "docs/04-adding-an-op.md", "docs/05-foundation-models.md", "docs/06-data.md", "docs/07-sweeps.md", "docs/08-reports.md",
  "docs/09-measuring-forgetting.md", "docs/10-few-shot.md", "docs/11-continual.md" }
local SLACK = 0.25 -- of a number that a command printed

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end

local function write(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
end

-- The fenced blocks of a page: {kind, name, lines, line, last}, in order.
local function blocks(path)
  local list, open, number = {}, nil, 0
  for line in io.lines(path) do
    number = number + 1
    local kind, name = line:match "^```(%w*)%s*(%S*)"
    if kind and open then
      open.last = number
      open = nil
    elseif kind then
      open = { kind = kind, name = name ~= "" and name or nil, lines = {}, line = number }
      list[#list + 1] = open
    elseif open then open.lines[#open.lines + 1] = line end
  end
  return list
end

-- Trailing blanks and empty lines at either end say nothing.
local function tidy(text)
  return (text:gsub("[ \t]+\n", "\n"):gsub("^%s*\n", ""):gsub("%s+$", ""))
end

local function environment(printed)
  local env = setmetatable({}, { __index = _G })
  function env.print(...)
    local words = {}
    for i = 1, select("#", ...) do words[i] = tostring((select(i, ...))) end
    printed[#printed + 1] = table.concat(words, "\t") .. "\n"
  end
  env.io = setmetatable({ write = function(...) printed[#printed + 1] = table.concat({ ... }) end }, { __index = io })
  return env
end

-- ---- blocks of files and commands ---------------------------------------------------------------------------------------

-- Words without their numbers, and the numbers.
local function apart(text)
  local numbers = {}
  local words = tidy(text):gsub("[+-]?%d+%.?%d*", function(n)
    numbers[#numbers + 1] = tonumber(n)
    return "#"
  end)
  return words:gsub("[ \t]+", " "), numbers
end

local function same(shown, said, where)
  local words, numbers = apart(shown)
  local got, values = apart(said)
  assert.are.equal(words, got, where)
  for i, n in ipairs(numbers) do
    assert.is_true(math.abs(n - values[i]) <= SLACK * math.max(1, math.abs(n)),
      ("%s: the page shows %g, the command said %g in:\n%s"):format(where, n, values[i], said))
  end
end

local function workplace()
  local folder = os.tmpname()
  os.remove(folder)
  lfs.mkdir(folder)
  for _, name in ipairs { "build", "recipes", "experiments" } do
    lfs.link(lfs.currentdir() .. "/" .. name, folder .. "/" .. name, true)
  end
  return folder
end

local function command(folder, lines)
  local pipe = io.popen(("cd '%s' && { %s\n} 2>/dev/null"):format(folder, table.concat(lines, "\n")))
  local said = pipe:read "*a"
  pipe:close()
  return said
end

-- What runs one page; teardown removes what it made.
local function page(path)
  local printed, ran, files, folder = {}, 0, {}, nil
  local env, list = environment(printed), blocks(path)
  for i, block in ipairs(list) do
    local where, source, after = path .. ":" .. block.line, table.concat(block.lines, "\n"), list[i + 1]
    local follows = after and after.kind == "text" and after.line <= block.last + 2
    local shown = follows and table.concat(after.lines, "\n")
    if block.kind == "lua" and block.name then
      folder = folder or workplace()
      files[block.name] = (files[block.name] or "") .. source .. "\n"
      write(folder .. "/" .. block.name, files[block.name])
    elseif block.kind == "lua" then
      for k in pairs(printed) do printed[k] = nil end
      setfenv(assert(loadstring(source, "=" .. where)), env)()
      ran = ran + 1
      if shown then assert.are.equal(tidy(shown), tidy(table.concat(printed)), where) end
    elseif block.kind == "sh" then
      folder = folder or workplace()
      local said = command(folder, block.lines)
      ran = ran + 1
      if shown then same(shown, said, where) end
    end
  end
  if folder then os.execute("rm -rf '" .. folder .. "'") end
  return ran
end

describe("documentation", function()
  for _, path in ipairs(PAGES) do
    it(path .. " runs and prints what it shows", function()
      assert.is_true(page(path) > 0, path .. " has no code")
    end)
  end

  it("links to what exists", function()
    local list = { "README.md", "recipes/vit_small.md" }
    for name in lfs.dir "docs" do
      if name:match "%.md$" then list[#list + 1] = "docs/" .. name end
    end
    for _, path in ipairs(list) do
      for target in read(path):gmatch "%]%(([^)#%s]+)[^)]*%)" do
        if not target:match "^https?:" then
          assert.is_truthy(lfs.attributes(path:match "^(.-)[^/]*$" .. target, "mode"), path .. " links to " .. target)
        end
      end
    end
  end)
end)

describe("the reference of the Lua interface", function()
  local text

  it("is what the doc blocks say: run `make docs` when this fails", function()
    local path = os.tmpname()
    assert(loadfile "docs/generate_api.lua")(path)
    text = read(path)
    os.remove(path)
    assert.are.equal(text, read "docs/api.md")
  end)

  it("has every public function", function()
    local pg, lacking = require "perigee", {}
    text = read "docs/api.md"
    local function look(prefix, module)
      for name, value in pairs(module) do
        local callable = type(value) == "function" or type(value) == "table" and name ~= "Module" and value.new
        if type(name) == "string" and callable and not (prefix == "pg." and pg.ops[name]) then
          local found = false
          for heading in text:gmatch "\n### ([^\n]*)" do
            found = found or (heading .. " "):find(prefix .. name .. "%f[^%w_]") ~= nil
          end
          if not found then lacking[#lacking + 1] = prefix .. name end
        end
      end
    end
    for _, name in ipairs { "nn", "optim", "models", "data", "fda", "regularize", "metrics", "linalg", "plot", "image",
      "npy", "npz", "safetensors", "tokenizer", "run", "recipe", "sweep", "process", "snapshot", "progress",
      "forgetting", "benchmark", "heads", "stats", "report", "tensorboard", "few_shot", "base_to_new", "prompts" } do
      look("pg." .. name .. ".", pg[name])
    end
    local own = {}
    for name, value in pairs(pg) do own[name] = type(value) == "function" and value or nil end
    look("pg.", own)
    table.sort(lacking)
    assert.are.equal("", table.concat(lacking, ", "), "no doc block that docs/generate_api.lua reads")
  end)
end)

describe("the page about recipes", function()
  it("explains every option of the end-to-end recipe, with its default", function()
    local text = read "docs/02-a-first-recipe.md"
    local pipe = io.popen "build/perigee run recipes/end_to_end.lua --help"
    local count = 0
    for line in pipe:lines() do
      local name, default = line:match "^  ([%w_]+)=(%S+)  "
      if name then
        count = count + 1
        assert.is_truthy(text:find("| `" .. name .. "` | `" .. default .. "` |", 1, true), name .. "=" .. default)
      end
    end
    pipe:close()
    assert.is_true(count > 20)
  end)
end)
