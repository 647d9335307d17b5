#!/usr/bin/env bash
# Installs what making and checking packages needs on Debian 12, beyond e2e/deps.sh. With the word arm64
# also what makes those of that architecture; its libpam goes into dist/sysroot: the C modules are linked
# against the real one.
# usage: deps.sh [arm64]
set -euo pipefail
cd "$(dirname "$0")/../.."

e2e/deps.sh lintian rpm rpmlint shellcheck man-db
[ "${1-}" = arm64 ] || exit 0
e2e/deps.sh gcc-aarch64-linux-gnu libc6-dev-arm64-cross

root=dist/sysroot/arm64
[ ! -e $root/libpam.so ] || exit 0
if ! dpkg --print-foreign-architectures | grep -qx arm64; then
  dpkg --add-architecture arm64
  apt-get -qq update
fi
got=$(mktemp -d)
trap 'rm -rf "$got"' EXIT
(cd "$got" && apt-get -qq -o APT::Sandbox::User=root download libpam0g:arm64 libpam0g-dev:arm64)
mkdir -p $root
for deb in "$got"/*.deb; do dpkg-deb -x "$deb" $root; done
ln -sfn lib/aarch64-linux-gnu/libpam.so.0 $root/libpam.so
