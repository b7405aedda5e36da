#!/usr/bin/env bash
# Measures and prints one table. OPENBLAS_CORETYPE stays unset; nothing else should be running.
cd "$(dirname "$0")/../.." || exit 1
export LUA_PATH="lua/?.lua;lua/?/init.lua;;"
luajit tests/bench/kernels.lua
for command in "--version" "run tests/bench/empty.lua --quiet --out build/bench-empty"; do
  times=()
  for _ in 1 2 3 4 5 6 7 8 9; do
    start=$(date +%s%N)
    # shellcheck disable=SC2086
    build/perigee $command >/dev/null
    times+=($((($(date +%s%N) - start) / 10000)))
  done
  median=$(printf '%s\n' "${times[@]}" | sort -n | sed -n 5p)
  printf '%-52s %6d.%02d ms\n' "perigee ${command%% --quiet*}" $((median / 100)) $((median % 100))
done
