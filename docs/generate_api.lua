-- generate_api.lua - writes docs/api.md from the doc blocks of the Lua package: `make docs`. Nothing in that page is
-- edited by hand.
--
-- A doc block is a run of comment lines that opens with three dashes, right above what it describes. Its text may be
-- followed by @param, @return and @raises; before these, a line that is set in by two more blanks is shown as code.
-- A public function without a block is an error. The path to write to may be given, for the test.

local util = require "perigee.util"

local TARGET = ... or "docs/api.md"

-- {heading, file, the names that the file gives its tables -> what a reader writes, names that differ outside}; `methods` is
-- what methods that are files take
local MODULES = {
  { "pg", "init", { pg = "pg" } },
  { "pg: tensors", "tensor", { tensor = "pg", methods = "t" } },
  { "pg: tensors, continued", "call", { call = "pg" }, only = { scope = true, is_tensor = true } },
  { "pg.gradcheck", "gradcheck", {}, itself = "pg.gradcheck" },
  { "pg.memory", "memory", { memory = "pg.memory" }, { ["pg.memory.stats"] = "pg.memory" }, only = { stats = true } },
  { "pg.nn", "nn", { nn = "pg.nn", Module = "module", ["nn.init"] = "pg.nn.init" } },
  { "pg.optim", "optim", { optim = "pg.optim", Optimizer = "opt" } },
  { "pg.models", "models", { models = "pg.models" } },
  { "pg.models: the vision transformer", "models/vit", { vit = "pg.models", ViT = "vit" },
    { ["pg.models.new"] = "pg.models.vit" }, only = { new = true, embed = true, forward = true, forward_features = true } },
  { "pg.models: CLIP", "models/clip", { clip = "pg.models", Clip = "clip" }, { ["pg.models.new"] = "pg.models.clip" } },
  { "pg.models: DINOv2", "models/dinov2", { dinov2 = "pg.models" }, { ["pg.models.new"] = "pg.models.dinov2" },
    only = { new = true } },
  { "pg.models: MAE", "models/mae", { mae = "pg.models" }, { ["pg.models.new"] = "pg.models.mae" }, only = { new = true } },
  { "pg.data", "data", { data = "pg.data", Batches = "batches" } },
  { "pg.data: data sets on the disk", "data/sets", { sets = "pg.data" }, { ["pg.data.list"] = "pg.data.sets" } },
  { "pg.data: loader", "data/loader", { Loader = "loader" }, itself = "pg.data.loader" },
  { "pg.data: preprocess", "data/preprocess", { Preprocess = "preprocess" }, itself = "pg.data.preprocess" },
  { "pg.data: folders of pictures", "data/pictures", { pictures = "pg.data" } },
  { "pg.data: procedural scenes", "data/concepts", { concepts = "pg.data", Dataset = "scenes" },
    { ["pg.data.new"] = "pg.data.concepts", ["pg.data.values"] = "pg.data.concept_values" } },
  { "pg.data.captions", "data/captions", { captions = "pg.data.captions" } },
  { "pg.data: tasks", "data/tasks", { tasks = "pg.data" }, { ["pg.data.list"] = "pg.data.tasks" } },
  { "pg.data: sequences", "data/sequences", {}, itself = "pg.data.sequence" },
  { "perigee.data.torch_random", "data/torch_random", { torch_random = "torch_random" } },
  { "perigee.data.random", "data/random", { random = "random", methods = "generator" } },
  { "pg.image", "image", { image = "pg.image" } },
  { "pg.npy", "npy", { npy = "pg.npy" } },
  { "pg.npz", "npz", { npz = "pg.npz" } },
  { "pg.safetensors", "safetensors", { safetensors = "pg.safetensors" } },
  { "pg.tokenizer", "tokenizer", { tokenizer = "pg.tokenizer", Tokenizer = "tokenizer" } },
  { "pg.fda", "fda", { fda = "pg.fda" } },
  { "pg.fda: proxies", "fda/proxies", { fda = "pg.fda", Generator = "generator" } },
  { "pg.fda: batches", "fda/sampler", { fda = "pg.fda" } },
  { "pg.regularize", "regularize", { regularize = "pg.regularize" }, methods = "pretrained, options" },
  { "pg.continual", "continual", { continual = "pg.continual", Learner = "learner" },
    methods = "spec, options" },
  { "pg.continual_report", "continual_report", { report = "pg.continual_report" } },
  { "pg.exemplars", "exemplars", { exemplars = "pg.exemplars" } },
  { "pg.prompt_pool", "prompt_pool", { pool = "pg.prompt_pool" } },
  { "perigee.registry", "registry", { registry = "registry" } },
  { "pg.few_shot", "few_shot", { few_shot = "pg.few_shot", Task = "task" }, methods = "task, options" },
  { "pg.base_to_new", "base_to_new", { protocol = "pg.base_to_new", methods = "bench" } },
  { "pg.prompts", "prompts", { prompts = "pg.prompts" } },
  { "perigee.data.templates", "data/templates", { templates = "templates" } },
  { "pg.metrics", "metrics", { metrics = "pg.metrics" } },
  { "pg.metrics: sequences of tasks", "metrics/continual", { metrics = "pg.metrics" } },
  { "pg.metrics: entropic transport", "metrics/sinkhorn", { metrics = "pg.metrics" } },
  { "pg.metrics: logistic regression", "metrics/logistic", { metrics = "pg.metrics" } },
  { "pg.metrics: distance of data sets", "metrics/otdd", { metrics = "pg.metrics" } },
  { "pg.linalg", "linalg", { linalg = "pg.linalg" } },
  { "pg.recipe", "recipe", { recipe = "pg.recipe" } },
  { "pg.run", "run", { run = "pg.run", Run = "run" } },
  { "pg.snapshot", "snapshot", { snapshot = "pg.snapshot", Saved = "saved" } },
  { "pg.sweep", "sweep", { sweep = "pg.sweep" } },
  { "pg.distributed", "distributed", { distributed = "pg.distributed" } },
  { "pg.process", "process", { process = "pg.process" } },
  { "pg.progress", "progress", { progress = "pg.progress", Bar = "bar" } },
  { "pg.plot", "plot", { plot = "pg.plot" } },
  { "pg.benchmark", "benchmark", { benchmark = "pg.benchmark", methods = "benchmark" } },
  { "pg.heads", "heads", { heads = "pg.heads" } },
  { "pg.stats", "stats", { stats = "pg.stats" } },
  { "pg.terminal", "terminal", { terminal = "pg.terminal" } },
  { "pg.forgetting", "forgetting", { forgetting = "pg.forgetting" } },
  { "pg.report", "report", { report = "pg.report" } },
  { "pg.tensorboard", "tensorboard", { tensorboard = "pg.tensorboard", Events = "events" } },
  { "pg.util", "util", { util = "pg.util" } },
}

-- ---- reading a file -------------------------------------------------------------------------------------------------

local function read(path)
  local lines = {}
  for line in io.lines(path) do lines[#lines + 1] = line end
  return lines
end

-- What a line of code defines for a reader: a list of names and the arguments in brackets, or nil. `bare` is true for an
-- assignment, which is public only where a doc block says so: it may be another name for something described elsewhere.
local function defined(line, module)
  local owners, renamed = module[3], module[4] or {}
  local function public(owner, mark, name)
    if not owners[owner] or name:sub(1, 1) == "_" or (module.only and not module.only[name]) then return nil end
    local whole = owners[owner] .. mark .. name
    return renamed[whole] or whole
  end
  local owner, mark, name, arguments = line:match "^%s*function ([%w_%.]-)([%.:])([%w_]+)%((.-)%)"
  if name then return { public(owner, owners[owner] and not owners[owner]:find "^pg" and ":" or mark, name) }, arguments end
  if module.itself and line:match "^return function" then
    return { module.itself }, line:match "^return function%((.-)%)"
  end
  local left = line:match "^([%w_%.%s,]+) = "
  local list = {}
  for part in (left or ""):gmatch "[^,%s]+" do
    owner, name = part:match "^(.*)%.([%w_]+)$"
    list[#list + 1] = owner and public(owner, owners[owner] == "t" and ":" or ".", name)
  end
  return list, nil, true
end

local function entries(module)
  local list, block, missing = {}, nil, {}
  for _, line in ipairs(read(util.folder .. module[2] .. ".lua")) do
    local first, more = line:match "^%s*%-%-%-%s?(.*)$", line:match "^%s*%-%-%s?(.*)$"
    if first and not line:match "^%s*%-%-%-%-" then block = { first }
    elseif block and more and not line:match "^%s*%-%- %-%-%-%-" then block[#block + 1] = more
    else
      local names, arguments, bare = defined(line, module)
      if block and names[1] then list[#list + 1] = { names = names, arguments = arguments, block = block }
      elseif names[1] and not bare then missing[#missing + 1] = names[1] end
      block = nil
    end
  end
  return list, missing
end

-- ---- text -----------------------------------------------------------------------------------------------------------

local function plain(text) -- nothing in a comment is meant as markup
  return (text:gsub("[*<]", "\\%0"):gsub("%]%(", "]\\("):gsub("^%s+", ""):gsub("%s+$", ""):gsub("%s+", " "))
end

-- Comment lines as paragraphs; what is set in stays as it is.
local function paragraphs(lines, out)
  local text, code = {}, false
  local function flush()
    if #text > 0 then out[#out + 1], out[#out + 2] = plain(table.concat(text, " ")), "" end
    text = {}
  end
  for _, line in ipairs(lines) do
    local inside = line:match "^  (.*%S)"
    if inside then
      flush()
      out[#out + 1], code = "    " .. inside, true
    else
      if code then out[#out + 1], code = "", false end
      if line:match "%S" then text[#text + 1] = line else flush() end
    end
  end
  flush()
  if code then out[#out + 1] = "" end
end

-- "name, name2  text" -> "`name`, `name2`: text"
local function parameter(text)
  local names, rest = {}, text:gsub("^%s+", "")
  repeat
    local name, after = rest:match "^([%w_%.]+)(.*)$"
    names[#names + 1], rest = "`" .. tostring(name) .. "`", after or ""
    local comma = rest:match "^,%s*(.*)$"
    rest = comma or rest
  until not comma
  return table.concat(names, ", ") .. ": " .. plain(rest)
end

-- A block: its text, then a list of what goes in, comes out and is raised. Below a tag, a line that is set in by two
-- blanks and has a name, two blanks and a text is an item of a list of its own.
local function describe(block, out)
  local text, tags = {}, {}
  local function more(part)
    local tag = tags[#tags]
    local name, said = part:match "^  (%w[%w_, ]-)  +(%S.*)$"
    if name then tag.items[#tag.items + 1] = name .. "  " .. said
    elseif #tag.items > 0 then tag.items[#tag.items] = tag.items[#tag.items] .. " " .. part
    else tag.text = tag.text .. " " .. part end
  end
  for _, line in ipairs(block) do
    local at = 1
    repeat
      local from, to, tag = line:find("@(%a+)%s*", at)
      local part = line:sub(at, from and from - 1)
      if #tags > 0 then more(part)
      elseif part:match "%S" or not from then text[#text + 1] = part end
      if from then tags[#tags + 1], at = { kind = tag, text = "", items = {} }, to + 1 end
    until not from
  end
  paragraphs(text, out)
  for _, tag in ipairs(tags) do
    local kind, said = tag.kind, tag.text
    util.check(kind == "param" or kind == "return" or kind == "raises", "generate_api: there is no tag @%s: %s", kind, block[1])
    if kind == "param" then out[#out + 1] = "- " .. parameter(said)
    else out[#out + 1] = "- " .. (kind == "return" and "returns " or "raises ") .. plain(said) end
    for _, item in ipairs(tag.items) do out[#out + 1] = "  - " .. parameter(item) end
  end
  if #tags > 0 then out[#out + 1] = "" end
end

-- The comment that opens a file, without the file's name.
local function opening(path, out)
  local lines = {}
  for _, line in ipairs(read(path)) do
    local text = line:match "^%-%-%s?(.*)$"
    if not text then break end
    lines[#lines + 1] = text
  end
  if lines[1] then
    lines[1] = lines[1]:gsub("^%S+ %- ", "")
    lines[1] = lines[1]:sub(1, 1):upper() .. lines[1]:sub(2)
  end
  paragraphs(lines, out)
end

local function methods(kind, arguments, out)
  local registry = require("perigee." .. kind)
  for _, name in ipairs(registry.names()) do
    local help, source = registry.help(name)
    out[#out + 1] = ("### pg.%s.%s(%s)\n"):format(kind, name, arguments)
    out[#out + 1] = ("%s%s. %s.\n"):format(help:sub(1, 1):upper(), plain(help:sub(2)), plain(source))
    local options = registry.options(name)
    if #options == 0 then out[#out + 1] = "It has no options.\n" end
    for i, option in ipairs(options) do
      local default = option[2] == nil and (option.required and "required" or "optional")
        or "default " .. tostring(option[2])
      local range = option.choices and "one of " .. table.concat(option.choices, ", ") or option.object
        or option.min and option.max and ("%g..%g"):format(option.min, option.max)
        or option.min and ("%g or more"):format(option.min)
      out[#out + 1] = ("- `%s` (%s%s): %s"):format(option[1], default, range and "; " .. plain(range) or "",
        plain(option.help))
      if i == #options then out[#out + 1] = "" end
    end
  end
end

-- ---- the page -------------------------------------------------------------------------------------------------------

local out = { "# The Lua interface", "",
  "Written by `make docs` from the doc blocks in `lua/perigee`. `pg` is `require \"perigee\"`; ops, which are functions of",
  "`pg` and most of them methods of tensors, are in [ops.md](ops.md). Shapes are in brackets; B is a batch, N a data set, D",
  "the width of a feature, T tokens, C classes or channels. Everything counts from 1. What a call raises is a Lua error of",
  "one line.", "" }
for _, module in ipairs(MODULES) do
  out[#out + 1] = ("- [%s](#%s)"):format(module[1], module[1]:lower():gsub("[^%w%- _]", ""):gsub(" ", "-"))
end
out[#out + 1] = ""

local missing = {}
for _, module in ipairs(MODULES) do
  local list, lacking = entries(module)
  for _, name in ipairs(lacking) do missing[#missing + 1] = name end
  out[#out + 1] = "## " .. module[1] .. "\n"
  if not module.only or module[2]:find "/" then opening(util.folder .. module[2] .. ".lua", out) end
  for _, entry in ipairs(list) do
    local call = entry.arguments and "(" .. entry.arguments .. ")" or ""
    out[#out + 1] = "### " .. table.concat(entry.names, ", ") .. call .. "\n"
    describe(entry.block, out)
  end
  if module.methods then methods(module[2], module.methods, out) end
end
util.check(#missing == 0, "generate_api: these public functions have no doc block: %s", table.concat(missing, ", "))
util.write_file(TARGET, (table.concat(out, "\n"):gsub("\n\n\n+", "\n\n"):gsub("%s+$", "\n")))
