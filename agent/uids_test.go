package agent

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/sudoers"
	"github.com/curfew-access/curfew/agent/store"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// `make uids` plays 100,000 cycles.
var (
	uidCycles = flag.Int("uid-cycles", 1000, "how often accounts come and go")
	uidSeed   = flag.Uint64("uid-seed", 0, "plays a failed game again; 0 draws one")
)

// game is one host whose control plane is in an attacker's hands: it grants any uid to any login.
// The host's own users and its directory elsewhere come and go beside it.
type game struct {
	t     *testing.T
	rand  *rand.Rand
	root  string
	store *store.Store
	recon *enforce.Reconciler

	// local and directory are who is in /etc/passwd and in the directory elsewhere, by login; groups
	// are groups of the directory's beside those of its users.
	local, directory, groups map[string]uint32
	// owner and uidOf are the model: whose a uid became at its first account, for ever.
	owner map[uint32]string
	uidOf map[string]uint32
	n     int
	given int
}

const (
	logins   = 60
	uidsFrom = 1900000000
)

// TestNoUIDIsGivenTwice lets accounts come, go and come again with uids that a stolen control plane
// chooses, while local users and a directory's take some of the names and numbers, and the agent
// restarts. Whatever is applied agrees with the first account that a login and a uid ever had here,
// and is nobody else's at that moment.
func TestNoUIDIsGivenTwice(t *testing.T) {
	seed := *uidSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	root, err := os.MkdirTemp("/dev/shm", "cf") // syncing costs nothing there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	g := &game{
		t: t, root: root, rand: rand.New(rand.NewPCG(seed, 1)),
		local: map[string]uint32{}, directory: map[string]uint32{}, groups: map[string]uint32{},
		owner: map[uint32]string{}, uidOf: map[string]uint32{},
	}
	for _, dir := range []string{"etc/sudoers.d", "run/curfew", "var/lib/curfew", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	g.write("usr/bin/getent", directoryGetent, 0o755)
	g.people()
	g.start()
	for cycle := range *uidCycles {
		switch draw := g.rand.IntN(100); {
		case draw < 3:
			g.restart()
		case draw < 15:
			g.migrate(g.local)
		case draw < 25:
			g.migrate(g.directory)
		case draw < 30:
			g.migrate(g.groups)
		}
		g.cycle(cycle)
	}
	if g.given < *uidCycles/20 || len(g.owner) < min(*uidCycles, logins)/10 {
		t.Errorf("%d accounts of %d people in %d cycles: the test tried nothing",
			g.given, len(g.owner), *uidCycles)
	}
	if err := errors.Join(g.recon.Close(), g.store.Close()); err != nil {
		t.Error(err)
	}
}

// directoryGetent looks through what the module and the directory elsewhere know.
const directoryGetent = `#!/bin/sh
table=$1
one() {
  while IFS=: read -r name x id rest; do
    if [ "$name" = "$1" ] || [ "$id" = "$1" ]; then echo "$name:$x:$id:$rest"; return; fi
  done <"${0%/usr/bin/getent}/etc/directory.$table"
  return 1
}
shift
missing=0
for key; do one "$key" || missing=2; done
exit $missing
`

func (g *game) write(name, data string, mode os.FileMode) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.root, name), []byte(data), mode); err != nil {
		g.t.Fatal(err)
	}
}

// people writes the host's files and the directory's as they are now.
func (g *game) people() {
	var passwd, group, everybody, groups strings.Builder
	passwd.WriteString("root:x:0:0:root:/root:/bin/bash\n")
	group.WriteString("root:x:0:\ncurfew-users:x:990:\n")
	for login, uid := range g.local {
		fmt.Fprintf(&passwd, "%s:x:%d:%d::/home/%s:/bin/bash\n", login, uid, uid, login)
		fmt.Fprintf(&group, "%s:x:%d:\n", login, uid)
	}
	for _, table := range []map[string]uint32{g.local, g.directory} {
		for login, uid := range table {
			fmt.Fprintf(&everybody, "%s:*:%d:%d::/home/%s:/bin/bash\n", login, uid, uid, login)
			fmt.Fprintf(&groups, "%s:*:%d:\n", login, uid)
		}
	}
	for name, gid := range g.groups {
		fmt.Fprintf(&groups, "%s:*:%d:user1,user2\n", name, gid)
	}
	g.write("etc/passwd", passwd.String(), 0o644)
	g.write("etc/group", group.String(), 0o644)
	g.write("etc/directory.passwd", everybody.String(), 0o644)
	g.write("etc/directory.group", groups.String(), 0o644)
}

func (g *game) login() string { return fmt.Sprintf("user%d", g.rand.IntN(logins)) }

func (g *game) uid() uint32 { return uidsFrom + g.rand.Uint32N(logins) }

// migrate has somebody come into a table, or go from it.
func (g *game) migrate(table map[string]uint32) {
	login, uid := g.login(), g.uid()
	if g.rand.IntN(2) == 0 {
		uid = 1000 + g.rand.Uint32N(logins)
	}
	if _, there := table[login]; there || len(table) > logins/5 {
		clear(table)
	} else if !g.elsewhere(login, uid) {
		table[login] = uid
	}
	g.people()
}

// elsewhere tells whether the directory has the name or the number: it has neither twice.
func (g *game) elsewhere(login string, uid uint32) bool {
	for _, table := range []map[string]uint32{g.directory, g.groups} {
		for name, have := range table {
			if name == login || have == uid {
				return true
			}
		}
	}
	return false
}

func (g *game) start() {
	s, err := store.Open(store.Config{Directory: filepath.Join(g.root, enforce.StateDir)})
	if err != nil {
		g.t.Fatal(err)
	}
	g.store = s
	g.recon, err = enforce.New(enforce.Config{
		Root: g.root, UIDs: s, Log: hclog.NewNullLogger(),
		Checker: sudoers.Checker{
			Sudo: "/usr/bin/sudo", Visudo: "/usr/sbin/visudo", Cvtsudoers: "/usr/bin/cvtsudoers",
			Sudoers: filepath.Join(g.root, "etc/sudoers"), Timeout: time.Minute,
		},
		Directory: account.Directory{
			Getent: filepath.Join(g.root, "usr/bin/getent"), Timeout: time.Minute,
		},
		Drift: func([]enforce.Repair) {},
	})
	if err != nil {
		g.t.Fatal(err)
	}
}

func (g *game) restart() {
	if err := errors.Join(g.recon.Close(), g.store.Close()); err != nil {
		g.t.Fatal(err)
	}
	g.start()
}

// cycle grants two accounts, judges what the host made of it, and takes them away again.
func (g *game) cycle(cycle int) {
	s := enforce.State{Mode: account.ModeEnforce, Rules: account.Rules{
		UIDMin: uidsFrom, UIDMax: uidsFrom + 99999999, HomeRoot: "/home", Shell: "/bin/bash",
	}}
	for range 2 {
		g.n++
		login, uid := g.login(), g.uid()
		if have, ok := g.uidOf[login]; ok && g.rand.IntN(2) == 0 {
			uid = have // what an honest control plane would say
		}
		s.Live = append(s.Live, grant.Live{
			ID:    grant.ID{byte(g.n >> 24), byte(g.n >> 16), byte(g.n >> 8), byte(g.n)},
			Terms: &curfewv1.Terms{RequestId: fmt.Sprintf("%012d", g.n), Login: login, Uid: uid},
			End:   time.Now().Add(time.Hour), BootDeadline: time.Hour,
		})
	}
	g.recon.Admit(context.Background(), s)
	results, err := g.recon.Apply(s)
	if err != nil {
		g.t.Fatalf("cycle %d: %v", cycle, err)
	}
	for _, r := range results {
		if r.Applied() {
			g.judge(cycle, r.Live.Terms.GetLogin(), r.Live.Terms.GetUid(), r)
		}
	}
	s.Live = nil
	if _, err := g.recon.Apply(s); err != nil {
		g.t.Fatalf("cycle %d: %v", cycle, err)
	}
}

func (g *game) judge(cycle int, login string, uid uint32, r enforce.Result) {
	g.given++
	wrong := func(format string, args ...any) {
		g.t.Helper()
		g.t.Fatalf("cycle %d: uid %d is applied to %s: %s", cycle, uid, login, fmt.Sprintf(format, args...))
	}
	if r.Subject.UID != uid || r.Subject.GID != uid || uid < uidsFrom {
		wrong("as %+v", r.Subject)
	}
	if owner, ok := g.owner[uid]; ok && owner != login {
		wrong("it was %s's", owner)
	}
	if have, ok := g.uidOf[login]; ok && have != uid {
		wrong("who had %d", have)
	}
	g.owner[uid], g.uidOf[login] = login, uid
	for what, table := range map[string]map[string]uint32{
		"host": g.local, "directory": g.directory, "directory's group": g.groups,
	} {
		for name, have := range table {
			if what == "host" && (name == login || have == uid) {
				wrong("the host has %s with %d", name, have)
			}
			if (name == login) != (have == uid) {
				wrong("the %s has %s with %d", what, name, have)
			}
		}
	}
}
