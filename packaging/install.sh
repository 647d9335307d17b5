#!/usr/bin/env bash
# Installs what `make build` made into a root file system, and takes it out again.
#
#   install.sh [--root DIR] [--remove] agent|controlplane|cli|all
#
# On the system that it runs on (no --root) it also calls /usr/lib/curfew/setup agent, which makes the
# agent known to PAM, NSS, sudo and systemd, and /usr/lib/curfew/setup-controlplane. In another root, run
# these there once it has booted. Units are
# started by `curfew-agent join --start` and by the admin of a control plane.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
root='' remove=''
while [[ ${1-} == --* ]]; do
  case $1 in
    --root) root=${2:?--root wants a folder}; root=${root%/}; shift 2 ;;
    --remove) remove=1; shift ;;
    *) echo "install.sh: unknown option $1" >&2; exit 2 ;;
  esac
done

# The folder of shared libraries, such as /usr/lib/x86_64-linux-gnu: where libpam lives.
libdir() {
  local lib
  for lib in "$root"/usr/lib/*/libpam.so.0 "$root"/lib/*/libpam.so.0; do
    [[ -e $lib ]] && { dirname "${lib#"$root"}"; return; }
  done
  echo "install.sh: no libpam below $root/usr/lib: is it a Debian root?" >&2
  exit 1
}

# What each part consists of: mode, file in the source tree, place on the host.
files() {
  local packages lib=
  case $1 in
    cli) packages='curfew' ;;
    controlplane) packages='curfew-controlplane' ;;
    agent) packages='libnss-curfew libpam-curfew curfew-agent' lib=$(libdir) ;;
    *) echo "usage: install.sh [--root DIR] [--remove] agent|controlplane|cli|all" >&2; exit 2 ;;
  esac
  awk -v packages=" $packages " -v lib="$lib" '
    /^[a-z]/ && index(packages, " " $1 " ") && $2 != "rpm" { sub("@lib@", lib, $5); print $3, $4, $5 }
  ' "$here/packaging/files"
}

# What a part is made known to the system by, on the system that this runs on.
setup() {
  [[ -z $root ]] || return 0
  case $1 in
    controlplane) /usr/lib/curfew/setup-controlplane ;;
    agent) /usr/lib/curfew/setup agent ;;
  esac
}

install_part() {
  # Beside, then renamed: in an upgrade no login meets a module that is half there or missing, which
  # would pass everybody.
  files "$1" | while read -r mode from to; do
    install -D -m "$mode" "$here/$from" "$root$to.curfew-new"
    mv -fT "$root$to.curfew-new" "$root$to"
  done
  setup "$1"
}

# The same steps as in packaging/deb/curfew-agent.prerm and its neighbours.
remove_part() {
  if [[ -z $root && $1 = agent ]]; then
    systemctl stop curfew-enforce-again.timer curfew-gate.socket curfew-enforce.service || true
    /usr/lib/curfew/curfew-enforce leave
    systemctl disable --now curfew-agent.target curfew-link.service curfew-residue.service || true
    rm -f /var/lib/curfew/gate.conf
    /usr/lib/curfew/setup --remove agent
  fi
  files "$1" | while read -r _ _ to; do rm -f "$root$to"; done
}

parts=("${1-}")
[[ $1 != all ]] || parts=(cli controlplane agent)
for part in "${parts[@]}"; do
  if [[ $remove ]]; then remove_part "$part"; else install_part "$part"; fi
done
