// Package e2e tells Curfew's stories on real hosts: systemd, sshd, sudo, logind and PAM are
// Debian's own. Each test is one promise, played on a stage of its own.
package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/internal/pace"
)

func TestMain(m *testing.M) {
	if hook := os.Getenv("CURFEW_E2E_HOOK"); hook != "" {
		os.Exit(receiveHooks(hook))
	}
	if mail := os.Getenv("CURFEW_E2E_MAIL"); mail != "" {
		os.Exit(receiveMail(mail))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	err := stage.Build(ctx)
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// storyLimit bounds one story. Most take ten seconds on a machine at rest.
const storyLimit = 8 * time.Minute

// settingTime is how long a stage and its cast take beside three other stories on a machine that does
// nothing else.
const settingTime = 6 * time.Second

// A story is a stage with the test that plays on it.
type story struct {
	*stage.Stage
	t     *testing.T
	ctx   context.Context
	began time.Time
}

// lasting makes of a window's length one that leaves this machine as much time as a quick one has: the
// setting of the stage and its cast, which is over now, has shown how slow it is.
func (s *story) lasting(d time.Duration) time.Duration {
	if d > 2*time.Minute {
		return d
	}
	slow := time.Since(s.began).Seconds() / settingTime.Seconds()
	return time.Duration(float64(d) * min(max(slow, 1), 4)).Round(time.Second)
}

// tell opens a stage for one story, side by side with others.
func tell(t *testing.T, o stage.Options) *story {
	t.Helper()
	return tellFor(t, storyLimit, o)
}

// tellFor is tell for a story that may take longer.
func tellFor(t *testing.T, limit time.Duration, o stage.Options) *story {
	t.Helper()
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	if o.Name == "" {
		o.Name = strings.ToLower(strings.TrimPrefix(t.Name(), "Test"))
	}
	began := time.Now()
	s, err := stage.New(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	st := &story{Stage: s, t: t, ctx: ctx, began: began}
	t.Cleanup(st.curtain)
	return st
}

// curtain shows the journals of a failed story, then closes the stage.
func (s *story) curtain() {
	if s.t.Failed() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if log, err := s.Control.Journal(ctx, "curfew-controlplane.service"); err == nil {
			s.t.Logf("control plane's journal:\n%s", tail(log, 40))
		}
		for name, h := range s.Hosts {
			if out, err := h.Shell(ctx, `journalctl --no-pager -q -o short-precise -n 400 | `+
				`grep -E 'curfew|sshd|sudo|su\[|logind' | tail -n 60`); err == nil {
				s.t.Logf("%s's journal:\n%s", name, out)
			}
		}
	}
	if err := s.Close(); err != nil {
		s.t.Errorf("closing the stage: %v", err)
	}
}

func tail(s string, lines int) string {
	all := strings.Split(s, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func (s *story) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// curfew runs the command and demands its exit status and that its output contains all words.
func (s *story) curfew(p *stage.Person, exit int, args []string, words ...string) stage.Result {
	s.t.Helper()
	r, err := p.Curfew(s.ctx, args...)
	s.ok(err)
	s.expect(r, "curfew "+strings.Join(args, " "), exit, words...)
	return r
}

// ssh runs a command over real ssh and demands its exit status and words.
func (s *story) ssh(p *stage.Person, host string, exit int, command string, words ...string) stage.Result {
	s.t.Helper()
	r, err := p.SSH(s.ctx, host, command)
	s.ok(err)
	s.expect(r, fmt.Sprintf("ssh %s@%s %s", p.Name(), host, command), exit, words...)
	return r
}

func (s *story) expect(r stage.Result, what string, exit int, words ...string) {
	s.t.Helper()
	if r.Exit != exit {
		s.t.Fatalf("%s: want exit %d, got %s", what, exit, r)
	}
	for _, w := range words {
		if !strings.Contains(r.Out+r.Err, w) {
			s.t.Fatalf("%s: want %q in %s", what, w, r)
		}
	}
}

// on runs a script as root on a host and returns what it printed, without surrounding space.
func (s *story) on(host, script string) string {
	s.t.Helper()
	out, err := s.Hosts[host].Shell(s.ctx, script)
	s.ok(err)
	return strings.TrimSpace(string(out))
}

// within demands that a condition comes true before a promise's limit is over, and tells how long it
// took. Time in which this machine could not keep up is nobody's.
func (s *story) within(limit time.Duration, what string, done func() (bool, string)) time.Duration {
	s.t.Helper()
	watch := pace.Start()
	for {
		ok, seen := done()
		if ok {
			return watch.Elapsed()
		}
		if took := watch.Elapsed(); took > limit || s.ctx.Err() != nil {
			s.t.Fatalf("waiting for %s: not after %s; last seen:\n%s", what, took.Round(time.Millisecond), seen)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// timed is on for a script that measures: kept is the part of its time in which this machine kept up.
func (s *story) timed(host, script string) (out string, kept float64) {
	s.t.Helper()
	began, watch := time.Now(), pace.Start()
	out = s.on(host, script)
	return out, watch.Elapsed().Seconds() / time.Since(began).Seconds()
}

// gone demands that nothing of a login's access is left on a host: no account, key, rule, ticket and
// no process, of the login or of the session's root shells (whose command lines hold mark).
func (s *story) gone(host, login, mark string, limit time.Duration) {
	s.t.Helper()
	script := `
getent passwd ` + login + ` | grep -v nologin && echo "account"
test ! -e /run/curfew/keys/` + login + ` || echo "key"
ls -A /run/curfew/sudoers.d | grep . && echo "rule"
ls /run/sudo/ts/ 2>/dev/null | grep -x ` + login + ` && echo "ticket"
pgrep -u ` + login + ` -a 2>/dev/null && echo "process"
pgrep -f '[` + mark[:1] + `]` + mark[1:] + `' -a && echo "marked process"
ss -Htn state established '( sport = :22 )' | grep . && echo "ssh connection"
true`
	s.within(limit, "everything of "+login+" to be gone from "+host, func() (bool, string) {
		out, err := s.Hosts[host].Exec(s.ctx, "bash", "-c", script)
		return err == nil && strings.TrimSpace(string(out)) == "", string(out)
	})
}
