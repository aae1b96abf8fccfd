#!/usr/bin/env bash
# Prints the root of a CUDA toolkit for `make cuda`: an installed one (CUDA_HOME, or nvcc on PATH), else CUDA 13.0 from PyPI, fetched to
# build/deps/cuda (about 1 GB). PHALANX_CUDA_FETCH=1 fetches even if one is installed. A second run finds nothing to do.
set -euo pipefail
cd "$(dirname "$0")/.."
deps=$PWD/build/deps
version=13.0.2  # cuda-toolkit pins a matching set: nvcc 13.0.88, cudart 13.0.96, cublas 13.1.0.3
packages=nvcc,nvvm,crt,cccl,cudart,cublas,nvtx

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

# usable ROOT: has the compiler, the runtime and cuBLASLt.
usable() {
  [ -x "$1/bin/nvcc" ] && [ -f "$1/include/cublasLt.h" ] && { [ -e "$1/lib64/libcublasLt.so" ] || [ -e "$1/lib/libcublasLt.so" ]; }
}

installed() {
  [ "${PHALANX_CUDA_FETCH:-0}" = 0 ] || return 1
  local root
  if [ -n "${CUDA_HOME:-}" ]; then
    usable "$CUDA_HOME" || die "CUDA_HOME=$CUDA_HOME lacks nvcc, cublasLt.h or libcublasLt.so: install them, or unset CUDA_HOME"
    root=$CUDA_HOME
  elif command -v nvcc >/dev/null; then
    root=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
    usable "$root" || { say "the toolkit in $root lacks cublasLt.h or libcublasLt.so: not used"; return 1; }
  else
    return 1
  fi
  echo "$root"
}

# The wheels are no toolkit tree yet: nvcc looks for lib64, and the linker for names without a version.
fix_up() {
  local root=$1 file link
  ln -sfn lib "$root/lib64"
  for file in "$root"/lib/lib*.so.*; do
    link=${file%%.so.*}.so
    [ -e "$link" ] || ln -s "$(basename "$file")" "$link"
  done
  chmod +x "$root"/bin/* "$root"/nvvm/bin/* 2>/dev/null || true
}

fetch() {
  local root=$deps/cuda/nvidia/cu13 stamp=$deps/.cuda
  if ! { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$version $packages" ] && usable "$root"; }; then
    [ "$(uname -sm)" = "Linux x86_64" ] || [ "$(uname -sm)" = "Linux aarch64" ] || die "CUDA is there for Linux on x86_64 and aarch64 only"
    say "fetching CUDA $version from PyPI (about 700 MB)"
    mkdir -p "$deps"
    work=$(mktemp -d "$deps/.cuda.XXXXXX")
    trap 'rm -rf "$work"' EXIT  # `work` outlives this function for the trap
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install -q --disable-pip-version-check --no-compile --target "$work/cuda" \
      "cuda-toolkit[$packages]==$version" >&2
    fix_up "$work/cuda/nvidia/cu13"
    usable "$work/cuda/nvidia/cu13" || die "the fetched packages make no usable toolkit: the layout of the wheels has changed"
    rm -rf "$deps/cuda"
    mv "$work/cuda" "$deps/cuda"
    echo "$version $packages" >"$stamp"
  fi
  echo "$root"
}

installed || fetch
