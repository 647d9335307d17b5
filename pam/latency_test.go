package pam_test

import (
	"slices"
	"testing"
	"time"

	libpam "github.com/msteinert/pam/v2"

	"github.com/curfew-access/curfew/internal/gatewire"
)

// BenchmarkAccount is what the module adds to a login, libpam's own work included; "none" is the
// same stack for a person whom nobody asks about.
func BenchmarkAccount(b *testing.B) {
	for name, user := range map[string]string{"asked": "alice", "none": "mallory", "root": "root"} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b)
			w.agent(say(gatewire.Allow, ""))
			quiet := libpam.ConversationFunc(func(libpam.Style, string) (string, error) {
				return "", nil
			})
			tx, err := libpam.StartConfDir("sshd", user, quiet, w.services)
			if err != nil {
				b.Fatal(err)
			}
			defer tx.End()
			_ = tx.AcctMgmt(0) // loads the module
			spent := make([]time.Duration, 0, b.N)
			for b.Loop() {
				spent = append(spent, took(func() { _ = tx.AcctMgmt(0) }))
			}
			slices.Sort(spent)
			b.ReportMetric(float64(spent[len(spent)/2].Microseconds()), "µs-p50")
			b.ReportMetric(float64(spent[len(spent)*99/100].Microseconds()), "µs-p99")
		})
	}
}
