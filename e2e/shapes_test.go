package e2e

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// A shape is a host unlike the others, and what is to be seen on it.
type shape struct {
	stage.Shape
	// more is looked at while something of alice's runs.
	more string
	// refused is what a login is told that a grant alone does not open here, why is on the trail, and remedy is
	// what an administrator does about it.
	refused, why, remedy string
	warned               string // what doctor warns of
}

// companyDirectory moves lou, whom Curfew does not manage, from the host's files into an LDAP directory,
// from which SSSD knows him.
const companyDirectory = `
systemctl stop sssd slapd
rm -rf /etc/ldap/slapd.d /var/lib/ldap/*
cat >/etc/ldap/slapd.conf <<'CONF'
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/nis.schema
pidfile /run/slapd/slapd.pid
modulepath /usr/lib/ldap
moduleload back_mdb
database mdb
suffix dc=corp
directory /var/lib/ldap
CONF
{
  printf 'dn: dc=corp\nobjectClass: dcObject\nobjectClass: organization\ndc: corp\no: corp\n\n'
  IFS=: read -r _ _ uid gid _ home shell <<LOU
$(getent passwd lou)
LOU
  printf 'dn: uid=lou,dc=corp\nobjectClass: account\nobjectClass: posixAccount\nuid: lou\ncn: lou\n'
  printf 'uidNumber: %s\ngidNumber: %s\nhomeDirectory: %s\nloginShell: %s\n\n' $uid $gid $home $shell
  printf 'dn: cn=lou,dc=corp\nobjectClass: posixGroup\ncn: lou\ngidNumber: %s\n' $gid
} | slapadd -q -f /etc/ldap/slapd.conf
chown -R openldap: /var/lib/ldap
printf 'SLAPD_CONF=/etc/ldap/slapd.conf\nSLAPD_USER=openldap\nSLAPD_GROUP=openldap\nSLAPD_SERVICES="ldap://127.0.0.1/"\n' \
  >/etc/default/slapd
cat >/etc/sssd/sssd.conf <<'CONF'
[sssd]
services = nss, pam
domains = corp
[domain/corp]
id_provider = ldap
access_provider = permit
ldap_uri = ldap://127.0.0.1/
ldap_search_base = dc=corp
CONF
chmod 600 /etc/sssd/sssd.conf
userdel lou
systemctl start slapd sssd
for i in $(seq 50); do getent -s sss passwd lou && break; sleep 0.2; done`

// ordinaryShapes need no package that a host of the stories does not have, but for "directory".
var ordinaryShapes = map[string]shape{
	"directory": {
		Shape: stage.Shape{With: []string{"slapd", "sssd-ldap"}, Before: companyDirectory},
		more:  `if grep '^lou:' /etc/passwd; then exit 1; fi; getent -s sss passwd lou; getent -s curfew passwd alice`,
	},
	// As systemd has it neither on a router nor in many containers.
	"bare": {
		Shape: stage.Shape{Before: `
sed -i 's/ systemd\b//' /etc/nsswitch.conf
sed -i '/pam_systemd.so/d' /etc/pam.d/common-session
systemctl --quiet mask dbus.service dbus.socket systemd-logind.service
echo reboot`},
		more: `if busctl list 2>/dev/null || pgrep -x systemd-logind || grep systemd /etc/nsswitch.conf; then exit 1; fi`,
	},
	// Files that nothing changes, root neither, are no files that a grant needs, but for the folder of homes.
	"nologind": {
		Shape: stage.Shape{Before: `
systemctl --quiet mask --now systemd-logind.service
sed -i '/pam_systemd.so/d' /etc/pam.d/common-session
chattr +i ` + immutable + ` /home`},
		more: `if pgrep -x systemd-logind; then exit 1; fi; pgrep -x dbus-daemon
for at in ` + immutable + `; do lsattr -d $at | grep '^[^ ]*i'; done`,
		refused: "alice has no home on nologind", why: "make /home/alice where homes are kept",
		remedy: "chattr -i /home",
	},
	// Homes are on another machine, which takes root for nobody; local people have theirs here.
	"squashed": {
		Shape: stage.Shape{Programs: []string{"squash"}, Before: `
mv /home /local
install -d /srv/home /home
for one in /local/*; do ln -s $one /srv/home/; done
mknod -m 600 /dev/fuse c 10 229
systemd-run --quiet --unit=squash squash /srv/home /home
for i in $(seq 50); do mountpoint -q /home && break; sleep 0.1; done
if touch /home/x 2>/dev/null; then exit 1; fi`},
		more: `if ls /home/alice 2>/dev/null; then exit 1; fi; stat -c %U /home/alice | grep alice
setpriv --reuid "$(id -u alice)" --regid "$(id -g alice)" --clear-groups \
  sh -c 'echo mine >/home/alice/note; cat /home/alice/note'`,
		refused: "alice has no home on squashed", why: "make /home/alice where homes are kept",
		remedy: "install -d -m 700 -o $(id -u alice) -g $(id -g alice) /srv/home/alice",
		warned: "homes at /home",
	},
	// Programs and configuration are on an image that nothing writes to.
	"frozen": {
		Shape: stage.Shape{Before: `
systemctl start nscd
cat >/usr/local/sbin/freeze <<'SH'
#!/bin/sh -e
# Each is made read-only where nobody writes yet: the kernel refuses that to a mount that is being written to.
for at in usr etc; do
  mkdir -p /run/frozen/$at
  mount --bind /$at /run/frozen/$at
  mount -o remount,bind,ro /run/frozen/$at
done
touch /run/frozen/hosts
mount --bind /etc/hosts /run/frozen/hosts
mount --bind /run/frozen/usr /usr
mount --bind /run/frozen/etc /etc
mount --bind /run/frozen/hosts /etc/hosts
SH
chmod 755 /usr/local/sbin/freeze
cat >/etc/systemd/system/frozen.service <<'UNIT'
[Unit]
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/freeze
[Install]
WantedBy=sysinit.target
UNIT
systemctl --quiet enable frozen.service nscd.service curfew-agent.target curfew-enforce.service curfew-link.service
echo reboot`},
		more: `test "$(systemctl show -P Result frozen.service)" = success; if touch /usr/x || touch /etc/x; then exit 1; fi; systemctl is-active nscd`,
	},
	"hybrid": {
		Shape: stage.Shape{Hybrid: true},
		more:  `grep ^0::/user.slice/ /proc/$(pgrep -x -u alice sleep)/cgroup; ls /sys/fs/cgroup/unified/cgroup.controllers`,
	},
}

// immutable are files that administrators and hardening guides make so.
const immutable = "/etc/passwd /etc/group /etc/shadow /etc/gshadow /etc/nsswitch.conf /etc/sudoers /etc/sudoers.d " +
	"/etc/sudoers.d/curfew /etc/pam.d /etc/ssh/sshd_config"

// Hosts of other shapes do what all others do: who has a grant gets in and everything of theirs goes with it,
// who has none stays out, and nobody else notices.
func TestHostsOfOtherShapes(t *testing.T) {
	shapes := ordinaryShapes
	o := stage.Options{Name: "shapes", Shapes: make(map[string]stage.Shape)}
	for name, shape := range shapes {
		o.Hosts = append(o.Hosts, name)
		o.Shapes[name] = shape.Shape
	}
	slices.Sort(o.Hosts)
	s := tellFor(t, 2*storyLimit, o)
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	lou, err := s.Person(s.ctx, "lou")
	s.ok(err)
	id := strings.TrimSpace(s.curfew(alice, 0, slices.Concat([]string{"request"}, o.Hosts, []string{
		"--role", "root", "--for", "1h", "--reason", "every shape", "--no-wait",
	})).Out)
	s.curfew(bob, 0, []string{"approve", id, "--yes"})
	each := func(what string, do func(*shaped)) {
		t.Run(what, func(t *testing.T) {
			for _, name := range o.Hosts {
				// One after the other: a parallel step would wait for its place behind all other stories.
				t.Run(name, func(t *testing.T) {
					do(&shaped{
						story: &story{Stage: s.Stage, t: t, ctx: s.ctx}, shape: shapes[name], host: name, lou: lou,
					})
				})
			}
		})
	}
	each("opens", func(h *shaped) { h.opens(alice, id) })
	s.curfew(alice, 0, []string{"done", id})
	each("closes", func(h *shaped) { h.closes() })
}

// shaped is one host of the story.
type shaped struct {
	*story
	shape
	host string
	lou  *stage.Person
}

// as logs somebody in by lou's key.
func (h *shaped) as(login string, exit int, command string, words ...string) {
	h.t.Helper()
	r, err := h.lou.Command(h.ctx, "ssh", "-o", "BatchMode=yes", "-o", "LogLevel=INFO", login+"@"+h.host, command)
	h.ok(err)
	h.expect(r, login+"@"+h.host+": "+command, exit, words...)
}

// opens looks at what an open grant opens, and whom nothing touches.
func (h *shaped) opens(alice *stage.Person, id string) {
	t := h.t
	for _, login := range []string{"lou", "gus", "rescue"} {
		h.ok(h.lou.LetIn(h.ctx, h.Hosts[h.host], login))
	}
	settled := regexp.MustCompile(`"host":"` + h.host + `"[^}]*"status":"(applied|failed)","detail":"([^"]*)`)
	var status []string
	h.within(time.Minute, h.host+" to settle the grant", func() (bool, string) {
		r := h.curfew(alice, 0, []string{"show", id, "--json"})
		status = settled.FindStringSubmatch(strings.ReplaceAll(r.Out, `": "`, `":"`))
		return status != nil, r.Out
	})
	h.outsiders()
	if status[1] != "applied" {
		t.Fatalf("the grant is %s: %s", status[1], status[2])
	}
	if h.refused != "" {
		h.ssh(alice, h.host, 254, "true", h.refused) // by open_session
		h.within(20*time.Second, "the trail to say why", func() (bool, string) {
			r := h.curfew(h.Admin, 0, []string{"log", "--json"})
			return strings.Contains(r.Out, h.why), r.Out
		})
		h.on(h.host, h.remedy)
	}
	h.ssh(alice, h.host, 0, `sudo -n id -u; id -Gn; nohup setsid sleep 86311 >/dev/null 2>&1 </dev/null &
sudo -n sh -c 'nohup setsid sleep 86312 >/dev/null 2>&1 </dev/null &'`, "0\n", "curfew-users")
	if h.shape.more != "" {
		h.on(h.host, h.shape.more)
	}
	well, found := h.diagnosis(h.host)
	delete(found, "the clock is kept in time")
	if _, ok := found[h.warned]; h.warned != "" && !ok {
		t.Errorf("doctor does not warn of %s: %v", h.warned, found)
	}
	delete(found, h.warned)
	if !well || len(found) > 0 {
		t.Errorf("doctor, well %t: %v", well, found)
	}
}

// outsiders get in as ever; who has no grant does not.
func (h *shaped) outsiders() {
	h.t.Helper()
	h.as("lou", 0, "sudo -n /usr/bin/id -u", "0")
	h.as("gus", 255, "true", "curfew request "+h.host)
	h.as("rescue", 0, "id -un", "rescue")
}

// closes demands that nothing is left.
func (h *shaped) closes() {
	h.t.Helper()
	h.gone(h.host, "alice", "sleep 8631[12]", time.Minute)
	h.as("lou", 0, "sudo -n /usr/bin/id -u", "0")
	if out := h.on(h.host, "curfew-agent status | grep ^problem || true"); out != "" {
		h.t.Errorf("%s has problems: %s", h.host, out)
	}
}

// A host whose sudo is sudo-rs, which reads fewer settings than rules rest on, says so and opens no
// elevation; what it refuses leaves nothing, and roles without sudo open there.
func TestSudoRsIsRefused(t *testing.T) {
	s := tell(t, stage.Options{Hosts: []string{"rusty"}, Shapes: map[string]stage.Shape{"rusty": {
		Release: "trixie", Before: `
for at in /usr/bin/sudo /usr/sbin/visudo; do
  dpkg-divert --quiet --rename --add $at
  ln -s "$(command -v ${at##*/}-rs)" $at
done
sudo --version`,
	}}})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	id, err := alice.Ask(s.ctx, "rusty", "root", time.Minute)
	s.ok(err)
	s.curfew(bob, 0, []string{"approve", id, "--yes"})
	s.within(time.Minute, "rusty to refuse", func() (bool, string) {
		r := s.curfew(alice, 0, []string{"show", id, "--json"})
		return strings.Contains(r.Out, `calls itself \"sudo-rs`), r.Out
	})
	if left := s.on("rusty", "ls -A /run/curfew/sudoers.d /run/curfew/keys; getent passwd alice || true"); strings.Contains(left, "alice") {
		t.Errorf("what was refused left %s", left)
	}
	if well, found := s.diagnosis("rusty"); well || !strings.Contains(strings.Join(slices.Collect(maps.Values(found)), " "), "sudo-rs") {
		t.Errorf("doctor, well %t: %v", well, found)
	}
	_, err = s.Grant(s.ctx, alice, bob, "rusty", "docs", s.lasting(time.Minute))
	s.ok(err)
	s.ssh(alice, "rusty", 0, "id -un", "alice")
}
