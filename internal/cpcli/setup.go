package cpcli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/internal/grant"
)

const maxAdminKey = 16 << 10

func (a *app) initCmd() *cobra.Command {
	c := controlplane.Setup{Now: time.Now}
	var keyFile string
	var once bool
	cmd := &cobra.Command{
		Use:   "init --organisation NAME --url HOST:PORT --admin NAME --admin-key FILE",
		Short: "Set up a new control plane: CA, keys, trust file, first admin",
		Example: "  curfew-controlplane init --organisation acme --url curfew.example.org:7443 \\\n" +
			"    --admin dana --admin-key ~/.ssh/id_ed25519.pub",
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, flag := range []struct{ name, value string }{
				{"organisation", c.Organisation},
				{"url", c.URL},
				{"admin", c.Admin},
				{"admin-key", keyFile},
			} {
				if flag.value == "" {
					return usageError{fmt.Errorf("--%s is missing", flag.name)}
				}
			}
			config, err := a.load()
			if err != nil {
				return err
			}
			if once && controlplane.Made(config.DataDir) {
				a.say("The control plane in %s was made before; nothing to do.", config.DataDir)
				return nil
			}
			key, err := a.readKey(keyFile)
			if err != nil {
				return err
			}
			c.DataDir, c.AdminKey, c.Log = config.DataDir, key, a.quiet()
			pin, err := controlplane.Init(cmd.Context(), c)
			if err != nil {
				return err
			}
			a.welcome(c, pin)
			return nil
		},
	}
	cmd.Flags().StringVar(&c.Organisation, "organisation", "", "name of the organisation: a-z, 0-9, . and -")
	cmd.Flags().StringVar(&c.URL, "url", "", "HOST:PORT that people and hosts dial")
	cmd.Flags().StringVar(&c.Admin, "admin", "", "user name of the first admin")
	cmd.Flags().BoolVar(&once, "once", false, "do nothing where there is a control plane already")
	cmd.Flags().StringVar(&keyFile, "admin-key", "", "file with the admin's SSH public key; - is stdin")
	return cmd
}

// readKey reads the first admin's public key; a private one is refused before it goes anywhere.
func (a *app) readKey(path string) (string, error) {
	in := a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("the admin's key: %w", err)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxAdminKey))
	if err != nil {
		return "", fmt.Errorf("the admin's key: %w", err)
	}
	if strings.Contains(string(data), "PRIVATE KEY") {
		return "", errors.New("that is a private key; give the public one, which ends in .pub")
	}
	key, err := grant.CanonicalSSHKey(string(data))
	if err != nil {
		return "", fmt.Errorf("the admin's key: %w", err)
	}
	return key, nil
}

func (a *app) welcome(c controlplane.Setup, pin string) {
	a.say("Made the control plane of %s in %s:", c.Organisation, c.DataDir)
	a.say("  root.key signs the trust file that hosts obey. Changes of approvers and roles are signed by")
	a.say("  themselves while it lies there; move it offline, and `curfew-controlplane trust sign` signs them.")
	a.writeConfig(c)
	a.say("")
	a.say("Next:")
	a.say("  1. start it:          systemctl enable --now curfew-controlplane")
	a.say("  2. on your own machine, sign in as %s:", c.Admin)
	fmt.Fprintf(a.out, "curfew login --server %s --ca-pin %s --user %s\n", c.URL, pin, c.Admin)
	a.say("  3. add people, groups, roles and hosts: curfew admin --help")
	a.say("  4. keep a copy:       curfew-controlplane backup FILE")
}

// writeConfig leaves a configuration to edit. Without one, or without permission to write it, the
// defaults hold and the store knows the rest.
func (a *app) writeConfig(c controlplane.Setup) {
	_, err := os.Stat(a.config)
	if !missing(err) {
		return
	}
	text := fmt.Sprintf(`# Curfew's control plane. Every field may be left out; see curfew-controlplane(1).
# listen: ":7443"
url: %s
# session_ttl: 8h
# lease: 15m
# pending_ttl: 24h
# metrics_listen: 127.0.0.1:9471
# webhooks:
#   - url: https://chat.example.org/hooks/curfew
#     secret_file: /etc/curfew/webhook.secret
`, c.URL)
	if c.DataDir != controlplane.DefaultDataDir {
		text += "data_dir: " + c.DataDir + "\n"
	}
	err = os.MkdirAll(filepath.Dir(a.config), 0o755)
	if err == nil {
		err = os.WriteFile(a.config, []byte(text), 0o644)
	}
	if err != nil {
		a.say("  The configuration %s was not written (%v); the defaults hold.", a.config, err)
		return
	}
	a.say("  The configuration is %s.", a.config)
}
