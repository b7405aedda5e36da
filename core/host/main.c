/* main.c - the `perigee` executable: embeds LuaJIT, finds its Lua package, turns Ctrl-C into a flag or a Lua error, and
 * edits lines. Everything a person sees otherwise is in lua/perigee/cli.
 *
 * Lua reaches this file as the module perigee.host:
 *   interrupted() -> whether Ctrl-C was pressed       resume_signals() forgets it, and the promise below
 *   graceful(on)  -> with on, the first Ctrl-C only raises the flag, which the caller promises to poll
 *   stop_signals()   from here on SIGTERM and SIGUSR1, with which a scheduler announces an end, count as Ctrl-C
 *   last_signal() -> number of the last such signal, 0: none
 *   stop_flag(address) of the core's flag, raised with the hook and lowered with it, so that a long call in C ends too
 *   readline(prompt) -> line | nil, "interrupted" | nil      add_history(line)
 *   completer(fn)    fn(line, column) -> list of completions, length of the word they replace
 *   isatty(fd)  columns()  version  executable
 */
#include <errno.h>
#include <histedit.h>
#include <lauxlib.h>
#include <limits.h>
#include <locale.h>
#include <lua.h>
#include <lualib.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

/* ---- Ctrl-C ------------------------------------------------------------------------------------------------------ */

static lua_State *main_state;
static char package_folder[PATH_MAX]; /* holds perigee/init.lua */
static volatile sig_atomic_t pressed; /* times Ctrl-C was pressed since the last reset */
static volatile sig_atomic_t last;    /* the signal that it was: SIGINT, or what stop_signals added */
static volatile sig_atomic_t polite;  /* 1: a training loop polls the flag and stops by itself */
static volatile sig_atomic_t editing; /* 1: a line is being typed; el_gets returns by itself */
static volatile double insisted;      /* when the hook was set that has not been heard yet; 0: none */
static volatile int32_t nobody;       /* what stop_flag points to until the core is there */
static volatile int32_t *stop_flag = &nobody;
static const double PATIENCE = 0.3; /* seconds that the package's own functions are given to come to their end */
static const double DEAF = 1.0;     /* seconds without hearing, after which one more Ctrl-C leaves */

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* An error out of the middle of an optimiser's step or of no_grad would leave half of it done, so that it is raised in
 * the user's own code where that comes soon enough. */
static void raise_interrupted(lua_State *L, lua_Debug *ar) {
  size_t length = strlen(package_folder);
  if (seconds() - insisted < PATIENCE && lua_getinfo(L, "S", ar) &&
      (*ar->what == 'C' ||
       (strncmp(ar->source + 1, package_folder, length) == 0 && strncmp(ar->source + 1 + length, "/perigee/", 9) == 0)))
    return;
  lua_sethook(L, NULL, 0, 0);
  pressed = polite;
  insisted = 0;
  *stop_flag = 0;
  lua_pushliteral(L, "interrupted"); /* no position: where it happened is chance */
  lua_error(L);
}

/* Once asks a loop that polls, then it insists; compiled traces never call hooks, so that insisting may not be heard
 * (the REPL interprets what is typed for that reason), and one more Ctrl-C leaves a process that stays deaf. */
static void on_interrupt(int signal_number) {
  last = signal_number;
  pressed++;
  if (editing || pressed <= polite) return;
  if (insisted > 0 && seconds() - insisted > DEAF) _exit(130);
  if (insisted == 0) insisted = seconds();
  *stop_flag = 1;
  lua_sethook(main_state, raise_interrupted, LUA_MASKCALL | LUA_MASKRET | LUA_MASKLINE | LUA_MASKCOUNT, 1);
}

/* While a line is typed, a signal must end the read; anywhere else an interrupted system call must go on. */
static void listen(int flags) {
  struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = flags};
  sigaction(SIGINT, &action, NULL);
}

static int host_interrupted(lua_State *L) {
  lua_pushboolean(L, pressed > 0);
  return 1;
}

static int host_resume_signals(lua_State *L) {
  lua_sethook(L, NULL, 0, 0);
  pressed = polite = 0;
  insisted = 0;
  *stop_flag = 0;
  return 0;
}

static int host_graceful(lua_State *L) {
  polite = lua_toboolean(L, 1);
  return 0;
}

static int host_stop_signals(lua_State *L) {
  (void)L;
  struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART};
  sigaction(SIGTERM, &action, NULL);
  sigaction(SIGUSR1, &action, NULL);
  return 0;
}

static int host_last_signal(lua_State *L) {
  lua_pushinteger(L, last);
  return 1;
}

static int host_stop_flag(lua_State *L) {
  stop_flag = (volatile int32_t *)(intptr_t)luaL_checknumber(L, 1);
  return 0;
}

/* ---- line editing ------------------------------------------------------------------------------------------------ */

static EditLine *editor;
static History *history_list;
static char prompt_text[64];
static int completer_ref = LUA_NOREF;
static int typed_ahead; /* bytes that waited when the prompt came */

static char *prompt(EditLine *e) {
  (void)e;
  return prompt_text;
}

/* How many first bytes the strings of the list on top of the stack share; the first one's is left in *first. */
static size_t common_prefix(lua_State *L, int count, const char **first) {
  lua_rawgeti(L, -1, 1);
  size_t length;
  *first = lua_tolstring(L, -1, &length);
  lua_pop(L, 1); /* the list keeps it alive */
  for (int i = 2; i <= count; i++) {
    lua_rawgeti(L, -1, i);
    const char *other = lua_tostring(L, -1);
    size_t same = 0;
    while (other && same < length && other[same] == (*first)[same]) same++;
    length = same;
    lua_pop(L, 1);
  }
  return length;
}

/* Lists the candidates under the line being typed, in columns. */
static void list_candidates(lua_State *L, int count) {
  int widest = 1, column = 0, columns = 80;
  struct winsize size;
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col) columns = size.ws_col;
  for (int i = 1; i <= count; i++, lua_pop(L, 1)) {
    lua_rawgeti(L, -1, i);
    int length = (int)lua_objlen(L, -1);
    if (length > widest) widest = length;
  }
  putchar('\n');
  for (int i = 1; i <= count; i++, lua_pop(L, 1)) {
    lua_rawgeti(L, -1, i);
    if (column && column + widest + 2 > columns) column = (putchar('\n'), 0);
    printf("%-*s", widest + 2, lua_tostring(L, -1));
    column += widest + 2;
  }
  putchar('\n');
  fflush(stdout);
}

static unsigned char complete(EditLine *e, int key) {
  (void)key;
  lua_State *L = main_state;
  int top = lua_gettop(L);
  unsigned char result = CC_ERROR;
  const LineInfo *line = el_line(e);
  lua_rawgeti(L, LUA_REGISTRYINDEX, completer_ref);
  if (!lua_isfunction(L, -1)) goto done;
  lua_pushlstring(L, line->buffer, (size_t)(line->cursor - line->buffer));
  if (lua_pcall(L, 1, 2, 0) != 0 || !lua_istable(L, -2)) goto done;
  size_t typed = (size_t)lua_tointeger(L, -1);
  lua_pop(L, 1);
  int count = (int)lua_objlen(L, -1);
  if (count == 0) goto done;
  const char *first;
  size_t common = common_prefix(L, count, &first);
  if (common > typed) {
    char insert[256];
    snprintf(insert, sizeof insert, "%.*s", (int)(common - typed), first + typed);
    if (el_insertstr(e, insert) == 0) result = CC_REFRESH;
  } else if (count > 1) {
    list_candidates(L, count);
    result = CC_REDISPLAY;
  }
done:
  lua_settop(L, top);
  return result;
}

/* Ctrl-D that is typed while something runs: the terminal takes it for its own end of file and keeps a NUL in its
 * place. On an empty line such a NUL is what was typed; one that is typed at the prompt, Ctrl-Space, is nothing. */
static unsigned char late_end(EditLine *e, int key) {
  (void)key;
  const LineInfo *line = el_line(e);
  return typed_ahead && line->lastchar == line->buffer ? CC_EOF : CC_NORM;
}

static void start_editor(void) {
  if (editor) return;
  setlocale(LC_CTYPE, ""); /* letters beyond ASCII are typed and erased whole; numbers stay as Lua writes them */
  editor = el_init("perigee", stdin, stdout, stderr);
  if (!editor) return;
  HistEvent event;
  history_list = history_init();
  history(history_list, &event, H_SETSIZE, 2000);
  history(history_list, &event, H_SETUNIQUE, 1);
  el_set(editor, EL_PROMPT, prompt);
  el_set(editor, EL_EDITOR, "emacs");
  el_set(editor, EL_HIST, history, history_list);
  el_set(editor, EL_ADDFN, "perigee-complete", "complete a name", complete);
  el_set(editor, EL_BIND, "^I", "perigee-complete", NULL);
  el_set(editor, EL_BIND, "^R", "em-inc-search-prev", NULL);
  el_set(editor, EL_BIND, "^W", "ed-delete-prev-word", NULL);
  el_set(editor, EL_ADDFN, "perigee-late-end", "Ctrl-D that came before the prompt", late_end);
  el_set(editor, EL_BIND, "^@", "perigee-late-end", NULL);
  el_source(editor, NULL);
}

static int host_readline(lua_State *L) {
  start_editor();
  if (!editor) return luaL_error(L, "cannot edit lines on this terminal");
  snprintf(prompt_text, sizeof prompt_text, "%s", luaL_checkstring(L, 1));
  pressed = 0;
  int length = 0;
  editing = 1;
  listen(0);
  el_set(editor, EL_PREP_TERM, 1); /* before the prompt is there to be answered */
  ioctl(STDIN_FILENO, FIONREAD, &typed_ahead);
  const char *line = el_gets(editor, &length);
  listen(SA_RESTART);
  editing = 0;
  if (line && length > 0) {
    if (line[length - 1] == '\n') length--;
    lua_pushlstring(L, line, (size_t)length);
    return 1;
  }
  lua_pushnil(L);
  if (!pressed) return 1;
  pressed = 0;
  el_reset(editor);
  lua_pushliteral(L, "interrupted");
  return 2;
}

static int host_add_history(lua_State *L) {
  HistEvent event;
  start_editor();
  if (history_list) history(history_list, &event, H_ENTER, luaL_checkstring(L, 1));
  return 0;
}

static int host_completer(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  luaL_unref(L, LUA_REGISTRYINDEX, completer_ref);
  lua_settop(L, 1);
  completer_ref = luaL_ref(L, LUA_REGISTRYINDEX);
  return 0;
}

static int host_isatty(lua_State *L) {
  lua_pushboolean(L, isatty((int)luaL_checkinteger(L, 1)));
  return 1;
}

static int host_columns(lua_State *L) {
  struct winsize size;
  lua_pushinteger(L, ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 80);
  return 1;
}

static char executable[PATH_MAX];

static int open_host(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"interrupted", host_interrupted}, {"resume_signals", host_resume_signals},
      {"graceful", host_graceful},       {"stop_signals", host_stop_signals},
      {"last_signal", host_last_signal}, {"stop_flag", host_stop_flag},
      {"readline", host_readline},       {"add_history", host_add_history},
      {"completer", host_completer},     {"isatty", host_isatty},
      {"columns", host_columns},         {NULL, NULL},
  };
  lua_newtable(L);
  luaL_register(L, NULL, functions);
  lua_pushliteral(L, PERIGEE_VERSION);
  lua_setfield(L, -2, "version");
  lua_pushstring(L, executable);
  lua_setfield(L, -2, "executable");
  return 1;
}

/* ---- where the Lua package is ------------------------------------------------------------------------------------ */

/* Writes the folder that holds perigee/init.lua: beside build/ in the source tree, share/perigee/lua once installed. */
static int find_package(char *out, size_t size) {
  static const char *const places[] = {"../lua", "../share/perigee/lua"};
  ssize_t length = readlink("/proc/self/exe", executable, sizeof executable - 1);
  if (length <= 0) return 0;
  executable[length] = '\0';
  char folder[PATH_MAX], probe[PATH_MAX + 64];
  memcpy(folder, executable, (size_t)length + 1);
  *strrchr(folder, '/') = '\0';
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    snprintf(probe, sizeof probe, "%s/%s", folder, places[i]);
    char *whole = realpath(probe, NULL);
    if (!whole) continue;
    snprintf(probe, sizeof probe, "%s/perigee/init.lua", whole);
    int found = access(probe, R_OK) == 0;
    if (found) snprintf(out, size, "%s", whole);
    free(whole);
    if (found) return 1;
  }
  return 0;
}

/* The package's own folder first; then what LuaJIT knows; then Debian's folders of Lua 5.1 modules. */
static void set_paths(lua_State *L, const char *package) {
  lua_getglobal(L, "package");
  lua_getfield(L, -1, "path");
  lua_pushfstring(L, "%s/?.lua;%s/?/init.lua;%s;/usr/share/lua/5.1/?.lua;/usr/share/lua/5.1/?/init.lua", package,
                  package, lua_tostring(L, -1));
  lua_setfield(L, -3, "path");
  lua_pop(L, 1);
  lua_getfield(L, -1, "cpath");
  lua_pushfstring(L, "%s;/usr/lib/x86_64-linux-gnu/lua/5.1/?.so;/usr/lib/aarch64-linux-gnu/lua/5.1/?.so",
                  lua_tostring(L, -1));
  lua_setfield(L, -3, "cpath");
  lua_pop(L, 1);
  lua_getfield(L, -1, "preload");
  lua_pushcfunction(L, open_host);
  lua_setfield(L, -2, "perigee.host");
  lua_pop(L, 2);
}

int main(int argc, char **argv) {
  if (argc == 2 && strcmp(argv[1], "--version") == 0) {
    puts("perigee " PERIGEE_VERSION);
    return 0;
  }
  if (!find_package(package_folder, sizeof package_folder)) {
    fprintf(stderr, "perigee: its Lua package is neither beside %s nor in share/perigee: install it again\n", argv[0]);
    return 1;
  }
  lua_State *L = luaL_newstate();
  if (!L) {
    fprintf(stderr, "perigee: out of memory\n");
    return 1;
  }
  main_state = L;
  luaL_openlibs(L);
  set_paths(L, package_folder);

  listen(SA_RESTART);
  signal(SIGPIPE, SIG_IGN); /* gnuplot may go first */
  signal(SIGXFSZ, SIG_IGN); /* a file larger than allowed is an error of its write, with a message */

  int status = 1;
  lua_getglobal(L, "require");
  lua_pushliteral(L, "perigee.cli.main");
  if (lua_pcall(L, 1, 1, 0) == 0) {
    lua_newtable(L);
    for (int i = 1; i < argc; i++) {
      lua_pushstring(L, argv[i]);
      lua_rawseti(L, -2, i);
    }
    if (lua_pcall(L, 1, 1, 0) == 0)
      status = (int)lua_tointeger(L, -1);
    else
      fprintf(stderr, "perigee: %s\n", lua_tostring(L, -1));
  } else {
    fprintf(stderr, "perigee: %s\n", lua_tostring(L, -1));
  }
  if (editor) el_end(editor); /* gives the terminal back as it was */
  /* The state is not closed: that would unload the libraries under the feet of their waiting OpenMP threads. */
  return status;
}
