#!/usr/bin/env bash
# generate.sh [FOLDER]: writes the Go code of proto/phalanx/v1 into FOLDER (default: gen, beside this script). The plug-ins are the ones
# go.mod pins. Needs protoc and the googleapis protos that scripts/setup.sh fetches. tests/verify_generated.sh compares the result.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
out=${1:-$here/gen}
googleapis=${PHALANX_DEPS:-$root/build/deps}/googleapis
if [ ! -f "$googleapis/google/api/httpbody.proto" ]; then
  echo "generate: no google/api protos in $googleapis: run scripts/setup.sh build" >&2
  exit 1
fi

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
(cd "$here" && GOBIN=$tools go install \
  google.golang.org/protobuf/cmd/protoc-gen-go \
  google.golang.org/grpc/cmd/protoc-gen-go-grpc \
  github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-grpc-gateway)

mkdir -p "$out"
cd "$root/proto"
PATH=$tools:$PATH protoc -I . -I "$googleapis" \
  --go_out="$out" --go_opt=module=phalanx/gateway/gen \
  --go-grpc_out="$out" --go-grpc_opt=module=phalanx/gateway/gen \
  --grpc-gateway_out="$out" --grpc-gateway_opt=module=phalanx/gateway/gen \
  phalanx/v1/*.proto
