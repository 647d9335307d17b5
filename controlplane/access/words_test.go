package access

import (
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane/request"
)

// Approvers who read only the text of a webhook, and readers of the trail, see what is root-equivalent.
func TestRootEquivalentIsSaid(t *testing.T) {
	for root, want := range map[bool]string{
		true:  "alice asks for ROOT-EQUIVALENT role ops on web1 for 1h0m0s: why",
		false: "alice asks for role ops on web1 for 1h0m0s: why",
	} {
		r := &request.Request{
			ID: "k3v9x2m7q4ab", Requester: "alice", Role: "ops", RootEquivalent: root,
			Hosts: []request.Host{{Name: "web1"}},
			Revisions: []request.Revision{{
				Number: 1, Duration: time.Hour, Reason: "why", Outcome: request.Open,
			}},
		}
		m := Notice(r, "acme", "request.pending", "")
		if m.Text != want || m.RootEquivalent != root {
			t.Errorf("%q %v", m.Text, m.RootEquivalent)
		}
		record := new(Service).asked(r, KindExtension)
		if record.Details["root_equivalent"] != map[bool]string{true: "true", false: "false"}[root] {
			t.Errorf("the trail says %v", record.Details)
		}
		if strings.Contains(record.Details["role"], "ROOT") {
			t.Error("the role's name is its name")
		}
	}
}
