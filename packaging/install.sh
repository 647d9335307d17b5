#!/usr/bin/env bash
# Installs what `make build` made into a root file system, and takes it out again.
#
#   install.sh [--root DIR] [--activate] agent|controlplane|cli|all
#   install.sh [--root DIR] --remove     agent|controlplane|cli|all
#
# --activate runs what a package's maintainer scripts run: users and folders, nsswitch, the sudoers
# include (checked before and after) and the PAM profile, in the order that never leaves a host
# without login: the PAM profile last in, first out. Units are enabled by `curfew-agent join --start`
# and by the admin of a control plane.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
root=/ activate= remove=
while [[ ${1-} == --* ]]; do
  case $1 in
    --root) root=${2:?--root wants a folder}; shift 2 ;;
    --activate) activate=1; shift ;;
    --remove) remove=1; shift ;;
    *) echo "install.sh: unknown option $1" >&2; exit 2 ;;
  esac
done
what=${1:?install what: agent, controlplane, cli or all}
root=${root%/}

inside() { if [[ -n $root ]]; then chroot "$root" "$@"; else "$@"; fi; }
put() { install -D -m "$1" "$here/$2" "$root$3"; }
drop() { rm -f "$root$1"; }

# The folder of shared libraries, such as /usr/lib/x86_64-linux-gnu: where libpam lives.
libdir() {
  local lib
  for lib in "$root"/usr/lib/*/libpam.so.0 "$root"/lib/*/libpam.so.0; do
    [[ -e $lib ]] && { dirname "${lib#"$root"}"; return; }
  done
  echo "install.sh: no libpam below $root/usr/lib: is it a Debian root?" >&2
  exit 1
}

# nsswitch add|remove: the service curfew directly behind files, in three databases.
nsswitch() {
  local file=$root/etc/nsswitch.conf db
  for db in passwd group shadow; do
    if [[ $1 == remove ]]; then
      sed -i -E "/^$db:/ s/[[:space:]]curfew\b//" "$file"
    elif ! grep -qE "^$db:" "$file"; then
      echo "$db: files curfew" >>"$file"
    elif ! grep -qE "^$db:.*\bcurfew\b" "$file"; then
      sed -i -E "/^$db:/ s/\bfiles\b/files curfew/" "$file"
    fi
  done
}

install_agent() {
  local lib; lib=$(libdir)
  put 755 bin/curfew-agent /usr/bin/curfew-agent
  put 644 bin/libnss_curfew.so.2 "$lib/libnss_curfew.so.2"
  put 644 bin/pam_curfew.so "$lib/security/pam_curfew.so"
  for unit in curfew-enforce.service curfew-link.service curfew-agent.target; do
    put 644 "systemd/$unit" "/usr/lib/systemd/system/$unit"
  done
  put 644 systemd/90-curfew-agent.preset /usr/lib/systemd/system-preset/90-curfew-agent.preset
  put 644 systemd/curfew-agent.sysusers.conf /usr/lib/sysusers.d/curfew-agent.conf
  put 644 systemd/curfew-agent.tmpfiles.conf /usr/lib/tmpfiles.d/curfew-agent.conf
  put 644 packaging/pam-configs/curfew /usr/share/pam-configs/curfew
  put 644 packaging/pam-configs/curfew-session /usr/share/pam-configs/curfew-session
  put 644 packaging/sshd_config.d/50-curfew.conf /etc/ssh/sshd_config.d/50-curfew.conf
  put 440 packaging/sudoers.d/curfew /etc/sudoers.d/.curfew.new
}

activate_agent() {
  inside visudo -cq || { drop /etc/sudoers.d/.curfew.new; exit 1; }
  mv "$root/etc/sudoers.d/.curfew.new" "$root/etc/sudoers.d/curfew"
  inside visudo -cq || { drop /etc/sudoers.d/curfew; exit 1; }
  inside systemd-sysusers /usr/lib/sysusers.d/curfew-agent.conf
  inside systemd-tmpfiles --create /usr/lib/tmpfiles.d/curfew-agent.conf
  nsswitch add
  DEBIAN_FRONTEND=noninteractive inside pam-auth-update --package
}

remove_agent() {
  local lib; lib=$(libdir)
  DEBIAN_FRONTEND=noninteractive inside pam-auth-update --package --remove curfew curfew-session
  nsswitch remove
  drop /etc/sudoers.d/curfew
  drop /etc/ssh/sshd_config.d/50-curfew.conf
  for f in /usr/share/pam-configs/curfew /usr/share/pam-configs/curfew-session \
    "$lib/security/pam_curfew.so" "$lib/libnss_curfew.so.2" /usr/bin/curfew-agent \
    /usr/lib/systemd/system/curfew-{enforce.service,link.service,agent.target} \
    /usr/lib/systemd/system-preset/90-curfew-agent.preset \
    /usr/lib/sysusers.d/curfew-agent.conf /usr/lib/tmpfiles.d/curfew-agent.conf; do
    drop "$f"
  done
}

install_controlplane() {
  put 755 bin/curfew-controlplane /usr/bin/curfew-controlplane
  put 644 systemd/curfew-controlplane.service /usr/lib/systemd/system/curfew-controlplane.service
  put 644 systemd/curfew-controlplane.sysusers.conf /usr/lib/sysusers.d/curfew-controlplane.conf
  put 644 systemd/curfew-controlplane.tmpfiles.conf /usr/lib/tmpfiles.d/curfew-controlplane.conf
}

activate_controlplane() {
  inside systemd-sysusers /usr/lib/sysusers.d/curfew-controlplane.conf
  inside systemd-tmpfiles --create /usr/lib/tmpfiles.d/curfew-controlplane.conf
}

remove_controlplane() {
  drop /usr/bin/curfew-controlplane
  drop /usr/lib/systemd/system/curfew-controlplane.service
  drop /usr/lib/sysusers.d/curfew-controlplane.conf
  drop /usr/lib/tmpfiles.d/curfew-controlplane.conf
}

install_cli() { put 755 bin/curfew /usr/bin/curfew; }
activate_cli() { :; }
remove_cli() { drop /usr/bin/curfew; }

[[ $what == all ]] && parts=(cli controlplane agent) || parts=("$what")
for part in "${parts[@]}"; do
  case $part in agent | controlplane | cli) ;; *) echo "install.sh: no such part: $part" >&2; exit 2 ;; esac
  if [[ -n $remove ]]; then "remove_$part"; continue; fi
  "install_$part"
  [[ -z $activate ]] || "activate_$part"
done
