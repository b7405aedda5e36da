#!/usr/bin/env bash
# Runs one spec on the device: tests/cuda/run.sh SPEC [busted's options]. By default on the simulated device under
# sanitizers; CUDA=plain without them, CUDA=real on the GPU of this machine.
cd "$(dirname "$0")/../.." || exit 1
export LUA_PATH="lua/?.lua;lua/?/init.lua;tests/?.lua;;"
case "${CUDA:-san}" in
real) unset PERIGEE_CUDA ;;
plain) export PERIGEE_CUDA=sim ;;
*)
  export PERIGEE_CUDA=$PWD/build/simt-san/libperigee_cuda_sim.so
  export ASAN_OPTIONS=detect_leaks=0:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1
  export LD_PRELOAD=$(gcc -print-file-name=libasan.so)
  ;;
esac
exec busted --lua=/usr/bin/luajit -o plainTerminal "$@"
