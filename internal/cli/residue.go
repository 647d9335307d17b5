package cli

import (
	"context"
	"slices"
	"strings"

	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// What became of a grant after its end stands on the trail, in the host's own signed words: it ended
// with residue, it was purged, and what root left behind. `show` reads it from there.

// aftermath is what a host said of one grant after its end.
type aftermath struct {
	host    string
	purged  bool
	residue string // why not yet; empty when nothing was said
	cleared string
	// left is what root left behind, one line per kind; reported when there was a report at all.
	left     []string
	count    string
	reported bool
}

// word is the aftermath in a word or two.
func (m *aftermath) word() string {
	switch {
	case m.purged:
		return "purged"
	case m.residue != "":
		return "ended with residue"
	}
	return ""
}

// reportNotes are the details of a report that are no kind of what was left.
var reportNotes = []string{"count", "role", "root_equivalent", "login", "happened"}

// read takes one record.
func (m *aftermath) read(r *trail.Record) {
	switch r.Kind {
	case trail.KindGrantResidue:
		m.residue, m.cleared = r.Details["left"], r.Details["cleared"]
	case trail.KindGrantPurged:
		m.purged, m.cleared = true, r.Details["cleared"]
	case trail.KindGrantLeft:
		m.reported, m.count, m.left = true, r.Details["count"], nil
		for _, k := range r.DetailKeys() {
			if !slices.Contains(reportNotes, k) {
				m.left = append(m.left, strings.ReplaceAll(k, "_", " ")+": "+r.Details[k])
			}
		}
	}
}

// aftermath reads what hosts said after the end of a request's grants, by grant id.
func (c *client) aftermath(ctx context.Context, r *apiv1.Request) (map[string]*aftermath, error) {
	over := slices.ContainsFunc(r.GetGrants(), func(g *apiv1.HostGrant) bool {
		return g.GetEndedMs() != 0
	})
	if !over {
		return nil, nil
	}
	all := make(map[string]*aftermath)
	err := c.records(ctx, &apiv1.ListRecordsRequest{RequestId: r.GetId()},
		func(answer *apiv1.ListRecordsResponse) error {
			for _, leaf := range answer.GetRecords() {
				record, err := trail.ParseRecord(leaf.GetLeaf())
				if err != nil {
					return fail(exitFailed, "record %d: %w", leaf.GetNumber(), err)
				}
				if record.GrantID == "" {
					continue
				}
				if all[record.GrantID] == nil {
					all[record.GrantID] = &aftermath{host: record.Host}
				}
				all[record.GrantID].read(record)
			}
			return nil
		})
	return all, err
}

// describe says it for people, one field per line.
func (m *aftermath) describe() []field {
	var fields []field
	switch {
	case m.purged && m.cleared != "":
		fields = append(fields, field{"Purged", text("on " + m.host + "; cleared " + m.cleared)})
	case m.purged:
		fields = append(fields, field{"Purged", text("on " + m.host)})
	case m.residue != "":
		fields = append(fields, field{"Residue", styled(alarm, "on "+m.host+": ended with residue: "+
			m.residue)})
	}
	if !m.reported {
		return fields
	}
	if m.count == "0" {
		return append(fields, field{"Left", text("on " + m.host + ": nothing that was looked for")})
	}
	fields = append(fields, field{"Left", styled(alarm, "on "+m.host+": "+m.count+
		" things that root made or changed and that Curfew does not undo")})
	for _, line := range m.left {
		fields = append(fields, field{"", text(line)})
	}
	return fields
}
