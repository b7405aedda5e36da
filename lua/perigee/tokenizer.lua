-- tokenizer.lua - captions to token ids, as CLIP's text encoder reads them: cleaning, pieces, byte pairs
-- (docs/method.md 6.4). Vocabularies of OpenAI and open_clip (one gzipped list of merges) and of transformers (a
-- folder) are read, and a small one is trained from captions. Ids are those of the files, from 0.

local lfs = require "lfs"
local json = require "cjson.safe"
local ffi = require "ffi"
local lib = require "perigee.ffi"
local call = require "perigee.call"
local util = require "perigee.util"
local tensor = require "perigee.tensor"
local bpe = require "perigee.tokenizer.bpe"
local clean = require "perigee.tokenizer.clean"
local unicode = require "perigee.tokenizer.unicode"

local tokenizer = {}

local MOST_BYTES = 64e6 -- of one file, unpacked; CLIP's largest has 3.2 MB
local MOST_MERGES = 48894 -- that OpenAI and open_clip read of their list
local CONTEXT = 77 -- tokens that CLIP's text encoder takes
local MOST_CONTEXT = 1e6
local START, STOP = "<|startoftext|>", "<|endoftext|>"

-- What a file says, as a message shows it: on one line, and not endless.
local function shown(text)
  text = unicode.valid(tostring(text)):gsub("%c", "?")
  if #text > 60 then text = text:sub(1, 57):gsub("[\192-\255][\128-\191]*$", "") .. "..." end
  return text
end

-- ---- the object -----------------------------------------------------------------------------------------------------

local Tokenizer = {}
Tokenizer.__index = Tokenizer

local function add_all(ids, list)
  local n = #ids
  for i = 1, #list do ids[n + i] = list[i] end
end

local function add_pieces(self, ids, text, specials)
  bpe.pieces(text, specials, function(piece)
    local special = specials and self.ids[piece]
    if special and specials[piece] then ids[#ids + 1] = special else add_all(ids, self.merger:ids(piece)) end
  end)
end

-- Calls between(text) and token(id) in order for what lies between added tokens and for these; of tokens that begin at
-- one place the longest counts.
local function around(text, added, between, token)
  local at = 1
  while #added > 0 do
    local from, last, id
    for _, special in ipairs(added) do -- the longest first
      local first = text:find(special.text, at, true)
      if first and (not from or first < from) then from, last, id = first, first + #special.text - 1, special.id end
    end
    if not from then break end
    between(text:sub(at, from - 1))
    token(id)
    at = last + 1
  end
  between(text:sub(at))
end

--- The ids of one caption, from the start token to the end token. Bytes that are no UTF-8 count as U+FFFD, as with
-- Python's errors="replace".
-- @param text  string
-- @return a list of ids, from 0 as in the file
-- @raises when text is no string
function Tokenizer:encode(text)
  if type(text) ~= "string" then util.fail(0, "encode: text must be a string, got %s", call.describe(text)) end
  text = unicode.valid(text)
  local ids = { self.bos }
  local function token(id) ids[#ids + 1] = id end
  if self.cleaning == "openai" then
    add_pieces(self, ids, clean.openai(text), self.pattern)
  else -- added tokens are found first as they are written, then in the cleaned text
    around(text, self.written, function(part)
      around(clean.hf(part), self.cleaned, function(rest) add_pieces(self, ids, rest) end, token)
    end, token)
  end
  ids[#ids + 1] = self.eos
  return ids
end

--- The ids of many captions in one tensor, each padded on the right.
-- @param texts    list of N strings
-- @param options  {context = tokens a caption may have (default: the model's, 77 for CLIP),
--   truncate = false; true cuts a longer caption and puts the end token last}
-- @return int32 (N, context), ids from 0 as in the file
-- @raises when a caption is too long, with its place, its beginning and its length, unless truncate is set; on an
--   option that is none
function Tokenizer:batch(texts, options)
  options = util.options("batch", options, { context = self.context, truncate = false })
  local context = options.context
  util.check(type(texts) == "table" and #texts > 0, "batch: texts must be a list of strings, got %s",
    type(texts) == "table" and "an empty list" or call.describe(texts))
  util.check(type(context) == "number" and context % 1 == 0 and context >= 2 and context <= MOST_CONTEXT,
    "batch: context must be a whole number from 2 to %.0f, got %s", MOST_CONTEXT, call.describe(context))
  util.check(type(options.truncate) == "boolean", "batch: truncate must be true or false, got %s",
    call.describe(options.truncate))
  local rows = {}
  for i = 1, #texts do
    if type(texts[i]) ~= "string" then
      util.fail(0, "batch: text %d must be a string, got %s", i, call.describe(texts[i]))
    end
    rows[i] = self:encode(texts[i])
    if #rows[i] > context and not options.truncate then
      util.fail(0, "batch: text %d, '%s', has %d tokens with start and end, the context %d: shorten it or set truncate",
        i, shown(texts[i]), #rows[i], context)
    end
  end
  local out = tensor.empty({ #texts, context }, { dtype = "int32" })
  local at = out:data()
  for i, row in ipairs(rows) do
    local base = (i - 1) * context
    for j = 1, context do at[base + j - 1] = row[j] or self.pad end
    if #row > context then at[base + context - 1] = self.eos end
  end
  return out
end

--- The text of ids: special tokens as they are written, a space after each word, none at the ends.
-- @param ids  list of ids or int32 (T), from 0
-- @return UTF-8; bytes that make no character are U+FFFD
-- @raises on a number that is no id of this vocabulary
function Tokenizer:decode(ids)
  if call.is_tensor(ids) then
    util.check(ids:dim() == 1, "decode: ids must be a list or int32 (T), got %s", call.describe(ids))
    ids = ids:totable()
  end
  util.check(type(ids) == "table", "decode: ids must be a list of numbers, got %s", call.describe(ids))
  local parts = {}
  for i, id in ipairs(ids) do
    local token = self.tokens[id]
    if not token then
      util.fail(0, "decode: id %d is %s; the vocabulary has 0 to %d", i, call.describe(id), self.size - 1)
    end
    parts[i] = self.special[id] and token or bpe.bytes_of(token)
  end
  return unicode.valid(table.concat(parts)):match "^%s*(.-)%s*$"
end

-- given: {tokens = id -> token from 0, size =, merges = list of {left, right, line}, added = list of {text =, id =,
-- cleaned =}, bos =, eos =, pad = ids, context =, cleaning =}. `where` gives the name of the file for a fault: of the
-- vocabulary, of the merges.
local function assemble(given, vocabulary, list)
  local self = setmetatable(given, Tokenizer)
  self.ids, self.special, self.written, self.cleaned = {}, {}, {}, {}
  for id = 0, self.size - 1 do
    local token = self.tokens[id]
    if self.ids[token] then
      util.fail(0, "%s: token '%s' has two ids, %d and %d", vocabulary, shown(token), self.ids[token], id)
    end
    self.ids[token] = id
  end
  local explained = {}
  for _, added in ipairs(self.added) do
    explained[added.id], self.special[added.id] = true, true
    local into = added.cleaned and self.cleaned or self.written
    into[#into + 1] = { text = added.cleaned and clean.hf(added.text) or added.text, id = added.id }
  end
  local function longer(a, b) return #a.text > #b.text or #a.text == #b.text and a.id < b.id end
  table.sort(self.written, longer)
  table.sort(self.cleaned, longer)
  for _, symbol in ipairs(bpe.order) do
    for _, token in ipairs { symbol, symbol .. bpe.END } do
      util.check(self.ids[token], "%s: has no token '%s': not a vocabulary of CLIP's kind", vocabulary, token)
      explained[self.ids[token]] = true
    end
  end
  local seen, merges = {}, {}
  for i, merge in ipairs(self.merges) do
    local left, right, both = self.ids[merge[1]], self.ids[merge[2]], self.ids[merge[1] .. merge[2]]
    local key = left and right and left * self.size + right
    if not both or not key or seen[key] then
      local lacking = not left and merge[1] or not right and merge[2] or merge[1] .. merge[2]
      util.fail(0, "%s: line %d, '%s %s'%s", list, merge[3], shown(merge[1]), shown(merge[2]),
        seen[key or 0] and ", stands twice" or (": the vocabulary has no token '%s'"):format(shown(lacking)))
    end
    seen[key], explained[both] = true, true
    merges[i] = { left, right, both }
  end
  for id = 0, self.size - 1 do
    if not explained[id] then
      util.fail(0, "%s: no line makes token '%s' (id %d) of %s: the two are not of one model", list,
        shown(self.tokens[id]), id, vocabulary)
    end
  end
  self.merger = bpe.merger(self.ids, self.size, merges)
  return self
end

-- ---- reading --------------------------------------------------------------------------------------------------------

-- A whole file, unpacked, in UTF-8.
local function read(path)
  local out = ffi.new "pg_tensor *[1]"
  call.check(lib.pg_bytes_load(path, MOST_BYTES, out))
  local bytes = call.own(out[0])
  local text = ffi.string(bytes:data(), bytes:numel())
  bytes:free()
  local fault = unicode.fault(text)
  util.check(not fault, "%s: not UTF-8 at byte %d", path, fault or 0)
  return text
end

local function read_json(path)
  local value, why = json.decode((read(path)))
  util.check(type(value) == "table" and value[1] == nil, "%s: must be a JSON map%s", path,
    value == nil and ": " .. shown(why) or "")
  return value
end

-- The lines after the first, as {left, right, number of the line}; at most `most`.
local function read_merges(path, most)
  local text = read(path)
  if text:find("\r", 1, true) then text = text:gsub("\r\n?", "\n") end
  text = (text:match "^.*%S" or "") .. "\n"
  local merges, number = {}, 0
  for line in text:gmatch "([^\n]*)\n" do
    number = number + 1
    if number == 1 then
      util.check(line:find("#version", 1, true), "%s: line 1 must hold '#version', got '%s': not a list of merges",
        path, shown(line))
    else
      local left, right = line:match "^(%S+)%s+(%S+)%s*$"
      if not left then util.fail(0, "%s: line %d must be two symbols, got '%s'", path, number, shown(line)) end
      merges[#merges + 1] = { left, right, number }
    end
    if #merges == most then break end
  end
  return merges
end

-- OpenAI's and open_clip's list: the vocabulary is the alphabet, the same at the end of a word, what each line makes,
-- and the two special tokens.
local function load_list(path, options)
  local bos, eos = options.bos or "<start_of_text>", options.eos or "<end_of_text>"
  util.check(bos ~= eos, "tokenizer.load: bos and eos must differ, both are '%s'", bos)
  local merges = read_merges(path, MOST_MERGES)
  local tokens, size = {}, 0
  local function add(token) tokens[size], size = token, size + 1 end
  for _, symbol in ipairs(bpe.order) do add(symbol) end
  for _, symbol in ipairs(bpe.order) do add(symbol .. bpe.END) end
  for _, merge in ipairs(merges) do add(merge[1] .. merge[2]) end
  add(bos)
  add(eos)
  local added = { { text = bos, id = size - 2, cleaned = true }, { text = eos, id = size - 1, cleaned = true } }
  return assemble({ cleaning = "openai", tokens = tokens, size = size, merges = merges, added = added, bos = size - 2,
    eos = size - 1, pad = 0, context = CONTEXT,
    pattern = { bos, eos, [bos] = true, [eos] = true } }, path, path)
end

local function exists(path) return lfs.attributes(path, "mode") ~= nil end

-- vocab.json as id -> token, ids from 0 without a hole.
local function read_vocabulary(path)
  local tokens, size = {}, 0
  local map = read_json(path)
  for _ in pairs(map) do size = size + 1 end
  for token, id in pairs(map) do
    local problem = not (type(id) == "number" and id % 1 == 0 and id >= 0) and "must have an id, a whole number from 0"
      or id >= size and ("has an id past the %d tokens: one between is missing"):format(size)
      or tokens[id] and ("has the id of '%s'"):format(shown(tokens[id]))
    if problem then util.fail(0, "%s: token '%s' %s, got %s", path, shown(token), problem, shown(id)) end
    tokens[id] = token
  end
  return tokens, size
end

-- A special token of a configuration: a string, or a map with its content and whether it is looked for in the cleaned
-- text.
local function special_token(path, field, value, cleaned)
  if value == nil or value == json.null then return nil end
  if type(value) == "string" then value = { content = value } end
  util.check(type(value) == "table" and type(value.content) == "string" and value.content ~= "",
    "%s: %s must be a token, got %s", path, field, shown(value))
  util.check(value.single_word ~= true, "%s: %s: single_word is not supported", path, field)
  if value.normalized ~= nil then cleaned = value.normalized == true end
  return { text = value.content, cleaned = cleaned }
end

local NAMES = { "bos_token", "eos_token", "unk_token", "pad_token" }

-- The special tokens by the rules of transformers: tokenizer_config.json, which special_tokens_map.json goes before
-- unless the former lists all added tokens; CLIP's where neither names one. Returns name -> token, the list of all,
-- the context.
local function read_specials(folder, tokens, size)
  local config_path, map_path = folder .. "/tokenizer_config.json", folder .. "/special_tokens_map.json"
  local config = exists(config_path) and read_json(config_path) or {}
  local listed = type(config.added_tokens_decoder) == "table" and config.added_tokens_decoder or nil
  local map = not listed and exists(map_path) and read_json(map_path) or {}
  local named, all, by_text = {}, {}, {}
  local function keep(token)
    if token and not by_text[token.text] then by_text[token.text], all[#all + 1] = token, token end
  end
  for id, value in pairs(listed or {}) do
    local field = "added_tokens_decoder " .. shown(id)
    local token = special_token(config_path, field, value, true)
    id = tonumber(id)
    util.check(token and id and id % 1 == 0 and id >= 0 and id < 2 ^ 31, "%s: %s must be an id and its token",
      config_path, field)
    util.check(tokens[id] == nil or tokens[id] == token.text, "%s: %s is '%s', but vocab.json has '%s' there",
      config_path, field, shown(token.text), shown(tokens[id]))
    token.id = id
    keep(token)
  end
  for _, name in ipairs(NAMES) do
    local path = map[name] ~= nil and map_path or config_path
    local value = map[name] ~= nil and map[name] or config[name]
    named[name] = special_token(path, name, value, name ~= "pad_token")
      or { text = name == "bos_token" and START or STOP, cleaned = true }
    named[name].path = path
    keep(named[name])
  end
  local more = map.additional_special_tokens or config.additional_special_tokens
  for _, value in ipairs(type(more) == "table" and more or {}) do
    keep(special_token(config_path, "additional_special_tokens", value, false))
  end
  -- Tokens that vocab.json lacks follow it.
  table.sort(all, function(a, b) return (a.id or -1) < (b.id or -1) or a.id == b.id and a.text < b.text end)
  local ids = {}
  for id = 0, size - 1 do ids[tokens[id]] = id end
  for _, token in ipairs(all) do
    if token.id and tokens[token.id] == nil then
      util.check(token.id == size, "%s: added_tokens_decoder %d: id %d is missing before it", config_path, token.id,
        size)
      tokens[size], ids[token.text], size = token.text, size, size + 1
    end
    token.id = ids[token.text]
    util.check(token.id, "%s: special token '%s' has no id in vocab.json", token.path or config_path, shown(token.text))
  end
  for _, name in ipairs(NAMES) do named[name] = by_text[named[name].text].id end
  local most = config.model_max_length
  util.check(most == nil or type(most) == "number" and most >= 2, "%s: model_max_length must be 2 or more, got %s",
    config_path, shown(most))
  local context = most and most % 1 == 0 and most <= MOST_CONTEXT and most or CONTEXT -- "none" is written as 1e30
  return named, all, context, size
end

local function load_folder(folder)
  util.check(exists(folder .. "/vocab.json") and exists(folder .. "/merges.txt"),
    "%s: holds no tokenizer of CLIP's kind: vocab.json and merges.txt are needed", folder)
  local tokens, size = read_vocabulary(folder .. "/vocab.json")
  local named, added, context, whole = read_specials(folder, tokens, size)
  if exists(folder .. "/added_tokens.json") then
    local known = {}
    for id = 0, whole - 1 do known[tokens[id]] = id end
    for token, id in pairs(read_json(folder .. "/added_tokens.json")) do
      util.check(known[token] == id, "%s/added_tokens.json: '%s' must stand in vocab.json or in "
        .. "tokenizer_config.json's added_tokens_decoder with id %s", folder, shown(token), shown(id))
    end
  end
  local merges = read_merges(folder .. "/merges.txt", math.huge)
  return assemble({ cleaning = "hf", tokens = tokens, size = whole, merges = merges, added = added,
    bos = named.bos_token, eos = named.eos_token, pad = named.pad_token, context = context }, folder .. "/vocab.json",
    folder .. "/merges.txt")
end

--- Reads a tokenizer. A folder is one of transformers' CLIPTokenizer: vocab.json and merges.txt, with special tokens
-- and length from tokenizer_config.json and special_tokens_map.json where they are, and is used as CLIPTokenizerFast
-- does. A file is the list of merges of OpenAI and open_clip (bpe_simple_vocab_16e6.txt.gz, or the same unpacked), and
-- is used as open_clip's SimpleTokenizer does.
-- @param path     folder or file
-- @param options  for a list of merges: {bos = "<start_of_text>", eos = "<end_of_text>"}, the special tokens as a
--   caption would write them: open_clip's; OpenAI's CLIP has "<|startoftext|>" and "<|endoftext|>". The ids are the
--   same.
-- @return a tokenizer: methods encode, batch, decode, save; fields size, bos, eos, pad (ids), context, cleaning
--   ("openai" or "hf")
-- @raises one line that names the file and the token or line: the file is missing, truncated, not UTF-8, or of another
--   model
function tokenizer.load(path, options)
  util.check(type(path) == "string", "tokenizer.load: path must be a string, got %s", call.describe(path))
  options = util.options("tokenizer.load", options, { bos = util.none, eos = util.none })
  for _, name in ipairs { "bos", "eos" } do
    util.check(options[name] == nil or type(options[name]) == "string" and options[name]:find "^%p[%l%p]+$",
      "tokenizer.load: %s must be a special token in small letters, got %s", name, call.describe(options[name]))
  end
  if lfs.attributes(path, "mode") == "directory" then
    util.check(next(options) == nil, "tokenizer.load: %s is a folder, whose files name its special tokens", path)
    return load_folder((path:gsub("(.)/+$", "%1")))
  end
  return load_list(path, options)
end

-- ---- training and saving --------------------------------------------------------------------------------------------

--- Trains a vocabulary from captions: starting from bytes, the pair of symbols that stands next to each other most
-- often inside a piece becomes a symbol, again and again (Sennrich et al., 2016); of pairs with one count, the one
-- whose symbols came first. Pieces and cleaning are those of CLIPTokenizerFast, which reads what save writes.
-- @param texts    list of strings
-- @param options  {size = number of tokens, 514 or more with the special ones, min_count = 2: the least count of a
--   pair that becomes a symbol, special = list of more special tokens, context = 77}
-- @return a tokenizer; its size is less than asked for when the captions have no more such pairs
-- @raises on texts or options that cannot be
function tokenizer.train(texts, options)
  options = util.options("tokenizer.train", options,
    { size = util.none, min_count = 2, special = {}, context = CONTEXT })
  util.check(type(texts) == "table" and #texts > 0, "tokenizer.train: texts must be a list of strings, got %s",
    type(texts) == "table" and "an empty list" or call.describe(texts))
  local function whole(name, least, most)
    local value = options[name]
    util.check(type(value) == "number" and value % 1 == 0 and value >= least and value <= most,
      "tokenizer.train: %s must be a whole number from %.0f to %.0f, got %s", name, least, most, call.describe(value))
  end
  util.check(type(options.special) == "table", "tokenizer.train: special must be a list of tokens, got %s",
    call.describe(options.special))
  whole("size", 2 * #bpe.order + #options.special + 2, 1e6)
  whole("min_count", 1, 2 ^ 31)
  whole("context", 2, MOST_CONTEXT)
  local specials, seen = {}, { [START] = true, [STOP] = true }
  for i, token in ipairs(options.special) do
    util.check(type(token) == "string" and token:find "^<[%w_|]+>$" and not seen[token],
      "tokenizer.train: special %d must be a token such as <|mask|>, once, got %s", i, call.describe(token))
    seen[token], specials[i] = true, token
  end
  local counts = {}
  for i = 1, #texts do
    if type(texts[i]) ~= "string" then
      util.fail(0, "tokenizer.train: text %d must be a string, got %s", i, call.describe(texts[i]))
    end
    bpe.pieces(clean.hf(unicode.valid(texts[i])), nil, function(piece) counts[piece] = (counts[piece] or 0) + 1 end)
  end
  local tokens, size = {}, 0
  local function add(token) tokens[size], size = token, size + 1 end
  for _, symbol in ipairs(bpe.order) do add(symbol) end
  for _, symbol in ipairs(bpe.order) do add(symbol .. bpe.END) end
  local merges = require "perigee.tokenizer.train"(counts, tokens, options.size - #specials - 2, options.min_count)
  size = #tokens + 1
  local added = {}
  for _, token in ipairs(specials) do
    added[#added + 1] = { text = token, id = size }
    add(token)
  end
  for _, token in ipairs { START, STOP } do -- the end has the largest id: a text encoder looks for it so
    added[#added + 1] = { text = token, id = size, cleaned = true }
    add(token)
  end
  return assemble({ cleaning = "hf", tokens = tokens, size = size, merges = merges, added = added, bos = size - 2,
    eos = size - 1, pad = size - 1, context = options.context }, "the trained vocabulary", "its merges")
end

--- Writes vocab.json, merges.txt and tokenizer_config.json, which tokenizer.load and transformers' CLIPTokenizerFast
-- read. Both clean a caption in transformers' way, also where the tokenizer was read from OpenAI's list, which then
-- pads with the end token as CLIP's folders do: a padding token "!" would be special wherever a caption has one.
-- @param folder  made when it is not there; files of these names are replaced
-- @raises one line naming the file and the system's reason
function Tokenizer:save(folder)
  util.check(type(folder) == "string", "save: folder must be a string, got %s", call.describe(folder))
  if lfs.attributes(folder, "mode") ~= "directory" then
    local ok, why = lfs.mkdir(folder)
    util.check(ok, "cannot make %s: %s", folder, tostring(why))
  end
  local function text(value) return (json.encode(value):gsub("\\/", "/")) end
  local lines = {}
  for id = 0, self.size - 1 do lines[id + 1] = ("%s: %d"):format(text(self.tokens[id]), id) end
  util.write_file(folder .. "/vocab.json", "{\n" .. table.concat(lines, ",\n") .. "\n}\n")
  lines = { "#version: 0.2" }
  for i, merge in ipairs(self.merges) do lines[i + 1] = merge[1] .. " " .. merge[2] end
  util.write_file(folder .. "/merges.txt", table.concat(lines, "\n") .. "\n")
  local function token(id)
    for _, added in ipairs(self.added) do
      if added.id == id then
        return ('{"__type": "AddedToken", "content": %s, "lstrip": false, "normalized": %s, "rstrip": false, '
          .. '"single_word": false, "special": true}'):format(text(added.text), tostring(added.cleaned == true))
      end
    end
    return text(self.tokens[id])
  end
  local pad = self.cleaning == "openai" and self.eos or self.pad
  local config = { '"tokenizer_class": "CLIPTokenizer"', '"errors": "replace"',
    ('"model_max_length": %d'):format(self.context), '"bos_token": ' .. token(self.bos),
    '"eos_token": ' .. token(self.eos), '"unk_token": ' .. token(self.eos), '"pad_token": ' .. token(pad) }
  local more = {}
  for _, added in ipairs(self.added) do
    if added.id ~= self.bos and added.id ~= self.eos and added.id ~= pad then more[#more + 1] = token(added.id) end
  end
  config[#config + 1] = '"additional_special_tokens": [' .. table.concat(more, ", ") .. "]"
  util.write_file(folder .. "/tokenizer_config.json", "{\n  " .. table.concat(config, ",\n  ") .. "\n}\n")
end

return tokenizer
