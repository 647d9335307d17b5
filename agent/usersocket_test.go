package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/curfew-access/curfew/agent/enforce"
)

func TestUserAndRootEndWhatACodeOpened(t *testing.T) {
	m := newMachine(t)
	m.glass()
	set := m.codes(2)
	m.away()
	end := func(uid uint32, login string) (ended []string, err error) {
		errDo := m.half.owner.do(t.Context(), func(ctx context.Context) {
			ended, err = m.half.owner.endLocal(ctx, uid, login)
		})
		return ended, errors.Join(errDo, err)
	}
	if _, err := end(bob, ""); err == nil {
		t.Error("nothing was ended")
	}
	for i, uid := range []uint32{bob, 0} {
		opened, err := m.use(bob, bobs(set.Codes[i]))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := end(1234, ""); err == nil {
			t.Error("a stranger ends it")
		}
		ended, err := end(uid, "")
		if err != nil || len(ended) != 1 || ended[0] != opened.Request || m.has(m.dropin(opened.id)) {
			t.Errorf("uid %d: %v, %v", uid, ended, err)
		}
	}
}

// Who is asked is the kernel's to say, and one person keeps nobody else out.
func TestUserSocketIsForEverybodyAndNobodyHoldsIt(t *testing.T) {
	m := newMachine(t)
	m.glass()
	set := m.codes(1)
	m.away()
	socket := m.path("run/curfew/" + UserSocket)
	var held []net.Conn
	for range 10 { // root's own connections, which say nothing
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	defer func() {
		for _, c := range held {
			_ = c.Close()
		}
	}()
	line, err := json.Marshal(userRequest{Verb: "break-glass", Use: &CodeUse{
		Code: set.Codes[0].String(), Reason: "INC-7",
	}})
	if err != nil {
		t.Fatal(err)
	}
	asks := func(uid uint32, text string) string {
		cmd := runAs(uid, "/usr/bin/perl", "-MIO::Socket::UNIX", "-e",
			`my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die $!; print $s "$ARGV[1]\n"; $s->flush;
print <$s>;`, socket, text)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("uid %d: %v: %s", uid, err, out)
		}
		return string(out)
	}
	if got := asks(1234, string(line)); !strings.Contains(got, "people whom Curfew manages") {
		t.Errorf("a stranger is told %s", got)
	}
	for _, junk := range []string{"", "{}", "null", `{"verb":"break-glass"}`, `{"verb":"status"}`, "\x01\xff"} {
		if got := asks(bob, junk); !strings.Contains(got, `"error"`) {
			t.Errorf("%q is answered %s", junk, got)
		}
	}
	if got := asks(bob, string(line)); !strings.Contains(got, `"login":"bob"`) {
		t.Errorf("bob is told %s", got)
	}
}

// One code, many hands at once: it opens one grant.
func TestOneCodeUsedByManyAtOnceOpensOneGrant(t *testing.T) {
	m := newMachine(t)
	m.glass()
	set := m.codes(1)
	m.away()
	var opened, refused int
	var mu sync.Mutex
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			_, err := m.use(bob, bobs(set.Codes[0]))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				opened++
			} else {
				refused++
			}
		})
	}
	all.Wait()
	if opened != 1 || refused != 7 {
		t.Errorf("%d opened, %d refused", opened, refused)
	}
	entries, err := filepath.Glob(m.path(enforce.SudoersDir + "/*"))
	if err != nil || len(entries) != 1 {
		t.Errorf("rules: %v, %v", entries, err)
	}
}
