/* main.c - the `perigee` executable: embeds LuaJIT, finds its Lua package from where it stands, hands the command line over.
 *
 * It does not link the core: `perigee --version` must not pay for loading a BLAS. */
#include <errno.h>
#include <lauxlib.h>
#include <limits.h>
#include <lua.h>
#include <lualib.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- where the package is: build/perigee -> ../lua, PREFIX/bin/perigee -> PREFIX/share/perigee/lua ---- */

static int find_package(char out[PATH_MAX]) {
  static const char *const places[] = {"../lua", "../share/perigee/lua"};
  char self[PATH_MAX], path[PATH_MAX * 2];
  ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
  if (n < 0) return 0;
  self[n] = 0;
  *strrchr(self, '/') = 0;
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    snprintf(path, sizeof path, "%s/%s", self, places[i]);
    if (realpath(path, out) && !access(out, R_OK)) return 1;
  }
  return 0;
}

/* ---- Ctrl-C: the hook turns it into a Lua error at the next line; a second one ends the process ---- */

static lua_State *running;
static volatile sig_atomic_t interrupted;

static void stop(lua_State *L, lua_Debug *at) {
  (void)at;
  lua_sethook(L, NULL, 0, 0);
  interrupted = 0;
  luaL_error(L, "interrupted");
}

static void on_interrupt(int signal_number) {
  if (interrupted) {
    signal(signal_number, SIG_DFL);
    raise(signal_number);
    return;
  }
  interrupted = 1;
  lua_sethook(running, stop, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
}

static int with_traceback(lua_State *L) {
  const char *message = lua_tostring(L, 1);
  if (message && getenv("PERIGEE_TRACEBACK")) luaL_traceback(L, L, message, 1);
  return 1;
}

int main(int argc, char **argv) {
  char package[PATH_MAX];
  if (argc == 2 && !strcmp(argv[1], "--version")) return printf("perigee %s\n", PERIGEE_VERSION) < 0;
  if (!find_package(package)) {
    fprintf(stderr, "perigee: its Lua package is neither in ../lua nor in ../share/perigee/lua beside the executable\n");
    return 1;
  }
  lua_State *L = running = luaL_newstate();
  if (!L) return fprintf(stderr, "perigee: out of memory\n"), 1;
  luaL_openlibs(L);
  lua_getglobal(L, "package");
  lua_getfield(L, -1, "path");
  lua_pushfstring(L, "%s/?.lua;%s/?/init.lua;%s", package, package, lua_tostring(L, -1));
  lua_setfield(L, -3, "path");
  lua_pop(L, 2);
  lua_createtable(L, argc, 1);
  for (int i = 0; i < argc; i++) lua_pushstring(L, argv[i]), lua_rawseti(L, -2, i);
  lua_setglobal(L, "arg");
  signal(SIGINT, on_interrupt);
  signal(SIGPIPE, SIG_IGN);
  lua_pushcfunction(L, with_traceback);
  lua_getglobal(L, "require");
  lua_pushliteral(L, "perigee.cli.main");
  int status = lua_pcall(L, 1, 1, 1);
  if (!status) { /* the module is a function of the arguments that returns the exit status */
    lua_getglobal(L, "arg");
    status = lua_pcall(L, 1, 1, 1);
  }
  int code = status ? 1 : (int)lua_tointeger(L, -1);
  if (status) {
    const char *message = lua_tostring(L, -1);
    fprintf(stderr, "perigee: %s\n", message ? message : "unknown error");
    if (message && strstr(message, "interrupted")) code = 130;
  }
  fflush(stdout);
  lua_close(L);
  return code;
}
