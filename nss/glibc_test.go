package nss_test

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/internal/pace"
)

// host is a mount namespace with its own /run and nsswitch.conf, in which glibc finds the real
// object: the look-ups of every program of a host.
type host struct {
	t   *testing.T
	dir string
}

func newHost(t *testing.T, snapshot []byte) *host {
	t.Helper()
	h := &host{t, t.TempDir()}
	const nsswitch = "passwd: files curfew\ngroup: files curfew\nshadow: files curfew\n"
	if err := os.WriteFile(h.dir+"/nsswitch.conf", []byte(nsswitch), 0o644); err != nil {
		t.Fatal(err)
	}
	h.put(snapshot)
	return h
}

func (h *host) put(snapshot []byte) {
	h.t.Helper()
	if err := os.WriteFile(h.dir+"/nss.db", snapshot, 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// run runs a shell script on the host and returns what it prints, with its failures.
func (h *host) run(script string) string {
	h.t.Helper()
	cmd := privately(fmt.Sprintf(`
		mount --bind %[1]s/nsswitch.conf /etc/nsswitch.conf
		cp %[1]s/nss.db /run/curfew/nss.db
		export LD_LIBRARY_PATH=%[2]s LC_ALL=C
		set +e
		%[3]s`, h.dir, bin, script))
	out, err := cmd.CombinedOutput()
	if err != nil {
		if _, exited := err.(*exec.ExitError); !exited {
			h.t.Fatalf("%s: %v", script, err)
		}
		return fmt.Sprintf("%s(exit %d)", out, cmd.ProcessState.ExitCode())
	}
	return string(out)
}

func TestGetent(t *testing.T) {
	h := newHost(t, renderPeople(t))
	for script, want := range map[string]string{
		"getent passwd alice":      aliceLine,
		"getent passwd 1900000002": aliceLine,
		"getent passwd bob":        bobLine,
		"getent passwd nobody-x":   "(exit 2)",
		"getent passwd 4294967293": daveLine,
		"getent group aaa-team":    teamLine,
		"getent group 1900000100":  teamLine,
		"getent group 4294967292":  "huge:*:4294967292:daemon\n",
		"getent group gone-wall":   "gone-wall:*:1900000101:\n",
		"getent shadow alice":      "alice:*:1::::::\n",
		"getent shadow bob":        "bob:*:1::::::\n",
		"id -u alice":              "1900000002\n",
		"id -g alice":              "1900000002\n",
		"id -G alice":              "1900000002 4 999 1900000100\n",
		"id -G bob":                "1900000001\n",
		"id -G daemon":             "1 1900000100 4294967292\n",
		"id -Gn daemon":            "daemon aaa-team huge\n",
		"id -un 1900000002":        "alice\n",
		"sh -c 'echo ~alice ~bob'": "/home/alice /home/bob\n",
		"getent passwd root":       "root:x:0:0:root:/root:/bin/bash\n",
		// Two each of the files' own and of the snapshot, so that neither hides the other.
		"getent passwd | grep -c -e ^root: -e ^daemon: -e ^alice: -e ^dave:": "4\n",
		"getent group | grep -c -e ^root: -e ^adm: -e ^alice: -e ^aaa-team:": "4\n",
		// A process that is started in the account holds the groups, and no others.
		"setpriv --reuid alice --regid alice --init-groups id -G": "1900000002 4 999 1900000100\n",
		"setpriv --reuid bob --regid bob --init-groups id -G":     "1900000001\n",
	} {
		if got := h.run(script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	got := strings.Fields(h.run("getent initgroups alice"))
	if slices.Sort(got[1:]); !slices.Equal(got, []string{"alice", "1900000100", "4", "999"}) {
		t.Errorf("getent initgroups alice: %q", got)
	}
}

func TestGetentEnumeratesAThousand(t *testing.T) {
	h := newHost(t, render(t, many(1000), nil))
	for script, want := range map[string]string{
		"getent passwd | grep -c ^user0":                         "1000\n",
		"getent passwd | grep ^user0 | sort -u | wc -l":          "1000\n",
		"getent group | grep -c ^user0":                          "1000\n",
		"for i in 1 2; do getent passwd user00999; done | wc -l": "2\n",
		"id -G user00500":                                        "1900000500 4\n",
	} {
		if got := h.run(script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
}

// TestAHostWithABadSnapshot: local users and root are there whatever happened to the file.
func TestAHostWithABadSnapshot(t *testing.T) {
	good := renderPeople(t)
	h := newHost(t, good)
	for name, spoil := range map[string]string{
		"missing":        "rm /run/curfew/nss.db",
		"no folder":      "rm -r /run/curfew",
		"empty":          ": > /run/curfew/nss.db",
		"cut":            "truncate -s 300 /run/curfew/nss.db",
		"garbage":        "head -c 5000 /dev/urandom > /run/curfew/nss.db",
		"another's":      "chown 1000 /run/curfew/nss.db",
		"world-writable": "chmod 666 /run/curfew/nss.db",
		"a FIFO":         "rm /run/curfew/nss.db; mkfifo /run/curfew/nss.db",
		"a folder":       "rm /run/curfew/nss.db; mkdir /run/curfew/nss.db",
		"a link":         "mv /run/curfew/nss.db /run/x; ln -s /run/x /run/curfew/nss.db",
		"a loop":         "rm /run/curfew/nss.db; ln -s nss.db /run/curfew/nss.db",
	} {
		t.Run(name, func(t *testing.T) {
			start := pace.Start()
			got := h.run(spoil + `
				id -u root; id -u daemon; id -G daemon; getent passwd alice; echo $?
				getent passwd | grep -c ^root:; getent group | grep -c ^root:`)
			if want := "0\n1\n1\n2\n1\n1\n"; got != want {
				t.Errorf("%q, want %q", got, want)
			}
			if spent := start.Elapsed(); spent > 5*time.Second {
				t.Errorf("it took %v: something waited", spent)
			}
		})
	}
}

func TestThreadsAndForksThroughGlibc(t *testing.T) {
	h := newHost(t, renderPeople(t))
	if got, want := h.run(bin+"/nss_glibc all"), "wrong 0 descriptors 0\n"; got != want {
		t.Errorf("threads and forks: %q, want %q", got, want)
	}
	if got, want := h.run(bin+"/nss_glibc closed"), "wrong 0 open 0\n"; got != want {
		t.Errorf("with 0 to 2 closed: %q, want %q", got, want)
	}
}
