package agentcli

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/agent/link"
	jointoken "github.com/curfew-access/curfew/internal/join"
)

const trustCALong = `trust-ca has this host accept its control plane by the CA with this pin, and by no other. It is for a
control plane that has lost its CA, or was given a new one without this host; otherwise hosts learn of a new
CA by themselves. Take the pin from whoever runs the control plane: curfew-controlplane ca show. The host's
identity, its grants and what runs under them stay as they are.`

func newTrustCA(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use: "trust-ca PIN", Short: "Accept the control plane by another CA", Long: trustCALong,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("%w: %s takes one pin", errUsage, c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			pin, err := jointoken.ParsePin(args[0])
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			if err := needRoot(); err != nil {
				return err
			}
			if err := link.TrustCA(c.Context(), linkDir, pin, time.Now); err != nil {
				return err
			}
			_, err = fmt.Fprintln(stdout, "the control plane is accepted by that CA alone; now: "+
				"systemctl restart curfew-link")
			return err
		},
	}
}
