package gate

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/internal/gatewire"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const (
	uidAlice = 1900000001 // a Curfew account
	uidGus   = 1001       // gated
	uidCarol = 1002       // elevates only
	uidRita  = 1003       // break-glass
	uidLou   = 1004       // nobody of Curfew's

	aliceKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2Mn+rQb0yNn9wC0yH9T8B2vmT9wR7eOoJkCkZ8sJ0L"
	otherKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
)

var logins = map[string]uint32{
	"alice": uidAlice, "gus": uidGus, "carol": uidCarol, "rita": uidRita, "lou": uidLou, "root": 0,
	"www-data": 33,
}

var noon = grant.Clock{
	Wall: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC), Boot: time.Hour, BootID: "b",
}

// live makes a grant that ends after a time, for a login, with or without login and sudo.
func live(request, login string, lasts time.Duration, allowLogin, sudo bool) grant.Live {
	terms := &curfewv1.Terms{
		RequestId: request, Login: login, Role: "ops", AllowLogin: allowLogin,
		AuthorizedKeys: []string{aliceKey},
	}
	if sudo {
		terms.SudoRules = []*curfewv1.SudoRule{{RunAs: "root", Command: "/usr/bin/id"}}
	}
	return grant.Live{
		ID: grant.ID{request[0]}, Terms: terms, Start: noon.Wall.Add(-time.Hour),
		End: noon.Wall.Add(lasts), BootDeadline: noon.Boot + lasts,
	}
}

func table(grants ...grant.Live) *Table {
	t := &Table{Mode: account.ModeEnforce, Live: grants, People: []account.Principal{
		{Class: account.ClassAccount, UID: uidAlice, Name: "alice"},
		{Class: account.ClassGated, UID: uidGus, Name: "gus"},
		{Class: account.ClassElevate, UID: uidCarol, Name: "carol"},
		{Class: account.ClassExempt, UID: uidRita, Name: "rita"},
	}}
	t.index()
	return t
}

// ask is a question by a process: for sudo and su the caller's real uid is the login's, else root's.
func ask(service, login string) question {
	q := question{
		Request: gatewire.Request{Op: gatewire.OpAccount, Service: service, User: login},
		pid:     4711, now: noon,
	}
	if byRealUID[service] {
		q.User = "root"
		q.uid = logins[login]
		q.UID = logins[login]
	}
	return q
}

// TestWhoIsGated is the table of DESIGN, row by row: without a grant, with one for logins, with one
// for sudo.
func TestWhoIsGated(t *testing.T) {
	const pass, deny, allow = gatewire.Ignore, gatewire.Deny, gatewire.Allow
	for service, rows := range map[string]map[string][3]gatewire.Verdict{
		"sshd": {
			"alice": {deny, allow, deny}, "gus": {deny, allow, deny}, "carol": {pass, pass, pass},
			"rita": {pass, pass, pass}, "lou": {pass, pass, pass}, "root": {pass, pass, pass},
		},
		"login": {"alice": {deny, allow, deny}, "gus": {deny, allow, deny}, "carol": {pass, pass, pass}},
		"sudo": {
			"alice": {deny, deny, allow}, "gus": {deny, deny, allow}, "carol": {deny, deny, allow},
			"rita": {pass, pass, pass}, "lou": {pass, pass, pass}, "root": {pass, pass, pass},
			"www-data": {pass, pass, pass},
		},
		"sudo-i": {"alice": {deny, deny, allow}, "carol": {deny, deny, allow}, "lou": {pass, pass, pass}},
		"su":     {"alice": {deny, allow, deny}, "gus": {deny, allow, deny}, "carol": {pass, pass, pass}},
		"su-l":   {"alice": {deny, allow, deny}, "root": {pass, pass, pass}},
		"cron":   {"alice": {deny, deny, deny}, "gus": {deny, allow, deny}, "carol": {pass, pass, pass}},
		"crond":  {"alice": {deny, deny, deny}},
		"atd":    {"alice": {deny, deny, deny}, "root": {pass, pass, pass}},
		"systemd-user": {
			"alice": {deny, allow, deny}, "carol": {pass, pass, pass}, "root": {pass, pass, pass},
		},
		"polkit-1":   {"alice": {deny, allow, deny}, "gus": {deny, allow, deny}, "lou": {pass, pass, pass}},
		"everything": {"alice": {deny, allow, deny}},
	} {
		for login, want := range rows {
			for i, grants := range [][]grant.Live{
				nil,
				{live("aaaaaaaaaaaa", login, time.Hour, true, false)},
				{live("aaaaaaaaaaaa", login, time.Hour, false, true)},
			} {
				d := decide(table(grants...), "web1", ask(service, login))
				if d.verdict != want[i] {
					t.Errorf("%s of %s with grant %d: %v, want %v", service, login, i, d.verdict, want[i])
				}
				if d.verdict == deny && (strings.Contains(d.text, "\n") || d.why == "") {
					t.Errorf("%s of %s: text %q, why %q", service, login, d.text, d.why)
				}
			}
		}
	}
}

func TestDenialSaysWhatToType(t *testing.T) {
	d := decide(table(), "web1", ask("sshd", "gus"))
	want := `Curfew: gus has no access to web1 now: no live grant. Ask for it: ` +
		`curfew request web1 --role ROLE --for 1h --reason "…"`
	if d.text != want {
		t.Errorf("text %q\nwant %q", d.text, want)
	}
	if clean := gatewire.CleanText(d.text); clean != d.text {
		t.Errorf("on the wire %q", clean)
	}
}

// A table may be older than a deadline: whichever clock ends a grant first ends it.
func TestDeadlineEndsAccessWithoutNewTable(t *testing.T) {
	over := live("aaaaaaaaaaaa", "alice", time.Hour, true, true)
	for name, edit := range map[string]func(*question){
		"wall": func(q *question) { q.now.Wall = over.End },
		"boot": func(q *question) { q.now.Boot = over.BootDeadline },
	} {
		q := ask("sshd", "alice")
		edit(&q)
		if d := decide(table(over), "web1", q); d.verdict != gatewire.Deny {
			t.Errorf("at the %s deadline: %v", name, d.verdict)
		}
		q.now.Wall, q.now.Boot = q.now.Wall.Add(-1), q.now.Boot-1
		if d := decide(table(over), "web1", q); d.verdict != gatewire.Allow {
			t.Errorf("right before the %s deadline: %v", name, d.verdict)
		}
	}
}

func TestNothingNewOpensWhenTheHostMayNot(t *testing.T) {
	tb := table(live("aaaaaaaaaaaa", "alice", time.Hour, true, true))
	tb.MayOpen = errors.New("the host has not heard from the control plane for too long")
	for _, service := range []string{"sshd", "sudo", "login", "su"} {
		d := decide(tb, "web1", ask(service, "alice"))
		if d.verdict != gatewire.Deny || !strings.Contains(d.text, "not heard") {
			t.Errorf("%s: %v %q", service, d.verdict, d.text)
		}
	}
	// su inside a session that runs is no new access.
	q := ask("su", "alice")
	q.owner = "aaaaaaaaaaaa"
	if d := decide(tb, "web1", q); d.verdict != gatewire.Allow {
		t.Errorf("su in a running session: %v %q", d.verdict, d.text)
	}
}

func TestForgedUIDIsDenied(t *testing.T) {
	q := ask("sudo", "carol")
	q.UID = uidLou
	if d := decide(table(), "web1", q); d.verdict != gatewire.Deny {
		t.Errorf("a message of lou's from carol's process: %v", d.verdict)
	}
	q = ask("sudo", "root")
	q.uid = uidCarol
	if d := decide(table(), "web1", q); d.verdict != gatewire.Deny {
		t.Errorf("a message of root's from carol's process: %v", d.verdict)
	}
}

// su opens the target as well: a stranger does not become a gated person without a grant of theirs.
func TestSuIsAnAccessToTheTarget(t *testing.T) {
	q := ask("su", "lou")
	q.User = "gus"
	if d := decide(table(), "web1", q); d.verdict != gatewire.Deny || d.person.Login != "gus" {
		t.Errorf("lou becomes gus: %v of %s", d.verdict, d.person.Login)
	}
	gus := live("aaaaaaaaaaaa", "gus", time.Hour, true, false)
	if d := decide(table(gus), "web1", q); d.verdict != gatewire.Allow {
		t.Errorf("lou becomes gus inside a grant: %v", d.verdict)
	}
	q = ask("su", "rita")
	q.User = "gus"
	if d := decide(table(), "web1", q); d.verdict != gatewire.Ignore {
		t.Errorf("break-glass becomes gus: %v", d.verdict)
	}
	q = ask("su", "alice")
	q.User = "gus"
	alice := live("bbbbbbbbbbbb", "alice", time.Hour, true, false)
	if d := decide(table(alice), "web1", q); d.verdict != gatewire.Deny || d.person.Login != "gus" {
		t.Errorf("alice becomes gus: %v of %s", d.verdict, d.person.Login)
	}
	if d := decide(table(gus), "web1", q); d.verdict != gatewire.Deny || d.person.Login != "alice" {
		t.Errorf("alice without a grant becomes gus: %v of %s", d.verdict, d.person.Login)
	}
}

func TestKeyBindsTheLoginToItsGrant(t *testing.T) {
	first := live("aaaaaaaaaaaa", "alice", time.Hour, true, false)
	second := live("bbbbbbbbbbbb", "alice", 2*time.Hour, true, false)
	second.Terms.AuthorizedKeys = []string{otherKey}
	tb := table(first, second)
	open := func(authInfo string) decision {
		q := ask("sshd", "alice")
		q.Op, q.AuthInfo = gatewire.OpOpenSession, authInfo
		return decide(tb, "web1", q)
	}
	if d := open("publickey " + aliceKey + "\n"); d.grant.ID != first.ID {
		t.Errorf("the first key opens %s", d.grant.Terms.GetRequestId())
	} else if d.text != "Curfew: access as ops on web1 until 13:00 UTC (in 1h)." {
		t.Errorf("greeting %q", d.text)
	}
	first.Terms.RootEquivalent = true
	if d := open("publickey " + aliceKey); !strings.HasPrefix(d.text, "Curfew: root-equivalent access as") {
		t.Errorf("greeting %q", d.text)
	}
	if d := open("password\npublickey " + otherKey); d.grant.ID != second.ID {
		t.Errorf("the second key opens %s", d.grant.Terms.GetRequestId())
	}
	for _, info := range []string{
		"", "password\n", "publickey " + aliceKey[:40], "publickey", "hostbased " + aliceKey + "\n",
		"publickey ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB\n",
	} {
		if d := open(info); d.verdict != gatewire.Deny || d.grant.Terms != nil {
			t.Errorf("with %q: %v", info, d.verdict)
		}
	}
}

// An elevation belongs to the session's own grant when that has a rule, else to the one that ends
// first.
func TestElevationBelongsToOneGrant(t *testing.T) {
	tb := table(live("aaaaaaaaaaaa", "alice", 3*time.Hour, true, false),
		live("bbbbbbbbbbbb", "alice", 2*time.Hour, false, true),
		live("cccccccccccc", "alice", time.Hour, false, true))
	for owner, want := range map[string]string{
		"": "cccccccccccc", "aaaaaaaaaaaa": "cccccccccccc", "bbbbbbbbbbbb": "bbbbbbbbbbbb",
		"cccccccccccc": "cccccccccccc", "dddddddddddd": "cccccccccccc",
	} {
		q := ask("sudo", "alice")
		q.owner = owner
		if d := decide(tb, "web1", q); d.grant.Terms.GetRequestId() != want {
			t.Errorf("from a session of %q: %s, want %s", owner, d.grant.Terms.GetRequestId(), want)
		}
	}
}

func TestDenialsAreBounded(t *testing.T) {
	n, now, recorded := newDenials(), noon, 0
	for range 1000 {
		if _, ok := n.next("carol", now); ok {
			recorded++
		}
	}
	if recorded != denialBurst {
		t.Errorf("%d of 1000 denials at once were recorded, want %d", recorded, denialBurst)
	}
	if _, ok := n.next("alice", now); !ok {
		t.Error("carol's denials silence alice's")
	}
	now.Boot += denialWindow
	if skipped, ok := n.next("carol", now); !ok || skipped != 1000-denialBurst {
		t.Errorf("a minute later %v with %d unrecorded", ok, skipped)
	}
	for i := range 2 * maxDenied {
		n.next(fmt.Sprint(i), now)
	}
	if len(n.byLogin) > maxDenied {
		t.Errorf("%d logins are counted", len(n.byLogin))
	}
}
