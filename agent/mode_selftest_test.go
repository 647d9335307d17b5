package agent

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/curfew-access/curfew/agent/doctor"
	"github.com/curfew-access/curfew/agent/selftest"
)

// selfTest tries the real module against the root half of a machine.
func (m *machine) selfTest() selftest.Config {
	m.t.Helper()
	if out, err := exec.Command("make", "-s", "-C", "../pam", "all").CombinedOutput(); err != nil {
		m.t.Fatalf("%v\n%s", err, out)
	}
	bin, err := filepath.Abs("../bin")
	if err != nil {
		m.t.Fatal(err)
	}
	return selftest.Config{
		Runner: bin + "/curfew-selftest", Module: bin + "/pam_curfew.so",
		Socket: m.path("run/curfew/gate.sock"), Run: m.path("run/curfew"), Stacks: m.path("pam.d"),
	}
}

// bad are the findings that are problems, by what they are about.
func bad(list []doctor.Finding) map[string]string {
	found := make(map[string]string)
	for _, f := range list {
		if f.Bad() {
			found[strings.TrimPrefix(f.What, "self-test: ")] = f.Err.Error()
		}
	}
	return found
}

// On a host that observes, the self-test has the real module deny, and let in again by every way in which
// enforcing is taken back; it notices a module that does not deny, and leaves nothing behind.
func TestSelfTestTriesTheModule(t *testing.T) {
	m := newMachine(t)
	m.settings("mode: observe\n")
	test := m.selfTest()
	m.start()
	m.tableSays("observe\n")
	if found := bad(test.Private(context.Background())); len(found) > 0 {
		t.Errorf("a good module: %v", found)
	}
	for module, want := range map[string]string{
		"pam_permit.so": "whom no grant covers is denied", "pam_deny.so": "enforce-off lets in",
		"/nowhere/pam_curfew.so": "root gets in",
	} {
		broken := test
		broken.Module = module
		if found := bad(broken.Private(context.Background())); found[want] == "" {
			t.Errorf("with %s in its place: %v", module, found)
		}
	}
	test.Socket = "/nowhere"
	if found := bad(test.Private(context.Background())); !strings.Contains(found["whom no grant covers is denied"],
		"try again") || len(found) != 2 {
		t.Errorf("without an agent: %v", found)
	}
	left, err := filepath.Glob(m.path("run/curfew/selftest-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Once a host enforces, its own services must deny, and treat root as before.
func TestSelfTestTriesTheHostsOwnServices(t *testing.T) {
	m := newMachine(t)
	m.settings("mode: observe\n")
	test := m.selfTest()
	m.start()
	m.tableSays("observe\n")
	if err := os.Mkdir(m.path("pam.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	line := "account [success=ok ignore=ignore module_unknown=ignore default=die] " + test.Module +
		" socket=" + test.Socket + " conf=" + m.path("var/lib/curfew/gate.conf") + " marks=" + m.path("run/curfew") + "\n"
	write := func(before string) {
		t.Helper()
		for _, name := range []string{"sshd", "sudo", "other"} {
			text := []byte(before + line + "account required pam_permit.so\n")
			if err := os.WriteFile(m.path("pam.d/"+name), text, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("")
	people := []selftest.Person{{Name: "root"}}
	has := func(service string) bool { return service == "sshd" || service == "sudo" }
	before, err := test.Look(context.Background(), people, has)
	if err != nil || len(before) != 2 {
		t.Fatalf("%v, %v", before, err)
	}
	enforced := func() map[string]string {
		return bad(test.Enforced(context.Background(), before, people, has))
	}
	if found := enforced(); len(found) != 2 {
		t.Errorf("before the trial nobody is denied, and the self-test says %v", found)
	}
	m.enforceOn("")
	if found := enforced(); len(found) != 0 {
		t.Errorf("in the trial: %v", found)
	}
	write("account sufficient pam_permit.so\n")
	if found := enforced(); found["sshd denies whom no grant covers"] == "" || found["sudo denies whom no grant covers"] == "" {
		t.Errorf("a stack that passes everybody by: %v", found)
	}
	write("account requisite pam_deny.so\n")
	if found := enforced(); found["root and break-glass get in as before"] == "" {
		t.Errorf("a stack that refuses root: %v", found)
	}
}
