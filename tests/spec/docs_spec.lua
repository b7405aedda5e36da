-- docs_spec.lua - runs the documentation. The ```lua blocks of a page run in order in one environment; where a ```text
-- block follows, it must be what the block before it printed.

local PAGES = { "docs/01-tensors-and-autograd.md", "docs/03-proxy-fda.md", "docs/04-adding-an-op.md" }

-- The fenced blocks of a page: {kind, text, line}, in order.
local function blocks(path)
  local list, open, number = {}, nil, 0
  for line in io.lines(path) do
    number = number + 1
    local kind = line:match "^```(%w*)"
    if kind and open then open = nil
    elseif kind then
      open = { kind = kind, lines = {}, line = number }
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

describe("documentation", function()
  for _, path in ipairs(PAGES) do
    it(path .. " runs and prints what it shows", function()
      local printed, ran = {}, 0
      local env, list = environment(printed), blocks(path)
      for i, block in ipairs(list) do
        if block.kind == "lua" then
          for k in pairs(printed) do printed[k] = nil end
          local chunk = assert(loadstring(table.concat(block.lines, "\n"), "=" .. path .. ":" .. block.line))
          setfenv(chunk, env)()
          ran = ran + 1
          local after = list[i + 1]
          if after and after.kind == "text" then
            local shown = tidy(table.concat(after.lines, "\n"))
            assert.are.equal(shown, tidy(table.concat(printed)), path .. ":" .. block.line)
          end
        end
      end
      assert.is_true(ran > 0, path .. " has no code")
    end)
  end
end)
