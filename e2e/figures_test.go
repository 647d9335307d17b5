package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/e2e/world"
)

// Where the two sides serve their figures in this story.
const (
	hostFigures    = "9470"
	controlFigures = "9471"
)

// get asks a machine's own port over HTTP; the machine has nothing but a shell for that.
func (s *story) get(h *world.Host, port, path string) string {
	s.t.Helper()
	out, err := h.Shell(s.ctx, fmt.Sprintf(
		`exec 3<>/dev/tcp/127.0.0.1/%s && printf 'GET %s HTTP/1.0\r\nHost: x\r\n\r\n' >&3 && cat <&3`, port, path))
	if err != nil {
		return err.Error()
	}
	return strings.ReplaceAll(string(out), "\r", "")
}

// figures waits until a machine shows all lines.
func (s *story) figures(h *world.Host, port string, lines ...string) string {
	s.t.Helper()
	var page string
	s.within(20*time.Second, strings.Join(lines, ", "), func() (bool, string) {
		page = s.get(h, port, "/metrics")
		for _, l := range lines {
			if !regexp.MustCompile(`(?m)^` + l + `$`).MatchString(page) {
				return false, "without " + l + ":\n" + page
			}
		}
		return true, ""
	})
	return page
}

// Request, grant, login and expiry move the figures of both sides. What the alert rules, the board and
// the handbook name are figures that the programs have, and the handbook knows all of them.
func TestFigures(t *testing.T) {
	s := tell(t, stage.Options{
		Agent:   stage.DefaultAgent + "metrics_listen: 127.0.0.1:" + hostFigures + "\n",
		Control: "metrics_listen: 127.0.0.1:" + controlFigures + "\n",
	})
	web1 := s.Hosts["web1"]
	s.figures(s.Control, controlFigures, `curfew_requests_total{outcome="asked"} 0`, `curfew_hosts_connected 1`)
	s.figures(web1, hostFigures, `curfew_grants_live{status="applied"} 0`, `curfew_stream_connected 1`,
		`curfew_expiry_lag_seconds_count 0`)
	alice, _, _ := s.openFor(20 * time.Second)
	s.figures(s.Control, controlFigures, `curfew_requests_total{outcome="granted"} 1`, `curfew_approvals_total 1`,
		`curfew_issued_grants_live{status="applied"} 1`, `curfew_push_lag_seconds_count [1-9].*`,
		`curfew_host_events_total{kind="grant.applied"} 1`)
	tty, err := alice.StartPTY(s.ctx, "ssh", "-tt", "alice@web1", mark)
	s.ok(err)
	t.Cleanup(func() { tty.Close() })
	s.figures(web1, hostFigures, `curfew_grants_live{status="applied"} 1`, `curfew_sessions{kind="login"} 1`,
		`curfew_gate_answers_total{answer="allow",service="sshd"} [1-9].*`, `curfew_grant_apply_seconds_count 1`)
	for port, h := range map[string]*world.Host{hostFigures: web1, controlFigures: s.Control} {
		for _, path := range []string{"/healthz", "/readyz"} {
			if page := s.get(h, port, path); !strings.Contains(page, " 200 OK\n") {
				t.Errorf("%s of %s: %s", path, h.Name(), page)
			}
		}
	}
	_, err = s.Control.Shell(s.ctx, "runuser -u curfew-controlplane -- curfew-controlplane backup /tmp/b.tar")
	s.ok(err)
	time.Sleep(time.Until(s.endOn("web1")))
	host := s.figures(web1, hostFigures, `curfew_grants_live{status="applied"} 0`, `curfew_endings 0`,
		`curfew_expiry_lag_seconds_count 1`, `curfew_expiry_lag_seconds_bucket{le="2"} 1`, `curfew_sessions{kind="login"} 0`)
	control := s.figures(s.Control, controlFigures, `curfew_requests_total{outcome="ended"} 1`,
		`curfew_issued_grants_live{status="applied"} 0`, `curfew_host_events_total{kind="grant.purged"} 1`,
		`curfew_backup_timestamp_seconds [1-9].*`)
	compareNames(t, host+control)
}

// compareNames holds what is written about figures against what the programs have.
func compareNames(t *testing.T, pages string) {
	has := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (curfew_\w+) `).FindAllStringSubmatch(pages, -1) {
		has[m[1]] = true
	}
	named := func(file string) map[string]bool {
		text, err := os.ReadFile(filepath.Join("..", file))
		if err != nil {
			t.Fatal(err)
		}
		all := make(map[string]bool)
		for _, name := range regexp.MustCompile(`\bcurfew_[a-z_]+`).FindAllString(string(text), -1) {
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				if base, ok := strings.CutSuffix(name, suffix); ok && has[base] {
					name = base
				}
			}
			all[name] = true
		}
		return all
	}
	for _, file := range []string{
		"packaging/prometheus/curfew.rules.yml", "packaging/grafana/curfew.json", "docs/operate/observability.md",
	} {
		names := named(file)
		if len(names) < 20 {
			t.Errorf("%s names %d figures", file, len(names))
		}
		for _, name := range slices.Sorted(maps.Keys(names)) {
			if !has[name] {
				t.Errorf("%s names %s, which no program has", file, name)
			}
		}
	}
	documented := named("docs/operate/observability.md")
	for _, name := range slices.Sorted(maps.Keys(has)) {
		if !documented[name] {
			t.Errorf("docs/operate/observability.md does not know %s", name)
		}
	}
}
