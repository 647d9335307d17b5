package cli

import (
	"strings"
	"testing"

	"github.com/curfew-access/curfew/internal/trail"
)

// What a host says after a grant's end, in the order of the trail, as `show` tells it.
func TestAftermath(t *testing.T) {
	say := func(kind string, details map[string]string) *trail.Record {
		return &trail.Record{Kind: kind, GrantID: "ab", Host: "web1", Details: details}
	}
	said := func(m *aftermath) string {
		var lines []string
		for _, f := range m.describe() {
			lines = append(lines, f.label+"|"+f.value.text)
		}
		return strings.Join(lines, "\n")
	}
	m := &aftermath{host: "web1"}
	m.read(say(trail.KindGrantEnded, map[string]string{"cause": "expired"}))
	if m.word() != "" || said(m) != "" {
		t.Errorf("an end alone says %q %q", m.word(), said(m))
	}
	m.read(say(trail.KindGrantResidue, map[string]string{"left": "files"}))
	if m.word() != "ended with residue" || said(m) != "Residue|on web1: ended with residue: files" {
		t.Errorf("%q %q", m.word(), said(m))
	}
	m.read(say(trail.KindGrantLeft, map[string]string{
		"count": "2", "role": "root", "root_equivalent": "true", "job": "new /etc/cron.d/x",
		"not_looked_at": "/net", "login": "alice",
	}))
	m.read(say(trail.KindGrantPurged, map[string]string{"cleared": "1 file"}))
	want := "Purged|on web1; cleared 1 file\n" +
		"Left|on web1: 2 things that root made or changed and that Curfew does not undo\n" +
		"|job: new /etc/cron.d/x\n|not looked at: /net"
	if m.word() != "purged" || said(m) != want {
		t.Errorf("%q\n%s", m.word(), said(m))
	}
	none := &aftermath{host: "web1"}
	none.read(say(trail.KindGrantLeft, map[string]string{"count": "0"}))
	if said(none) != "Left|on web1: nothing that was looked for" {
		t.Errorf("%q", said(none))
	}
}
