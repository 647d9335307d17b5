package cli

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// What hosts saw becomes a report: who did what, whether that needs a grant once they enforce, and which
// role covers it where it was done.
func TestReportAddsUp(t *testing.T) {
	at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	saw := func(host, login, service, as, command, class, times string, when time.Time) *trail.Record {
		return &trail.Record{Kind: trail.KindAccessSeen, Host: host, Details: map[string]string{
			"login": login, "service": service, "as": as, "command": command, "class": class, "count": times,
			"last": when.Format(time.RFC3339),
		}}
	}
	refused := func(login, service, op, before string) *trail.Record {
		return &trail.Record{Kind: trail.KindWouldDeny, Host: "web1", Details: map[string]string{
			"login": login, "service": service, "op": op, "unrecorded_before": before,
		}}
	}
	r := newUseReport(at.Add(-time.Hour), "")
	for _, record := range []*trail.Record{
		saw("web1", "gus", "sshd", "", "", "gated", "2", at),
		saw("web2", "gus", "login", "", "", "unmanaged", "1", at.Add(time.Minute)),
		saw("web1", "gus", "sshd", "", "", "gated", "9", at.Add(-2*time.Hour)), // before
		saw("web1", "carol", "sshd", "", "", "elevate", "1", at),
		saw("web1", "carol", "sudo", "root", "/usr/bin/systemctl restart nginx", "elevate", "4", at),
		saw("web1", "lou", "sudo", "www-data", "/usr/bin/id", "unmanaged", "1", at),
		saw("web1", "lou", "su-l", "root", "", "unmanaged", "1", at),
		saw("web1", "eve", "sudo", "root", "/bin/x", "gated", "many", at), // nonsense of a hostile host's
		refused("gus", "sshd", "account", ""), refused("gus", "sshd", "open_session", ""),
		refused("gus", "systemd-user", "account", ""),
		refused("carol", "sudo", "account", "3"),
		{Kind: trail.KindLoginAllowed, Host: "web1", Details: map[string]string{"login": "bob"}},
	} {
		r.read(record)
	}
	got := r.views(
		[]*apiv1.Host{{Name: "web1", Labels: map[string]string{"env": "prod"}}, {Name: "web2"}},
		[]*apiv1.Role{
			{Name: "docs", AllowLogin: true},
			{Name: "prod", AllowLogin: true, HostLabels: map[string]string{"env": "prod"}},
			{Name: "root", SudoRules: []*curfewv1.SudoRule{{RunAs: "root", All: true}}},
			{Name: "nginx", SudoRules: []*curfewv1.SudoRule{{
				RunAs: "root", Command: "/usr/bin/systemctl", Args: []string{"restart", "nginx"},
			}}},
			{Name: "units", SudoRules: []*curfewv1.SudoRule{{RunAs: "root", Command: "/usr/bin/systemctl", AnyArgs: true}}},
			{Name: "id", SudoRules: []*curfewv1.SudoRule{{RunAs: "root", Command: "/usr/bin/id"}}},
			{Name: "other", SudoRules: []*curfewv1.SudoRule{{
				RunAs: "root", Command: "/usr/bin/systemctl", Args: []string{"restart", "mysql"},
			}}},
		})
	want := []useView{
		{
			Login: "carol", Does: "login", Times: 1, Hosts: []string{"web1"}, Last: moment(at.UnixMilli()),
			Class: "elevate", Roles: []string{"docs", "prod"},
		},
		{
			Login: "carol", Does: "sudo", As: "root", Command: "/usr/bin/systemctl restart nginx", Times: 4,
			Hosts: []string{"web1"}, Last: moment(at.UnixMilli()), Class: "elevate", NeedsGrant: true,
			WouldRefuse: 4, Roles: []string{"nginx", "root", "units"},
		},
		{
			Login: "gus", Does: "login", Times: 3, Hosts: []string{"web1", "web2"},
			Last: moment(at.Add(time.Minute).UnixMilli()), Class: "gated, unmanaged", NeedsGrant: true,
			WouldRefuse: 1, Roles: []string{"docs"},
		},
		{
			Login: "lou", Does: "su", As: "root", Times: 1, Hosts: []string{"web1"},
			Last: moment(at.UnixMilli()), Class: "unmanaged", Roles: []string{},
		},
		{
			Login: "lou", Does: "sudo", As: "www-data", Command: "/usr/bin/id", Times: 1,
			Hosts: []string{"web1"}, Last: moment(at.UnixMilli()), Class: "unmanaged", Roles: []string{"root"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	only := newUseReport(at.Add(-time.Hour), "web2")
	only.read(saw("web1", "gus", "sshd", "", "", "gated", "2", at))
	if list := only.views(nil, nil); len(list) != 0 {
		t.Errorf("of web2: %v", list)
	}
}
