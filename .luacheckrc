-- Lua is checked as LuaJIT; recipes and specs may use what their runners define.
std = "luajit"
max_line_length = 130
files["tests/spec"] = { std = "+busted" }
