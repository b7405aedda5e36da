-- tokenizer_spec.lua - captions to ids, held against open_clip's and transformers' tokenizers; the Unicode and HTML
-- below them, against Python; training; and what damaged or foreign files say. tests/fixtures/make_tokens.py made the
-- expected.

local ffi = require "ffi"
local json = require "cjson"
local lfs = require "lfs"
local pg = require "perigee"
local lib = require "perigee.ffi"
local call = require "perigee.call"
local clean = require "perigee.tokenizer.clean"
local unicode = require "perigee.tokenizer.unicode"

local TOKENS = "tests/fixtures/tokens/"
local tokenizer = pg.tokenizer
local made = {}

local function bytes(path, most)
  local out = ffi.new "pg_tensor *[1]"
  call.check(lib.pg_bytes_load(path, most or 1e8, out))
  local t = call.own(out[0])
  return ffi.string(t:data(), t:numel())
end

local function expected(name) return json.decode(bytes(TOKENS .. name .. ".json.gz")) end

local function write(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
  return path
end

local function temporary(text)
  local path = os.tmpname()
  made[#made + 1] = path
  return text and write(path, text) or path
end

local FILES = { "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json" }

local function temporary_folder(files)
  local path = os.tmpname()
  os.remove(path)
  made[#made + 1] = path
  if files then
    assert(lfs.mkdir(path))
    for name, text in pairs(files) do write(path .. "/" .. name, text) end
  end
  return path
end

local function fails(pattern, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  message = tostring(message)
  assert.truthy(message:find(pattern, 1, true), message)
  assert.falsy(message:find("\n", 1, true), message)
  assert.is_true(#message < 500, message)
end

local strings = expected "strings"

-- Every string's ids; the first that differs is shown.
local function same_ids(name, t, count)
  local wanted = expected(name)
  assert.are.equal(count or 2000, #wanted)
  for i, ids in ipairs(wanted) do
    local got = table.concat(t:encode(strings[i]), " ")
    if got ~= table.concat(ids, " ") then
      assert.are.equal(table.concat(ids, " "), got, ("string %d of %s: %s"):format(i, name, json.encode(strings[i])))
    end
  end
end

-- The whole list of OpenAI, where this machine has one.
local function whole_list()
  local named = os.getenv "PERIGEE_CLIP_VOCAB"
  if named and named ~= "" then return named end
  local pipe = io.popen('python3 -c "import importlib.util as u; print(u.find_spec(\'open_clip\').submodule_search_locations[0])"'
    .. " 2>/dev/null")
  local folder = pipe and pipe:read "*l"
  if pipe then pipe:close() end
  local path = folder and folder .. "/bpe_simple_vocab_16e6.txt.gz"
  return path and lfs.attributes(path, "mode") and path or nil
end

describe("tokenizer", function()
  teardown(function()
    for _, path in ipairs(made) do
      for _, name in ipairs(FILES) do os.remove(path .. "/" .. name) end
      os.remove(path)
    end
  end)

  describe("ids", function()
    it("are those of open_clip's SimpleTokenizer", function()
      same_ids("small.openai", tokenizer.load(TOKENS .. "small.txt.gz"))
    end)

    it("are those of transformers' CLIPTokenizerFast", function()
      same_ids("small.hf", tokenizer.load(TOKENS .. "folder"))
      same_ids("padded.hf", tokenizer.load(TOKENS .. "padded/"), 400)
    end)

    it("are the same of the whole list", function()
      local path = whole_list()
      if not path then
        return pending "needs OpenAI's bpe_simple_vocab_16e6.txt.gz: PERIGEE_CLIP_VOCAB, or an installed open_clip"
      end
      local t, folder = tokenizer.load(path), temporary_folder()
      assert.are.same({ 49408, 49406, 49407, 0, 77 }, { t.size, t.bos, t.eos, t.pad, t.context })
      same_ids("full.openai", t)
      tokenizer.load(path, { bos = "<|startoftext|>", eos = "<|endoftext|>" }):save(folder)
      same_ids("full.hf", tokenizer.load(folder))
    end)

    it("of a list, saved as a folder, are those of transformers", function()
      local t, folder = tokenizer.load(TOKENS .. "small.txt.gz", { bos = "<|startoftext|>", eos = "<|endoftext|>" }),
        temporary_folder()
      t:save(folder)
      local again = tokenizer.load(folder)
      assert.are.same({ 0, 2513 }, { t.pad, again.pad })
      same_ids("small.hf", again)
    end)

    it("take 2,000 strings in well under a second", function()
      local t = tokenizer.load(TOKENS .. "small.txt.gz")
      local from = os.clock()
      for _, text in ipairs(strings) do t:encode(text) end
      assert.is_true(os.clock() - from < 1)
    end)

    it("know the special tokens that a caption writes", function()
      local ours = tokenizer.load(TOKENS .. "small.txt.gz")
      local theirs = tokenizer.load(TOKENS .. "small.txt.gz", { bos = "<|startoftext|>", eos = "<|endoftext|>" })
      assert.are.equal(2513, ours:encode("a <END_OF_TEXT>")[3])
      assert.are.equal(2513, theirs:encode("a <|EndOfText|>")[3])
      assert.are_not.equal(2513, theirs:encode("a <end_of_text>")[3])
      -- "!" is the padding token of this folder, and transformers finds it anywhere; the start token only as it is
      -- written.
      local padded = tokenizer.load(TOKENS .. "padded")
      assert.are.equal(0, padded.pad)
      assert.are.same({ padded.bos, 0, 0, padded.eos, padded.bos, padded.eos },
        padded:encode "!!<|ENDOFTEXT|><|startoftext|>")
      assert.are_not.equal(padded.bos, padded:encode("<|STARTOFTEXT|>")[2])
    end)

    it("stay when a cache of words is full, and of long words", function()
      local t = tokenizer.load(TOKENS .. "small.txt.gz")
      local first = table.concat(t:encode "kittens", " ")
      for i = 1, 70000 do t:encode((tostring(i):gsub("%d", function(d) return string.char(97 + d) end))) end
      assert.are.equal(first, table.concat(t:encode "kittens", " "))
      assert.is_true(t.merger.cached < 65537)
      local long = ("abcdefgh"):rep(5000)
      assert.are.equal(t:decode(t:encode(long)), "<start_of_text>" .. long .. " <end_of_text>")
    end)

    it("count bytes that are no UTF-8 as U+FFFD", function()
      local t = tokenizer.load(TOKENS .. "folder")
      -- Python's b"a\xff\xe2\x82b\xed\xa0\x80\xf0\x90\x80".decode(errors="replace")
      assert.are.equal("a\239\191\189\239\191\189b\239\191\189\239\191\189\239\191\189\239\191\189",
        unicode.valid "a\255\226\130b\237\160\128\240\144\128")
      assert.are.same(t:encode "a\239\191\189b", t:encode "a\255b")
      assert.are.same(t:encode "a\239\191\189", t:encode "a\240\159\152")
    end)
  end)

  describe("batch", function()
    local t = tokenizer.load(TOKENS .. "small.txt.gz")

    it("pads on the right, with 0 or the folder's token", function()
      local ids = t:batch({ "a cat", "" }, { context = 6 })
      assert.are.equal("int32", ids:dtype())
      local cat = t:encode "a cat"
      assert.are.same({ { 2512, cat[2], cat[3], 2513, 0, 0 }, { 2512, 2513, 0, 0, 0, 0 } }, ids:totable())
      assert.are.same({ 1, 77 }, t:batch({ "x" }):shape())
      local folder = tokenizer.load(TOKENS .. "folder")
      assert.are.same({ { 2512, 2513, 2513, 2513 } }, folder:batch({ "" }, { context = 4 }):totable())
    end)

    it("refuses or cuts what is too long", function()
      fails("batch: text 2, 'a b c d e', has 7 tokens with start and end, the context 6", t.batch, t, { "a", "a b c d e" },
        { context = 6 })
      local ids = t:batch({ "a b c d e", "a b c d" }, { context = 6, truncate = true }):totable()
      assert.are.same(ids[1], ids[2])
      assert.are.equal(2513, ids[1][6])
    end)

    it("refuses arguments that are none", function()
      fails("texts must be a list of strings, got an empty list", t.batch, t, {})
      fails("texts must be a list of strings, got 'a'", t.batch, t, "a")
      fails("text 2 must be a string, got 3", t.batch, t, { "a", 3 })
      fails("did you mean 'truncate'", t.batch, t, { "a" }, { trunkate = true })
      fails("context must be a whole number", t.batch, t, { "a" }, { context = 1 })
      fails("truncate must be true or false", t.batch, t, { "a" }, { truncate = 1 })
      fails("text must be a string, got a table", t.encode, t, {})
    end)
  end)

  it("decodes", function()
    local t, folder = tokenizer.load(TOKENS .. "small.txt.gz"), tokenizer.load(TOKENS .. "folder")
    local text = "a photo of 3 wörld — 😀!?"
    assert.are.equal("<start_of_text>a photo of 3 wörld — 😀!? <end_of_text>", t:decode(t:encode(text)))
    assert.are.equal("<|startoftext|>a photo of 3 wörld — 😀!? <|endoftext|>", folder:decode(folder:encode(text)))
    assert.are.equal("<start_of_text>hi <end_of_text>!!", t:decode(t:batch({ "hi" }, { context = 5 }):select(1, 1)))
    assert.are.equal("\239\191\189", t:decode { t.ids["Ã"] }) -- the first byte of é
    fails("decode: id 2 is 2514; the vocabulary has 0 to 2513", t.decode, t, { 1, 2514 })
    fails("decode: id 1 is 0.5", t.decode, t, { 0.5 })
    fails("ids must be a list of numbers, got 'a'", t.decode, t, "a")
    fails("ids must be a list or int32 (T)", t.decode, t, pg.zeros(2, 2))
  end)

  describe("Unicode", function()
    local facts = expected "unicode"
    local function each(runs, fn)
      for _, run in ipairs(runs) do
        for point = run[1], run[2] do fn(point, unicode.char(point)) end
      end
    end
    local function set(runs)
      local points = {}
      each(runs, function(point) points[point] = true end)
      return points
    end

    it("has Python's classes, cases and composed forms of every character", function()
      local letters, numbers, wrong, count = set(facts.letters), set(facts.numbers), {}, 0
      each(facts.assigned, function(point, c)
        count = count + 1
        local class = unicode.classes(c)[0]
        if (class == unicode.LETTER) ~= (letters[point] or false) or (class == unicode.NUMBER) ~= (numbers[point] or false)
          or unicode.lower(c, true) ~= (facts.lower[c] or c) or unicode.lower(c, false) ~= (facts.lower[c] or c)
          or unicode.nfc(c) ~= (facts.nfc[c] or c) then wrong[#wrong + 1] = ("U+%04X"):format(point) end
      end)
      assert.are.equal("", table.concat(wrong, " "))
      assert.is_true(count > 140000)
    end)

    it("ends words with the final sigma as Python does", function()
      local cased, ignorable, wrong = set(facts.cased), set(facts.ignorable), {}
      each(facts.assigned, function(point, c)
        local after = unicode.lower(c .. "Σ", true):sub(-2) == "ς"
        local through = unicode.lower("a" .. c .. "Σ", true):sub(-2) == "ς"
        if after ~= (cased[point] or false) or not cased[point] and through ~= (ignorable[point] or false) then
          wrong[#wrong + 1] = ("U+%04X"):format(point)
        end
      end)
      assert.are.equal("", table.concat(wrong, " "))
      assert.are.equal("ὀδυσσεύς σ. ας' ασ'α σς", unicode.lower("ὈΔΥΣΣΕΎΣ Σ. ΑΣ' ΑΣ'Α ΣΣ", true))
      assert.are.equal("ασ", unicode.lower("ΑΣ", false))
    end)

    it("refuses what has no room, and says where UTF-8 ends", function()
      local out, length = ffi.new "char[8]", ffi.new "int64_t[1]"
      fails("does not fit the 2 bytes", call.check, lib.pg_text_map("abc", 3, lib.PG_TEXT_VALID, out, 2, length))
      fails("not UTF-8 at byte 2", call.check, lib.pg_text_map("a\255", 2, lib.PG_TEXT_NFC, out, 8, length))
      fails("no form 9", call.check, lib.pg_text_map("a", 1, 9, out, 8, length))
      fails("too long", call.check, lib.pg_text_map("a", 2 ^ 40, lib.PG_TEXT_NFC, out, 8, length))
      assert.are.equal(3, unicode.fault "é\128")
      assert.is_nil(unicode.fault "é")
      assert.are.equal(1, unicode.fault "\237\160\128")
    end)
  end)

  it("reads every reference of HTML as Python does", function()
    local pairs_of = expected "references"
    assert.is_true(#pairs_of > 7000)
    for _, pair in ipairs(pairs_of) do assert.are.equal(pair[2], clean.unescape(pair[1]), pair[1]) end
  end)

  describe("training", function()
    local captions = {}
    for i = 1, 1000 do captions[i] = strings[i] end

    it("finds the merges of a plain trainer, whose ids CLIPTokenizerFast gives", function()
      local t, folder = tokenizer.train(captions, { size = 900 }), temporary_folder()
      assert.are.same({ 900, 898, 899, 899, 77 }, { t.size, t.bos, t.eos, t.pad, t.context })
      t:save(folder)
      assert.are.equal(bytes(TOKENS .. "trained/merges.txt"), bytes(folder .. "/merges.txt"))
      assert.are.same(json.decode(bytes(TOKENS .. "trained/vocab.json")), json.decode(bytes(folder .. "/vocab.json")))
      same_ids("trained.hf", t)
      same_ids("trained.hf", tokenizer.load(folder))
    end)

    it("stops when no pair is left, and takes special tokens", function()
      local t = tokenizer.train({ "ab ab abc" }, { size = 600, special = { "<|mask|>" }, context = 9 })
      local folder = temporary_folder()
      assert.are.equal(512 + 1 + 3, t.size)
      assert.are.same({ 515, 512, 513, 515 }, { t.eos, t:encode("ab")[2], t:encode("<|mask|>")[2], t.pad })
      t:save(folder)
      local again = tokenizer.load(folder)
      assert.are.equal(9, again.context)
      assert.are.same(t:encode "ab <|mask|> <|MASK|> c", again:encode "ab <|mask|> <|MASK|> c")
    end)

    it("refuses what cannot be", function()
      local train = tokenizer.train
      fails("size must be a whole number from 514", train, { "a" }, { size = 500 })
      fails("size must be a whole number from 514 to 1000000, got nothing", train, { "a" })
      fails("text 1 must be a string", train, { 1 }, { size = 600 })
      fails("got an empty list", train, {}, { size = 600 })
      fails("special 2 must be a token", train, { "a" }, { size = 600, special = { "<a>", "<a>" } })
      fails("min_count must be", train, { "a" }, { size = 600, min_count = 0 })
      fails("cannot make /nonexistent/x", train({ "a" }, { size = 600 }).save, train({ "a" }, { size = 600 }), "/nonexistent/x")
    end)
  end)

  describe("a file", function()
    local load = tokenizer.load
    local vocab, merges = bytes(TOKENS .. "folder/vocab.json"), bytes(TOKENS .. "folder/merges.txt")

    local function folder(files)
      files["vocab.json"], files["merges.txt"] = files["vocab.json"] or vocab, files["merges.txt"] or merges
      return temporary_folder(files)
    end

    it("that is not there or is another is named", function()
      fails("cannot read /nonexistent/vocab.gz", load, "/nonexistent/vocab.gz")
      fails("vocab.json and merges.txt are needed", load, "tests/fixtures")
      fails("path must be a string, got a table", load, {})
      fails("line 1 must hold '#version'", load, temporary "hello\nworld\n")
      fails("line 1 must hold '#version'", load, temporary "")
      fails("is a folder, whose files name its special tokens", load, TOKENS .. "folder", { bos = "<x>" })
      fails("eos must be a special token in small letters, got 'End'", load, TOKENS .. "small.txt.gz", { eos = "End" })
    end)

    it("that is truncated, damaged or endless is refused", function()
      local packed = assert(io.open(TOKENS .. "small.txt.gz", "rb")):read "*a"
      fails("truncated", load, temporary(packed:sub(1, 3000)))
      fails("truncated", load, temporary(packed:sub(1, -4)))
      fails("truncated or damaged", load, temporary(packed:sub(1, 2000) .. "\255\255\255\255" .. packed:sub(2005)))
      fails("holds more than the 4000 bytes", bytes, TOKENS .. "small.txt.gz", 4000)
      assert.are.equal("", bytes(temporary ""))
    end)

    it("with merges that do not fit is refused", function()
      fails("merges.txt: line 3, 'q qqq': the vocabulary has no token 'qqq'", load,
        folder { ["merges.txt"] = "#version: 0.2\ni n\nq qqq\n" })
      fails("merges.txt: line 3, 'q q': the vocabulary has no token 'qq'", load,
        folder { ["merges.txt"] = "#version: 0.2\ni n\nq q\n" })
      fails("merges.txt: line 3, 'i n', stands twice", load, folder { ["merges.txt"] = "#version: 0.2\ni n\ni n\n" })
      fails("merges.txt: line 2 must be two symbols, got 'i n g'", load, folder { ["merges.txt"] = "#version: 0.2\ni n g\n" })
      fails("merges.txt: no line makes token", load, folder { ["merges.txt"] = merges:sub(1, 5000):match "^.*\n" })
      fails("line 3, 'i n', stands twice", load, folder { ["merges.txt"] = "#version: 0.2\r\ni n\r\ni n\r\n" })
      fails("merges.txt: not UTF-8 at byte 16", load, folder { ["merges.txt"] = "#version: 0.2\ni\255 n\n" })
      fails("token 'ab' has two ids, 512 and 513", load, temporary "#version\na b\na b")
    end)

    it("that was mutated is read or is one line of error", function()
      local kept, refused = require "fuzz.tokenizer"(1000, 4000, 1)
      assert.is_true(kept > 50 and refused > 500)
    end)

    it("with a vocabulary of another model is refused", function()
      fails("has no token '!</w>': not a vocabulary of CLIP's kind", load, folder { ["vocab.json"] = vocab:gsub("</w>", "_w") })
      fails("vocab.json: must be a JSON map", load, folder { ["vocab.json"] = vocab:sub(1, 2000) })
      fails("vocab.json: must be a JSON map", load, folder { ["vocab.json"] = "[1, 2]" })
      fails("vocab.json: token 'a' must have an id, a whole number from 0, got x", load, folder { ["vocab.json"] = '{"a":"x"}' })
      fails("vocab.json: token 'a' has an id past the 2 tokens: one between is missing, got 7", load,
        folder { ["vocab.json"] = '{"a":7,"b":0}' })
      fails("has the id of", load, folder { ["vocab.json"] = '{"a":1,"b":1}' })
      fails("vocab.json: not UTF-8 at byte 3", load, folder { ["vocab.json"] = '{"\255":0}' })
      fails("special token '<|endoftext|>' has no id", load, folder { ["vocab.json"] = vocab:gsub("<|endoftext|>", "<|x|>") })
    end)

    it("of configuration is read as transformers reads it", function()
      local t = load(folder { ["tokenizer_config.json"] = '{"model_max_length":1e30,"pad_token":"!"}',
        ["special_tokens_map.json"] = '{"pad_token":{"content":"#","normalized":false}}' })
      assert.are.same({ 77, 2 }, { t.context, t.pad })
      t = load(folder { ["tokenizer_config.json"] = '{"model_max_length":16,"pad_token":"!","added_tokens_decoder":'
        .. '{"2514":{"content":"<|x|>","normalized":false},"2513":{"content":"<|endoftext|>"}}}',
        ["special_tokens_map.json"] = '{"pad_token":"#"}', ["added_tokens.json"] = '{"<|x|>":2514}' })
      assert.are.same({ 16, 0, 2515 }, { t.context, t.pad, t.size })
      assert.are.same({ 2512, 2514, 2513, 2513 }, t:encode "<|x|><|ENDOFTEXT|>")
      local function config(text) return folder { ["tokenizer_config.json"] = text } end
      fails("tokenizer_config.json: must be a JSON map", load, config "{")
      fails("tokenizer_config.json: bos_token must be a token, got 3", load, config '{"bos_token":3}')
      fails("tokenizer_config.json: special token 'zz</s>' has no id in vocab.json", load, config '{"eos_token":"zz</s>"}')
      fails("model_max_length must be 2 or more, got 1", load, config '{"model_max_length":1}')
      fails("single_word is not supported", load, config '{"eos_token":{"content":"<|endoftext|>","single_word":true}}')
      fails("added_tokens_decoder 0 is 'x', but vocab.json has '!' there", load,
        config '{"added_tokens_decoder":{"0":{"content":"x"}}}')
      fails("added_tokens_decoder 2516: id 2514 is missing before it", load,
        config '{"added_tokens_decoder":{"2516":{"content":"x y"}}}')
      fails("added_tokens.json: '<|x|>' must stand in vocab.json", load, folder { ["added_tokens.json"] = '{"<|x|>":2514}' })
    end)
  end)
end)
