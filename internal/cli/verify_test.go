package cli

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func TestRecordAgreesWithEvent(t *testing.T) {
	id := make([]byte, 32)
	for _, c := range []struct {
		name   string
		record trail.Record
		event  *curfewv1.Event
		why    string
	}{
		{
			"alike",
			trail.Record{Kind: "grant.applied", RequestID: "0123456789ab"},
			&curfewv1.Event{Kind: "grant.applied", RequestId: "0123456789ab"}, "",
		},
		{
			"made-up ids left out",
			trail.Record{Kind: "grant.applied"},
			&curfewv1.Event{Kind: "grant.applied", RequestId: "../x", GrantId: []byte{1}}, "",
		},
		{
			"unknown kind",
			trail.Record{Kind: kindOther, Details: map[string]string{"kind": `new\nkind`}},
			&curfewv1.Event{Kind: "new\nkind"}, "",
		},
		{
			"another kind under host.other",
			trail.Record{Kind: kindOther, Details: map[string]string{"kind": "x"}},
			&curfewv1.Event{Kind: "y"}, "kind",
		},
		{"grant left out", trail.Record{Kind: "k"}, &curfewv1.Event{Kind: "k", GrantId: id}, "grant"},
		{
			"request left out",
			trail.Record{Kind: "k"},
			&curfewv1.Event{Kind: "k", RequestId: "0123456789ab"}, "request",
		},
		{
			"request added",
			trail.Record{Kind: "k", RequestID: "0123456789ab"},
			&curfewv1.Event{Kind: "k"}, "request",
		},
	} {
		err := agrees(&c.record, c.event)
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want %q", c.name, err, c.why)
		}
	}
}

// signedRecords are an enrolment and two events of one host, as leaves.
func signedRecords(t *testing.T, withKey bool, change func([]*curfewv1.Event)) []*apiv1.Record {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	hostID := grant.HostIDOf(public).String()
	records := []*trail.Record{{Kind: "host.enrolled", HostID: hostID, Host: "web1"}}
	if withKey {
		records[0].Details = map[string]string{"root_key": base64.StdEncoding.EncodeToString(public)}
	}
	var chain trail.Chain
	events := []*curfewv1.Event{{Kind: "agent.started"}, {Kind: "agent.stopped"}}
	for _, e := range events {
		if err := chain.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	if change != nil {
		change(events)
	}
	for _, e := range events {
		signed, err := grant.SignHostMessage(
			&curfewv1.HostMessage{Body: &curfewv1.HostMessage_Event{Event: e}}, key)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := proto.Marshal(signed)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, &trail.Record{
			Kind: e.GetKind(), HostID: hostID, Host: "web1", HostEvent: raw,
		})
	}
	var out []*apiv1.Record
	for i, r := range records {
		r.Number = uint64(i)
		leaf, err := r.Leaf()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, &apiv1.Record{Number: r.Number, Leaf: leaf})
	}
	return out
}

// The events of one host must be signed by it and continue one chain.
func TestAuditOfHostEvents(t *testing.T) {
	whole := signedRecords(t, true, nil)
	swapped := signedRecords(t, true, func(e []*curfewv1.Event) { e[0], e[1] = e[1], e[0] })
	forged := signedRecords(t, true, func(e []*curfewv1.Event) { e[1].Previous = make([]byte, 32) })
	foreign := signedRecords(t, true, nil)
	foreign[2] = signedRecords(t, true, nil)[2] // another host's, whose key the trail does not hold
	for _, c := range []struct {
		name      string
		records   []*apiv1.Record
		why       string
		unchecked int
	}{
		{"whole", whole, "", 0},
		{"without the key", signedRecords(t, false, nil), "", 2},
		{"swapped", swapped, "record 1: the event of host web1", 0},
		{"another predecessor", forged, "record 2: the event of host web1", 0},
		{"one left out", []*apiv1.Record{whole[0], whole[2]}, "record 1: the control plane sent", 0},
		{"of a host that the trail does not know", foreign, "", 1},
	} {
		u := newAudit()
		var err error
		for _, r := range c.records {
			if err = u.add(r); err != nil {
				break
			}
		}
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want %q", c.name, err, c.why)
		}
		if u.unchecked != c.unchecked {
			t.Errorf("%s: %d unchecked, want %d", c.name, u.unchecked, c.unchecked)
		}
	}
}

// A gap in a host's events verifies only where a record admits exactly it.
func TestAuditOfLostEvents(t *testing.T) {
	for from, why := range map[string]string{
		"1": "", "2": "record 1: lost events of host web1", "none": "record 1: lost events of host web1",
	} {
		records := signedRecords(t, true, nil)
		enrolled, err := trail.ParseRecord(records[0].GetLeaf())
		if err != nil {
			t.Fatal(err)
		}
		lost := trail.Record{
			Number: 1, Kind: kindLost, HostID: enrolled.HostID, Host: "web1",
			Details: map[string]string{"from": from, "to": "1"},
		}
		leaf, err := lost.Leaf()
		if err != nil {
			t.Fatal(err)
		}
		records[1] = &apiv1.Record{Number: 1, Leaf: leaf}
		u := newAudit()
		for _, r := range records {
			if err = u.add(r); err != nil {
				break
			}
		}
		if (err == nil) != (why == "") || err != nil && !strings.Contains(err.Error(), why) {
			t.Errorf("from %s: %v, want %q", from, err, why)
		}
		if why == "" && u.lost != 1 {
			t.Errorf("%d events are said to be lost, want 1", u.lost)
		}
	}
}
