#!/usr/bin/env bash
# run.sh TARGET RUNS - fuzzes one reader (png, idx or npy) under AddressSanitizer and UndefinedBehaviorSanitizer.
set -eu
target=${1:?png, idx or npy} runs=${2:-1000000}
cd "$(dirname "$0")/../.."
work=build/fuzz/$target
mkdir -p "$work/found"
blas=$(ls -d /usr/lib/*/openblas-openmp 2>/dev/null | head -n 1)
${CLANG:-clang-14} -std=gnu11 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -DPG_SANITIZE -DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION \
  -D_GNU_SOURCE -DPERIGEE_VERSION='"fuzz"' -DTARGET="\"$target\"" -Wno-everything -Icore \
  ${blas:+-I${blas/lib/include}} -o "$work/fuzz" tests/fuzz/fuzz_io.c core/*.c core/io/*.c core/ops/*.c \
  ${blas:+-L$blas -Wl,-rpath,$blas} -lopenblas -lpng16 -lz -ldeflate -lm -l:libgomp.so.1
nice -n 10 "$work/fuzz" -runs="$runs" -max_len=4096 -rss_limit_mb=2048 -close_fd_mask=0 -print_final_stats=1 \
  "$work/found" "tests/fuzz/corpus/$target"
