package controlplane_test

import (
	"io"
	"mime/quotedprintable"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/controlplane/notify"
	"github.com/curfew-access/curfew/internal/mailtest"
	"github.com/curfew-access/curfew/internal/pace"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// mailsBy configures a control plane that sends its mail by this server.
func mailsBy(t *testing.T, server *mailtest.Server) func(*controlplane.Config) {
	dir := t.TempDir()
	return func(c *controlplane.Config) {
		c.Mail = &notify.Mail{
			Server: server.Addr, TLS: notify.StartTLS, From: "curfew@acme.org", Username: "curfew",
		}
		c.MailPasswordFile, c.MailCAFile = filepath.Join(dir, "pw"), filepath.Join(dir, "ca")
		must(t, os.WriteFile(c.MailPasswordFile, []byte("pw\n"), 0o600))
		must(t, os.WriteFile(c.MailCAFile, server.CAs, 0o600))
	}
}

func (h *house) address(names ...string) {
	h.t.Helper()
	for _, name := range names {
		u := h.user(name)
		u.Email = proto.String(name + "@acme.org")
		_, err := h.admin.PutUser(h.t.Context(), &apiv1.PutUserRequest{User: u})
		must(h.t, err)
	}
}

// mailed waits for mail to exactly these people, each of which holds these texts.
func mailed(t *testing.T, server *mailtest.Server, people []string, texts ...string) {
	t.Helper()
	for began := pace.Start(); len(server.Mails()) < len(people) && began.Elapsed() < 20*time.Second; {
		time.Sleep(10 * time.Millisecond)
	}
	var to []string
	for _, m := range server.Mails() {
		for _, address := range m.To {
			to = append(to, strings.TrimSuffix(address, "@acme.org"))
		}
		body, err := io.ReadAll(quotedprintable.NewReader(strings.NewReader(m.Data)))
		must(t, err)
		for _, text := range texts {
			if !strings.Contains(string(body), text) {
				t.Errorf("a mail does not say %q: %s", text, body)
			}
		}
	}
	if slices.Sort(to); !slices.Equal(to, people) {
		t.Errorf("mail went to %v", to)
	}
}

// Who would have been asked but for the emergency hears of it, and of what is theirs to do; so do admins.
func TestSkippedApproversHearOfAnEmergency(t *testing.T) {
	server := mailtest.Start(t, mailtest.Options{Username: "curfew", Password: "pw"})
	a := buildAcme(t, mailsBy(t, server))
	a.apply(acmePolicy + `  - name: root
    who: [dev]
    roles: [root]
    then: {approvals: [sre, manager]}
`)
	a.address("alice", "bob", "erin", "mona", "dana")
	r, err := a.alice.create(&apiv1.CreateRequestRequest{
		Hosts: []string{"prod1"}, Role: "root", DurationMs: 600_000, Reason: "it burns", Emergency: true,
	})
	must(t, err)
	mailed(t, server, []string{"bob", "dana", "mona"},
		"alice", "it burns", "curfew revoke "+r.GetId(), "curfew review "+r.GetId())
}

// Approvers hear by mail, each for themselves; nobody else does, and the requester never.
func TestApproversHearByMail(t *testing.T) {
	server := mailtest.Start(t, mailtest.Options{Username: "curfew", Password: "pw"})
	h := build(t, mailsBy(t, server))
	_, _, erin, _ := h.cast(1)
	h.group("sre", "alice", "bob", "erin")
	h.address("alice", "bob", "erin", "dana")
	r := erin.ask("web1")
	mailed(t, server, []string{"alice", "bob"}, "curfew approve "+r.GetId(), "it hangs")
	if !h.onTrail(`"email":"bob@acme.org"`) {
		t.Error("the trail does not tell whose address is which")
	}
}

// A mail that its server refuses for good is on the trail at once, and not in the outbox.
func TestUndeliverableMailIsOnTheTrail(t *testing.T) {
	server := mailtest.Start(t, mailtest.Options{Refuse: func(string) error {
		return &smtp.SMTPError{Code: 550, Message: "no such user"}
	}})
	ca := filepath.Join(t.TempDir(), "ca")
	must(t, os.WriteFile(ca, server.CAs, 0o600))
	h := build(t, func(c *controlplane.Config) {
		c.Mail = &notify.Mail{Server: server.Addr, TLS: notify.StartTLS, From: "curfew@acme.org"}
		c.MailCAFile = ca
	})
	alice, _, _, _ := h.cast(1)
	u := h.user("bob")
	address := "bob@acme.org"
	u.Email = &address
	_, err := h.admin.PutUser(t.Context(), &apiv1.PutUserRequest{User: u})
	must(t, err)
	alice.ask("web1")
	if h.stays(func() bool { return !h.onTrail(`"kind":"notify.undeliverable"`) }) {
		t.Fatal("nothing is on the trail")
	}
	for _, want := range []string{`"receiver":"mailto:bob@acme.org"`, "no such user", `"attempts":"1"`} {
		if !h.onTrail(want) {
			t.Errorf("the trail does not say %s", want)
		}
	}
}
