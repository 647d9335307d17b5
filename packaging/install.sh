#!/usr/bin/env bash
# Installs what `make build` made into a root file system, and takes it out again.
#
#   install.sh [--root DIR] [--remove] agent|controlplane|cli|all
#
# On the system that it runs on (no --root) it also calls /usr/lib/curfew/setup, which makes the part
# known to PAM, NSS, sudo and systemd. In another root, run that there once it has booted. Units are
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
  local unit=/usr/lib/systemd/system lib
  case $1 in
    cli) echo "755 bin/curfew /usr/bin/curfew" ;;
    controlplane)
      echo "755 bin/curfew-controlplane /usr/bin/curfew-controlplane
        755 packaging/scripts/setup /usr/lib/curfew/setup
        644 systemd/curfew-controlplane.service $unit/curfew-controlplane.service
        644 systemd/curfew-controlplane.sysusers.conf /usr/lib/sysusers.d/curfew-controlplane.conf
        644 systemd/curfew-controlplane.tmpfiles.conf /usr/lib/tmpfiles.d/curfew-controlplane.conf" ;;
    agent)
      lib=$(libdir)
      echo "755 bin/curfew-agent /usr/bin/curfew-agent
        755 packaging/scripts/setup /usr/lib/curfew/setup
        644 bin/libnss_curfew.so.2 $lib/libnss_curfew.so.2
        644 bin/pam_curfew.so $lib/security/pam_curfew.so
        644 systemd/curfew-enforce.service $unit/curfew-enforce.service
        644 systemd/curfew-link.service $unit/curfew-link.service
        644 systemd/curfew-agent.target $unit/curfew-agent.target
        644 systemd/90-curfew-agent.preset /usr/lib/systemd/system-preset/90-curfew-agent.preset
        644 systemd/curfew-agent.sysusers.conf /usr/lib/sysusers.d/curfew-agent.conf
        644 systemd/curfew-agent.tmpfiles.conf /usr/lib/tmpfiles.d/curfew-agent.conf
        644 packaging/pam-configs/curfew /usr/share/pam-configs/curfew
        644 packaging/pam-configs/curfew-session /usr/share/pam-configs/curfew-session
        644 packaging/sshd_config.d/50-curfew.conf /etc/ssh/sshd_config.d/50-curfew.conf
        440 packaging/sudoers.d/curfew /usr/lib/curfew/sudoers" ;;
    *) echo "usage: install.sh [--root DIR] [--remove] agent|controlplane|cli|all" >&2; exit 2 ;;
  esac
}

has_setup() { [[ -z $root && $1 != cli ]]; }

install_part() {
  files "$1" | while read -r mode from to; do install -D -m "$mode" "$here/$from" "$root$to"; done
  if has_setup "$1"; then /usr/lib/curfew/setup "$1"; fi
}

remove_part() {
  if has_setup "$1"; then /usr/lib/curfew/setup --remove "$1"; fi
  files "$1" | while read -r _ _ to; do rm -f "$root$to"; done
}

parts=("${1-}")
[[ $1 != all ]] || parts=(cli controlplane agent)
for part in "${parts[@]}"; do
  if [[ $remove ]]; then remove_part "$part"; else install_part "$part"; fi
done
