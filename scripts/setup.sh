#!/usr/bin/env bash
# Installs what is missing: `setup.sh build` for building and serving, `setup.sh test` for the tests as well, `setup.sh smollm2` for
# that model. Works as root or with sudo. A second run finds nothing to do. Everything that is fetched goes to build/deps.
set -euo pipefail
cd "$(dirname "$0")/.."
deps=$PWD/build/deps
mkdir -p "$deps"

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else
    command -v sudo >/dev/null || die "this needs root: run it as root, or install sudo"
    sudo "$@"
  fi
}

# debian FILE...: installs the packages listed in the files, if any is missing.
debian() {
  local missing=() name
  while read -r name; do
    [ -n "$name" ] || continue
    dpkg-query -W -f '${Status}\n' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
  done < <(cat "$@")
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "needs a Debian system (apt-get), or these packages by hand: ${missing[*]}"
  say "installing ${#missing[@]} Debian packages: ${missing[*]}"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q >/dev/null
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >/dev/null
}

# at_least HAVE WANT: version comparison.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

check_cargo() {
  local have
  have=$(cargo --version 2>/dev/null | awk '{print $2}') || true
  [ -n "$have" ] && at_least "$have" 1.87 && return 0
  die "cargo 1.87 or newer is needed (found: ${have:-none}). Install it with: curl https://sh.rustup.rs -sSf | sh -s -- -y --profile minimal; then open a new shell"
}

check_go() {
  local have
  have=$(go env GOVERSION 2>/dev/null | sed 's/^go//') || true
  [ -n "$have" ] && at_least "$have" 1.24 && return 0
  die "Go 1.24 or newer is needed (found: ${have:-none}). Install it from https://go.dev/dl/ into /usr/local/go and put /usr/local/go/bin on PATH"
}

check_node() {
  local have
  have=$(node --version 2>/dev/null | sed 's/^v//') || true
  [ -n "$have" ] && at_least "$have" 18 && command -v npm >/dev/null && return 0
  die "Node.js 18 or newer with npm is needed for the tests (found: ${have:-none}). Install it from https://nodejs.org/en/download, or with: apt-get install nodejs npm"
}

# once NAME KEY COMMAND...: runs the command unless it succeeded before with the same key.
once() {
  local stamp=$deps/.$1 key=$2
  shift 2
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ] && return 0
  "$@"
  echo "$key" >"$stamp"
}

fetch_googleapis() {
  say "fetching googleapis-common-protos"
  local work
  work=$(mktemp -d "$deps/.fetch.XXXXXX")
  python3 -m pip download -q --disable-pip-version-check --no-deps -d "$work" googleapis-common-protos==1.76.0
  rm -rf "$deps/googleapis"
  python3 -m zipfile -e "$work"/googleapis_common_protos-*.whl "$deps/googleapis"
  rm -rf "$work"
}

make_venv() {
  say "installing Python packages for the tests"
  python3 -m venv "$deps/venv"
  "$deps/venv/bin/pip" install -q --disable-pip-version-check -r scripts/requirements.txt
}

install_node_client() {
  say "installing the Node client for the tests"
  (cd tests/openai_node && npm ci --silent --no-audit --no-fund)
}

install_grpcurl() {
  say "installing grpcurl for the tests"
  GOBIN=$deps/bin go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3
}

digest() { cat "$@" | sha256sum | cut -c1-16; }

for_build() {
  debian scripts/packages.txt
  check_cargo
  check_go
  once googleapis 1.76.0 fetch_googleapis
}

for_test() {
  for_build
  check_node
  once venv "$(digest scripts/requirements.txt)" make_venv
  once node-client "$(digest tests/openai_node/package-lock.json)" install_node_client
  once grpcurl 1.9.3 install_grpcurl
  scripts/fetch_fixtures.sh
  scripts/fetch_models.sh
}

case ${1:-build} in
  build) for_build ;;
  test) for_test ;;
  smollm2) for_build; scripts/fetch_models.sh ;;
  *) die "unknown part '$1': build, test or smollm2" ;;
esac
