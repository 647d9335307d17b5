package controlplane_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/controlplane/notify"
	"github.com/curfew-access/curfew/internal/breakglass/seal"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/mailtest"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// codes makes the host hand in a fresh set of n codes, sealed to the approvers of its trust file.
func (m *host) codes(n int) *seal.Set {
	m.h.t.Helper()
	return m.codesOf(n, "")
}

// codesOf is codes, sealed to one of them.
func (m *host) codesOf(n int, only string) *seal.Set {
	m.h.t.Helper()
	m.mu.Lock()
	trust, id := *m.ledger.Trust(), m.ledger.Host()
	m.mu.Unlock()
	trust.Approvers = slices.DeleteFunc(slices.Clone(trust.Approvers), func(a grant.Approver) bool {
		return only != "" && a.Name != only
	})
	to, err := seal.Custodians(&trust, nil)
	must(m.h.t, err)
	set, err := seal.Draw(id, n, &to, time.Now(), rand.Reader)
	must(m.h.t, err)
	m.say <- &curfewv1.HostMessage{Body: &curfewv1.HostMessage_BreakGlassSet{BreakGlassSet: set.Sealed}}
	for range 500 {
		if got := m.h.admin.codes(m.name); got != nil && bytes.Equal(got.GetSetId(), set.ID[:]) {
			return set
		}
		time.Sleep(10 * time.Millisecond)
	}
	m.h.t.Fatal("the codes are not held")
	return nil
}

// codes is what is known of a host's codes; nil when none are held.
func (p *person) codes(host string) *apiv1.CodeSet {
	p.t.Helper()
	all, err := p.ListCodes(p.t.Context(), &apiv1.ListCodesRequest{})
	must(p.t, err)
	i := slices.IndexFunc(all.GetSets(), func(s *apiv1.CodeSet) bool { return s.GetHost() == host })
	if i < 0 {
		return nil
	}
	return all.GetSets()[i]
}

func (p *person) fetch(number uint32) (*apiv1.FetchCodeResponse, error) {
	return p.FetchCode(p.t.Context(), &apiv1.FetchCodeRequest{Host: "web1", Number: number})
}

func (m *host) uses(set *seal.Set, code int) {
	m.h.t.Helper()
	m.tell(&curfewv1.Event{
		Kind: trail.KindBreakGlassUsed, Login: "alice", RequestId: "0123456789ab",
		Details: map[string]string{
			"code": fmt.Sprint(code), "set": set.ID.String(), "reason": "INC-7: nginx hangs", "left": "1",
			"until": time.Now().Add(time.Hour).UTC().Format(time.RFC3339), "root_equivalent": "true",
		},
	})
}

// A host's codes go to those whom they are sealed to, one each, on the record; what is used is seen.
func TestCodesAreForTheirCustodians(t *testing.T) {
	h := build(t, nil)
	alice, bob, erin, web1 := h.cast(1)
	_, err := bob.fetch(0)
	r := refused(t, err, apiv1.Code_CODE_NOT_FOUND)
	if !strings.Contains(r.GetHint(), "curfew-agent break-glass renew") {
		t.Errorf("hint %q", r.GetHint())
	}
	set := web1.codes(3)
	if got := bob.codes("web1"); strings.Join(got.GetCustodians(), " ") != "bob erin" ||
		len(got.GetCodes()) != 3 || got.GetMadeMs() == 0 {
		t.Errorf("%v", got)
	}
	_, err = alice.fetch(0)
	refused(t, err, apiv1.Code_CODE_DENIED)
	_, err = h.admin.fetch(0)
	if r := refused(t, err, apiv1.Code_CODE_DENIED); !strings.Contains(r.GetText(), "sealed to bob, erin") {
		t.Errorf("%q", r.GetText())
	}
	for i, c := range []struct {
		who    *person
		number uint32
		want   uint32
		code   apiv1.Code
	}{
		{bob, 0, 1, 0},
		{erin, 0, 2, 0},
		{bob, 0, 3, 0},
		{bob, 1, 1, 0},
		{bob, 0, 0, apiv1.Code_CODE_CONFLICT},
		{bob, 2, 0, apiv1.Code_CODE_DENIED},
		{erin, 9, 0, apiv1.Code_CODE_NOT_FOUND},
		{erin, 1 << 31, 0, apiv1.Code_CODE_NOT_FOUND},
	} {
		got, err := c.who.fetch(c.number)
		if c.want == 0 {
			refused(t, err, c.code)
			continue
		}
		must(t, err)
		if got.GetNumber() != c.want || !bytes.Equal(got.GetSealed(), set.Sealed.GetCodes()[c.want-1]) {
			t.Errorf("%d: code %d", i, got.GetNumber())
		}
		if at := got.GetSet().GetCodes()[c.want-1]; at.GetFetchedBy() != c.who.name || at.GetFetchedMs() == 0 {
			t.Errorf("%d: %v", i, at)
		}
	}
	if !h.onTrail(`"kind":"break_glass.fetched","actor":"erin"`) {
		t.Error("the trail does not say who fetched a code")
	}
	web1.uses(set, 2)
	got := bob.codes("web1").GetCodes()
	if got[1].GetUsedBy() != "alice" || got[1].GetUsedMs() == 0 || got[0].GetUsedMs() != 0 {
		t.Errorf("%v", got)
	}
	_, err = erin.fetch(2)
	refused(t, err, apiv1.Code_CODE_CONFLICT)
	if p := h.problems("web1"); !strings.Contains(p, "1 break-glass codes used") {
		t.Errorf("problems %q", p)
	}
	// The control plane says which set it has; a removed host leaves none.
	web1.disconnect()
	web1.connect()
	if h.stays(func() bool { return !bytes.Equal(web1.heldSet(), set.ID[:]) }) {
		t.Error("the welcome does not name the set")
	}
	// A new set is nobody's yet.
	web1.codes(1)
	if got := bob.codes("web1").GetCodes(); len(got) != 1 || got[0].GetFetchedMs() != 0 || got[0].GetUsedMs() != 0 {
		t.Errorf("of the new set %v", got)
	}
	if p := h.problems("web1"); p != "" {
		t.Errorf("after a new set: %q", p)
	}
	_, err = h.admin.RemoveHost(t.Context(), &apiv1.RemoveHostRequest{Name: "web1"})
	must(t, err)
	if len(web1.renewal()) == 0 {
		t.Error("the removed host is not asked to void its codes")
	}
	if h.admin.codes("web1") != nil {
		t.Error("a removed host has codes")
	}
}

func (m *host) heldSet() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held
}

// stays says whether something still is so after a while.
func (h *house) stays(so func() bool) bool {
	for range 500 {
		if !so() {
			return false
		}
		time.Sleep(10 * time.Millisecond)
	}
	return true
}

func (h *house) problems(host string) string {
	h.t.Helper()
	hosts, err := h.admin.ListHosts(h.t.Context(), &apiv1.ListHostsRequest{})
	must(h.t, err)
	for _, one := range hosts.GetHosts() {
		if one.GetName() == host {
			return strings.Join(one.GetProblems(), "; ")
		}
	}
	return "no such host"
}

// Bad sets end the stream and change nothing.
func TestBadCodeSetsAreRefused(t *testing.T) {
	h := build(t, nil)
	_, _, _, web1 := h.cast(1)
	set := web1.codes(2)
	for what, change := range map[string]func(*curfewv1.BreakGlassSet){
		"a short id":     func(b *curfewv1.BreakGlassSet) { b.SetId = b.GetSetId()[1:] },
		"no codes":       func(b *curfewv1.BreakGlassSet) { b.Codes = nil },
		"too many":       func(b *curfewv1.BreakGlassSet) { b.Codes = make([][]byte, 33) },
		"a giant":        func(b *curfewv1.BreakGlassSet) { b.Codes[0] = make([]byte, 64<<10+1) },
		"no custodians":  func(b *curfewv1.BreakGlassSet) { b.Custodians = nil },
		"no name at all": func(b *curfewv1.BreakGlassSet) { b.Custodians = []string{"x\ny"} },
	} {
		bad := &curfewv1.BreakGlassSet{
			SetId: bytes.Repeat([]byte{7}, 16), MadeMs: 1, Custodians: []string{"bob"},
			Codes: [][]byte{{1}, {2}},
		}
		change(bad)
		web1.say <- &curfewv1.HostMessage{Body: &curfewv1.HostMessage_BreakGlassSet{BreakGlassSet: bad}}
		<-web1.done
		if got := h.admin.codes("web1"); !bytes.Equal(got.GetSetId(), set.ID[:]) {
			t.Errorf("%s: now it is %v", what, got)
		}
		web1.connect()
	}
}

// The use of a code is told to every admin and approver, by signed webhook and by mail, when it is
// delivered; also of a set that was replaced since, and also when nobody has looked.
func TestUseOfACodeAlarms(t *testing.T) {
	heard := make(chan map[string]any, 16)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var msg map[string]any
		if r.Header.Get("Curfew-Signature") != "" && json.Unmarshal(body, &msg) == nil {
			heard <- msg
		}
	}))
	defer hook.Close()
	server := mailtest.Start(t, mailtest.Options{Username: "curfew", Password: "pw"})
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, data, 0o600))
		return path
	}
	h := build(t, func(c *controlplane.Config) {
		c.Mail = &notify.Mail{
			Server: server.Addr, TLS: notify.StartTLS, From: "curfew@acme.org", Username: "curfew",
		}
		c.MailPasswordFile, c.MailCAFile = write("pw", []byte("pw\n")), write("ca", server.CAs)
		c.Webhooks = []controlplane.Webhook{{URL: hook.URL, SecretFile: write("s", []byte("0123456789abcdef"))}}
	})
	_, bob, _, web1 := h.cast(1)
	for _, name := range []string{"alice", "bob", "dana"} {
		u := h.user(name)
		address := name + "@acme.org"
		u.Email = &address
		_, err := h.admin.PutUser(t.Context(), &apiv1.PutUserRequest{User: u})
		must(t, err)
	}
	old := web1.codes(2)
	_, err := bob.fetch(0)
	must(t, err)
	web1.codes(2)
	web1.uses(old, 1)
	if used := bob.codes("web1").GetCodes()[0]; used.GetUsedMs() != 0 {
		t.Errorf("a code of the new set counts as used: %v", used)
	}
	for _, want := range []map[string]any{
		{"event": "break_glass.fetched", "by": "bob", "text": "bob fetched break-glass code 1 of web1"},
		{
			"event": "break_glass.used", "requester": "alice", "role": "break-glass", "root_equivalent": true,
			"reason": "INC-7: nginx hangs", "organisation": "acme", "request_id": "0123456789ab",
		},
	} {
		select {
		case msg := <-heard:
			for field, v := range want {
				if msg[field] != v {
					t.Errorf("the message's %s is %v, want %v", field, msg[field], v)
				}
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the webhook heard nothing")
		}
	}
	var to []string
	if h.stays(func() bool { return len(server.Mails()) < 4 }) {
		t.Error("too few mails")
	}
	for _, m := range server.Mails() {
		if strings.Contains(m.Data, "BREAK-GLASS: alice opened ROOT-EQUIVALENT") {
			to = append(to, m.To...)
		}
	}
	slices.Sort(to)
	if strings.Join(to, " ") != "bob@acme.org dana@acme.org" {
		t.Errorf("the alarm went to %v", to)
	}
}

// Admins and custodians have a host make new codes, at once or when it is back; others do not.
func TestCodesAreRotated(t *testing.T) {
	h := build(t, nil)
	_, bob, erin, web1 := h.cast(1)
	set := web1.codes(2)
	rotate := func(p *person) error {
		_, err := p.RotateCodes(t.Context(), &apiv1.RotateCodesRequest{Host: "web1"})
		return err
	}
	must(t, rotate(bob))
	want := h.admin.codes("web1")
	if want.GetRotatingBy() != "bob" || !bytes.Equal(want.GetSetId(), set.ID[:]) {
		t.Errorf("%v", want)
	}
	if h.stays(func() bool { return !bytes.Equal(web1.renewal(), want.GetSetId()) }) {
		t.Error("the host is not told")
	}
	if !h.onTrail(`"kind":"break_glass.rotation_asked","actor":"bob"`) {
		t.Error("the trail does not say who asked")
	}
	web1.codes(1)
	if got := h.admin.codes("web1"); got.GetRotatingBy() != "" {
		t.Errorf("after a new set: %v", got)
	}
	web1.disconnect()
	must(t, rotate(h.admin))
	web1.connect()
	want = h.admin.codes("web1")
	if h.stays(func() bool { return !bytes.Equal(web1.renewal(), want.GetSetId()) }) {
		t.Error("the host is not told when it is back")
	}
	web1.codesOf(1, "bob")
	refused(t, rotate(erin), apiv1.Code_CODE_DENIED)
}

// renewal is the set that the host was last asked to replace.
func (m *host) renewal() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.renew
}
