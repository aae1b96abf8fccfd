#!/usr/bin/env bash
# Packs what `tests/run.py --suites gpu` needs of a build folder, for a GPU machine without a tool chain: stripped programs and the plug-in
# where they lie in the build folder, their shared libraries in lib/ (not the compiler's, libc's or CUDA's: those belong to the machine).
#   scripts/pack_gpu_tests.sh build gpu-tests.tar.xz
# There, beside this source tree:
#   mkdir gpu && tar xJf gpu-tests.tar.xz -C gpu && python3 tests/run.py --build gpu --suites gpu
set -euo pipefail
[ $# = 2 ] || { echo "usage: $0 BUILD OUT.tar.xz" >&2; exit 2; }
build=$1 out=$(realpath -m "$2")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/lib"
cd "$build"
for file in phalanx phalanx-worker phalanx-router phalanx-gateway phalanx-bench-kernels phalanx-bench-serve libphalanx_cuda.so \
    kernels/ops_test worker/model/parity_test cuda/*_test; do
  [ -f "$file" ] || { echo "there is no $build/$file: make cuda, and build the tests" >&2; exit 1; }
  mkdir -p "$work/$(dirname "$file")"
  strip -o "$work/$file" "$file"
  chmod +x "$work/$file"
  # A static program (Go) has no list.
  { ldd "$file" 2>/dev/null || true; } | awk '$3 ~ /^\// {print $3}' \
    | { grep -vE '/(ld-linux|libc|libm|libdl|librt|libpthread|libresolv|libstdc\+\+|libgcc_s|libcudart|libcublasLt)[.-]' || true; } \
    | while read -r library; do cp -nL "$library" "$work/lib/"; done
done
mkdir -p "$(dirname "$out")"
tar -C "$work" -cf - . | xz -T0 -1 >"$out"
ls -l "$out"
