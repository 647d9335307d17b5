package packages

import (
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/world"
)

// storyLimit bounds one story. It takes half a minute on a machine at rest.
const storyLimit = 10 * time.Minute

// Installed packages observe; a joined host enforces; its sessions live through an upgrade and end with a
// removal, which is refused to whoever asks for it from inside of one; and a purge leaves nothing. Root,
// a local user and the break-glass user notice none of it. A control plane keeps what nobody can make anew
// through all of that.
func TestPackagesComeAndGo(t *testing.T) {
	t.Parallel()
	for _, release := range releases() {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			hosts := open(t, storyLimit, release, func(string) error { return nil }, "web1", "plane")
			t.Run("agent", func(t *testing.T) {
				t.Parallel()
				comeAndGo(hosts["web1"].tell(t))
			})
			t.Run("control plane", func(t *testing.T) {
				t.Parallel()
				planeComesAndGoes(hosts["plane"].tell(t))
			})
		})
	}
}

// releases are those that this run is about.
func releases() []string {
	if *every {
		return world.Releases
	}
	return []string{world.DefaultRelease}
}

func comeAndGo(h *host) {
	h.on(install(older))
	h.installed(older)
	h.everybody("after the installation")
	h.gus(true, "after the installation")

	h.ok(h.Write("/etc/curfew/agent.yaml", []byte(observing), 0o644))
	h.ok(h.stage.Join(h.ctx, h.Name()))
	h.everybody("after joining")
	h.gus(true, "on a host that observes")
	if mode := h.on("curfew-agent status 2>&1 | grep '^mode'"); !strings.HasSuffix(mode, "observe") {
		h.t.Errorf("an installed host says %q", mode)
	}

	h.enforce()
	h.gus(false, "on a host that enforces")
	h.session()
	h.everybody("with a grant in use")

	h.on(install(newer))
	h.stays("after the upgrade")
	h.on(apt + "--reinstall install /var/tmp/" + newer + "/*.deb")
	h.stays("after the reinstallation")
	h.refusedInside("", "(request ")
	h.refusedInside("rm /run/curfew/sessions/*; ")

	h.on(takeAway("remove", agentPackages...))
	h.everybody("after the removal")
	h.removed()
	h.on(install(newer))
	h.installed(newer)
	h.everybody("after another installation")
	h.on(takeAway("remove", agentPackages...))
	h.everybody("after another removal")
	h.on(takeAway("purge", agentPackages...))
	h.everybody("after the purge")
	h.purged()
}

// stays demands that the newer version is there and the grant and its session still are.
func (h *host) stays(when string) {
	h.t.Helper()
	h.installed(newer)
	h.everybody(when)
	h.gus(false, when)
	h.sessionLives(when)
}

// refusedInside has alice remove the packages in her session, which ends with them. prepare is what she does
// before.
func (h *host) refusedInside(prepare string, words ...string) {
	h.t.Helper()
	before := h.inventory()
	h.ok(h.tty.Send("sudo sh -c '" + prepare + takeAway("remove", agentPackages...) + "'; echo says-$?-$((40+2))\n"))
	said, err := h.tty.Expect(h.ctx, `says-\d+-42`)
	h.ok(err)
	for _, w := range append(words, "itself under a grant", "so the agent stays", "says-100-") {
		if !strings.Contains(said, w) {
			h.t.Errorf("a removal from inside of a grant does not say %q:\n%s", w, said)
		}
	}
	if after := h.inventory(); after != before {
		h.t.Errorf("a removal that was refused changed\n%s\nto\n%s", before, after)
	}
	h.stays("after a removal that was refused")
}
