package controlplane

import (
	"time"

	"github.com/curfew-access/curfew/controlplane/notify"
	"github.com/curfew-access/curfew/controlplane/ticket"
)

func checkNames(checks []TicketCheck) []string {
	names := make([]string, 0, len(checks))
	for _, c := range checks {
		names = append(names, c.Name)
	}
	return names
}

// tickets loads what asks ticket systems.
func (s *Server) tickets(now func() time.Time) (*ticket.Asker, error) {
	checks := make(map[string]ticket.Check)
	for _, c := range s.config.TicketChecks {
		secret, err := notify.LoadSecret(c.SecretFile)
		if err != nil {
			return nil, err
		}
		checks[c.Name] = ticket.Check{URL: c.URL, Secret: secret}
	}
	return ticket.New(checks, nil, now)
}
