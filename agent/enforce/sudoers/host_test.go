package sudoers

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/world"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// TestNobodyMovesTheEnd asks the sudo of every supported Debian, with nothing of Curfew's running:
// the end that stands in a drop-in is the same moment whatever TZ the caller sets, and no rule
// counts after it. Attack A22: without its Z an end moves by a day.
func TestNobodyMovesTheEnd(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute) // with root file systems to build
	t.Cleanup(cancel)
	w, err := world.New(ctx, world.Options{Name: "sudoends", Out: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, release := range world.Releases {
		h, err := w.AddHost(ctx, world.HostOptions{Name: release, Release: release})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Shell(ctx, "useradd -m alice"); err != nil {
			t.Fatal(err)
		}
		for ends, want := range map[time.Duration]string{
			-time.Minute: "", -13 * time.Hour: "", time.Hour: "0", 13 * time.Hour: "0",
		} {
			d := dropin(&curfewv1.SudoRule{RunAs: "root", Command: "/usr/bin/id", Args: []string{"-u"}})
			d.End = time.Now().Add(ends)
			text, err := Render(d)
			if err != nil {
				t.Fatal(err)
			}
			if err := h.Write("/etc/sudoers.d/zz-grant", text, 0o440); err != nil {
				t.Fatal(err)
			}
			for _, zone := range []string{
				"", "UTC", "Pacific/Kiritimati", "Etc/GMT+12", "X+23:59:59", "X-24:59:59", ":/etc/passwd",
			} {
				out, _ := h.Shell(ctx, fmt.Sprintf( // refused is not an error here
					`runuser -u alice -- env TZ=%q sudo -n /usr/bin/id -u 2>/dev/null || true`, zone))
				if got := strings.TrimSpace(string(out)); got != want {
					t.Errorf("%s: a rule that ends in %v, with TZ=%q: %q, want %q",
						release, ends, zone, got, want)
				}
			}
		}
	}
}
