#!/usr/bin/env bash
# Fails if gateway/gen is not what proto/ says: generates it anew into a temporary folder and compares.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
"$root/gateway/generate.sh" "$fresh"
if ! diff -r -u "$root/gateway/gen" "$fresh"; then
  echo "gateway/gen is out of date: run gateway/generate.sh" >&2
  exit 1
fi
echo "gateway/gen is current: $(find "$fresh" -name '*.go' | wc -l) files"
