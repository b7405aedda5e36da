-- io_spec.lua - files: what is written is read back, every kind of PNG comes out as it should, and a damaged or hostile
-- file is one clear error. The fixtures are made here, byte by byte.

local bit = require "bit"
local pg = require "perigee"

local made = {}

local function temporary(bytes)
  local path = os.tmpname()
  made[#made + 1] = path
  if bytes then
    local file = assert(io.open(path, "wb"))
    file:write(bytes)
    file:close()
  end
  return path
end

local function read(path)
  local file = assert(io.open(path, "rb"))
  local bytes = file:read "*a"
  file:close()
  return bytes
end

local fails = require("expect").fails

local function big(n) -- four bytes, most significant first
  local function byte(shift) return bit.band(bit.rshift(n, shift), 255) end
  return string.char(byte(24), byte(16), byte(8), byte(0))
end

-- ---- PNG by hand: stored deflate blocks ---------------------------------------------------------------------------

local function crc(bytes)
  local c = -1
  for i = 1, #bytes do
    c = bit.bxor(c, bytes:byte(i))
    for _ = 1, 8 do c = bit.bxor(bit.rshift(c, 1), bit.band(c, 1) == 1 and 0xEDB88320 or 0) end
  end
  return bit.bnot(c)
end

local function chunk(name, bytes) return big(#bytes) .. name .. bytes .. big(crc(name .. bytes)) end

local function stored(bytes)
  local a, b, low, n = 1, 0, string.char, #bytes
  for i = 1, n do
    a = (a + bytes:byte(i)) % 65521
    b = (b + a) % 65521
  end
  local function pair(v) return low(v % 256, math.floor(v / 256)) end
  return "\120\1\1" .. pair(n) .. pair(65535 - n) .. bytes
    .. low(math.floor(b / 256), b % 256, math.floor(a / 256), a % 256)
end

-- A black RGB PNG of any size, deflated as zlib would: one literal zero, then copies of 258 bytes from one byte back, each
-- of 13 bits, so that the stream repeats every 13 bytes (RFC 1951, fixed Huffman codes; bits fill bytes from the lowest).
local function png_of_zeros(width, height)
  local n = height * (width * 3 + 1)
  local copy, copies = "1100010100000", math.floor((n - 1) / 258)
  local function pack(bits)
    return (bits:gsub("........", function(byte) return string.char(tonumber(byte:reverse(), 2)) end))
  end
  local head = "110" .. "00110000" .. copy:rep(copies % 8) -- a last block of fixed codes, and a zero
  local turn = -#head % 8
  local period = copy:rep(8)
  local tail = period:sub(turn + 1) .. ("00110000"):rep((n - 1) % 258) .. "0000000"
  local stream = pack(head .. period:sub(1, turn))
    .. pack(period:sub(turn + 1) .. period:sub(1, turn)):rep(math.floor(copies / 8) - 1)
    .. pack(tail .. ("0"):rep(-#tail % 8))
  local sum = n % 65521 -- Adler-32 of n zeros: a = 1, b = n
  local ending = string.char(math.floor(sum / 256), sum % 256, 0, 1)
  return "\137PNG\r\n\26\n" .. chunk("IHDR", big(width) .. big(height) .. string.char(8, 2, 0, 0, 0))
    .. chunk("IDAT", "\120\1" .. stream .. ending) .. chunk("IEND", "")
end

-- rows: strings of packed pixels; colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA
local function png(width, height, depth, colour, rows, extra, interlace)
  local data = {}
  for i, row in ipairs(rows) do data[i] = "\0" .. row end
  local head = big(width) .. big(height) .. string.char(depth, colour, 0, 0, interlace or 0)
  return "\137PNG\r\n\26\n" .. chunk("IHDR", head)
    .. (extra or "") .. chunk("IDAT", stored(table.concat(data))) .. chunk("IEND", "")
end

local function loads(bytes) return pg.image.load(temporary(bytes)):totable() end

describe("PNG", function()
  it("reads RGB, grey, palette and 16 bits", function()
    assert.are.same({ { { 1, 2, 3 }, { 4, 5, 6 } } }, loads(png(2, 1, 8, 2, { "\1\2\3\4\5\6" })))
    assert.are.same({ { { 7, 7, 7 } }, { { 9, 9, 9 } } }, loads(png(1, 2, 8, 0, { "\7", "\9" })))
    assert.are.same({ { { 255, 255, 255 }, { 0, 0, 0 } } }, loads(png(2, 1, 1, 0, { "\128" })))
    assert.are.same({ { { 10, 20, 30 }, { 40, 50, 60 } } },
      loads(png(2, 1, 8, 3, { "\0\1" }, chunk("PLTE", "\10\20\30\40\50\60"))))
    assert.are.same({ { { 128, 0, 255 } } }, loads(png(1, 1, 16, 2, { "\128\128\0\0\255\255" })))
  end)

  it("composites alpha on white", function()
    assert.are.same({ { { 255, 255, 255 }, { 10, 20, 30 }, { 127, 127, 127 } } },
      loads(png(3, 1, 8, 6, { "\1\2\3\0\10\20\30\255\0\0\0\128" })))
    assert.are.same({ { { 255, 255, 255 } } }, loads(png(1, 1, 8, 4, { "\9\0" })))
    assert.are.same({ { { 255, 255, 255 }, { 40, 50, 60 } } }, -- a palette entry made transparent by tRNS
      loads(png(2, 1, 8, 3, { "\0\1" }, chunk("PLTE", "\10\20\30\40\50\60") .. chunk("tRNS", "\0"))))
  end)

  it("reads an interlaced picture", function() -- 2 x 2: passes 1, 6 and 7 hold (0,0), (0,1) and row 1
    assert.are.same({ { { 1, 1, 1 }, { 2, 2, 2 } }, { { 3, 3, 3 }, { 4, 4, 4 } } },
      loads(png(2, 2, 8, 0, { "\1", "\2", "\3\4" }, "", 1)))
  end)

  it("writes what it reads", function()
    pg.seed(1)
    local path = temporary()
    local colour, grey = (pg.rand(5, 7, 3) * 256):to "uint8", (pg.rand(5, 7) * 256):to "uint8"
    pg.image.save(path, colour)
    assert.are.same(colour:totable(), pg.image.load(path):totable())
    pg.image.save(path, grey)
    local back = pg.image.load(path)
    assert.are.same({ 5, 7, 3 }, back:shape())
    assert.are.same(grey:totable(), back:select(3, 2):totable())
    assert.are.same(8, #read(path):match "^\137PNG\r\n\26\n")
  end)

  it("refuses what is no whole PNG", function()
    local whole = png(2, 1, 8, 2, { "\1\2\3\4\5\6" })
    for cut = 0, 7 do fails("not a PNG, JPEG or PPM file", pg.image.load, temporary(whole:sub(1, cut))) end
    for cut = 8, #whole - 20 do fails("damaged PNG", pg.image.load, temporary(whole:sub(1, cut))) end
    fails("damaged PNG", pg.image.load, temporary(png(2, 0, 8, 2, {})))
    fails("damaged PNG", pg.image.load, temporary(png(0x7fffffff, 0x7fffffff, 8, 6, {})))
    fails("more than 64 MB", pg.image.load, temporary(png(13000, 13000, 8, 2, { "" })))
    fails("needs more than 64 MB", pg.image.thumbnail, temporary(png(13000, 13000, 8, 2, { "" }, "", 1)), 64)
    fails("No such file", pg.image.load, "/nonexistent/a.png")
    fails("not a regular file", pg.image.load, "/tmp")
  end)

  it("reduces the whole picture onto a white square", function()
    local path = temporary()
    local wide = pg.zeros(20, 400, 3):to "uint8"
    pg.image.save(path, wide)
    local t = pg.image.thumbnail(path, 40)
    assert.are.same({ 40, 40, 3 }, t:shape())
    local rows = t:totable()
    for y = 1, 40 do -- 400 x 20 becomes 40 x 2, in rows 20 and 21
      local expected = (y == 20 or y == 21) and 0 or 255
      for x = 1, 40 do assert.are.same({ expected, expected, expected }, rows[y][x]) end
    end
    pg.image.save(path, pg.full({ 333, 271, 3 }, 77):to "uint8")
    assert.are.equal(77, pg.image.thumbnail(path, 32):totable()[16][16][1])
    fails("within 1..1024", pg.image.thumbnail, path, 4096)
  end)

  -- By how many bytes the peak of a fresh process's resident memory grows while it runs `code`; and what it prints.
  local function growth(code)
    local script = temporary(([[
      local pg = require "perigee"
      local function status(field)
        for line in io.lines "/proc/self/status" do
          local kb = line:match("^" .. field .. ":%%s*(%%d+)")
          if kb then return kb * 1024 end
        end
      end
      local before = status "VmRSS"
      %s
      print(status "VmHWM" - before)]]):format(code))
    local pipe = assert(io.popen("OMP_NUM_THREADS=1 luajit " .. script .. " 2>&1"))
    local text = pipe:read "*a"
    pipe:close()
    return assert(tonumber(text:match "(%d+)\n$"), text), text
  end

  it("reduces 169 million pixels within 64 MB", function()
    local path = temporary(png_of_zeros(13000, 13000))
    local bytes, text = growth(("print(pg.image.thumbnail(%q, 64):to('float32'):max():item())"):format(path))
    assert.are.equal("0", text:match "^[^\n]+") -- black, to the last row
    assert.truthy(bytes < 64e6, bytes)
  end)

  it("does not fill the memory that a chunk claims to need", function() -- libpng would: 2 GB for these 60 bytes
    for _, name in ipairs { "zTXt", "iTXt", "sPLT", "iCCP", "tRNS", "PLTE", "IDAT", "abCd" } do
      local head = chunk("IHDR", big(2) .. big(2) .. string.char(8, 2, 0, 0, 0))
      local path = temporary("\137PNG\r\n\26\n" .. head .. big(0x7ffffff0) .. name .. "Title\0\0text")
      local bytes, text = growth(("print(pcall(pg.image.load, %q))"):format(path))
      assert.truthy(text:find("damaged PNG", 1, true), text)
      assert.truthy(bytes < 16e6, name .. ": " .. bytes)
    end
  end)

  it("saves only pictures", function()
    fails("uint8 (H, W, 3)", pg.image.save, temporary(), pg.zeros(2, 2, 3))
    fails("No such file", pg.image.save, "/nonexistent/a.png", pg.zeros(2, 2, 3):to "uint8")
  end)
end)

describe("resize", function()
  it("keeps constants, is the identity at the same size, and averages when shrinking", function()
    pg.seed(2)
    local t = (pg.rand(6, 9, 3) * 256):to "uint8"
    for _, method in ipairs { "bicubic", "bilinear" } do
      assert.are.same(t:totable(), pg.image.resize(t, 6, 9, method):totable())
      local flat = pg.image.resize(pg.full({ 50, 31, 3 }, 200):to "uint8", 7, 64, method)
      assert.are.same({ 7, 64, 3 }, flat:shape())
      assert.are.equal(200, flat:to("float32"):mean():item())
    end
    -- The triangle of half-width 2 about columns 1 and 3: weights 3 3 1 over 7, and their mirror image.
    local row = pg.tensor({ { { 0 }, { 100 }, { 200 }, { 100 } } }):to "uint8"
    assert.are.same({ { { 71 }, { 143 } } }, pg.image.resize(row, 1, 2, "bilinear"):totable())
    fails("one of bicubic, bilinear", pg.image.resize, t, 2, 2, "nearest")
  end)
end)

-- ---- arrays -------------------------------------------------------------------------------------------------------

describe("IDX", function()
  local ffi, lib, call = require "ffi", require "perigee.ffi", require "perigee.call"
  local function load(path)
    local out = ffi.new "pg_tensor *[1]"
    call.check(lib.pg_idx_load(path, out))
    return call.own(out[0])
  end
  local whole = "\0\0\8\2" .. big(2) .. big(3) .. "\1\2\3\4\5\6"

  it("reads plain and gzipped files", function()
    local path = temporary(whole)
    assert.are.same({ { 1, 2, 3 }, { 4, 5, 6 } }, load(path):totable())
    made[#made + 1] = path .. ".gz"
    os.execute("gzip -k " .. path)
    assert.are.same({ { 1, 2, 3 }, { 4, 5, 6 } }, load(path .. ".gz"):totable())
    local packed = read(path .. ".gz")
    for cut = 20, #packed - 1 do assert.is_false(pcall(load, temporary(packed:sub(1, cut)))) end
  end)

  it("refuses what its header does not describe", function()
    for cut = 0, #whole - 1 do assert.is_false(pcall(load, temporary(whole:sub(1, cut)))) end
    fails("does not end", load, temporary(whole .. "\7"))
    fails("promises more", load, temporary("\0\0\8\3" .. ("\255"):rep(12) .. "\1"))
    fails("dtype 0x0d", load, temporary("\0\0\13\1" .. big(1) .. "\0\0\0\0"))
    fails("is empty", load, temporary("\0\0\8\1" .. big(0)))
  end)
end)

describe("npy", function()
  local function npy(descr, fortran, shape, data)
    local header = ("{'descr': '%s', 'fortran_order': %s, 'shape': %s, }\n"):format(descr, fortran, shape)
    return "\147NUMPY\1\0" .. string.char(#header, 0) .. header .. data
  end

  it("reads back what it wrote", function()
    pg.seed(3)
    local path = temporary()
    for _, dtype in ipairs { "float32", "float64", "int32", "uint8" } do
      local t = (pg.rand(2, 3, 4) * 200):to(dtype)
      pg.npy.save(path, t:select(2, 2))
      local back = pg.npy.load(path)
      assert.are.equal(dtype, back:dtype())
      assert.are.same(t:select(2, 2):totable(), back:totable())
    end
    pg.npy.save(path, pg.tensor(3))
    assert.are.same({}, pg.npy.load(path):shape())
  end)

  it("reads Fortran order and int64", function()
    assert.are.same({ { 1, 3, 5 }, { 2, 4, 6 } },
      pg.npy.load(temporary(npy("|u1", "True", "(2, 3)", "\1\2\3\4\5\6"))):totable())
    assert.are.same({ 1, -1 },
      pg.npy.load(temporary(npy("<i8", "False", "(2,)", "\1" .. ("\0"):rep(7) .. ("\255"):rep(8)))):totable())
    fails("does not fit", pg.npy.load, temporary(npy("<i8", "False", "(1,)", ("\127"):rep(8))))
  end)

  it("gives NaN for a NaN with bits of its own, in which LuaJIT would see a value of another type", function()
    local single, double = ("\255"):rep(4) .. "\1\0\191\255", ("\255"):rep(8) .. "\1\0\0\0\1\0\253\255"
    for descr, bytes in pairs { ["<f4"] = single, ["<f8"] = double } do
      local list = pg.npy.load(temporary(npy(descr, "False", "(2,)", bytes))):totable()
      for i = 1, 2 do
        assert.are.equal("number", type(list[i]))
        assert.are_not.equal(list[i], list[i])
      end
    end
  end)

  it("refuses damage", function()
    local whole = npy("|u1", "False", "(2, 3)", "\1\2\3\4\5\6")
    for cut = 0, #whole - 1 do assert.is_false(pcall(pg.npy.load, temporary(whole:sub(1, cut)))) end
    fails("truncated or damaged", pg.npy.load, temporary(whole .. "\1"))
    fails("truncated or damaged", pg.npy.load, temporary(npy("<f8", "False", "(4294967296, 4294967296)", "")))
    fails("malformed", pg.npy.load, temporary(npy("|u1", "False", "(99999999999999999999,)", "")))
    fails("malformed", pg.npy.load, temporary(npy("|u1", "False", "(-1,)", "")))
    fails("dtype '>f4'", pg.npy.load, temporary(npy(">f4", "False", "(1,)", "\0\0\0\0")))
    fails("structured", pg.npy.load, temporary(npy("", "False", "(1,)", ""):gsub("''", "[] ")))
  end)
end)

describe("safetensors", function()
  local load, save = pg.safetensors.load, pg.safetensors.save
  local function file(header, data)
    return temporary(string.char(#header % 256, math.floor(#header / 256)) .. ("\0"):rep(6) .. header .. (data or ""))
  end

  it("reads back tensors and metadata, in the same bytes each time", function()
    pg.seed(4)
    local path, again = temporary(), temporary()
    local given = { ["a/b"] = pg.randn(2, 3), c = pg.randn(4):to "float64", d = pg.arange(5), e = pg.tensor(7),
      f = pg.tensor({ 1, 255 }):to "uint8", g = pg.zeros(0, 3), h = pg.randn(3, 2):t() }
    save(path, given, { note = 'say "x"', step = 12 })
    save(again, given, { note = 'say "x"', step = 12 })
    assert.are.equal(read(path), read(again))
    local back, metadata = load(path)
    assert.are.same({ note = 'say "x"', step = "12" }, metadata)
    for name, t in pairs(given) do
      assert.are.equal(t:dtype(), back[name]:dtype())
      assert.are.same(t:shape(), back[name]:shape())
      if t:numel() > 0 then assert.are.same(t:totable(), back[name]:totable()) end
    end
  end)

  it("widens F16, BF16 and I64", function()
    local t = load(file('{"h":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},' ..
      '"b":{"dtype":"BF16","shape":[1],"data_offsets":[4,6]},"i":{"dtype":"I64","shape":[1],"data_offsets":[6,14]}}',
      "\0\60\1\128" .. "\192\191" .. "\5" .. ("\0"):rep(7)))
    assert.are.same({ 1, -2 ^ -24 }, t.h:totable())
    assert.are.same({ -1.5 }, t.b:totable())
    assert.are.same({ 5 }, t.i:totable())
    local nan = load(file('{"b":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}', "\255\255\128\127")).b:totable()
    assert.are_not.equal(nan[1], nan[1])
    assert.are.equal(math.huge, nan[2])
  end)

  it("refuses a header that disagrees with the file", function()
    local function one(shape, offsets)
      return ('{"a":{"dtype":"U8","shape":%s,"data_offsets":%s}}'):format(shape, offsets)
    end
    fails("8-byte prefix", load, temporary "abc")
    fails("its header would be", load, temporary(("\255"):rep(8) .. "{}"))
    fails("not JSON", load, file "{nope")
    fails("begin with {", load, file "[1]")
    fails("need 3", load, file(one("[3]", "[0,2]"), "ab"))
    fails("describes 2 bytes", load, file(one("[2]", "[0,2]"), "abc"))
    fails("describes 2 bytes", load, file(one("[2]", "[0,2]"), "a"))
    fails("starts at byte 1", load, file(one("[2]", "[1,3]"), "abc"))
    fails("data_offsets", load, file(one("[2]", "[3,1]"), "abc"))
    fails("not a whole number", load, file(one("[-1]", "[0,0]")))
    fails("dtype F8", load, file '{"a":{"dtype":"F8","shape":[],"data_offsets":[0,1]}}')
  end)

  -- {what the message says, header or whole header and data}; a is the tensor that a message must name.
  local hostile = {
    { "'a' holds 4 bytes, but its shape and dtype F32 need 8", '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', 4 },
    { "'b' starts at byte 2 of the data, where 4 was expected",
      '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}', 6 },
    { "'b' starts at byte 0 of the data, where 4 was expected", -- one inside the other
      '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[5],"data_offsets":[0,5]}}', 5 },
    { "'b' starts at byte 5 of the data, where 4 was expected", -- a hole
      '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[1],"data_offsets":[5,6]}}', 6 },
    { "'a' must have data_offsets", '{"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}}', 1 },
    { "'a' must have data_offsets", '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0.5,1.5]}}', 1 },
    { "'a' must have data_offsets", '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}', 1 },
    { "'a' must have data_offsets", '{"a":{"dtype":"U8","shape":[1],"data_offsets":{"0":0,"1":1}}}', 1 },
    { "'a' must have data_offsets", '{"a":{"dtype":"U8","shape":[1]}}', 1 },
    { "'a' must have data_offsets", '{"a":{"dtype":"U8","shape":[1],"data_offsets":[NaN,Infinity]}}', 1 },
    { "'a' holds 9007199254740992 bytes", '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,9007199254740992]}}', 1 },
    { "the header describes 4398046511104 bytes",
      '{"a":{"dtype":"U8","shape":[4398046511104],"data_offsets":[0,4398046511104]}}', 1 },
    { "'a' has a size that is not a whole number: -3", '{"a":{"dtype":"U8","shape":[-3,-1],"data_offsets":[0,3]}}', 3 },
    { "'a' has a size that is not a whole number: 1.5", '{"a":{"dtype":"U8","shape":[1.5,2],"data_offsets":[0,3]}}', 3 },
    { "'a' has a size that is not a whole number: 3", '{"a":{"dtype":"U8","shape":["3"],"data_offsets":[0,3]}}', 3 },
    { "'a' has a size that is not a whole number: inf", '{"a":{"dtype":"U8","shape":[1e400],"data_offsets":[0,3]}}', 3 },
    { "'a' has a shape of", -- 2^64 values: 0 in 64 bits
      '{"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}}', 0 },
    { "'a' has a shape of", '{"a":{"dtype":"F32","shape":[9007199254740992,9007199254740992,0],"data_offsets":[0,0]}}', 0 },
    { "'a' must have a shape", '{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}', 1 },
    { "'a' must have a shape", '{"a":{"dtype":"U8","shape":{"x":1},"data_offsets":[0,1]}}', 1 },
    { "'a' must have a shape", '{"a":{"dtype":"U8","shape":3,"data_offsets":[0,3]}}', 3 },
    { "'a' has dtype F8_E4M3", '{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}', 1 },
    { "'a' has dtype 5", '{"a":{"dtype":5,"shape":[1],"data_offsets":[0,1]}}', 1 },
    { "'a' has dtype F??32", '{"a":{"dtype":"F\\n\\u000032","shape":[1],"data_offsets":[0,1]}}', 1 },
    { "'a' has dtype nil", '{"a":[]}', 0 },
    { "not JSON", '{}x', 0 },
    { "'a' has no description", '{"a":null}', 0 },
    { "tensor 'two?lines' has no description", '{"two\\nlines":1}', 0 },
    { "has 'a' twice",
      '{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', 0 },
    { "has 'a' twice",
      '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\\u0061":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}', 1 },
    { "has 'dtype' twice", '{"a":{"dtype":"F64","dtype":"U8","shape":[],"data_offsets":[0,1]}}', 1 },
    { "is not UTF-8 at byte 3", '{"\255":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}', 1 },
    { "is not UTF-8 at byte 3", '{"\192\175":1}', 0 }, -- overlong
    { "is not UTF-8 at byte 3", '{"\237\160\128":1}', 0 }, -- a surrogate
    { "is not UTF-8 at byte 3", '{"\244\144\128\128":1}', 0 }, -- beyond U+10FFFF
    { "is not UTF-8 at byte 4", '{"a\226\130":1}', 0 }, -- cut
    { "not JSON", "", 0 },
    { "not JSON", '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}', 1 },
    { "not JSON", '{"a":1} {"b":2}', 0 },
    { "not JSON", ('{"a":'):rep(5000), 0 },
    { "begin with {", ' {"a":1}', 0 },
    { "begin with {", "[]", 0 },
    { "__metadata__ must be a map", '{"__metadata__":{"step":12}}', 0 },
    { "__metadata__ must be a map", '{"__metadata__":["x"]}', 0 },
    { "__metadata__ must be a map", '{"__metadata__":"x"}', 0 },
  }

  it("refuses every header that lies, in one line that names the file and the tensor", function()
    for _, case in ipairs(hostile) do
      local path = file(case[2], ("\0"):rep(case[3]))
      local ok, message = pcall(load, path)
      assert.is_false(ok, case[2])
      assert.truthy(message:find(case[1], 1, true), message)
      assert.truthy(message:find(path, 1, true), message)
      assert.falsy(message:find "%c", message)
    end
    local long = file('{"' .. ("\195\164"):rep(5000) .. '":1}')
    local _, message = pcall(load, long)
    assert.truthy(#message < 250 and message:find "has no description", message)
    fails("not a safetensors file", load, "/tmp")
    fails("its header would be 18446744073709551616 bytes", load, temporary(("\255"):rep(8)))
    local whole = read(file('{"a":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}}', ("\0"):rep(16)))
    for cut = 0, #whole - 1 do assert.is_false(pcall(load, temporary(whole:sub(1, cut)))) end
    fails("'a': the int64 at position 2 does not fit int32", load, temporary(whole:sub(1, -2) .. "\127"))
  end)

  it("keeps its promise on 20,000 mutated files", function()
    local kept, refused = require "fuzz.safetensors"(20000, 1)
    assert.truthy(kept > 500 and refused > 10000, kept .. " read, " .. refused .. " refused") -- both ways are walked
  end)

  it("leaves the old file when the new one cannot be written", function()
    fails("No such file", save, "/nonexistent/x.safetensors", { a = pg.zeros(1) })
    fails("must be a tensor", save, temporary(), { a = 1 })
  end)
end)

teardown(function()
  for _, path in ipairs(made) do os.remove(path) end
end)
