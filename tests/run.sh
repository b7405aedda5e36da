#!/usr/bin/env bash
# Runs everything that is tested and closes with one line over all of it: "N passed, N failed".
# A runner that dies without its summary counts as one failure, so that a crash can never look like success.
set -u
cd "$(dirname "$0")/.." || exit 1
passed=0 failed=0

count() { # count NAME PASSED FAILED
  passed=$((passed + $2)) failed=$((failed + $3))
  printf '%-28s %5d passed, %d failed\n' "$1" "$2" "$3"
}

# ---- the C tests, under AddressSanitizer and UndefinedBehaviorSanitizer ----
for program in build/test_*; do
  [ -x "$program" ] || continue
  output=$("$program" 2>&1)
  status=$?
  summary=$(tail -n 1 <<<"$output" | grep -oE '^[0-9]+ passed, [0-9]+ failed$')
  if [ "$status" = 0 ] && [ -n "$summary" ]; then
    read -r p _ f _ <<<"$summary"
    count "$(basename "$program")" "$p" "$f"
  else
    printf '%s\n' "$output"
    count "$(basename "$program")" 0 1
  fi
done

# ---- busted specs, under LuaJIT ----
export LUA_PATH="lua/?.lua;lua/?/init.lua;tests/?.lua;;"
for spec in tests/spec/*_spec.lua; do
  output=$(busted --lua=/usr/bin/luajit -o plainTerminal "$spec" 2>&1)
  summary=$(grep -E '^[0-9]+ success(es)? / [0-9]+ failures? / [0-9]+ errors? / [0-9]+ pending' <<<"$output" | tail -n 1)
  if [ -n "$summary" ]; then
    read -r p _ _ f _ _ e _ <<<"$summary"
    [ "$((f + e))" = 0 ] || printf '%s\n' "$output"
    count "$(basename "$spec")" "$p" "$((f + e))"
  else
    printf '%s\n' "$output"
    count "$(basename "$spec")" 0 1
  fi
done

echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
