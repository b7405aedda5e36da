-- files_spec.lua - checkpoints and arrays that other programs wrote (tests/fixtures/make_files.py: the safetensors package,
-- transformers, PyTorch, NumPy), what Perigee writes against theirs, and archives and indices that lie.

local bit = require "bit"
local json = require "cjson"
local lfs = require "lfs"
local pg = require "perigee"

local FIXTURES = "tests/fixtures/files/"
local INDEX = "model.safetensors.index.json"
local made = {}

local function temporary(bytes, ending)
  local name = os.tmpname()
  made[#made + 1] = name
  local path = name .. (ending or "")
  if ending then made[#made + 1] = path end
  local file = assert(io.open(path, "wb"))
  file:write(bytes or "")
  file:close()
  return path
end

local function folder()
  local path = os.tmpname()
  os.remove(path)
  assert(lfs.mkdir(path))
  made[#made + 1] = path
  return path .. "/"
end

local function write(path, bytes, in_place)
  if not in_place then os.remove(path) end -- ext4 waits for the disk when a file that was cut to nothing is closed
  local file = assert(io.open(path, "wb"))
  file:write(bytes)
  file:close()
end

local function read(path)
  local file = assert(io.open(path, "rb"))
  local bytes = file:read "*a"
  file:close()
  return bytes
end

-- One line that holds every one of the patterns.
local function fails(patterns, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, patterns[1])
  for _, pattern in ipairs(patterns) do assert.truthy(tostring(message):find(pattern, 1, true), tostring(message)) end
  assert.falsy(tostring(message):find "%c", tostring(message))
end

-- Equal bit by bit, but for NaN, of which there is one.
local function same(expected, found)
  if type(expected) == "table" then
    assert.are.equal(#expected, #found)
    for i = 1, #expected do same(expected[i], found[i]) end
  elseif expected ~= expected then
    assert.are_not.equal(found, found)
  elseif not (expected == found and 1 / expected == 1 / found) then
    error(("expected %.17g, found %.17g"):format(expected, found))
  end
end

-- The data of a safetensors file as it stands there: name -> little-endian numbers of two bytes.
local function halves(path)
  local bytes = read(path)
  local length = bytes:byte(1) + 256 * bytes:byte(2) + 65536 * bytes:byte(3)
  local list = {}
  for name, entry in pairs(json.decode(bytes:sub(9, 8 + length))) do
    local words, data = {}, bytes:sub(9 + length + entry.data_offsets[1], 8 + length + entry.data_offsets[2])
    for i = 1, #data, 2 do words[#words + 1] = data:byte(i) + 256 * data:byte(i + 1) end
    list[name] = { dtype = entry.dtype, words = words }
  end
  return list
end

describe("half types", function()
  it("are widened as PyTorch does, subnormal numbers, infinities and every NaN included", function()
    local t = pg.safetensors.load(FIXTURES .. "halves.safetensors")
    for _, name in ipairs { "f16", "bf16" } do
      assert.are.equal("float32", t[name]:dtype())
      assert.truthy(t[name]:numel() > 3000)
      same(t[name .. "_as_f32"]:totable(), t[name]:totable())
      local data, nans = require("ffi").cast("uint32_t *", t[name]:data()), 0
      for i, v in ipairs(t[name]:totable()) do
        if v ~= v then
          nans = nans + 1
          assert.are.equal(0x7fc00000, data[i - 1])
        end
      end
      assert.truthy(nans > 4)
    end
  end)

  it("are rounded to as PyTorch and NumPy do, from float32 and, once, from float64", function()
    local given, theirs = pg.safetensors.load(FIXTURES .. "rounded.safetensors"), halves(FIXTURES .. "rounded.safetensors")
    for _, half in ipairs { { "float16", "F16", "_f16", 0x7c00 }, { "bfloat16", "BF16", "_bf16", 0x7f80 } } do
      local path = temporary()
      pg.safetensors.save(path, { x = given.x, d = given.d, n = pg.arange(3) }, nil, { dtype = half[1] })
      assert.are.equal("int32", pg.safetensors.load(path).n:dtype())
      local ours = halves(path)
      for _, name in ipairs { "x", "d" } do
        local mine, expected = ours[name], theirs[name .. half[3]]
        assert.are.equal(half[2], mine.dtype)
        assert.are.equal(#expected.words, #mine.words)
        for i, word in ipairs(expected.words) do
          if bit.band(word, 0x7fff) > half[4] then
            assert.truthy(bit.band(mine.words[i], 0x7fff) > half[4])
          elseif word ~= mine.words[i] then
            error(("%s[%d]: %s 0x%04x, expected 0x%04x"):format(name, i, half[1], mine.words[i], word))
          end
        end
      end
    end
    fails({ "rounds floats to float16 or bfloat16, got 'float8'" }, pg.safetensors.save, temporary(), {}, nil,
      { dtype = "float8" })
  end)

  it("do not depend on where a tensor begins or how long it is", function()
    pg.seed(5)
    local path, all = temporary(), pg.randn(100003)
    for _, range in ipairs { { 1, 100003 }, { 2, 32769 }, { 4, 7 }, { 9, 65536 } } do
      pg.safetensors.save(path, { a = pg.zeros(1), b = all:narrow(1, range[1], range[2]) }, nil, { dtype = "bfloat16" })
      local once = pg.safetensors.load(path).b
      pg.safetensors.save(path, { b = once }, nil, { dtype = "bfloat16" }) -- what is representable stays
      assert.truthy((pg.safetensors.load(path).b - once):abs():max():item() == 0)
      assert.truthy((once - all:narrow(1, range[1], range[2])):abs():max():item() < 2 ^ -6)
    end
  end)
end)

describe("safetensors", function()
  it("widens every integer kind", function()
    local t = pg.safetensors.load(FIXTURES .. "integers.safetensors")
    assert.are.same({ -128, 127 }, t.i8:totable())
    assert.are.same({ -32768, 32767 }, t.i16:totable())
    assert.are.same({ { -2 ^ 31, 2 ^ 31 - 1 } }, t.i64:totable())
    assert.are.same({ -2 ^ 31, 2 ^ 31 - 1 }, t.i32:totable())
    assert.are.same({ 0, 255 }, t.u8:totable())
    assert.are.same({ 1, 0, 1 }, t.bool:totable())
    assert.are.equal("uint8", t.bool:dtype())
    assert.are.equal("int32", t.i8:dtype())
    local function unsigned(dtype, bytes)
      local header = ('{"a":{"dtype":"%s","shape":[1],"data_offsets":[0,%d]}}'):format(dtype, #bytes)
      return pg.safetensors.load(temporary(string.char(#header) .. ("\0"):rep(7) .. header .. bytes)).a:item()
    end
    assert.are.equal(65535, unsigned("U16", "\255\255"))
    assert.are.equal(2 ^ 31 - 1, unsigned("U32", "\255\255\255\127"))
    fails({ "tensor 'a'", "the uint32 at position 1 does not fit int32" }, unsigned, "U32", "\0\0\0\128")
    fails({ "tensor 'a'", "the uint64 at position 1 does not fit int32" }, unsigned, "U64", ("\255"):rep(8))
  end)

  it("keeps tensors whole when their file is cut short afterwards", function() -- a mapping would end with SIGBUS
    local path = temporary()
    pg.safetensors.save(path, { a = pg.full({ 1000000 }, 3) })
    local a = pg.safetensors.load(path).a
    write(path, "", true)
    assert.are.equal(3, a:mean():item())
  end)

  it("takes no more memory than the file is long", function()
    for code, factor in pairs { F32 = 1, BF16 = 2 } do
      local values = 64e6 / (code == "F32" and 1 or 2)
      local bytes = values * (code == "F32" and 4 or 2)
      local header = ('{"a":{"dtype":"%s","shape":[%d],"data_offsets":[0,%d]}}'):format(code, values, bytes)
      local path = temporary(string.char(#header) .. ("\0"):rep(7) .. header)
      local file = assert(io.open(path, "r+b"))
      file:seek("set", 8 + #header + bytes - 1)
      file:write "\0" -- the rest is a hole
      file:close()
      local script = temporary(([[
        local pg = require "perigee"
        local function peak()
          for line in io.lines "/proc/self/status" do
            local kb = line:match "^VmHWM:%%s*(%%d+)"
            if kb then return kb * 1024 end
          end
        end
        local before = peak()
        local t = pg.safetensors.load(%q)
        print(peak() - before)]]):format(path))
      local pipe = assert(io.popen("luajit " .. script .. " 2>&1"))
      local text = pipe:read "*a"
      pipe:close()
      local growth = assert(tonumber(text:match "(%d+)\n$"), text)
      assert.truthy(growth > 0.9 * factor * bytes and growth < 1.1 * factor * bytes, code .. ": " .. growth)
    end
  end)

  it("refuses names that a file cannot hold", function()
    fails({ "cannot be a tensor's name" }, pg.safetensors.save, temporary(), { ["\255"] = pg.zeros(1) })
    fails({ "cannot be a tensor's name" }, pg.safetensors.save, temporary(), { __metadata__ = pg.zeros(1) })
  end)
end)

describe("a checkpoint of several files", function()
  it("is read as transformers wrote it", function()
    local t, metadata = pg.safetensors.load_sharded(FIXTURES .. "sharded/" .. INDEX)
    assert.are.same({ format = "pt", total_size = "196" }, metadata)
    for i = 0, 3 do
      assert.are.same({ { i * 100, i * 100 + 1, i * 100 + 2, i * 100 + 3 } },
        t[("layer.%d.weight"):format(i)]:narrow(1, 1, 1):totable())
    end
    assert.are.same({ 1.5, -2.5 }, t["head.bias"]:totable())
  end)

  it("is read back as it was written, in files no larger than asked for", function()
    local at, given = folder(), { big = pg.randn(300), ["a/b"] = pg.arange(10), c = pg.randn(20), d = pg.zeros(0, 3) }
    local index = pg.safetensors.save_sharded(at:sub(1, -2), given, { largest = 100, metadata = { step = "7" } })
    assert.are.equal(at .. INDEX, index)
    assert.are.equal(1320, json.decode(read(index)).metadata.total_size)
    local back, metadata = pg.safetensors.load_sharded(index)
    assert.are.same({ step = "7", total_size = "1320" }, metadata)
    for name, t in pairs(given) do assert.are.same(t:totable(), back[name]:totable()) end
    local one = pg.safetensors.load(at .. "model-00001-of-00003.safetensors")
    assert.are.same({ 10 }, one["a/b"]:shape())
    assert.is_nil(one.big)
    pg.safetensors.save_sharded(at, given, { dtype = "bfloat16" })
    assert.are.equal(680, json.decode(read(index)).metadata.total_size)
    assert.are.equal("float32", pg.safetensors.load_sharded(index).big:dtype())
    fails({ "No such file" }, pg.safetensors.save_sharded, "/nonexistent", given)
    fails({ "largest must be a number" }, pg.safetensors.save_sharded, at, given, { largest = 0 })
  end)

  it("that does not hold together is one line that names index, shard and tensor", function()
    local at = folder()
    local index, load = at .. INDEX, pg.safetensors.load_sharded
    pg.safetensors.save(at .. "one", { a = pg.zeros(2), b = pg.zeros(2) })
    pg.safetensors.save(at .. "two", { c = pg.zeros(2) })
    local function given(map) write(index, ('{"weight_map":{%s}}'):format(map)) end
    given '"a":"one","b":"one","c":"two"'
    assert.truthy(load(index).c)
    given '"a":"one","b":"one","c":"one"'
    fails({ index, "'one'", "lacks tensor 'c', which the index places there" }, load, index)
    given '"a":"two","b":"one","c":"one"'
    fails({ index, "'one'", "holds tensor 'a', which the index places in 'two'" }, load, index)
    given '"a":"one","c":"two"'
    fails({ index, "'one'", "holds tensor 'b', which the index does not list" }, load, index)
    given '"a":"one","b":"one","c":"three"'
    fails({ index, "'three'", "cannot read", "No such file" }, load, index)
    for _, shard in ipairs { "../one", "/etc/passwd", "sub/one", "..", ".", "", "a\\\\b", "a\\u0000b" } do
      given(('"a":"%s"'):format(shard))
      fails({ index, "tensor 'a'", "a shard is a file beside the index" }, load, index)
    end
    given '"a":"one","b":"one","c":5'
    fails({ index, "tensor 'c' is in '5'" }, load, index)
    given '"a":"one","b":"one","c":"two","\\u0061":"two"'
    fails({ index, "has 'a' twice" }, load, index)
    given '"\255":"one"'
    fails({ index, "not UTF-8" }, load, index)
    for text, said in pairs { ["[]"] = "begin with {", ["{"] = "not JSON", [""] = "not JSON", ["{}"] = "no weight_map",
      ['{"weight_map":[]}'] = false, ['{"weight_map":["one"]}'] = "from tensors to files",
      ['{"weight_map":{},"metadata":3}'] = "metadata must be a map" } do
      write(index, text)
      if said then fails({ index, said }, load, index) else assert.are.same({}, (load(index))) end
    end
    given '"a":"one","b":"one","c":"two"'
    local whole = read(at .. "two")
    for cut = 0, #whole - 1, 7 do
      write(at .. "two", whole:sub(1, cut))
      fails({ index, "'two' is unreadable: " }, load, index)
    end
    write(at .. "two", (whole:gsub("F32", "F31")))
    fails({ index, "'two'", "tensor 'c' has dtype F31" }, load, index)
    fails({ "cannot read", "No such file" }, load, at .. "none.json")
    fails({ "not an index" }, load, "/tmp")
  end)

  it("keeps its promise on 3,000 mutated indices", function()
    local kept, refused = require "fuzz.safetensors"(3000, 2, true)
    assert.truthy(kept > 100 and refused > 1000, kept .. " read, " .. refused .. " refused")
  end)
end)

-- ---- NumPy ----------------------------------------------------------------------------------------------------------

describe("npy", function()
  it("widens what NumPy has beyond our dtypes, and refuses the rest in a line", function()
    same({ { 0.0999755859375, -65504 }, { 2 ^ -24, math.huge } }, pg.npy.load(FIXTURES .. "half.npy"):totable())
    assert.are.same({ -2 ^ 31, 2 ^ 31 - 1 }, pg.npy.load(FIXTURES .. "long.npy"):totable())
    assert.are.same({ 1, 0 }, pg.npy.load(FIXTURES .. "truth.npy"):totable())
    fails({ FIXTURES .. "big.npy", "dtype '>f4': big-endian values are not read" }, pg.npy.load, FIXTURES .. "big.npy")
    fails({ FIXTURES .. "word.npy", "dtype '<U4'; f2, f4" }, pg.npy.load, FIXTURES .. "word.npy")
  end)

  it("writes NumPy's very bytes", function()
    local path = temporary()
    for _, name in ipairs { "softmax.x", "cross_entropy.labels" } do
      local theirs = "tests/fixtures/ops/" .. name .. ".npy"
      pg.npy.save(path, pg.npy.load(theirs))
      assert.truthy(read(theirs) == read(path), name)
    end
  end)
end)

local function little(n, bytes)
  local text = {}
  for i = 1, bytes do text[i], n = string.char(n % 256), math.floor(n / 256) end
  return table.concat(text)
end

local function crc(bytes)
  local c = -1
  for i = 1, #bytes do
    c = bit.bxor(c, bytes:byte(i))
    for _ = 1, 8 do c = bit.bxor(bit.rshift(c, 1), bit.band(c, 1) == 1 and 0xEDB88320 or 0) end
  end
  return bit.bnot(c) % 2 ^ 32
end

-- A ZIP archive of members {name, data, and what it should say in the place of the truth}.
local function zip(members, ending)
  local body, directory = "", ""
  for _, m in ipairs(members) do
    local name, data = m[1], m[2]
    local sizes = little(m.crc or crc(data), 4) .. little(m.packed or #data, 4) .. little(m.bytes or #data, 4)
    local common = little(20, 2) .. little(m.flags or 0, 2) .. little(m.method or 0, 2) .. little(0, 4) .. sizes
      .. little(#name, 2)
    local extra = m.extra or ""
    directory = directory .. "PK\1\2" .. little(20, 2) .. common .. little(#extra, 2) .. ("\0"):rep(10)
      .. little(m.at or #body, 4) .. name .. extra
    body = body .. "PK\3\4" .. common .. "\0\0" .. (m.inside or name) .. data
  end
  ending = ending or {}
  local n = ending.count or #members
  return body .. directory .. "PK\5\6\0\0\0\0" .. little(n, 2) .. little(n, 2) .. little(ending.size or #directory, 4)
    .. little(ending.at or #body, 4) .. little(ending.comment and #ending.comment or 0, 2) .. (ending.comment or "")
end

describe("npz", function()
  local load, save = pg.npz.load, pg.npz.save
  local bytes_of_one = read(FIXTURES .. "truth.npy")

  it("is read as NumPy wrote it: stored, deflated, and with 64-bit sizes", function()
    for _, kind in ipairs { "stored", "deflated", "wide" } do
      local t = load(FIXTURES .. kind .. ".npz")
      assert.are.same({ 2, 3, 4 }, t.weights:shape())
      assert.are.equal(23 / 8, t.weights:get(2, 3, 4))
      same({ math.pi, -0.0, math.huge }, t.double:totable())
      assert.are.same({ { 0, 1, 2 }, { 3, 4, 5 } }, t.fortran:totable())
      assert.are.equal(2.5, t.scalar:item())
      assert.are.same({}, t.scalar:shape())
      assert.are.equal(255, t.bytes:get(256))
      same({ 0.0999755859375, 65504 }, t.half:totable())
      assert.are.same({ 0, 1, 2 }, t.long:totable())
      assert.are.same({ 1, 0 }, t.truth:totable())
      assert.are.same({ 7 }, t["größe"]:totable())
      if kind ~= "wide" then assert.are.same({ 0, 3 }, t.none:shape()) end
      if kind == "deflated" then assert.are.equal(0, t.zeros:abs():max():item()) end
    end
  end)

  it("writes what Python's zipfile does, byte by byte", function()
    local path = temporary()
    save(path, { a = pg.arange(6):reshape(2, 3):to "float32" - 1, ["größe"] = pg.tensor(7, { dtype = "int32" }),
      ["b/c"] = pg.tensor({ 1.5 }, { dtype = "float64" }) })
    assert.truthy(read(FIXTURES .. "plain.npz") == read(path))
    save(path, {})
    assert.are.same({}, load(path))
    local turned = pg.randn(3, 4):t()
    save(path, { turned = turned })
    assert.are.same(turned:totable(), load(path).turned:totable())
    fails({ "must be a tensor" }, save, path, { a = 1 })
    fails({ "without control characters" }, save, path, { ["a\0b"] = pg.zeros(1) })
    fails({ "must be plain UTF-8" }, save, path, { ["a\255"] = pg.zeros(1) })
    fails({ "No such file" }, save, "/nonexistent/a.npz", {})
    assert.are.same(turned:totable(), load(path).turned:totable()) -- the old file is whole
  end)

  it("is the same arrays or one line of error, whatever byte is changed and wherever it is cut", function()
    for _, kind in ipairs { "plain", "deflated" } do
      local whole = read(FIXTURES .. kind .. ".npz")
      local expected, path, refused = load(FIXTURES .. kind .. ".npz"), temporary(), 0
      for at = 1, #whole, kind == "plain" and 1 or 3 do
        write(path, whole:sub(1, at - 1) .. string.char(bit.bxor(whole:byte(at), 2 ^ (at % 8))) .. whole:sub(at + 1))
        local ok, t = pcall(load, path)
        if ok then
          for name, one in pairs(expected) do same(one:totable(), t[name]:totable()) end
        else
          refused = refused + 1
          assert.truthy(t:find(path, 1, true) and not t:find "%c", t)
        end
      end
      assert.truthy(refused > #whole / 5)
      for cut = 0, #whole - 1, kind == "plain" and 1 or 7 do
        write(path, whole:sub(1, cut))
        fails({ path }, load, path)
      end
    end
  end)

  it("refuses archives that lie", function()
    local one = bytes_of_one
    assert.are.same({ 1, 0 }, load(temporary(zip({ { "a.npy", one } }, { comment = "PK\5\6 said" }))).a:totable())
    local function refused(said, members, ending) fails({ said }, load, temporary(zip(members, ending))) end
    refused("member 'a.txt' is no .npy array", { { "a.txt", one } })
    refused("member 'folder/' is no .npy array", { { "folder/", "" } })
    refused("has 'a' twice", { { "a.npy", one }, { "a.npy", one } })
    refused("member 'a' is encrypted", { { "a.npy", one, flags = 1 } })
    refused("member 'a' is neither stored nor deflated", { { "a.npy", one, method = 12 } })
    refused("member 'a' is damaged: its checksum differs", { { "a.npy", one, crc = 5 } })
    refused("member 'a': not a .npy file", { { "a.npy", ("x"):rep(130) } })
    local noise = "\7" .. ("x"):rep(120) -- no deflate stream
    refused("member 'a': not a .npy file", { { "a.npy", noise, method = 8, bytes = 130 } })
    refused("member 'a' claims a size", { { "a.npy", one, bytes = #one + 1 } })
    refused("member 'a' claims a size", { { "a.npy", one, method = 8, bytes = 2 ^ 31 } })
    refused("member 'a' would lie outside", { { "a.npy", one, packed = 2 ^ 31, bytes = 2 ^ 31 } })
    refused("member 'a' would lie outside", { { "a.npy", one, at = 2 ^ 31 } })
    refused("member 'a' has a damaged 64-bit field", { { "a.npy", one, bytes = 2 ^ 32 - 1, extra = "\1\0\4\0abcd" } })
    refused("member 'a' has a damaged 64-bit field", { { "a.npy", one, extra = "\1\0\255\0abcd" } })
    refused("member 'a' claims a size", { { "a.npy", one, bytes = 2 ^ 32 - 1, extra = "\1\0\8\0" .. ("\255"):rep(8) } })
    refused("member 'a' would lie outside", { { "a.npy", one, packed = 2 ^ 32 - 1, bytes = 2 ^ 32 - 1,
      extra = "\1\0\16\0" .. ("\255"):rep(16) } })
    refused("member 'a' is not where the directory says", { { "a.npy", one, at = 1 } })
    refused("members 'a' and 'b' overlap", { { "a.npy", one }, { "b.npy", one, at = 20 } })
    refused("members 'a' and 'b' overlap", { { "a.npy", one }, { "b.npy", one, at = 0 } })
    refused("member 'a' has another name in its own header", { { "a.npy", one, inside = "b.npy" } })
    refused("member 'a': truncated or damaged", { { "a.npy", one .. "\0" } })
    refused("a member's name is not plain UTF-8", { { "a\255.npy", one } })
    refused("a member's name is not plain UTF-8", { { "a\0.npy", one } })
    refused("its directory does not end where", { { "a.npy", one } }, { at = 0 })
    refused("its directory does not end where", { { "a.npy", one } }, { size = 2 ^ 32 - 1 })
    refused("its directory is too short for its entries", { { "a.npy", one } }, { count = 60000 })
    refused("an entry of its directory is none", { { "a.npy", one, extra = ("\0"):rep(48) } }, { count = 2 })
    refused("more than its entries", { { "a.npy", one }, { "b.npy", one } }, { count = 1 })
    fails({ "not a .npz file" }, load, temporary(bytes_of_one))
    fails({ "not a regular file" }, load, "/tmp")
    fails({ "No such file" }, load, "/nonexistent/a.npz")
  end)
end)

teardown(function()
  for _, path in ipairs(made) do
    if lfs.attributes(path, "mode") == "directory" then
      for name in lfs.dir(path) do os.remove(path .. "/" .. name) end
      lfs.rmdir(path)
    end
    os.remove(path)
  end
end)
