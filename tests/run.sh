#!/usr/bin/env bash
# Runs everything that is tested, or the parts named (core, cuda, workbench), and closes with one line over all of it: "N passed, N
# failed". A runner that dies without its summary counts as one failure, so that a crash can never look like success.
set -u
cd "$(dirname "$0")/.." || exit 1
passed=0 failed=0
parts=" ${*:-core cuda workbench} "

count() { # count NAME PASSED FAILED
  passed=$((passed + $2)) failed=$((failed + $3))
  printf '%-28s %5d passed, %d failed\n' "$1" "$2" "$3"
}

program() { # program NAME: one of the C tests, under AddressSanitizer and UndefinedBehaviorSanitizer
  local output status summary p f
  output=$("build/$1" 2>&1)
  status=$?
  summary=$(tail -n 1 <<<"$output" | grep -oE '^[0-9]+ passed, [0-9]+ failed$')
  if [ "$status" = 0 ] && [ -n "$summary" ]; then
    read -r p _ f _ <<<"$summary"
    count "$1" "$p" "$f"
  else
    printf '%s\n' "$output"
    count "$1" 0 1
  fi
}

spec() { # spec NAME COMMAND...: what busted says of one file
  local output summary p f e name=$1
  shift
  output=$("$@" 2>&1)
  summary=$(grep -E '^[0-9]+ success(es)? / [0-9]+ failures? / [0-9]+ errors? / [0-9]+ pending' <<<"$output" | tail -n 1)
  if [ -n "$summary" ]; then
    read -r p _ _ f _ _ e _ <<<"$summary"
    [ "$((f + e))" = 0 ] || printf '%s\n' "$output"
    count "$name" "$p" "$((f + e))"
  else
    printf '%s\n' "$output"
    count "$name" 0 1
  fi
}

skip() { printf '%-28s skipped: %s\n' "$1" "$2"; } # skip NAME WHY

export LUA_PATH="lua/?.lua;lua/?/init.lua;tests/?.lua;;"
busted=(busted --lua=/usr/bin/luajit -o plainTerminal)

if [[ $parts == *" core "* ]]; then
  for name in test_core test_data test_fuzz; do program "$name"; done
  for file in tests/spec/*_spec.lua; do
    spec "$(basename "$file")" "${busted[@]}" "$file"
  done
fi

if [[ $parts == *" cuda "* ]]; then # on the simulated device, or with CUDA=real on a GPU
  for file in tests/cuda/*_spec.lua; do spec "cuda/$(basename "$file")" tests/cuda/run.sh "$file"; done
fi

if [[ $parts == *" workbench "* ]]; then
  # A mount namespace of its own lets the chaos test fill a small disk; without one, files that may not grow stand in.
  private=()
  unshare -m true 2>/dev/null && private=(unshare -m env PRIVATE_MOUNTS=1)
  spec workbench/chaos_spec.lua "${private[@]}" "${busted[@]}" tests/workbench/chaos_spec.lua
  if ! (command -v slurmctld && command -v slurmd && command -v munged) >/dev/null; then skip workbench/slurm_spec.lua "no Slurm here: make deps-test"
  elif [ "$(id -u)" != 0 ]; then skip workbench/slurm_spec.lua "slurmd needs root"
  else spec workbench/slurm_spec.lua "${busted[@]}" tests/workbench/slurm_spec.lua; fi
  # One whose programs are not installed is pending: make deps-test.
  for name in distributed browser tensorboard; do
    spec "workbench/${name}_spec.lua" "${busted[@]}" "tests/workbench/${name}_spec.lua"
  done
fi

echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
