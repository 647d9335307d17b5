package cpcli

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/keyfile"
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
		Long: "Write the store and all keys into one file, while the server runs; - is stdout.",
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.offline(cmd, func(o *controlplane.Offline, _ controlplane.Config) error {
				if args[0] == "-" {
					return a.pipeBackup(cmd.Context(), o)
				}
				if err := o.Backup(cmd.Context(), args[0]); err != nil {
					return err
				}
				a.say("Wrote %s. It holds every key: keep it as you keep the control plane.", args[0])
				return nil
			})
		},
	}
}

// pipeBackup writes a backup to stdout, by way of a folder that only this user can read: where there is
// no shell to copy a file out with, as in a container.
func (a *app) pipeBackup(ctx context.Context, o *controlplane.Offline) (err error) {
	dir, err := os.MkdirTemp("", "curfew-backup-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "backup")
	if err := o.Backup(ctx, path); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(a.out, f)
	return err
}

// keepInput puts stdin into a file.
func (a *app) keepInput(dir string) (string, error) {
	path := filepath.Join(dir, "backup")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, a.in)
	return path, errors.Join(err, f.Close())
}

func (a *app) restoreCmd() *cobra.Command {
	return &cobra.Command{
		Use: "restore FILE", Short: "Bring a backup back into an empty data folder",
		Long: "Bring a backup back into an empty data folder; - is stdin.",
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			c, err := a.load()
			if err != nil {
				return err
			}
			if args[0] == "-" {
				dir, err := os.MkdirTemp("", "curfew-restore-")
				if err != nil {
					return err
				}
				defer os.RemoveAll(dir)
				if args[0], err = a.keepInput(dir); err != nil {
					return err
				}
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
	cmd.AddCommand(a.trustShowCmd(), a.trustSignCmd(), a.rotateIssuerCmd())
	return cmd
}

func (a *app) trustOutcome(version uint64, waiting identity.Waiting) {
	if waiting.Text == "" {
		a.say("Trust file version %d is signed and in force.", version)
		return
	}
	a.say("The signature is kept; the trust file still waits: %s.", waiting.Text)
}

// rotateIssuerCmd is what to do when the grant key was stolen.
func (a *app) rotateIssuerCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "rotate-issuer",
		Short: "Make a new grant key and have hosts obey it alone, in a new epoch",
		Long: "Make a new grant key and have hosts obey it alone, in a new epoch: the old one is worth\n" +
			"nothing on a host as soon as that host hears of it. Running access goes on. The server\n" +
			"starts itself anew with the new key once enough root keys have signed.",
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.offline(cmd, func(o *controlplane.Offline, _ controlplane.Config) error {
				waiting, err := o.RotateIssuer(cmd.Context(), "curfew")
				if err != nil {
					return err
				}
				if waiting.Text == "" {
					a.say("The trust file names the new grant key; the server takes it up within seconds.")
					return nil
				}
				a.say("The trust file that names the new grant key waits: %s.", waiting.Text)
				a.say("Whoever has a root key: curfew admin trust sign --root-key FILE")
				return nil
			})
		},
	}
}

func (a *app) trustShowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Print the trust file in force, and what waits for a signature",
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.offline(cmd, func(o *controlplane.Offline, _ controlplane.Config) error {
				row, waiting, err := o.People.TrustNow(cmd.Context())
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
				if waiting.Content == nil {
					return nil
				}
				a.say("Waiting for root keys (curfew-controlplane trust sign --root-key FILE); %s:",
					waiting.Text)
				next, err := grant.ParseTrust(waiting.Content)
				if err != nil {
					return fmt.Errorf("the trust file that waits: %w", err)
				}
				enc = json.NewEncoder(a.err)
				enc.SetIndent("", "  ")
				return enc.Encode(next)
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
				key, err := keyfile.Load(file, "root key")
				if err != nil {
					return err
				}
				keys = append(keys, key)
			}
			return a.offline(cmd, func(o *controlplane.Offline, _ controlplane.Config) error {
				version, waiting, err := o.People.SignTrust(cmd.Context(), "curfew", keys)
				if err != nil {
					return err
				}
				a.trustOutcome(version, waiting)
				return nil
			})
		},
	}
	cmd.Flags().StringSliceVar(&files, "root-key", nil, "root key file; give it once per key needed")
	return cmd
}
