package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/e2e/world"
	"github.com/curfew-access/curfew/internal/journal"
)

// An entry is a line of a journal with what it is about.
type entry struct {
	Message   string `json:"MESSAGE"`
	MessageID string `json:"MESSAGE_ID"`
	Event     string `json:"CURFEW_EVENT"`
	Request   string `json:"CURFEW_REQUEST"`
	Host      string `json:"CURFEW_HOST"`
	Unit      string `json:"_SYSTEMD_UNIT"`
	Program   string `json:"SYSLOG_IDENTIFIER"`
}

// journal waits until a machine's journal has told these events of a grant, and returns their lines.
func (s *story) journal(h *world.Host, grant string, events ...string) map[string]entry {
	s.t.Helper()
	var told map[string]entry
	s.within(20*time.Second, "the journal of "+h.Name(), func() (bool, string) {
		out, err := h.Exec(s.ctx, "journalctl", "-q", "--no-pager", "-o", "json", "CURFEW_GRANT="+grant)
		s.ok(err)
		told = make(map[string]entry)
		for line := range strings.Lines(string(out)) {
			var e entry
			s.ok(json.Unmarshal([]byte(line), &e))
			told[e.Event] = e
		}
		for _, event := range events {
			if told[event].Event == "" {
				return false, "no " + event + " in\n" + string(out)
			}
		}
		return true, ""
	})
	return told
}

// By the id of one grant the journal of its host tells its life from its acceptance to its purge, each step
// with the id of its message and a text in the catalogue; the control plane's does from its sealing on.
func TestJournalTellsAGrantsLife(t *testing.T) {
	s := tell(t, stage.Options{Name: "journal"})
	alice, _, id := s.openFor(10 * time.Minute)
	grant := s.on("web1", "ls /run/curfew/sudoers.d")
	s.curfew(alice, 0, []string{"done", id})
	ids := make(map[string]string)
	for _, m := range journal.Messages {
		ids[m.Kind] = m.ID
	}
	onHost := []string{
		"grant.accepted", "grant.applied", "session.opened", "session.elevated", "grant.ended", "grant.purged",
	}
	for event, e := range s.journal(s.Hosts["web1"], grant, onHost...) {
		if e.MessageID != ids[event] || e.Unit != "curfew-enforce.service" || e.Program != "curfew-enforce" ||
			event != "grant.accepted" && e.Request != id {
			t.Errorf("web1 tells %s by %+v", event, e)
		}
	}
	onControl := append([]string{"grant.issued"}, onHost...)
	for event, e := range s.journal(s.Control, grant, onControl...) {
		if e.MessageID != ids[event] || e.Unit != "curfew-controlplane.service" ||
			event != "grant.issued" && e.Host != "web1" {
			t.Errorf("the control plane tells %s by %+v", event, e)
		}
	}
	for _, h := range []*world.Host{s.Hosts["web1"], s.Control} {
		out, err := h.Exec(s.ctx, "journalctl", "-x", "-q", "--no-pager", "CURFEW_GRANT="+grant)
		s.ok(err)
		if want := "No process, rule, key or account entry of grant " + grant + " is left"; !strings.Contains(string(out), want) {
			t.Errorf("journalctl -x on %s lacks %q:\n%s", h.Name(), want, out)
		}
	}
	requested, err := s.Control.Exec(s.ctx, "journalctl", "-q", "--no-pager", "-o", "cat", "CURFEW_REQUEST="+id)
	s.ok(err)
	for _, text := range []string{
		"A request was made: ", "An approval was given: ", "A request is granted: ", "A request has ended: ",
	} {
		if !strings.Contains(string(requested), text) {
			t.Errorf("the control plane's journal lacks %q:\n%s", text, requested)
		}
	}
}
