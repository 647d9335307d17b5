#!/usr/bin/env bash
# Fails when the generated code is not what `make generate` would write now.
set -euo pipefail
cd "$(dirname "$0")/../proto"
now=$(mktemp -d)
trap 'rm -rf "$now"' EXIT
../bin/buf generate -o "$now"
stale=0
while read -r f; do
  cmp -s "$f" "$now/$f" || { echo "proto/$f is stale: make generate"; stale=1; }
done < <(cd "$now" && find . -name '*.go' -printf '%P\n')
exit $stale
