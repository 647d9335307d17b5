package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/e2e/world"
)

// custodian sets the scene of break-glass.md: web1's file is what the page says, bob approves, and carol
// has a login there without a grant.
func (s *story) custodian() []*stage.Person {
	s.t.Helper()
	_, bob, _ := s.openFor(time.Hour) // which tells web1 of bob
	carol, err := s.Person(s.ctx, "carol")
	s.ok(err)
	s.ok(carol.LetIn(s.ctx, s.Hosts["web1"], "carol"))
	text, err := os.ReadFile("../docs/operate/break-glass.md")
	s.ok(err)
	_, settings, _ := strings.Cut(string(text), "```yaml\n")
	settings, _, _ = strings.Cut(settings, "```")
	s.ok(s.Hosts["web1"].Write("/etc/curfew/agent.yaml", []byte(stage.DefaultAgent+settings), 0o644))
	s.within(20*time.Second, "web1 to read its file", func() (bool, string) {
		said := s.on("web1", "curfew-agent status")
		return strings.Contains(said, "break-glass is enabled"), said
	})
	return []*stage.Person{bob, carol}
}

// codesCome waits for the codes that web1 has made.
func (s *story) codesCome(people cast) {
	s.t.Helper()
	s.within(20*time.Second, "web1's codes to come", func() (bool, string) {
		r, err := people["bob"].Curfew(s.ctx, "admin", "break-glass", "ls")
		return err == nil && strings.Contains(r.Out, "web1"), r.String()
	})
}

// outage takes the control plane away until codes count, and brings carol the file that bob has. What she
// asks for meanwhile is too long, which spends no code.
func (s *story) outage(people cast) {
	s.t.Helper()
	code, err := os.ReadFile(filepath.Join(people["bob"].Home(), "web1.code"))
	s.ok(err)
	s.ok(people["carol"].Write("web1.code", code, 0o600))
	_, err = s.Control.Exec(s.ctx, "systemctl", "stop", "curfew-controlplane.service")
	s.ok(err)
	s.within(2*time.Minute, "codes to count", func() (bool, string) {
		time.Sleep(time.Second)
		r, err := people["carol"].Command(s.ctx, "bash", "-c",
			"ssh carol@web1 curfew-agent break-glass --reason INC-7 --for 24h <web1.code")
		return err == nil && strings.Contains(r.Err, "at most"), r.String()
	})
}

// back ends the outage.
func (s *story) back(cast) {
	s.t.Helper()
	_, err := s.Control.Exec(s.ctx, "systemctl", "start", "curfew-controlplane.service")
	s.ok(err)
	s.ok(s.Connected(s.ctx, "web1"))
	s.within(time.Minute, "the use to be on the trail", func() (bool, string) {
		r, err := s.Admin.Curfew(s.ctx, "log")
		return err == nil && strings.Contains(r.Out, "break_glass.used"), r.String()
	})
}

// packages returns stage.Packages. A story asks before it begins: what they take to build is none of its time.
func packages(t *testing.T) (built string) {
	t.Helper()
	built, err := stage.Packages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return built
}

// versions are those that packages are built as, by the folder that a page finds them in.
var versions = map[string]string{"old": stage.Older, "new": stage.Newer}

// outsiders adds web2, which has never heard of Curfew and finds its packages in /var/tmp/curfew, and ops,
// who has keys of old for root and for everybody of the host's own.
func (s *story) outsiders() []*stage.Person {
	s.t.Helper()
	built := packages(s.t)
	h, err := s.AddHost(s.ctx, world.HostOptions{Name: "web2", Install: func(root string) error {
		to := filepath.Join(root, "var/tmp/curfew")
		out, err := exec.Command("sh", "-euc", `cp -r "$1/$3" "$4"
cp -r "$1/$2" "$4/old"
cp -r "$1/$3" "$4/new"`, "sh", built, stage.Older, stage.Newer, to).CombinedOutput()
		if err != nil {
			return fmt.Errorf("copying packages: %w: %s", err, out)
		}
		return nil
	}})
	s.ok(err)
	s.Hosts["web2"] = h
	s.ok(s.People(s.ctx, h))
	ops, err := s.Guest(s.ctx, "ops")
	s.ok(err)
	// A reader's ssh shows what a host says when it refuses; a laptop's here is told not to.
	s.ok(ops.Write(".ssh/config", []byte("Host *\n\tStrictHostKeyChecking accept-new\n\tConnectTimeout 5\n"), 0o600))
	for _, login := range []string{"lou", "gus", "rescue"} {
		s.ok(ops.LetIn(s.ctx, h, login))
	}
	s.on("web2", "install -D -m 600 ~lou/.ssh/authorized_keys /root/.ssh/authorized_keys")
	return []*stage.Person{ops}
}

// inUse is outsiders with the packages of one version installed there and on the control plane, and with
// alice logged in on web2 by a grant.
func (s *story) inUse(folder string) []*stage.Person {
	s.t.Helper()
	people := s.outsiders()
	s.on("web2", "cd /var/tmp/curfew/"+folder+" && apt-get -qq -y install ./*nss-*.deb ./*pam-*.deb ./curfew-agent_*.deb")
	s.ok(s.Hosts["web2"].Write("/etc/curfew/agent.yaml", []byte(stage.DefaultAgent), 0o644))
	built := packages(s.t)
	for at, version := range versions {
		found, err := filepath.Glob(filepath.Join(built, version, "curfew-controlplane_*.deb"))
		s.ok(err)
		deb, err := os.ReadFile(found[0])
		s.ok(err)
		s.ok(s.Control.Write("/var/tmp/curfew/"+at+"/"+filepath.Base(found[0]), deb, 0o644))
	}
	_, err := s.Control.Shell(s.ctx, "apt-get -qq -y install /var/tmp/curfew/"+folder+"/*.deb")
	s.ok(err)
	s.ok(s.Join(s.ctx, "web2"))
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	_, err = s.Grant(s.ctx, alice, bob, "web2", "ops", time.Hour)
	s.ok(err)
	s.terminal(alice, "ssh", "-tt", "alice@web2")
	s.within(20*time.Second, "alice to be in", func() (bool, string) {
		in := s.on("web2", "loginctl list-sessions")
		return strings.Contains(in, "alice"), in
	})
	return people
}
