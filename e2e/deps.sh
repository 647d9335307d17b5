#!/usr/bin/env bash
# Installs what building and testing Curfew needs on Debian 12, and says nothing when all is there.
# usage: deps.sh [PACKAGE…]   (those too)
set -euo pipefail

packages=(
  gcc libc6-dev libpam0g-dev make git ca-certificates binutils
  mmdebstrap debian-archive-keyring systemd-container iproute2 util-linux mount e2fsprogs
  openssh-client sudo libnss-extrausers
  selinux-policy-dev checkpolicy semodule-utils apparmor
  "$@"
)

missing=()
for p in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "missing Debian packages; as root: apt-get install ${missing[*]}" >&2
  exit 1
fi
echo "installing: ${missing[*]}"
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}" \
  >/tmp/curfew-deps.log 2>&1 || { tail -30 /tmp/curfew-deps.log >&2; exit 1; }
