package account

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func localRoot(t *testing.T, passwd, group string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const testPasswd = `# a comment
root:x:0:0:root:/root:/bin/bash
bob:x:1001:1001:Bob,,,:/home/bob:/bin/bash
+nis
broken:x:abc:1:::
short:x:1
huge:x:99999999999:1:::/x
carol:x:1002:1500::/home/carol:/bin/zsh
rescue:x:1004:1004::/home/rescue:/bin/bash
glass:x:1005:991::/home/glass:/bin/bash
`

const testGroup = `root:x:0:
web:x:1500:bob, carol
curfew-breakglass:x:991:rescue
bob:x:1001:
broken:x:
`

func TestReadLocal(t *testing.T) {
	l, err := ReadLocal(localRoot(t, testPasswd, testGroup))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, u := range l.Users {
		names = append(names, u.Name)
	}
	if want := []string{"root", "bob", "carol", "rescue", "glass"}; !slices.Equal(names, want) {
		t.Errorf("users %q, want %q", names, want)
	}
	bob, _ := l.User("bob")
	groups, gids := l.GroupsOf(bob)
	if !slices.Equal(groups, []string{"web", "bob"}) || !slices.Equal(gids, []uint32{1500, 1001}) {
		t.Errorf("bob's groups %q %v", groups, gids)
	}
	var members []string
	for _, u := range l.MembersOf("curfew-breakglass") {
		members = append(members, u.Name)
	}
	if !slices.Equal(members, []string{"rescue", "glass"}) {
		t.Errorf("break-glass: %q", members)
	}
	if l.MembersOf("none") != nil {
		t.Error("a missing group has members")
	}
}

func TestReadLocalRefusesStrangeFiles(t *testing.T) {
	root := localRoot(t, testPasswd, testGroup)
	passwd := filepath.Join(root, "etc/passwd")
	if err := os.Remove(passwd); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadLocal(root); err == nil {
		t.Error("a missing passwd is an empty one: everybody would look unmanaged")
	}
	if err := unix.Mkfifo(passwd, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadLocal(root); err == nil {
		t.Error("a pipe is read")
	}
}

func testRules() Rules {
	return Rules{
		Gated: []string{"bob", "ghost"}, Elevate: []string{"carol", "rescue", "root"},
		BreakGlass: "curfew-breakglass", UIDMin: 1900000000, UIDMax: 1999999999, HomeRoot: "/home",
		Shell: "/bin/bash",
	}
}

func TestClassify(t *testing.T) {
	l, err := ReadLocal(localRoot(t, testPasswd, testGroup))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		login string
		uid   uint32
		want  Class
		err   string
	}{
		{"alice", 1900000001, ClassAccount, ""},
		{"bob", 1900000002, ClassGated, ""},
		{"carol", 1900000002, ClassElevate, ""},
		{"glass", 1900000002, 0, "list it in gated_users or elevate_users of /etc/curfew/agent.yaml"},
		{"rescue", 1900000002, 0, "break-glass group"},
		{"root", 1900000002, 0, "system uid"},
		{"ghost", 1900000002, 0, "does not exist in /etc/passwd"},
		{"alice", 1001, 0, "outside this host's range"},
		{"alice", 0, 0, "outside this host's range"},
		{"alice", 2000000000, 0, "outside this host's range"},
		{"web", 1900000001, 0, "name of a local group"},
	}
	for _, tt := range tests {
		got, err := testRules().Classify(l, tt.login, tt.uid)
		if got.Class != tt.want || (err == nil) != (tt.err == "") ||
			err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s, uid %d: %v, %v; want %v %q", tt.login, tt.uid, got.Class, err, tt.want, tt.err)
		}
	}
	l.Users = append(l.Users, LocalUser{Name: "x", UID: 1900000001})
	l.Groups = append(l.Groups, LocalGroup{Name: "y", GID: 1900000002})
	for uid, want := range map[uint32]string{1900000001: "local user x", 1900000002: "local group y"} {
		if _, err := testRules().Classify(l, "alice", uid); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("uid %d: %v, want %q", uid, err, want)
		}
	}
}

func TestPrincipals(t *testing.T) {
	l, err := ReadLocal(localRoot(t, testPasswd, testGroup))
	if err != nil {
		t.Fatal(err)
	}
	got, problems := testRules().Principals(l, map[string]uint32{
		"alice": 1900000001, // an account, live or not
		"glass": 1900000003, // exists locally since: no longer Curfew's
		"eve":   1001,       // a uid that is a local user's now
	})
	slices.SortFunc(got, func(a, b Principal) int { return strings.Compare(a.Name, b.Name) })
	want := []Principal{
		{ClassAccount, 1900000001, "alice"},
		{ClassGated, 1001, "bob"},
		{ClassElevate, 1002, "carol"},
		{ClassExempt, 1005, "glass"},
		{ClassExempt, 1004, "rescue"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if len(problems) != 2 { // ghost is missing, root is a system user
		t.Errorf("problems %q", problems)
	}
	for _, mode := range []Mode{ModeObserve, ModeEnforce} {
		if _, err := RenderGateTable(mode, nil, got); err != nil {
			t.Error(err)
		}
	}
}
