package packages

import (
	"fmt"
	"strings"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// apt is how packages come and go. Nothing here loses power, so dpkg need not wait for the disk.
const apt = "DEBIAN_FRONTEND=noninteractive apt-get -y -q -o Dpkg::Options::=--force-unsafe-io " +
	"-o APT::Sandbox::User=root "

// mark is a sleep that only alice's root runs.
const mark = "sleep 86414"

// conffile is what dpkg keeps of Curfew in the files of an inventory when it is removed and not purged.
const conffile = "ssh/sshd_config.d/50-curfew.conf"

// have demands that packages are there in one version.
func (h *host) have(names []string, version string) {
	h.t.Helper()
	want := ""
	for _, name := range names {
		want += name + " install ok installed " + version + "-1\n"
	}
	if got := h.on(`dpkg-query -W -f '${Package} ${Status} ${Version}\n' ` + strings.Join(names, " ")); got+"\n" != want {
		h.t.Fatalf("the packages are\n%s\nwant\n%s", got, want)
	}
}

// installed demands that all packages are there in one version, and known to everybody who must know.
func (h *host) installed(version string) {
	h.t.Helper()
	h.have(agentPackages, version)
	h.on(`
grep -q '^account.*pam_curfew\.so' /etc/pam.d/common-account
grep -q '^session.*pam_curfew\.so' /etc/pam.d/common-session
for db in passwd group shadow; do grep -q "^$db:.* curfew" /etc/nsswitch.conf; done
test "$(cat /etc/sudoers.d/curfew)" = "$(cat /usr/lib/curfew/sudoers)"
test "$(stat -c '%a %u:%g' /etc/sudoers.d/curfew)" = "440 0:0"
test "$(curfew-agent version)" = v` + version)
	h.nothingHalf()
}

// nothingHalf demands that no script left a file that it was writing.
func (h *host) nothingHalf() {
	h.t.Helper()
	if left := h.on(`find /etc /run/curfew /usr/lib/curfew -name '*.curfew-new' -o -name '*.dpkg-new' \
  -o -name sshd.before 2>/dev/null || true`); left != "" {
		h.t.Fatalf("left half-way: %s", left)
	}
}

// moveIn joins the host, which enforces from then on, and gives alice a session with a root child.
func (h *host) moveIn() {
	h.t.Helper()
	h.enforce()
	h.ok(h.stage.Join(h.ctx, h.Name()))
	h.gus(false, "after joining")
	h.session()
}

// enforce is the host's own word.
func (h *host) enforce() {
	h.t.Helper()
	h.ok(h.Replace("/etc/curfew/agent.yaml", []byte(stage.DefaultAgent), 0o644))
}

// session opens alice's, under a new grant.
func (h *host) session() {
	h.t.Helper()
	_, err := h.stage.Grant(h.ctx, h.alice, h.bob, h.Name(), "root", time.Hour)
	h.ok(err)
	h.tty, err = h.alice.StartPTY(h.ctx, "ssh", "-tt", "alice@"+h.Name())
	h.ok(err)
	tty := h.tty
	h.t.Cleanup(func() { tty.Close() })
	h.ok(tty.Send("sudo " + mark + " &\n"))
	h.within(20*time.Second, "root's "+mark, func() (bool, string) {
		out := h.on("pgrep -x -f '" + mark + "' || true")
		return out != "", out
	})
	h.sessionLives("at once")
}

// sessionLives demands that alice's root child runs, and that she can still use sudo in her session.
func (h *host) sessionLives(when string) {
	h.t.Helper()
	h.rootChildLives(when)
	h.within(20*time.Second, "sudo in alice's session "+when, func() (bool, string) {
		// What is typed is shown as well; only the answer holds the sum.
		h.ok(h.tty.Send("sudo -n /usr/bin/id -u; echo so-$?-$((40+2))\n"))
		out, err := h.tty.Expect(h.ctx, `so-\d+-42`)
		h.ok(err)
		return strings.HasSuffix(out, "so-0-42"), out
	})
}

func (h *host) rootChildLives(when string) {
	h.t.Helper()
	if out := h.on("pgrep -x -f '" + mark + "' || true"); out == "" {
		h.t.Fatalf("%s: alice's root child is dead", when)
	}
}

// removed demands that Curfew is gone but for what a removal keeps, and with it all that was granted.
func (h *host) removed() {
	h.t.Helper()
	if h.tty != nil {
		if exit, err := h.tty.Wait(h.ctx); err != nil || exit == 0 {
			h.t.Errorf("alice's connection ended with %d, %v", exit, err)
		}
		h.tty = nil
	}
	left := h.on(`
for name in ` + strings.Join(agentPackages, " ") + `; do
  dpkg-query -W -f '${Package} ${db:Status-Status}\n' $name 2>/dev/null |
    grep -v -e ' config-files$' -e ' not-installed$' || true
done
pgrep -x -f '` + mark + `' -a || true
pgrep -u alice -a 2>/dev/null || true
getent passwd alice || true
pgrep -x 'curfew-(enforce|agent)' -a || true
ls -d /run/curfew /usr/lib/curfew 2>/dev/null || true
find / -xdev '(' -name pam_curfew.so -o -name 'libnss_curfew*' ')' -print`)
	if left != "" {
		h.t.Fatalf("left by the removal:\n%s", left)
	}
	h.nothingHalf()
	h.asBefore("removed", conffile)
	h.gus(true, "after the removal")
}

// purged demands that every file that Curfew touched is as before, and that none of its own is left.
func (h *host) purged() {
	h.t.Helper()
	h.asBefore("purged")
	left := h.on(`
dpkg-query -W -f '${Package} ${db:Status-Status}\n' ` + strings.Join(agentPackages, " ") + ` 2>/dev/null |
  grep -v ' not-installed$' || true
find / -xdev '(' -path /proc -o -path /sys -o -path /run -o -path /var/tmp -o -path /var/log ')' -prune \
  -o -name '*curfew*' -print
ls -d /run/curfew 2>/dev/null || true`)
	if left != "" {
		h.t.Fatalf("left by the purge:\n%s", left)
	}
	h.gus(true, "after the purge")
}

// moveOut has the control plane forget the host, which will not hear of it.
func (h *host) moveOut() {
	h.t.Helper()
	h.ok(h.stage.Admin.Must(h.ctx, "admin", "host", "rm", "--force", h.Name()))
}

// install is what an administrator types to have a version.
func install(version string) string { return apt + "install /var/tmp/" + version + "/*.deb" }

// takeAway is what they type to be rid of it, by remove or purge.
func takeAway(how string, names ...string) string {
	return fmt.Sprintf("%s %s %s", apt, how, strings.Join(names, " "))
}
