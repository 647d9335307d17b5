package cpcli

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/internal/grant"
)

// offline runs something on the data folder; a server may run beside it.
func (a *app) offline(
	cmd *cobra.Command, do func(*controlplane.Offline, controlplane.Config) error,
) (err error) {
	c, err := a.load()
	if err != nil {
		return err
	}
	o, err := controlplane.OpenOffline(cmd.Context(), c.DataDir, time.Now, a.quiet())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	return do(o, c)
}

func (a *app) backupCmd() *cobra.Command {
	return &cobra.Command{
		Use: "backup FILE", Short: "Write the store and all keys into one file, while the server runs",
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.offline(cmd, func(o *controlplane.Offline, _ controlplane.Config) error {
				if err := o.Backup(cmd.Context(), args[0]); err != nil {
					return err
				}
				a.say("Wrote %s. It holds every key: keep it as you keep the control plane.", args[0])
				return nil
			})
		},
	}
}

func (a *app) restoreCmd() *cobra.Command {
	return &cobra.Command{
		Use: "restore FILE", Short: "Bring a backup back into an empty data folder",
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.load()
			if err != nil {
				return err
			}
			r, err := controlplane.Restore(cmd.Context(), args[0], c.DataDir, time.Now, a.quiet())
			if err != nil {
				return err
			}
			a.say("Restored the control plane as of %s.", r.At.UTC().Format(time.RFC3339))
			a.say("Lost is what came after: requests, decisions and records of the trail; users, groups,")
			a.say("roles and hosts that were added; and what was taken away: look through the users that were")
			a.say("disabled and the keys that were removed since, and do it again.")
			a.say("Grants that ended on a host stay ended there. Everybody signs in again.")
			if !r.Signed {
				a.say("Hosts accept nothing of it until the new trust file is signed:")
				a.say("  curfew-controlplane trust sign --root-key FILE")
				return nil
			}
			a.say("The trust epoch was raised, so that hosts accept the restored state. Next:")
			a.say("  systemctl start curfew-controlplane")
			return nil
		},
	}
}

func (a *app) trustCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "trust", Short: "See and sign the trust file that hosts obey"}
	cmd.AddCommand(a.trustShowCmd(), a.trustSignCmd())
	return cmd
}

func (a *app) trustShowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Print the trust file in force, and what waits for a signature",
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.offline(cmd, func(o *controlplane.Offline, _ controlplane.Config) error {
				row, unsigned, err := o.People.TrustNow(cmd.Context())
				if err != nil {
					return err
				}
				trust, err := identity.Trust(row)
				if err != nil {
					return err
				}
				enc := json.NewEncoder(a.out)
				enc.SetIndent("", "  ")
				if err := enc.Encode(trust); err != nil {
					return err
				}
				a.say("CA pin: %s", o.Pin)
				if unsigned == nil {
					return nil
				}
				a.say("Waiting for the root key (curfew-controlplane trust sign --root-key FILE):")
				var next grant.Trust
				if err := json.Unmarshal(unsigned, &next); err != nil {
					return fmt.Errorf("the trust file that waits: %w", err)
				}
				enc = json.NewEncoder(a.err)
				enc.SetIndent("", "  ")
				return enc.Encode(&next)
			})
		},
	}
}

func (a *app) trustSignCmd() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use: "sign --root-key FILE…", Short: "Sign the trust file that waits; the server pushes it to hosts",
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return usageError{errors.New("--root-key is missing")}
			}
			keys := make([]ed25519.PrivateKey, 0, len(files))
			for _, file := range files {
				key, err := controlplane.LoadRootKey(file)
				if err != nil {
					return err
				}
				keys = append(keys, key)
			}
			return a.offline(cmd, func(o *controlplane.Offline, _ controlplane.Config) error {
				trust, err := o.People.SignTrust(cmd.Context(), "curfew", keys)
				if err != nil {
					return err
				}
				a.say("Trust file version %d (epoch %d) is signed and in force: %d approvers, %d roles.",
					trust.Version, trust.Epoch, len(trust.Approvers), len(trust.Quorums))
				return nil
			})
		},
	}
	cmd.Flags().StringSliceVar(&files, "root-key", nil, "root key file; give it once per key needed")
	return cmd
}
