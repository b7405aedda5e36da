-- distributed.lua - data-parallel training: a recipe that mpirun or srun starts N times is one run on N processes.
--
--   local positions = pg.distributed.slice(sampler:next())       -- this process's part of the batch
--   pg.distributed.share(model, head, regularizer)               -- once: from now on backward averages their gradients
--   local all = pg.distributed.gather(features)                  -- the whole batch's, with gradient; FDA does it
--
-- Every process runs the same program from the same seed and makes the same calls here in the same order. A batch is the
-- whole batch, of which each process takes a part, so that a recipe's options mean the same on any number of processes,
-- and a run resumes on another number of them. Alone, each function gives back what it was given. docs/scale.md.

local ffi = require "ffi"
local lib = require "perigee.ffi"
local util = require "perigee.util"
local call = require "perigee.call"

local found, host = pcall(require, "perigee.host")
if not found then host = { interrupted = function() return false end } end

local distributed = { BUCKET = 25 * 2 ^ 20 } -- bytes of gradients that are averaged at once
local function pg() return require "perigee" end

-- Where launchers say how many processes they started, and which one this is.
local SIZES = { "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS" }
local RANKS = { "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID" }

local function first(names)
  for _, name in ipairs(names) do
    local value = tonumber(os.getenv(name) or "")
    if value then return value end
  end
end

--- How many processes the launcher says that it started: mpirun's own variable, PMI's, or that of a Slurm step (an
-- allocation's number of tasks says nothing of who runs in it). @return a number, 1 without a launcher
function distributed.launched() return first(SIZES) or 1 end

--- The number of this process, from 0, as MPI counts. @return a number; before start() as the launcher says
function distributed.rank()
  if distributed.started then return lib.pg_comm_rank() end
  return distributed.launched() > 1 and first(RANKS) or 0
end

--- The number of processes. @return 1 before start() and where there is one
function distributed.size() return lib.pg_comm_size() end

--- Joins the processes that were started together; `perigee run` does it. Where nobody said how many threads, the
-- processes of one machine share its processors.
-- @raises when there are several and Perigee was built without MPI, or MPI does not know of them
function distributed.start()
  local wanted = distributed.launched()
  if wanted == 1 or distributed.started then return end
  local told = first { "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK" } -- else MPI would end the process, with a page of text
  util.check(told, "this is one of %d tasks, of which srun has told MPI nothing: start them by srun --mpi=pmix", wanted)
  if lib.pg_comm_open() ~= 0 then
    util.fail(0, "this is one of %d processes, but %s (install libopenmpi-dev)", wanted, ffi.string(lib.pg_last_error()))
  end
  util.check(lib.pg_comm_size() == wanted, "this is one of %d processes, but MPI knows of %d: the launcher is not this MPI's",
    wanted, lib.pg_comm_size())
  distributed.started = true
  local own = lib.pg_processors()
  if not os.getenv "OMP_NUM_THREADS" and pg().threads() == own and own >= lib.pg_comm_local_size() then
    pg().threads(math.floor(own / lib.pg_comm_local_size()))
  end
end

--- What the line that tells of a process's death shall say, once the run has a folder to go on from; pg.run.open does it.
-- @param recipe, folder  paths
function distributed.begun(recipe, folder)
  if distributed.size() > 1 then
    lib.pg_comm_last_words(("start it again with: perigee run %s --resume %s"):format(recipe or "RECIPE.lua", folder))
  end
end

--- Says why this process fails, which the others then need not. Where all of them fail alike rank 0 says it, and the
-- launcher's signal ends the wait of the rest.
-- @param text  a line
function distributed.fail(text)
  local rank = distributed.rank()
  lib.pg_comm_leave()
  if rank > 0 then lib.pg_sleep(3) end
  if rank > 0 and host.interrupted() then return end
  io.stderr:write("perigee: ", rank > 0 and ("rank %d: "):format(rank) or "", text, "\n")
end

--- Says goodbye to the others and waits until they do. A process that ends well does it by itself.
function distributed.close() call.check(lib.pg_comm_close()) end

-- ---- training ---------------------------------------------------------------------------------------------------------

-- The trainable parameters of a module, of a regulariser's modules, of a list, or a tensor itself.
local function parameters_of(object)
  if pg().is_tensor(object) then return { object } end
  util.check(type(object) == "table", "share: takes modules, regularisers and lists of parameters, got %s", type(object))
  if object.parameters then return object:parameters() end
  if object.loss and object.modules then
    local list, names = {}, {}
    for name in pairs(object.modules) do names[#names + 1] = name end
    table.sort(names) -- one order on every process
    for _, name in ipairs(names) do
      for _, t in ipairs(object.modules[name]:parameters()) do list[#list + 1] = t end
    end
    return list
  end
  return object
end

--- Names what is trained. Every process gets rank 0's values, and from now on backward() leaves in their gradients the
-- means over all processes: buckets of them are on their way while it still goes on. A later call replaces an earlier one.
-- Every process must build the same graph of them.
-- @param ...  modules, regularisers, lists of parameters
-- @raises on a parameter that does not require grad
function distributed.share(...)
  if distributed.size() == 1 then return end
  local list, groups = {}, {}
  for group, object in ipairs { ... } do
    for _, t in ipairs(parameters_of(object)) do
      if t:requires_grad() then list[#list + 1], groups[#groups + 1] = t, group end
    end
  end
  call.check(lib.pg_comm_share(ffi.new("pg_tensor *[?]", math.max(#list, 1), list),
    ffi.new("int32_t[?]", math.max(#list, 1), groups), #list, distributed.BUCKET))
  distributed.sharing = true
end

--- This process's part of a batch: as many rows as every other's, in order of rank.
-- @param batch  a list, or a tensor whose rows are divided
-- @return the same kind
-- @raises when the batch does not divide among the processes
function distributed.slice(batch)
  local size, rank = distributed.size(), distributed.rank()
  if size == 1 then return batch end
  local tensor = pg().is_tensor(batch)
  local n = tensor and batch:size(1) or #batch
  util.check(n % size == 0, "a batch of %d does not divide among %d processes", n, size)
  local share = n / size
  if tensor then return batch:narrow(1, rank * share + 1, share) end
  return { unpack(batch, rank * share + 1, (rank + 1) * share) }
end

--- The rows of all processes, in order of rank: the whole batch again, with gradient (op all_gather).
-- @param x  tensor (N, ...), of one shape everywhere
-- @return (N size, ...)
function distributed.gather(x)
  if distributed.size() == 1 then return x end
  return pg().all_gather(x)
end

--- The same for a loss that looks at pairs of a batch, such as FDA's: where the run shares what it trains, and so has
-- divided its batch. A recipe that knows nothing of other processes has the whole batch already.
-- @param x  tensor (N, ...)
-- @return (N size, ...), or x
function distributed.whole(x) return distributed.sharing and distributed.gather(x) or x end

-- ---- values -----------------------------------------------------------------------------------------------------------

--- Means over the processes, for what is logged: each process has the loss of its part of the batch.
-- @param ...  numbers, one-element tensors or nil
-- @return as many numbers, nil for nil
function distributed.mean(...)
  local n, values = select("#", ...), { ... }
  for i = 1, n do
    if pg().is_tensor(values[i]) then values[i] = values[i]:item() end
  end
  if distributed.size() == 1 then return unpack(values, 1, n) end
  local sums = pg().zeros(n, { dtype = "float64" })
  local data = sums:data()
  for i = 1, n do data[i - 1] = values[i] or 0 end
  call.check(lib.pg_comm_reduce(sums, 1))
  for i = 1, n do
    if values[i] then values[i] = data[i - 1] end
  end
  return unpack(values, 1, n)
end

--- Whether a condition holds on any process. @param condition boolean @return boolean, the same everywhere
function distributed.any(condition)
  if distributed.size() == 1 then return condition end
  local votes = pg().tensor({ condition and 1 or 0 }, { dtype = "float64" })
  call.check(lib.pg_comm_reduce(votes, 0))
  return votes:item() > 0
end

--- Rank 0's values in place of a tensor's own. @param t contiguous tensor @return the tensor itself
function distributed.broadcast(t)
  call.check(lib.pg_comm_broadcast(t))
  return t
end

--- Rank 0's text. @param text of up to 4,000 bytes @return text, the same everywhere
function distributed.text(text)
  if distributed.size() == 1 then return text end
  local bytes = pg().zeros(4004, { dtype = "uint8" })
  local data = bytes:data()
  util.check(#text <= 4000, "distributed.text: %d bytes are more than 4,000", #text)
  ffi.copy(data + 4, text, #text)
  ffi.cast("int32_t *", data)[0] = #text
  distributed.broadcast(bytes)
  return ffi.string(data + 4, ffi.cast("int32_t *", data)[0])
end

--- Waits until every process is here.
function distributed.barrier() distributed.any(false) end

--- What a function gives for every row of many, each process doing its part of them: as fn(rows) alone gives it.
-- @param rows  tensor (N, ...)
-- @param fn    function: (n, ...) -> (n, D), each row by itself, without gradient
-- @return (N, D), the same everywhere
function distributed.map(rows, fn)
  local size, n = distributed.size(), rows:size(1)
  if size == 1 then return fn(rows) end
  local share = math.ceil(n / size)
  local start = math.min(distributed.rank() * share, n - 1)
  local own = fn(rows:narrow(1, start + 1, math.min(share, n - start)))
  if own:size(1) < share then own = pg().cat({ own, own:narrow(1, 1, 1):expand(share - own:size(1), own:size(2)) }, 1) end
  return pg().all_gather(own:contiguous()):narrow(1, 1, n):contiguous()
end

return distributed
