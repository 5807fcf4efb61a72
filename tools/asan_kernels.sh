#!/bin/sh
# Runs the kernel tests once with the compiled kernels under AddressSanitizer and UndefinedBehaviorSanitizer.
# The instrumented library is built in a temporary folder; the installed one is not touched.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
csrc="$root/basicsr_classpruning/kernels/csrc"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
flags="-g -O1 -fPIC -std=c++17 -fvisibility=hidden -fno-omit-frame-pointer -Wno-psabi -fsanitize=address,undefined -fno-sanitize-recover=all"
for source in dispatch jobs pack pointwise threads int8_dispatch int8_pack; do
    "${CXX:-g++}" $flags -c "$csrc/$source.cpp" -o "$build/$source.o"
done
for source in engine_avx2 engine_wide int8_avx2; do
    "${CXX:-g++}" $flags -mavx2 -mfma -ffp-contract=off -c "$csrc/$source.cpp" -o "$build/$source.o"
done
"${CXX:-g++}" $flags -mavx512f -mavx512vl -mavx512dq -mfma -c "$csrc/engine_avx512.cpp" -o "$build/engine_avx512.o"
# as setup.py does: compilers without -mavxvnni leave it out
"${CXX:-g++}" $flags -mavx2 -mfma -mavxvnni -ffp-contract=off -c "$csrc/int8_avxvnni.cpp" -o "$build/int8_avxvnni.o" ||
    "${CXX:-g++}" $flags -mavx2 -mfma -ffp-contract=off -c "$csrc/int8_avxvnni.cpp" -o "$build/int8_avxvnni.o"
"${CXX:-g++}" $flags -mavx512f -mavx512vl -mavx512dq -mavx512bw -mavx512vnni -mfma -ffp-contract=off \
    -c "$csrc/int8_avx512.cpp" -o "$build/int8_avx512.o"
"${CXX:-g++}" $flags -shared "$build"/*.o -pthread -o "$build/libclasspruning_kernels.so"
# Python itself is not instrumented: the sanitizer's runtime is loaded first, and torch's leaks are not ours.
# --capture=sys: pytest would swallow what the sanitizer writes before it ends the process.
runtime="$("${CXX:-g++}" -print-file-name=libasan.so):$("${CXX:-g++}" -print-file-name=libstdc++.so.6)"
cd "$root"
LD_PRELOAD="$runtime" ASAN_OPTIONS=detect_leaks=0 CLASSPRUNING_KERNELS="$build/libclasspruning_kernels.so" \
    "${PYTHON:-python}" -m pytest tests/test_kernels.py tests/test_kernels_patches.py tests/test_block_kernels.py \
    tests/test_int8_kernels.py -q -p no:cacheprovider --capture=sys "$@"
