-- process.lua - programs as the specs start them: run to the end, in the background to be killed at a chosen instant, or
-- on a terminal of their own (a pty) that is typed into.

local ffi = require "ffi"
ffi.cdef [[
int usleep(unsigned int microseconds);
int kill(int pid, int signal_number);
int access(const char *path, int mode);
long read(int fd, void *buffer, size_t count);
long write(int fd, const void *buffer, size_t count);
int posix_openpt(int flags); int grantpt(int fd); int unlockpt(int fd); char *ptsname(int fd);
int close(int fd);
struct pg_test_poll { int fd; short events, revents; };
int poll(struct pg_test_poll *fds, unsigned long count, int timeout_ms);
]]

local process = {}
local now = require("perigee.ffi").pg_now

--- A word for the shell, whatever it holds.
function process.quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

--- Runs a shell command to its end. @return its status, and what it printed, stderr included
function process.sh(command)
  local pipe = io.popen("{ " .. command .. "\n} 2>&1; echo \":$?\"")
  local said, status = pipe:read "*a":match "^(.*):(%d+)\n$"
  pipe:close()
  return tonumber(status), said
end

--- The whole text of a file, or nil.
function process.read(path)
  local file = io.open(path, "rb")
  local text = file and file:read "*a"
  if file then file:close() end
  return text
end

-- ---- in the background ------------------------------------------------------------------------------------------------

local Child = {}
Child.__index = Child

--- Starts a command without a shell of its own around it, what it prints in `log`.
-- @return {alive(), kill(signal), wait()}
function process.start(command, log)
  local status = log .. ".status"
  os.remove(status)
  local pipe = io.popen(("{ sh -c %s >%s 2>&1 & echo $!; wait $!; echo $? >%s.tmp; mv %s.tmp %s; } 2>/dev/null")
    :format(process.quote("exec " .. command), log, status, status, status))
  return setmetatable({ pid = tonumber(pipe:read "*l"), pipe = pipe, status = status, log = log }, Child)
end

function Child:alive() return ffi.C.access(self.status, 0) ~= 0 end
function Child:kill(number) ffi.C.kill(self.pid, number) end

--- Polls fn() some 3,000 times a second until it is true, the child has ended, or the time is over.
function Child:await(fn, seconds)
  local last = now() + seconds
  while now() < last do
    if fn() then return true end
    if not self:alive() then return false end
    ffi.C.usleep(200)
  end
  return false
end

--- Waits for the end. @return the exit status (137 after SIGKILL), and what was printed
function Child:wait()
  self.pipe:read "*a"
  self.pipe:close()
  return tonumber(process.read(self.status)), process.read(self.log)
end

-- ---- on a terminal ----------------------------------------------------------------------------------------------------

local Terminal = {}
Terminal.__index = Terminal
local O_RDWR, O_NOCTTY, O_CLOEXEC, POLLIN = 2, 0x100, 0x80000, 1

--- Starts a shell command on a new pseudo-terminal of 80 columns, in a session of its own, so that Ctrl-C reaches it.
-- @return {type(text), expect(plain text, seconds), finish()}
function process.terminal(command)
  local fd = ffi.C.posix_openpt(O_RDWR + O_NOCTTY + O_CLOEXEC)
  assert(fd >= 0 and ffi.C.grantpt(fd) == 0 and ffi.C.unlockpt(fd) == 0, "no pseudo-terminal")
  local name = ffi.string(ffi.C.ptsname(fd))
  -- the first terminal that a session's leader opens becomes its own
  local inner = ("exec 0<>%s 1>&0 2>&0; stty cols 80 rows 24; %s"):format(name, command)
  local pipe = io.popen(("{ setsid -w sh -c %s & echo $!; wait $!; echo $?; } 2>/dev/null"):format(process.quote(inner)))
  return setmetatable({ fd = fd, pipe = pipe, pid = tonumber(pipe:read "*l"), seen = "", at = 1 }, Terminal)
end

function Terminal:type(text) assert(ffi.C.write(self.fd, text, #text) == #text) end

-- Takes what was printed in up to `seconds`; false when nothing came.
function Terminal:take(seconds)
  local one, buffer = ffi.new("struct pg_test_poll[1]", { { self.fd, POLLIN, 0 } }), ffi.new "char[4096]"
  if ffi.C.poll(one, 1, math.max(0, seconds * 1000)) <= 0 then return false end
  local n = tonumber(ffi.C.read(self.fd, buffer, 4096))
  if n <= 0 then return false, "closed" end
  self.seen = self.seen .. ffi.string(buffer, n)
  return true
end

--- Waits for a text after the last one that was expected. @return the seconds it took; nil when it did not come
function Terminal:expect(text, seconds)
  local began = now()
  while true do
    local _, last = self.seen:find(text, self.at, true)
    if last then
      self.at = last + 1
      return now() - began
    end
    local left = began + (seconds or 20) - now()
    if left <= 0 then return nil end
    local _, closed = self:take(math.min(left, 0.2))
    if closed then return nil end
  end
end

--- Reads to the end; what prints nothing for ten seconds is ended. @return the exit status
function Terminal:finish()
  local more, closed
  repeat more, closed = self:take(10) until closed or not more
  if not closed then ffi.C.kill(-self.pid, 9) end
  local status = tonumber(self.pipe:read "*l")
  self.pipe:close()
  ffi.C.close(self.fd)
  return status
end

--- Ends it whatever it does.
function Terminal:stop()
  ffi.C.kill(-self.pid, 9) -- the session's number is its leader's
  self.pipe:close()
  ffi.C.close(self.fd)
end

return process
