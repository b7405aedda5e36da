-- report.lua - what the CUDA kernels cost, told without a GPU: `make cuda-report` runs it and keeps what it prints.
--
--   report.lua [FILE...]     what ptxas -v said of each kernel file, build/ptxas/core/ops/NAME.txt
--
-- PERIGEE_CUDA is the counting build of the simulated device (tests/simt/count.cu). costs.lua has the operations.

local pg = require "perigee"
local lib = require "perigee.ffi"
local costs = require "cuda.costs"
local ffi = require "ffi"

ffi.cdef [[
typedef struct simt_count_row {
  const char *name;
  uint64_t at, block, shared, launches, blocks, read, written, distinct_read, distinct_written;
  double flops;
} simt_count_row;
typedef struct simt_count_site { uint64_t row, at, accesses, touched, needed; } simt_count_site;
void simt_count_clear(void);
uint64_t simt_count_rows(const simt_count_row **out);
uint64_t simt_count_sites(const simt_count_site **out);
]]
local path = assert(os.getenv "PERIGEE_CUDA", "run `make cuda-report`")
local counter = ffi.load(path)

local BAR = 1.25    -- bytes counted to least bytes; sectors touched to needed
local SHARE = 0.02  -- a place with fewer of its operation's sectors than this is in no inner loop

local function printf(...) print((...):format(select(2, ...))) end

local function bytes_text(n)
  return n >= 1e6 and ("%.2f MB"):format(n / 1e6) or n >= 1e3 and ("%.1f kB"):format(n / 1e3) or ("%d B"):format(n)
end

local function ratio_text(a, b) return b > 0 and ("%.2f"):format(a / b) or "-" end

local function table_head(...)
  print("| " .. table.concat({ ... }, " | ") .. " |")
  print("|" .. (" --- |"):rep(select("#", ...)))
end

local function lines_of(command)
  local pipe = assert(io.popen(command))
  local text = pipe:read "*a"
  pipe:close()
  return text:gmatch "[^\n]+"
end

-- ---- ptxas -------------------------------------------------------------------------------------------------------------

-- What an SM has, and in what portions it gives it out.
local SM = {
  sm_80 = { registers = 65536, warps = 64, blocks = 32, shared = 164 * 1024 },
  sm_90 = { registers = 65536, warps = 64, blocks = 32, shared = 228 * 1024 },
}
local ARCHS = { "sm_80", "sm_90" }

local function round_up(n, to) return math.ceil(n / to) * to end

-- The share of an SM's 64 warps that blocks of this shape can fill.
local function occupancy(arch, registers, threads, shared)
  local sm, warps = SM[arch], math.ceil(threads / 32)
  local a_quarter = math.floor(sm.registers / 4 / round_up(math.max(registers, 1) * 32, 256)) -- an SM has four schedulers
  local blocks = math.min(sm.blocks, math.floor(sm.warps / warps), math.floor(4 * a_quarter / warps),
    math.floor(sm.shared / round_up(shared + 1024, 128)))
  return blocks * warps / sm.warps
end

-- "core/ops/x.cu void kernel<float>(float*)" -> sm_80, sm_90 -> {registers, shared, stores, loads}
local compiled, order = {}, {}
for _, file in ipairs(arg) do
  local source = file:match "(core/.*)%.txt$" .. ".cu"
  local kernel, spilled
  for line in lines_of("c++filt < " .. file) do
    local name, arch = line:match "Compiling entry function '(.*)' for '([%w_]+)'"
    local stores, loads = line:match "(%d+) bytes spill stores, (%d+) bytes spill loads"
    local registers = line:match "Used (%d+) registers"
    if name then
      local key = source .. " " .. name
      if not compiled[key] then
        compiled[key] = { source = source, name = name }
        order[#order + 1] = key
      end
      kernel, spilled = {}, nil
      compiled[key][arch] = kernel
    elseif stores and kernel and not spilled then -- of the kernel, not of functions that it calls
      kernel.stores, kernel.loads, spilled = tonumber(stores), tonumber(loads), true
    elseif registers then
      kernel.registers, kernel.shared = tonumber(registers), tonumber(line:match "(%d+) bytes smem" or 0)
    end
  end
end

-- "void kernel<float, (int)4>(long, float*)" -> "kernel<float, 4>"
local function short(name) return (name:gsub("^void ", ""):gsub("%(%w+%)", ""):gsub("%(.*", "")) end

-- ---- counts ------------------------------------------------------------------------------------------------------------

-- Runs a pass and returns its rows {kernels and library calls} with their sites.
local function count(run)
  run() -- what is allocated once is there
  lib.pg_synchronize(1)
  counter.simt_count_clear()
  run()
  assert(lib.pg_synchronize(1) == 0, "the device: " .. ffi.string(lib.pg_last_error()))
  local rows, first = {}, ffi.new "const simt_count_row *[1]"
  for i = 0, tonumber(counter.simt_count_rows(first)) - 1 do
    local r = first[0][i]
    local row = { name = ffi.string(r.name), sites = {}, flops = r.flops }
    for _, field in ipairs { "at", "block", "shared", "launches", "blocks", "read", "written", "distinct_read",
      "distinct_written" } do row[field] = tonumber(r[field]) end
    rows[i + 1] = row
  end
  first = ffi.new "const simt_count_site *[1]"
  for i = 0, tonumber(counter.simt_count_sites(first)) - 1 do
    local s = first[0][i]
    local row = rows[tonumber(s.row) + 1]
    row.sites[#row.sites + 1] = { at = tonumber(s.at), accesses = tonumber(s.accesses), touched = tonumber(s.touched),
      needed = tonumber(s.needed) }
  end
  return rows
end

do -- a count that is known, before any is believed: a column of 256 floats, each in a sector of its own
  local column = pg.zeros({ 256, 64 }, { device = "cuda" }):narrow(2, 1, 1)
  local row = count(function() column:fill_(1) end)[1]
  local site = row.sites[1]
  assert(row.read == 0 and row.written == 256 * 32 and site.touched == 256 and site.needed == 32, "the counter counts wrong")
end

local passes = {} -- {entry, which, rows, sums} or {entry, which, missing}
for _, entry in ipairs(costs.list) do
  for _, which in ipairs { "forward", "backward" } do
    if entry[which] then
      io.stderr:write(entry.name, " ", which, "\n")
      local pass = { entry = entry, which = which }
      local ok, result = pcall(function() return count(costs.prepare(pg, entry, entry.sizes.counted, which)) end)
      if ok then
        pass.rows = result
        local sum = { bytes = 0, distinct = 0, touched = 0, needed = 0, flops = 0 }
        for _, row in ipairs(result) do
          sum.bytes = sum.bytes + row.read + row.written
          sum.distinct = sum.distinct + row.distinct_read + row.distinct_written
          sum.flops = sum.flops + row.flops
          for _, site in ipairs(row.sites) do sum.touched, sum.needed = sum.touched + site.touched, sum.needed + site.needed end
        end
        pass.sum = sum
      else
        pass.missing = costs.reason(result)
      end
      passes[#passes + 1] = pass
      collectgarbage()
    end
  end
end

-- ---- addresses become names --------------------------------------------------------------------------------------------

-- Kernels' names from the symbols. Of a place in the code its line, and in brackets the line of the kernel file from which
-- a helper in a header was called.
local symbol, inner, outer = {}, {}, {}
for line in lines_of("nm -C " .. path) do
  local at, name = line:match "^(%x+) [tTwW] (.*)"
  if at then symbol[tonumber(at, 16)] = name end
end
do
  local asked = os.tmpname()
  local file = assert(io.open(asked, "w"))
  for _, pass in ipairs(passes) do
    for _, row in ipairs(pass.rows or {}) do
      if row.at > 0 then file:write(("0x%x\n"):format(row.at)) end
      for _, site in ipairs(row.sites) do file:write(("0x%x\n"):format(site.at - 1)) end -- inside the call
    end
  end
  file:close()
  local at
  for line in lines_of(("addr2line -a -i -e %s < %s"):format(path, asked)) do -- an address, then frames from the inside
    at = line:match "^0x(%x+)$" and tonumber(line) or at
    local frame = line:match "(core/%w+/[%w_]+%.%w+:%d+)"
    inner[at] = inner[at] or frame
    if frame and frame:find("%.cu:") then outer[at] = outer[at] or frame end
  end
  os.remove(asked)
end

local function place(at)
  local here, from = inner[at], outer[at]
  return not here and "?" or (here == from or not from) and here or ("%s (%s)"):format(here, from)
end

-- An unrolled loop has many places for one line: they are one.
local function merged(sites)
  local list, by_place = {}, {}
  for _, site in ipairs(sites) do
    local where = place(site.at - 1)
    local one = by_place[where]
    if not one then
      one = { place = where, accesses = 0, touched = 0, needed = 0 }
      by_place[where], list[#list + 1] = one, one
    end
    for _, field in ipairs { "accesses", "touched", "needed" } do one[field] = one[field] + site[field] end
  end
  return list
end

for _, pass in ipairs(passes) do
  for _, row in ipairs(pass.rows or {}) do
    local source = outer[row.at] and outer[row.at]:match "^[^:]+"
    local full = symbol[row.at] or row.name
    row.sites = merged(row.sites)
    row.title, row.compiled = short(full), compiled[(source or "") .. " " .. full]
  end
end

-- ---- the page ----------------------------------------------------------------------------------------------------------

print [[
# What the CUDA kernels cost

Written by `make cuda-report`, without a GPU: from what `ptxas -v` says of each kernel, and from what the simulated device
counts while it runs the kernels at the sizes given. [cuda.md](cuda.md) says how to read it; `make bench-cuda` measures the
same operations on a GPU.

How bytes are counted: every load and store of global memory by a kernel, warp by warp, in sectors of 32 bytes. A sector that
several lanes of one access touch counts once; a sector that another warp, or a later access, reads again counts again. So
this is what kernels ask of the caches, not what reaches memory; *each once* counts a sector once a launch, which is what
would reach memory if the L2 cache held all of it (an H100 has 50 MB). Products by cuBLAS are not kernels of ours: they count
with each operand once. Loads and stores are those that the host's compiler made of the kernels (g++ -O2): nvcc may merge or
split others.]]

print "\n## Operations\n"
printf("Bars: bytes counted at most %.2f of the least; no line of an inner loop (one with at least %d%% of its kernels'\n"
  .. "sectors) that touches more than %.2f of the sectors it needs; no spilled registers.\n", BAR, 100 * SHARE, BAR)
table_head("operation", "sizes", "least", "counted", "ratio", "each once", "ratio", "sectors touched / needed", "verdict")

local scattered = {} -- the places that miss the bar
for _, pass in ipairs(passes) do
  local title = pass.entry.name .. " " .. pass.which
  local s = pass.entry.sizes.counted
  local least = costs.value(pass.entry[pass.which].bytes, s)
  if pass.missing then
    printf("| %s | %s | %s | | | | | | not there: %s |", title, costs.size_text(s), bytes_text(least), pass.missing)
  else
    local sum, missed = pass.sum, {}
    if sum.bytes > BAR * least then missed[#missed + 1] = "bytes" end
    if sum.bytes < least then missed[#missed + 1] = "fewer than the least: the formula, or the count, is wrong" end
    local scatter, spills
    for _, row in ipairs(pass.rows) do
      for _, site in ipairs(row.sites) do
        if site.touched > BAR * site.needed and site.touched >= SHARE * sum.touched then
          scatter = true
          scattered[#scattered + 1] = { title = title, row = row, site = site, share = site.touched / sum.touched }
        end
      end
      for _, arch in ipairs(ARCHS) do
        local k = row.compiled and row.compiled[arch]
        spills = spills or k and k.stores + k.loads > 0
      end
    end
    if scatter then missed[#missed + 1] = "coalescing" end
    if spills then missed[#missed + 1] = "spills" end
    printf("| %s | %s | %s | %s | %s | %s | %s | %s | %s |", title, costs.size_text(s), bytes_text(least),
      bytes_text(sum.bytes), ratio_text(sum.bytes, least), bytes_text(sum.distinct), ratio_text(sum.distinct, least),
      ratio_text(sum.touched, sum.needed), #missed > 0 and "MISSED: " .. table.concat(missed, ", ") or "ok")
  end
end

print "\n## Uncoalesced places\n"
if #scattered == 0 then print "None in an inner loop." else
  table_head("operation", "kernel", "place", "accesses by warps", "sectors touched / needed", "share of its kernels' sectors")
  for _, at in ipairs(scattered) do
    printf("| %s | `%s` | %s | %d | %s | %.0f%% |", at.title, at.row.title, at.site.place, at.site.accesses,
      ratio_text(at.site.touched, at.site.needed), 100 * at.share)
  end
end

print [[

## Their kernels

Registers, shared memory (static + dynamic) and spills (bytes stored / loaded) for sm_80 and sm_90; occupancy is the share of
an SM's 64 warps that blocks of that shape can fill. Sizes as above.
]]
table_head("operation", "kernel", "launches", "blocks x threads", "read", "written", "touched / needed", "registers", "shared",
  "spills", "occupancy")
for _, pass in ipairs(passes) do
  for _, row in ipairs(pass.rows or {}) do
    local title = pass.entry.name .. " " .. pass.which
    if row.at == 0 then
      printf("| %s | %s | %d | | %s | %s | | | | | |", title, row.name, row.launches, bytes_text(row.read),
        bytes_text(row.written))
    else
      local touched, needed, cells = 0, 0, { registers = {}, spills = {}, occupancy = {} }
      for _, site in ipairs(row.sites) do touched, needed = touched + site.touched, needed + site.needed end
      local static = "?"
      for i, arch in ipairs(ARCHS) do
        local k = row.compiled and row.compiled[arch]
        static = k and k.shared or static
        cells.registers[i] = k and k.registers or "?"
        cells.spills[i] = k and k.stores .. "/" .. k.loads or "?"
        cells.occupancy[i] = k and ("%.0f%%"):format(100 * occupancy(arch, k.registers, row.block, k.shared + row.shared)) or "?"
      end
      if cells.spills[1] == cells.spills[2] then cells.spills[2] = nil end
      printf("| %s | `%s` | %d | %g x %d | %s | %s | %s | %s | %s + %d | %s | %s |", title, row.title, row.launches,
        row.blocks / row.launches, row.block, bytes_text(row.read), bytes_text(row.written), ratio_text(touched, needed),
        table.concat(cells.registers, ", "), static, row.shared, table.concat(cells.spills, ", "),
        table.concat(cells.occupancy, ", "))
    end
  end
end

print [[

## Bounds

The least time on an H100 (SXM: 3.0 TB/s as a copy measures it; 67 TFLOP/s float32, and in tensor cores, dense, 990
bfloat16 and 495 TF32), of a real problem. Bytes are the least, by formula. Floating-point operations are by formula too: two
a multiply-add of a product; of the rest an addition or a multiplication 1, and exp, log, erf, a root or a division 16, as a
GPU gives 16 of them in the time of 128 multiply-adds. Kernels' arithmetic is not counted; products that cuBLAS does are, and
stand beside the formula at the sizes above. bfloat16 would halve the bytes and take the products to tensor cores.
]]
table_head("operation", "problem", "least bytes", "products", "rest", "cuBLAS's products / formula", "float32",
  "TF32 products", "bfloat16")
for _, pass in ipairs(passes) do
  local cost, sizes = pass.entry[pass.which], pass.entry.sizes
  local function bound(kind)
    local seconds, by = costs.bound(cost, sizes.real, kind)
    return ("%.1f us, %s"):format(1e6 * seconds, by)
  end
  local function formula(text, unit)
    return text and ("`%s` = %.3g %s"):format(text, costs.value(text, sizes.real) / 1e9, unit) or "-"
  end
  local products = costs.value(cost.products, sizes.counted)
  printf("| %s %s | %s: %s | %s | %s | %s | %s | %s | %s | %s |", pass.entry.name, pass.which, pass.entry.about,
    costs.size_text(sizes.real), formula(cost.bytes, "GB"), formula(cost.products, "GFLOP"), formula(cost.rest, "GFLOP"),
    pass.sum and pass.sum.flops > 0 and ratio_text(pass.sum.flops, products) or "-", bound "float32",
    cost.products and bound "tf32" or "-", bound "bfloat16")
end

print [[

## Every kernel

All instantiations of a kernel in one row, at the worst of them and of sm_80 and sm_90. Occupancy is at 256 threads without
dynamic shared memory: the kernels above have their own shape.
]]
if #order == 0 then print "Not known: there is no nvcc on PATH." else
  local groups, names = {}, {}
  for _, key in ipairs(order) do
    local kernel = compiled[key]
    local title = kernel.source .. " | `" .. short(kernel.name):match "[^<]+" .. "`"
    local g = groups[title]
    if not g then
      g = { count = 0, registers = 0, shared = 0, spills = 0, occupancy = 1 }
      groups[title], names[#names + 1] = g, title
    end
    g.count = g.count + 1
    for _, arch in ipairs(ARCHS) do
      local k = kernel[arch]
      g.registers, g.shared = math.max(g.registers, k.registers), math.max(g.shared, k.shared)
      if k.stores + k.loads > g.spills then g.spills, g.spilling = k.stores + k.loads, short(kernel.name) end
      g.occupancy = math.min(g.occupancy, occupancy(arch, k.registers, 256, k.shared))
    end
  end
  table.sort(names)
  table_head("file", "kernel", "instantiations", "registers", "static shared", "spills", "occupancy")
  for _, title in ipairs(names) do
    local g = groups[title]
    printf("| %s | %d | %d | %d | %s | %.0f%% |", title, g.count, g.registers, g.shared,
      g.spilling and ("%d `%s`"):format(g.spills, g.spilling) or "0", 100 * g.occupancy)
  end
end
