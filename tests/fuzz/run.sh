#!/usr/bin/env bash
# run.sh READER RUNS - fuzzes one reader (png, pixels, jpeg, idx, idxgz, npy, npz, values, mat, matz, ppm, bytes or text)
# with libFuzzer under AddressSanitizer and UndefinedBehaviorSanitizer. New inputs go to build/fuzz/READER, what crashes
# to build/fuzz/READER-crash-...; nothing in the repository is written.
# run.sh READER minimise - then writes the smallest corpus of the same coverage to tests/fuzz/corpus/READER.
set -eu
reader=${1:?png, pixels, jpeg, idx, idxgz, npy, npz, values, mat, matz, ppm, bytes or text} runs=${2:-1000000}
cd "$(dirname "$0")/../.."
work=build/fuzz/$reader
mkdir -p "$work"
program=build/fuzz/fuzz_io
blas=$(ls -d /usr/lib/*/openblas-openmp 2>/dev/null | head -n 1)
newest=$(ls -t tests/fuzz/fuzz_io.c core/*.[ch] core/io/*.[ch] core/ops/*.c core/text/*.c "$program" 2>/dev/null | head -n 1)
if [ "$newest" != "$program" ]; then
  nice -n 19 "${CLANG:-clang-14}" -std=gnu11 -O1 -g -fsanitize=fuzzer,address,undefined \
    -fno-sanitize-recover=undefined -DPG_SANITIZE -DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION \
    -D_GNU_SOURCE -DPERIGEE_VERSION='"fuzz"' -Wno-everything -Icore ${blas:+-I${blas/lib/include}} \
    -o "$program" tests/fuzz/fuzz_io.c core/*.c core/io/*.c core/ops/*.c core/text/*.c \
    ${blas:+-L$blas -Wl,-rpath,$blas} -lopenblas -lpng16 -lturbojpeg -lz -ldeflate -lutf8proc -lm -l:libgomp.so.1
fi
export FUZZ_READER=$reader OMP_NUM_THREADS=1
if [ "$runs" = minimise ]; then
  kept=$(mktemp -d)
  "$program" -merge=1 -max_len=2048 "$kept" "tests/fuzz/corpus/$reader" "$work"
  rm -rf "tests/fuzz/corpus/$reader"
  mkdir "tests/fuzz/corpus/$reader"
  for f in "$kept"/*; do cp "$f" "tests/fuzz/corpus/$reader/$(basename "$f" | cut -c 1-12)"; done
  rm -rf "$kept"
else
  nice -n 19 "$program" -runs="$runs" -max_len=2048 -timeout=20 -rss_limit_mb=2048 -artifact_prefix="$work-" \
    -print_final_stats=1 "$work" "tests/fuzz/corpus/$reader"
fi
