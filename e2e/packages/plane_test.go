package packages

import (
	"errors"
	"strings"
	"time"
)

// planeState is where a control plane's store and keys are.
const planeState = "/var/lib/curfew-controlplane"

// The words of a purge that leaves it.
var planeStays = []string{"the root key, the CA and the trail stay in " + planeState, "rm -r " + planeState}

var planeOperations = []operation{
	{"install-plane", dpkg(older), func(h *host) {
		h.planeInstalled(older)
		h.found()
	}, nil},
	{"upgrade-plane", dpkg(newer), func(h *host) { h.serves(newer, "after the upgrade") }, planeKept},
	{"reinstall-plane", dpkg(newer), func(h *host) { h.serves(newer, "after the reinstallation") }, planeKept},
	{"remove-plane", "dpkg --remove " + strings.Join(planePackages, " "), (*host).planeRemoved, planeKept},
	{"purge-plane", "dpkg --purge " + strings.Join(planePackages, " "), (*host).planePurged, planeKept},
}

func planeKept(h *host, when string, _ point) { h.keepsPlane(when) }

// planeComesAndGoes is a control plane's life by apt.
func planeComesAndGoes(h *host) {
	h.on(install(older))
	h.planeInstalled(older)
	h.everybody("after the installation")
	if got := h.on("systemctl is-active curfew-controlplane.service || true"); got != "inactive" {
		h.t.Errorf("a control plane that nobody has set up is %s", got)
	}
	if said := h.on("curfew __complete adm"); !strings.HasPrefix(said, "admin\t") {
		h.t.Errorf("the shell completes adm to %q", said)
	}
	// Nothing was set up, so nothing is worth keeping, and nobody need be told.
	if said := h.on(takeAway("purge", planePackages...) + " 2>&1"); strings.Contains(said, "stay") {
		h.t.Errorf("a purge of what was never used says\n%s", said)
	}
	h.planeTraces("the purge of what was never used")

	h.on(install(older))
	h.found()
	h.serves(older, "once it is set up")
	h.on(install(newer))
	h.serves(newer, "after the upgrade")
	h.on(apt + "--reinstall install /var/tmp/" + newer + "/*.deb")
	h.serves(newer, "after the reinstallation")

	h.on(takeAway("remove", planePackages...))
	h.planeRemoved()
	h.everybody("after the removal")
	h.on(install(newer))
	h.serves(newer, "after another installation")

	said := h.on(takeAway("purge", planePackages...) + " 2>&1")
	for _, w := range planeStays {
		if !strings.Contains(said, w) {
			h.t.Errorf("a purge does not say %q:\n%s", w, said)
		}
	}
	h.planePurged()
	h.on(install(newer))
	h.on("systemctl --quiet enable --now curfew-controlplane.service")
	h.serves(newer, "with what a purge has left")

	h.on(takeAway("purge", planePackages...))
	h.forgetPlane()
	h.planeTraces("the purge")
	h.everybody("after the purge")
}

func (h *host) planeInstalled(version string) {
	h.t.Helper()
	h.have(planePackages, version)
	h.on(`
test "$(curfew version)" = "curfew v` + version + `"
test "$(curfew-controlplane version)" = v` + version + `
test "$(stat -c '%a %U:%G' ` + planeState + `)" = "700 curfew-controlplane:curfew-controlplane"
test -s /usr/share/bash-completion/completions/curfew
test -s /usr/lib/systemd/system/curfew-controlplane.service`)
	h.nothingHalf()
	h.asBefore("control plane installed")
}

// found sets a control plane up as docs/operate.md says. Dana works on the same machine: she signs in and
// adds erin.
func (h *host) found() {
	h.t.Helper()
	h.on(`
id -u dana >/dev/null 2>&1 || useradd -m -s /bin/bash dana
su dana -c 'test -e ~/.ssh/id_ed25519 || ssh-keygen -q -t ed25519 -N "" -f ~/.ssh/id_ed25519'
echo 'session_ttl: 2h' >/etc/curfew/controlplane.yaml
pin=$(runuser -u curfew-controlplane -- curfew-controlplane init --organisation acme --url plane:7443 \
  --admin dana --admin-key - </home/dana/.ssh/id_ed25519.pub 2>&1 | grep -o -e '--ca-pin [A-Za-z0-9_-]*')
systemctl --quiet enable --now curfew-controlplane.service
su - dana -c "curfew login --server plane:7443 $pin --user dana"
ssh-keygen -q -t ed25519 -N '' -f /run/erin
su - dana -c "curfew admin user add erin --key '$(cat /run/erin.pub)'"
rm /run/erin /run/erin.pub`)
	h.keys = h.planeKeys()
	if h.keys == "" {
		h.t.Fatal("a control plane without keys")
	}
}

// planeKeys are the sums of the files that hold keys.
func (h *host) planeKeys() string {
	h.t.Helper()
	return h.on(`find ` + planeState + ` -name '*.key' -exec sha256sum {} + | sort`)
}

// serves demands that the control plane runs, and by the program of that version, knows dana's session of old and whom she added,
// and has its keys.
func (h *host) serves(version, when string) {
	h.t.Helper()
	h.planeInstalled(version)
	h.keepsPlane(when)
	h.within(20*time.Second, "a control plane that knows dana and erin "+when, func() (bool, string) {
		out, err := h.Shell(h.ctx, `systemctl is-active curfew-controlplane.service
readlink /proc/$(systemctl show -P MainPID curfew-controlplane.service)/exe | grep -v deleted
su - dana -c 'curfew admin user ls' 2>&1`)
		return err == nil && strings.Contains(string(out), "erin"), errors.Join(err, errors.New(string(out))).Error()
	})
}

// keepsPlane demands that what nobody can make anew, and what the administrator wrote, is there.
func (h *host) keepsPlane(when string) {
	h.t.Helper()
	if keys := h.planeKeys(); keys != h.keys {
		h.t.Fatalf("%s: the control plane's keys were\n%s\nand are\n%s", when, h.keys, keys)
	}
	h.on("find " + planeState + " -name '*.db' -size +0 | grep -q .")
}

// planeGone demands that nothing of the packages is left, but for names that are excepted.
func (h *host) planeGone(when, except string) {
	h.t.Helper()
	left := h.on(`
for name in ` + strings.Join(planePackages, " ") + `; do
  dpkg-query -W -f '${Package} ${db:Status-Status}\n' $name 2>/dev/null |
    grep -v -e ' config-files$' -e ' not-installed$' || true
done
pgrep -x 'curfew-controlp' -a || true
ss -Hltn 'sport = :7443'
find / -xdev '(' -path /proc -o -path /sys -o -path /run -o -path /var/tmp -o -path /var/log -o -path /home ')' -prune \
  -o -path '/var/lib/dpkg/info/*' -prune -o -name '*curfew*' -print -prune | grep -v -x -e nothing ` + except + ` || true
ls -d /run/curfew-controlplane 2>/dev/null || true`)
	if left != "" {
		h.t.Fatalf("left by %s:\n%s", when, left)
	}
	h.nothingHalf()
	h.asBefore(when)
}

func (h *host) planeRemoved() {
	h.t.Helper()
	const link = "/etc/systemd/system/multi-user.target.wants/curfew-controlplane.service"
	h.planeGone("the removal", "-e "+planeState+" -e /etc/curfew -e "+link)
	h.keepsPlane("removed")
	h.on("grep -q 'session_ttl: 2h' /etc/curfew/controlplane.yaml")
}

func (h *host) planePurged() {
	h.t.Helper()
	h.planeGone("the purge", "-e "+planeState)
	h.keepsPlane("purged")
}

// planeTraces demands that nothing at all is left.
func (h *host) planeTraces(when string) {
	h.t.Helper()
	h.planeGone(when, "")
}

// forgetPlane is what a purge tells an administrator to type who wants all to be gone.
func (h *host) forgetPlane() {
	h.t.Helper()
	h.on("rm -r " + planeState + "; rm -rf /home/dana/.config/curfew")
}
