#!/usr/bin/env bash
# Prints where promtool is: this machine's, or Debian's, of which only this one program is unpacked into
# dist/. Nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/../.."

if command -v promtool; then exit 0; fi
to=$PWD/dist/promtool
if [ ! -x "$to/usr/bin/promtool" ]; then
  got=$(mktemp -d)
  trap 'rm -rf "$got"' EXIT
  get() { (cd "$got" && apt-get -qq -o APT::Sandbox::User=root download prometheus) >&2; }
  get 2>/dev/null || { apt-get -qq -o DPkg::Lock::Timeout=300 update >&2; get; }
  mkdir -p "$to"
  dpkg-deb --fsys-tarfile "$got"/prometheus_*.deb | tar -x -C "$to" ./usr/bin/promtool
fi
echo "$to/usr/bin/promtool"
