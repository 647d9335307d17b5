package enforce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/pace"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func TestGoldenTree(t *testing.T) {
	h := newHost(t)
	results := h.apply(state(
		live(1, "alice", withRule(restart), withGroups("web")),
		live(2, "alice"),
		live(3, "carol", withRule(&curfewv1.SudoRule{RunAs: "root", All: true})),
		live(4, "bob"),
	))
	for n, r := range results {
		if !r.Applied() {
			t.Errorf("grant %d: %s", n, r.Detail)
		}
	}
	want := fmt.Sprintf(`-- run/curfew drwxr-xr-x
-- run/curfew/keys drwxr-xr-x
-- run/curfew/keys/alice -rw-r--r--
expiry-time="20301124123015Z" %s
-- run/curfew/nss.db -rw-r--r--
-- run/curfew/sudoers.d drwxr-xr-x
-- run/curfew/sudoers.d/%s -r--r-----
# Curfew grant %s of request request00001. Written by curfew-agent, which undoes changes.
Defaults:alice pam_session, pam_acct_mgmt, use_pty, timestamp_timeout=0
alice ALL=(root) NOTAFTER=20301124123015Z NOPASSWD: /usr/bin/systemctl restart nginx.service
-- run/curfew/sudoers.d/%s -r--r-----
# Curfew grant %s of request request00003. Written by curfew-agent, which undoes changes.
Defaults:carol pam_session, pam_acct_mgmt, use_pty, timestamp_timeout=0
carol ALL=(ALL:ALL) NOTAFTER=20301124123015Z NOPASSWD: ALL
-- var/lib/curfew drwx------
-- var/lib/curfew/gate.conf -rw-------
curfew-gate 1
mode enforce
gated 1001 bob
elevate 1002 carol
exempt 1004 rescue
account 1900000097 alice
end
`, sshKey('a'), grant.ID{1}, grant.ID{1}, grant.ID{3}, grant.ID{3})
	if got := h.tree(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	// The end of everything is the same code with nothing to render.
	h.apply(state())
	empty := `-- run/curfew drwxr-xr-x
-- run/curfew/keys drwxr-xr-x
-- run/curfew/nss.db -rw-r--r--
-- run/curfew/sudoers.d drwxr-xr-x
-- var/lib/curfew drwx------
-- var/lib/curfew/gate.conf -rw-------
curfew-gate 1
mode enforce
gated 1001 bob
elevate 1002 carol
exempt 1004 rescue
account 1900000097 alice
end
`
	if got := h.tree(); got != empty {
		t.Errorf("after the end\n%s\nwant\n%s", got, empty)
	}
	if d := h.takeDrift(); len(d) != 0 {
		t.Errorf("the agent took its own work for drift: %v", d)
	}
}

func TestAGrantFailsAlone(t *testing.T) {
	group := func(name string) func(*curfewv1.Terms) { return withGroups(name) }
	rule := func(r *curfewv1.SudoRule) func(*curfewv1.Terms) { return withRule(r) }
	uid := func(n uint32) func(*curfewv1.Terms) { return func(t *curfewv1.Terms) { t.Uid = n } }
	key := func(s string) func(*curfewv1.Terms) {
		return func(t *curfewv1.Terms) { t.AuthorizedKeys = []string{s} }
	}
	tests := map[string]struct {
		bad  grant.Live
		want string
	}{
		"unmanaged local user": {live(9, "dave"), "list it in gated_users or elevate_users"},
		"root":                 {live(9, "root"), "is not managed by Curfew"},
		"foreign uid":          {live(9, "eve", uid(1001)), "outside this host's range"},
		"another's uid":        {live(9, "eve", uid(1900000097)), "belongs to alice"},
		"name of a group":      {live(9, "docker"), "name of a local group"},
		"unknown group":        {live(9, "eve", group("nowhere")), "does not exist"},
		"group root":           {live(9, "eve", group("root")), "gid 0"},
		"group docker by another name": {
			live(9, "eve", group("helpers")),
			"has the gid of docker, which is root-equivalent",
		},
		"group of a local": {live(9, "bob", group("web")), "Curfew accounts only"},
		"missing command": {live(9, "eve", rule(
			&curfewv1.SudoRule{RunAs: "root", Command: "/usr/bin/none"})), "no such file"},
		"unknown target": {live(9, "eve", rule(
			&curfewv1.SudoRule{RunAs: "nobody-here", Command: "/usr/bin/systemctl"})), "no user"},
		"injected argument": {live(9, "eve", rule(&curfewv1.SudoRule{
			RunAs: "root", Command: "/usr/bin/systemctl", Args: []string{"x\nALL ALL=ALL"},
		})), "refused"},
		"injected key": {live(9, "eve", key("command=\"x\" "+sshKey(1))), "carries options"},
	}
	for name, tt := range tests {
		h := newHost(t)
		good := live(1, "alice", withRule(restart))
		alone := h.apply(state(good))
		if !alone[1].Applied() {
			t.Fatalf("the good one: %s", alone[1].Detail)
		}
		before := h.tree()
		results := h.apply(state(good, tt.bad))
		r := results[9]
		if r.Applied() || !strings.Contains(r.Detail, tt.want) {
			t.Errorf("%s: %v %q, want %q", name, r.Status, r.Detail, tt.want)
		}
		if !results[1].Applied() {
			t.Errorf("%s: the good one fails too: %s", name, results[1].Detail)
		}
		after := h.tree()
		// A uid that was reserved stays known to the gate; nothing else may be new.
		after = strings.Replace(after, "account 1900000101 eve\n", "", 1)
		if after != before {
			t.Errorf("%s: something of the failed grant stays:\n%s", name, after)
		}
	}
}

func TestStandingRulesAreRefusedInEnforceAndNamedInObserve(t *testing.T) {
	h := newHost(t)
	h.write("etc/sudoers.d/local", "carol ALL=(root) NOPASSWD: /usr/bin/id\n", 0o440)
	s := state(live(1, "carol", withRule(restart)))
	if r := h.apply(s)[1]; r.Applied() || !strings.Contains(r.Detail, "standing sudo rule") {
		t.Errorf("enforce: %v %q", r.Status, r.Detail)
	}
	if h.exists(dropinPath(1)) {
		t.Error("a drop-in was written all the same")
	}
	s.Mode = account.ModeObserve
	h.r.Retry()
	if r := h.apply(s)[1]; !r.Applied() {
		t.Errorf("observe: %q", r.Detail)
	}
	if p := h.r.Problems(); len(p) != 1 || !strings.Contains(p[0], "/usr/bin/id") {
		t.Errorf("problems %q", p)
	}
	s.Mode = account.ModeEnforce
	h.r.Admit(context.Background(), s)
	if r := h.apply(s)[1]; r.Applied() {
		t.Error("enforce again: the standing rule is forgotten")
	}
}

func TestAppliedMeansThatSudoReadsIt(t *testing.T) {
	h := newHost(t)
	if err := os.Remove(h.path("etc/sudoers.d/curfew")); err != nil {
		t.Fatal(err)
	}
	s := state(live(1, "alice", withRule(restart)), live(2, "eve"))
	results := h.apply(s)
	if r := results[1]; r.Applied() || !strings.Contains(r.Detail, "sudo does not read") {
		t.Errorf("%v %q", r.Status, r.Detail)
	}
	if h.exists(dropinPath(1)) || h.exists(KeysDir+"/alice") {
		t.Error("something of the failed grant stays")
	}
	if !results[2].Applied() {
		t.Errorf("the login without sudo: %q", results[2].Detail)
	}
	h.write("etc/sudoers.d/curfew", "@includedir "+h.path(SudoersDir)+"\n", 0o440)
	h.r.Retry()
	if r := h.apply(s)[1]; !r.Applied() {
		t.Errorf("after mending: %q", r.Detail)
	}
}

// A9: a name or uid that is somebody's in a directory elsewhere is not given away, and an account that
// programs do not find is not "applied".
func TestTheHostsNameServiceAgrees(t *testing.T) {
	h := newHost(t)
	h.write("etc/directory", "eve:x:5001:5001::/nfs/eve:/bin/sh\n"+
		"zoe:x:1900000104:1900000104::/nfs/zoe:/bin/sh\n", 0o644)
	results := h.apply(state(live(1, "alice"), live(2, "eve"), live(5, "heidi")))
	if r := results[5]; r.Applied() || !strings.Contains(r.Detail, "belongs to zoe") {
		t.Errorf("a uid of the directory's: %v %q", r.Status, r.Detail)
	}
	if r := results[2]; r.Applied() || !strings.Contains(r.Detail, "somebody with uid 5001") {
		t.Errorf("a login of the directory's: %v %q", r.Status, r.Detail)
	}
	if !results[1].Applied() {
		t.Errorf("the other one: %q", results[1].Detail)
	}
	h.write("usr/bin/getent", "#!/bin/sh\nexit 2\n", 0o755)
	if r := h.apply(state(live(3, "frank")))[3]; r.Applied() ||
		!strings.Contains(r.Detail, "/etc/nsswitch.conf") {
		t.Errorf("nobody finds the account: %v %q", r.Status, r.Detail)
	}
	if h.exists(KeysDir + "/frank") {
		t.Error("something of the failed grant stays")
	}
	h.r.cfg.Directory.Timeout = 200 * time.Millisecond
	h.write("usr/bin/getent", "#!/bin/sh\nexec sleep 60\n", 0o755)
	if r := h.apply(state(live(4, "grace")))[4]; r.Applied() ||
		!strings.Contains(r.Detail, "does not answer") {
		t.Errorf("a hanging directory: %v %q", r.Status, r.Detail)
	}
}

// F10: without an honest visudo nothing is applied, and everything is still taken away.
func TestPurgeNeedsNoVisudo(t *testing.T) {
	h := newHost(t)
	s := state(live(1, "alice", withRule(restart)))
	if r := h.apply(s)[1]; !r.Applied() {
		t.Fatal(r.Detail)
	}
	h.r = h.restarted()
	results := h.apply(state(s.Live[0], live(2, "eve", withRule(restart))))
	if results[2].Applied() || !results[1].Applied() {
		t.Errorf("new %v, old %v (%s)", results[2].Status, results[1].Status, results[1].Detail)
	}
	h.apply(state())
	if h.exists(dropinPath(1)) || h.exists(KeysDir+"/alice") {
		t.Error("the purge did not happen")
	}
}

func TestEndingAccountKeepsOnlyItsName(t *testing.T) {
	in := Input{
		Ending: []Ending{{Login: "alice", UID: 1900000097}, {Login: "bob", UID: 1900000098}},
		Mode:   account.ModeEnforce, Rules: rules(),
		Local: account.Local{Users: []account.LocalUser{{Name: "bob", UID: 1001}}},
		UIDs:  map[string]uint32{"alice": 1900000097},
	}
	d := desired{in: in}
	accounts := d.accounts(nil)
	if len(accounts) != 1 {
		t.Fatalf("%+v", accounts)
	}
	a := accounts[0]
	if a.Login != "alice" || a.Shell != nologin || len(a.Groups) != 0 || a.WallDeadline.After(end) {
		t.Errorf("%+v", a)
	}
}

func TestRecordEndsWithTheFirstGrantThatGivesGroups(t *testing.T) {
	d := desired{in: Input{
		Rules: rules(),
		Local: account.Local{Groups: []account.LocalGroup{
			{Name: UsersGroup, GID: 990}, {Name: "web", GID: 1500},
		}},
	}}
	subject := account.Subject{Class: account.ClassAccount, Login: "alice", UID: 1900000097}
	long, short := live(1, "alice"), live(2, "alice", withGroups("web"))
	short.End, short.BootDeadline = end.Add(-time.Minute), 4*time.Hour
	later := live(3, "alice", withGroups("web"))
	later.End, later.BootDeadline = end.Add(-time.Second), 5*time.Hour
	a, err := d.account([]Result{
		{Live: long, Subject: subject}, {Live: short, Subject: subject}, {Live: later, Subject: subject},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !a.WallDeadline.Equal(short.End) || a.BootDeadline != 4*time.Hour ||
		!slices.Equal(a.Groups, []uint32{990, 1500}) {
		t.Errorf("%+v", a)
	}
	a, err = d.account([]Result{{Live: long, Subject: subject}})
	if err != nil || !a.WallDeadline.Equal(end) {
		t.Errorf("without groups: %+v, %v", a, err)
	}
}

// A8: whatever stands in our folders is replaced, never followed, and nothing hangs.
func TestStrangeThingsInOurFolders(t *testing.T) {
	h := newHost(t)
	s := state(live(1, "alice", withRule(restart)))
	h.apply(s)
	want := h.tree()
	outside := h.path("outside")
	h.write("outside", "untouched", 0o600)
	if err := os.Mkdir(h.path("folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.write("folder/file", "untouched", 0o600)
	file := h.path(dropinPath(1))
	must := func(errs ...error) {
		t.Helper()
		if err := cmp.Or(errs...); err != nil {
			t.Fatal(err)
		}
	}
	swaps := map[string]func(){
		"link in the file's place": func() { must(os.Remove(file), os.Symlink(outside, file)) },
		"hard link": func() {
			must(os.Remove(file), os.Link(outside, file))
		},
		"same content, two names": func() { must(os.Link(file, h.path("second"))) },
		"pipe": func() {
			must(os.Remove(file), mkfifo(file))
		},
		"folder in the file's place": func() {
			must(os.Remove(file), os.MkdirAll(file+"/a/b", 0o755))
			must(os.WriteFile(file+"/a/b/c", nil, 0o600), os.Symlink(outside, file+"/a/l"))
		},
		"link to a folder in the folder's place": func() {
			must(os.RemoveAll(h.path(SudoersDir)), os.Symlink(h.path("folder"), h.path(SudoersDir)))
		},
		"file in the folder's place": func() {
			must(os.RemoveAll(h.path(SudoersDir)), os.WriteFile(h.path(SudoersDir), nil, 0o644))
		},
		"pipe in the folder's place": func() {
			must(os.RemoveAll(h.path(KeysDir)), mkfifo(h.path(KeysDir)))
		},
		"foreign drop-in": func() {
			h.write(SudoersDir+"/zz", "alice ALL=(ALL) NOPASSWD: ALL\n", 0o440)
		},
		"link at the temporary name": func() {
			must(os.Remove(file))
			must(os.Symlink(outside, h.path(SudoersDir+"/."+filepath.Base(file)+".new")))
		},
		"folder at the temporary name": func() {
			must(os.Remove(file))
			must(os.MkdirAll(h.path(SudoersDir+"/."+filepath.Base(file)+".new/x"), 0o755))
		},
		"loose mode":    func() { must(os.Chmod(file, 0o666)) },
		"foreign owner": func() { must(os.Chown(file, 1001, 1001)) },
		"loose folder":  func() { must(os.Chmod(h.path(SudoersDir), 0o777)) },
		"loose snapshot": func() {
			must(os.Chmod(h.path(RunDir+"/"+Snapshot), 0o666))
		},
		"snapshot gone": func() { must(os.Remove(h.path(RunDir + "/" + Snapshot))) },
		"gate table cut": func() {
			must(os.Truncate(h.path(StateDir+"/"+GateTable), 5))
		},
	}
	for name, swap := range swaps {
		swap()
		done := make(chan struct{})
		go func() { defer close(done); h.r.Repair() }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: the repair hangs", name)
		}
		if got := h.tree(); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
		}
		if len(h.takeDrift()) == 0 && name != "loose folder" {
			t.Errorf("%s: not reported", name)
		}
	}
	for _, f := range []string{"outside", "folder/file"} {
		if data, err := os.ReadFile(h.path(f)); err != nil || string(data) != "untouched" {
			t.Errorf("%s was followed: %q, %v", f, data, err)
		}
	}
}

// Drift is put right within 100 ms and reported.
func TestDriftIsPutRight(t *testing.T) {
	h := newHost(t)
	h.apply(state(live(1, "alice", withRule(restart))))
	want := h.tree()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	time.Sleep(100 * time.Millisecond) // the watch begins
	file := h.path(dropinPath(1))
	for name, drift := range map[string]func() error{
		"altered": func() error { return os.WriteFile(file, []byte("alice ALL=(ALL) ALL\n"), 0o440) },
		"deleted": func() error { return os.Remove(file) },
		"added": func() error {
			return os.WriteFile(h.path(SudoersDir+"/extra"), []byte("bob ALL=(ALL) ALL\n"), 0o440)
		},
		"mode": func() error { return os.Chmod(file, 0o777) },
		"folder removed": func() error {
			if err := os.RemoveAll(h.path(SudoersDir)); !errors.Is(err, syscall.ENOTEMPTY) {
				return err
			}
			return nil // it was put right under our hands
		},
		"folder moved": func() error {
			return os.Rename(h.path(KeysDir), filepath.Join(t.TempDir(), "elsewhere"))
		},
		"snapshot": func() error { return os.Truncate(h.path(RunDir+"/"+Snapshot), 0) },
		"gate":     func() error { return os.Remove(h.path(StateDir + "/" + GateTable)) },
	} {
		// The machine may be busy with something else once, not three times.
		var took time.Duration
		for try := 0; try == 0 || took > 100*time.Millisecond && try < 3; try++ {
			start, watch := time.Now(), pace.Start()
			if err := drift(); err != nil {
				t.Fatal(err)
			}
			for h.tree2() != want && time.Since(start) < 20*time.Second {
				time.Sleep(2 * time.Millisecond)
			}
			took = watch.Elapsed()
		}
		if took > 100*time.Millisecond {
			t.Errorf("%s: put right after %v", name, took)
		}
		reported := false // it follows the repair
		for try := 0; try < 500 && !reported; try++ {
			time.Sleep(20 * time.Millisecond)
			reported = len(h.takeDrift()) > 0
		}
		if !reported {
			t.Errorf("%s: not reported", name)
		}
	}
	if h.r.DriftRepaired() == 0 {
		t.Error("drift was not counted")
	}
}

// tree2 is tree, or nothing while files come and go under the walk.
func (h *host) tree2() (s string) {
	for _, dir := range []string{RunDir, SudoersDir, KeysDir, StateDir} {
		if _, err := os.ReadDir(h.path(dir)); err != nil {
			return ""
		}
	}
	probe := &host{t: &testing.T{}, root: h.root}
	done := make(chan struct{})
	go func() { defer close(done); s = probe.tree() }() // Fatal ends this goroutine only
	<-done
	return s
}
