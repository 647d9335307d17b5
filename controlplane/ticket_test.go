package controlplane_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/curfew-access/curfew/controlplane"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// The ticket system is asked outside of any transaction; only its clear yes opens anything.
func TestTicketsAreChecked(t *testing.T) {
	var answer atomic.Value
	answer.Store(`{"ok":false,"text":"it is closed"}`)
	var asked atomic.Value
	system := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked.Store(string(body) + r.Header.Get("Curfew-Signature"))
		if answer.Load() == "" {
			http.Redirect(w, r, "/ok", http.StatusFound)
			return
		}
		_, _ = io.WriteString(w, answer.Load().(string))
	}))
	t.Cleanup(system.Close)
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("0123456789abcdef"), 0o600))
	a := buildAcme(t, func(c *controlplane.Config) {
		c.TicketChecks = []controlplane.TicketCheck{{Name: "jira", URL: system.URL, SecretFile: secret}}
	})
	a.apply(strings.Replace(acmePolicy, "then: auto", "then: {auto: true, justification: {ticket: "+
		"{pattern: 'OPS-[0-9]+', check: jira}}}", 1))
	ask := func(ticket string) (*apiv1.Request, error) {
		r, err := a.alice.CreateRequest(t.Context(), &apiv1.CreateRequestRequest{
			Hosts: []string{"test1"}, Role: "ops", DurationMs: 60000, Reason: "as the ticket says", Ticket: ticket,
		})
		return r.GetRequest(), err
	}
	_, err := ask("")
	refused(t, err, apiv1.Code_CODE_INVALID)
	_, err = ask("OPS-1 or so")
	refused(t, err, apiv1.Code_CODE_INVALID)
	if asked.Load() != nil {
		t.Error("the ticket system was asked about what is no ticket")
	}
	_, err = ask("OPS-1")
	if got := refused(t, err, apiv1.Code_CODE_DENIED); !strings.Contains(got.GetText(), "it is closed") {
		t.Errorf("a closed ticket: %s", got.GetText())
	}
	var q map[string]any
	text, signature, _ := strings.Cut(asked.Load().(string), "t=")
	must(t, json.Unmarshal([]byte(text), &q))
	if q["ticket"] != "OPS-1" || q["requester"] != "alice" || !strings.Contains(signature, ",v1=") {
		t.Errorf("it was asked %s", asked.Load())
	}
	for _, no := range []string{"", "yes", `{"ok":"true"}`, `{}`} {
		answer.Store(no)
		if _, err := ask("OPS-1"); err == nil {
			t.Errorf("%q opened it", no)
		}
	}
	answer.Store(`{"ok":true}`)
	r, err := ask("OPS-1")
	must(t, err)
	if !granted(r) {
		t.Errorf("with a good ticket it is %v", r.GetState())
	}
	system.Close()
	_, err = ask("OPS-1")
	refused(t, err, apiv1.Code_CODE_CONFLICT)
}
