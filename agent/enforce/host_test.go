package enforce

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/crypto/ssh"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/sudoers"
	"github.com/curfew-access/curfew/agent/folder"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

var end = time.Date(2030, 11, 24, 12, 30, 15, 0, time.UTC)

const (
	passwd = `root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
bob:x:1001:1001:Bob,,,:/home/bob:/bin/bash
carol:x:1002:1002::/home/carol:/bin/bash
dave:x:1003:1003::/home/dave:/bin/bash
rescue:x:1004:1004::/home/rescue:/bin/bash
`
	groups = `root:x:0:
sudo:x:27:dave
adm:x:4:
web:x:1500:
docker:x:998:
helpers:x:998:
curfew-users:x:990:
curfew-breakglass:x:991:rescue
bob:x:1001:
`
)

// host is a file system below a temporary folder that is enough of a Debian host.
type host struct {
	t    *testing.T
	root string
	r    *Reconciler
	uids uidTable

	mu    sync.Mutex
	drift []Repair
}

type uidTable map[string]uint32

func (u uidTable) UIDs() map[string]uint32 { return u }

func (u uidTable) ReserveUID(login string, uid uint32) error {
	for l, have := range u {
		if (l == login) != (have == uid) {
			return fmt.Errorf("uid %d belongs to %s", have, l)
		}
	}
	u[login] = uid
	return nil
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, root: t.TempDir(), uids: uidTable{}}
	for _, dir := range []string{"etc/sudoers.d", "run/curfew", "var/lib", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(h.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.write("etc/passwd", passwd, 0o644)
	h.write("etc/group", groups, 0o644)
	h.write("etc/sudoers", "root ALL=(ALL:ALL) ALL\n%sudo ALL=(ALL:ALL) ALL\n@includedir "+
		h.path("etc/sudoers.d")+"\n", 0o440)
	h.write("etc/sudoers.d/curfew", "@includedir "+h.path(SudoersDir)+"\n", 0o440)
	h.write("usr/bin/systemctl", "", 0o755)
	h.write("usr/bin/getent", getent, 0o755)
	h.write("etc/directory", "", 0o644)
	h.r = h.reconciler(nil)
	return h
}

func (h *host) path(name string) string { return filepath.Join(h.root, name) }

func (h *host) write(name, data string, mode fs.FileMode) {
	h.t.Helper()
	if err := os.WriteFile(h.path(name), []byte(data), mode); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) reconciler(kernel folder.Kernel) *Reconciler {
	h.t.Helper()
	r, err := New(Config{
		Root: h.root, UIDs: h.uids, Log: hclog.NewNullLogger(), Kernel: kernel,
		Checker: sudoers.Checker{
			Sudo: "/usr/bin/sudo", Visudo: "/usr/sbin/visudo", Cvtsudoers: "/usr/bin/cvtsudoers",
			Sudoers: h.path("etc/sudoers"), Timeout: 20 * time.Second,
		},
		Directory: account.Directory{Getent: h.path("usr/bin/getent"), Timeout: 20 * time.Second},
		Drift: func(repairs []Repair) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.drift = append(h.drift, repairs...)
		},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = r.Close() })
	return r
}

// restarted is an agent that starts anew on a host whose sudo tools are gone.
func (h *host) restarted() *Reconciler {
	r := h.reconciler(nil)
	r.cfg.Checker.Visudo, r.cfg.Checker.Cvtsudoers = "/nonexistent", "/nonexistent"
	return r
}

func (h *host) takeDrift() []Repair {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.drift
	h.drift = nil
	return d
}

// getent is a name service that knows the host's own files and the accounts that have keys.
const getent = `#!/bin/sh
root=$(dirname "$0")/../..
one() {
  case $1 in *[!0-9]*) ;; *) grep ":x:$1:" "$root/etc/directory"; return ;; esac
  grep "^$1:" "$root/etc/directory" && return
  grep "^$1:" "$root/etc/passwd" && return
  line=$(grep " $1\$" "$root/var/lib/curfew/gate.conf" | grep ^account) || return
  set -- $line
  echo "$3:*:$2:$2:Curfew account:/home/$3:/bin/bash"
}
shift
missing=0
for key; do one "$key" || missing=2; done
exit $missing
`

func rules() account.Rules {
	return account.Rules{
		Gated: []string{"bob"}, Elevate: []string{"carol"}, BreakGlass: "curfew-breakglass",
		UIDMin: 1900000000, UIDMax: 1999999999, HomeRoot: "/home", Shell: "/bin/bash",
	}
}

func state(live ...grant.Live) State {
	slices.SortFunc(live, func(a, b grant.Live) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return State{Live: live, Mode: account.ModeEnforce, Rules: rules()}
}

func sshKey(seed byte) string {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32))
	pub, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		panic(err) // a fixed key of a fixed type
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(pub)))
}

var restart = &curfewv1.SudoRule{
	RunAs: "root", Command: "/usr/bin/systemctl", Args: []string{"restart", "nginx.service"},
	Contained: true,
}

// live makes a grant whose id begins with n.
func live(n byte, login string, edit ...func(*curfewv1.Terms)) grant.Live {
	terms := &curfewv1.Terms{
		RequestId: fmt.Sprintf("request%05d", n), Login: login, Uid: 1900000000 + uint32(login[0]),
		AllowLogin: true, AuthorizedKeys: []string{sshKey(login[0])},
	}
	for _, e := range edit {
		e(terms)
	}
	return grant.Live{
		ID: grant.ID{n}, Terms: terms, Start: end.Add(-time.Hour), End: end,
		BootDeadline: 5 * time.Hour,
	}
}

func withRule(r ...*curfewv1.SudoRule) func(*curfewv1.Terms) {
	return func(t *curfewv1.Terms) { t.SudoRules = r }
}

func withGroups(g ...string) func(*curfewv1.Terms) {
	return func(t *curfewv1.Terms) { t.Groups = g }
}

// tree lists everything below the places that Curfew writes, with modes; text files with content.
func (h *host) tree() string {
	h.t.Helper()
	var b strings.Builder
	for _, dir := range []string{RunDir, StateDir} {
		err := filepath.WalkDir(h.path(dir), func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(h.root, p)
			if err != nil {
				return err
			}
			if d.Name() == ".reserve" {
				return nil // room for a purge, of no meaning
			}
			fmt.Fprintf(&b, "-- %s %v\n", rel, info.Mode())
			if info.Mode().IsRegular() && !strings.HasSuffix(p, ".db") {
				data, err := os.ReadFile(p)
				if err != nil {
					return err
				}
				b.Write(data)
			}
			return nil
		})
		if err != nil {
			h.t.Fatal(err)
		}
	}
	return b.String()
}

// apply goes the whole way: take away, check, write, verify.
func (h *host) apply(s State) map[byte]Result {
	h.t.Helper()
	results, err := h.r.Apply(s)
	if err == nil && h.r.Pending(results) {
		h.r.Admit(context.Background(), s)
		results, err = h.r.Apply(s)
		h.r.Verify(context.Background(), results)
		if err == nil {
			results, err = h.r.Apply(s)
		}
	}
	if err != nil {
		h.t.Fatal(err)
	}
	byID := make(map[byte]Result)
	for _, r := range results {
		byID[r.Live.ID[0]] = r
	}
	return byID
}

func (h *host) exists(name string) bool {
	_, err := os.Lstat(h.path(name))
	return err == nil
}

func dropinPath(n byte) string { return SudoersDir + "/" + grant.ID{n}.String() }
