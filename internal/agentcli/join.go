package agentcli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/agent"
	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/link"
	"github.com/curfew-access/curfew/agent/store"
	"github.com/curfew-access/curfew/internal/grant"
	jointoken "github.com/curfew-access/curfew/internal/join"
	"github.com/curfew-access/curfew/internal/version"
)

func newLink(stderr io.Writer) *cobra.Command {
	var logs logFlags
	var server string
	c := &cobra.Command{
		Use: "link", Short: "Run the link half (systemd does)", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			log, err := logs.logger("link", stderr)
			if err != nil {
				return err
			}
			l, err := link.New(link.Config{
				Directory: linkDir, Server: server, Now: time.Now, Log: log,
			})
			if err != nil {
				return err
			}
			return l.Run(c.Context())
		},
	}
	c.Flags().StringVar(&server, "server", "", "another address of the control plane, HOST:PORT")
	logs.add(c)
	return c
}

// joinFlags are what join is told.
type joinFlags struct {
	server, token, name, address string
	labels                       map[string]string
	hostKeys                     string
	start                        bool
}

const joinLong = `join makes this machine a host of a control plane: it draws the host's two keys, which never
leave it, proves them with a one-time token from an admin (curfew admin host add), and keeps what
comes back. It runs once. Nobody's access changes by it: a new host observes until somebody writes
mode: enforce into /etc/curfew/agent.yaml.`

func newJoin(stdout, stderr io.Writer) *cobra.Command {
	var f joinFlags
	c := &cobra.Command{
		Use:   "join --server HOST:PORT TOKEN",
		Short: "Make this machine a Curfew host",
		Long:  joinLong,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 1 && f.token != "" {
				return fmt.Errorf("%w: one token is enough", errUsage)
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				f.token = args[0]
			}
			return f.run(c.Context(), stdout, stderr)
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.server, "server", "", "the control plane, HOST:PORT")
	flags.StringVar(&f.token, "token", "", "the one-time token, instead of the argument")
	flags.StringVar(&f.name, "name", "", "name of this host (default: the token's, else the hostname)")
	flags.StringVar(&f.address, "address", "", "where ssh reaches this host (default: the name)")
	flags.StringToStringVar(&f.labels, "label", nil, "labels, KEY=VALUE, may be repeated")
	flags.StringVar(&f.hostKeys, "ssh-host-keys", "/etc/ssh/ssh_host_*_key.pub",
		"public keys of this host's sshd, as a pattern")
	flags.BoolVar(&f.start, "start", false, "start the agent when the host has joined")
	return c
}

func (f *joinFlags) run(ctx context.Context, stdout, stderr io.Writer) error {
	if f.server == "" || f.token == "" {
		return fmt.Errorf("%w: join needs --server and a token; an admin gets both from "+
			"curfew admin host add", errUsage)
	}
	if _, err := jointoken.ParseToken(f.token); err != nil {
		return err
	}
	if err := needRoot(); err != nil {
		return err
	}
	keys, err := readHostKeys(f.hostKeys)
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		fmt.Fprintf(stderr, "warning: no file fits %s: people will have to trust this host's ssh key "+
			"at first sight\n", f.hostKeys)
	}
	joined, err := f.join(ctx, keys)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "joined %s as %s (host id %s)\n", joined.Organisation, joined.Name,
		joined.HostID)
	if err := writeExample(agent.ConfigPath); err != nil {
		return err
	}
	if !f.start {
		fmt.Fprintln(stderr, "hint: start the agent with: systemctl enable --now curfew-agent.target")
		return nil
	}
	out, err := exec.CommandContext(ctx, "systemctl", "enable", "--now", "curfew-agent.target",
		"curfew-enforce.service", "curfew-link.service").CombinedOutput()
	if err != nil {
		return fmt.Errorf("the host has joined, but the agent does not start: %w: %s", err, out)
	}
	return nil
}

// join draws the root half's key, enrols, and keeps the ledger that enrolment begins.
func (f *joinFlags) join(ctx context.Context, hostKeys []string) (*link.Joined, error) {
	state := "/" + enforce.StateDir
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, fmt.Errorf("making the agent's store: %w", err)
	}
	s, err := store.Open(store.Config{Directory: state})
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }() // everything in it was fsynced
	if _, err := s.Ledger(); !errors.Is(err, store.ErrNotJoined) {
		if err == nil {
			err = link.ErrJoined
		}
		return nil, err
	}
	// A key from an attempt that failed may be enrolled already, and a key enrols once.
	if err := s.DropKey(); err != nil {
		return nil, err
	}
	key, err := s.NewKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	uid, gid, err := linkOwner()
	if err != nil {
		return nil, err
	}
	joined, err := link.Join(ctx, link.JoinConfig{
		Server: strings.TrimPrefix(f.server, "https://"), Token: f.token, Name: f.name,
		Address: f.address, Labels: f.labels, SSHHostKeys: hostKeys, RootKey: key,
		AgentVersion: version.Version, Directory: linkDir, UID: uid, GID: gid, Now: time.Now,
	})
	if err != nil {
		return nil, err
	}
	id, err := grant.ParseHostID(joined.HostID)
	if err != nil {
		return nil, err
	}
	ledger, err := grant.NewLedger(id, joined.TrustEnvelope)
	if err != nil {
		return nil, fmt.Errorf("reading the trust file that enrolment gave: %w", err)
	}
	if err := s.SaveHost(store.Host{Name: joined.Name, Organisation: joined.Organisation}); err != nil {
		return nil, err
	}
	return joined, s.SaveLedger(ledger)
}

func linkOwner() (uid, gid int, err error) {
	local, err := account.ReadLocal("/")
	if err != nil {
		return 0, 0, err
	}
	u, ok := local.User(agent.LinkUser)
	if !ok {
		return 0, 0, fmt.Errorf("the user %s is missing; run systemd-sysusers", agent.LinkUser)
	}
	return int(u.UID), int(u.GID), nil
}

const maxHostKeys = 16

func readHostKeys(pattern string) ([]string, error) {
	if pattern == "" {
		return nil, nil
	}
	names, err := filepath.Glob(pattern)
	if err != nil {
		return nil, fmt.Errorf("%w: --ssh-host-keys: %w", errUsage, err)
	}
	slices.Sort(names)
	var keys []string
	for _, name := range names[:min(len(names), maxHostKeys)] {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("reading the ssh host keys: %w", err)
		}
		keys = append(keys, strings.TrimSpace(string(data)))
	}
	return keys, nil
}

// example is the configuration that a new host begins with: every line is a default.
const example = `# What Curfew may do on this host, whatever anybody signs. Changes count at once.

# observe records what would be denied and denies nobody; enforce denies.
#mode: observe

#ceiling:
#  max_duration: 24h
#  allowed_groups: []            # local groups that grants may put Curfew accounts into
#  allow_root_equivalent: false  # sudo rules that amount to all of root

#break_glass_group: curfew-breakglass  # whose members Curfew never stands in the way of
#gated_users: []                 # local users who cannot log in without a grant
#elevate_users: []               # local users who get only their sudo from grants
#uid_range: {min: 1900000000, max: 1999999999}
#home_root: /home
#shell: /bin/bash
#skel: /etc/skel
#lease_action: freeze            # or terminate: end sessions when the control plane stays silent
`

// writeExample leaves a file that is there alone.
func writeExample(name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("writing the settings: %w", err)
	}
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("writing the settings: %w", err)
	}
	_, err = file.WriteString(example)
	return errors.Join(err, file.Close())
}
