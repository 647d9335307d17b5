package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// A host that observes tells at once who uses it, of people whom Curfew does not manage too: what enforcing
// would refuse, and which roles would cover it. Nobody but admins and auditors learns that.
func TestObservingPaysAtOnce(t *testing.T) {
	s := tell(t, stage.Options{Name: "report", Agent: observing})
	alice, _, err := s.Cast(s.ctx)
	s.ok(err)
	lou := s.outsider()
	for _, login := range []string{"gus", "carol"} {
		s.ok(lou.LetIn(s.ctx, s.Hosts["web1"], login))
	}
	s.on("web1", `echo 'carol ALL=(root) NOPASSWD: /usr/bin/systemctl is-active ssh' >/etc/sudoers.d/carol`)
	for login, command := range map[string]string{
		"gus": "true", "carol": "sudo -n systemctl is-active ssh", "lou": "sudo -n id -u; sudo -n id -u",
		"rescue": "logger -t sudo 'eve : TTY=pts/0 ; PWD=/ ; USER=root ; COMMAND=/bin/evil'",
	} {
		r, err := lou.Command(s.ctx, "ssh", "-o", "BatchMode=yes", login+"@web1", command)
		s.ok(err)
		s.expect(r, login+": "+command, 0)
	}
	want := []string{
		"carol login  false docs,ops,root",
		"carol sudo /usr/bin/systemctl is-active ssh true root",
		"gus login  true docs,ops,root",
		"lou login  false docs,ops,root",
		"lou sudo /usr/bin/id -u false root",
		"rescue login  false docs,ops,root",
	}
	s.within(2*time.Minute, "the report to know them all", func() (bool, string) {
		r, err := s.Admin.Curfew(s.ctx, "report", "--since", "1d", "--json")
		s.ok(err)
		var uses []struct {
			Login, Does, Command string
			Times                int
			NeedsGrant           bool `json:"needs_grant"`
			WouldRefuse          int  `json:"would_refuse"`
			Roles                []string
		}
		if err := json.Unmarshal([]byte(r.Out), &uses); err != nil {
			return false, r.String()
		}
		var got []string
		for _, u := range uses {
			if (u.WouldRefuse > 0) != u.NeedsGrant {
				return false, fmt.Sprintf("%+v", u)
			}
			got = append(got, fmt.Sprintf("%s %s %s %t %s", u.Login, u.Does, u.Command, u.NeedsGrant,
				strings.Join(u.Roles, ",")))
		}
		return slices.Equal(got, want), r.String()
	})
	s.curfew(s.Admin, 0, []string{"report"}, "Enforcing would have refused")
	s.curfew(alice, 3, []string{"report"})
}
