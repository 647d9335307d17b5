package e2e

import (
	"cmp"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/e2e/world"
)

// However sudo is called, on every Debian, what it opens stands in a cgroup that ends with the grant
// and keeps the audit identity of the login that it came from; and it ends.
func TestSudoMatrix(t *testing.T) {
	for _, release := range world.Releases {
		t.Run(release, func(t *testing.T) {
			s := tell(t, stage.Options{Release: release, Name: "sudo" + release})
			alice, bob, err := s.Cast(s.ctx)
			s.ok(err)
			carol, err := s.Person(s.ctx, "carol")
			s.ok(err)
			s.ok(carol.LetIn(s.ctx, s.Hosts["web1"], "carol"))
			for i, who := range []*stage.Person{alice, carol} {
				id, err := s.Grant(s.ctx, who, bob, "web1", "root", 10*time.Minute)
				s.ok(err)
				p := s.gather("web1", who.Name(), 86401+50*i, caged()...)
				// The login of an account is its cage; a local user's elevations have their own.
				cage := fmt.Sprintf("/user.slice/user-%s.slice/session-", p.uid)
				if who == carol {
					cage = fmt.Sprintf("/user.slice/user-%s.slice/curfew-%s-", p.uid, id)
				}
				tty := s.terminal(who, "ssh", "-tt", who.Name()+"@web1")
				_, err = tty.Expect(s.ctx, who.Name()+`@web1`)
				s.ok(err)
				s.ok(tty.Send(p.script("survive-"+who.Name()) + "\n"))
				p.begun()
				strays := map[string]string{}
				if release == "trixie" && who == carol {
					// Its su asks logind for a session of root's, unless it is in a session already.
					strays["sudo su -"] = "/user.slice/user-0.slice/session-c"
				}
				p.stands(cage, strays)
				p.killSudo()
				s.curfew(who, 0, []string{"done", id})
				p.noneOutlives(time.Now())
			}
		})
	}
}

// stands demands that every survivor is in a cage, or where strays says, and has the audit identity of
// its owner's login, by which it is found wherever it stands.
func (p *party) stands(cage string, strays map[string]string) {
	p.t.Helper()
	all, err := p.Hosts[p.host].Processes(p.ctx)
	p.ok(err)
	var shell world.Process
	for _, q := range all {
		if q.Comm == "bash" && fmt.Sprint(q.UID) == p.uid {
			shell = q
		}
	}
	if shell.LoginUID < 0 || fmt.Sprint(shell.LoginUID) != p.uid || shell.SessionID < 0 {
		p.t.Errorf("%s's shell has no audit identity: %+v", p.login, shell)
	}
	for _, one := range p.list {
		for _, q := range all {
			if strings.TrimPrefix(q.Cmdline, "/usr/bin/") != one.mark {
				continue
			}
			if want := cmp.Or(strays[one.name], cage); !strings.HasPrefix(q.CGroup, want) {
				p.t.Errorf("%s of %s's stands in %s, want %s…", one.name, p.login, q.CGroup, want)
			}
			if q.LoginUID != shell.LoginUID || q.SessionID != shell.SessionID {
				p.t.Errorf("%s of %s's has the audit identity (%d, %d), want (%d, %d)", one.name, p.login,
					q.LoginUID, q.SessionID, shell.LoginUID, shell.SessionID)
			}
		}
	}
}
