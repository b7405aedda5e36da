#!/usr/bin/env bash
# Measures and prints one table: first the bars, Perigee beside PyTorch, scikit-learn and POT in turns, then what single
# kernels reach. THREADS (default 2) computes in the second part; nothing else should be running.
# ONLY="Sinkhorn;call" prints only the bars whose names hold one of these.
cd "$(dirname "$0")/../.." || exit 1
unset OPENBLAS_CORETYPE # a kernel chosen by hand is not what a user gets
export LUA_PATH="lua/?.lua;lua/?/init.lua;;" OMP_NUM_THREADS="${THREADS:-2}"
python=${PYTHON:-/usr/bin/python3}
for folder in /usr/lib/*/openblas-openmp; do export BLAS_FOLDER=$folder; done
: >build/bench-errors.txt
PYTHON=$python luajit tests/bench/bars.lua "${ONLY-}"
[ -z "${ONLY-}" ] || exit 0
echo
times=build/bench-torch.txt
: >"$times"
if "$python" -c 'import torch' 2>/dev/null; then
  "$python" tests/bench/torch_kernels.py "$OMP_NUM_THREADS" >"$times"
  echo "PyTorch $("$python" -c 'import torch; print(torch.__version__)'): ratios above 1 are times that Perigee is faster"
else
  echo "PyTorch: skipped, $python cannot import it"
fi
luajit tests/bench/kernels.lua "$times"
luajit tests/bench/knn.lua "$python"
luajit tests/bench/bf16.lua

start_up() { # start_up LIMIT_MS COMMAND...
  local limit=$1 runs=() start median verdict=ok
  shift
  for _ in 1 2 3 4 5 6 7 8 9; do
    start=$(date +%s%N)
    build/perigee "$@" >/dev/null
    runs+=($((($(date +%s%N) - start) / 10000)))
  done
  median=$(printf '%s\n' "${runs[@]}" | sort -n | sed -n 5p)
  [ "$median" -le $((limit * 100)) ] || verdict=MISSED
  printf '%-46s %6d.%02d  ms   at most %d ms  %s\n' "perigee $1 ${2-}" $((median / 100)) $((median % 100)) "$limit" "$verdict"
}
start_up 30 --version
start_up 60 run tests/bench/empty.lua --quiet --out build/bench-empty
